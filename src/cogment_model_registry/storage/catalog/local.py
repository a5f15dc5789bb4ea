"""The catalog of a single server: in memory, over the folder of its archive.

`models` has what is visible, and reads metadata on demand. This module has the changes, each with the lock of its
model, and the searches, which take archived versions from the database and transient ones from memory.
"""

import asyncio
import bisect
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from types import TracebackType

from cogment_model_registry.errors import (
    DataLossError,
    NotFoundError,
    StoppingError,
)
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    ModelSummary,
    Version,
    check_revision,
)
from cogment_model_registry.records.retention import ModelChange
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import (
    VERSION_NUMBER_MAX,
    ModelInfo,
    VersionInfo,
)
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import (
    Catalog,
    CatalogCounts,
    ModelOutline,
    ModelRef,
    ModelState,
    Newer,
    News,
    Promotion,
    Search,
    Slot,
    Watcher,
)
from cogment_model_registry.registry.filters import ARCHIVED, Filter, arranged, matches, position_of
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.index import VersionIndex
from cogment_model_registry.storage.catalog.model import Model
from cogment_model_registry.storage.catalog.models import Models
from cogment_model_registry.storage.catalog.numbers import NUMBER_BLOCK, Numbers
from cogment_model_registry.storage.catalog.requests import Entry, RequestLog
from cogment_model_registry.storage.feed import NewsMemo
from cogment_model_registry.storage.folder import FolderArchive, FolderContents

_SEARCH_ATTEMPTS = 3

_EVALUATED_AT_ONCE = 256
"""How many transient versions a search looks at before other calls get their turn: some milliseconds at most."""


class LocalCatalog(Catalog):
    """The catalog of the one server that has the archive open.

    Args:
        archive: Where models and archived versions live; open.
        database: Where what people may change about them is kept.
        number_block: How many numbers to persist ahead.
    """

    def __init__(self, archive: FolderArchive, database: Database, number_block: int = NUMBER_BLOCK) -> None:
        self._archive = archive
        self._models = Models(archive)
        self._index = VersionIndex(database, archive, self._models.note_change)
        self._numbers = Numbers(archive, number_block)
        self._news = NewsMemo()
        self._requests = {archived: RequestLog() for archived in (False, True)}
        self._stopping = False

    @property
    def failure(self) -> str:
        return self._index.failure

    async def open(self) -> None:
        known = await self._index.open()
        found = await self._archive.scan(known)
        lives = await self._index.begin_lives([contents.info.model_id for contents in found])
        for contents in found:
            self._models.add(contents, lives[contents.info.model_id])
        await self._index.compare_all(found, known)
        for request_id, entry in await self._index.finished_uploads():
            if entry.number and entry.model_id in self._models.by_id:
                entry.life = self._models.by_id[entry.model_id].life
            self._requests[True].add(request_id, entry)

    async def close(self) -> None:
        self.stop_watching()
        await self._index.close()
        if self._archive.is_read_only:
            return
        async with asyncio.TaskGroup() as group:
            for model in self._models.by_id.values():
                if model.persisting is not None or model.persisted_number >= model.next_number:
                    group.create_task(self._numbers.persist_exactly(model))

    async def refresh(self, on_removed: Callable[[str], Awaitable[None]]) -> None:
        """Load what people added to the folder, or removed from it, by hand.

        Args:
            on_removed: Called with the id of each model that is gone, while nobody else changes it.
        """
        found = {contents.info.model_id for contents in await self._archive.scan()}
        for model_id in sorted(found | self._models.by_id.keys()):
            # Scanned again under the lock, since versions may have been stored after the first scan.
            async with self._models.lock(model_id):
                known = await self._index.known_of(model_id)
                contents = await self._archive.scan_model(model_id, known)
                if contents is None and model_id in self._models.by_id:
                    await self._index.remove_model(model_id)
                    self._models.forget(self._models.by_id[model_id])
                    await on_removed(model_id)
                elif contents is not None:
                    self._models.refresh(contents, await self._index.begin_life(model_id))
                    await self._index.compare(contents, known)

    def stop_watching(self) -> None:
        self._stopping = True
        self._models.feed.stop()
        for model in self._models.by_id.values():
            model.wake_watchers()

    async def find(self, model_id: str) -> ModelRef:
        return self._models.require(model_id).ref

    async def get_model(self, model_id: str) -> ModelInfo:
        return self._models.require(model_id).info

    async def list_models(self, offset: int, limit: int) -> list[ModelInfo]:
        return [self._models.by_id[model_id].info for model_id in self._models.ids[offset : offset + limit]]

    async def list_models_after(self, model_id: str, limit: int) -> list[ModelInfo]:
        return await self.list_models(bisect.bisect_right(self._models.ids, model_id), limit)

    async def list_models_with_shares(self) -> list[str]:
        return self._index.models_with_shares()

    async def summarize(self, models: Sequence[ModelInfo]) -> list[ModelSummary]:
        return [self._summary(model) for info in models if (model := self._models.by_id.get(info.model_id))]

    def _summary(self, model: Model) -> ModelSummary:
        return ModelSummary.of(
            info=model.info,
            aliases=tuple(self._index.aliases_of(model.model_id).values()),
            latest_number=model.numbers[-1] if model.numbers else 0,
            versions=len(model.numbers),
            archived_bytes=model.archived_bytes,
            annotations=self._index.annotations_of_model(model.model_id),
        )

    @contextlib.asynccontextmanager
    async def changing_model(self, ref: ModelRef, change: ModelChange) -> AsyncGenerator[ModelSummary, None]:
        async with self._models.lock(ref.model_id):
            model = self._models.require_life(ref)
            before, after = await self._index.change_model(ref.model_id, change)
            journals.record_model_changed(ref.model_id, before, after)
            model.changes += 1
            self._models.note_change(ref.model_id)
            yield self._summary(model)

    async def get_signers(self, ref: ModelRef) -> Sequence[PublicKey]:
        self._models.require_life(ref)
        return self._index.annotations_of_model(ref.model_id).signers

    async def get_state(self, ref: ModelRef) -> ModelState:
        model = self._models.require_life(ref)
        return ModelState(tuple(model.numbers), model.changes)

    async def get_outline(self, ref: ModelRef, last_number: int = VERSION_NUMBER_MAX) -> ModelOutline:
        model = self._models.require_life(ref)
        count = bisect.bisect_right(model.numbers, last_number)
        return ModelOutline(model.changes, count, model.numbers[count - 1] if count else 0)

    @contextlib.asynccontextmanager
    async def writing_model(self, info: ModelInfo) -> AsyncGenerator[None, None]:
        async with self._models.lock(info.model_id):
            found, life = None, 0
            if info.model_id not in self._models.by_id:
                # Its directory may have been put there by hand, with versions whose numbers are taken.
                found = await self._archive.scan_model(info.model_id)
                life = await self._index.begin_life(info.model_id)
            yield
            model = self._models.by_id.get(info.model_id)
            journals.record_model_written(info, model.info if model else None)
            if model is not None:
                model.info = info
                self._models.note_change(info.model_id)
            else:
                self._numbers.persist_ahead(self._models.add(replace(found or FolderContents(info), info=info), life))

    @contextlib.asynccontextmanager
    async def removing_model(self, model_id: str) -> AsyncGenerator[None, None]:
        async with self._models.lock(model_id):
            model = self._models.require(model_id)
            yield
            journals.record_model_deleted(self._summary(model))
            await self._index.remove_model(model_id)
            self._models.forget(model)
            if model.persisting is not None:
                # Its mark must not be written into the directory of a later model of this name.
                await asyncio.wait([model.persisting])

    def publishing(self, ref: ModelRef, *, archived: bool = False) -> contextlib.AbstractAsyncContextManager[Slot]:
        return _Publishing(self, ref, self._models.lock(ref.model_id))

    # What `_Publishing` calls.

    async def take_number(self, ref: ModelRef) -> int:
        """Return the next number of a model, whose lock the caller holds."""
        return await self._numbers.take(self._models.require_life(ref))

    def show(self, info: VersionInfo) -> None:
        """Make a version visible; the caller holds the lock of its model."""
        model = self._models.require(info.model_id)
        model.numbers.append(info.number)
        model.appearances.add(info.number, time.time_ns())
        self._models.versions_count += 1
        if info.archived:
            self._models.add_archived(model, info)
            self._index.add(info)
        else:
            model.transient[info.number] = info
        model.history.show(self._models.feed.note(info.model_id), info.number)
        if model.watchers:
            model.wake_watchers()

    async def next_revision(self, model_id: str) -> int:
        """Return a revision that no change of the model had before."""
        return await self._index.next_revision(model_id)

    async def annotate(self, info: VersionInfo, annotations: Annotations, request: UploadRequest | None = None) -> None:
        """Keep annotations of a version that is not visible yet; the caller holds the lock of its model."""
        forgotten = self._requests[info.archived].forget_old(time.time_ns()) if request else []
        if info.archived:
            await self._index.annotate(info, annotations, request, forgotten)
        else:
            self._models.require(info.model_id).annotations[info.number] = annotations

    async def finish_upload(self, info: VersionInfo, request: UploadRequest) -> None:
        """Record the upload of a version that was committed; the caller holds the lock of its model."""
        life = self._models.require(info.model_id).life
        now_ns = time.time_ns()
        entry = Entry(request.digest, info.model_id, life, info.number, now_ns, request.aliases)
        self._requests[info.archived].add(request.request_id, entry)
        if request.aliases:
            await self._index.finish_upload(request.request_id, entry, now_ns)
            self._models.require(info.model_id).changes += 1

    async def find_upload(self, request_id: str) -> FinishedUpload | None:
        entry = self._requests[False].find(request_id) or self._requests[True].find(request_id)
        if entry is None:
            return None
        model = self._models.by_id.get(entry.model_id)
        if model is None or model.life != entry.life:
            return FinishedUpload(entry.digest, entry.model_id, 0)
        if entry.pending:
            async with self._models.lock(entry.model_id):
                if entry.pending and model.has(entry.number):
                    await self._index.finish_upload(request_id, entry, time.time_ns())
                    model.changes += 1
        return FinishedUpload(entry.digest, entry.model_id, entry.number)

    async def find_copies(self, model_id: str, data_hash: str, size_bytes: int) -> list[VersionInfo]:
        model = self._models.require(model_id)
        archived = [number for number in await self._index.find_copies(model_id, data_hash) if model.has(number)]
        await self._models.read_missing(model, archived)
        infos = [*model.transient.values(), *[await self._models.get(model, number) for number in archived]]
        return [info for info in infos if info and (info.data_hash, info.data_size_bytes) == (data_hash, size_bytes)]

    def promoting(self, ref: ModelRef, number: int) -> contextlib.AbstractAsyncContextManager[Promotion]:
        return self._promoting(ref, number)

    @contextlib.asynccontextmanager
    async def _promoting(self, ref: ModelRef, number: int) -> AsyncGenerator[Promotion, None]:
        async with self._models.lock(ref.model_id):
            model = self._models.require_life(ref)
            promotion = _Promotion(self, await self._models.require_version(model, number))
            yield promotion
            if promotion.shown is not None:
                del model.transient[number]
                model.annotations.pop(number, None)
                model.changes += 1
                self._models.add_archived(model, promotion.shown)
                self._index.add(promotion.shown)
                journals.record_promoted(promotion.shown)

    @contextlib.asynccontextmanager
    async def removing_version(self, ref: ModelRef, number: int) -> AsyncGenerator[VersionInfo, None]:
        async with self._models.lock(ref.model_id):
            model = self._models.require_life(ref)
            info = await self._models.require_version(model, number)
            if info.archived:
                # An archive of the original has no mark, and its newest file says which number comes next.
                await self._numbers.persist_used(model, number)
            [version] = await self.describe([info]) if journals.current_journal() else [None]
            yield info
            if version is not None:
                journals.record_deleted(version)
            has_aliases = bool(self._index.names_of(info))
            self._models.drop(model, number, "deleted")
            if info.archived:
                await self._index.remove_version(info)
            if has_aliases:
                self._models.note_change(ref.model_id)

    async def describe(self, infos: Sequence[VersionInfo]) -> list[Version]:
        archived = [info for info in infos if info.archived]
        kept = (
            dict(zip(map(_key, archived), await self._index.annotations_of(archived), strict=True)) if archived else {}
        )
        return [
            Version.of(info, kept.get(_key(info)) or self._transient_annotations(info), self._index.names_of(info))
            for info in infos
        ]

    def _transient_annotations(self, info: VersionInfo) -> Annotations:
        model = self._models.by_id.get(info.model_id)
        return model.annotations.get(info.number, Annotations()) if model else Annotations()

    async def change_annotations(self, ref: ModelRef, number: int, change: AnnotationChange) -> Version:
        async with self._models.lock(ref.model_id):
            model = self._models.require_life(ref)
            info = await self._models.require_version(model, number)
            if info.archived:
                before, annotations = await self._index.change_annotations(info, change)
                model.changes += 1
            else:
                before = model.annotations.get(number, Annotations())
                check_revision(info, before, change)
                annotations = change.apply_to(info, before, await self._index.next_revision(ref.model_id))
                if model.has(number):  # not evicted in the meantime
                    model.annotations[number] = annotations
                    model.changes += 1
            journals.record_annotated(info, before, annotations)
            return Version.of(info, annotations, self._index.names_of(info))

    async def get_aliases(self, model_id: str) -> list[Alias]:
        self._models.require(model_id)
        return [*self._index.aliases_of(model_id).values()]

    async def set_aliases(self, ref: ModelRef, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
        async with self._models.lock(ref.model_id):
            model = self._models.require_life(ref)
            targets = []
            for change in changes:
                if change.version_number is not None:
                    info = await self._models.require_version(model, change.version_number)
                    if not info.archived:
                        raise NotFoundError.version(ref.model_id, change.version_number)
                    targets.append(info)
            aliases = await self._index.set_aliases(ref.model_id, changes, targets, now_ns)
            model.changes += 1
            return aliases

    async def search(self, search: Search) -> list[Version]:
        # A version may be promoted while the index is read: then it is neither there nor transient afterwards. So the
        # index is read again, since all of a page should be of one moment; but not forever.
        for _ in range(_SEARCH_ATTEMPTS):
            before = self._transient_versions(search.model_id)
            found = await self._find_archived(search)
            transient = self._transient_versions(search.model_id)
            known = {_key(version.info) for version in found}
            promoted = [info for key, each in before.items() if key not in transient and (info := self._current(each))]
            promoted = [info for info in promoted if _key(info) not in known]
            if not promoted:
                break
        if search.accepted == ARCHIVED:
            return found[: search.limit]
        accepted = await _accepted(search.accepted, await self.describe([*transient.values(), *promoted]))
        return arranged(search.order, [*found, *accepted], search.after)[: search.limit]

    async def _find_archived(self, search: Search) -> list[Version]:
        found: list[Version] = []
        after, is_more = search.after, True
        while is_more and len(found) < search.limit:
            page = await self._index.find(replace(search, after=after))
            is_more = len(page) == search.limit
            # What the index has may be invisible: damaged, or about to be published or removed.
            found += [version for version in page if self._is_visible(version.info)]
            if page:
                after = position_of(search.order, page[-1])
        return found

    def _transient_versions(self, model_id: str | None) -> dict[tuple[str, int], VersionInfo]:
        models = self._models.by_id.values() if model_id is None else [self._models.require(model_id)]
        return {_key(info): info for model in models for info in model.transient.values()}

    def _current(self, info: VersionInfo) -> VersionInfo | None:
        """Return what is visible of a version that was transient."""
        model = self._models.by_id.get(info.model_id)
        if model is None or not model.has(info.number):
            return None
        found = self._models.cached(model, info.number)
        return found if found is not None and replace(found, archived=False) == info else None

    def _is_visible(self, info: VersionInfo) -> bool:
        model = self._models.by_id.get(info.model_id)
        return model is not None and info.number not in model.transient and model.has(info.number)

    async def forget(self, info: VersionInfo) -> None:
        model = self._models.by_id.get(info.model_id)
        found = model.transient.get(info.number) if model is not None else None
        if model is not None and (found is info or found == info):
            self._models.drop(model, info.number, "evicted")

    async def mark_damaged(self, ref: ModelRef, error: DataLossError) -> None:
        model = self._models.by_id.get(ref.model_id)
        if model is not None and model.life == ref.life and error.version_number is not None:
            self._models.mark_damaged(model, error.version_number, error.reason)

    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        model = self._models.require(model_id)
        known = [info for number in numbers if (info := self._known(model, number)) is not None]
        return known if len(known) == len(numbers) else await self._look_up(model, numbers)

    def _known(self, model: Model, number: int) -> VersionInfo | None:
        """Return a visible version, or the n-th from the last, if nothing must be read to find it."""
        if number < 0:
            if model.unread or -number > len(model.numbers):
                return None
            number = model.numbers[number]
        return self._models.cached(model, number)

    async def _look_up(self, model: Model, numbers: Sequence[int]) -> list[VersionInfo]:
        infos = []
        await self._models.read_missing(model, [number for number in numbers if model.has(number)])
        for number in numbers:
            info = await self._models.nth_last(model, -number) if number < 0 else await self._models.get(model, number)
            if info is None:
                if number in model.damaged:
                    raise DataLossError.version(model.model_id, number, model.damaged[number])
                raise NotFoundError.version(model.model_id, number)
            infos.append(info)
        return infos

    async def newer_than(self, model_id: str, number: int) -> Newer:
        model = self._models.require(model_id)
        count = len(model.numbers) - bisect.bisect_right(model.numbers, number)
        since_ns = model.appearances.first_after(number)
        if count and number < model.appearances.after:
            # It may be one from before the start. What was evicted or deleted since then has left no time.
            for info in await self.list_versions(model_id, number + 1, 1):
                if info.number <= model.appearances.after:
                    since_ns = min(info.created_ns, since_ns or time.time_ns())
        return Newer(count, since_ns)

    async def settled(self, model_id: str) -> None:
        async with self._models.lock(model_id):
            pass

    async def list_versions(self, model_id: str, first_number: int, limit: int) -> list[VersionInfo]:
        model = self._models.require(model_id)
        infos: list[VersionInfo] = []
        while len(infos) < limit:
            start = bisect.bisect_left(model.numbers, first_number)
            numbers = model.numbers[start : start + limit - len(infos)]
            if not numbers:
                break
            await self._models.read_missing(model, numbers)
            infos += [info for number in numbers if (info := await self._models.get(model, number))]
            first_number = numbers[-1] + 1
        return infos

    async def watch(self, model_id: str) -> AsyncGenerator[VersionInfo, None]:
        model = self._models.require(model_id)
        news = asyncio.Event()
        news.set()
        model.watchers.add(news)
        last_number = 0
        try:
            while True:
                await news.wait()
                news.clear()
                if self._stopping:
                    raise StoppingError
                if model.removed:
                    raise NotFoundError.model(model_id)
                if model.numbers and model.numbers[-1] > last_number:
                    info = await self._models.nth_last(model, 1)
                    if info is not None and info.number > last_number:
                        last_number = info.number
                        yield info
        finally:
            model.watchers.discard(news)

    def watching(self, model_ids: Collection[str] | None) -> contextlib.AbstractContextManager[Watcher]:
        return self._models.feed.watching(model_ids)

    async def get_news(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        key = model_id, number, sequence, limit
        news = self._news.find(self._models.feed.sequence, key)
        if news is None:
            news = self._look_for_news(*key)
            self._news.add(key, news)
        return news

    def _look_for_news(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        model = self._models.by_id.get(model_id)
        if model is None:
            return News(
                0, self._models.feed.removed_at(model_id), removed=self._models.feed.first_removed(model_id, sequence)
            )
        start = bisect.bisect_right(model.numbers, number)
        numbers = model.numbers[start : start + limit] if limit else model.numbers[start:][-1:]
        history = model.history
        return News(
            life=model.life,
            since=history.since,
            changed=history.changed,
            last_number=history.last_number,
            next_sequence=history.sequence_of(number + 1),
            shown=history.shown(numbers),
            lost=history.lost(sequence),
            removed=self._models.feed.first_removed(model_id, sequence),
        )

    async def number_at(self, model_id: str, sequence: int) -> int | None:
        model = self._models.by_id.get(model_id)
        return model.history.number_at(sequence) if model else 0

    async def removed_since(self, sequence: int) -> Sequence[str] | None:
        return self._models.feed.removed_since(sequence)

    async def count(self) -> CatalogCounts:
        return CatalogCounts(len(self._models.by_id), self._models.versions_count, self._models.archived_bytes)


class _Publishing(Slot, contextlib.AbstractAsyncContextManager[Slot]):
    """A change of `LocalCatalog`. A class of its own, since a generator costs a tenth of a small publish."""

    def __init__(self, catalog: LocalCatalog, ref: ModelRef, lock: asyncio.Lock) -> None:
        self._catalog = catalog
        self._ref = ref
        self._lock = lock
        self._info: VersionInfo | None = None
        self._annotations: Annotations | None = None
        self._request: UploadRequest | None = None

    async def __aenter__(self) -> Slot:
        await self._lock.acquire()
        try:
            self.number = await self._catalog.take_number(self._ref)
        except BaseException:
            self._lock.release()
            raise
        return self

    async def annotate(self, info: VersionInfo, annotations: Annotations, request: UploadRequest | None = None) -> None:
        self._annotations, self._request = annotations, request
        await self._catalog.annotate(info, annotations, request)

    def show(self, info: VersionInfo) -> None:
        self._info = info

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and self._info is not None:
                journals.record_created(self._info, self._annotations)
                try:
                    if self._request is not None:
                        await self._catalog.finish_upload(self._info, self._request)
                finally:
                    self._catalog.show(self._info)  # it is committed, even if its aliases could not be set
        finally:
            self._lock.release()


class _Promotion(Promotion):
    """A change of `LocalCatalog`."""

    def __init__(self, catalog: LocalCatalog, info: VersionInfo) -> None:
        self.info = info
        self.shown: VersionInfo | None = None
        self._catalog = catalog

    async def annotate(self, info: VersionInfo) -> None:
        [version] = await self._catalog.describe([self.info])
        revision = await self._catalog.next_revision(info.model_id)
        await self._catalog.annotate(info, replace(version.annotations, revision=revision))

    def show(self, info: VersionInfo) -> None:
        self.shown = info


async def _accepted(accepted: Filter, versions: Sequence[Version]) -> list[Version]:
    """Return the versions that a filter accepts; other calls go on in the meantime."""
    found: list[Version] = []
    for start in range(0, len(versions), _EVALUATED_AT_ONCE):
        found += [each for each in versions[start : start + _EVALUATED_AT_ONCE] if matches(accepted, each)]
        await asyncio.sleep(0)
    return found


def _key(info: VersionInfo) -> tuple[str, int]:
    return info.model_id, info.number
