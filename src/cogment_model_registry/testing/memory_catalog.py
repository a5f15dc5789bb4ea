"""A catalog in memory, for tests of the rules. It passes the conformance suite.

Each call lets other tasks run before it returns, as a database would: a rule that forgets to await, or relies on an
outdated result, fails here.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from time import time_ns
from typing import Literal

from cogment_model_registry.errors import DataLossError, NotFoundError, StoppingError
from cogment_model_registry.records.lifecycle import (
    FIRST_REVISION,
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    ModelSummary,
    Version,
    check_alias_revision,
    check_revision,
)
from cogment_model_registry.records.retention import NO_SHARE, ModelAnnotations, ModelChange, check_model_revision
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo, check_version_number
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import (
    Catalog,
    CatalogCounts,
    Lost,
    ModelOutline,
    ModelRef,
    ModelState,
    Newer,
    News,
    Promotion,
    Search,
    Shown,
    Slot,
    Watcher,
)
from cogment_model_registry.registry.filters import arranged, matches


@dataclass(eq=False, slots=True)
class _Model:
    info: ModelInfo
    life: int
    last_number: int = 0
    last_revision: int = FIRST_REVISION
    annotations: dict[int, Annotations] = field(default_factory=dict)
    aliases: dict[str, Alias] = field(default_factory=dict)
    versions: dict[int, VersionInfo] = field(default_factory=dict)
    damaged: dict[int, DataLossError] = field(default_factory=dict)
    decided: ModelAnnotations = field(default_factory=ModelAnnotations)
    changes: int = 0
    shown_ns: dict[int, int] = field(default_factory=dict)

    def next_revision(self) -> int:
        self.last_revision += 1
        return self.last_revision

    def remove(self, number: int) -> None:
        self.versions.pop(number, None)
        self.annotations.pop(number, None)
        self.aliases = {name: alias for name, alias in self.aliases.items() if alias.version_number != number}

    def summary(self) -> ModelSummary:
        return ModelSummary.of(
            info=self.info,
            aliases=tuple(self.aliases[name] for name in sorted(self.aliases)),
            latest_number=max(self.versions, default=0),
            versions=len(self.versions),
            archived_bytes=sum(info.data_size_bytes for info in self.versions.values() if info.archived),
            annotations=self.decided,
        )

    def describe(self, info: VersionInfo) -> Version:
        names = sorted(name for name, alias in self.aliases.items() if alias.version_number == info.number)
        return Version.of(info, self.annotations.get(info.number, Annotations()), tuple(names))


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that watchers receive."""

    model_id: str
    kind: Literal["begun", "removed", "changed", "shown", "lost"]
    number: int = 0
    reason: str = ""


@dataclass(eq=False, slots=True)
class Tables:
    """The content of a catalog, which a database would store.

    Attributes:
        models: Models by id.
        lives: The number of models that were created so far.
        uploads: Finished uploads by the ids of their requests, with the life of the model.
        holds: The versions of models that consumers of a server hold, by the epoch of its catalog.
    """

    models: dict[str, _Model] = field(default_factory=dict)
    lives: int = 0
    uploads: dict[str, tuple[int, FinishedUpload]] = field(default_factory=dict)
    holds: dict[tuple[int, ModelRef], Mapping[int, str]] = field(default_factory=dict)


class _MemorySlot(Slot):
    def __init__(self, model: _Model, number: int) -> None:
        self.number = number
        self.info: VersionInfo | None = None
        self.request: UploadRequest | None = None
        self._model = model

    async def annotate(self, info: VersionInfo, annotations: Annotations, request: UploadRequest | None = None) -> None:
        await asyncio.sleep(0)
        self._model.annotations[info.number] = annotations
        self.request = request

    def show(self, info: VersionInfo) -> None:
        self.info = info


class _MemoryPromotion(Promotion):
    def __init__(self, model: _Model, info: VersionInfo) -> None:
        self.info = info
        self.shown: VersionInfo | None = None
        self._model = model

    async def annotate(self, info: VersionInfo) -> None:
        await asyncio.sleep(0)
        before = self._model.annotations.get(info.number, Annotations())
        self._model.annotations[info.number] = replace(before, revision=self._model.next_revision())

    def show(self, info: VersionInfo) -> None:
        self.shown = info


class MemoryCatalog(Catalog):
    """A catalog in memory.

    Args:
        tables: Its content; the same object after a simulated restart.
        before_visible: Awaited before each version becomes visible, to simulate a slow database.
        now_ns: The clock, in nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        tables: Tables,
        before_visible: Callable[[VersionInfo], Awaitable[None]] = lambda _: asyncio.sleep(0),
        now_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._tables = tables
        self._now_ns = now_ns
        self.before_visible = before_visible
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Condition()
        self._is_stopping = False
        self._epoch = next(_epochs)
        # All changes since the catalog was opened; the first one has the sequence number 1.
        self._log: list[_Change] = []

    async def open(self) -> None:
        await asyncio.sleep(0)
        for model_id, model in self._tables.models.items():
            await self._record(_Change(model_id, "begun", model.last_number))

    async def close(self) -> None:
        self.stop_watching()
        await self._notify()

    def stop_watching(self) -> None:
        self._is_stopping = True
        self._stopping = asyncio.ensure_future(self._notify())

    async def find(self, model_id: str) -> ModelRef:
        return ModelRef(model_id, (await self._require(model_id)).life)

    async def get_model(self, model_id: str) -> ModelInfo:
        return (await self._require(model_id)).info

    async def list_models(self, offset: int, limit: int) -> list[ModelInfo]:
        await asyncio.sleep(0)
        models = self._tables.models
        return [models[model_id].info for model_id in sorted(models)[offset : offset + limit]]

    async def list_models_after(self, model_id: str, limit: int) -> list[ModelInfo]:
        await asyncio.sleep(0)
        models = self._tables.models
        return [models[each].info for each in sorted(models) if each > model_id][:limit]

    async def list_models_with_shares(self) -> list[str]:
        await asyncio.sleep(0)
        return [model_id for model_id, model in self._tables.models.items() if model.decided.share != NO_SHARE]

    async def summarize(self, models: Sequence[ModelInfo]) -> list[ModelSummary]:
        await asyncio.sleep(0)
        return [model.summary() for info in models if (model := self._tables.models.get(info.model_id))]

    @asynccontextmanager
    async def changing_model(self, ref: ModelRef, change: ModelChange) -> AsyncGenerator[ModelSummary, None]:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            check_model_revision(ref.model_id, model.decided, change)
            before = model.decided
            model.decided = change.apply_to(ref.model_id, before, model.next_revision())
            journals.record_model_changed(ref.model_id, before, model.decided)
            model.changes += 1
            await self._record(_Change(ref.model_id, "changed"))
            yield model.summary()

    async def get_signers(self, ref: ModelRef) -> Sequence[PublicKey]:
        return (await self._require_life(ref)).decided.signers

    async def get_state(self, ref: ModelRef) -> ModelState:
        model = await self._require_life(ref)
        return ModelState(tuple(sorted(model.versions)), model.changes)

    async def get_outline(self, ref: ModelRef, last_number: int = VERSION_NUMBER_MAX) -> ModelOutline:
        model = await self._require_life(ref)
        numbers = [number for number in model.versions if number <= last_number]
        return ModelOutline(model.changes, len(numbers), max(numbers, default=0))

    @asynccontextmanager
    async def writing_model(self, info: ModelInfo) -> AsyncGenerator[None, None]:
        async with self._locks[info.model_id]:
            yield
            await asyncio.sleep(0)
            model = self._tables.models.get(info.model_id)
            journals.record_model_written(info, model.info if model else None)
            if model is None:
                self._tables.lives += 1
                self._tables.models[info.model_id] = _Model(info, self._tables.lives)
                await self._record(_Change(info.model_id, "begun"))
            else:
                model.info = info
                await self._record(_Change(info.model_id, "changed"))

    @asynccontextmanager
    async def removing_model(self, model_id: str) -> AsyncGenerator[None, None]:
        async with self._locks[model_id]:
            model = await self._require(model_id)
            yield
            await asyncio.sleep(0)
            journals.record_model_deleted(model.summary())
            del self._tables.models[model_id]
            await self._record(_Change(model_id, "removed"))

    def publishing(self, ref: ModelRef, *, archived: bool = False) -> AbstractAsyncContextManager[Slot]:
        return self._publishing(ref)

    @asynccontextmanager
    async def _publishing(self, ref: ModelRef) -> AsyncGenerator[Slot, None]:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            check_version_number(model.last_number + 1, ref.model_id)
            model.last_number += 1
            slot = _MemorySlot(model, model.last_number)
            yield slot
            if slot.info is not None:
                await self.before_visible(slot.info)
                model.versions[slot.number] = slot.info
                model.shown_ns[slot.number] = self._now_ns()
                journals.record_created(slot.info, model.annotations.get(slot.number))
                if slot.request is not None:
                    self._finish_upload(model, slot.number, slot.request)
                if slot.request is not None and slot.request.aliases:
                    self._log.append(_Change(ref.model_id, "changed"))
                await self._record(_Change(ref.model_id, "shown", slot.number))

    def _finish_upload(self, model: _Model, number: int, request: UploadRequest) -> None:
        finished = FinishedUpload(request.digest, model.info.model_id, number)
        self._tables.uploads[request.request_id] = (model.life, finished)
        before = dict(model.aliases)
        for name in request.aliases:
            model.aliases[name] = Alias(name, number, model.next_revision(), time_ns())
            model.changes += 1
        journals.record_aliases(model.info.model_id, before, model.aliases)

    async def find_upload(self, request_id: str) -> FinishedUpload | None:
        await asyncio.sleep(0)
        life, finished = self._tables.uploads.get(request_id, (0, None))
        if finished is None:
            return None
        model = self._tables.models.get(finished.model_id)
        return finished if model and model.life == life else replace(finished, number=0)

    async def find_copies(self, model_id: str, data_hash: str, size_bytes: int) -> list[VersionInfo]:
        infos = (await self._require(model_id)).versions.values()
        return [info for info in infos if (info.data_hash, info.data_size_bytes) == (data_hash, size_bytes)]

    @asynccontextmanager
    async def promoting(self, ref: ModelRef, number: int) -> AsyncGenerator[Promotion, None]:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            promotion = _MemoryPromotion(model, _version(model, number))
            yield promotion
            await asyncio.sleep(0)
            if promotion.shown is not None:
                model.versions[number] = promotion.shown
                model.changes += 1
                journals.record_promoted(promotion.shown)

    @asynccontextmanager
    async def removing_version(self, ref: ModelRef, number: int) -> AsyncGenerator[VersionInfo, None]:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            info = _version(model, number)
            yield info
            await asyncio.sleep(0)
            aliases = model.aliases
            journals.record_deleted(model.describe(info))
            model.remove(number)
            journals.record_aliases(ref.model_id, aliases, model.aliases)
            if model.aliases != aliases:
                self._log.append(_Change(ref.model_id, "changed"))
            await self._record(_Change(ref.model_id, "lost", number, "deleted"))

    async def describe(self, infos: Sequence[VersionInfo]) -> list[Version]:
        await asyncio.sleep(0)
        models = self._tables.models
        return [models[i.model_id].describe(i) if i.model_id in models else Version.of(i) for i in infos]

    async def change_annotations(self, ref: ModelRef, number: int, change: AnnotationChange) -> Version:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            version = model.describe(_version(model, number))
            check_revision(version.info, version.annotations, change)
            after = change.apply_to(version.info, version.annotations, model.next_revision())
            model.annotations[number] = after
            model.changes += 1
            journals.record_annotated(version.info, version.annotations, after)
            return model.describe(version.info)

    async def get_aliases(self, model_id: str) -> list[Alias]:
        aliases = (await self._require(model_id)).aliases
        return [aliases[name] for name in sorted(aliases)]

    async def set_aliases(self, ref: ModelRef, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            aliases = dict(model.aliases)
            for change in changes:
                check_alias_revision(ref.model_id, aliases.get(change.name), change)
                if change.version_number is None:
                    del aliases[change.name]
                    continue
                if not _version(model, change.version_number).archived:
                    raise NotFoundError.version(ref.model_id, change.version_number)
                aliases[change.name] = Alias(change.name, change.version_number, model.next_revision(), now_ns)
            journals.record_aliases(ref.model_id, model.aliases, aliases)
            model.aliases = aliases
            model.changes += 1
            await self._record(_Change(ref.model_id, "changed"))
            return [aliases[name] for name in sorted(aliases)]

    async def set_holds(self, ref: ModelRef, held: Mapping[int, str]) -> None:
        async with self._locks[ref.model_id]:
            model = await self._require_life(ref)
            if gone := held.keys() - model.versions.keys():
                raise NotFoundError.version(ref.model_id, min(gone))
            self._tables.holds[self._epoch, ref] = held

    async def held_elsewhere(self, ref: ModelRef) -> Mapping[int, str]:
        await asyncio.sleep(0)
        others = [held for (epoch, each), held in self._tables.holds.items() if each == ref and epoch != self._epoch]
        return {number: reason for held in others for number, reason in held.items()}

    async def search(self, search: Search) -> list[Version]:
        models = [await self._require(search.model_id)] if search.model_id else [*self._tables.models.values()]
        await asyncio.sleep(0)
        versions = [model.describe(info) for model in models for info in model.versions.values()]
        accepted = [version for version in versions if matches(search.accepted, version)]
        return arranged(search.order, accepted, search.after)[: search.limit]

    async def forget(self, info: VersionInfo) -> None:
        await asyncio.sleep(0)
        model = self._tables.models.get(info.model_id)
        if model is not None and model.versions.get(info.number) == info:
            model.remove(info.number)
            await self._record(_Change(info.model_id, "lost", info.number, "evicted"))

    async def mark_damaged(self, ref: ModelRef, error: DataLossError) -> None:
        await asyncio.sleep(0)
        model = self._tables.models.get(ref.model_id)
        if model is not None and model.life == ref.life and error.version_number is not None:
            model.damaged[error.version_number] = error
            if model.versions.pop(error.version_number, None):
                await self._record(_Change(ref.model_id, "lost", error.version_number, "damaged"))

    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        model = await self._require(model_id)
        return [_version(model, number) for number in numbers]

    async def newer_than(self, model_id: str, number: int) -> Newer:
        model = await self._require(model_id)
        newer = sum(each > number for each in model.versions)
        return Newer(newer, next((at_ns for each, at_ns in model.shown_ns.items() if each > number), None))

    async def settled(self, model_id: str) -> None:
        async with self._locks[model_id]:
            pass

    async def list_versions(self, model_id: str, first_number: int, limit: int) -> list[VersionInfo]:
        versions = (await self._require(model_id)).versions
        return [versions[number] for number in sorted(versions) if number >= first_number][:limit]

    async def watch(self, model_id: str) -> AsyncGenerator[VersionInfo, None]:
        model = await self._require(model_id)
        last_number = 0

        def has_news() -> bool:
            is_over = self._is_stopping or self._tables.models.get(model_id) is not model
            return is_over or max(model.versions, default=0) > last_number

        while True:
            async with self._changed:
                await self._changed.wait_for(has_news)
            if self._is_stopping:
                raise StoppingError
            if self._tables.models.get(model_id) is not model:
                raise NotFoundError.model(model_id)
            last_number = max(model.versions)
            yield model.versions[last_number]

    @contextmanager
    def watching(self, model_ids: Collection[str] | None) -> Iterator[Watcher]:
        existing = [each for each in self._tables.models if model_ids is None or each in model_ids]
        yield _MemoryWatcher(self, self._epoch, model_ids, existing)

    async def changed_since(self, sequence: int, model_ids: Collection[str] | None, *, wait: bool) -> list[str]:
        """Return the models that were changed after a sequence number, of some or of all."""

        def changed() -> list[str]:
            changes = [each.model_id for each in self._log[sequence:]]
            return [each for each in dict.fromkeys(changes) if model_ids is None or each in model_ids]

        async with self._changed:
            if wait:
                await self._changed.wait_for(lambda: changed() or self._is_stopping)
        if self._is_stopping:
            raise StoppingError
        return changed()

    @property
    def sequence(self) -> int:
        """The number of changes so far."""
        return len(self._log)

    async def get_news(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        await asyncio.sleep(0)
        log = [(at, change) for at, change in enumerate(self._log, 1) if change.model_id == model_id]
        model = self._tables.models.get(model_id)
        since = max((at for at, change in log if change.kind in ("begun", "removed")), default=0)
        removed = next((at for at, change in log if change.kind == "removed" and at > sequence), 0)
        if model is None:
            return News(0, since, removed=removed)
        log = [(at, change) for at, change in log if at >= since]
        shown_at = {change.number: at for at, change in log if change.kind == "shown"}
        numbers = sorted(each for each in model.versions if each > number)
        numbers = numbers[:limit] if limit else numbers[-1:]
        return News(
            life=model.life,
            since=since,
            changed=max(at for at, change in log if change.kind in ("begun", "changed")),
            last_number=max(change.number for _, change in log if change.kind in ("begun", "shown")),
            next_sequence=min(
                (at for at, change in log if change.kind in ("begun", "shown") and change.number > number),
                default=since,
            ),
            shown=[Shown(shown_at.get(each, since), each) for each in numbers],
            lost=[
                Lost(at, change.number, change.number, change.reason)
                for at, change in log
                if change.kind == "lost" and at > sequence
            ],
            removed=removed,
        )

    async def number_at(self, model_id: str, sequence: int) -> int | None:
        await asyncio.sleep(0)
        last = 0
        for change in self._log[:sequence]:
            if change.model_id == model_id:
                last = change.number if change.kind in ("begun", "shown") else last
                last = 0 if change.kind == "removed" else last
        return last

    async def removed_since(self, sequence: int) -> Sequence[str] | None:
        await asyncio.sleep(0)
        existing: set[str] = set()
        for change in self._log[:sequence]:
            existing.add(change.model_id)
            if change.kind == "removed":
                existing.discard(change.model_id)
        removed = [change.model_id for change in self._log[sequence:] if change.kind == "removed"]
        return [each for each in dict.fromkeys(removed) if each in existing]

    async def count(self) -> CatalogCounts:
        await asyncio.sleep(0)
        versions = [info for model in self._tables.models.values() for info in model.versions.values()]
        archived_bytes = sum(info.data_size_bytes for info in versions if info.archived)
        return CatalogCounts(len(self._tables.models), len(versions), archived_bytes)

    async def _require(self, model_id: str) -> _Model:
        await asyncio.sleep(0)
        if model_id not in self._tables.models:
            raise NotFoundError.model(model_id)
        return self._tables.models[model_id]

    async def _require_life(self, ref: ModelRef) -> _Model:
        model = await self._require(ref.model_id)
        if model.life != ref.life:
            raise NotFoundError.model(ref.model_id)
        return model

    async def _record(self, change: _Change) -> None:
        self._log.append(change)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


_epochs = count(1)


class _MemoryWatcher(Watcher):
    """A watcher of a `MemoryCatalog`."""

    def __init__(
        self, catalog: MemoryCatalog, epoch: int, model_ids: Collection[str] | None, existing: Sequence[str]
    ) -> None:
        self.epoch = epoch
        self._catalog = catalog
        self._model_ids = model_ids
        self._existing = existing
        self.sequence = self._told = catalog.sequence

    async def changed(self, *, wait: bool) -> Sequence[str]:
        existing, self._existing = self._existing, []
        changed = await self._catalog.changed_since(self._told, self._model_ids, wait=wait and not existing)
        self._told = self._catalog.sequence
        return [*dict.fromkeys([*existing, *changed])]


def _version(model: _Model, number: int) -> VersionInfo:
    """Return a version by its number, or by -n for the n-th from the last."""
    if number in model.damaged:
        raise model.damaged[number]
    numbers = sorted(model.versions)
    if number < 0 and -number <= len(numbers):
        number = numbers[number]
    if number not in model.versions:
        raise NotFoundError.version(model.info.model_id, number)
    return model.versions[number]
