"""Publishes of one model that share a change, and what they do to each other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from cogment_model_registry.errors import PreconditionError, TooLargeError, UnavailableError
from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import Lost
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.testing.bytes import describe
from cogment_model_registry.testing.catalog import publish
from tests.postgres import execute
from tests.waiting import until

_MANY = 8


class _Observed:
    """A catalog with the model ``m``, and how often it has run each statement."""

    def __init__(self, url: str) -> None:
        self.statements = Counter[str]()
        self.catalog = PostgresCatalog(url, observe=lambda name, _seconds: self.statements.update([name]))


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[_Observed]:
    observed = _Observed(url)
    await observed.catalog.open()
    try:
        await observed.catalog.leases.take("grpc://server")
        yield observed
    finally:
        await observed.catalog.close()


@pytest.fixture
async def observed(database: str) -> AsyncIterator[_Observed]:
    async with _opened(database) as observed:
        async with observed.catalog.writing_model(ModelInfo("m", {})):
            pass
        yield observed


@pytest.fixture
def catalog(observed: _Observed) -> PostgresCatalog:
    return observed.catalog


async def _numbers(catalog: PostgresCatalog) -> list[int]:
    return [info.number for info in await catalog.list_versions("m", 0, 1000)]


async def _joined(catalog: PostgresCatalog, count: int) -> None:
    """Wait until some publishes wait for the end of a change."""
    ref = await catalog.find("m")
    await until(lambda: ref in catalog._batches._open and len(catalog._batches._open[ref].members) == count)


def _lost(catalog: PostgresCatalog) -> Sequence[Lost]:
    line = catalog._core.lines.find("m")
    return line.history.lost(0) if line else ()


async def test_publishes_that_wait_for_their_turn_share_a_transaction(observed: _Observed) -> None:
    catalog = observed.catalog
    async with catalog.publishing(await catalog.find("m")) as slot:
        waiting = [asyncio.create_task(publish(catalog, "m")) for _ in range(_MANY)]
        await _joined(catalog, _MANY)
        slot.show(describe("m", slot.number, b"data", False))
        observed.statements.clear()
    infos = await asyncio.gather(*waiting)
    assert [info.number for info in infos] == [*range(2, _MANY + 2)]
    assert await _numbers(catalog) == [*range(1, _MANY + 2)]
    assert observed.statements["commit"] == 2
    assert observed.statements["take number"] == 0  # the first publish has told which are the next ones


async def test_a_publish_that_fails_uses_up_its_number_and_disturbs_nobody(catalog: PostgresCatalog) -> None:
    ref = await catalog.find("m")

    async def fail() -> None:
        async with catalog.publishing(ref):
            raise PreconditionError("for the test")

    async def show_nothing() -> None:
        async with catalog.publishing(ref):
            pass

    async with catalog.publishing(ref):
        works = (publish(catalog, "m"), fail(), show_nothing(), publish(catalog, "m"))
        waiting = [asyncio.create_task(work) for work in works]
        await _joined(catalog, len(works))
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [VersionInfo, PreconditionError, type(None), VersionInfo]
    assert await _numbers(catalog) == [4, 5]  # the others had joined before
    assert (await publish(catalog, "m")).number == 6


async def test_a_publish_that_is_cancelled_while_it_waits_disturbs_nobody(catalog: PostgresCatalog) -> None:
    async with catalog.publishing(await catalog.find("m")):
        waiting = [asyncio.create_task(publish(catalog, "m")) for _ in range(3)]
        await _joined(catalog, 3)
        waiting[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
    assert [(await waiting[turn]).number for turn in (0, 2)] == [2, 3]
    assert await _numbers(catalog) == [2, 3]


async def test_all_that_share_a_lost_connection_fail_and_show_nothing(catalog: PostgresCatalog) -> None:
    ref = await catalog.find("m")
    await publish(catalog, "m")
    entered = asyncio.Semaphore(0)
    lost = asyncio.Event()

    async def publish_when_lost() -> None:
        async with catalog.publishing(ref) as slot:
            entered.release()
            await lost.wait()
            slot.show(describe("m", slot.number, b"data", False))

    async with catalog.publishing(ref):
        waiting = [asyncio.create_task(publish_when_lost()) for _ in range(3)]
        await _joined(catalog, 3)
    for _ in range(3):
        await entered.acquire()
    await execute(
        catalog._connections._url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database() AND state = 'idle in transaction'",
    )
    lost.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, UnavailableError) for each in outcomes)
    assert await _numbers(catalog) == [1]
    assert (await publish(catalog, "m")).number == 6


async def test_evicted_versions_disappear_with_the_publish_that_evicted_them(observed: _Observed) -> None:
    catalog = observed.catalog
    infos = [await publish(catalog, "m") for _ in range(3)]
    observed.statements.clear()
    async with catalog.publishing(await catalog.find("m")) as slot:
        assert slot.forget(infos[:2]) == ()
        slot.show(describe("m", slot.number, b"data", False))
        assert await _numbers(catalog) == [1, 2, 3]
    assert await _numbers(catalog) == [3, 4]
    assert observed.statements["forget"] == 0
    await until(lambda: len(_lost(catalog)) == 2)  # it hears of them
    news = await catalog.get_news("m", 0, 0, 10)
    assert [(each.first_number, each.reason) for each in news.lost] == [(1, "evicted"), (2, "evicted")]


async def test_a_version_that_another_server_has_stays_when_it_is_evicted_here(
    catalog: PostgresCatalog, database: str
) -> None:
    async with _opened(database) as other:
        first = await publish(catalog, "m")
        await other.catalog.leases.hold(first)
        async with catalog.publishing(await catalog.find("m")) as slot:
            slot.forget([first])
            slot.show(describe("m", slot.number, b"data", False))
        assert await _numbers(catalog) == [1, 2]
        assert [holder.server for holder in await catalog.leases.locate(first)] == [other.catalog.leases.server]


async def test_many_evictions_at_once_take_few_statements(observed: _Observed) -> None:
    catalog = observed.catalog
    infos = [await publish(catalog, "m") for _ in range(20)]
    observed.statements.clear()
    await asyncio.gather(*(catalog.forget(info) for info in infos[:-1]))
    assert await _numbers(catalog) == [20]
    assert observed.statements["forget"] <= 2


async def test_of_two_publishes_with_one_request_only_the_first_is_made(catalog: PostgresCatalog) -> None:
    ref = await catalog.find("m")

    async def upload(request: UploadRequest) -> VersionInfo:
        async with catalog.publishing(ref) as slot:
            info = describe("m", slot.number, b"data", False)
            await slot.annotate(info, Annotations(), request)
            slot.show(info)
        return info

    async with catalog.publishing(ref):
        requests = [UploadRequest(request_id, "digest") for request_id in ("a", "a", "b")]
        waiting = [asyncio.create_task(upload(request)) for request in requests]
        await _joined(catalog, len(requests))
    first, again, other = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(again, UnavailableError)
    assert isinstance(first, VersionInfo)
    assert isinstance(other, VersionInfo)
    assert await _numbers(catalog) == [first.number, other.number] == [2, 4]
    assert await catalog.find_upload("a") == FinishedUpload("digest", "m", 2)


async def test_texts_with_any_characters_are_kept(catalog: PostgresCatalog) -> None:
    texts = {"quotes": """ ' '' " \\ \\' """, "nul": "\0\1", "other": "\u20ac \U0001f600 %s $1 ; --"}
    model_id = "it's; --"
    async with catalog.writing_model(ModelInfo(model_id)):
        pass
    for _ in range(2):
        async with catalog.publishing(await catalog.find(model_id)) as slot:
            info = replace(describe(model_id, slot.number, b"data", False), user_data=texts)
            await slot.annotate(info, Annotations(texts, {"return": float("-inf")}))
            slot.show(info)
        assert await catalog.get_versions(model_id, [-1]) == [info]
        [version] = await catalog.describe([info])
        assert (version.tags, version.metrics) == (texts, {"return": float("-inf")})


async def test_numbers_of_another_server_are_taken_into_account(catalog: PostgresCatalog, database: str) -> None:
    async with _opened(database) as other:
        given = [(await publish(each, "m")).number for _ in range(5) for each in (catalog, other.catalog)]
    assert given == [*range(1, 11)]


async def test_numbers_that_are_used_up_fail_alone(catalog: PostgresCatalog, database: str) -> None:
    await publish(catalog, "m")
    await execute(database, f"UPDATE cogment_model_registry.heads SET last_number = {VERSION_NUMBER_MAX - 2}")
    async with catalog.publishing(await catalog.find("m")):
        waiting = [asyncio.create_task(publish(catalog, "m")) for _ in range(2)]
        await _joined(catalog, 2)
    last, none = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(last, VersionInfo)
    assert last.number == VERSION_NUMBER_MAX
    assert isinstance(none, TooLargeError)


async def test_each_call_records_its_own_version_in_its_journal(catalog: PostgresCatalog) -> None:
    recorded: dict[str, list[int]] = {"first": [], "second": []}

    class Journal:
        def __init__(self, name: str) -> None:
            self.name = name

        def record(self, change: journals.Change) -> None:
            recorded[self.name].append(change.version_number)

        def require_writable(self) -> None:
            pass

        async def written(self) -> None:
            pass

    async def call(name: str) -> int:
        journals.open_journal(Journal(name))
        return (await publish(catalog, "m")).number

    async with catalog.publishing(await catalog.find("m")):
        waiting = [asyncio.create_task(call(name)) for name in recorded]
        await _joined(catalog, 2)
    numbers = await asyncio.gather(*waiting)
    assert recorded == {"first": [numbers[0]], "second": [numbers[1]]}
