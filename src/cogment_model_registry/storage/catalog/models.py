"""What a `LocalCatalog` shows: models and the numbers of their versions, in memory.

It starts from names alone. The metadata of an archived version is read on the first request for it, and kept in a
bounded cache; until then only its number is known. A version whose metadata turns out to be damaged leaves the listing
at that moment.
"""

import asyncio
import bisect
import time
import weakref
from collections.abc import Collection, Sequence

import structlog
from cachetools import LRUCache

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.versions import VersionInfo, user_data_bytes
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.catalog.model import Appearances, Model
from cogment_model_registry.storage.feed import Feed, History
from cogment_model_registry.storage.folder import FolderArchive, FolderContents

_log = structlog.stdlib.get_logger(__name__)

_INFO_CACHE_BYTES = 32 * 1024 * 1024
_INFO_BYTES = 900  # what a cached version and its encoding take without user_data, measured with tracemalloc

_SIGNATURE_BYTES = 400  # its object and its two texts


def _info_bytes(info: VersionInfo) -> int:
    return _INFO_BYTES + _SIGNATURE_BYTES * (info.signature is not None) + 2 * user_data_bytes(info.user_data)


class Models:
    """The visible models. Whoever changes one holds its lock.

    Args:
        archive: Where models and archived versions live; open.

    Attributes:
        by_id: The models, by id.
        ids: Their ids, ascending.
        feed: Reports changes of models to those who watch.
        versions_count: How many versions are visible, of all models.
        archived_bytes: How many bytes the archived ones of them have.
    """

    def __init__(self, archive: FolderArchive) -> None:
        self.by_id: dict[str, Model] = {}
        self.ids: list[str] = []
        self.feed = Feed(self.existing)
        self.versions_count = 0
        self.archived_bytes = 0
        self._archive = archive
        self._infos: LRUCache[tuple[int, int], VersionInfo] = LRUCache(_INFO_CACHE_BYTES, _info_bytes)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def lock(self, model_id: str) -> asyncio.Lock:
        """Return the lock for changes of a model, which need not exist."""
        model = self.by_id.get(model_id)
        if model is not None:
            return model.lock
        lock = self._locks.get(model_id)
        if lock is None:
            lock = self._locks[model_id] = asyncio.Lock()
        return lock

    def require(self, model_id: str) -> Model:
        """Return a model.

        Raises:
            NotFoundError: It does not exist.
        """
        model = self.by_id.get(model_id)
        if model is None:
            raise NotFoundError.model(model_id)
        return model

    def require_life(self, ref: ModelRef) -> Model:
        """Return a model in the life that a reference is of.

        Raises:
            NotFoundError: That life is over.
        """
        model = self.by_id.get(ref.model_id)
        if model is None or model.life != ref.life:
            raise NotFoundError.model(ref.model_id)
        return model

    async def require_version(self, model: Model, number: int) -> VersionInfo:
        """Return a visible version.

        Raises:
            DataLossError: It is damaged.
            NotFoundError: It does not exist.
        """
        info = await self.get(model, number)
        if info is None:
            if number in model.damaged:
                raise DataLossError.version(model.model_id, number, model.damaged[number])
            raise NotFoundError.version(model.model_id, number)
        return info

    def existing(self, model_ids: Collection[str] | None) -> list[str]:
        """Return the models that exist, of some or of all, in the order in which they were created or changed."""
        known = self.by_id if model_ids is None else {each: None for each in model_ids if each in self.by_id}
        return [*known]

    def note_change(self, model_id: str) -> None:
        """Record that what describes a model was changed."""
        model = self.by_id.get(model_id)
        if model is not None:
            model.history.changed = self.feed.note(model_id)

    # What is visible.

    def add(self, contents: FolderContents, life: int) -> Model:
        """Make a model visible, with the archived versions of its folder."""
        last, mark = max(contents.last_number, contents.high_water_mark), contents.high_water_mark
        history = History(self.feed.note(contents.info.model_id), last)
        model = Model(
            contents.info,
            life,
            history,
            next_number=last + 1,
            persisted_number=mark,
            appearances=Appearances(after=last),
            lock=self.lock(contents.info.model_id),
        )
        self.by_id[model.model_id] = model
        bisect.insort(self.ids, model.model_id)
        self._take_contents(model, contents)
        return model

    def refresh(self, contents: FolderContents, life: int) -> None:
        """Update a model to what its folder has now."""
        model = self.by_id.get(contents.info.model_id)
        if model is None:
            self.add(contents, life)
            return
        if model.info != contents.info:
            model.info = contents.info
            self.note_change(model.model_id)
        model.changes += 1
        if contents.last_number >= model.next_number:
            model.appearances.add(contents.last_number, time.time_ns())
        model.next_number = max(model.next_number, contents.last_number + 1)
        # A folder that was replaced by hand may have a lower mark, or none: the next number persists it again.
        model.persisted_number = contents.high_water_mark
        self._take_contents(model, contents)
        model.wake_watchers()

    def _take_contents(self, model: Model, contents: FolderContents) -> None:
        """Replace the archived versions of a model by those of its folder; transient ones stay."""
        before = {number for number in model.numbers if number not in model.transient}
        for number in before:
            self.drop(model, number)
        model.damaged.clear()
        archived = [number for number in contents.version_numbers if number not in model.transient]
        model.unread.update(archived)
        model.numbers = sorted([*model.numbers, *archived])
        self.versions_count += len(archived)
        for number in archived:
            size_bytes = contents.size_bytes.get(number, 0)
            model.add_archived(number, size_bytes)
            self.archived_bytes += size_bytes
        for number, reason in contents.damaged.items():
            self.mark_damaged(model, number, reason)
        for number in sorted(before.difference(model.numbers)):
            self._note_lost(model, number, "gone from the archive")
        for number in model.numbers[bisect.bisect_right(model.numbers, model.history.last_number) :]:
            model.history.show(self.feed.note(model.model_id), number)

    def forget(self, model: Model) -> None:
        """Make a model invisible, and end its watchers."""
        del self.by_id[model.model_id]
        self.ids.pop(bisect.bisect_left(self.ids, model.model_id))
        self.versions_count -= len(model.numbers)
        self.archived_bytes -= model.archived_bytes
        model.removed = True
        self.feed.note_removed(model.model_id, model.history.since)
        model.wake_watchers()

    def add_archived(self, model: Model, info: VersionInfo) -> None:
        """Keep the metadata of an archived version that has become visible, or was transient before, and its size."""
        self._infos[model.life, info.number] = info
        model.add_archived(info.number, info.data_size_bytes)
        self.archived_bytes += info.data_size_bytes

    def drop(self, model: Model, number: int, reason: str = "") -> None:
        """Make a version invisible, and report the reason to watchers if there is one."""
        archived_bytes = model.archived_bytes
        if model.drop(number):
            if reason:
                self._note_lost(model, number, reason)
            self.versions_count -= 1
            self.archived_bytes -= archived_bytes - model.archived_bytes
        if self._infos:
            self._infos.pop((model.life, number), None)

    def mark_damaged(self, model: Model, number: int, reason: str) -> None:
        """Make a version invisible whose bytes or metadata are damaged, and log it once."""
        if number not in model.damaged:
            _log.error("damaged version found", model_id=model.model_id, number=number, reason=reason)
            model.damaged[number] = reason
        self.drop(model, number, "damaged")

    def _note_lost(self, model: Model, number: int, reason: str) -> None:
        model.history.lose(self.feed.note(model.ref.model_id), number, reason)

    # Metadata.

    def cached(self, model: Model, number: int) -> VersionInfo | None:
        """Return a version whose metadata is in memory; None for others."""
        return model.transient.get(number) or self._infos.get((model.life, number))

    async def get(self, model: Model, number: int) -> VersionInfo | None:
        """Return a visible version; None if it does not exist or turns out to be damaged."""
        info = self.cached(model, number)
        if info is None and model.has(number):
            [info] = await self._read(model, [number])
        return info

    async def read_missing(self, model: Model, numbers: Sequence[int]) -> None:
        """Read at once the metadata of those versions that are not in the cache."""
        await self._read(model, [number for number in dict.fromkeys(numbers) if self.cached(model, number) is None])

    async def nth_last(self, model: Model, n: int) -> VersionInfo | None:
        """Return the n-th version from the last of those that can be retrieved."""
        while n <= len(model.numbers):
            # Whether a version counts is known when its metadata was read; what is damaged leaves `numbers`.
            unread = [number for number in model.numbers[-n:] if number in model.unread]
            if unread:
                await self._read(model, unread)
                continue
            info = await self.get(model, model.numbers[-n])
            if info is not None:
                return info
        return None

    async def _read(self, model: Model, numbers: Sequence[int]) -> list[VersionInfo | None]:
        """Read the metadata of archived versions; return what is sound, and take the rest out of the listing."""
        if not numbers:
            return []
        results: list[VersionInfo | None] = []
        for number, found in zip(numbers, await self._read_sure(model, numbers), strict=True):
            if isinstance(found, VersionInfo):
                model.unread.discard(number)
                self._infos[model.life, number] = found
                results.append(found)
                continue
            if isinstance(found, DataLossError):
                self.mark_damaged(model, number, found.reason)
            else:
                self.drop(model, number, "gone from the archive")
            results.append(None)
        return results

    async def _read_sure(self, model: Model, numbers: Sequence[int]) -> Sequence[VersionInfo | DataLossError | None]:
        """Read the metadata of archived versions; what is missing is read again while nobody changes the model.

        Raises:
            NotFoundError: The model was deleted.
        """
        found = await self._archive.read_version_infos(model.model_id, numbers)
        if not all(isinstance(each, VersionInfo) for each in found) and not model.removed:
            async with self.lock(model.model_id):
                if not model.removed:
                    found = await self._archive.read_version_infos(model.model_id, numbers)
        if model.removed:
            raise NotFoundError.model(model.model_id)
        return found
