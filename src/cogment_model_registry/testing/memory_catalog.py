"""A catalog in memory, for tests of the rules. It passes the conformance suite.

Each call lets other tasks run before it answers, as a database would: a rule that forgets to await, or relies on an
answer that is no longer true, fails here.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from cogment_model_registry.errors import DataLossError, NotFoundError, StoppingError
from cogment_model_registry.records.versions import ModelInfo, VersionInfo, check_version_number
from cogment_model_registry.registry.contracts import Catalog, CatalogCounts, ModelRef, Slot


@dataclass(eq=False, slots=True)
class _Model:
    info: ModelInfo
    life: int
    last_number: int = 0
    versions: dict[int, VersionInfo] = field(default_factory=dict)
    damaged: dict[int, DataLossError] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Tables:
    """The content of a catalog: what a database would keep.

    Attributes:
        models: Models by id.
        lives: How many models were created so far.
    """

    models: dict[str, _Model] = field(default_factory=dict)
    lives: int = 0


class _MemorySlot(Slot):
    def __init__(self, number: int) -> None:
        self.number = number
        self.info: VersionInfo | None = None

    def show(self, info: VersionInfo) -> None:
        self.info = info


class MemoryCatalog(Catalog):
    """A catalog in memory.

    Args:
        tables: Its content; the same one after what a test calls a restart.
        before_visible: Awaited before each version becomes visible: how slow the database is.
    """

    def __init__(
        self, tables: Tables, before_visible: Callable[[VersionInfo], Awaitable[None]] = lambda _: asyncio.sleep(0)
    ) -> None:
        self._tables = tables
        self.before_visible = before_visible
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Condition()
        self._is_stopping = False

    async def open(self) -> None:
        await asyncio.sleep(0)

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

    @asynccontextmanager
    async def writing_model(self, info: ModelInfo) -> AsyncGenerator[None, None]:
        async with self._locks[info.model_id]:
            yield
            await asyncio.sleep(0)
            model = self._tables.models.get(info.model_id)
            if model is None:
                self._tables.lives += 1
                self._tables.models[info.model_id] = _Model(info, self._tables.lives)
            else:
                model.info = info

    @asynccontextmanager
    async def removing_model(self, model_id: str) -> AsyncGenerator[None, None]:
        async with self._locks[model_id]:
            await self._require(model_id)
            yield
            await asyncio.sleep(0)
            del self._tables.models[model_id]
            await self._notify()

    def publishing(self, ref: ModelRef) -> AbstractAsyncContextManager[Slot]:
        return self._publishing(ref)

    @asynccontextmanager
    async def _publishing(self, ref: ModelRef) -> AsyncGenerator[Slot, None]:
        async with self._locks[ref.model_id]:
            model = await self._require(ref.model_id)
            if model.life != ref.life:
                raise NotFoundError.model(ref.model_id)
            check_version_number(model.last_number + 1, ref.model_id)
            model.last_number += 1
            slot = _MemorySlot(model.last_number)
            yield slot
            if slot.info is not None:
                await self.before_visible(slot.info)
                model.versions[slot.number] = slot.info
                await self._notify()

    async def forget(self, info: VersionInfo) -> None:
        await asyncio.sleep(0)
        model = self._tables.models.get(info.model_id)
        if model is not None and model.versions.get(info.number) == info:
            del model.versions[info.number]

    async def mark_damaged(self, ref: ModelRef, error: DataLossError) -> None:
        await asyncio.sleep(0)
        model = self._tables.models.get(ref.model_id)
        if model is not None and model.life == ref.life and error.version_number is not None:
            model.damaged[error.version_number] = error
            model.versions.pop(error.version_number, None)

    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        model = await self._require(model_id)
        return [_version(model, number) for number in numbers]

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

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


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
