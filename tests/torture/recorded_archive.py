"""An archive on recorded files, and its expected state after a power cut.

For each call, the number of file operations at its begin and its end is recorded, together with its reply. So for each
moment it is known what must exist, and what may exist.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.resuming import RepeatableUploads
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import hash_of
from tests.torture.recorded_files import RecordedFiles

ARCHIVE = "new/directories/archive"
"""The path of the archive in the directory that the power cut hits."""

SETTINGS = Settings(cache_max_bytes=16 * MIB, grace_seconds=0)
LIMITS = Limits(SETTINGS.model_id_max_bytes, SETTINGS.user_data_max_bytes, SETTINGS.request_max_items)


@dataclass(frozen=True, slots=True)
class State:
    """The expected state of a model.

    Attributes:
        user_data: Its `user_data`.
        versions: The archived versions that were completed, by number.
        unsure: The versions whose upload began, with any number.
        assigned: The numbers that were assigned, including those of transient versions.
        removed: The numbers of versions that were deleted.
    """

    user_data: Mapping[str, str]
    versions: Mapping[int, VersionInfo] = field(default_factory=dict)
    unsure: Sequence[VersionInfo] = ()
    assigned: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()


@dataclass(eq=False, slots=True)
class Deed:
    """A call that changes a model.

    Attributes:
        model_id: The model.
        begun: The number of file operations when it began.
        completed: The number of file operations when it was completed; None if it was not.
    """

    model_id: str
    begun: int
    completed: int | None = None

    def outcomes(self, before: State | None, done: bool) -> list[State | None]:
        """Return the possible states of a model: one state if the call was completed; none if it is impossible."""
        after = self.after(before)
        return after if done else [before, *after]

    def after(self, before: State | None) -> list[State | None]:
        """Return the state of a model after the call."""
        raise NotImplementedError


@dataclass(eq=False, slots=True)
class Creation(Deed):
    """A model is created, or its `user_data` replaced."""

    user_data: Mapping[str, str] = field(default_factory=dict)

    def after(self, before: State | None) -> list[State | None]:
        return [replace(before, user_data=self.user_data) if before else State(self.user_data)]


@dataclass(eq=False, slots=True)
class Deletion(Deed):
    """A model is deleted."""

    def after(self, before: State | None) -> list[State | None]:
        return [None] if before else []


@dataclass(eq=False, slots=True)
class Upload(Deed):
    """A version is created; `info` has its number once it was completed."""

    info: VersionInfo = field(kw_only=True)

    def after(self, before: State | None) -> list[State | None]:
        if before is None:
            return []
        versions = {**before.versions, **({self.info.number: self.info} if self.info.archived else {})}
        return [replace(before, versions=versions, assigned=before.assigned | {self.info.number})]

    def outcomes(self, before: State | None, done: bool) -> list[State | None]:
        if done or before is None:
            return self.after(before) if done else [before]
        return [replace(before, unsure=(*before.unsure, self.info))] if self.info.archived else [before]


@dataclass(eq=False, slots=True)
class Promotion(Deed):
    """A transient version is promoted; `info` is its info afterwards."""

    info: VersionInfo = field(kw_only=True)

    def after(self, before: State | None) -> list[State | None]:
        return [replace(before, versions={**before.versions, self.info.number: self.info})] if before else []


@dataclass(eq=False, slots=True)
class VersionDeletion(Deed):
    """A version of either tier is deleted."""

    number: int = field(kw_only=True)

    def after(self, before: State | None) -> list[State | None]:
        if before is None:
            return []
        versions = {number: info for number, info in before.versions.items() if number != self.number}
        return [replace(before, versions=versions, removed=before.removed | {self.number})]


@dataclass(slots=True)
class SeenModel:
    """A model as a registry shows it after a power cut.

    Attributes:
        user_data: Its `user_data`.
        versions: Its versions, by number, with the listed and the actual size and hash.
        next_number: The number of the next version.
        files: The numbers that have files.
    """

    user_data: Mapping[str, str]
    versions: dict[int, VersionInfo] = field(default_factory=dict)
    next_number: int = 0
    files: set[int] = field(default_factory=set)


def difference(state: State | None, seen: SeenModel | None) -> str:
    """Return how a model differs from its expected state; empty if it does not."""
    if state is None:
        return "the model exists" if seen else ""
    if seen is None:
        return "the model is missing"
    if seen.user_data != state.user_data:
        return f"user_data of the model is {dict(seen.user_data)} instead of {dict(state.user_data)}"
    if seen.next_number <= max([0, *state.assigned, *seen.versions]):
        return f"number {seen.next_number} is used again"
    if left := seen.files & state.removed:
        return f"files of deleted versions are left: {left}"
    return _difference_of_versions(state, seen.versions)


def _difference_of_versions(state: State, seen: Mapping[int, VersionInfo]) -> str:
    for number, info in state.versions.items():
        if seen.get(number) != info:
            return f"version {number} is {seen.get(number)} instead of {info}"
    unsure = list(state.unsure)
    for number in seen.keys() - state.versions.keys():
        candidates = [info for info in unsure if replace(info, number=number) == seen[number]]
        if not candidates or number in state.assigned:
            return f"there is a version that nobody created: {seen[number]}"
        unsure.remove(candidates[0])
    return ""


@asynccontextmanager
async def registry_on(
    archive_dir: Path, files: Files, number_block: int
) -> AsyncIterator[tuple[Registry, Lifecycle, DirectoryArchive]]:
    """Return a context manager for a registry on an archive; it stops cleanly unless its process was killed."""
    archive = DirectoryArchive(str(archive_dir), SETTINGS.model_id_max_bytes, files)
    # SQLite ensures its durability; whatever a power cut loses of it, the archive must lose nothing.
    database = Database(f"{archive_dir}.catalog", MIGRATIONS)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        try:
            await archive.open()
            catalog = LocalCatalog(archive, database, number_block)
            await catalog.open()
            transient = MemoryTransientStore(SETTINGS.cache_max_items, SETTINGS.cache_max_bytes, hashing, archive)
            registry = Registry(LIMITS, catalog, archive, transient)
            yield registry, Lifecycle(registry, catalog, archive, transient), archive
            await catalog.close()
        finally:
            # A process that was killed leaves tasks that persist numbers.
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
            await database.close()
            await archive.close()
            archive.directory.close()  # a registry that was killed while it was opened holds the lock


class World:
    """An archive whose file operations are recorded, and the calls on it.

    Args:
        place: The directory that the power cut will hit.
        random: Chooses sizes and names.
        first: The models that the archive already has.

    Attributes:
        files: Its file operations.
        deeds: The calls, in the order in which they began.
        registry: The running registry.
        lifecycle: Changes its versions.
    """

    registry: Registry
    lifecycle: Lifecycle

    def __init__(self, place: Path, random: Random, first: Mapping[str, State] | None = None) -> None:
        self.place = place
        self.random = random
        self.files = RecordedFiles(place)
        self.deeds: list[Deed] = []
        self._first = first or {}
        self._number_block = random.randint(1, 8)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Return a context manager that runs a registry."""
        try:
            opening = registry_on(self.place / ARCHIVE, self.files, self._number_block)
            async with opening as (self.registry, self.lifecycle, _):
                yield
        finally:
            self.files.revive()

    @asynccontextmanager
    async def _doing(self, deed: Deed) -> AsyncIterator[None]:
        deed.begun = len(self.files.history)
        self.deeds.append(deed)
        yield
        deed.completed = len(self.files.history)

    async def create(self, model_id: str) -> None:
        """Create a model, or replace its `user_data`."""
        user_data = {f"key {n}": _text(self.random) for n in range(self.random.randint(0, 3))}
        async with self._doing(Creation(model_id, 0, user_data=user_data)):
            await self.registry.create_or_update_model(ModelInfo(model_id, user_data))

    async def delete(self, model_id: str) -> None:
        """Delete a model."""
        async with self._doing(Deletion(model_id, 0)):
            await self.registry.delete_model(model_id)

    async def store(self, model_id: str, *sizes: int) -> None:
        """Create an archived version, uploaded in pieces of these sizes; of a random small size if none are passed."""
        await self._upload(model_id, True, sizes or [self.random.randint(0, 2000)])

    async def publish(self, model_id: str) -> None:
        """Create a transient version."""
        await self._upload(model_id, False, [self.random.randint(0, 100)])

    async def _upload(self, model_id: str, archived: bool, sizes: Sequence[int]) -> None:
        pieces = [self.random.randbytes(size) for size in sizes]
        info = VersionInfo(
            model_id=model_id,
            number=0,
            created_ns=self.random.randint(1, 2 * 10**18),
            archived=archived,
            data_hash=hash_of(b"".join(pieces)),
            data_size_bytes=sum(sizes),
            user_data={"key": _text(self.random)},
        )
        deed = Upload(model_id, 0, info=info)
        async with self._doing(deed):
            deed.info = replace(info, number=await upload(self.registry, info, pieces))

    async def copy(self, model_id: str) -> None:
        """Store a version with the bytes of another version of its model, if there is one, without sending bytes."""
        versions = await self.versions(model_id)
        if not versions:
            return
        created_ns = self.random.randint(1, 2 * 10**18)
        source = self.random.choice(versions)
        info = replace(source, number=0, archived=True, created_ns=created_ns, user_data={"key": _text(self.random)})
        deed = Upload(model_id, 0, info=info)
        async with self._doing(deed):
            deed.info = replace(info, number=await copy(self.registry, self.lifecycle, info))

    async def promote(self, model_id: str) -> None:
        """Promote one of the transient versions of a model, if it has any."""
        transient = [info for info in await self.versions(model_id) if not info.archived]
        if transient:
            info = self.random.choice(transient)
            async with self._doing(Promotion(model_id, 0, info=replace(info, archived=True))):
                await self.lifecycle.promote_version(model_id, info.number)

    async def delete_version(self, model_id: str) -> None:
        """Delete a version of a model, often the newest, if it has any."""
        numbers = [info.number for info in await self.versions(model_id)]
        if numbers:
            number = self.random.choice([self.random.choice(numbers), numbers[-1]])
            async with self._doing(VersionDeletion(model_id, 0, number=number)):
                await self.lifecycle.delete_version(model_id, number)

    async def versions(self, model_id: str) -> list[VersionInfo]:
        """Return the versions of a model."""
        return await self.registry.list_versions(model_id, 0, 10**6)

    async def adopt_original(self, model_id: str, count: int) -> None:
        """Begin with an archive of the original, which has no high-water marks, in place of an empty one."""
        first = World(self.place, self.random)
        async with first.started():
            await first.create(model_id)
            for _ in range(count):
                await first.store(model_id)
        archive_dir = self.place / ARCHIVE
        for left in (archive_dir / model_id / layout.HIGH_WATER_MARK_NAME, archive_dir / ".lock"):
            left.unlink()
        for name in (f"{archive_dir.name}.catalog{ending}" for ending in ("", "-wal", "-shm")):
            archive_dir.with_name(name).unlink(missing_ok=True)
        [state] = first.states(model_id, len(first.files.history))
        self._first = {model_id: state} if state else {}
        self.files = RecordedFiles(self.place)

    async def has(self, model_id: str) -> bool:
        """Return whether a model exists."""
        with suppress(NotFoundError):
            return bool(await self.registry.get_models([model_id]))
        return False

    @property
    def model_ids(self) -> set[str]:
        """The models that may exist."""
        return {deed.model_id for deed in self.deeds} | self._first.keys()

    def states(self, model_id: str, operations: int) -> list[State | None]:
        """Return the possible states of a model after a power cut that follows a number of file operations."""
        states: list[State | None] = [self._first.get(model_id)]
        for deed in self.deeds:
            if deed.model_id == model_id and deed.begun <= operations:
                done = deed.completed is not None and deed.completed <= operations
                states = [after for before in states for after in deed.outcomes(before, done)]
        return states


async def copy(registry: Registry, lifecycle: Lifecycle, info: VersionInfo) -> int:
    """Create a version like `info` from the bytes that its model has, and return its number."""
    uploads = RepeatableUploads(registry, lifecycle._catalog, lifecycle._archive, lifecycle._transient)
    async with uploads.begin(UploadHeader(_header_of(info))) as version:
        assert version.is_complete, "the model lacks the bytes"
        return (await version.commit()).number


async def upload(registry: Registry, info: VersionInfo, pieces: Sequence[bytes]) -> int:
    """Create a version like `info`, and return its number."""
    async with await registry.create_version(_header_of(info)) as version:
        for piece in pieces:
            await version.write(memoryview(piece))
        return (await version.commit()).number


def _header_of(info: VersionInfo) -> VersionHeader:
    return VersionHeader(
        model_id=info.model_id,
        archived=info.archived,
        data_size_bytes=info.data_size_bytes,
        data_hash=info.data_hash,
        created_ns=info.created_ns,
        user_data=info.user_data,
    )


def _text(random: Random) -> str:
    return random.choice(["", "yes", "1e3", "two\nlines", "é", "x" * random.randint(1, 500)])
