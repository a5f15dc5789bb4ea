"""Limits per caller over real channels: what each caller gets, whatever others do, and however it connects."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.tools.tokens import add_grant
from cogment_model_registry.system import sealed_memory
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import local
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.pushback import PUSHBACK_KEY
from tests.client import SERVICE, Client, body, connected, header, metrics_text, upload
from tests.clock import Clock, stopped_clock
from tests.followers import Follower
from tests.server.test_local_socket import DATA, Local, content
from tests.waiting import PATIENCE_SECONDS, eventually

LIMITED = grpc.StatusCode.RESOURCE_EXHAUSTED
NAMES = ("greedy", "modest")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stopped_clock(monkeypatch)


@asynccontextmanager
async def limited(tmp_path: Path, **settings: Any) -> AsyncIterator[Server]:
    """A server with limits, on which `NAMES` have tokens, and others may do everything."""
    archive = tmp_path / "archive"
    for name in NAMES:
        add_grant(str(archive), Grant(name, "token", identity_of(f"cmr_{name}"), parse_scopes(["admin"]), 0))
    usual = {"cache_max_bytes": 64 * MIB, "grace_seconds": 0, "retention_seconds": 0, "local_socket": ""}
    async with serving(archive, Settings(**{**usual, "metrics_port": 0, **settings})) as server:
        yield server


class Named:
    """Calls of a caller with a token, over a connection of its own."""

    def __init__(self, client: Client, token: str) -> None:
        self.channel: Any = client.channel
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    async def version(self) -> grpc.aio.AioRpcError | None:
        """Return the error of a small call; None if it was answered."""
        try:
            await self.channel.unary_unary(f"/{SERVICE}/Version")(
                b"", metadata=self._metadata, timeout=PATIENCE_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            return error
        return None

    def uploading(self) -> Any:
        call: Any = self.channel.stream_unary(f"/{SERVICE}/CreateVersion")
        return call(metadata=self._metadata, timeout=PATIENCE_SECONDS)

    async def publish(self, model_id: str, data: bytes) -> None:
        call = self.uploading()
        for chunk in upload(model_id, data, chunk_size=MIB):
            await call.write(chunk.SerializeToString())
        await call.done_writing()
        await call

    async def retrieve(self, model_id: str) -> bytes:
        request = m.RetrieveVersionDataRequest(model_id=model_id, version_number=-1).SerializeToString()
        method: Any = self.channel.unary_stream(f"/{SERVICE}/RetrieveVersionData")
        replies = method(request, metadata=self._metadata, timeout=PATIENCE_SECONDS)
        return b"".join([m.RetrieveVersionDataReplyChunk.FromString(reply).data_chunk async for reply in replies])


@asynccontextmanager
async def callers(server: Server, *names: str) -> AsyncIterator[list[Named]]:
    """Callers with these names, or none if they are empty, each over a connection of its own."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.port)) for _ in names]
        yield [Named(client, name and f"cmr_{name}") for client, name in zip(clients, names, strict=True)]


async def answered(callers: Sequence[Named], calls: int) -> int:
    """Return how many calls are answered of those that callers make at the same time; the others are refused."""
    errors = await asyncio.gather(*(caller.version() for caller in callers for _ in range(calls)))
    assert {error.code() for error in errors if error} <= {LIMITED}
    return sum(error is None for error in errors)


def scraped(server: Server, name: str) -> float:
    """Return the value of a metric."""
    assert server.metrics_port
    lines = metrics_text(server.metrics_port).splitlines()
    [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(f"cogment_model_registry_{name} ")]
    return float(value)


# Calls.


@pytest.mark.parametrize("name", ["greedy", ""], ids=["named", "anonymous"])
async def test_a_caller_gets_its_rate_over_however_many_connections(tmp_path: Path, clock: Clock, name: str) -> None:
    async with limited(tmp_path, caller_calls_per_second=5) as server, callers(server, *[name] * 8) as connections:
        assert await answered(connections, 10) == 10
        for _ in range(3):
            clock.now += 1.0
            assert await answered(connections, 5) == 5
        clock.now += 100.0
        assert await answered(connections, 10) == 10


async def test_one_caller_over_its_limit_does_not_slow_another(tmp_path: Path, clock: Clock) -> None:
    async with (
        limited(tmp_path, caller_calls_per_second=50) as server,
        callers(server, "greedy", "greedy", "modest") as (first, second, modest),
    ):
        is_over = asyncio.Event()

        async def insist(caller: Named) -> int:
            count = 0
            while not is_over.is_set():
                count += await caller.version() is None
            return count

        insisting = [asyncio.create_task(insist(caller)) for caller in (first, second)]
        for _ in range(20):
            clock.now += 1.0
            assert [await modest.version() for _ in range(50)] == [None] * 50
        is_over.set()
        assert sum(await asyncio.gather(*insisting)) <= 100 + 20 * 50


async def test_a_refusal_says_when_to_come_back_in_the_words_of_grpc(tmp_path: Path, clock: Clock) -> None:
    async with limited(tmp_path, caller_calls_per_second=0.5) as server, callers(server, "greedy") as [greedy]:
        assert await greedy.version() is None
        clock.now += 0.5
        error = await greedy.version()
        assert error is not None
        assert error.code() is LIMITED
        assert error.details() == "greedy: over the limit of 0.5 calls per second; try again in 1.5 seconds"
        assert dict(error.trailing_metadata() or ())[PUSHBACK_KEY] == "1500"
        assert await asyncio.to_thread(scraped, server, 'limited_calls_total{limit="calls"}') == 1


def test_the_retries_of_a_stock_client_keep_to_it(tmp_path: Path) -> None:
    policy = {
        "maxAttempts": 2,
        "initialBackoff": "0.001s",
        "maxBackoff": "0.001s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})

    def call_often(port: int) -> None:
        options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/Version")
            for _ in range(20):
                call(b"", timeout=PATIENCE_SECONDS)  # no second attempt would be early enough without what it was told

    async def run() -> None:
        async with limited(tmp_path, caller_calls_per_second=8) as server:
            await asyncio.to_thread(call_often, server.port)

    asyncio.run(run())


async def test_calls_that_are_malformed_or_not_allowed_count_too(tmp_path: Path, clock: Clock) -> None:
    async with limited(tmp_path, caller_calls_per_second=5) as server, connected(server.port) as client:
        statuses = []
        for data in (b"\xff" * 10, m.RetrieveVersionInfosRequest(model_id="none").SerializeToString()) * 10:
            try:
                await client.unary("RetrieveVersionInfos", data, m.RetrieveVersionInfosReply)
            except grpc.aio.AioRpcError as error:
                statuses.append(error.code())
        assert statuses == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND] * 5 + [LIMITED] * 10


async def test_health_and_reflection_are_not_limited(tmp_path: Path, clock: Clock) -> None:
    async with limited(tmp_path, caller_calls_per_second=1) as server, connected(server.port) as client:
        check: Any = client.channel.unary_unary("/grpc.health.v1.Health/Check")
        for _ in range(50):
            reply = health_pb2.HealthCheckResponse.FromString(await check(b"", timeout=PATIENCE_SECONDS))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        await client.version()


# Logins.


async def test_tokens_that_are_not_valid_count_for_the_host_and_valid_ones_go_on(tmp_path: Path, clock: Clock) -> None:
    async with (
        limited(tmp_path, caller_calls_per_second=2) as server,
        callers(server, "greedy", "forged", "") as (valid, forged, nobody),
    ):
        statuses = [error.code() for _ in range(6) if (error := await forged.version())]
        assert statuses == [grpc.StatusCode.UNAUTHENTICATED] * 4 + [LIMITED] * 2
        assert await nobody.version() is not None
        assert await answered([valid], 10) == 4
        assert await asyncio.to_thread(scraped, server, 'limited_calls_total{limit="logins"}') == 2
        clock.now += 0.5
        error = await forged.version()
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


# Uploads.


async def test_uploads_that_end_or_are_cut_off_make_room(tmp_path: Path, clock: Clock) -> None:
    async with (
        limited(tmp_path, caller_uploads_max=2) as server,
        callers(server, "greedy", "modest") as (greedy, modest),
    ):
        await Client(greedy.channel).create_model("m")

        async def there_are(count: int) -> None:
            async def are_as_many() -> bool:
                return (await Client(modest.channel).status("uploads"))["uploads"] == str(count)

            await eventually(are_as_many)

        async def begun(count: int) -> Any:
            """Return an upload that waits for more bytes, once there are so many."""
            call = greedy.uploading()
            await call.write(header("m", 10).SerializeToString())
            await call.write(body(b"12345").SerializeToString())
            await there_are(count)
            return call

        for _ in range(3):
            first, second = await begun(1), await begun(2)
            refused = greedy.uploading()
            assert await refused.code() is LIMITED
            assert "2 uploads under way already" in (await refused.details() or "")
            await modest.publish("m", b"of another caller")
            await first.write(body(b"67890").SerializeToString())
            await first.done_writing()
            await first
            third = await begun(2)
            for call in (second, third):
                call.cancel()
            await there_are(0)


# Bytes.


async def test_an_upload_and_a_retrieval_are_slowed_down_to_the_rate_and_others_are_not(tmp_path: Path) -> None:
    rate, burst, chunk = 8 * MIB, 16 * MIB, 2 * MIB
    data = os.urandom(20 * MIB)
    async with (
        limited(tmp_path, caller_bytes_per_second=rate) as server,
        callers(server, "greedy", "modest") as (greedy, modest),
    ):
        await Client(greedy.channel).create_model("m")
        began = time.monotonic()
        transfer = asyncio.create_task(greedy.publish("m", data))
        assert await answered([modest], 100) == 100
        await transfer
        # Only a lower bound: a busy machine takes longer.
        assert time.monotonic() - began >= (len(data) - burst - chunk) / rate
        assert await greedy.version() is None
        assert await greedy.retrieve("m") == data
        assert time.monotonic() - began >= (2 * len(data) - burst - chunk) / rate
        assert await asyncio.to_thread(scraped, server, "slowed_seconds_total") > 0


async def test_slowed_uploads_hold_up_no_other_upload(tmp_path: Path, clock: Clock) -> None:
    async with (
        limited(tmp_path, caller_bytes_per_second=MIB, cache_max_bytes=128 * MIB) as server,  # room for all
        callers(server, "greedy", "modest") as (greedy, modest),
    ):
        await Client(greedy.channel).create_model("m")
        stuck = [asyncio.create_task(greedy.publish("m", bytes(8 * MIB))) for _ in range(10)]

        async def is_stuck() -> bool:
            return int((await Client(modest.channel).status("transient_bytes"))["transient_bytes"]) >= 3 * MIB

        await eventually(is_stuck)
        await modest.publish("m", b"1" * 3 * MIB)
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_watcher_over_its_bytes_skips_versions_and_gets_the_latest(tmp_path: Path, clock: Clock) -> None:
    async with (
        limited(tmp_path, caller_bytes_per_second=4 * MIB) as server,  # and so a burst of 8 MiB
        connected(server.port) as client,
        callers(server, "modest") as [publisher],
    ):
        lifecycle = Client(client.channel)
        await lifecycle.create_model("m")
        followers = [Follower(lifecycle, "m", inline=2 * MIB, in_one_reply=each) for each in (False, True)]
        received = [asyncio.create_task(numbers_until(follower, 40)) for follower in followers]
        for _ in range(40):
            clock.now += 0.26  # what one publisher needs for a version, but not what two followers do
            await publisher.publish("m", os.urandom(MIB))
        clock.now += 1000.0
        found = await asyncio.gather(*received)
        for numbers in found:
            assert numbers == sorted({*numbers})
            assert numbers[-1] == 40
        assert sum(map(len, found)) <= 8 + 40 * 0.26 * 4 + 8 + 2


async def numbers_until(follower: Follower, last: int) -> list[int]:
    """Return the numbers of which a follower is told, up to one."""
    numbers: list[int] = []
    while not numbers or numbers[-1] < last:
        event = await follower.next()
        if isinstance(event, Version):
            numbers.append(event.number)
    return numbers


# The local socket.


@pytest.mark.skipif(not (local.is_supported() and sealed_memory.is_supported()), reason="no local socket here")
async def test_the_local_socket_is_no_way_around(tmp_path: Path, clock: Clock) -> None:
    socket = str(tmp_path / "s")
    async with (
        limited(tmp_path, caller_calls_per_second=5, local_socket=socket) as server,
        connected(server.port) as client,
    ):
        await client.create_model("m")
        await client.publish("m", DATA)
        peer = await Local.of(client)
        for _ in range(7):  # of the burst of 10, as many are left
            descriptor = await peer.read()
            assert descriptor is not None
            assert content(descriptor) == DATA
        with pytest.raises(local.RefusedError, match="over the limit of 5 calls per second"):
            await peer.read()
        clock.now += 0.2
        await client.version()
