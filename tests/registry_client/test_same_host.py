"""Transfers without copies between processes of one host and one user, and the fallback to gRPC."""

import asyncio
import logging
import mmap
import re
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, SealedMemory, errors
from cogment_model_registry.client import local
from cogment_model_registry.client.links import LocalPlace
from cogment_model_registry.server.composition import Server, running
from cogment_model_registry.settings import AUTO, MIB, Settings
from cogment_model_registry.system import sealed_memory
from cogment_model_registry.testing.bytes import describe, hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import local as wire
from tests.ports import free_port
from tests.processes import server_process, started
from tests.registry_client.conftest import opened
from tests.waiting import PATIENCE_SECONDS, until

if not (wire.is_supported() and sealed_memory.is_supported()):
    pytest.skip("this system cannot pass sealed memory", allow_module_level=True)

DATA = Random(2).randbytes(2 * MIB + 5)
ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
SETTINGS = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, local_socket=AUTO)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "archive", SETTINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of client and server, which shows how a version was transferred."""
    caplog.set_level(logging.DEBUG, "cogment_model_registry")
    return caplog


async def fill(registry: Any, data: bytes = DATA, *, archived: bool = False) -> Any:
    return await (registry.store if archived else registry.publish)("m", data)


def is_mapped(view: memoryview) -> bool:
    return isinstance(view.obj, mmap.mmap)


def place_of(registry: Any) -> LocalPlace:
    """Return the socket that a client uses."""
    client = getattr(registry, "registry", registry)
    place = client._core.calls.connection.local
    assert isinstance(place, LocalPlace)
    return place


# Retrieving.


@ARCHIVED
async def test_a_view_maps_the_memory_or_the_file_of_the_server(registry: Any, archived: bool) -> None:
    version = await fill(registry, archived=archived)
    views = [await registry.retrieve("m", copy=False), await registry.retrieve(version, copy=False, verify=True)]
    for view in views:
        assert is_mapped(view)
        assert view.readonly
        assert view == DATA


@ARCHIVED
async def test_copies_and_files_use_the_socket_too(
    registry: Any, archived: bool, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    await fill(registry, archived=archived)
    log.clear()
    assert await registry.retrieve("m") == DATA
    assert await registry.retrieve("m", verify=True) == DATA
    await registry.download("m", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert log.text.count("LocalReadVersion OK") == 3
    assert "RetrieveVersionData" not in log.text


async def test_small_versions_use_grpc_and_not_the_socket(registry: Any, log: pytest.LogCaptureFixture) -> None:
    data = DATA[: local.MIN_BYTES - 1]
    await fill(registry, data)
    view = await registry.retrieve("m", copy=False)
    assert (bytes(view), view.readonly, is_mapped(view)) == (data, True, False)
    assert "Status" not in log.text
    assert "Local" not in log.text


@ARCHIVED
async def test_a_view_outlives_its_version_its_client_and_its_server(
    tmp_path: Path, flavour: str, archived: bool
) -> None:
    async with serving(tmp_path / "archive", SETTINGS) as server, opened(flavour, server.port) as registry:
        await fill(registry, archived=archived)
        view = await registry.retrieve("m", copy=False)
        await registry.delete_model("m")
        with pytest.raises(errors.NotFoundError):
            await registry.retrieve("m", copy=False)
    assert view == DATA


async def test_a_damaged_version_is_refused(registry: Any, tmp_path: Path) -> None:
    version = await fill(registry, archived=True)
    [path] = (tmp_path / "archive").rglob("*.data")
    path.write_bytes(DATA[:-1] + b"x")
    for copy in (True, False):
        with pytest.raises(errors.DataLossError):
            await registry.retrieve(version, copy=copy)


def test_the_check_of_the_client_refuses_wrong_bytes() -> None:
    info = describe("m", 1, DATA, True)
    local.check(info, DATA)
    with pytest.raises(errors.DataLossError, match=re.escape(hash_of(b"other"))):
        local.check(info, b"other")


async def test_views_are_not_cached(server: Server, flavour: str, tmp_path: Path) -> None:
    async with opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry:
        await fill(registry)
        assert is_mapped(await registry.retrieve("m", copy=False))
    assert not (tmp_path / "cache").exists()


async def test_progress_is_reported(registry: Any) -> None:
    reports: list[int] = []
    await registry.publish("m", DATA, progress=lambda progress: reports.append(progress.done_bytes))
    await registry.retrieve("m", copy=False, progress=lambda progress: reports.append(progress.done_bytes))
    assert reports == [len(DATA), len(DATA)]


# Tracking.


async def test_a_tracker_decodes_from_a_private_view(registry: Any) -> None:
    def decode(view: memoryview) -> memoryview:
        assert is_mapped(view)
        view[0] ^= 0xFF  # copies this page, only for this process
        return view

    data = DATA * 3  # more than is sent with the notification
    async with registry.track("m", decode=decode, copy=False) as latest:
        await fill(registry, data)
        await latest.wait_for(timeout=60)
        assert latest.error is None
        assert latest.value[1:] == data[1:]
        assert latest.value[0] == data[0] ^ 0xFF
    assert await registry.retrieve("m") == data


async def test_a_tracker_gets_a_view_of_small_versions_too(registry: Any) -> None:
    async with registry.track("m", decode=type, copy=False) as latest:
        await fill(registry, b"small")
        await latest.wait_for(timeout=60)
        assert latest.value is memoryview


# Publishing.


async def test_bytes_in_memory_are_handed_over(registry: Any, log: pytest.LogCaptureFixture) -> None:
    version = await registry.publish("m", DATA, user_data={"a": "b"}, tags={"t": "x"}, metrics={"r": 0.5})
    assert (version.number, version.data_hash, version.data_size_bytes) == (1, hash_of(DATA), len(DATA))
    assert version.user_data == {"a": "b"}
    assert (await registry.describe_version("m")).tags == {"t": "x"}
    assert "LocalUploadVersion OK" in log.text
    assert " UploadVersion" not in log.text
    assert await registry.retrieve("m") == DATA


async def test_bytes_that_change_while_they_are_copied_are_not_handed_over(
    registry: Any, log: pytest.LogCaptureFixture
) -> None:
    data = bytearray(8 * MIB)

    def change(_progress: object) -> None:
        data[0] = 1  # this part was already copied

    await registry.publish("m", data, progress=change)
    assert "the bytes changed while they were copied" in log.text
    assert await registry.retrieve("m") == data
    log.clear()
    await registry.publish("m", memoryview(data).toreadonly())
    assert "LocalUploadVersion OK" in log.text


@ARCHIVED
async def test_sealed_memory_is_handed_over(registry: Any, archived: bool, log: pytest.LogCaptureFixture) -> None:
    with SealedMemory.filled(len(DATA), lambda view: view.__setitem__(slice(None), DATA)) as memory:
        for number in (1, 2):
            version = await (registry.store if archived else registry.publish)("m", memory)
            assert (version.number, version.data_hash, version.archived) == (number, hash_of(DATA), archived)
        assert memory.view == DATA
    assert log.text.count("LocalUploadVersion OK") == 2
    assert await registry.retrieve("m") == DATA


async def test_archived_uploads_are_not_copied_to_memory_first(
    registry: Any, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(DATA)
    await registry.store("m", DATA)
    await registry.publish("m", DATA, alias="best")
    await registry.publish("m", tmp_path / "data")
    assert "LocalUploadVersion" not in log.text


@pytest.mark.parametrize("make", [bytes, SealedMemory.of])
async def test_refusals_are_those_of_any_upload(registry: Any, make: Any) -> None:
    with pytest.raises(errors.NotFoundError, match='model "m" does not exist'):
        await registry.publish("m", make(DATA), create=False)
    with pytest.raises(errors.InvalidError):
        await registry.publish("../m", make(DATA))
    with pytest.raises(errors.TooLargeError):
        await registry.publish("m", make(bytes(65 * MIB)))
    assert (await registry.status())["transient_bytes"] == "0"


def test_sealed_memory_is_a_copy_of_bytes_and_of_nothing_else() -> None:
    with pytest.raises(errors.InvalidError, match="data is of type int"):
        SealedMemory.of(5)  # type: ignore[arg-type]


async def test_small_sealed_memory_is_sent(registry: Any) -> None:
    with SealedMemory.of(b"small") as memory:
        await registry.publish("m", memory)
    assert await registry.retrieve("m") == b"small"


# Without a socket.


async def works(registry: Any) -> bool:
    """Transfer a version in each direction, and return whether the retrieval used shared memory."""
    version = await fill(registry)
    view = await registry.retrieve(version, copy=False)
    assert view == DATA
    assert await registry.retrieve(version) == DATA
    return is_mapped(view)


async def test_without_a_socket_everything_uses_grpc(
    flavour: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, replace(SETTINGS, local_socket="off")) as server, opened(flavour, server.port) as one:
        assert not await works(one)
        assert "has no local socket" in log.text
        assert log.text.count("Status OK") == 1


async def test_an_unreachable_socket_is_not_tried_again_for_a_while(
    flavour: str, tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    settings = replace(SETTINGS, local_socket=str(path))
    async with serving(tmp_path / "archive", settings) as server, opened(flavour, server.port) as registry:
        path.rename(tmp_path / "elsewhere")  # as in a container with another file system
        assert not await works(registry)
        assert f"{path} is not here: No such file or directory" in log.text
        asked = log.text.count("Status OK")
        (tmp_path / "elsewhere").rename(path)
        assert not await works(registry)
        assert log.text.count("Status OK") == asked
        monkeypatch.setattr(local, "_ASK_AGAIN_SECONDS", 0)
        assert await works(registry)


async def test_the_socket_of_another_server_at_the_same_path_is_not_used(
    flavour: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "socket", tmp_path / "other"
    async with (
        serving(tmp_path / "a", replace(SETTINGS, local_socket=str(path))) as server,
        serving(tmp_path / "b", replace(SETTINGS, local_socket=str(other))),
        opened(flavour, server.port) as registry,
    ):
        other.rename(path)
        assert not await works(registry)
        assert "another server listens here" in log.text


async def test_a_server_that_was_restarted_is_found_again(flavour: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, host="127.0.0.1", port=free_port(), archive_dir=str(tmp_path))
    async with opened(flavour, settings.port) as registry:
        async with running(settings):
            assert await works(registry)
            before = place_of(registry)
            view = await registry.retrieve("m", copy=False)
        async with running(settings):
            assert await works(registry)
            assert place_of(registry).path != before.path
        assert view == DATA


async def test_a_transfer_from_a_silent_server_can_be_cancelled(
    registry: Any, flavour: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    version = await fill(registry)
    with wire.new_socket() as listener:
        path = str(tmp_path / "silent")
        listener.bind(path)
        listener.listen()
        getattr(registry, "registry", registry)._core.calls.connection.local = LocalPlace(path, "id", 0.0)
        with pytest.raises(errors.TimedOutError):
            await registry.retrieve(version, copy=False, timeout=0.05)
        assert f"goes by gRPC and not by {path}" in log.text


async def test_a_cancelled_transfer_leaves_nothing_on_the_server(server: Server, tmp_path: Path) -> None:
    async with opened("asyncio", server.port) as registry:
        version = await fill(registry)
        with wire.new_socket() as listener:
            path = str(tmp_path / "silent")
            listener.bind(path)
            listener.listen()
            registry._core.calls.connection.local = LocalPlace(path, "id", 0.0)
            retrieving = asyncio.create_task(registry.retrieve(version, copy=False))
            connection, _ = await asyncio.to_thread(listener.accept)
            assert await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)  # its request is there
            retrieving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await retrieving
            with connection:
                assert await asyncio.to_thread(connection.recv, wire.MESSAGE_MAX_BYTES)
                assert await asyncio.to_thread(connection.recv, 1) == b""


async def test_without_descriptor_passing_everything_uses_grpc(
    registry: Any, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("socket.SO_PEERCRED")  # as on Windows and macOS
    assert not await works(registry)
    assert "Local" not in log.text


async def test_threads_share_the_known_socket(server: Server) -> None:
    async with opened("blocking", server.port) as registry:
        await fill(registry)
        client = registry.registry
        views: list[memoryview] = []
        threads = [threading.Thread(target=lambda: views.append(client.retrieve("m", copy=False))) for _ in range(8)]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads))
        assert len(views) == 8
        assert all(is_mapped(view) and view == DATA for view in views)


_READER = """
import sys
from cogment_model_registry import ModelRegistry
registry = ModelRegistry(sys.argv[1])
view = registry.retrieve("m", copy=False)
print(sum(view[::4096]), flush=True)
sys.stdin.readline()
"""


def proportional_bytes(pid: int, name: str) -> int:
    """Return the proportional set size of a file in a process; the sum over all processes is its memory."""
    total = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = name in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


@ARCHIVED
def test_all_readers_have_the_bytes_in_memory_once(tmp_path: Path, archived: bool) -> None:
    data = DATA * 4
    with server_process(tmp_path / "archive") as process:
        endpoint = f"grpc://127.0.0.1:{process.port}"
        readers: list[subprocess.Popen[str]] = []
        try:
            with ModelRegistry(endpoint) as registry:
                (registry.store if archived else registry.publish)("m", data)
            readers = [started(_READER, endpoint) for _ in range(4)]
            for reader in readers:
                assert reader.stdout
                assert reader.stdout.readline() == f"{sum(data[::4096])}\n"
            name = ".data" if archived else "memfd:cogment-model-registry"
            shares = [proportional_bytes(pid, name) for pid in [process.pid, *(reader.pid for reader in readers)]]
            assert all(shares[1:])
            assert 0.95 * len(data) < sum(shares) < 1.05 * len(data)
        finally:
            for reader in readers:
                reader.communicate("\n", timeout=PATIENCE_SECONDS)
    assert {reader.returncode for reader in readers} == {0}
