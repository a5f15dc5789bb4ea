"""A server whose archive is in an object store, over the wire."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.errors import StartError
from cogment_model_registry.server.bucket_backend import default_catalog_dir
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected, next_version, refused
from tests.object_store import BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.processes import ServerProcess, run_cogment, server_process

SETTINGS = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, local_socket="", retention_seconds=0)


@pytest.fixture
def url(object_store: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an archive that nobody has used, with the variables that lead to its store."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}/models"


@asynccontextmanager
async def bucket_server(url: str, folder: Path, *, read_only: bool = False) -> AsyncIterator[Client]:
    """Return a context manager with a client of a server."""
    settings = replace(SETTINGS, archive_url=url, read_only=read_only)
    async with serving(folder, settings) as server, connected(server.port) as client:
        yield client


def bucket_process(url: str, folder: Path, *flags: str) -> AbstractContextManager[ServerProcess]:
    """Return a context manager with a server in a process of its own."""
    store = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    return server_process(folder, f"--archive_url={url}", *flags, environment=store)


async def test_both_tiers_work_and_archived_versions_outlive_the_server(url: str, tmp_path: Path) -> None:
    large = os.urandom(20_000_000)
    async with bucket_server(url, tmp_path / "catalog") as client:
        await client.create_model("été", a="b")
        watch = client.watching("été")
        assert (await client.publish("été", b"transient")).version_number == 1
        assert (await next_version(watch)).version_number == 1
        assert (await client.store("été", large)).version_number == 2
        assert (await next_version(watch)).version_number == 2
        assert await client.data("été", 2) == large
        watch.cancel()
    async with bucket_server(url, tmp_path / "catalog") as client:
        assert await client.numbers("été") == [2]
        assert await client.data("été", 2) == large
        assert (await client.publish("été", b"next")).version_number == 3


def test_the_lifecycle_works_and_only_annotations_go_with_the_catalog(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    with bucket_process(url, folder) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        registry.create_model("m", user_data={"a": "b"})
        version = registry.publish("m", b"data", tags={"kind": "best"})
        registry.promote("m", version.number, alias="champion")
        registry.store("m", b"data", tags={"kind": "copy"})  # the same bytes: the store copies them
        assert registry.retrieve("m", "champion") == b"data"
        assert process.stop() == 0
    shutil.rmtree(folder)
    with bucket_process(url, folder) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        assert registry.get_model("m").user_data == {"a": "b"}
        assert [each.number for each in registry.list_versions("m")] == [1, 2]
        assert registry.aliases("m") == {}
        assert registry.retrieve("m", 2) == b"data"
        registry.delete_version("m", 1)
        assert [each.number for each in registry.list_versions("m")] == [2]
        registry.delete_model("m")
        assert registry.list_models() == []


def test_a_killed_server_starts_again_at_once_and_has_what_it_acknowledged(url: str, tmp_path: Path) -> None:
    with bucket_process(url, tmp_path / "catalog") as process:
        with ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
            registry.create_model("m")
            stored = [registry.store("m", bytes([size]) * size).number for size in range(3)]
        process.kill()
    with bucket_process(url, tmp_path / "catalog") as process:
        assert not any("waiting for the lease" in line for line in process.lines)
        with ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
            assert [each.number for each in registry.list_versions("m")] == stored
            assert registry.retrieve("m", stored[2]) == b"\2\2"
            assert registry.store("m", b"next").number > stored[-1]


async def test_a_second_server_is_refused_whatever_its_catalog(url: str, tmp_path: Path) -> None:
    async with bucket_server(url, tmp_path / "catalog"):
        with pytest.raises(StartError, match="is in use by process"):
            async with bucket_server(url, tmp_path / "catalog"):
                pass
        # Before it refuses, it looks for signs of life for up to a lease.
        with pytest.raises(StartError, match=rf"archive {url} is in use by process {os.getpid()} on "):
            async with bucket_server(url, tmp_path / "other"):
                pass


async def test_a_server_that_only_reads_may_run_next_to_the_owner(url: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no server has used it"):
        async with bucket_server(url, tmp_path / "reader", read_only=True):
            pass
    async with bucket_server(url, tmp_path / "catalog") as client:
        await client.create_model("m")
        await client.store("m", b"data")
        async with bucket_server(url, tmp_path / "reader", read_only=True) as reader:
            assert await reader.data("m") == b"data"
            with refused(grpc.StatusCode.FAILED_PRECONDITION):
                await reader.store("m", b"more")
    assert not (tmp_path / "reader").exists()


async def test_a_catalog_of_another_archive_is_refused(url: str, tmp_path: Path) -> None:
    async with bucket_server(url, tmp_path / "catalog"):
        pass
    with pytest.raises(StartError, match="belongs to another archive"):
        async with bucket_server(f"{url}2", tmp_path / "catalog"):
            pass


def test_the_catalog_of_each_archive_has_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a")
    first = default_catalog_dir("s3://bucket/a")
    assert first.startswith("/state/cogment_model_registry/s3_bucket_a-")
    assert first == default_catalog_dir("s3://bucket/a") != default_catalog_dir("s3://bucket_a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://b")
    assert first != default_catalog_dir("s3://bucket/a")


def test_wrong_credentials_are_an_error_of_one_line_without_secrets(url: str, tmp_path: Path) -> None:
    environment = {**{name: os.environ[name] for name in os.environ if name.startswith("AWS_")}}
    environment["AWS_SECRET_ACCESS_KEY"] = wrong = SECRET_ACCESS_KEY[::-1]
    flags = [f"--archive_url={url}", f"--catalog_dir={tmp_path / 'catalog'}", "--port=0"]
    ended = run_cogment("services", "model_registry", *flags, environment=environment)
    assert ended.returncode == 3
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: archive {url} cannot be used: ")
    assert wrong not in ended.stdout + ended.stderr


def test_an_archive_in_two_places_is_refused(tmp_path: Path) -> None:
    flags = ["--archive_url=s3://a/b", f"--archive_dir={tmp_path}"]
    ended = run_cogment("services", "model_registry", *flags)
    assert ended.returncode == 2
    assert ended.stderr.startswith('error: archive_url: "s3://a/b" is not allowed; it must be unset when archive_dir')
