"""A read-only server."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.errors import PreconditionError, StartError
from cogment_model_registry.records.lifecycle import AliasChange
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected, next_version, refused
from tests.server.test_health import NOT_SERVING, SERVING, check
from tests.server.test_model_lifecycle import Lifecycle
from tests.server.test_moved_archive import move_away, until_health

READ_ONLY = Settings(read_only=True, grace_seconds=0)


@pytest.fixture
async def archive(tmp_path: Path) -> Path:
    """An archive with a model that has versions, and with the remains of crashes."""
    path = tmp_path / "archive"
    async with serving(path) as server, connected(server.port) as client:
        await client.create_model("m", note="a")
        await client.store("m", b"first")
        await client.store("m", b"second")
        for _ in range(3):
            await client.publish("m", b"transient")
    (path / "m/.~1").touch()
    (path / ".~2").mkdir()
    (path / "deleted").mkdir()
    (path / "deleted/deleted.yaml").write_text("model_id: deleted\n")
    (path / "deleted/.deleted").touch()
    (path / ".lock").unlink()
    return path


@asynccontextmanager
async def reading(archive: Path) -> AsyncIterator[tuple[Server, Client]]:
    """Return a context manager for a read-only server."""
    async with serving(archive, READ_ONLY) as server, connected(server.port) as client:
        yield server, client


def state(archive: Path) -> Iterator[tuple[str, int, int]]:
    """Yield all paths in an archive, with the status fields that a write would change."""
    for path in sorted([archive, *archive.rglob("*")]):
        status = path.stat()
        yield str(path), status.st_mtime_ns, status.st_ctime_ns


async def test_versions_are_listed_retrieved_and_watched_and_nothing_is_written(archive: Path) -> None:
    before = list(state(archive))
    async with reading(archive) as (server, client):
        [model] = (await client.models()).model_infos
        assert (model.model_id, dict(model.user_data)) == ("m", {"note": "a"})
        assert await client.numbers("m") == [1, 2]
        assert await client.data("m", -1) == b"second"
        watch = client.watching("m")
        assert (await next_version(watch)).version_number == 2
        await server.refresh()
        assert await check(client) == SERVING
        assert await client.status("archive", "overall_load") == {"archive": "read-only", "overall_load": "0"}
        watch.cancel()
    assert list(state(archive)) == before


@pytest.mark.parametrize("model_id", ["m", "unknown"])
async def test_every_write_is_a_failed_precondition(archive: Path, model_id: str) -> None:
    before = list(state(archive))
    async with reading(archive) as (_, client):
        for call in (
            client.create_model(model_id),
            client.delete_model(model_id),
            client.store(model_id, b"x"),
            client.publish(model_id, b"x"),
        ):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "this registry is read-only"):
                await call
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await client.create_model("")
    assert list(state(archive)) == before


async def test_python_client_raises_the_error_at_once(archive: Path) -> None:
    async with reading(archive) as (server, _):

        def publish() -> None:
            with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
                registry.publish("m", b"x")

        with pytest.raises(PreconditionError, match="this registry is read-only"):
            await asyncio.to_thread(publish)


async def test_archive_of_another_server_is_served_and_followed_by_rescans(archive: Path) -> None:
    async with (
        serving(archive) as writer,
        connected(writer.port) as writing,
        reading(archive) as (server, client),
        reading(archive) as (_, other),
    ):
        watch = client.watching("m")
        assert (await next_version(watch)).version_number == 2
        number = (await writing.store("m", b"third")).version_number
        await writing.create_model("new")
        await server.refresh()
        assert (await next_version(watch)).version_number == number
        assert await client.data("m") == b"third"
        assert await client.numbers("new") == []
        assert await other.numbers("m") == [1, 2]
        watch.cancel()


async def test_archive_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(StartError, match=f"{path} cannot be used: {os.strerror(2)}"):
        async with reading(path):
            pass
    assert not path.exists()


async def test_health_says_when_the_directory_is_not_at_its_path(archive: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    async with reading(archive) as (_, client):
        move_away(archive, aside)
        await until_health(client, NOT_SERVING)
        assert await client.data("m") == b"second"
        move_away(aside, archive)
        await until_health(client, SERVING)


async def test_aliases_just_set_by_a_running_server_are_visible(archive: Path) -> None:
    async with serving(archive) as writer, connected(writer.port) as writing:
        for number in (1, 2, 1, 2):
            await Lifecycle(writing).set_aliases(AliasChange("production", number))
            async with reading(archive) as (_, client):
                [model] = (await Lifecycle(client).models("m")).models
                assert [alias.version_number for alias in model.aliases] == [number]


async def test_a_database_that_is_not_a_regular_file_is_refused(archive: Path) -> None:
    (archive / ".catalog.sqlite3").unlink()
    (archive / ".catalog.sqlite3").mkdir()
    with pytest.raises(StartError, match="is not usable: it is not a regular file"):
        async with reading(archive):
            pass
