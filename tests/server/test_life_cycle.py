"""Start, stop, crash and restart of a server: real processes, signals, and the remaining files."""

import asyncio
import os
import signal
import socket
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cogment_model_registry.wire import messages as m
from tests.client import body, connected, next_version, refused
from tests.processes import ServerProcess, run_cogment, server_process
from tests.server.under_way import begin_to_stop, begin_upload, leftovers, serving_process, under_way, until_refused
from tests.waiting import PATIENCE_SECONDS, eventually

STOPS = [signal.SIGTERM, signal.SIGINT]
MIB = 1024 * 1024


async def refresh(server: ServerProcess, times: int = 1) -> None:
    """Let the server rescan its archive, and wait until it is done."""
    server.signal(signal.SIGHUP)

    async def looked() -> bool:
        return sum("rescanned the archive" in line for line in server.lines) >= times

    await eventually(looked)


def refusal(*flags: str) -> str:
    """Return the single error line of a server that refuses to start."""
    result = run_cogment("services", "model_registry", *flags)
    assert (result.returncode, result.stdout) == (3, "")
    [line] = result.stderr.splitlines()
    return line


# Stopping.


@pytest.mark.parametrize(("number", "archived"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
async def test_upload_in_progress_is_finished_before_the_server_ends(
    tmp_path: Path, number: signal.Signals, archived: bool
) -> None:
    async with serving_process(tmp_path, "--grace_seconds=30") as (server, client):
        await client.create_model("m")
        call = await begin_upload(client, b"first ", 11, archived)
        await begin_to_stop(server, number)
        await call.write(body(b"later").SerializeToString())
        await call.done_writing()
        assert m.CreateVersionReply.FromString(await call).version_info.version_number == 1
        assert await asyncio.to_thread(server.wait) == 0
    async with serving_process(tmp_path) as (_, client):
        assert await client.numbers("m") == ([1] if archived else [])
        if archived:
            assert await client.data("m", 1) == b"first later"
        assert (await client.publish("m", b"")).version_number == 2


@pytest.mark.parametrize("archived", [True, False], ids=["archived", "transient"])
async def test_retrieval_in_progress_is_finished_before_the_server_ends(tmp_path: Path, archived: bool) -> None:
    data = os.urandom(MIB) * 48  # more than all buffers on the way hold
    async with serving_process(tmp_path, "--grace_seconds=30") as (server, client):
        await client.create_model("m")
        await client.store("m", data) if archived else await client.publish("m", data)
        call = client.streamed("RetrieveVersionData", m.RetrieveVersionDataRequest(model_id="m", version_number=1))
        messages = aiter(call)
        received = [await anext(messages)]
        await under_way(client, retrievals=1)
        await begin_to_stop(server)
        received += [message async for message in messages]
        chunks = [m.RetrieveVersionDataReplyChunk.FromString(message).data_chunk for message in received]
        assert b"".join(chunks) == data
        assert await asyncio.to_thread(server.wait) == 0


async def test_stop_notifies_watchers_at_once_and_refuses_new_calls_during_a_transfer(tmp_path: Path) -> None:
    async with serving_process(tmp_path, "--grace_seconds=600") as (server, client), connected(server.port) as other:
        await client.create_model("m")
        await client.create_model("with a version")
        await client.publish("with a version", b"")
        watches = [client.watching("m"), other.watching("m"), client.watching("with a version")]
        assert (await next_version(watches[2])).version_number == 1
        await under_way(client, watchers=3)
        call = await begin_upload(client, b"x", 2)
        await begin_to_stop(server)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [await watch.code() for watch in watches] == [grpc.StatusCode.UNAVAILABLE] * 3
        await until_refused(other)
        async with connected(server.port) as late:
            with refused(grpc.StatusCode.UNAVAILABLE):
                await late.models()
        assert server.is_running
        call.cancel()
        assert await asyncio.to_thread(server.wait) == 0


async def test_transfer_that_exceeds_the_grace_is_cut_and_leaves_nothing(tmp_path: Path) -> None:
    async with serving_process(tmp_path, "--grace_seconds=0.1") as (server, client):
        await client.create_model("m")
        call = await begin_upload(client, b"x" * MIB, 2 * MIB)
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        assert await call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert leftovers(tmp_path) == []
    assert sorted(os.listdir(tmp_path / "m")) == [".high_water_mark", "m.yaml"]


@pytest.mark.parametrize(("first", "second"), [STOPS, STOPS[::-1]])
async def test_second_signal_ends_the_server_at_once(
    tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    async with serving_process(tmp_path, "--grace_seconds=600") as (server, client):
        await client.create_model("m")
        call = await begin_upload(client, b"x", 2)
        await begin_to_stop(server, first)
        assert server.is_running
        server.signal(second)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await asyncio.to_thread(server.wait) == 128 + second
            assert await call.code() == grpc.StatusCode.UNAVAILABLE


# Failing starts.


def test_port_in_use_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refusal(f"--port={port}", "--host=127.0.0.1", f"--archive_dir={tmp_path}")


def test_two_servers_do_not_share_a_port(tmp_path: Path) -> None:
    with server_process(tmp_path / "first", "--host=*") as first:
        assert str(first.port) in refusal(f"--port={first.port}", f"--archive_dir={tmp_path / 'second'}")


@pytest.mark.parametrize("path", ["file", "file/below", "broken link"])
def test_unusable_archive_directory_ends_the_start_with_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken link").symlink_to(tmp_path / "nowhere/at all")
    assert str(tmp_path / path) in refusal("--port=0", "--host=127.0.0.1", f"--archive_dir={tmp_path / path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("path", ["sealed", "sealed/below"])
def test_archive_without_permission_ends_the_start_with_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "sealed").mkdir(mode=0o500)
    assert "ermission" in refusal("--port=0", "--host=127.0.0.1", f"--archive_dir={tmp_path / path}")


async def test_second_server_on_an_archive_is_refused_with_the_owners_process(tmp_path: Path) -> None:
    async with serving_process(tmp_path) as (first, client):
        await client.create_model("m")
        line = refusal("--port=0", "--host=127.0.0.1", f"--archive_dir={tmp_path}")
        assert str(first.pid) in line.replace(str(tmp_path), "").split()
        assert (await client.store("m", b"unharmed")).version_number == 1
        assert first.stop() == 0
    async with serving_process(tmp_path) as (_, client):
        assert await client.data("m", 1) == b"unharmed"


# Crashing.


async def test_archive_can_be_opened_again_after_a_crash(tmp_path: Path) -> None:
    async with serving_process(tmp_path) as (server, client):
        await client.create_model("m", a="b")
        await client.store("m", b"durable")
        server.kill()
    async with serving_process(tmp_path) as (_, client):
        assert dict((await client.models("m")).model_infos[0].user_data) == {"a": "b"}
        assert await client.data("m", 1) == b"durable"


async def test_leftovers_of_a_crash_are_removed_at_the_next_start(tmp_path: Path) -> None:
    async with serving_process(tmp_path) as (server, client):
        await client.create_model("m")
        await client.store("m", b"kept")
        await begin_upload(client, b"x" * 2 * MIB, 4 * MIB)
        assert len(leftovers(tmp_path)) == 1, "the bytes of the upload"
        server.kill()
    # A model whose removal a crash interrupted, and files that the original leaves, or a crash between two files.
    doomed = tmp_path / ".~42"
    (doomed / "nested").mkdir(parents=True)
    (doomed / "gone.yaml").write_text("model_id: gone\nuser_data: {}\n")
    (tmp_path / "m/m-v000007.data").write_bytes(b"without metadata")
    assert len(leftovers(tmp_path)) == 2
    async with serving_process(tmp_path) as (_, client):
        assert leftovers(tmp_path) == []
        assert [info.model_id for info in (await client.models()).model_infos] == ["m"]
        assert await client.numbers("m") == [1]
        assert await client.data("m", 1) == b"kept"


# Numbers.


@pytest.mark.parametrize("count", [0, 200])
async def test_numbers_continue_without_a_gap_after_a_stop(tmp_path: Path, count: int) -> None:
    for start in (0, count):
        async with serving_process(tmp_path) as (server, client):
            await client.create_model("m")
            creates = [client.publish if index % 2 else client.store for index in range(count)]
            infos = [await create("m", b"data") for create in creates]
            assert [info.version_number for info in infos] == list(range(start + 1, start + count + 1))
            assert server.stop() == 0


async def test_numbers_are_never_reused_after_a_crash(tmp_path: Path) -> None:
    given: list[int] = []
    for _ in range(3):
        async with serving_process(tmp_path) as (server, client):
            await client.create_model("m")
            given += [(await client.publish("m", b"")).version_number for _ in range(3)]
            given += [(await client.store("m", b"")).version_number]
            given += [(await client.publish("m", b"")).version_number]
            server.kill()
    assert given == sorted(set(given))


@pytest.mark.parametrize("crash", [False, True], ids=["after a stop", "after a crash"])
async def test_concurrent_creates_get_distinct_consecutive_numbers_that_are_never_reused(
    tmp_path: Path, crash: bool
) -> None:
    async with serving_process(tmp_path, "--cache_max_items=1000") as (server, client), AsyncExitStack() as stack:
        await client.create_model("m")
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(8)]

        async def create(number: int) -> int:
            chosen = clients[number % len(clients)]
            call = chosen.store if number % 10 == 0 else chosen.publish
            return (await call("m", b"%d" % number)).version_number

        numbers = await asyncio.gather(*map(create, range(200)))
        assert sorted(numbers) == list(range(1, 201)) == await client.numbers("m")
        assert [await client.data("m", number) for number in numbers[::7]] == [b"%d" % i for i in range(0, 200, 7)]
        await server_ended(server, crash)
    async with serving_process(tmp_path) as (_, client):
        assert await client.numbers("m") == sorted(numbers[::10])
        number = (await client.publish("m", b"")).version_number
        assert number > 200 if crash else number == 201


async def server_ended(server: ServerProcess, crash: bool) -> None:
    """End a server by a crash, or by a stop."""
    if crash:
        server.kill()
    else:
        assert await asyncio.to_thread(server.stop) == 0


# Changes from outside.


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-R", str(source), str(target)], check=True, timeout=PATIENCE_SECONDS)


async def test_hangup_finds_added_and_removed_files(tmp_path: Path) -> None:
    archive, aside = tmp_path / "archive", tmp_path / "aside"
    async with serving_process(archive) as (server, client):
        for model_id in ("changed", "removed"):
            await client.create_model(model_id, who="server")
            await client.store(model_id, b"1")
            await client.store(model_id, b"2")
        await client.publish("changed", b"3, transient")
        gone = client.watching("removed")
        assert (await next_version(gone)).version_number == 2
        watch = client.watching("changed")
        assert (await next_version(watch)).version_number == 3

        copy(archive / "removed", aside)
        for path in (archive / "removed").iterdir():
            path.unlink()
        (archive / "removed").rmdir()
        (archive / "changed/changed-v000001.yaml").unlink()
        (archive / "changed/changed.yaml").write_text("model_id: changed\nuser_data: {who: operator}\n")
        text = (archive / "changed/changed-v000002.yaml").read_text()
        (archive / "changed/changed-v000009.data").write_bytes(b"2")
        (archive / "changed/changed-v000009.yaml").write_text(text.replace("version_number: 2", "version_number: 9"))
        await refresh(server)

        assert [dict(info.user_data) for info in (await client.models()).model_infos] == [{"who": "operator"}]
        assert await client.numbers("changed") == [2, 3, 9]
        assert await client.data("changed", 3) == b"3, transient"
        assert (await next_version(watch)).version_number == 9
        assert await gone.code() == grpc.StatusCode.NOT_FOUND
        with refused(grpc.StatusCode.NOT_FOUND):
            await client.data("changed", 1)
        with refused(grpc.StatusCode.NOT_FOUND):
            await client.infos("removed")

        copy(aside, archive / "removed")
        await refresh(server, times=2)
        assert await client.numbers("removed") == [1, 2]
        assert await client.data("removed", 2) == b"2"
        assert (await client.store("changed", b"")).version_number >= 10


async def test_hangup_finds_a_repaired_version(tmp_path: Path) -> None:
    async with serving_process(tmp_path) as (server, client):
        await client.create_model("m")
        await client.store("m", b"data")
        (tmp_path / "m/m-v000001.data").rename(tmp_path / "aside")
        await refresh(server)
        with refused(grpc.StatusCode.DATA_LOSS):
            await client.data("m", 1)
        (tmp_path / "aside").rename(tmp_path / "m/m-v000001.data")
        await refresh(server, times=2)
        assert await client.data("m", 1) == b"data"


async def test_numbers_are_never_reused_after_an_old_copy_of_the_model_was_restored(
    tmp_path: Path,
) -> None:
    archive, backup = tmp_path / "archive", tmp_path / "backup"
    async with serving_process(archive) as (server, client):
        await client.create_model("m")
        await client.store("m", b"")
        copy(archive / "m", backup)
        (backup / ".high_water_mark").unlink()  # as the original would write the directory, without the high-water mark
        given = [(await client.publish("m", b"")).version_number for _ in range(3)]
        (archive / "m").rename(tmp_path / "aside")
        copy(backup, archive / "m")
        await refresh(server)
        given.append((await client.publish("m", b"")).version_number)
        server.kill()
    async with serving_process(archive) as (_, client):
        assert (await client.publish("m", b"")).version_number > max(given)


async def test_hangup_leaves_no_gap_in_the_numbers(tmp_path: Path) -> None:
    async with serving_process(tmp_path) as (server, client):
        await client.create_model("m")
        for number in range(1, 4):
            assert (await client.publish("m", b"")).version_number == number
            await refresh(server, times=number)


async def test_hangups_while_versions_are_created_lose_no_version(tmp_path: Path) -> None:
    async with serving_process(tmp_path) as (server, client):
        await client.create_model("m")
        numbers = []
        for index in range(60):
            if index % 3 == 0:
                server.signal(signal.SIGHUP)
            create = client.store if index % 2 else client.publish
            numbers.append((await create("m", b"%d" % index)).version_number)
        assert numbers == sorted(set(numbers))
        assert await client.numbers("m") == numbers
        assert [await client.data("m", number) for number in numbers] == [b"%d" % index for index in range(60)]
        assert server.stop() == 0
