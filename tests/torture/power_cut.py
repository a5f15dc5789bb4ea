"""A power cut at any moment loses nothing that was completed, and leaves nothing incomplete.

An archive works on `RecordedFiles`. Then, for each operation on files that it has made, every disk that a power cut
right after it may leave is laid out, and a registry is opened on it. What the registry has then is compared with what
its clients had received before that moment.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TypeVar, TypeVarTuple, Unpack

from cogment_model_registry.errors import DataLossError, ModelRegistryError, NotFoundError
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.testing.bytes import hash_of, read
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected
from tests.torture.cut_disk import Disk, Remains, Tree, lay_out
from tests.torture.proof import Figures, Proof
from tests.torture.recorded_archive import (
    ARCHIVE,
    SETTINGS,
    SeenModel,
    State,
    World,
    difference,
    registry_on,
    upload,
)
from tests.torture.recorded_files import ProcessKilled, Sync

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_SUBSETS = 1024
"""Up to this number of combinations of losses, all are checked: those of ten uncertain operations."""

_ALL = 10**6


class UnsyncedFiles(Files):
    """File operations on a disk that is only read and then discarded."""

    def sync_file(self, file: int) -> None:
        pass

    def sync_directory(self, directory: int) -> None:
        pass


class DirectLoop(asyncio.SelectorEventLoop):
    """An event loop that can run without threads: waiting for them is most of the time to check a small disk.

    Attributes:
        direct: Whether to do the work of threads in the loop.
    """

    direct = False

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        if not self.direct:
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def without_threads() -> Iterator[None]:
    """Return a context manager in which the loop does the work of threads."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, DirectLoop)
    loop.direct = True
    try:
        yield
    finally:
        loop.direct = False


async def new_models(world: World, random: Random) -> None:
    """Models are created, the first one in missing directories."""
    async with world.started():
        for model_id in ("a", "a-v000001", "été")[: random.randint(1, 3)]:
            await world.create(model_id)
            if random.random() < 0.5:
                await world.store(model_id)


async def stores(world: World, random: Random) -> None:
    """Versions of all sizes are stored, large ones with several writes."""
    large = 256 * 1024
    async with world.started():
        await world.create("m")
        sizes = [[0], [1], [random.randint(large, large + 9) for _ in range(3)], [large, 0, 1], [100, 200]]
        for pieces in random.sample(sizes, 4):
            await world.store("m", *pieces)


async def updates(world: World, random: Random) -> None:
    """The `user_data` of a model is replaced, between stores."""
    async with world.started():
        await world.create("m")
        for _ in range(random.randint(2, 4)):
            await world.create("m")
            await world.store("m")


async def deletions(world: World, random: Random) -> None:
    """A model with versions is deleted, created again, and stored to."""
    async with world.started():
        for _ in range(2):
            await world.create("m")
            for _ in range(random.randint(1, 3)):
                await world.store("m")
            await world.publish("m")
            await world.delete("m")
        await world.create("m")
        await world.store("m")


async def deletions_without_renames(world: World, random: Random) -> None:
    """The same if no directory of a model can be renamed, and in half of the histories no new one either."""
    renames_new_ones = random.random() < 0.5
    world.files.can_rename = lambda name: renames_new_ones and layout.is_temporary(name)
    await deletions(world, random)


async def publishes(world: World, random: Random) -> None:
    """Transient versions use up several blocks of numbers."""
    async with world.started():
        await world.create("m")
        for _ in range(random.randint(10, 20)):
            await (world.store if random.random() < 0.1 else world.publish)("m")


async def concurrency(world: World, random: Random) -> None:
    """Two models are created, stored and published to at once."""
    async with world.started():
        await asyncio.gather(world.create("a"), world.create("b"))
        for _ in range(random.randint(1, 2)):
            calls = [world.store("a"), world.store("b"), world.publish("a"), world.store(random.choice("ab"))]
            await asyncio.gather(*random.sample(calls, 4), world.create("c"))


async def restarts(world: World, random: Random) -> None:
    """The server is stopped and started between publishes and stores."""
    for _ in range(3):
        async with world.started():
            if not await world.has("m"):
                await world.create("m")
            for _ in range(random.randint(1, 4)):
                await (world.store if random.random() < 0.3 else world.publish)("m")


async def promotions(world: World, random: Random) -> None:
    """Transient versions are promoted, between publishes."""
    async with world.started():
        await world.create("m")
        for _ in range(random.randint(1, 3)):
            await world.publish("m")
        for _ in range(random.randint(2, 4)):
            await random.choice([world.publish, world.promote, world.promote])("m")
        await world.promote("m")


async def copies(world: World, random: Random) -> None:
    """Versions share the bytes of others; originals and copies are deleted."""
    for _ in range(2):
        async with world.started():
            if not await world.has("m"):
                await world.create("m")
            await random.choice([world.publish, world.store])("m")
            for _ in range(random.randint(2, 5)):
                await random.choice([world.copy, world.copy, world.delete_version])("m")


async def version_deletions(world: World, random: Random) -> None:
    """Versions of either tier are deleted, including the newest one, and others are created after them."""
    for _ in range(2):
        async with world.started():
            if not await world.has("m"):
                await world.create("m")
            for _ in range(random.randint(2, 6)):
                await random.choice([world.publish, world.store, world.delete_version, world.delete_version])("m")
            await world.store("m")
            await world.delete_version("m")


async def deletions_in_an_original(world: World, random: Random) -> None:
    """The newest version of an archive of the original is deleted; there, only it determines the next number."""
    await world.adopt_original("m", random.randint(1, 3))
    async with world.started():
        await world.delete_version("m")
        await random.choice([world.publish, world.store, world.delete_version])("m")
    async with world.started():
        await world.delete_version("m")


async def changes_at_once(world: World, random: Random) -> None:
    """Versions are promoted, deleted and published at the same time."""
    async with world.started():
        await world.create("m")
        for _ in range(3):
            await world.publish("m")
        await world.store("m")
        calls = [world.promote("m"), world.delete_version("m"), world.publish("m"), world.store("m")]
        await asyncio.gather(*random.sample(calls, 4), return_exceptions=True)


async def killed_changes(world: World, random: Random) -> None:
    """The process is killed while it promotes or deletes a version, and a new process finishes the change."""
    for _ in range(3):
        with suppress(ProcessKilled):
            async with world.started():
                if not await world.has("m"):
                    await world.create("m")
                await world.store("m")
                await world.publish("m")
                world.files.kill_after(random.randint(1, 10), at_sync=random.random() < 0.5)
                await random.choice([world.delete_version, world.delete_version, world.promote])("m")
    async with world.started():
        await world.store("m")


async def kills(world: World, random: Random) -> None:
    """The process is killed anywhere and restarted before the power cut: its pending syncs were never made."""
    for _ in range(3):
        world.files.kill_after(random.randint(1, 30), at_sync=random.random() < 0.7)
        with suppress(ProcessKilled):
            async with world.started():
                while True:
                    await _do_anything(world, random)
    async with world.started():
        for _ in range(2):
            await _do_anything(world, random)


async def kills_without_renames(world: World, random: Random) -> None:
    """The same if no model can be renamed: a new process continues the deletion of the old one."""
    world.files.can_rename = layout.is_temporary
    await kills(world, random)


async def _do_anything(world: World, random: Random) -> None:
    model_id = random.choice("ab")
    if not await world.has(model_id) or random.random() < 0.1:
        await world.create(model_id)
    often = [world.store, world.store, world.publish, world.publish, world.publish, world.promote, world.delete_version]
    await random.choice([*often, world.delete])(model_id)


SCENARIOS: list[Callable[[World, Random], Awaitable[None]]] = [
    new_models,
    stores,
    updates,
    deletions,
    deletions_without_renames,
    publishes,
    concurrency,
    restarts,
    promotions,
    copies,
    version_deletions,
    deletions_in_an_original,
    changes_at_once,
    killed_changes,
    kills,
    kills_without_renames,
]


@dataclass(slots=True)
class Seen:
    """The content of a registry after a power cut: models by id, and everything that must not exist."""

    models: dict[str, SeenModel] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


async def look(archive_dir: Path, model_ids: set[str], *, leaves_empty_directories: bool) -> Seen:
    """Open a registry on an archive after a power cut, return its content, and check that it works."""
    seen = Seen()
    async with registry_on(archive_dir, UnsyncedFiles(), 4) as (registry, _, archive):
        listed = await registry.list_models(0, _ALL)
        seen.models = {info.model_id: SeenModel(info.user_data) for info in listed}
        for model_id, model in seen.models.items():
            found = [layout.parse_file_name(model_id, path.name) for path in (archive_dir / model_id).iterdir()]
            model.files = {each[0] for each in found if each}
            for info in await registry.list_versions(model_id, 0, _ALL):
                model.versions[info.number] = await _read(archive, info, seen.faults)
        seen.faults += _litter(archive_dir, seen, leaves_empty_directories)
        for model_id, model in seen.models.items():
            model.next_number = await _store_one_more(registry, archive, model_id, seen.faults)
        for model_id in sorted(model_ids - seen.models.keys())[:1]:
            await registry.create_or_update_model(ModelInfo(model_id))
            await _store_one_more(registry, archive, model_id, seen.faults)
    return seen


async def _read(archive: DirectoryArchive, info: VersionInfo, faults: list[str]) -> VersionInfo:
    """Return a version with the hash and the size of its actual bytes."""
    data = b""
    try:
        data = await read(archive, info)
    except ModelRegistryError as error:
        faults.append(f"version {info.number} of {info.model_id} cannot be retrieved: {error.message}")
    return replace(info, data_hash=hash_of(data), data_size_bytes=len(data))


async def _store_one_more(registry: Registry, archive: DirectoryArchive, model_id: str, faults: list[str]) -> int:
    """Store a version, and return its number."""
    info = VersionInfo(model_id, 0, 1, True, hash_of(b"next"), 4)
    number = await upload(registry, info, [b"next"])
    if await _read(archive, replace(info, number=number), faults) != replace(info, number=number):
        faults.append(f"the next version of {model_id} is not what was stored")
    for earlier in range(1, number):
        try:
            await registry.get_versions(model_id, [earlier])
        except DataLossError as error:
            faults.append(f"version {earlier} of {model_id} is damaged: {error.message}")
        except NotFoundError:
            pass
    return number


def _litter(archive_dir: Path, seen: Seen, leaves_empty_directories: bool) -> list[str]:
    """Return what a start should have removed, and directories that are not models.

    A directory that cannot be renamed loses its last file before it is removed, and a new one is created before its
    first file. A server ignores an empty one; it may also be a mount point, so a start keeps it.
    """
    faults = []
    for path in archive_dir.rglob("*"):
        if layout.is_temporary(path.name):
            faults.append(f"{path.name} was not removed")
        elif path.is_dir() and path.name not in seen.models and (any(path.iterdir()) or not leaves_empty_directories):
            faults.append(f"there is a directory {path.name} that is not a model")
    return faults


async def look_over_the_wire(archive_dir: Path) -> dict[str, dict[int, bytes]]:
    """Return the bytes that a complete server sends of an archive, by model and number."""
    async with serving(archive_dir, SETTINGS, UnsyncedFiles()) as server, connected(server.port) as client:
        return {info.model_id: await _data(client, info.model_id) for info in (await client.models()).model_infos}


async def _data(client: Client, model_id: str) -> dict[int, bytes]:
    return {number: await client.data(model_id, number) for number in await client.numbers(model_id)}


@contextmanager
def laid_out(tree: Tree, place: Path) -> Iterator[Path]:
    """Return a context manager that writes a tree to a real directory."""
    lay_out(tree, place)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _essence(tree: Tree) -> frozenset[tuple[str, bytes | None]]:
    """Return the relevant part of a tree: of temporary files, only whether there are any, and of which version."""
    essence = set()
    for path, content in tree.items():
        directory, _, name = path.rpartition("/")
        if layout.is_temporary(name):
            version = None if content is None else _described(content, directory.rpartition("/")[2])
            essence.add((f"{directory}/{layout.TEMPORARY_PREFIX}", version))
        elif not layout.is_temporary(directory.rpartition("/")[2]):
            essence.add((path, content))
    return frozenset(essence)


def _described(content: bytes, model_id: str) -> bytes:
    """Return the number of the version whose metadata is in a file; empty if there is none."""
    with suppress(layout.BadMetadata):
        return b"%d" % layout.parse_version_number(content, model_id)
    return b""


@dataclass(frozen=True, slots=True)
class Sample:
    """A disk that was checked, and the number of operations before the power cut."""

    tree: Tree
    operations: int
    seen: Seen


class Aftermath:
    """Checks everything that a power cut may leave of a world.

    Args:
        world: The calls and their history.
        place: Where to lay out disks.
        figures: What is counted.
        name: The name of the history in failures.
        step: After every how many operations the power is cut, from a random one on; also after the last one.
    """

    def __init__(self, world: World, place: Path, figures: Figures, name: str, step: int = 1) -> None:
        self._world = world
        self._place = place
        self._figures = figures
        self._name = name
        self._step = step
        self._seen: dict[object, Seen] = {}
        self._sample: Sample | None = None

    async def look(self) -> None:
        """Check a power cut after each operation.

        If no client received a reply since the previous operation, the states without this operation were already
        checked there and are skipped. A sync alone adds no states.
        """
        world = self._world
        reply_moments = {deed.completed for deed in world.deeds}
        disk = Disk(world.files)
        first, last = world.random.randrange(self._step), len(world.files.history)
        for operations, operation in enumerate([None, *world.files.history]):
            if operation:
                disk.perform(operation)
            if (operations - first) % self._step and operations != last:
                continue
            has_reply = operations in reply_moments
            if has_reply or not isinstance(operation, Sync):
                for remains in disk.remains(world.random, _SUBSETS, None if has_reply else operation):
                    await self._check(remains, operations)
        self._figures.count("moments of a cut", len(range(first, last, self._step)) + 1)
        self._figures.count("calls", len(world.deeds))

    async def look_further(self) -> None:
        """Serve one of the disks with a complete server; make calls on it, and cut the power again."""
        disk = self._sample
        assert disk, "there is no disk"
        with laid_out(disk.tree, self._place) as place:
            served = await look_over_the_wire(place / ARCHIVE)
        hashes = {model_id: {n: hash_of(data) for n, data in versions.items()} for model_id, versions in served.items()}
        assert hashes == {
            model_id: {number: info.data_hash for number, info in model.versions.items()}
            for model_id, model in disk.seen.models.items()
        }, f"{self._name}: a server shows other versions than the registry did: {hashes}"
        self._figures.count("states served over the wire")
        with laid_out(disk.tree, self._place) as place:
            again = World(place, self._world.random, self._first(disk))
            again.files.can_rename = self._world.files.can_rename
            async with again.started():
                for model_id in sorted(self._world.model_ids):
                    await again.create(model_id)
                    await again.store(model_id)
            name = f"{self._name}, a second cut"
            second = Aftermath(again, self._place.with_name("second"), self._figures, name, self._step)
            await second.look()

    def _first(self, disk: Sample) -> dict[str, State]:
        """Return the models of a checked disk, as they must stay."""
        first = {}
        for model_id, model in disk.seen.models.items():
            states = self._world.states(model_id, disk.operations)
            state = next(state for state in states if state and not difference(state, model))
            assigned = state.assigned | model.versions.keys()
            first[model_id] = State(state.user_data, dict(model.versions), assigned=assigned)
        return first

    async def _check(self, remains: Remains, operations: int) -> None:
        key = _essence(remains.tree)
        if key not in self._seen:
            self._seen[key] = await self._look_at(remains)
            self._figures.count("distinct states recovered")
            if self._world.random.random() < 1 / len(self._seen):  # each disk has the same chance in the end
                self._sample = Sample(remains.tree, operations, self._seen[key])
        self._figures.count("possible states after a cut")
        seen = self._seen[key]
        problems = seen.faults + self._differences(seen, operations)
        assert not problems, self._report(problems, remains, operations)

    async def _look_at(self, remains: Remains) -> Seen:
        with laid_out(remains.tree, self._place) as disk, without_threads():
            try:
                leaves_empty_directories = not self._world.files.can_rename("m")
                return await look(
                    disk / ARCHIVE, self._world.model_ids, leaves_empty_directories=leaves_empty_directories
                )
            except (ModelRegistryError, OSError) as error:
                return Seen(faults=[f"the registry does not work: {error!r}"])

    def _differences(self, seen: Seen, operations: int) -> list[str]:
        problems = [f"model {model_id} must not exist" for model_id in seen.models.keys() - self._world.model_ids]
        for model_id in sorted(self._world.model_ids):
            states = self._world.states(model_id, operations)
            differences = [difference(state, seen.models.get(model_id)) for state in states]
            if all(differences):
                problems.append(f"{model_id}: " + ", or ".join(dict.fromkeys(differences)))
        return problems

    def _report(self, problems: Sequence[str], remains: Remains, operations: int) -> str:
        history = "\n".join(f"  {n} {operation}" for n, operation in enumerate(self._world.files.history, 1))
        lost = ", ".join(remains.lost) or "nothing"
        cut = f"a power cut after operation {operations}, which lost {lost}"
        return f"{self._name}: {problems}\nafter {cut}, of\n{history}"


@contextmanager
def in_memory(place: Path) -> Iterator[Path]:
    """Return a context manager for a directory, in memory if possible: many thousands of files are created in it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield place
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


SHORT_STEP = 4
"""The short form cuts the power after every fourth operation, from a random one on."""


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    step = 1 if rounds > len(SCENARIOS) else SHORT_STEP
    for round_number in range(rounds):
        scenario = SCENARIOS[round_number % len(SCENARIOS)]
        (place / "world").mkdir()
        world = World(place / "world", random)
        # Only concurrent scenarios need threads; without threads, the others are reproducible.
        with nullcontext() if scenario in (concurrency, changes_at_once) else without_threads():
            await scenario(world, random)
        aftermath = Aftermath(world, place / "disk", figures, f"round {round_number}, {scenario.__name__}", step)
        await aftermath.look()
        await aftermath.look_further()
        shutil.rmtree(place / "world")
    figures.count("lost or damaged", 0)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Cut the power after each operation of a scenario, in every way."""
    with in_memory(place) as memory, asyncio.Runner(loop_factory=DirectLoop) as runner:
        runner.run(_attempt(memory, rounds, random, figures))


PROOF = Proof(
    name="power_cut",
    promise="A power cut at any moment loses nothing that was completed, and leaves nothing incomplete",
    attempt=attempt,
    unit="histories",
    short=len(SCENARIOS),
    long=100 * len(SCENARIOS),
    batch=2 * len(SCENARIOS),
)
