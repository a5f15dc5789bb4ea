"""A watch of every version is exact, however often it is interrupted: nothing is sent twice or missing without a gap.

Several watchers cancel their calls at random moments, also in the middle of a version's bytes, and resume with the last
token, while versions of both tiers are published, and while the server is killed, or stopped, and started again.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import CaughtUp, Gap
from tests.client import Client, connected, upload
from tests.followers import Follower
from tests.processes import server_process
from tests.torture.oracle import fork, payload, unharmed_server
from tests.torture.proof import Figures, Proof

MODELS = ("m", "n")
WATCHERS = 8
INLINE_BYTES = 200_000

ROUNDS_IN_A_LIFE = 500
"""The number of reconnections between two restarts: 20 restarts for 10,000 reconnections."""


class World:
    """The published versions.

    Attributes:
        sizes: The size of each version that may exist, by model and number; all three determine its bytes.
        archived: The acknowledged archived versions.
        lives: The run of the server in which a transient version was published.
        life: The current run.
    """

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, int], int] = {}
        self.archived: set[tuple[str, int]] = set()
        self.lives: dict[tuple[str, int], int] = {}
        self.life = 0

    async def publish(self, client: Client, random: Random, figures: Figures) -> None:
        """Publish until cancelled, or until the server is gone."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                model_id, archived = random.choice(MODELS), random.random() < 0.3
                data = payload(f"{random.random()}", random.choice((0, 10, 1000, INLINE_BYTES)))
                info = await client.create_version(upload(model_id, data, archived))
                key = model_id, info.version_number
                self.sizes[key] = len(data)
                self.lives[key] = self.life
                if archived:
                    self.archived.add(key)
                figures.count("versions")


class Watcher:
    """A watcher of every version.

    Args:
        world: The published versions.
        model_ids: The watched models.
        random: Chooses the moments.
        figures: Counts.
    """

    def __init__(self, world: World, model_ids: tuple[str, ...], random: Random, figures: Figures) -> None:
        self._world = world
        self._model_ids = model_ids
        self._random = random
        self._figures = figures
        self._token = ""
        self._received: dict[str, int] = {}

    async def watch(self, client: Client, is_over: Callable[[], bool], on_reconnect: Callable[[], None]) -> None:
        """Watch, and reconnect at random moments, until the run is over or the server is gone."""
        with contextlib.suppress(grpc.aio.AioRpcError, ConnectionError):
            while not is_over():
                follower = self._follower(client)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._random.expovariate(20)):
                        while True:
                            await self._take(follower)
                follower.call.cancel()
                self._token = follower.token
                on_reconnect()

    async def catch_up(self, client: Client) -> None:
        """Watch until caught up, and expect that every existing version was received."""
        follower = self._follower(client)
        while not await self._take(follower):
            pass
        self._token = follower.token
        await follower.cancel()
        for model_id, number in self._world.archived:
            assert self._received[model_id] >= number

    def _follower(self, client: Client) -> Follower:
        return Follower(
            client,
            *self._model_ids,
            every=True,
            token=self._token,
            inline=INLINE_BYTES,
            in_one_reply=self._random.random() < 0.5,
        )

    async def _take(self, follower: Follower) -> bool:
        """Handle the next event; return whether the watcher has caught up."""
        event = await follower.next()
        if isinstance(event, Version):
            self._advance(event.model_id, event.number, event.number)
            assert len(follower.data or b"") == event.data_size_bytes
            self._figures.count("versions received")
        elif isinstance(event, Gap):
            self._advance(event.model_id, event.first_number, event.last_number)
            for number in range(event.first_number, event.last_number + 1):
                key = event.model_id, number
                assert key not in self._world.archived, f"{key} was left out"
                assert self._world.lives.get(key) != self._world.life, f"{key} was left out"
            self._figures.count("gaps")
        elif isinstance(event, ModelSummary):
            self._received.setdefault(event.model_id, 0)
        return isinstance(event, CaughtUp)

    def _advance(self, model_id: str, first: int, last: int) -> None:
        before = self._received[model_id]
        assert first == before + 1, f"{model_id}: {first} to {last} came after {before}"
        self._received[model_id] = last


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    for name in ("versions received twice", "versions missing without a gap"):
        figures.count(name, 0)
    world = World()
    watchers = [Watcher(world, MODELS if index % 2 else (), fork(random), figures) for index in range(WATCHERS)]
    done = 0

    def note() -> None:
        nonlocal done
        done += 1
        figures.count("reconnections")

    def has_reached(end: int) -> bool:
        return done >= end

    restarts = max(2, rounds // ROUNDS_IN_A_LIFE)
    for life in range(1, restarts + 1):
        world.life = life
        is_killed = life < restarts and random.random() < 0.7
        start = server_process if is_killed else unharmed_server
        with start(place / "archive", "--log_format=json", "--cache_max_items=100000") as server:
            async with connected(server.port) as client:
                for model_id in MODELS:
                    await client.create_model(model_id)
                publishing = asyncio.ensure_future(world.publish(client, fork(random), figures))
                is_over = functools.partial(has_reached, rounds * life // restarts)
                await asyncio.gather(*(watcher.watch(client, is_over, note) for watcher in watchers))
                if is_killed:
                    await asyncio.to_thread(server.kill)
                publishing.cancel()
                await asyncio.wait([publishing])
                if life == restarts:
                    for watcher in watchers:
                        await watcher.catch_up(client)
        figures.count("restarts")


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Reconnect a number of times."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="reconnects",
    promise="A watch of every version sends nothing twice, and skips nothing without a gap, whatever happens",
    attempt=attempt,
    unit="reconnections",
    short=80,
    long=10_000,
    batch=10_000,
)
