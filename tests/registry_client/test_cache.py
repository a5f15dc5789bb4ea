"""The cache of the client: it saves calls, is checked against hashes, stays within its size, and is shared."""

import asyncio
import fcntl
import hashlib
import os
import time
from pathlib import Path

import grpc
import pytest

from cogment_model_registry import ModelRegistry, VersionInfo, errors
from cogment_model_registry.client.cache import Cache
from cogment_model_registry.client.opening import CACHE_VARIABLE
from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.server.composition import Server
from cogment_model_registry.wire import messages as m
from tests.processes import server_process, started
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import DATA, Call, chunks, failing, infos, scripted, silence, version_message
from tests.waiting import PATIENCE_SECONDS


def version_of(data: bytes, number: int = 1) -> VersionInfo:
    return VersionInfo("policy", number, 1, False, digest_text(hashlib.sha256(data).digest()), len(data))


def cached_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "lock")


def keep(cache: Cache, data: bytes, directory: Path) -> None:
    source = directory / "source"
    source.write_bytes(data)
    with source.open("rb") as file:
        cache.keep(version_of(data), file)
    source.unlink()


def cached(cache: Cache, data: bytes, directory: Path) -> bool:
    """Return whether the cache has these bytes; it must return these or none."""
    target = directory / "target"
    with target.open("w+b") as file:
        found = cache.copy_to(version_of(data), file)
    assert target.read_bytes() == (data if found else b"")
    return found


async def test_a_cached_version_is_not_fetched_again(flavour: str, tmp_path: Path) -> None:
    once = failing(0, chunks(DATA))
    async with (
        scripted(RetrieveVersionInfos=infos, RetrieveVersionData=once) as server,
        opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry,
    ):
        for _ in range(3):
            assert await registry.retrieve("policy") == DATA
        await registry.download("policy", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == DATA
        assert server.calls["RetrieveVersionData"] == 1


async def test_a_cached_version_needs_no_call(flavour: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    keep(cache, DATA, tmp_path)
    async with (
        scripted(RetrieveVersionInfos=silence, RetrieveVersionData=silence) as server,
        opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry,
    ):
        assert await registry.retrieve(version_of(DATA)) == DATA
        assert sum(server.calls.values()) == 0


async def test_damaged_bytes_in_the_cache_are_fetched_again(flavour: str, tmp_path: Path) -> None:
    async with (
        scripted(RetrieveVersionInfos=infos, RetrieveVersionData=chunks(DATA)) as server,
        opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry,
    ):
        await registry.retrieve("policy")
        [file] = cached_files(tmp_path / "cache")
        for damaged in (DATA[:-1], b"", DATA[:-1] + bytes([DATA[-1] ^ 1])):
            file.write_bytes(damaged)
            assert await registry.retrieve("policy") == DATA
            assert file.read_bytes() == DATA
        assert server.calls["RetrieveVersionData"] == 4


async def test_the_cache_directory_comes_from_the_environment(
    flavour: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    async with opened(flavour, server.port) as registry:
        await registry.publish("policy", DATA)
        assert cached_files(tmp_path / "cache") == []
        await registry.retrieve("policy")
        assert [file.read_bytes() for file in cached_files(tmp_path / "cache")] == [DATA]


async def test_nothing_is_kept_without_a_cache(
    registry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await registry.publish("policy", DATA)  # type: ignore[attr-defined]
    await registry.retrieve("policy")  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == ["archive"]


async def test_an_unusable_cache_is_ignored(
    flavour: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the directory should be")
    async with opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry:
        await registry.publish("policy", DATA)
        assert await registry.retrieve("policy") == DATA
    assert "reading the cache failed: " in caplog.text


def test_the_least_recently_used_file_is_removed_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=2500)
    first, second, third = (bytes([index]) * 1000 for index in range(3))
    for age, data in ((300, first), (200, second)):
        keep(cache, data, tmp_path)
        [file] = [file for file in cached_files(tmp_path / "cache") if file.read_bytes() == data]
        used = time.time() - age
        os.utime(file, (used, used))
    assert cached(cache, first, tmp_path)  # this counts as a use
    keep(cache, third, tmp_path)
    assert cached(cache, first, tmp_path)
    assert not cached(cache, second, tmp_path)
    assert cached(cache, third, tmp_path)


def test_a_version_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=1000)
    keep(cache, b"small", tmp_path)
    keep(cache, bytes(1001), tmp_path)
    assert cached(cache, b"small", tmp_path)
    assert not cached(cache, bytes(1001), tmp_path)


def test_abandoned_temporary_files_are_removed_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    keep(cache, b"1", tmp_path)
    [file] = cached_files(tmp_path / "cache")
    old, new = file.with_name(".new-old"), file.with_name(".new-new")
    for half in (old, new):
        half.write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    keep(cache, b"2", tmp_path)
    assert not old.exists()
    assert new.exists()


USE_CACHE = """
import hashlib, sys
from cogment_model_registry import ModelRegistry
from cogment_model_registry.records.versions import digest_text

endpoint, directory, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
with ModelRegistry(endpoint, cache_dir=directory, cache_max_bytes=300_000) as registry:
    versions = registry.list_versions("policy")
    for index in range(60):
        version = versions[(seed * 7 + index * 13) % len(versions)]
        data = registry.retrieve(version)
        assert digest_text(hashlib.sha256(data).digest()) == version.data_hash
"""


def test_many_processes_share_a_cache_that_is_too_small_for_all(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    with server_process(tmp_path / "archive") as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        with ModelRegistry(endpoint) as registry:
            for index in range(8):
                registry.publish("policy", bytes([index]) * 90_000)
        processes = [started(USE_CACHE, endpoint, str(directory), str(seed)) for seed in range(3)]
        outputs = [process.communicate(timeout=PATIENCE_SECONDS) for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert [errors for _output, errors in outputs] == ["", "", ""]
    files = cached_files(directory)
    assert sum(file.stat().st_size for file in files) <= 300_000
    assert not [file for file in files if file.name.startswith(".new-")]


async def test_a_locked_cache_delays_no_call(flavour: str, server: Server, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    async with opened(flavour, server.port, cache_dir=directory) as registry:
        await registry.retrieve(await registry.publish("policy", b"1"))
        with (directory / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with asyncio.timeout(20):
                assert await registry.retrieve(await registry.publish("policy", b"2")) == b"2"


@pytest.mark.parametrize("data_hash", ["", "no base64!", "AAAA", "\N{SNAKE}"])
async def test_bytes_with_a_malformed_hash_are_not_returned(flavour: str, tmp_path: Path, data_hash: str) -> None:
    async def described(call: Call) -> None:
        await call.send(m.RetrieveVersionInfosReply(version_infos=[version_message(1, data_hash, len(DATA))]))

    async with (
        scripted(RetrieveVersionInfos=described, RetrieveVersionData=chunks(DATA)) as server,
        opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry,
    ):
        with pytest.raises(errors.DataLossError, match="its data_hash is"):
            await registry.retrieve("policy")


async def test_bytes_of_a_failed_fetch_do_not_precede_the_cached_bytes(flavour: str, tmp_path: Path) -> None:
    """The latest version is deleted while it is fetched, and the previous one is in the cache."""
    old, new = os.urandom(500), os.urandom(1000)

    async def described(call: Call) -> None:
        await (infos(call, data=new, number=2) if call.number == 2 else infos(call, data=old))

    async def data(call: Call) -> None:
        if call.number == 1:
            await chunks(old)(call)
        else:
            await chunks(new[:300])(call)
            await call.fail(grpc.StatusCode.NOT_FOUND)

    async with (
        scripted(RetrieveVersionInfos=described, RetrieveVersionData=data) as server,
        opened(flavour, server.port, cache_dir=tmp_path / "cache") as registry,
    ):
        assert await registry.retrieve("policy") == old
        assert await registry.retrieve("policy") == old
        assert server.calls["RetrieveVersionInfos"] == 3
