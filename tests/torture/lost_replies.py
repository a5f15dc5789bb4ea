"""Each upload makes one version, whatever replies are lost, and however often the server is killed.

Clients publish and store through a relay that cuts their connections: before, within and after the bytes of an
upload, and when the reply comes. The client repeats what was cut. Now and then the server itself is killed and started
again. Each upload has a tag, by which the versions of it are counted: archived ones over all lives of the server,
transient ones within one.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from cogment_model_registry import aio, errors
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.settings import MIB
from tests.processes import ServerProcess, server_process
from tests.torture.oracle import fork, going_on, in_round, payload
from tests.torture.proof import Figures, Proof

MODEL_IDS = ("a", "b", "c")
CLIENTS = 24
UPLOADS_PER_KILL = 500
RETRY_SECONDS = 240.0
"""Longer than a busy machine takes to start a server, and than the largest upload needs on such a network."""

TRANSIENT_MAX = 100_000
"""More versions than are published in one life of a server: what is evicted could not be counted."""


class Relay:
    """Passes bytes on between clients and the server of the moment, and cuts connections at random.

    Attributes:
        port: Where clients connect.
        target: The port of the server; 0 while there is none.
        cuts: How many connections it has cut.
    """

    def __init__(self, random: Random) -> None:
        self.port = 0
        self.target = 0
        self.cuts = 0
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        # Up, it is the place in the bytes of uploads that is random; down, the reply that is the last to arrive. About
        # as many connections are cut as uploads are made.
        up = int(2 ** self._random.uniform(8, 21)) if self._random.random() < 0.8 else 2**60
        down = self._random.randint(80, 420) if self._random.random() < 0.9 else 2**60
        try:
            copies = [
                asyncio.ensure_future(_copy(reader, server_writer, up)),
                asyncio.ensure_future(_copy(server_reader, writer, down)),
            ]
            done, pending = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for each in pending:
                each.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            self.cuts += any(not each.cancelled() and each.exception() is None and each.result() for each in done)
        finally:
            server_writer.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, limit_bytes: int) -> bool:
    """Pass bytes on up to a limit; return whether it was reached."""
    left_bytes = limit_bytes
    while data := await source.read(16384):
        target.write(data[:left_bytes])
        await target.drain()
        left_bytes -= len(data)
        if left_bytes <= 0:
            return True
    return False


@dataclass
class World:
    """What was uploaded.

    Attributes:
        random: The source of randomness.
        figures: What is counted.
        archived: The version of each upload that was acknowledged and archived, by its tag.
        transient: The same of those published in this life of the server.
        tags: How many uploads were begun.
    """

    random: Random
    figures: Figures
    archived: dict[str, tuple[str, int]] = field(default_factory=dict)
    transient: dict[str, tuple[str, int]] = field(default_factory=dict)
    tags: int = 0

    def next_tag(self) -> str:
        self.tags += 1
        return str(self.tags)


class Uploader:
    """Makes uploads by the client, one after the other."""

    def __init__(self, world: World, registry: aio.ModelRegistry) -> None:
        self._world = world
        self._registry = registry
        self._random = fork(world.random)

    async def upload(self) -> None:
        world, random = self._world, self._random
        model_id, tag, archived = random.choice(MODEL_IDS), world.next_tag(), random.random() < 0.6
        size_bytes = min(int(2 ** random.triangular(0, 21.7, 9)) - 1, 3 * MIB)
        call = self._registry.store if archived else self._registry.publish
        alias = f"alias-{random.randrange(4)}" if archived and random.random() < 0.1 else None
        life = world.transient
        info = await call(
            model_id,
            payload(tag, size_bytes),
            user_data={"tag": tag},
            metrics={"size": size_bytes},
            alias=alias,
            timeout=RETRY_SECONDS,
        )
        known = world.archived if archived else life
        if archived or life is world.transient:
            known[tag] = (model_id, info.number)
        world.figures.count("uploads acknowledged")


async def upload_all(world: World, registries: list[aio.ModelRegistry], count: int) -> None:
    """Make so many uploads, by all clients at once."""
    left = iter(range(count))

    async def upload_some(registry: aio.ModelRegistry) -> None:
        uploader = Uploader(world, registry)
        for _ in left:
            await uploader.upload()

    async with asyncio.TaskGroup() as group:
        for registry in registries:
            group.create_task(upload_some(registry))


async def check(world: World, port: int, *, transient: bool) -> None:
    """Compare the versions that a server has with the uploads that were acknowledged."""
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
        versions = [version for model_id in MODEL_IDS for version in await _versions(registry, model_id)]
        counts = Counter((version.info.user_data["tag"], version.info.archived) for version in versions)
        twice = [tag for (tag, _), count in counts.items() if count > 1]
        world.figures.count("duplicates", len(twice))
        assert not twice, f"uploads that made two versions: {twice[:10]}"
        found = {version.info.user_data["tag"]: (version.info.model_id, version.number) for version in versions}
        expected = {**world.archived, **(world.transient if transient else {})}
        lost = {tag: place for tag, place in expected.items() if found.get(tag) != place}
        world.figures.count("lost", len(lost))
        assert not lost, f"acknowledged uploads that are not there: {[*lost.items()][:10]}"
        for version in versions:
            assert version.metrics == {"size": version.info.data_size_bytes}, version
        for version in world.random.sample(versions, min(len(versions), 20)):
            data = payload(version.info.user_data["tag"], version.info.data_size_bytes)
            assert await registry.retrieve(version) == data


async def _versions(registry: aio.ModelRegistry, model_id: str) -> list[Version]:
    with contextlib.suppress(errors.NotFoundError):
        return await registry.find_versions(model_id)
    return []


class Servers:
    """The servers on one archive, one after the other.

    Attributes:
        now: The one that runs.
    """

    def __init__(self, stack: AsyncExitStack, archive: Path, relay: Relay) -> None:
        self._stack = stack
        self._archive = archive
        self._relay = relay
        self.now = self._started()

    def _started(self) -> ServerProcess:
        flags = [f"--cache_max_items={TRANSIENT_MAX}", f"--cache_max_bytes={2**30}"]
        server = self._stack.enter_context(server_process(self._archive, *flags))
        self._relay.target = server.port
        return server

    async def kill(self, world: World) -> None:
        """Kill the server at some moment, and start its successor."""
        await asyncio.sleep(world.random.uniform(0.2, 3))
        self.now.kill()
        world.transient = {}
        world.figures.count("kills")
        self.now = await asyncio.to_thread(self._started)

    def restart(self) -> None:
        """Stop the server, and start its successor."""
        assert self.now.stop() == 0
        self.now = self._started()


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    for name in ("uploads acknowledged", "connections cut", "kills", "duplicates", "lost"):
        figures.count(name, 0)
    world, relay = World(random, figures), Relay(random)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(relay.listening())
        endpoint = f"grpc://127.0.0.1:{relay.port}"
        clients = [aio.ModelRegistry(endpoint, retry_seconds=RETRY_SECONDS) for _ in range(CLIENTS)]
        for client in clients:
            await stack.enter_async_context(client)
        servers = Servers(stack, place / "archive", relay)
        for number, done in enumerate(range(0, rounds, UPLOADS_PER_KILL)):
            with in_round(number):
                async with going_on(upload_all(world, clients, min(rounds - done, UPLOADS_PER_KILL))):
                    await servers.kill(world)
                await check(world, servers.now.port, transient=True)
        servers.restart()
        await check(world, servers.now.port, transient=False)
        figures.count("connections cut", relay.cuts)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Make so many uploads, with a kill for every 500 of them."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="lost_replies",
    promise="An upload that is repeated since its reply was lost makes one version",
    attempt=attempt,
    unit="uploads",
    short=30,
    long=10_000,
    batch=10_000,
)
