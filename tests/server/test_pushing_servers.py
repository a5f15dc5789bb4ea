"""Several servers that push what one of them received: it sends each version once to each other server.

Each server has a catalog of its own, into which the test enters what a shared one would say.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import CaughtUp
from cogment_model_registry.records.sizes import KIB, MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Catalog
from cogment_model_registry.server import shared_bytes
from cogment_model_registry.server.backends import Backends, open_backends
from cogment_model_registry.server.composition import running
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.server.peers import Peers, PeerToken
from cogment_model_registry.server.relays import RelayingStore
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.wire import convert, lifecycle
from cogment_model_registry.wire.tls import TlsFiles
from tests.client import Client, connected, metrics_text, refused
from tests.followers import Follower
from tests.server.test_metrics import Scrape
from tests.waiting import PATIENCE_SECONDS, eventually

SERVERS = 4
FOLLOWERS = 16


@dataclass
class SharingServer:
    """One of the servers."""

    port: int
    metrics_port: int
    catalog: Catalog
    client: Client

    async def show(self, info: VersionInfo) -> None:
        """Let its catalog have a version that another server holds."""
        async with self.catalog.publishing(await self.catalog.find(info.model_id)) as slot:
            assert slot.number == info.number
            slot.show(info)

    async def scrape(self) -> Scrape:
        return Scrape(await asyncio.to_thread(metrics_text, self.metrics_port))


@asynccontextmanager
async def sharing(place: Path, holders: Sequence[str]) -> AsyncIterator[SharingServer]:
    """Return a context manager with a server that relays from those that hold versions."""
    catalogs: list[Catalog] = []

    async def locate(_info: VersionInfo) -> Sequence[str]:
        return holders

    async def announce(_info: VersionInfo) -> None:
        """Do nothing: there is no shared catalog."""

    @asynccontextmanager
    async def relaying(settings: Settings, metrics: Metrics) -> AsyncIterator[Backends]:
        peers = Peers(PeerToken(""), TlsFiles(), silent_seconds=PATIENCE_SECONDS)
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as executor:
            local = MemoryTransientStore(settings.cache_max_items, settings.cache_max_bytes, executor)
            store = RelayingStore(local, locate, peers.open_stream, announce, metrics.relays)
            async with open_backends(settings, metrics) as backends, peers, store:
                catalogs.append(backends.catalog)
                yield replace(backends, transient=store)

    settings = Settings(
        port=0,
        host="127.0.0.1",
        metrics_port=0,
        archive_dir=str(place),
        cache_max_bytes=64 * MIB,
        grace_seconds=0,
        local_socket="",
        retention_seconds=0,
    )
    async with running(settings, relaying) as server, connected(server.port) as client:
        yield SharingServer(server.port, server.metrics_port or 0, catalogs[0], client)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[SharingServer]]:
    """The servers; the first one holds all versions."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(sharing(tmp_path / "0", []))
        holders = [f"grpc://127.0.0.1:{first.port}"]
        others = [
            await stack.enter_async_context(sharing(tmp_path / str(index), holders)) for index in range(1, SERVERS)
        ]
        for server in (first, *others):
            await server.client.create_model("m")
        yield [first, *others]


async def publish(servers: Sequence[SharingServer], data: bytes) -> VersionInfo:
    """Publish a version on the first server, which all others then list."""
    info = convert.version_from_message(await servers[0].client.publish("m", data))
    for server in servers[1:]:
        await server.show(info)
    return info


async def has_sent(server: SharingServer, reads: int) -> None:
    """Wait until other servers have read so often from a server."""

    async def is_so() -> bool:
        return (await server.scrape())("calls_total", method="ReadVersion", status="OK") == reads

    await eventually(is_so)


@pytest.mark.parametrize("is_shared", [True, False])
async def test_a_publish_to_many_followers_is_sent_once_to_each_other_server(
    servers: list[SharingServer], monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    if not is_shared:  # as for versions that are too large for that
        monkeypatch.setattr(shared_bytes, "_KEPT_MAX_BYTES", 0)
    async with AsyncExitStack() as stack:
        followers = []
        for index in range(FOLLOWERS):
            client = await stack.enter_async_context(connected(servers[index % SERVERS].port))
            followers.append(Follower(client, "m", inline=8 * MIB))
        for follower in followers:
            while not isinstance(await follower.next(), CaughtUp):
                pass
        sizes = (1000, 300 * KIB, 3 * MIB)
        for number, size in enumerate(sizes, 1):
            data = Random(size).randbytes(size)
            info = await publish(servers, data)
            events = await asyncio.gather(*(follower.next() for follower in followers))
            assert [event.number for event in events if isinstance(event, Version)] == [info.number] * FOLLOWERS
            assert {follower.data for follower in followers} == {data}
            await has_sent(servers[0], number * (SERVERS - 1))
        for follower in followers:
            follower.call.cancel()
    for server in servers[1:]:
        scrape = await server.scrape()
        assert scrape("relays_begun_total") == len(sizes)
        assert scrape("relayed_bytes_total") == sum(sizes)
        assert scrape("relays_failed_total") == 0


async def test_a_server_that_another_one_asks_relays_nothing(servers: list[SharingServer]) -> None:
    info = await publish(servers, b"data")
    asked = servers[1].client

    async def ask(metadata: Sequence[tuple[str, str]]) -> list[Any]:
        call: Any = asked.channel.unary_stream(f"/{lifecycle.SERVICE_NAME}/ReadVersion")
        request = lifecycle.read_request("m", info.number, 0, None, "").SerializeToString()
        return [lifecycle.read_reply(message) async for message in call(request, metadata=metadata)]

    with refused(grpc.StatusCode.NOT_FOUND):
        await ask(lifecycle.FOR_A_PEER)
    assert (await servers[1].scrape())("relays_begun_total") == 0
    assert bytes((await ask(()))[1]) == b"data"
    assert bytes((await ask(lifecycle.FOR_A_PEER))[1]) == b"data"
    assert (await servers[1].scrape())("relays_begun_total") == 1


async def test_stock_calls_and_promotions_work_on_every_server(servers: list[SharingServer]) -> None:
    info = await publish(servers, b"data")
    assert [await server.client.data("m") for server in servers] == [b"data"] * SERVERS
    promoting = Client(servers[2].client.channel, lifecycle.SERVICE_NAME)
    request = lifecycle.PromoteVersionRequest(version=lifecycle.version_ref("m", info.number))
    await promoting.unary("PromoteVersion", request, lifecycle.VersionMessage)
    assert await servers[2].client.data("m", info.number) == b"data"
    await has_sent(servers[0], SERVERS - 1)
