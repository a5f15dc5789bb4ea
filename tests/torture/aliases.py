"""Many writers move one alias by compare-and-set: one wins each revision, and no move is lost, even after kills.

The proof records each acknowledged move with the revision that it replaced. At the end these moves must form one chain,
from the first revision to the current one. Readers read continuously: every reply that shows the alias (of moves,
models, versions, filters) shows a revision that is not older than the last acknowledged one, and in every list of
versions exactly one version has the alias.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.records.lifecycle import Alias, AliasChange
from tests.client import Client, connected
from tests.processes import ServerProcess, server_process
from tests.server.test_model_lifecycle import ABORTED, Lifecycle
from tests.torture.oracle import fork, going_on, in_round, until_gone
from tests.torture.proof import Figures, Proof

ALIAS, FIXED = "production", "fixed"
VERSIONS = 6
WRITERS = 64
WRITERS_A_CONNECTION = 8
READERS = 3
MOVES_PER_KILL = 3200
LIFE_SECONDS = 300
"""How long one server may take for its share of the moves."""


@dataclass(frozen=True)
class Move:
    """A move that took effect: the revision that it replaced, its own revision, and its target."""

    expected: int
    revision: int
    number: int


@dataclass
class World:
    """All moves, over the lives of all servers.

    Attributes:
        target: The number of tried moves at which this server ends.
        tried: How many moves were tried.
        moves: The moves that took effect, by the revision that they replaced.
        unknown: The targets of moves whose outcome is unknown: in progress, or sent to a server that was killed.
        acknowledged: The highest revision that a reply showed.
        seen: The target of the alias at each revision that a reply showed.
        first: The revision with which the alias was created.
        gaps: The revisions found after a kill, by the last revision that was acknowledged before it.
    """

    random: Random
    figures: Figures
    target: int = 0
    tried: int = 0
    moves: dict[int, Move] = field(default_factory=dict)
    unknown: Counter[int] = field(default_factory=Counter)
    acknowledged: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    first: int = 0
    gaps: dict[int, int] = field(default_factory=dict)
    is_over: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def see(self, alias: Alias, floor: int, where: str) -> None:
        """Check an alias from a reply; `floor` is the last revision acknowledged before the request was sent."""
        assert alias.revision >= floor, f"{where} shows {alias}, and revision {floor} was acknowledged before"
        number = self.seen.setdefault(alias.revision, alias.version_number)
        assert number == alias.version_number, f"{where} shows {alias}, and another reply showed version {number}"
        self.acknowledged = max(self.acknowledged, alias.revision)

    def note_move(self, expected: int, alias: Alias) -> None:
        """Record an acknowledged move: no other move may have replaced the same revision."""
        assert expected not in self.moves, f"revision {expected} was won twice: by {self.moves[expected]} and {alias}"
        assert alias.revision > expected, f"revision {expected} became {alias.revision}"
        self.moves[expected] = Move(expected, alias.revision, alias.version_number)
        self.figures.count("moves that won")

    def note_tried(self) -> None:
        self.tried += 1
        self.figures.count("moves tried")
        if self.tried >= self.target:
            self.reached.set()


def named(aliases: list[Alias]) -> Alias:
    """Return the alias that moves, from all aliases of the model; the fixed one must exist too."""
    found = {alias.name: alias for alias in aliases}
    assert found.keys() == {ALIAS, FIXED}, f"the model has the aliases {aliases}"
    assert found[FIXED].version_number == 1, f"{FIXED} was moved: {aliases}"
    return found[ALIAS]


class Writer:
    """Moves the alias from the revision that it saw last, and reads it again if another writer was faster."""

    def __init__(self, world: World, lifecycle: Lifecycle) -> None:
        self._world = world
        self._lifecycle = lifecycle
        self._random = fork(world.random)

    async def write(self) -> None:
        world = self._world
        known = await look_at_model(self._lifecycle, world)
        while not world.is_over:
            number = self._random.randint(1, VERSIONS)
            moved = await self._move(known.revision, number)
            world.note_tried()
            known = moved or await look_at_model(self._lifecycle, world)

    async def _move(self, expected: int, number: int) -> Alias | None:
        world, floor = self._world, self._world.acknowledged
        world.unknown[number] += 1
        try:
            aliases = await self._lifecycle.set_aliases(AliasChange(ALIAS, number, expected))
        except grpc.aio.AioRpcError as error:
            if error.code() != ABORTED:
                raise
            world.unknown[number] -= 1
            return None
        world.unknown[number] -= 1
        moved = named(aliases)
        assert moved.version_number == number, f"moved to {number}, and the reply shows {moved}"
        world.see(moved, floor, "the reply to a move")
        world.note_move(expected, moved)
        return moved


async def look_at_model(lifecycle: Lifecycle, world: World) -> Alias:
    """Return the alias as the model shows it."""
    floor = world.acknowledged
    reply = await lifecycle.models("m")
    aliases = [Alias(each.alias, each.version_number, each.revision, 0) for each in reply.models[0].aliases]
    alias = named(aliases)
    world.see(alias, floor, "the model")
    return alias


async def read(lifecycle: Lifecycle, world: World) -> None:
    """Read everything that shows the alias, until the run is over."""
    while not world.is_over:
        await look_at_model(lifecycle, world)
        found = (await lifecycle.find(model_id="m")).versions
        check_owner([(each.version_info.version_number, [*each.aliases]) for each in found], "a search")
        named_ones = await lifecycle.get(*range(1, VERSIONS + 1))
        check_owner([(each.number, [*each.aliases]) for each in named_ones], "a lookup")
        [owner] = (await lifecycle.find(model_id="m", filter=f"aliases:{ALIAS}")).versions
        assert ALIAS in owner.aliases, f"a filter found a version without the alias: {owner}"
        [version] = await lifecycle.get(ALIAS)
        assert version.info.archived, f"the alias points to {version}"
        world.figures.count("observations by readers", 5)


def check_owner(versions: list[tuple[int, list[str]]], where: str) -> None:
    """Check that exactly one version has the alias."""
    owners = [number for number, aliases in versions if ALIAS in aliases]
    assert len(versions) == VERSIONS, f"{where} shows the versions {versions}"
    assert len(owners) == 1, f"{where} shows the alias at the versions {owners}"


async def begin(client: Client, lifecycle: Lifecycle, world: World) -> None:
    """Create the model, whose newest version is transient until its alias is set."""
    await client.create_model("m")
    for number in range(1, VERSIONS):
        await client.store("m", b"%d" % number)
    await client.publish("m", b"%d" % VERSIONS)
    await lifecycle.set_aliases(AliasChange(FIXED, 1, 0), AliasChange(ALIAS, VERSIONS, 0))
    world.first = (await look_at_model(lifecycle, world)).revision


async def check_after_start(lifecycle: Lifecycle, world: World) -> None:
    """Check that the alias is as the last move left it: an acknowledged move, or one whose server was killed."""
    last = end_of_chain(world)
    possible = +world.unknown
    alias = await look_at_model(lifecycle, world)
    if alias.revision != last:
        assert alias.version_number in possible, f"{alias} after revision {last}: nobody moved it there"
        world.figures.count("unacknowledged moves found")
        world.gaps[last] = alias.revision
    world.unknown.clear()


def end_of_chain(world: World) -> int:
    """Return the last revision of the chain of moves; check that it contains every move, so that none was lost."""
    revision, found = world.first, 0
    while True:
        if move := world.moves.get(revision):
            revision, found = move.revision, found + 1
        elif revision in world.gaps:
            revision = world.gaps[revision]
        else:
            break
    assert found == len(world.moves), f"{len(world.moves)} moves were acknowledged, and {found} follow each other"
    return revision


async def live(server: ServerProcess, world: World, target: int, *, crash: bool) -> None:
    """Run writers and readers until `target` moves were tried, and end the server."""
    world.target, world.reached = target, asyncio.Event()
    async with AsyncExitStack() as stack:
        connections = WRITERS // WRITERS_A_CONNECTION + 1
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(connections)]
        lifecycles = [Lifecycle(client) for client in clients]
        if not world.first:
            await begin(clients[0], lifecycles[0], world)
        await check_after_start(lifecycles[0], world)
        works = [read(lifecycles[0], world) for _ in range(READERS)]
        works += [Writer(world, lifecycles[1 + index // WRITERS_A_CONNECTION]).write() for index in range(WRITERS)]
        async with going_on(*[until_gone(server, work) for work in works]):
            async with asyncio.timeout(LIFE_SECONDS):
                await world.reached.wait()
            if crash:
                server.kill()
            world.is_over = not crash
        if not crash:
            await check_after_start(lifecycles[0], world)
            assert server.stop() == 0, "the server did not stop cleanly"


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    for name in ("moves tried", "moves that won", "lost moves", "revisions won twice", "kills"):
        figures.count(name, 0)
    world = World(random, figures)
    targets = sorted(random.choices(range(1, rounds), k=max(rounds // MOVES_PER_KILL, 1)))
    for number, target in enumerate(targets):
        with in_round(number), server_process(place / "archive") as server:
            await live(server, world, target, crash=True)
            figures.count("kills")
    with in_round(len(targets)), server_process(place / "archive") as server:
        await live(server, world, rounds, crash=False)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Let 64 writers try a number of moves, and kill the server every few thousand."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="aliases",
    promise="One of many writers wins each revision of an alias, no move is lost, and all replies agree",
    attempt=attempt,
    unit="moves",
    short=80,
    long=64_000,
    batch=16_000,
)
