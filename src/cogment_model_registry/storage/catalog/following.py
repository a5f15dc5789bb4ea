"""How the records in a database follow the files in a folder.

The files are what counts. A start compares the records with the names in the folder: versions that are gone leave, and
those that are new are read and added in the background. So are those whose metadata was written since the last
comparison, because a program that deletes a model and creates it again gives its numbers to other versions. Of these,
the ones that aliases point to are read before anything is served.

The state of each folder is recorded when all of that is done. A start reads no folder that is in the recorded state.
"""

import asyncio
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from sqlite3 import Connection

import structlog

from cogment_model_registry.errors import ModelRegistryError, NotFoundError
from cogment_model_registry.records.lifecycle import Alias
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog import requests, tables
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.folder import FolderArchive, FolderContents, KnownFolder

_log = structlog.stdlib.get_logger(__name__)

_BATCH = 256
"""How many versions are read and added at once: a publish waits for no more than that."""


class Following:
    """The records of versions, kept in line with a folder.

    Args:
        database: Where they are kept.
        archive: The folder.
        on_replaced: Called with a model of which numbers were given to other versions, and with the aliases that it has
            left.
    """

    def __init__(
        self, database: Database, archive: FolderArchive, on_replaced: Callable[[str, Sequence[Alias]], None]
    ) -> None:
        self._database = database
        self._archive = archive
        self._on_replaced = on_replaced
        self._unread: dict[str, list[int]] = {}
        self._contents: dict[str, FolderContents] = {}
        self._reading: asyncio.Task[None] | None = None

    async def known(self) -> dict[str, KnownFolder]:
        """Return what is known of the folders of all models."""
        return await self._database.read(tables.folders)

    async def known_of(self, model_id: str) -> KnownFolder:
        """Return what is known of the folder of one model."""
        return await self._database.read(lambda connection: tables.folder_of(connection, model_id))

    async def compare(self, contents: FolderContents, known: AbstractSet[int], aliased: AbstractSet[int]) -> None:
        """Compare the records of a model with its folder; see the top of the module.

        Args:
            contents: What the folder has.
            known: The numbers of the versions that have records.
            aliased: The numbers of those that aliases point to.
        """
        if contents.is_as_known:
            return
        model_id = contents.info.model_id
        # A damaged version may be repaired, so what people said of it stays.
        gone = known - {*contents.version_numbers} - contents.damaged.keys()
        if gone:
            _log.warning("versions gone from the archive", model_id=model_id, count=len(gone), newest=max(gone))
            await self._database.change(lambda connection: tables.remove_versions(connection, model_id, gone))
        first = sorted(aliased & {*contents.changed} & known)
        if first:
            await self._add(model_id, first)
        unread = sorted({*contents.changed} - {*first})
        self._contents[model_id] = contents
        if unread:
            self._unread[model_id] = unread
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._read_all())
        else:
            self._record_folder(model_id)

    def forget(self, model_id: str) -> None:
        """Read nothing more of a model that is gone."""
        self._unread.pop(model_id, None)
        self._contents.pop(model_id, None)

    async def wait(self) -> None:
        """Wait until all versions were read that a comparison found."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _read_all(self) -> None:
        """Read what is unread, and add it."""
        count = sum(len(numbers) for numbers in self._unread.values())
        _log.info("indexing the archive", versions=count)
        try:
            while self._unread:
                model_id, numbers = next(iter(self._unread.items()))
                batch, rest = numbers[:_BATCH], numbers[_BATCH:]
                await self._add(model_id, batch)
                # A comparison may have found more, or the model may be gone.
                if self._unread.get(model_id) is numbers:
                    self._unread[model_id] = rest
                    if not rest:
                        del self._unread[model_id]
                        self._record_folder(model_id)
            _log.info("archive indexed", versions=count)
        except ModelRegistryError as error:
            _log.error("indexing of the archive stopped: searches are incomplete", reason=error.message)
        finally:
            self._reading = None

    async def _add(self, model_id: str, numbers: Sequence[int]) -> None:
        try:
            found = await self._archive.read_version_infos(model_id, numbers)
        except NotFoundError:
            return
        infos = [each for each in found if isinstance(each, VersionInfo) and each.archived]

        def add(connection: Connection) -> tuple[list[int], list[Alias]]:
            others = tables.put_versions(connection, infos)
            for number in others:
                requests.mark_gone(connection, model_id, number)
            return others, tables.aliases_of(connection, model_id)

        replaced, aliases = await self._database.change(add)
        if replaced:
            _log.warning("versions replaced in the archive", model_id=model_id, count=len(replaced))
            self._on_replaced(model_id, aliases)

    def _record_folder(self, model_id: str) -> None:
        contents = self._contents.pop(model_id, None)
        if contents is None or contents.stamp is None or not contents.version_numbers:
            return
        stamp, numbers = contents.stamp, contents.version_numbers if contents.is_plain else None
        self._database.change_later(lambda connection: tables.put_folder(connection, model_id, stamp, numbers))
