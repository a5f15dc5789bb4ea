"""Retrievals in parts, and retrievals that resume where they broke."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import ModelRegistry, Progress, errors
from cogment_model_registry.client import downloads, fetching
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.frames import build_read_chunk
from tests.registry_client.conftest import opened
from tests.registry_client.network import Relay, cutting, listening
from tests.registry_client.scripted import DATA, Answer, Call, chunks, scripted, version_message

LARGE = os.urandom(12 * MIB + 12_345)

SPEEDS = {"fast": 0.0, "slow": math.inf}


@pytest.fixture(params=SPEEDS)
def speed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the client treat a version of some MiB like one of some GiB, and the path as fast or slow."""
    monkeypatch.setattr(fetching, "_LARGE_BYTES", 4 * MIB)
    monkeypatch.setattr(fetching, "_FIRST_BYTES", 3 * MIB)
    monkeypatch.setattr(downloads, "_PART_BYTES", MIB // 2)
    monkeypatch.setattr(fetching, "_FAST_BYTES_PER_SECOND", SPEEDS[request.param])
    return str(request.param)


async def retrieved(registry: Any, how: str, tmp_path: Path, *arguments: Any, **options: Any) -> bytes:
    """Return the bytes of a version, retrieved into memory or into a file."""
    if how == "retrieve":
        data: bytes = await registry.retrieve(*arguments, **options)
        return data
    await registry.download(arguments[0], tmp_path / "file", **options)
    return (tmp_path / "file").read_bytes()


HOW = pytest.mark.parametrize("how", ["retrieve", "download"])


@HOW
async def test_a_large_archived_version_comes_over_as_many_connections_as_the_path_needs(
    flavour: str, server: Server, tmp_path: Path, speed: str, how: str
) -> None:
    relay = Relay(server.port)
    reports: list[Progress] = []
    async with listening(relay.relay) as port, opened(flavour, port, cache_dir=tmp_path / "cache") as registry:
        await registry.store("policy", LARGE)
        await registry.status()  # uploads of the asyncio client have their own connection
        before = relay.connections
        for _ in range(2):  # the second retrieval is from the cache
            assert await retrieved(registry, how, tmp_path, "policy", progress=reports.append) == LARGE
        more = 3 if how == "retrieve" else 2
        assert relay.connections - before == (more if speed == "slow" else 0)
    assert reports[-1].done_bytes == reports[-1].total_bytes == len(LARGE)
    assert [each.done_bytes for each in reports] == sorted(each.done_bytes for each in reports)


@pytest.mark.parametrize("tier", ["publish", "store"])
async def test_a_broken_retrieval_resumes_where_it_broke(
    flavour: str, server: Server, tmp_path: Path, speed: str, tier: str
) -> None:
    how = "retrieve" if tier == "publish" else "download"
    async with opened(flavour, server.port) as registry:
        await getattr(registry, tier)("policy", LARGE)
    reports: list[int] = []
    note = lambda progress: reports.append(progress.done_bytes)  # noqa: E731
    async with cutting(server.port, cuts=4, after_bytes=MIB) as port, opened(flavour, port) as registry:
        assert await retrieved(registry, how, tmp_path, "policy", progress=note) == LARGE
    assert reports == sorted(reports)
    assert reports[-1] == len(LARGE)


@HOW
async def test_two_versions_are_never_mixed(flavour: str, server: Server, tmp_path: Path, speed: str, how: str) -> None:
    other = bytes(len(LARGE))

    def replace(replaced: list[bool], progress: Progress) -> None:
        if not replaced and progress.done_bytes >= 3 * MIB:
            replaced.append(True)
            with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
                registry.delete_model("policy")
                registry.store("policy", other)

    async with opened(flavour, server.port) as registry:
        await registry.store("policy", LARGE)
    async with cutting(server.port, cuts=1, after_bytes=5 * MIB) as port, opened(flavour, port) as registry:
        replaced: list[bool] = []
        known = await registry.get_version("policy")
        received = await asyncio.to_thread(
            lambda: asyncio.run(_retrieved_apart(flavour, port, how, tmp_path, partial(replace, replaced)))
        )
        assert received == other
        with pytest.raises(errors.NotFoundError, match="created again"):
            await retrieved(registry, how, tmp_path, known)


async def _retrieved_apart(
    flavour: str, port: int, how: str, tmp_path: Path, progress: Callable[[Progress], None]
) -> bytes:
    """Retrieve on another event loop than the server's, since `progress` waits for the server."""
    async with opened(flavour, port) as registry:
        return await retrieved(registry, how, tmp_path, "policy", progress=progress)


async def test_damage_found_by_the_client_is_recorded_by_the_server(registry: Any, tmp_path: Path, speed: str) -> None:
    version = await registry.store("policy", LARGE)
    with (tmp_path / "archive/policy/policy-v000001.data").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([LARGE[-1] ^ 1]))
    with pytest.raises(errors.DataLossError, match="its bytes do not match their hash"):
        await registry.retrieve(version)
    assert await registry.list_versions("policy") == []


async def test_a_version_can_be_named_by_its_alias(registry: Any, tmp_path: Path, speed: str) -> None:
    await registry.publish("policy", LARGE)
    await registry.set_alias("policy", "production", 1)
    await registry.publish("policy", b"newer")
    assert await registry.retrieve("policy", "production") == LARGE
    assert (await registry.download("policy", tmp_path / "file", version="production")).number == 1


# Scripted servers.


def parts_of(data: bytes, *, fails_after: int | None = None, changes: Callable[[bytes], bytes] = bytes) -> Answer:
    """Return an answer to ReadVersion with a part of some bytes, after `change`; it may fail in the middle."""

    async def answer(call: Call) -> None:
        request = lifecycle.ReadVersionRequest.FromString(await call.receive() or b"")
        assert request.expected_hash == hash_of(data)
        version = lifecycle.VersionMessage(version_info=version_message(1, hash_of(data), len(data), archived=True))
        await call.send(lifecycle.ReadVersionReply(version=version))
        part = changes(data[request.offset :][: request.limit or None])
        await call.send(build_read_chunk([part[:fails_after]]))
        if fails_after is not None and fails_after < len(part):
            await call.fail(grpc.StatusCode.UNAVAILABLE)

    return answer


async def archived_infos(call: Call) -> None:
    message = version_message(1, hash_of(DATA), len(DATA), archived=True)
    await call.send(m.RetrieveVersionInfosReply(version_infos=[message], next_version_handle="2"))


@asynccontextmanager
async def answering(flavour: str, **answers: Answer) -> AsyncIterator[tuple[Any, dict[str, int]]]:
    """Return a context manager for a client of a scripted server with one version, and the counts of its calls."""
    async with (
        scripted(RetrieveVersionInfos=archived_infos, **answers) as server,
        opened(flavour, server.port, retry_seconds=0.15) as registry,
    ):
        yield registry, server.calls


async def test_a_server_without_parts_sends_the_whole(flavour: str, speed: str) -> None:
    async with answering(flavour, RetrieveVersionData=chunks(DATA)) as (registry, calls):
        assert await registry.retrieve("policy") == DATA
        assert calls["RetrieveVersionData"] == 1


async def test_each_received_byte_restarts_the_patience(flavour: str, speed: str) -> None:
    """Each wait is between 0.05 and 0.1 seconds, and patience lasts for 0.15."""
    async with answering(flavour, ReadVersion=parts_of(DATA, fails_after=300_000)) as (registry, calls):
        assert await registry.retrieve("policy") == DATA
        assert calls["ReadVersion"] > len(DATA) // 300_000


@pytest.mark.parametrize(
    "changes",
    [lambda part: part[:-1], lambda part: part + b"x", lambda part: part[:-1] + b"x", lambda _part: b""],
    ids=["short", "long", "wrong", "nothing"],
)
async def test_after_wrong_parts_the_whole_version_is_retrieved(
    flavour: str, speed: str, changes: Callable[[bytes], bytes]
) -> None:
    answers = {"ReadVersion": parts_of(DATA, changes=changes), "RetrieveVersionData": chunks(DATA)}
    async with answering(flavour, **answers) as (registry, calls):
        assert await registry.retrieve("policy") == DATA
        assert calls["RetrieveVersionData"] == 1


async def test_closing_the_client_ends_all_its_streams(flavour: str, speed: str, tmp_path: Path) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    stalled = 0

    async def answer(call: Call) -> None:
        nonlocal stalled
        await parts_of(DATA)(call)
        if call.number > 1:
            stalled += 1
            if stalled == (2 if speed == "slow" else 1):  # one stream for each part
                loop.call_soon_threadsafe(begun.set)
            await asyncio.Event().wait()

    async with answering(flavour, ReadVersion=answer) as (registry, _):
        task = asyncio.ensure_future(registry.download("policy", tmp_path / "file"))
        await begun.wait()
        await registry.close()
        with pytest.raises(errors.ClosedError):
            await task
    assert os.listdir(tmp_path) == []
