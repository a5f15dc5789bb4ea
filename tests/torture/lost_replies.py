"""Each upload creates one version, whichever replies are lost, and however often the server is killed.

Clients publish and store through relays that cut their connections: within the bytes of an upload, and most often when
the reply arrives. The client repeats each cut upload. Now and then the server itself is killed and started again.
Each upload has a tag, by which its versions are counted: archived ones over all runs of the server, transient ones
within one run.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
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
"""Longer than a busy machine takes to start a server, and longer than the largest upload takes on such a network."""

NEVER = 2**60

TRANSIENT_MAX = 100_000
"""More versions than are published in one run of a server: evicted versions could not be counted."""


class Relay:
    """Passes bytes on between a client and the current server, and cuts its connection during each upload.

    Attributes:
        port: The port that the client connects to.
        target: The port of the server.
        cuts: The number of connections that it has cut.
    """

    def __init__(self, random: Random) -> None:
        self.port = 0
        self.target = 0
        self.cuts = 0
        self._random = random
        self._up_bytes = self._down_reads = NEVER
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

    def cut_soon(self, size_bytes: int) -> None:
        """Cut the connection once, within the next bytes of the client, or at the reply to them."""
        if self._random.random() < 0.3:
            self._up_bytes = self._random.randint(1, size_bytes + 500)
        else:  # bytes of the server are lost: most often at once, which is the reply to a small upload
            self._down_reads = self._random.choices((1, 2, 3), (6, 3, 1))[0]

    def cut_no_more(self) -> None:
        """Let all bytes pass."""
        self._up_bytes = self._down_reads = NEVER

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
        try:
            copies = [
                asyncio.ensure_future(_copy(reader, server_writer, self._let_up)),
                asyncio.ensure_future(_copy(server_reader, writer, self._let_down)),
            ]
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for each in copies:
                each.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
        finally:
            server_writer.transport.abort()

    def _let_up(self, data: bytes) -> bytes:
        passed = data[: self._up_bytes]
        self._up_bytes -= len(data)
        if self._up_bytes <= 0:
            self._note_cut()
        return passed

    def _let_down(self, data: bytes) -> bytes:
        self._down_reads -= 1
        if self._down_reads > 0:
            return data
        self._note_cut()
        return b""

    def _note_cut(self) -> None:
        self.cuts += 1
        self.cut_no_more()
        if self._random.random() < 0.2:  # the next attempt too
            self.cut_soon(1000)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, pass_on: Callable[[bytes], bytes]) -> None:
    """Pass bytes on until the connection is cut."""
    while data := await source.read(16384):
        passed = pass_on(data)
        target.write(passed)
        await target.drain()
        if len(passed) < len(data):
            return


@dataclass
class World:
    """The uploads.

    Attributes:
        random: The source of randomness.
        figures: The counts.
        archived: The version of each acknowledged archived upload, by its tag.
        transient: The same for versions published in this run of the server.
        tags: The number of uploads that began.
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
    """Uploads through one client, one upload after the other, each with a cut."""

    def __init__(self, world: World, registry: aio.ModelRegistry, relay: Relay) -> None:
        self._world = world
        self._registry = registry
        self._relay = relay
        self._random = fork(world.random)

    async def upload(self) -> None:
        world, random = self._world, self._random
        model_id, tag, archived = random.choice(MODEL_IDS), world.next_tag(), random.random() < 0.6
        size_bytes = min(int(2 ** random.triangular(0, 21.7, 9)) - 1, 3 * MIB)
        call = self._registry.store if archived else self._registry.publish
        alias = f"alias-{random.randrange(4)}" if archived and random.random() < 0.1 else None
        life = world.transient
        cuts = self._relay.cuts
        self._relay.cut_soon(size_bytes)
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
        world.figures.count("of them cut", self._relay.cuts > cuts)


async def upload_all(uploaders: list[Uploader], count: int) -> None:
    """Make a number of uploads, by all clients concurrently."""
    left = iter(range(count))

    async def upload_some(uploader: Uploader) -> None:
        for _ in left:
            await uploader.upload()

    async with asyncio.TaskGroup() as group:
        for uploader in uploaders:
            group.create_task(upload_some(uploader))


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
    """The successive servers on one archive.

    Attributes:
        now: The running server.
    """

    def __init__(self, stack: AsyncExitStack, archive: Path, relays: list[Relay]) -> None:
        self._stack = stack
        self._archive = archive
        self._relays = relays
        self.now = self._started()

    def _started(self) -> ServerProcess:
        flags = [f"--cache_max_items={TRANSIENT_MAX}", f"--cache_max_bytes={2**30}"]
        server = self._stack.enter_context(server_process(self._archive, "--local_socket=off", *flags))
        for relay in self._relays:
            relay.target = server.port
        return server

    async def kill(self, world: World) -> None:
        """Kill the server at a random moment, and start its successor."""
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
    for name in ("uploads acknowledged", "of them cut", "connections cut", "kills", "duplicates", "lost"):
        figures.count(name, 0)
    world = World(random, figures)
    async with AsyncExitStack() as stack:
        relays = [Relay(fork(random)) for _ in range(CLIENTS)]
        uploaders = []
        for relay in relays:
            await stack.enter_async_context(relay.listening())
            client = aio.ModelRegistry(f"grpc://127.0.0.1:{relay.port}", retry_seconds=RETRY_SECONDS)
            uploaders.append(Uploader(world, await stack.enter_async_context(client), relay))
        servers = Servers(stack, place / "archive", relays)
        for number, done in enumerate(range(0, rounds, UPLOADS_PER_KILL)):
            with in_round(number):
                async with going_on(upload_all(uploaders, min(rounds - done, UPLOADS_PER_KILL))):
                    await servers.kill(world)
                await check(world, servers.now.port, transient=True)
        servers.restart()
        await check(world, servers.now.port, transient=False)
        figures.count("connections cut", sum(relay.cuts for relay in relays))


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Make a number of uploads, with a kill for every 500 of them."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="lost_replies",
    promise="An upload that is repeated because its reply was lost creates one version",
    attempt=attempt,
    unit="uploads",
    short=40,
    long=10_000,
    batch=10_000,
)
