"""The stop of a server with many connections and active calls."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, refused
from tests.processes import ServerProcess, server_process
from tests.server.under_way import begin_to_stop, begin_upload, leftovers, serving_process, until_refused
from tests.waiting import PATIENCE_SECONDS, eventually

MIB = 1024 * 1024
TIERS = pytest.mark.parametrize("archived", [True, False], ids=["archived", "transient"])


@asynccontextmanager
async def idle_watchers(server: ServerProcess, count: int, channels: int) -> AsyncIterator[list[Any]]:
    """Return a context manager for watchers that the server counts, over some connections."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(channels)]
        await clients[0].create_model("m")
        watches = [clients[index % channels].watching("m") for index in range(count)]

        async def all_are_counted() -> bool:
            return await clients[0].status("watchers") == {"watchers": str(count)}

        await eventually(all_are_counted)
        yield watches


# Watchers.


async def test_thousand_watchers_are_notified_of_a_stop_and_do_not_delay_it(tmp_path: Path) -> None:
    with server_process(tmp_path, "--grace_seconds=600") as server:
        async with idle_watchers(server, count=1000, channels=5) as watches:
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0, "before the end of the grace"
            async with asyncio.timeout(PATIENCE_SECONDS):
                codes = await asyncio.gather(*(watch.code() for watch in watches))
                details = await asyncio.gather(*(watch.details() for watch in watches))
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
    assert set(details) == {"the server is stopping"}
    assert "Traceback" not in "\n".join(server.lines)


# Transfers.


@TIERS
async def test_upload_that_continues_finishes_within_the_grace(tmp_path: Path, archived: bool) -> None:
    data = os.urandom(8 * MIB)
    async with serving_process(tmp_path, "--grace_seconds=30") as (server, client):
        await client.create_model("m")
        call = await begin_upload(client, data[:MIB], len(data), archived)
        await begin_to_stop(server)
        for start in range(MIB, len(data), MIB):
            await call.write(body(data[start : start + MIB]).SerializeToString())
        await call.done_writing()
        reply = m.CreateVersionReply.FromString(await call)
        assert (reply.version_info.version_number, reply.version_info.data_size) == (1, len(data))
        assert await asyncio.to_thread(server.wait) == 0
    assert leftovers(tmp_path) == []
    async with serving_process(tmp_path) as (_, client):
        assert await client.numbers("m") == ([1] if archived else [])
        if archived:
            assert await client.data("m", 1) == data


@TIERS
async def test_stalled_upload_is_cut_at_the_end_of_the_grace_and_leaves_nothing(tmp_path: Path, archived: bool) -> None:
    async with serving_process(tmp_path, "--grace_seconds=0.5") as (server, client):
        await client.create_model("m")
        call = await begin_upload(client, bytes(MIB), 2 * MIB, archived)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        assert time.monotonic() - started > 0.5, "the grace"
        assert await call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert "Traceback" not in "\n".join(server.lines)
    assert leftovers(tmp_path) == []
    assert sorted(os.listdir(tmp_path / "m")) in (["m.yaml"], [".high_water_mark", "m.yaml"])
    async with serving_process(tmp_path) as (_, client):
        assert await client.numbers("m") == []
        assert (await client.store("m", b"")).version_number == 1


async def test_many_cut_uploads_leave_nothing(tmp_path: Path) -> None:
    async with serving_process(tmp_path, "--grace_seconds=0.1") as (server, client):
        await client.create_model("m")
        calls = []
        for index in range(20):
            call = client.uploading()
            size, archived = 2 * MIB, bool(index % 2)
            info = m.ModelVersionInfo(model_id="m", data_size=size, archived=archived)
            first = m.CreateVersionRequestChunk(header=m.CreateVersionRequestChunk.Header(version_info=info))
            await call.write(first.SerializeToString())
            await call.write(body(bytes(MIB)).SerializeToString())
            calls.append(call)

        async def all_are_counted() -> bool:
            return await client.status("uploads") == {"uploads": "20"}

        await eventually(all_are_counted)
        assert await asyncio.to_thread(server.stop) == 0
        codes = {await call.code() for call in calls}
        assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
        assert "Traceback" not in "\n".join(server.lines)
    assert leftovers(tmp_path) == []


async def test_stop_refuses_new_calls_and_does_not_disturb_a_transfer(tmp_path: Path) -> None:
    async with serving_process(tmp_path, "--grace_seconds=30") as (server, client), connected(server.port) as other:
        await client.create_model("m")
        await other.status("watchers")  # connected before the stop
        call = await begin_upload(client, b"x", 2)
        await begin_to_stop(server)

        async def refused_everywhere(late: Client) -> None:
            for attempt in (late.models(), late.create_model("n"), late.publish("m", b""), late.status("*")):
                with refused(grpc.StatusCode.UNAVAILABLE):
                    await attempt

        await until_refused(other)
        await refused_everywhere(other)
        async with connected(server.port) as new:
            await refused_everywhere(new)
        assert server.is_running
        await call.write(body(b"y").SerializeToString())
        await call.done_writing()
        assert m.CreateVersionReply.FromString(await call).version_info.version_number == 1
        assert await asyncio.to_thread(server.wait) == 0
    assert not (tmp_path / "n").exists()


# Numbers.


async def test_numbers_have_no_gap_after_a_stop_with_active_transfers_and_watchers(tmp_path: Path) -> None:
    given = {"a": 3, "b": 70, "c": 0}
    async with serving_process(tmp_path, "--grace_seconds=0.1") as (server, client):
        await client.create_model("m")
        for model_id, count in given.items():
            await client.create_model(model_id)
            for _ in range(count):
                await client.publish(model_id, b"")
        watch = client.watching("c")
        call = await begin_upload(client, b"x", 2)
        assert await asyncio.to_thread(server.stop) == 0
        assert await watch.code() == grpc.StatusCode.UNAVAILABLE
        assert await call.code() != grpc.StatusCode.OK
    async with serving_process(tmp_path) as (_, client):
        for model_id, count in given.items():
            assert (await client.publish(model_id, b"")).version_number == count + 1
        assert (await client.publish("m", b"")).version_number == 1


# Signals.


async def test_second_signal_ends_a_server_with_a_stalled_upload_that_the_next_start_removes(
    tmp_path: Path,
) -> None:
    async with serving_process(tmp_path, "--grace_seconds=600") as (server, client):
        await client.create_model("m")
        await client.store("m", b"kept")
        await begin_upload(client, bytes(MIB), 2 * MIB)
        await begin_to_stop(server)
        assert server.is_running
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await asyncio.to_thread(server.wait) == 128 + signal.SIGTERM
    async with serving_process(tmp_path) as (_, client):
        assert leftovers(tmp_path) == []
        assert await client.data("m") == b"kept"
        assert (await client.publish("m", b"")).version_number > 1


async def test_hangup_during_a_stop_is_harmless(tmp_path: Path) -> None:
    async with serving_process(tmp_path, "--grace_seconds=30") as (server, client):
        await client.create_model("m")
        call = await begin_upload(client, b"x", 2)
        await begin_to_stop(server)
        server.signal(signal.SIGHUP)
        await call.write(body(b"y").SerializeToString())
        await call.done_writing()
        assert m.CreateVersionReply.FromString(await call).version_info.version_number == 1
        assert await asyncio.to_thread(server.wait) == 0
        assert "Traceback" not in "\n".join(server.lines)
