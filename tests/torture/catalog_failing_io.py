"""If the disk of the database fails or is full, changes are refused, none is lost, and versions are still served.

For each call and each n, the n-th operation of SQLite in that call fails: once, or it and all later ones. Then:

- OK means done. Refused means UNAVAILABLE, or RESOURCE_EXHAUSTED if the disk is full, and that the running server
  has what it had before, or a whole step of the call. After a restart a refused change may be there, whole, since a log
  whose sync failed may be on the disk all the same.
- Versions are published, stored and retrieved throughout.
- On a full disk, changes are accepted as soon as there is space. After any other failure they are refused until
  a restart, as after a failed sync of a file.
"""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected
from tests.server.test_model_lifecycle import Lifecycle
from tests.torture import watched_sqlite
from tests.torture.proof import Figures, Proof
from tests.torture.watched_sqlite import FULL, IOERR, WatchedSQLite

SETTINGS = Settings(cache_max_bytes=64 * MIB, grace_seconds=0)
OPERATIONS_MAX = 200
SHORT_STEP = 8
"""The short form lets every eighth operation fail, starting at a random one."""

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True)
class State:
    """The state of the model `m`.

    Attributes:
        archived: The numbers of its archived versions.
        aliases: The versions that its aliases point to.
        tags: The tags of versions that have any.
    """

    archived: frozenset[int] = frozenset({1, 2})
    aliases: Mapping[str, int] = field(default_factory=lambda: {"a": 1})
    tags: Mapping[int, Mapping[str, str]] = field(default_factory=lambda: {1: {"k": "v"}})


@dataclass(frozen=True)
class Scenario:
    """A call on a model whose version 3 is transient.

    Attributes:
        name: Its name.
        act: Makes the call.
        steps: The states after each step of the call; None if the model is gone.
    """

    name: str
    act: Callable[[Client, Lifecycle], Awaitable[object]]
    steps: tuple[State | None, ...]


BEFORE = State()
PROMOTED = replace(BEFORE, archived=frozenset({1, 2, 3}))
SCENARIOS = [
    Scenario(
        "move of an alias",
        lambda _, lifecycle: lifecycle.set_aliases(AliasChange("a", 2), AliasChange("b", 1)),
        (replace(BEFORE, aliases={"a": 2, "b": 1}),),
    ),
    Scenario(
        "tag",
        lambda _, lifecycle: lifecycle.update(2, AnnotationChange(set_tags={"n": "w"})),
        (replace(BEFORE, tags={1: {"k": "v"}, 2: {"n": "w"}}),),
    ),
    Scenario(
        "promotion with an alias",
        lambda _, lifecycle: lifecycle.promote(3, "b"),
        (PROMOTED, replace(PROMOTED, aliases={"a": 1, "b": 3})),
    ),
    Scenario(
        "deletion of a version",
        lambda _, lifecycle: lifecycle.delete(1, force=True),
        (State(frozenset({2}), {}, {}),),
    ),
    Scenario("deletion of a model", lambda client, _: client.delete_model("m"), (None,)),
    Scenario(
        "store",
        lambda client, _: client.store("m", b"stored"),
        (replace(BEFORE, archived=frozenset({1, 2, 4})),),
    ),
]


class Fault:
    """The n-th operation of SQLite fails, once or permanently."""

    def __init__(self, watched: WatchedSQLite, number: int, code: int, *, permanent: bool) -> None:
        self.failed: list[str] = []
        self._watched = watched
        self._number = number
        self._code = code
        self._permanent = permanent
        self._count = 0

    def arm(self) -> None:
        """Let operations fail from now on."""
        self._watched.fail = self._fail

    def disarm(self) -> None:
        """Let all operations work again."""
        self._watched.fail = lambda _operation, _path: 0

    def _fail(self, operation: str, path: str) -> int:
        if CATALOG_NAME not in path:
            return 0
        if self._code == FULL and operation != "write":
            return 0  # syncs and removals work on a full disk
        self._count += 1
        if self._count == self._number or (self._permanent and self._count > self._number):
            self.failed.append(operation)
            return self._code
        return 0


async def build(archive: Path) -> None:
    """Create the archive that all trials start from."""
    async with serving(archive, SETTINGS) as server, connected(server.port) as client:
        await client.create_model("m")
        for number in (1, 2):
            await client.store("m", b"data %d" % number)
        await Lifecycle(client).set_aliases(AliasChange("a", 1))
        await Lifecycle(client).update(1, AnnotationChange(set_tags={"k": "v"}))


async def observe(client: Client) -> State | None:
    """Return the state that a server shows; each alias must point to a version."""
    lifecycle = Lifecycle(client)
    models = (await lifecycle.models()).models
    if not models:
        return None
    infos = (await client.infos("m")).version_infos
    for info in infos:
        await client.data("m", info.version_number)
    versions = await lifecycle.get(*(info.version_number for info in infos))
    state = State(
        frozenset(info.version_number for info in infos if info.archived),
        {alias.alias: alias.version_number for alias in models[0].aliases},
        {version.number: dict(version.tags) for version in versions if version.tags},
    )
    assert {*state.aliases.values()} <= {info.version_number for info in infos}, f"an alias points to nothing: {state}"
    return state


@dataclass
class Trial:
    """One call during which one operation of SQLite fails."""

    scenario: Scenario
    fault: Fault
    code: int
    archive: Path
    figures: Figures
    name: str

    async def run(self) -> None:
        """Make the call, and check its effect, also after a restart."""
        self.archive.parent.mkdir(exist_ok=True)
        async with self._serving() as client:
            await client.publish("m", b"transient")
            self.fault.arm()
            done = await self._act(client)
            await self._check_that_versions_are_served(client)
            self.fault.disarm()
            seen = await observe(client)
            self._check(seen, done=done, restarted=False)
            await self._try_again(client, seen)
            expected = await observe(client)
        async with self._serving() as client:
            seen = await observe(client)
            expected = expected and _restarted(expected)
            if self.fault.failed and seen != expected:
                self.figures.count("refused changes that were there after a restart")
                self._check(seen, done=done, restarted=True)
            else:
                assert seen == expected, f"{self.name}: after a restart {seen} instead of {expected}"
            if seen is not None:
                number = (await client.store("m", b"later")).version_number
                await Lifecycle(client).set_aliases(AliasChange("later", number))

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[Client]:
        async with serving(self.archive, SETTINGS) as server, connected(server.port) as client:
            yield client

    async def _act(self, client: Client) -> bool:
        """Make the call; return whether it was done."""
        code = await self._code_of(self.scenario.act(client, Lifecycle(client)))
        if code is grpc.StatusCode.OK:
            return True
        assert self.fault.failed, f"{self.name}: {code.name} although nothing failed"
        allowed = {UNAVAILABLE, EXHAUSTED} if self.code == FULL else {UNAVAILABLE}
        assert code in allowed, f"{self.name}: {code.name}"
        self.figures.count("refused calls")
        return False

    async def _code_of(self, call: Awaitable[object]) -> grpc.StatusCode:
        try:
            async with asyncio.timeout(30):
                await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def _check_that_versions_are_served(self, client: Client) -> None:
        """Publish and retrieve while the database fails."""
        if self.scenario.steps[-1] is None and not (await client.models()).model_infos:
            return
        number = (await client.publish("m", b"in the meantime")).version_number
        assert await client.data("m", number) == b"in the meantime"
        assert await client.data("m", 2) == b"data 2"

    def _check(self, seen: State | None, *, done: bool, restarted: bool) -> None:
        steps: list[State | None] = [self.scenario.steps[-1]] if done else [BEFORE, *self.scenario.steps]
        if restarted:
            steps = [step and _restarted(step) for step in steps]
        assert seen in steps, f"{self.name}: {seen} instead of one of {steps}"

    async def _try_again(self, client: Client, seen: State | None) -> None:
        """Change something: accepted at once if the disk was full or nothing failed, otherwise refused."""
        if seen is None:
            return
        code = await self._code_of(Lifecycle(client).set_aliases(AliasChange("again", 2)))
        refused = self.fault.failed and self.code != FULL
        assert code == (UNAVAILABLE if refused else grpc.StatusCode.OK), f"{self.name}: then {code.name}"
        self.figures.count("changes refused until a restart" if refused else "changes accepted at once")


def _restarted(state: State) -> State:
    """Return the part of a state that survives a restart."""
    return replace(state, tags={number: tags for number, tags in state.tags.items() if number in state.archived})


def deal(rounds: int, random: Random) -> Iterator[tuple[Scenario, int, bool]]:
    """Yield sweeps, alternating between the scenarios, until every combination was yielded once."""
    kinds = list(itertools.product((IOERR, FULL), (False, True)))
    hands = [random.sample(kinds, len(kinds)) for _ in SCENARIOS]
    for number in range(rounds):
        hand = hands[number % len(SCENARIOS)]
        yield SCENARIOS[number % len(SCENARIOS)], *hand[number // len(SCENARIOS) % len(hand)]


ALL = len(SCENARIOS) * 4


async def _sweep(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    step = 1 if rounds >= ALL else SHORT_STEP
    template = place / "template"
    watched = WatchedSQLite(None)
    watched.syncs = False  # no power cut is simulated here
    with watched.installed():
        await build(template)
        for scenario, code, permanent in deal(rounds, random):
            for number in range(random.randint(1, step), OPERATIONS_MAX, step):
                archive = place / "archive"
                shutil.copytree(template, archive)
                fault = Fault(watched, number, code, permanent=permanent)
                kind = f"{'full disk' if code == FULL else 'error'} {'permanently' if permanent else 'once'}"
                name = f"{scenario.name}, {kind}, operation {number}"
                await Trial(scenario, fault, code, archive, figures, name).run()
                shutil.rmtree(archive)
                figures.count("failed operations", len(fault.failed))
                if not fault.failed:
                    break
            else:
                raise AssertionError(f"{scenario.name}: every operation failed")


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Run a number of sweeps."""
    asyncio.run(_sweep(place, rounds, random, figures))
    figures.count("lost changes", 0)


PROOF = Proof(
    name="catalog_failing_io",
    promise="If an operation of SQLite fails, its call has full effect or none, and versions are still served",
    attempt=attempt,
    unit="sweeps",
    short=len(SCENARIOS),
    long=ALL,
    batch=ALL,
    missing=watched_sqlite.missing,
    requirements="Python uses the shared library of SQLite",
)
