"""Connections: vanished peers are detected, and the resources of one peer are bounded."""

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cogment_model_registry.settings import KIB, MIB, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header, next_version, refused, upload
from tests.processes import clean_environment, server_process
from tests.server.under_way import under_way
from tests.torture.http2_abuse import Peer
from tests.waiting import PATIENCE_SECONDS, eventually

EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
NOTICED_SECONDS = 10
"""A generous bound for a keepalive of one second that waits one second for the answer."""

QUICK_KEEPALIVE = ("--keepalive_seconds=1", "--keepalive_timeout_seconds=1")
EVERYTHING = ("watchers", "uploads", "retrievals")
DATA = bytes(48 * MIB)  # more than all buffers on the path hold

CLIENT_PROGRAM = """
import asyncio, sys
from cogment_model_registry.wire import messages as m
from tests.client import body, connected, header
from tests.waiting import eventually

async def main(port, *doings):
    async with connected(int(port)) as client:
        calls = []
        if "watchers" in doings:
            calls.append(client.watching("m"))
            await calls[-1].read()
        if "uploads" in doings:
            calls.append(client.uploading())
            await calls[-1].write(header("m", 2 * 2**20).SerializeToString())
            await calls[-1].write(body(bytes(2**20)).SerializeToString())
        if "retrievals" in doings:
            request = m.RetrieveVersionDataRequest(model_id="m", version_number=1)
            calls.append(client.streamed("RetrieveVersionData", request))
            await calls[-1].read()
        print("connected", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def client_process(client: Client, port: int, *doings: str) -> AsyncIterator[Process]:
    """Return a context manager for a process that does something with `m`, after the server counts it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT_PROGRAM, str(port), *doings),
        stdout=subprocess.PIPE,
        env={**clean_environment(), "PYTHONPATH": "."},
    )
    try:
        assert process.stdout
        assert await process.stdout.readline() == b"connected\n"
        await under_way(client, **dict.fromkeys(doings, 1))
        yield process
    finally:
        if process.returncode is None:
            process.kill()  # even if the process is stopped
        await process.wait()


# Vanished peers.


async def detected(client: Client, *doings: str) -> None:
    """Wait until the server counts no call of a peer any more."""
    async with asyncio.timeout(NOTICED_SECONDS):
        await under_way(client, **dict.fromkeys(doings, 0))


@pytest.mark.parametrize(
    ("archived", "doings"),
    [(False, ("watchers",)), (False, ("uploads",)), (False, ("retrievals",)), (True, EVERYTHING)],
    ids=["watch", "upload", "retrieval", "all at once"],
)
async def test_silent_peer_is_detected_and_its_resources_are_freed(
    tmp_path: Path, archived: bool, doings: tuple[str, ...]
) -> None:
    with server_process(tmp_path, *QUICK_KEEPALIVE, "--upload_idle_seconds=600") as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            await client.create_version(upload("m", DATA, archived))
            kept = await client.status("transient_bytes")
            async with client_process(client, server.port, *doings) as process:
                process.send_signal(signal.SIGSTOP)
                await detected(client, *doings)
                assert process.returncode is None, "the peer is silent, not disconnected"
            assert await client.status("transient_bytes") == kept
            assert await client.status("overall_load") == {"overall_load": "0"}
            assert "Traceback" not in "\n".join(server.lines)


async def test_peer_that_dies_is_detected_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path, "--keepalive_seconds=600", "--upload_idle_seconds=600") as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            await client.publish("m", DATA)
            async with client_process(client, server.port, *EVERYTHING) as process:
                process.kill()
                await detected(client, *EVERYTHING)


async def test_idle_peer_that_answers_pings_is_kept_longer_than_the_keepalive(tmp_path: Path) -> None:
    with server_process(tmp_path, *QUICK_KEEPALIVE) as server:
        async with connected(server.port) as quiet, connected(server.port) as other:
            await quiet.create_model("quiet")
            await quiet.create_model("m")
            await quiet.publish("m", b"")
            async with client_process(other, server.port, "watchers") as process:
                watch = quiet.watching("quiet")
                await under_way(other, watchers=2)
                process.send_signal(signal.SIGSTOP)
                async with asyncio.timeout(NOTICED_SECONDS):
                    await under_way(other, watchers=1)  # the other peer became silent later, so enough time has passed
            assert not watch.done()
            watch.cancel()


# Bounds.


@asynccontextmanager
async def bounded(tmp_path: Path, settings: Settings) -> AsyncIterator[tuple[int, Client]]:
    """Return a context manager for a server's port and a client of it, with a model."""
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        await client.create_model("m")
        yield server.port, client


async def test_calls_above_the_limit_of_a_connection_wait_until_others_end(tmp_path: Path) -> None:
    async with (
        bounded(tmp_path, Settings(max_concurrent_streams=2, grace_seconds=0)) as (port, client),
        connected(port) as other,
    ):
        await client.publish("m", b"")
        watches = [client.watching("m") for _ in range(2)]
        for watch in watches:
            await watch.read()
        third = client.watching("m")
        reading = asyncio.ensure_future(third.read())
        for _ in range(20):  # other connections have their own limit
            assert await other.status("watchers") == {"watchers": "2"}
        assert not reading.done()
        watches[0].cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert m.VersionUpdateReply.FromString(await reading).version_info.version_number == 1
        await under_way(other, watchers=2)
        for watch in (*watches, third):
            watch.cancel()


async def test_connections_above_the_limit_are_closed_until_others_end(tmp_path: Path) -> None:
    settings = Settings(max_connections=3, grace_seconds=0)
    async with bounded(tmp_path, settings) as (port, client), AsyncExitStack() as stack:
        others = [await stack.enter_async_context(connected(port)) for _ in range(2)]
        for other in others:
            await other.status("watchers")
        for _ in range(3):
            async with connected(port) as extra:
                with refused(UNAVAILABLE):
                    await extra.status("watchers")
        for peer in (client, *others):
            assert await peer.status("watchers") == {"watchers": "0"}
        await others[0].channel.close()

        async def has_room() -> bool:
            async with connected(port) as late:
                with suppress(grpc.aio.AioRpcError):
                    await late.status("watchers")
                    return True
            return False

        await eventually(has_room)


async def test_request_messages_are_bounded_exactly(tmp_path: Path) -> None:
    most = 64 * KIB
    async with bounded(tmp_path, Settings(request_max_bytes=most, grace_seconds=0)) as (_, client):
        overhead = m.StatusRequest(names=["x" * most]).ByteSize() - most
        assert await client.status("x" * (most - overhead)) == {}
        with refused(EXHAUSTED):
            await client.status("x" * (most - overhead + 1))
        overhead = body(bytes(most)).ByteSize() - most
        fits = most - overhead
        assert (await client.create_version([header("m", fits), body(bytes(fits))])).data_size == fits
        call = client.uploading()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(header("m", fits + 1).SerializeToString())
            await call.write(body(bytes(fits + 1)).SerializeToString())
            await call.done_writing()
        assert await call.code() == EXHAUSTED
        await under_way(client, uploads=0)


@pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
async def test_limit_of_a_message_does_not_limit_a_version(tmp_path: Path, archived: bool) -> None:
    async with bounded(tmp_path, Settings(request_max_bytes=64 * KIB, grace_seconds=0)) as (_, client):
        data = bytes(range(256)) * 4 * KIB
        await client.create_version(upload("m", data, archived, chunk_size=32 * KIB))
        assert await client.data("m") == data


async def test_request_with_an_undecodable_path_is_answered_and_harms_no_other_call(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            data = os.urandom(20 * MIB)
            await client.publish("m", data)
            watch = client.watching("m")
            assert (await next_version(watch)).version_number == 1
            retrievals = [asyncio.ensure_future(client.data("m")) for _ in range(4)]
            for path in (b"/cogmentAPI.ModelRegistrySP/\xff", b"\xff\xfe", b"/\xed\xa0\x80/Status"):
                await asyncio.to_thread(_call_path, server.port, path)
            assert [await retrieval for retrieval in retrievals] == [data] * 4
            await client.publish("m", b"next")
            assert (await next_version(watch)).version_number == 2


def _call_path(port: int, path: bytes) -> None:
    """Call a method whose name is given as bytes, and wait for the answer."""
    with closing(Peer(port)) as peer:
        peer.call(1, "Status", b"", changes={":path": path})
        peer.wait()
