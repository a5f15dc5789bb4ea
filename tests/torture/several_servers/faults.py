"""Faults: each breaks something for a while, and repairs it."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from tests.object_proxy import Mode
from tests.torture.several_servers.history import NOTHING, Effect, Trouble
from tests.torture.several_servers.stage import CLIENTS, DATABASES, SERVERS, STORE, Stage

LEASE_SECONDS = 10
"""After this time without a sign of life, the others take a server for gone."""

Act = Callable[[Stage, Random], Awaitable[None]]
"""Breaks something, waits, and repairs it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    Attributes:
        name: Its name, in the figures in the plural.
        act: What happens.
        effect: What it may do.
        repair: What is to be done before the next fault, when everything works already.
    """

    name: str
    act: Act
    effect: Effect = NOTHING
    repair: Callable[[Stage], Awaitable[None]] | None = None

    async def happen(self, stage: Stage, random: Random) -> Trouble:
        """Let it happen, and return when it did."""
        began_ns = time.monotonic_ns()
        await self.act(stage, random)
        return Trouble(self.name, began_ns, time.monotonic_ns(), self.effect)


async def last(random: Random, shortest_seconds: float, longest_seconds: float) -> None:
    """Let a fault last for some time."""
    await asyncio.sleep(random.uniform(shortest_seconds, longest_seconds))


async def kill_server(stage: Stage, random: Random) -> None:
    name = random.choice(SERVERS)
    await stage.kill_server(name)
    await last(random, 0, 3)
    await stage.start_server(name)


async def kill_server_for_long(stage: Stage, random: Random) -> None:
    name = random.choice(SERVERS)
    await stage.kill_server(name)
    await last(random, LEASE_SECONDS + 1, LEASE_SECONDS + 3)
    await stage.start_server(name)


def freeze_server(shortest_seconds: float, longest_seconds: float) -> Act:
    async def act(stage: Stage, random: Random) -> None:
        server = stage.servers[random.choice(SERVERS)]
        server.signal(signal.SIGSTOP)
        await last(random, shortest_seconds, longest_seconds)
        server.signal(signal.SIGCONT)

    return act


def end_database(number: signal.Signals) -> Act:
    async def act(stage: Stage, random: Random) -> None:
        primary = stage.databases.primary
        await asyncio.to_thread(primary.end, number)
        await last(random, 0, 5)
        await asyncio.to_thread(primary.start)

    return act


async def fail_over(stage: Stage, random: Random) -> None:
    await asyncio.to_thread(stage.databases.primary.end, signal.SIGKILL)
    await last(random, 0, 5)
    await asyncio.to_thread(stage.databases.fail_over)


async def attach_standby(stage: Stage) -> None:
    await stage.databases.attach()


def on_ways(
    choose: Callable[[Random], tuple[str, tuple[str, ...]]],
    shortest_seconds: float,
    longest_seconds: float,
    *,
    only_slow: bool = False,
) -> Act:
    """Return the act of cutting the ways from one node to others, or of slowing them down."""

    async def act(stage: Stage, random: Random) -> None:
        one, others = choose(random)
        for other in others:
            await (stage.network.slow_down if only_slow else stage.network.cut)(one, other)
        await last(random, shortest_seconds, longest_seconds)
        await stage.network.heal()

    return act


def server_and_databases(random: Random) -> tuple[str, tuple[str, ...]]:
    return random.choice(SERVERS), DATABASES


def server_and_store(random: Random) -> tuple[str, tuple[str, ...]]:
    return random.choice(SERVERS), (STORE,)


def two_servers(random: Random) -> tuple[str, tuple[str, ...]]:
    one, other = random.sample(SERVERS, 2)
    return one, (other,)


def clients_and_server(random: Random) -> tuple[str, tuple[str, ...]]:
    return CLIENTS, (random.choice(SERVERS),)


def server_and_all(random: Random) -> tuple[str, tuple[str, ...]]:
    one = random.choice(SERVERS)
    return one, (*DATABASES, STORE, CLIENTS, *(other for other in SERVERS if other != one))


def let_store(mode: Mode) -> Act:
    async def act(stage: Stage, random: Random) -> None:
        await stage.proxy.set_mode(mode)
        await last(random, 2, 6)
        await stage.proxy.set_mode(Mode.PASS)

    return act


# A cut from the databases may outlast the lease. A fast restart of PostgreSQL keeps its unlogged tables.
FAULTS: dict[str, list[Fault]] = {
    "server": [
        *2 * [Fault("kills of a server", kill_server, Effect.LOSES)],
        Fault("kills of a server for longer than a lease", kill_server_for_long, Effect.LOSES),
        Fault("servers frozen for some seconds", freeze_server(1, LEASE_SECONDS / 2)),
        Fault(
            "servers frozen for longer than a lease",
            freeze_server(LEASE_SECONDS + 1, LEASE_SECONDS + 3),
            Effect.LOSES,
        ),
    ],
    "database": [
        Fault("fast restarts of PostgreSQL", end_database(signal.SIGINT), Effect.MAKES_STALE),
        Fault("crashes of PostgreSQL", end_database(signal.SIGQUIT), Effect.HIDES | Effect.MAKES_STALE),
        Fault("kills of PostgreSQL", end_database(signal.SIGKILL), Effect.HIDES | Effect.MAKES_STALE),
        Fault("failovers of PostgreSQL", fail_over, Effect.HIDES | Effect.MAKES_STALE, repair=attach_standby),
    ],
    "network": [
        Fault(
            "cuts between a server and PostgreSQL",
            on_ways(server_and_databases, 2, LEASE_SECONDS + 3),
            Effect.LOSES | Effect.MAKES_STALE,
        ),
        Fault(
            "servers cut off from everything",
            on_ways(server_and_all, 2, LEASE_SECONDS + 3),
            Effect.LOSES | Effect.MAKES_STALE,
        ),
        Fault(
            "slow networks between a server and PostgreSQL",
            on_ways(server_and_databases, 4, 8, only_slow=True),
            Effect.LOSES | Effect.MAKES_STALE,
        ),
        Fault("cuts between a server and the object store", on_ways(server_and_store, 2, 8)),
        Fault("cuts between two servers", on_ways(two_servers, 2, 8)),
        Fault("slow networks between two servers", on_ways(two_servers, 4, 8, only_slow=True)),
        Fault("cuts between clients and a server", on_ways(clients_and_server, 2, 8)),
        Fault("slow networks between clients and a server", on_ways(clients_and_server, 4, 8, only_slow=True)),
    ],
    "store": [
        Fault("object stores that answer 503", let_store(Mode.BUSY)),
        Fault("object stores that stall", let_store(Mode.STALL)),
        Fault("object stores whose answers are lost", let_store(Mode.LOSE_REPLIES)),
        Fault("object stores that refuse connections", let_store(Mode.REFUSE)),
    ],
}

_ORDER = (
    *("server", "database", "network", "server", "store", "server"),
    *("network", "server", "database", "server", "store", "server"),
)


def deck(rounds: int, random: Random) -> list[Fault]:
    """Return so many faults: of 12, 6 of servers, and 2 each of PostgreSQL, the network and the object store.

    No fault of a kind comes again before all others of this kind have come; one that is listed twice comes twice.
    """
    rest: dict[str, list[Fault]] = {kind: [] for kind in FAULTS}
    faults = []
    for index in range(rounds):
        kind = _ORDER[index % len(_ORDER)]
        if not rest[kind]:
            rest[kind] = random.sample(FAULTS[kind], len(FAULTS[kind]))
        faults.append(rest[kind].pop())
    return faults
