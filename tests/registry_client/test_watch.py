"""Watching every version, tracking with inline bytes, and following an alias."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cogment_model_registry import Gap, aio, errors
from cogment_model_registry.client import retrievals, watch_streams, watching
from cogment_model_registry.records.versions import VersionInfo, digest_text
from cogment_model_registry.server.composition import Server
from cogment_model_registry.wire import watching as wire
from tests.ports import free_port
from tests.processes import server_process
from tests.registry_client.conftest import counted, opened
from tests.registry_client.scripted import Answer, Call, chunks, has_model, infos, scripted, version_message
from tests.waiting import until

PATIENT = 50.0


async def next_of(versions: Any) -> str:
    """Return the next version or gap that a watch yields, as a short text."""
    async with asyncio.timeout(PATIENT):
        event = await anext(versions)
    if isinstance(event, Gap):
        return f"{event.first_number}-{event.last_number}"
    assert isinstance(event, VersionInfo)
    return str(event.number)


async def following(versions: AsyncIterator[Any], count: int) -> list[str]:
    return [await next_of(versions) for _ in range(count)]


async def test_every_version_is_yielded_or_a_gap(registry: Any) -> None:
    for number in range(1, 6):
        await registry.publish("policy", f"{number}".encode())
    await registry.delete_version("policy", 3)
    async with aclosing(registry.watch("policy", all=True)) as versions:
        assert await following(versions, 5) == ["1", "2", "3-3", "4", "5"]
        await registry.publish("policy", b"6", user_data={"seed": "1"})
        assert await next_of(versions) == "6"
    async with aclosing(registry.watch("policy", all=True, after=2)) as versions:
        assert await following(versions, 4) == ["3-3", "4", "5", "6"]


async def test_every_archived_version_is_yielded(registry: Any) -> None:
    for number in range(1, 5):
        await (registry.store if number % 2 else registry.publish)("policy", b"x")
    async with aclosing(registry.watch("policy", all=True, archived=True)) as versions:
        assert await following(versions, 2) == ["1", "3"]
        await registry.publish("policy", b"x")
        await registry.store("policy", b"x")
        assert await next_of(versions) == "6"


async def test_watching_every_version_ends_with_the_model(registry: Any) -> None:
    async with aclosing(registry.watch("policy", all=True)) as versions:
        with pytest.raises(errors.NotFoundError):
            await next_of(versions)
    await registry.publish("policy", b"1")
    async with aclosing(registry.watch("policy", all=True)) as versions:
        assert await next_of(versions) == "1"
        waiting = asyncio.ensure_future(next_of(versions))
        await registry.delete_model("policy")
        with pytest.raises(errors.NotFoundError):
            await waiting


async def test_every_version_is_yielded_over_restarts_and_many_streams(
    flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed, and loses transient versions before they were sent."""
    monkeypatch.setattr(watching, "STREAM_SECONDS", 0.5)
    port = f"--port={free_port()}"
    received: list[str] = []
    with server_process(tmp_path / "archive", port) as server:
        async with opened(flavour, server.port) as registry, aclosing(registry.watch("policy", all=True)) as versions:
            for _ in range(3):
                await registry.store("policy", b"x")
            received += await following(versions, 3)
            for _ in range(3):
                await registry.publish("policy", b"lost")
            await asyncio.to_thread(server.kill)
            with server_process(tmp_path / "archive", port):
                newest = (await registry.store("policy", b"x")).number
                while received[-1] != str(newest):
                    received.append(await next_of(versions))
                again = await registry.store("policy", b"x")
                assert await next_of(versions) == str(again.number)
    covered: list[int] = []
    for each in received:
        first, _, last = each.partition("-")
        covered += range(int(first), int(last or first) + 1)
    assert covered == [*range(1, newest + 1)]


async def test_a_server_without_the_call_cannot_yield_every_version(flavour: str) -> None:
    async with scripted(RetrieveModels=has_model) as server, opened(flavour, server.port) as registry:
        async with aclosing(registry.watch("policy", all=True)) as versions:
            with pytest.raises(errors.ModelRegistryError, match="ModelLifecycle"):
                await next_of(versions)
        async with registry.track("policy", alias="production") as latest:
            await until(lambda: "ModelLifecycle" in str(latest.error))


@pytest.mark.parametrize("has_cache", [False, True], ids=["no cache", "cache"])
async def test_a_tracker_receives_small_versions_with_their_bytes(
    flavour: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_cache: bool
) -> None:
    retrieved: list[VersionInfo] = []
    retrieve = retrievals.Retrievals.retrieve

    async def note(self: retrievals.Retrievals, model: Any, *arguments: Any, **options: Any) -> bytes:
        retrieved.append(model)
        return await retrieve(self, model, *arguments, **options)

    monkeypatch.setattr(retrievals.Retrievals, "retrieve", note)
    cache = {"cache_dir": tmp_path / "cache"} if has_cache else {}
    async with opened(flavour, server.port, **cache) as registry, registry.track("policy") as latest:
        for number, size in enumerate((10, 300_000, 0, watch_streams.INLINE_MAX_BYTES + 1), 1):
            data = Random(size).randbytes(size)
            await registry.publish("policy", data)
            await latest.wait_for(number - 1, timeout=PATIENT)
            assert latest.snapshot == (await registry.get_version("policy"), data)
    assert [info.number for info in retrieved] == ([1, 2, 3, 4] if has_cache else [4])


async def test_a_tracker_fetches_a_version_whose_inline_bytes_are_incomplete(flavour: str) -> None:
    """The next stream requests no bytes, since it may break again before they are complete."""
    data = b"whole"
    info = version_message(1, digest_text(hashlib.sha256(data).digest()), len(data))
    asked: list[int] = []

    async def watch(call: Call) -> None:
        request = wire.WatchRequest.FromString(await call.receive() or b"")
        asked.append(request.inline_max_bytes)
        await call.send(wire.WatchReply(model={"model_info": {"model_id": "policy"}}))
        await call.send(wire.WatchReply(version={"version_info": info}))
        if len(asked) == 1:
            await call.send(wire.WatchReply(data={"data_chunk": b"half"}))
        else:
            await asyncio.sleep(PATIENT)

    answers: dict[str, Answer] = {
        "RetrieveModels": has_model,
        "RetrieveVersionInfos": partial(infos, data=data),
        "RetrieveVersionData": chunks(data),
        "Watch": watch,
    }
    async with (
        scripted(**answers) as server,
        opened(flavour, server.port) as registry,
        registry.track("policy") as latest,
    ):
        await latest.wait_for(timeout=PATIENT)
        assert latest.value == data
    assert asked[:2] == [watch_streams.INLINE_MAX_BYTES, 0]


async def test_an_alias_is_followed_wherever_it_points(registry: Any) -> None:
    for number in (1, 2, 3):
        await registry.store("policy", f"{number}".encode())
    async with registry.track("policy", decode=int, alias="production") as latest:
        await until(lambda: "no alias" in str(latest.error))
        for number in (2, 3, 1):
            before = latest.version.number if latest.version else 0
            await registry.set_alias("policy", "production", number)
            assert (await latest.wait_for(before, timeout=PATIENT)).number == number
            assert latest.value == number
            assert latest.error is None
        await registry.store("policy", b"4", alias="production")
        await latest.wait_for(1, timeout=PATIENT)
        assert latest.value == 4
        await registry.remove_alias("policy", "production")
        await until(lambda: "no alias" in str(latest.error))
        assert latest.value == 4
        await counted(registry, watchers=1)


async def test_an_alias_excludes_a_choice_of_versions(server: Server) -> None:
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        with pytest.raises(errors.InvalidError, match="alias or archived"):
            registry.track("policy", archived=True, alias="production")
