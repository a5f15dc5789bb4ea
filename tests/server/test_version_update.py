"""VersionUpdate: a watcher receives the latest version of a model at once, and then newer ones."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, next_version, refused, upload
from tests.server.under_way import under_way
from tests.waiting import PATIENCE_SECONDS

NOT_FOUND, UNAVAILABLE = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE
MIB = 1024 * 1024
ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])


@asynccontextmanager
async def watching(client: Client, model_id: str, count: int = 1) -> AsyncIterator[list[Any]]:
    """Return a context manager for watches, after the server counts exactly these."""
    watches = [client.watching(model_id) for _ in range(count)]
    await has_watchers(client, count)
    yield watches
    for watch in watches:
        watch.cancel()


async def has_watchers(client: Client, count: int) -> None:
    """Wait until the server has a number of watchers."""
    await under_way(client, watchers=count)


async def end_of(watch: Any) -> grpc.StatusCode:
    """Wait until a watch ends, and return its status."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        code: grpc.StatusCode = await watch.code()
    return code


async def next_number(watch: Any) -> int:
    return (await next_version(watch)).version_number


@ARCHIVED
async def test_latest_version_is_sent_at_once_then_newer_ones(client: Client, archived: bool) -> None:
    await client.create_model("m")
    await client.publish("m", b"1")
    await client.store("m", b"2")
    latest = await client.create_version(upload("m", b"3", archived, user_data={"k": "v"}))
    async with watching(client, "m") as [watch]:
        assert await next_version(watch) == latest
        for number in (4, 5, 6):
            info = await client.create_version(upload("m", b"x", archived=number % 2 == 0))
            assert await next_version(watch) == info
            assert info.version_number == number


async def test_watcher_of_a_model_without_versions_receives_the_first_one(client: Client) -> None:
    await client.create_model("m")
    async with watching(client, "m") as [watch]:
        await client.create_model("m", changed="yes")
        await client.publish("m", b"1")
        assert await next_number(watch) == 1


async def test_watcher_receives_the_latest_archived_version_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.port) as client:
        await client.create_model("m")
        info = await client.store("m", b"1", user_data={"k": "v"})
        await client.publish("m", b"2")
    async with serving(tmp_path) as server, connected(server.port) as client, watching(client, "m") as [watch]:
        assert await next_version(watch) == info
        assert (await client.publish("m", b"3")).version_number == 3
        assert await next_number(watch) == 3


async def test_received_version_can_be_retrieved_at_once(client: Client) -> None:
    await client.create_model("m")
    async with watching(client, "m") as [watch]:
        for data in (b"1", b"2" * MIB, b""):
            publishing = asyncio.ensure_future(client.create_version(upload("m", data, archived=not data)))
            assert await client.data("m", await next_number(watch)) == data
            await publishing


async def test_watcher_receives_only_versions_of_its_own_model(client: Client) -> None:
    for model_id in ("m", "m-v000001", "M"):
        await client.create_model(model_id)
    async with watching(client, "m") as [watch]:
        await client.publish("m-v000001", b"1")
        await client.delete_model("m-v000001")
        await client.publish("M", b"1")
        await client.publish("m", b"1")
        info = await next_version(watch)
        assert (info.model_id, info.version_number) == ("m", 1)


async def test_watchers_that_keep_up_receive_every_version(client: Client) -> None:
    await client.create_model("m")
    async with watching(client, "m", count=50) as watches:
        for number in range(1, 4):
            await client.publish("m", b"x")
            assert await asyncio.gather(*map(next_number, watches)) == [number] * 50


async def test_numbers_strictly_increase_up_to_the_latest_under_concurrent_publishers(client: Client) -> None:
    await client.create_model("m")
    async with watching(client, "m", count=4) as watches:

        async def received(watch: Any) -> list[int]:
            numbers = [await next_number(watch)]
            while numbers[-1] < 60:
                numbers.append(await next_number(watch))
            return numbers

        hearing = [asyncio.ensure_future(received(watch)) for watch in watches]
        chunks = [upload("m", b"%d" % position, archived=position % 6 == 0) for position in range(60)]
        infos = await asyncio.gather(*map(client.create_version, chunks))
        assert sorted(info.version_number for info in infos) == [*range(1, 61)]
        for numbers in await asyncio.gather(*hearing):
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == 60


async def test_slow_watcher_delays_no_other_and_skips_to_the_latest(client: Client) -> None:
    user_data = {"k": "x" * 200_000}  # so a few versions fill the buffers
    await client.create_model("m")
    async with watching(client, "m", count=2) as [slow, fast]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for number in range(1, 61):
                await client.publish("m", b"x", user_data=user_data)
                assert await next_number(fast) == number
        received = [await next_number(slow)]
        while received[-1] < 60:
            received.append(await next_number(slow))
        assert received == sorted(set(received))
        assert len(received) < 50
        await client.publish("m", b"x")
        assert await next_number(slow) == 61


async def test_unknown_model_is_not_found(client: Client) -> None:
    await client.create_model("m")
    await client.publish("m", b"x")
    assert await end_of(client.watching("unknown")) == NOT_FOUND
    await client.delete_model("m")
    assert await end_of(client.watching("m")) == NOT_FOUND


@pytest.mark.parametrize("has_version", [False, True], ids=["without versions", "with a version"])
@pytest.mark.parametrize("is_recreated", [False, True], ids=["deleted", "recreated"])
async def test_watch_ends_with_not_found_when_the_model_is_deleted(
    client: Client, has_version: bool, is_recreated: bool
) -> None:
    await client.create_model("m")
    async with watching(client, "m") as [watch]:
        if has_version:
            await client.publish("m", b"old")
            assert await next_number(watch) == 1
        await client.delete_model("m")
        if is_recreated:
            await client.create_model("m")
            await client.publish("m", b"new")
        with refused(NOT_FOUND):
            await next_version(watch)
        await has_watchers(client, 0)


async def test_recreated_model_is_watched_from_its_own_first_version(client: Client) -> None:
    await client.create_model("m")
    for _ in range(3):
        await client.publish("m", b"old")
    await client.delete_model("m")
    await client.create_model("m")
    async with watching(client, "m") as [watch]:
        info = await client.publish("m", b"new")
        assert info.version_number == 1
        assert await next_version(watch) == info


# Watchers that disappear.


async def test_cancelled_watch_frees_its_watcher(client: Client) -> None:
    await client.create_model("m")
    await client.publish("m", b"x")
    async with watching(client, "m", count=3) as watches:
        watches[0].cancel()
        await has_watchers(client, 2)
        await client.publish("m", b"x")
        assert await next_number(watches[1]) in {1, 2}


async def test_closed_channel_frees_its_watchers(server: Server, client: Client) -> None:
    await client.create_model("m")
    async with connected(server.port) as other:
        watches = [other.watching("m") for _ in range(3)]
        await has_watchers(client, 3)
    await has_watchers(client, 0)
    assert all(watch.done() for watch in watches)


VANISHING = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
for update in channel.unary_stream("/cogmentAPI.ModelRegistrySP/VersionUpdate")(b"\\x0a\\x01m"):
    pass
"""


async def test_client_that_dies_frees_its_watcher(server: Server, client: Client) -> None:
    await client.create_model("m")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", VANISHING, f"127.0.0.1:{server.port}")
    try:
        await has_watchers(client, 1)
    finally:
        process.kill()
        await process.wait()
    await has_watchers(client, 0)


@pytest.mark.parametrize("has_version", [False, True], ids=["without versions", "with a version"])
@pytest.mark.parametrize("grace_seconds", [0.0, 30.0])
async def test_watch_ends_with_unavailable_at_once_when_the_server_stops(
    tmp_path: Path, has_version: bool, grace_seconds: float
) -> None:
    async with AsyncExitStack() as stack:
        settings = Settings(cache_max_bytes=64 * MIB, grace_seconds=grace_seconds)
        server = await stack.enter_async_context(serving(tmp_path, settings))
        async with connected(server.port) as client:
            await client.create_model("m")
            async with watching(client, "m", count=20) as watches:
                if has_version:
                    await client.publish("m", b"x")
                    assert await asyncio.gather(*map(next_number, watches)) == [1] * 20
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await stack.aclose()
                assert await asyncio.gather(*map(end_of, watches)) == [UNAVAILABLE] * 20


async def test_request_without_a_valid_model_is_invalid(client: Client) -> None:
    for request in (b"", m.VersionUpdateRequest(model_id="../m"), b"\xff"):
        assert await end_of(client.streamed("VersionUpdate", request)) == grpc.StatusCode.INVALID_ARGUMENT
