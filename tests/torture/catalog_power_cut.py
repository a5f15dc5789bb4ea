"""A power cut at any operation, SQLite's included, loses no alias, tag, promotion or deletion that was acknowledged.

An archive uses `RecordedFiles`, and SQLite runs under `WatchedSQLite`, so one history has both kinds of operations.
After each operation, the proof lays out disks that a power cut may leave: whatever was not synced may be lost, torn, or
present without earlier writes. A registry opens each disk. It must have everything that was acknowledged, and of a call
in progress all, nothing, or some of its complete steps.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from cogment_model_registry.errors import ModelRegistryError, NotFoundError
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.storage.catalog import connections
from cogment_model_registry.testing.bytes import hash_of, read
from tests.torture import watched_sqlite
from tests.torture.cut_disk import Disk, lay_out
from tests.torture.power_cut import DirectLoop, UnsyncedFiles, in_memory, without_threads
from tests.torture.proof import Figures, Proof
from tests.torture.recorded_archive import ARCHIVE, registry_on, upload
from tests.torture.recorded_files import RecordedFiles
from tests.torture.watched_sqlite import WatchedSQLite

MODELS = ("a", "b")
ALIASES = ("production", "next")
_ALL = 10**6
_LOOKS = 100
"""How many disks of a history are checked, chosen at random out of hundreds of thousands."""


@dataclass(frozen=True, slots=True)
class State:
    """The expected state of a model.

    Attributes:
        versions: The hashes of its archived versions, by number.
        aliases: The versions that its aliases point to.
        tags: The tags of its archived versions that have any.
    """

    versions: Mapping[int, str] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    def without(self, number: int) -> "State":
        """Return the state without a version."""
        return State(
            {n: data_hash for n, data_hash in self.versions.items() if n != number},
            {name: n for name, n in self.aliases.items() if n != number},
            {n: tags for n, tags in self.tags.items() if n != number},
        )


@dataclass(eq=False, slots=True)
class Deed:
    """A call, and the states that a power cut may leave.

    Attributes:
        begun: The number of operations before the call.
        completed: The number of operations when it was completed; None if it was not.
        steps: The states after each step of the call, the last one when it is done; None for no model.
    """

    begun: int
    steps: Sequence[State | None]
    completed: int | None = None


@dataclass(slots=True)
class Seen:
    """The state of a model that a registry shows."""

    state: State | None = None
    next_number: int = 0
    revision: int = 0


class World:
    """Models that are changed by one call at a time each, and their expected states.

    Args:
        place: The directory that the power cut will hit.
        random: Chooses the calls.
    """

    def __init__(self, place: Path, random: Random) -> None:
        self.files = RecordedFiles(place)
        self._place = place
        self._random = random
        self._deeds: dict[str, list[Deed]] = {model_id: [] for model_id in MODELS}
        self._state: dict[str, State | None] = dict.fromkeys(MODELS)
        self._transient: dict[str, dict[int, tuple[str, dict[str, str]]]] = {model_id: {} for model_id in MODELS}
        self._numbers: dict[str, list[tuple[int, int]]] = {model_id: [] for model_id in MODELS}
        self._revisions: dict[str, list[tuple[int, int]]] = {model_id: [] for model_id in MODELS}

    async def work(self, calls: int) -> None:
        """Make calls on all models at once, in two runs of a server with a checkpoint of the database in each."""
        for life in range(2):
            for transient in self._transient.values():
                transient.clear()
            async with registry_on(self._place / ARCHIVE, self.files, 4) as (registry, lifecycle, _):
                await asyncio.gather(*(self._work(registry, lifecycle, model_id, calls) for model_id in MODELS))
                await asyncio.to_thread(self._check_point, "PASSIVE" if life else "TRUNCATE")
                await asyncio.gather(*(self._work(registry, lifecycle, model_id, calls // 2) for model_id in MODELS))

    def _check_point(self, how: str) -> None:
        """Let another process write the log into the database, as a large change would."""
        path = str(self._place / f"{ARCHIVE}.catalog")
        with closing(connections.connect(path, "rw")) as connection:
            connection.execute(f"PRAGMA wal_checkpoint({how})").fetchall()

    async def _work(self, registry: Registry, lifecycle: Lifecycle, model_id: str, calls: int) -> None:
        for _ in range(calls):
            state = self._state[model_id]
            if state is None:
                async with self._doing(model_id, State()):
                    await registry.create_or_update_model(ModelInfo(model_id))
                continue
            await self._do_something(registry, lifecycle, model_id, state)

    async def _do_something(self, registry: Registry, lifecycle: Lifecycle, model_id: str, state: State) -> None:
        transient, archived = sorted(self._transient[model_id]), sorted(state.versions)
        choice = self._random.random()
        if choice < 0.15 or not (transient or archived):
            await self._create(registry, model_id, state, archived=self._random.random() < 0.5)
        elif choice < 0.35 and transient:
            await self._promote(lifecycle, model_id, state, self._random.choice(transient))
        elif choice < 0.65:
            await self._set_aliases(lifecycle, model_id, state, [*transient, *archived])
        elif choice < 0.85:
            await self._update(lifecycle, model_id, state, self._random.choice([*transient, *archived]))
        elif choice < 0.97 and archived:
            number = self._random.choice(archived)
            async with self._doing(model_id, state.without(number)):
                await lifecycle.delete_version(model_id, number, force=True)
        else:
            async with self._doing(model_id, None):
                await registry.delete_model(model_id)
            for kept in (self._transient[model_id], self._numbers[model_id], self._revisions[model_id]):
                kept.clear()

    async def _create(self, registry: Registry, model_id: str, state: State, *, archived: bool) -> None:
        data = self._random.randbytes(self._random.randint(0, 100))
        info = VersionInfo(model_id, 0, self._random.randint(1, 2**60), archived, hash_of(data), len(data))
        if not archived:
            number = await upload(registry, info, [data])
            self._transient[model_id][number] = (hash_of(data), {})
        else:
            expected = max([0, *(number for _, number in self._numbers[model_id])]) + 1
            after = replace(state, versions={**state.versions, expected: hash_of(data)})
            async with self._doing(model_id, after):
                number = await upload(registry, info, [data])
                assert number == expected
        self._numbers[model_id].append((len(self.files.history), number))

    async def _promote(self, lifecycle: Lifecycle, model_id: str, state: State, number: int) -> None:
        promoted = self._promoted(model_id, state, number)
        names = self._random.sample(ALIASES, self._random.randint(0, 2))
        steps = [promoted, replace(promoted, aliases={**promoted.aliases, **dict.fromkeys(names, number)})]
        async with self._doing(model_id, *(steps if names else steps[:1])):
            await lifecycle.promote_version(model_id, number, names)
        self._transient[model_id].pop(number, None)

    def _promoted(self, model_id: str, state: State, number: int) -> State:
        if number not in self._transient[model_id]:
            return state
        data_hash, tags = self._transient[model_id][number]
        tagged = {**state.tags, number: tags} if tags else state.tags
        return State({**state.versions, number: data_hash}, state.aliases, tagged)

    async def _set_aliases(self, lifecycle: Lifecycle, model_id: str, state: State, numbers: list[int]) -> None:
        changes, steps, aliases = [], [state], dict(state.aliases)
        for name in self._random.sample(ALIASES, self._random.randint(1, 2)):
            if name in aliases and self._random.random() < 0.2:
                changes.append(AliasChange(name, None))
                del aliases[name]
                continue
            number = self._random.choice(numbers)
            changes.append(AliasChange(name, number))
            aliases[name] = number
            steps.append(self._promoted(model_id, steps[-1], number))
        steps.append(replace(steps[-1], aliases=aliases))
        async with self._doing(model_id, *steps[1:]):
            after = await lifecycle.set_aliases(model_id, changes)
        for change in changes:
            self._transient[model_id].pop(change.version_number or 0, None)
        self._revisions[model_id] += [(len(self.files.history), alias.revision) for alias in after]

    async def _update(self, lifecycle: Lifecycle, model_id: str, state: State, number: int) -> None:
        change = AnnotationChange(set_tags={self._random.choice("xy"): self._random.randbytes(4).hex()})
        if number in self._transient[model_id]:
            await lifecycle.update_version(model_id, number, change)
            self._transient[model_id][number][1].update(change.set_tags)
            return
        tags = {**state.tags.get(number, {}), **change.set_tags}
        async with self._doing(model_id, replace(state, tags={**state.tags, number: tags})):
            after = await lifecycle.update_version(model_id, number, change)
        self._revisions[model_id].append((len(self.files.history), after.revision))

    @asynccontextmanager
    async def _doing(self, model_id: str, *steps: State | None) -> AsyncIterator[None]:
        deed = Deed(len(self.files.history), steps)
        self._deeds[model_id].append(deed)
        yield
        deed.completed = len(self.files.history)
        self._state[model_id] = steps[-1]

    @property
    def calls(self) -> int:
        """The number of calls that changed something."""
        return sum(len(deeds) for deeds in self._deeds.values())

    def allowed(self, model_id: str, operations: int) -> list[State | None]:
        """Return the allowed states of a model if the power is cut after a number of operations."""
        states: list[State | None] = [None]
        for deed in self._deeds[model_id]:
            if deed.completed is not None and deed.completed <= operations:
                states = [deed.steps[-1]]
            elif deed.begun <= operations:
                states += deed.steps
        return states

    def acknowledged_maxima(self, model_id: str, operations: int) -> tuple[int, int]:
        """Return the highest acknowledged number and revision of a model that was not deleted."""
        numbers = [number for when, number in self._numbers[model_id] if when <= operations]
        revisions = [revision for when, revision in self._revisions[model_id] if when <= operations]
        return max([0, *numbers]), max([0, *revisions])


async def look(archive_dir: Path) -> dict[str, Seen]:
    """Open a registry after a power cut; check that it works, and return the state of each model."""
    seen = {}
    async with registry_on(archive_dir, UnsyncedFiles(), 4) as (registry, lifecycle, archive):
        for model_id in MODELS:
            seen[model_id] = model = Seen()
            try:
                await registry.get_models([model_id])
            except NotFoundError:
                continue
            versions = await registry.list_versions(model_id, 0, _ALL)
            described = await lifecycle.get_versions([(model_id, info.number) for info in versions])
            aliases = await lifecycle.get_aliases(model_id)
            model.state = State(
                {info.number: hash_of(await read(archive, info)) for info in versions},
                {alias.name: alias.version_number for alias in aliases},
                {version.number: dict(version.tags) for version in described if version.tags},
            )
            for version in described:
                assert version.aliases == tuple(a.name for a in aliases if a.version_number == version.number)
            model.next_number = await upload(registry, VersionInfo(model_id, 0, 1, True, hash_of(b"x"), 1), [b"x"])
            [alias] = [
                alias
                for alias in await lifecycle.set_aliases(model_id, [AliasChange("after", model.next_number)])
                if alias.name == "after"
            ]
            model.revision = alias.revision
    return seen


async def _check(world: World, disk: Path, operations: int, name: str) -> None:
    with without_threads():
        try:
            seen = await look(disk / ARCHIVE)
        except ModelRegistryError as error:
            raise AssertionError(f"{name}: the registry does not work: {error.message}") from error
    for model_id, model in seen.items():
        allowed = world.allowed(model_id, operations)
        assert model.state in allowed, f"{name}: {model_id} is {model.state} instead of one of {allowed}"
        number, revision = world.acknowledged_maxima(model_id, operations)
        if model.state is not None:
            assert model.next_number > number, f"{name}: number {number} of {model_id} is used again"
            assert model.revision > revision, f"{name}: revision {revision} of {model_id} is used again"


async def _cut(place: Path, random: Random, figures: Figures, name: str) -> None:
    home = place / "cut"
    home.mkdir()
    world = World(home, random)
    with WatchedSQLite(world.files).installed():
        await world.work(random.randint(8, 16))
        history = world.files.history
        chance = min(1.0, _LOOKS / (4 * len(history)))
        disk = Disk(world.files)
        for operations, operation in enumerate([None, *history]):
            if operation is not None:
                disk.perform(operation)
            for remains in disk.remains(random, 8):
                if random.random() < chance:
                    after = str(history[operations - 1]) if operations else "nothing"
                    lay_out(remains.tree, place / "disk")
                    what = (
                        f"{name}, after {operations} operations ({after}), lost: {', '.join(remains.lost) or 'nothing'}"
                    )
                    await _check(world, place / "disk", operations, what)
                    shutil.rmtree(place / "disk")
                    figures.count("disks checked")
    figures.count("moments of a cut", len(history) + 1)
    figures.count("calls", world.calls)
    shutil.rmtree(home)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Cut the power after every operation of a number of histories."""
    with in_memory(place) as memory, asyncio.Runner(loop_factory=DirectLoop) as runner:
        for number in range(rounds):
            runner.run(_cut(memory, random, figures, f"history {number}"))
    figures.count("lost or half done", 0)


PROOF = Proof(
    name="catalog_power_cut",
    promise="Acknowledged aliases, tags, promotions and deletions survive a power cut at each operation of SQLite too",
    attempt=attempt,
    unit="histories",
    short=1,
    long=300,
    batch=20,
    missing=watched_sqlite.missing,
    requirements="Python uses the shared library of SQLite",
)
