"""Calls that count only archived versions: the API has no such call, so the client looks them up."""

import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import errors
from cogment_model_registry.client import lookups
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import Call, Scripted, has_model, scripted, silence, version_message
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("seed", range(8))
async def test_archived_versions_are_counted_from_the_end(
    flavour: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In models with all mixtures of tiers, with some transient versions evicted."""
    monkeypatch.setattr(lookups, "_FIRST_NUMBERS", 2)
    monkeypatch.setattr(lookups, "_PAGE_ITEMS", 3)
    chance = random.Random(seed)
    share = chance.choice([0.1, 0.5, 0.9])
    async with (
        serving(tmp_path / "archive", Settings(cache_max_items=chance.randint(1, 8), grace_seconds=0)) as server,
        opened(flavour, server.port) as registry,
    ):
        await registry.create_model("policy")
        for number in range(1, chance.randint(2, 25)):
            create = registry.store if chance.random() < share else registry.publish
            await create("policy", str(number).encode())
        every = await registry.list_versions("policy")
        archived = [version for version in every if version.archived]
        assert await registry.list_versions("policy", archived=True) == archived
        for n in range(1, len(archived) + 1):
            assert await registry.get_version("policy", -n, archived=True) == archived[-n]
            assert await registry.retrieve("policy", -n, archived=True) == str(archived[-n].number).encode()
        for version in every:
            if version.archived:
                assert await registry.get_version("policy", version.number, archived=True) == version
                continue
            message = f'version {version.number} of model "policy" is transient, not archived'
            for asked in (version, version.number):
                with pytest.raises(errors.NotFoundError, match=message):
                    await registry.retrieve("policy", asked, archived=True)
        few = {0: "no archived versions", 1: "only 1 archived version$"}
        message = few.get(len(archived), f"only {len(archived)} archived versions")
        with pytest.raises(errors.NotFoundError, match=f'model "policy" has {message}'):
            await registry.get_version("policy", -len(archived) - 1, archived=True)


async def test_the_newest_archived_version_is_downloaded(registry: Any, tmp_path: Path) -> None:
    best = await registry.store("policy", b"best")
    await registry.publish("policy", b"latest")
    assert await registry.download("policy", tmp_path / "file", archived=True) == best
    assert (tmp_path / "file").read_bytes() == b"best"
    assert await registry.retrieve(best, archived=True) == b"best"
    with pytest.raises(errors.NotFoundError, match='model "other" does not exist'):
        await registry.retrieve("other", archived=True)


LATEST_NUMBER = 1_000_000
ARCHIVED = range(1, 1001)
TRANSIENT = range(LATEST_NUMBER - 99, LATEST_NUMBER + 1)


@asynccontextmanager
async def large_model(*, handles_are_positions: bool) -> AsyncIterator[tuple[Scripted, list[int]]]:
    """Return a context manager for a server whose archived versions have far lower numbers than its transient ones.

    It also returns the list of the numbers that the server sent.
    """
    numbers, sent = [*ARCHIVED, *TRANSIENT], []

    async def answer(call: Call) -> None:
        request = m.RetrieveVersionInfosRequest.FromString(await call.receive() or b"")
        handle = int(request.version_handle or 0)
        if request.version_numbers:
            wanted = [numbers[number] for number in request.version_numbers]
        else:
            rest = numbers[handle:] if handles_are_positions else [number for number in numbers if number >= handle]
            wanted = rest[: request.versions_count or 10]
        sent.extend(wanted)
        following = handle + len(wanted) if handles_are_positions else (wanted[-1] + 1 if wanted else handle)
        infos = [version_message(number, archived=number in ARCHIVED) for number in wanted]
        await call.send(m.RetrieveVersionInfosReply(version_infos=infos, next_version_handle=str(following)))

    async with scripted(RetrieveVersionInfos=answer, RetrieveModels=has_model) as server:
        yield server, sent


@pytest.mark.parametrize("handles_are_positions", [False, True])
async def test_a_search_sees_little_of_a_large_model(flavour: str, handles_are_positions: bool) -> None:
    """Even if the handles of a server are positions and not numbers."""
    async with (
        large_model(handles_are_positions=handles_are_positions) as (server, sent),
        opened(flavour, server.port) as registry,
    ):
        assert (await registry.get_version("policy", archived=True)).number == ARCHIVED[-1]
        assert server.calls["RetrieveVersionInfos"] < 40
        assert len(sent) < 3000
        assert (await registry.get_version("policy", -1000, archived=True)).number == 1


async def test_a_watch_yields_archived_versions_only(registry: Any) -> None:
    async def publish(*archived: bool) -> None:
        for each in archived:
            await (registry.store if each else registry.publish)("policy", b"")

    await publish(True, False, False)
    async with aclosing(registry.watch("policy", archived=True)) as versions:
        assert (await anext(versions)).number == 1
        await publish(False, False, True)
        assert (await anext(versions)).number == 6
        await publish(True, False, True, False)
        numbers = [(await anext(versions)).number]
        if numbers == [7]:
            numbers.append((await anext(versions)).number)
        assert numbers[-1] == 9
    async with aclosing(registry.watch("policy", after=9, archived=True)) as versions:
        await publish(False, True)
        assert (await anext(versions)).number == 12


@pytest.mark.parametrize("status", [None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_a_watch_finds_an_archived_version_that_the_stream_skipped(
    flavour: str, status: grpc.StatusCode | None
) -> None:
    """Even if the first attempt to look it up fails."""

    async def version_updates(call: Call) -> None:
        for number, archived in ((2, True), (6, False), (7, False)):
            await call.send(m.VersionUpdateReply(version_info=version_message(number, archived=archived)))
        await silence(call)

    async def listed(call: Call) -> None:
        request = m.RetrieveVersionInfosRequest.FromString(await call.receive() or b"")
        assert request.version_handle == "3"
        if call.number == 1 and status is not None:
            await call.fail(status)
        infos = [version_message(number, archived=number in (3, 4)) for number in (3, 4, 5, 6)]
        await call.send(m.RetrieveVersionInfosReply(version_infos=infos, next_version_handle="7"))

    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=version_updates, RetrieveVersionInfos=listed) as server,
        opened(flavour, server.port) as registry,
        aclosing(registry.watch("policy", archived=True)) as versions,
    ):
        assert [(await anext(versions)).number for _ in range(2)] == [2, 4]
        assert server.calls["RetrieveVersionInfos"] == (1 if status is None else 2)


async def test_a_tracker_follows_archived_versions_only(registry: Any) -> None:
    await registry.publish("policy", b"transient 1")
    async with registry.track("policy", archived=True) as latest:
        await registry.store("policy", b"archived 2")
        assert (await latest.wait_for(timeout=PATIENCE_SECONDS)).number == 2
        for number in range(3, 6):
            await registry.publish("policy", f"transient {number}".encode())
        await registry.store("policy", b"archived 6")
        await registry.publish("policy", b"transient 7")
        assert (await latest.wait_for(newer_than=2, timeout=PATIENCE_SECONDS)).number == 6
        assert latest.value == b"archived 6"
        assert latest.error is None
