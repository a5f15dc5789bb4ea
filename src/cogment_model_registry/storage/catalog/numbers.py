"""Numbers of versions, persisted ahead in blocks.

The folder holds a number up to which none may be given again, and the next block is persisted in the background when
a third of the last one is left. A clean stop persists the exact number, so that only a crash skips the rest of a block.
"""

import asyncio
import contextlib

import structlog

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, check_version_number
from cogment_model_registry.storage.catalog.model import Model
from cogment_model_registry.storage.folder import FolderArchive

_log = structlog.stdlib.get_logger(__name__)

NUMBER_BLOCK = 128
"""Numbers persisted ahead: one sync for 86 publishes, and at most 128 numbers skipped after a crash."""

_BEGIN_SHARE = 3
"""Of which share of a block there must be left: enough for the publishes that come while the next one is persisted."""


class Numbers:
    """Gives numbers, one at a time for a model.

    Args:
        archive: Where they are persisted.
        block: How many numbers to persist ahead.
    """

    def __init__(self, archive: FolderArchive, block: int) -> None:
        self._archive = archive
        self._block = block

    async def take(self, model: Model) -> int:
        """Return the next number of a model.

        Raises:
            TooLargeError: The numbers are used up, or no space is left to persist them.
        """
        number = model.next_number
        if number > model.persisted_number:
            check_version_number(number, model.model_id)
            if model.persisting is not None:
                await asyncio.wait([model.persisting])
            if number > model.persisted_number:
                await self.persist(model, self._block_end(number))
        model.next_number = number + 1
        self.persist_ahead(model)
        return number

    def persist_ahead(self, model: Model) -> None:
        """Let a new block be persisted when little of the last one is left."""
        left = model.persisted_number - model.next_number + 1
        if left * _BEGIN_SHARE < self._block and (model.persisting is None or model.persisting.done()):
            target = self._block_end(model.next_number)
            if target > model.persisted_number:
                model.persisting = asyncio.ensure_future(self._persist_quietly(model, target))

    def _block_end(self, number: int) -> int:
        """Return the last number of the block that begins at `number`."""
        return min(number + self._block - 1, VERSION_NUMBER_MAX)

    async def _persist_quietly(self, model: Model, number: int) -> None:
        # What fails here fails again, and is reported, when the number is needed.
        with contextlib.suppress(ModelRegistryError):
            await self.persist(model, number)

    async def persist(self, model: Model, number: int) -> None:
        """Persist that no number up to this one may be given again.

        Raises:
            NotFoundError: The model does not exist in the folder.
            TooLargeError: No space is left.
        """
        await self._archive.write_high_water_mark(model.model_id, number)
        model.persisted_number = number

    async def persist_used(self, model: Model, number: int) -> None:
        """Persist that a number was given, unless that is known; see `persist`."""
        if number > model.persisted_number and model.persisting is not None:
            await asyncio.wait([model.persisting])  # it writes a higher one, which must not be lowered
        if number > model.persisted_number:
            await self.persist(model, number)

    async def persist_exactly(self, model: Model) -> None:
        """Take back the numbers that were persisted ahead and not given."""
        if model.persisting is not None:
            await asyncio.wait([model.persisting])
        if model.persisted_number > model.next_number - 1:
            try:
                await self.persist(model, model.next_number - 1)
            except ModelRegistryError as error:
                _log.warning("numbers will be skipped after the restart", model_id=model.model_id, reason=error.message)
