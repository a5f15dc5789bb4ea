"""No wake-up is lost: each watcher receives the latest version, however subscribing and publishing interleave.

In a race, watchers subscribe and versions are published at about the same time, in random order. After some races, the
model is deleted and created again while it is watched. Several races run concurrently, and one model without races is
watched throughout.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, upload
from tests.torture.oracle import NOT_FOUND, fork, going_on, in_round, tag_of, together
from tests.torture.proof import Figures, Proof

DEADLINE_SECONDS = 10
SPREAD_SECONDS = 0.01
"""The period in which racing calls begin: about as long as a publish takes under this load."""

LANES = ("m", "m-v000001", "m.yaml", "M")
"""The number of models with concurrent races."""


class Track:
    """A model with successive races.

    Attributes:
        versions: The versions that were acknowledged in all lives of the model, by tag.
        latest: The latest acknowledged version of its current life; None if it has none.
    """

    def __init__(self, client: Client, model_id: str, figures: Figures) -> None:
        self.model_id = model_id
        self.versions: dict[str, m.ModelVersionInfo] = {}
        self.latest: m.ModelVersionInfo | None = None
        self.figures = figures
        self._client = client
        self._life = 0
        self._sent = 0

    async def create(self) -> None:
        self._life += 1
        self.latest = None
        await self._client.create_model(self.model_id)

    async def delete(self) -> None:
        await self._client.delete_model(self.model_id)
        self.figures.count("deletions")

    async def publish(self, archived: bool = False, filler: str = "") -> None:
        self._sent += 1
        tag = f"{self.model_id} {self._life} {self._sent}"
        chunks = upload(self.model_id, b"", archived, user_data={"tag": tag, "filler": filler})
        info = await self._client.create_version(chunks)
        self.versions[tag] = info
        if self.latest is None or info.version_number > self.latest.version_number:
            self.latest = info
        self.figures.count("publishes")


class Watcher:
    """Watches a track from now on, and checks the versions that it receives.

    Args:
        client: The client for the watch.
        track: The model to watch.
        oldest: The lowest number that it may receive.
    """

    def __init__(self, client: Client, track: Track, oldest: int = 0) -> None:
        self._track = track
        self._oldest = oldest
        self._received: list[m.ModelVersionInfo] = []
        self._news = asyncio.Event()
        self._watch = client.watching(track.model_id)
        self._reading = asyncio.ensure_future(self._read())
        self._reading.add_done_callback(lambda _: self._news.set())
        track.figures.count("watches")

    def __str__(self) -> str:
        received = [(info.version_number, tag_of(info)) for info in self._received]
        return f"a watcher of {self._track.model_id} that received {received}"

    async def _read(self) -> grpc.StatusCode:
        """Record the received versions, and return the status of the watch."""
        try:
            async for message in self._watch:
                self._take(m.VersionUpdateReply.FromString(message).version_info)
                self._news.set()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def _take(self, info: m.ModelVersionInfo) -> None:
        number = info.version_number
        assert number >= self._oldest, f"{self} received {number}, but {self._oldest} was acknowledged before"
        assert not self._received or number > self._received[-1].version_number, f"{self} then received {number}"
        self._received.append(info)

    async def until_latest(self, latest: m.ModelVersionInfo | None) -> None:
        """Wait until it has received the latest version, or ends."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while latest and not self._reading.done() and latest not in self._received[-1:]:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{self} did not receive {latest}") from None
        if self._reading.done():
            code = await self._reading
            assert code == NOT_FOUND, f"{self} ended with {code}"

    def check_alive(self) -> None:
        assert not self._reading.done(), f"{self} has ended"

    async def until_deleted(self) -> None:
        """Wait until it ends because its model is deleted."""
        done, _ = await asyncio.wait([self._reading], timeout=DEADLINE_SECONDS)
        assert done, f"{self} did not end although its model was deleted"
        await self.until_latest(None)

    def check_received(self) -> None:
        """Check that it received only published versions, all of the same life of the model."""
        for info in self._received:
            published = self._track.versions.get(tag_of(info))
            assert info == published, f"{self} received {info}, but {published} was acknowledged"
        lives = {tag_of(info).split(" ")[1] for info in self._received}
        assert len(lives) <= 1, f"{self} saw the lives {lives}"

    async def aclose(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])


@asynccontextmanager
async def closing_watchers() -> AsyncIterator[list[Watcher]]:
    """Return a context manager for a list of watchers, which closes them at its end."""
    watchers: list[Watcher] = []
    try:
        yield watchers
    finally:
        for watcher in watchers:
            await watcher.aclose()


class Lane:
    """Runs races on a track.

    Args:
        clients: The clients for watches and publishes.
        track: The model.
        random: Chooses when each call begins.
    """

    def __init__(self, clients: Sequence[Client], track: Track, random: Random) -> None:
        self._clients = clients
        self._track = track
        self._random = random

    async def race(self) -> None:
        """Start watchers and publishers at about the same time; sometimes delete the model afterwards."""
        async with closing_watchers() as watchers:
            works = [self._watch(watchers) for _ in range(self._random.randint(1, 4))]
            await together(*works, *[self._publish() for _ in range(self._random.randint(1, 4))])
            await self._check_all_received(watchers)
            if self._random.random() < 0.2:
                await self._renew(watchers)

    async def _renew(self, watchers: list[Watcher]) -> None:
        """Delete the model and create it again while it is watched, and while more watchers subscribe."""
        async with closing_watchers() as late, closing_watchers() as new:
            straddling = [self._watch(late, is_certain=False) for _ in range(self._random.randint(1, 3))]
            await together(self._delete_and_create(), *straddling)
            for watcher in watchers:
                await watcher.until_deleted()
            for watcher in late:
                await watcher.until_latest(self._track.latest)
            await self._watch(new)
            await self._check_all_received(new)
            for watcher in [*watchers, *late]:
                watcher.check_received()

    async def _check_all_received(self, watchers: list[Watcher]) -> None:
        for watcher in watchers:
            await watcher.until_latest(self._track.latest)
            watcher.check_alive()
            watcher.check_received()

    async def _watch(self, watchers: list[Watcher], *, is_certain: bool = True) -> None:
        await self._phase()
        known = self._track.latest if is_certain else None
        watchers.append(Watcher(self._random.choice(self._clients), self._track, known.version_number if known else 0))

    async def _publish(self) -> None:
        await self._phase()
        filler = "x" * self._random.choice([0, 0, 0, 40_000])  # a longer reply is overtaken by the next version
        await self._track.publish(self._random.random() < 0.1, filler)

    async def _delete_and_create(self) -> None:
        await self._phase()
        await self._track.delete()
        await self._track.create()
        await self._publish()

    async def _phase(self) -> None:
        """Wait a random time, or not at all."""
        await asyncio.sleep(self._random.choice([0, self._random.uniform(0, SPREAD_SECONDS)]))


async def stand_by(client: Client, track: Track, is_over: asyncio.Event) -> None:
    """Watch a model without races, and receive each of its versions, until all races are over."""
    while not is_over.is_set():
        async with closing_watchers() as watchers:
            watchers.append(Watcher(client, track, track.latest.version_number if track.latest else 0))
            for _ in range(20):
                await track.publish()
                await watchers[0].until_latest(track.latest)
                watchers[0].check_alive()
            watchers[0].check_received()


async def hold_races(lane: Lane, track: Track, numbers: Sequence[int]) -> None:
    await track.create()
    for number in numbers:
        with in_round(number):
            await lane.race()
        track.figures.count("races")


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    figures.count("lost wake-ups", 0)
    async with serving(place / "archive") as server, connected(server.port) as first, connected(server.port) as second:
        bystander = Track(first, "bystander", figures)
        await bystander.create()
        works = []
        for index, model_id in enumerate(LANES):
            track = Track(first, model_id, figures)
            lane = Lane([first, second], track, fork(random))
            works.append(hold_races(lane, track, range(index, rounds, len(LANES))))
        is_over = asyncio.Event()
        async with going_on(stand_by(second, bystander, is_over)):
            await together(*works)
            is_over.set()


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Run a number of races."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="wake_ups",
    promise="No wake-up is lost: every watcher is notified of the latest version, and of the deletion of its model",
    attempt=attempt,
    unit="races",
    short=60,
    long=10_000,
    batch=1_000,
)
