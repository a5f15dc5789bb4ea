"""Servers and commands on overlay file systems, read-only ones, and those that cannot sync directories."""

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tests.client import Client, connected, refused
from tests.mounts import AS_ROOT, AS_USER, mounted, overlay, read_only
from tests.processes import ServerProcess, run_cogment, server_process
from tests.server.test_health import SERVING, check


@asynccontextmanager
async def serving_in(wrapper: list[str], archive: Path, *flags: str) -> AsyncIterator[tuple[ServerProcess, Client]]:
    """Return a context manager for a server that runs with mounts."""
    with server_process(archive, *flags, before=wrapper) as server:
        async with connected(server.port) as client:
            yield server, client


async def stop(server: ServerProcess) -> None:
    assert await asyncio.to_thread(server.stop) == 0


@pytest.fixture
async def baked(tmp_path: Path) -> Path:
    """An archive with two models, as an image may have it."""
    archive = tmp_path / "baked"
    async with serving_in([], archive) as (server, client):
        for model_id in ("m", "kept"):
            await client.create_model(model_id)
            await client.store(model_id, b"first")
            await client.store(model_id, b"second")
        await stop(server)
    return archive


@pytest.mark.parametrize("unshare", [AS_ROOT, AS_USER], ids=["root", "user"])
async def test_models_of_a_lower_layer_are_stored_to_deleted_and_created_again(
    baked: Path, tmp_path: Path, unshare: tuple[str, ...]
) -> None:
    merged, mount = overlay(baked, tmp_path)
    wrapper = mounted(mount, unshare=unshare)
    async with serving_in(wrapper, merged) as (server, client):
        assert (await client.store("kept", b"third")).version_number == 3
        await client.delete_model("m")
        with refused(grpc.StatusCode.NOT_FOUND):
            await client.numbers("m")
        await client.create_model("m", again="yes")
        assert (await client.store("m", b"new")).version_number == 1
        await client.create_model("new")
        await client.store("new", b"new")
        await client.delete_model("new")
        await client.delete_model("kept")
        assert await check(client) == SERVING
        await stop(server)
        assert not [line for line in server.lines if "[error" in line]
    async with serving_in(wrapper, merged) as (server, client):
        assert [model.model_id for model in (await client.models()).model_infos] == ["m"]
        assert await client.numbers("m") == [1]
        assert await client.data("m") == b"new"
        await stop(server)
    assert (baked / "m/m-v000002.data").read_bytes() == b"second"


async def test_server_finishes_the_deletion_of_a_model_of_a_lower_layer(baked: Path, tmp_path: Path) -> None:
    (baked / "m/.deleted").touch()  # as a killed server leaves it
    merged, mount = overlay(baked, tmp_path)
    wrapper = mounted(mount)
    async with serving_in(wrapper, merged) as (server, client):
        assert [model.model_id for model in (await client.models()).model_infos] == ["kept"]
        await client.create_model("m")
        assert (await client.store("m", b"new")).version_number == 1
        await stop(server)


async def test_model_directory_that_is_a_mount_point_is_emptied(baked: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (baked / "m").rename(elsewhere)
    (baked / "m").mkdir()
    wrapper = mounted(shlex.join(["mount", "--bind", str(elsewhere), str(baked / "m")]))
    async with serving_in(wrapper, baked) as (server, client):
        await client.delete_model("m")
        assert os.listdir(elsewhere) == []
        await client.create_model("m")
        assert (await client.store("m", b"new")).version_number == 1
        await stop(server)
    assert (elsewhere / "m-v000001.data").read_bytes() == b"new"


# Read-only file systems.


async def test_read_only_file_system_is_served(baked: Path) -> None:
    wrapper = mounted(read_only(baked))
    async with serving_in(wrapper, baked, "--read_only") as (server, client):
        assert await client.data("m") == b"second"
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "read-only"):
            await client.publish("m", b"x")
        assert await check(client) == SERVING
        await stop(server)


@pytest.mark.parametrize("exists", [True, False], ids=["archive", "directory above it"])
def test_start_on_a_read_only_file_system_says_what_to_do(baked: Path, exists: bool) -> None:
    archive = baked if exists else baked / "new/archive"
    wrapper = mounted(read_only(baked))
    result = run_cogment(
        "services", "model_registry", "--port=0", "--host=127.0.0.1", f"--archive_dir={archive}", before=wrapper
    )
    assert (result.returncode, result.stdout) == (3, "")
    [line] = result.stderr.splitlines()
    where = "" if exists else f": {baked / 'new'}"
    reason = f"Read-only file system{where}; to serve it as it is, give --read_only"
    assert line == f"error: archive directory {archive} cannot be used: {reason}"


def test_archive_on_a_read_only_file_system_is_verified_and_exported(baked: Path, tmp_path: Path) -> None:
    wrapper = mounted(read_only(baked))
    verified = run_cogment("archive", "verify", str(baked), before=wrapper)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "2 models, 4 versions" in verified.stdout
    exported = run_cogment("archive", "export", str(baked), "m", "--output", str(tmp_path / "m.tar"), before=wrapper)
    assert exported.returncode == 0, exported.stderr
    repaired = run_cogment("archive", "verify", str(baked), "--repair", before=wrapper)
    assert repaired.returncode == 3
    assert repaired.stderr == f"error: archive directory {baked} cannot be used: Read-only file system\n"


# File systems that cannot sync directories.


async def test_archive_below_a_directory_that_cannot_be_synced_is_served(tmp_path: Path) -> None:
    # The directories of /proc cannot be synced, like those of a squashfs.
    place = Path("/proc/tty")
    async with serving_in(mounted(f"mount -t tmpfs none {place}"), place) as (server, client):
        await client.create_model("m")
        assert (await client.store("m", b"data")).version_number == 1
        await stop(server)
