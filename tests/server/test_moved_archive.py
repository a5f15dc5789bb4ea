"""An archive directory that is moved, removed or replaced while a server runs, and restored."""

import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cogment_model_registry.errors import StartError, UnavailableError
from cogment_model_registry.server.composition import Server
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected, refused
from tests.server.test_health import NOT_SERVING, SERVING, check
from tests.server.under_way import serving_process
from tests.waiting import eventually


async def until_health(client: Client, expected: int) -> None:
    async def has_health() -> bool:
        return await check(client) == expected

    await eventually(has_health)


async def expect_no_writes(client: Client, reason: str) -> None:
    """Expect that writes are refused, that reads work, and that the server says why."""
    for call in (
        client.store("m", b"lost"),
        client.create_model("n"),
        client.create_model("m"),
        client.delete_model("m"),
    ):
        with refused(grpc.StatusCode.UNAVAILABLE, reason):
            await call
    assert await client.data("m", 1) == b"first"
    await until_health(client, NOT_SERVING)
    status = await client.status("archive", "overall_load")
    assert reason in status["archive"]
    assert status["overall_load"] == "255"


async def expect_writes(client: Client) -> None:
    number = (await client.store("m", b"later")).version_number
    assert await client.data("m", number) == b"later"
    await until_health(client, SERVING)
    assert (await client.status("archive"))["archive"] == "ok"


@asynccontextmanager
async def stored(archive: Path) -> AsyncIterator[tuple[Server, Client]]:
    """Return a context manager for a server that has a model with a version."""
    async with serving(archive) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.store("m", b"first")
        yield server, client


def move_away(archive: Path, aside: Path) -> None:
    archive.rename(aside)


def replace_by_a_copy(archive: Path, aside: Path) -> None:
    archive.rename(aside)
    shutil.copytree(aside, archive)


def replace_by_a_link_to_another(archive: Path, aside: Path) -> None:
    archive.rename(aside)
    (aside.parent / "other").mkdir()
    archive.symlink_to(aside.parent / "other")


def replace_by_a_file(archive: Path, aside: Path) -> None:
    archive.rename(aside)
    archive.touch()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        (move_away, "its directory is not at its path any more"),
        (replace_by_a_copy, "another directory is at its path"),
        (replace_by_a_link_to_another, "another directory is at its path"),
        (replace_by_a_file, "another directory is at its path"),
    ],
)
async def test_nothing_is_written_while_another_directory_or_none_is_at_the_path(
    tmp_path: Path, take: Callable[[Path, Path], None], reason: str
) -> None:
    archive, aside = tmp_path / "archive", tmp_path / "aside"
    async with stored(archive) as (server, client):
        take(archive, aside)
        await expect_no_writes(client, reason)
        with pytest.raises(UnavailableError, match=reason):
            await server.refresh()
        assert await client.numbers("m") == [1]
        assert sorted(os.listdir(aside / "m"))[-3:] == ["m-v000001.data", "m-v000001.yaml", "m.yaml"]
        remove(archive)
        aside.rename(archive)
        await expect_writes(client)
        await server.refresh()
        assert await client.numbers("m") == [1, 2]


async def test_health_reports_without_a_call_that_the_archive_is_gone_and_back(tmp_path: Path) -> None:
    async with stored(tmp_path / "archive") as (_, client):
        (tmp_path / "archive").rename(tmp_path / "aside")
        await until_health(client, NOT_SERVING)
        (tmp_path / "aside").rename(tmp_path / "archive")
        await until_health(client, SERVING)


async def test_server_on_a_copy_at_the_path_misses_no_version_that_was_acknowledged(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with stored(archive) as (_, client):
        replace_by_a_copy(archive, tmp_path / "aside")
        acknowledged = []
        async with serving(archive) as other, connected(other.port) as other_client:
            for number in range(5):
                data = b"%d" % number
                try:
                    await client.store("m", data)
                except grpc.aio.AioRpcError:
                    continue
                acknowledged.append(data)
            assert await other_client.data("m", 1) == b"first"
            numbers = await other_client.numbers("m")
            assert acknowledged == [await other_client.data("m", number) for number in numbers[1:]]


async def test_removed_lock_is_taken_again_so_no_second_server_starts(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with stored(archive) as (_, client):
        (archive / ".lock").unlink()
        await expect_writes(client)
        assert (archive / ".lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(StartError, match="is in use by process"):
            async with serving(archive):
                pass


async def test_nothing_is_written_after_another_server_took_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with stored(archive) as (_, client):
        (archive / ".lock").rename(tmp_path / "lock")
        (archive / ".lock").touch()
        await expect_no_writes(client, "its lock was replaced")
        (tmp_path / "lock").rename(archive / ".lock")
        await expect_writes(client)


async def test_hangup_reports_a_missing_archive_and_forgets_no_version(tmp_path: Path) -> None:
    archive, aside = tmp_path / "archive", tmp_path / "aside"
    async with serving_process(archive) as (server, client):
        await client.create_model("m")
        await client.publish("m", b"transient")
        archive.rename(aside)
        server.signal(signal.SIGHUP)
        server.wait_for_line("rescan of the archive failed.*not at its path")
        assert await client.data("m") == b"transient"
        aside.rename(archive)
        server.wait_for_line("archive takes writes again")
        await client.store("m", b"stored")
        assert server.stop() == 0
