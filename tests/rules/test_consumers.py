"""Consumers: reports, lag, disappearance, and holds; in memory, with simulated clocks."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest

from cogment_model_registry.errors import ConflictError, InvalidError, NotFoundError, PreconditionError, TooLargeError
from cogment_model_registry.records.consumers import Consumer, State
from cogment_model_registry.records.retention import ModelChange, RetentionRule
from cogment_model_registry.records.versions import ModelInfo, VersionHeader
from cogment_model_registry.registry.consumers import GONE_SECONDS, Consumers, FindElsewhere
from cogment_model_registry.registry.contracts import Catalog, ModelRef
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import CONSUMERS
from cogment_model_registry.registry.holds import Holds
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.retention import Retention
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables

CONSUMERS_MAX = 5
HELD_MAX_BYTES = 40


class Clock:
    """The two clocks of a registry; the tests advance them together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def now_ns(self) -> int:
        return 10**18 + int(self.seconds * 1e9)


@dataclass
class World:
    """A registry with the model ``m``, and its consumers."""

    registry: Registry
    lifecycle: Lifecycle
    models: Models
    retention: Retention
    consumers: Consumers
    tables: Tables
    catalog: MemoryCatalog
    transient: MemoryTransientStore
    clock: Clock

    async def upload(self, data: bytes = b"0123456789", *, archived: bool = False) -> int:
        # The client chose a creation time far in the future.
        async with await self.registry.create_version(
            VersionHeader("m", archived, len(data), created_ns=2 * 10**18)
        ) as upload:
            await upload.write(memoryview(data))
            return (await upload.commit()).number

    async def report(
        self, name: str, number: int = 0, state: State = "active", *, held: tuple[int, ...] = (), ttl: int = 10
    ) -> Consumer:
        state = "loading" if state == "active" and not number else state
        return await self.consumers.report(
            Consumer("m", name, number, state, ttl_seconds=ttl, held_versions=held, labels={"host": name[0]})
        )

    async def states(self) -> dict[str, str]:
        return {each.consumer_id: each.state for each in await self.consumers.find("m")}

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.registry.list_versions("m", 0, 100)]

    async def apply(self, *rules: RetentionRule) -> dict[int, str]:
        """Apply rules, and return the kept versions with the reasons."""
        await self.models.update("m", ModelChange(retention=rules))
        application = await self.retention.plan("m")
        async with aclosing(application.delete()) as deletions:
            async for _ in deletions:
                pass
        return {verdict.number: verdict.reason for verdict in application.kept}


@pytest.fixture
async def world(hashing: ThreadPoolExecutor) -> AsyncIterator[World]:
    clock = Clock()
    tables = Tables()
    catalog, archive = MemoryCatalog(tables, now_ns=clock.now_ns), MemoryArchive({}, 1000)
    transient = MemoryTransientStore(4, 100, hashing)
    registry = Registry(Limits(16, 100, 3), catalog, archive, transient)
    await registry.create_or_update_model(ModelInfo("m"))
    lifecycle = Lifecycle(registry, catalog, archive, transient)
    consumers = Consumers(
        registry,
        catalog,
        transient,
        holds=lifecycle.holds,
        consumers_max=CONSUMERS_MAX,
        held_max_bytes=HELD_MAX_BYTES,
        now=clock.now,
        now_ns=clock.now_ns,
    )
    models = Models(registry, catalog, transient)
    retention = Retention(registry, catalog, archive, transient, holds=lifecycle.holds)
    yield World(registry, lifecycle, models, retention, consumers, tables, catalog, transient, clock)
    await catalog.close()


# Reports and lag.


async def test_a_report_is_answered_and_listed_with_its_lag(world: World) -> None:
    for _ in range(3):
        await world.upload()
        world.clock.seconds += 10
    reported = await world.report("a", 1)
    assert (reported.versions_behind, reported.seconds_behind) == (2, 20.0), "since version 2, whatever a client says"
    assert reported.reported_ns == world.clock.now_ns()
    assert await world.consumers.find("m") == await world.consumers.find() == [reported]
    world.clock.seconds += 1
    assert [each.seconds_behind for each in await world.consumers.find("m")] == [21.0]
    newest = await world.report("a", 3)
    assert (newest.versions_behind, newest.seconds_behind) == (0, 0.0)


async def test_seconds_behind_keep_growing_after_the_first_newer_version_is_gone(world: World) -> None:
    for _ in range(3):
        await world.upload()
        world.clock.seconds += 10
    await world.report("a", 1)
    await world.lifecycle.delete_version("m", 2)
    [consumer] = await world.consumers.find("m")
    assert (consumer.versions_behind, consumer.seconds_behind) == (1, 20.0)
    world.catalog._tables.models["m"].shown_ns.clear()  # as in a catalog that keeps only some of them
    world.catalog._tables.models["m"].shown_ns[3] = world.clock.now_ns()
    [consumer] = await world.consumers.find("m")
    assert consumer.seconds_behind == 20.0
    await world.lifecycle.delete_version("m", 3)
    [consumer] = await world.consumers.find("m")
    assert (consumer.versions_behind, consumer.seconds_behind) == (0, 0.0)


async def test_a_consumer_that_runs_nothing_is_behind_every_version(world: World) -> None:
    await world.upload()
    await world.upload()
    consumer = await world.report("a")
    assert (consumer.state, consumer.version_number, consumer.versions_behind) == ("loading", 0, 2)
    [summary] = await world.consumers.summarize()
    assert (summary.model_id, dict(summary.states)) == ("m", {"loading": 1})
    assert (summary.versions_behind, summary.seconds_behind) == (None, None), "there is no lag yet"
    await world.report("b", 1)
    world.clock.seconds += 5
    [summary] = await world.consumers.summarize()
    assert (summary.versions_behind, summary.seconds_behind) == (1, 5.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"consumer_id": "a/b"}, r'consumer_id "a/b" '),
        ({"consumer_id": ""}, "has 0 bytes"),
        ({"version_number": -1}, "version_number is -1"),
        ({"version_number": 0}, "it is active, but runs no version"),
        ({"ttl_seconds": 86_401}, "ttl_seconds 86401 must be from 1 to 86400, or 0 for 30"),
        ({"error": "é" * 513}, "error has 1026 bytes of UTF-8; at most 1024 are allowed"),
        ({"labels": {"a": "b" * 2048}}, "labels have 2049 bytes"),
        ({"held_versions": (0,)}, "held_versions has 0, which is no version number"),
        ({"held_versions": tuple(range(1, 66))}, "held_versions has 65 entries; at most 64"),
        ({"model_id": "a/b"}, "model_id"),
    ],
)
async def test_a_report_that_breaks_a_rule_is_refused(world: World, wrong: dict[str, object], message: str) -> None:
    report = Consumer("m", "a", 1, "active")
    with pytest.raises(InvalidError, match=message):
        await world.consumers.report(replace(report, **wrong))  # type: ignore[arg-type]
    assert await world.consumers.find() == []


async def test_models_that_do_not_exist_are_not_found(world: World) -> None:
    with pytest.raises(NotFoundError):
        await world.consumers.report(Consumer("none", "a", 1, "active"))
    with pytest.raises(NotFoundError):
        await world.consumers.find("none")
    assert await world.consumers.find() == []


async def test_consumers_are_found_by_filter_page_by_page(world: World) -> None:
    await world.registry.create_or_update_model(ModelInfo("n"))
    for _ in range(3):
        await world.upload()
    for name, number in (("a1", 1), ("b1", 2), ("a2", 3), ("c", 0)):
        await world.report(name, number)
    await world.consumers.report(Consumer("n", "a1", 7, "failed", "out of memory"))

    async def found(text: str, model_id: str | None = "m") -> list[str]:
        accepted = parse_filter(text, CONSUMERS)
        return [each.consumer_id for each in await world.consumers.find(model_id, accepted)]

    assert await found("") == ["a1", "a2", "b1", "c"]
    assert await found("labels.host = a AND versions_behind > 0") == ["a1"]
    assert await found("version_number >= 2") == ["a2", "b1"]
    assert await found("state = STATE_LOADING") == await found("state = loading") == ["c"]
    assert await found("NOT consumer_id = a1 AND labels:host AND seconds_behind < 1.5") == ["a2", "b1", "c"]
    assert await found("state = failed OR model_id = n", None) == ["a1"]
    for wrong in ("state = running", "aliases:a", "metrics.a = 1"):
        with pytest.raises(InvalidError, match="malformed"):
            parse_filter(wrong, CONSUMERS)
    pages, after = [], ("", "")
    while page := await world.consumers.find(after=after, limit=2):
        pages.append([f"{each.model_id} {each.consumer_id}" for each in page])
        after = page[-1].model_id, page[-1].consumer_id
    assert pages == [["m a1", "m a2"], ["m b1", "m c"], ["n a1"]]


# Consumers that are gone.


async def test_a_consumer_that_stops_reporting_is_sent_as_gone_once_and_then_forgotten(world: World) -> None:
    await world.upload()
    heard: list[tuple[str, str]] = []
    with world.consumers.listening(lambda each: heard.append((each.consumer_id, each.state))):
        await world.report("a", 1, ttl=10)
        await world.report("b", 1, ttl=100)
        for _ in range(5):
            world.clock.seconds += 9
            await world.report("a", 1, ttl=10)
        assert heard == [("a", "active"), ("b", "active")], "a repeated report is not an event"
        world.clock.seconds += 10
        assert await world.states() == {"a": "gone", "b": "active"}
        world.consumers.expire()
        assert heard[2:] == [("a", "gone")]
        world.clock.seconds += GONE_SECONDS - 0.1
        assert await world.states() == {"a": "gone", "b": "gone"}
        world.clock.seconds += 0.1
        assert await world.states() == {"b": "gone"}
        await world.report("a", 1)
        assert heard[3:] == [("b", "gone"), ("a", "active")]


async def test_a_consumer_may_leave_and_come_back(world: World) -> None:
    await world.upload()
    heard: list[str] = []
    with world.consumers.listening(lambda each: heard.append(each.state)):
        assert (await world.report("a", state="gone")).state == "gone"
        assert await world.states() == {}, "a consumer that never reported need not leave"
        await world.report("a", 1, held=(1,))
        for _ in range(2):
            gone = await world.report("a", state="gone")
            assert (gone.state, gone.version_number, gone.held_versions) == ("gone", 1, ())
        assert world.consumers.held_bytes == 0
        await world.report("a", 1)
    assert heard == ["active", "gone", "active"]
    assert await world.states() == {"a": "active"}


async def test_changing_times_to_live_leave_no_stale_entries(world: World) -> None:
    await world.upload()
    for _ in range(1000):
        await world.report("a", 1, ttl=1000)
        await world.report("a", 1, ttl=2)
        world.clock.seconds += 1
    assert len(world.consumers._queue) < 70
    world.clock.seconds += 2
    assert await world.states() == {"a": "gone"}


async def test_the_number_of_consumers_is_bounded(world: World) -> None:
    await world.upload()
    for position in range(CONSUMERS_MAX):
        await world.report(f"c{position}", 1)
    with pytest.raises(TooLargeError, match="5 consumers report already, and consumers_max allows no more"):
        await world.report("one too many", 1)
    await world.report("c0", 1)
    await world.report("c3", state="gone")
    await world.report("c1", state="gone")
    await world.report("new", 1)
    assert sorted(await world.states()) == ["c0", "c1", "c2", "c4", "new"], (
        "the consumer that has been gone longest is dropped"
    )


async def test_consumers_end_with_their_model(world: World) -> None:
    await world.upload(archived=True)
    await world.report("a", 1, held=(1,))
    await world.registry.delete_model("m")
    assert world.consumers.held_bytes == 0
    assert await world.consumers.find() == []
    await world.registry.create_or_update_model(ModelInfo("m"))
    await world.upload(archived=True)
    assert await world.consumers.find("m") == []
    await world.lifecycle.delete_version("m", 1)


async def test_consumers_of_a_model_that_another_server_replaced_are_forgotten(
    world: World,
) -> None:
    await world.upload(archived=True)
    await world.report("a", 1, held=(1,))
    await world.report("b", 1)
    async with world.catalog.removing_model("m"):
        pass
    async with world.catalog.writing_model(ModelInfo("m")):
        pass
    await world.report("b", 1)
    assert await world.states() == {"b": "active"}
    assert world.consumers.held_bytes == 0
    async with world.catalog.removing_model("m"):
        pass
    assert await world.consumers.find() == []


# Holds.


async def test_a_held_version_is_not_evicted(world: World) -> None:
    await world.upload()
    await world.report("a", 1, held=(1,))
    for _ in range(8):
        await world.upload()
    assert await world.numbers() == [1, 7, 8, 9], "it counts for the bound"
    with pytest.raises(TooLargeError, match=r"nor by versions that consumers hold \(10\)"):
        await world.upload(bytes(91))
    assert world.transient.usage.held_bytes == 10
    world.clock.seconds += 10
    world.consumers.expire()
    await world.upload()
    assert await world.numbers() == [7, 8, 9, 10]


async def test_a_held_version_is_deleted_only_by_force(world: World) -> None:
    for archived in (False, True):
        number = await world.upload(archived=archived)
        for name in ("a", "b", "c", "d", "e"):
            await world.report(name, number, held=(number,))
        message = r'is held by consumers "a", "b", "c" and 2 others: wait until it is released, or use force'
        with pytest.raises(PreconditionError, match=message):
            await world.lifecycle.delete_version("m", number)
        await world.lifecycle.delete_version("m", number, force=True)
        assert world.consumers.held_bytes == 0
        assert {each.held_versions for each in await world.consumers.find("m")} == {()}
        with pytest.raises(NotFoundError, match=f"has no version {number}"):
            await world.report("a", number, held=(number,))
    await world.upload()


async def test_retention_keeps_a_held_version_and_says_why(world: World) -> None:
    for _ in range(4):
        await world.upload(archived=True)
    await world.report("a", 2, held=(2,))
    assert await world.apply(RetentionRule(keep_last=1)) == {2: 'held by consumer "a"', 4: "newest version"}
    await world.report("a", 4)
    assert await world.apply(RetentionRule(keep_last=1)) == {4: "newest version"}


async def test_held_bytes_are_bounded_and_shared_holds_count_once(world: World) -> None:
    for _ in range(3):
        await world.upload(bytes(15))
    await world.report("a", 1, held=(1, 2))
    await world.report("b", 1, held=(1, 2))
    assert world.consumers.held_bytes == 30
    message = "cannot hold version 3 .* takes 15 bytes: consumers hold 30 of the 40 bytes that consumers_held_max_bytes"
    with pytest.raises(TooLargeError, match=message):
        await world.report("a", 2, held=(2, 3))
    [a, _] = await world.consumers.find("m")
    assert (a.version_number, a.held_versions) == (1, (1, 2)), "its previous holds remain"
    await world.report("b", 2, held=(2,))
    assert (await world.report("a", 2, held=(2, 3))).held_versions == (2, 3)
    assert world.consumers.held_bytes == 30


async def test_one_item_of_the_transient_store_is_reserved_for_publishes(world: World) -> None:
    for _ in range(4):
        await world.upload(b"1")
    await world.report("a", 1, held=(1, 2, 3))
    with pytest.raises(TooLargeError, match="consumers may hold 3 transient versions; cache_max_items says so"):
        await world.report("b", 4, held=(4,))
    for _ in range(3):
        await world.upload(b"1")
    assert await world.numbers() == [1, 2, 3, 7]


async def test_a_version_that_was_evicted_cannot_be_held(world: World) -> None:
    for _ in range(5):
        await world.upload()
    with pytest.raises(NotFoundError, match="has no version 1"):
        await world.report("a", 5, held=(1, 5))
    assert await world.states() == {}
    assert world.consumers.held_bytes == world.transient.usage.held_bytes == 0


async def test_a_hold_outlasts_a_promotion(world: World) -> None:
    await world.upload()
    await world.report("a", 1, held=(1,))
    await world.lifecycle.promote_version("m", 1)
    assert world.transient.usage.held_bytes == 0
    await world.upload()
    with pytest.raises(PreconditionError, match="held by"):
        await world.lifecycle.delete_version("m", 1)
    assert (await world.report("a", 1, held=(1,))).held_versions == (1,)
    await world.report("a", 2)
    assert world.consumers.held_bytes == world.transient.usage.held_bytes == 0
    await world.lifecycle.delete_version("m", 1)


@pytest.mark.parametrize("archived", [False, True])
async def test_exactly_one_of_a_concurrent_hold_and_deletion_wins(world: World, archived: bool) -> None:
    wins = {"hold": 0, "deletion": 0}
    for delay in range(40):
        number = await world.upload(archived=archived)
        await world.upload(archived=archived)

        async def hold(number: int = number, delay: int = delay) -> bool:
            for _ in range(delay % 20):
                await asyncio.sleep(0)
            try:
                await world.report("a", number, held=(number,))
            except NotFoundError:
                return False
            return True

        async def delete(number: int = number, delay: int = delay) -> bool:
            for _ in range(10 if delay < 20 else 0):
                await asyncio.sleep(0)
            try:
                await world.lifecycle.delete_version("m", number)
            except PreconditionError:
                return False
            return True

        is_held, is_deleted = await asyncio.gather(hold(), delete())
        assert is_held != is_deleted
        assert (number in await world.numbers()) == is_held
        wins["hold" if is_held else "deletion"] += 1
        await world.report("a", state="gone")
        assert world.consumers.held_bytes == world.transient.usage.held_bytes == 0
    assert min(wins.values()) > 0, wins


async def test_exactly_one_of_a_concurrent_hold_and_eviction_wins(world: World) -> None:
    wins = {"hold": 0, "eviction": 0}
    for delay in range(30):
        numbers = [await world.upload() for _ in range(4)]

        async def hold(number: int = numbers[0], delay: int = 30 - delay) -> bool:
            for _ in range(delay):
                await asyncio.sleep(0)
            try:
                await world.report("a", number, held=(number,))
            except NotFoundError:
                return False
            return True

        async def evict(delay: int = delay) -> None:
            for _ in range(delay):
                await asyncio.sleep(0)
            await world.upload()

        is_held, _ = await asyncio.gather(hold(), evict())
        assert (numbers[0] in await world.numbers()) == is_held
        wins["hold" if is_held else "eviction"] += 1
        await world.report("a", state="gone")
        assert world.consumers.held_bytes == world.transient.usage.held_bytes == 0
    assert min(wins.values()) > 0, wins


async def test_concurrent_reports_of_one_consumer_keep_its_holds_consistent(world: World) -> None:
    for _ in range(3):
        await world.upload(archived=True)
    for held in ((1, 2), (2, 3), (3,), ()):
        await asyncio.gather(*(world.report("a", 3, held=each) for each in ((1, 2), (3,), (2, 3), held)))
        [consumer] = await world.consumers.find("m")
        assert world.consumers.held_bytes == 10 * len(consumer.held_versions)
    await world.report("a", state="gone")
    assert world.consumers.held_bytes == 0


# Several servers.


def consumers_of(world: World, catalog: Catalog, find_elsewhere: FindElsewhere | None = None) -> Consumers:
    """Return the consumers of another server that shares the catalog."""
    return Consumers(
        world.registry,
        catalog,
        world.transient,
        holds=Holds(),
        consumers_max=CONSUMERS_MAX,
        held_max_bytes=HELD_MAX_BYTES,
        find_elsewhere=find_elsewhere,
        now=world.clock.now,
        now_ns=world.clock.now_ns,
    )


async def test_a_version_that_a_consumer_of_another_server_holds_is_not_deleted(world: World) -> None:
    await world.upload()
    await world.upload()
    others = consumers_of(world, MemoryCatalog(world.tables))
    await others.report(Consumer("m", "elsewhere", 1, "active", ttl_seconds=10, held_versions=(1,)))
    with pytest.raises(PreconditionError, match='held by consumer "elsewhere"'):
        await world.lifecycle.delete_version("m", 1)
    assert await world.apply(RetentionRule(tier="any", keep_last=1)) == {
        1: 'held by consumer "elsewhere"',
        2: "newest version",
    }
    world.clock.seconds += 10
    others.expire()
    await others.share_holds()
    await world.lifecycle.delete_version("m", 1)
    assert await world.numbers() == [2]


async def test_a_deletion_by_force_expects_those_that_hold_the_version(world: World) -> None:
    await world.upload()
    others = consumers_of(world, MemoryCatalog(world.tables))
    await world.report("a", 1, held=(1,))
    one = await world.lifecycle.objections("m", 1)
    assert one.held == 'held by consumer "a"'
    await others.report(Consumer("m", "elsewhere", 1, "active", ttl_seconds=10, held_versions=(1,)))
    with pytest.raises(ConflictError, match='held by consumer "a"; held by consumer "elsewhere" now'):
        await world.lifecycle.delete_version("m", 1, force=True, expected_state=one.state)
    assert await world.numbers() == [1]
    both = await world.lifecycle.objections("m", 1)
    await world.lifecycle.delete_version("m", 1, force=True, expected_state=both.state)
    assert await world.numbers() == []


async def test_a_version_that_was_deleted_by_another_server_cannot_be_held(world: World) -> None:
    await world.upload()
    catalog = MemoryCatalog(world.tables)
    others = consumers_of(world, catalog)
    set_holds = catalog.set_holds

    async def delete_before(ref: ModelRef, held: Mapping[int, str]) -> None:
        await world.lifecycle.delete_version("m", 1)
        await set_holds(ref, held)

    catalog.set_holds = delete_before  # type: ignore[method-assign]
    with pytest.raises(NotFoundError):
        await others.report(Consumer("m", "elsewhere", 0, "loading", ttl_seconds=10, held_versions=(1,)))
    assert others.held_bytes == 0
    assert [each.held_versions for each in await others.find("m")] == [()]


async def test_consumers_of_all_servers_are_listed_each_with_its_last_report(world: World) -> None:
    await world.upload()
    elsewhere: dict[str, Consumer] = {}

    async def find_elsewhere(model_id: str | None, after: tuple[str, str], limit: int | None) -> Sequence[Consumer]:
        assert model_id in (None, "m")
        found = [elsewhere[name] for name in sorted(elsewhere) if ("m", name) > after]
        return found[:limit]

    consumers = consumers_of(world, world.catalog, find_elsewhere)
    for name in ("a", "moved", "z"):
        await consumers.report(Consumer("m", name, 1, "active", ttl_seconds=10))
    world.clock.seconds += 11
    for name in ("b", "moved", "y"):
        elsewhere[name] = Consumer("m", name, 1, "active", ttl_seconds=10, reported_ns=world.clock.now_ns())
    found = await consumers.find("m")
    assert [(each.consumer_id, each.state) for each in found] == [
        ("a", "gone"), ("b", "active"), ("moved", "active"), ("y", "active"), ("z", "gone")
    ]  # fmt: skip
    gone = parse_filter("state = gone", CONSUMERS)
    assert [each.consumer_id for each in await consumers.find("m", gone)] == ["a", "z"]
    assert [each.consumer_id for each in await consumers.find(None, gone, limit=1)] == ["a"]
    assert [each.consumer_id for each in await consumers.find(None, gone, ("m", "a"), 1)] == ["z"]
    pages, after = [], ("", "")
    while page := await consumers.find(after=after, limit=2):
        pages.append([each.consumer_id for each in page])
        after = ("m", pages[-1][-1])
    assert pages == [["a", "b"], ["moved", "y"], ["z"]]


async def test_listeners_hear_of_consumers_elsewhere_only_if_they_ask_for_them(world: World) -> None:
    here: list[str] = []
    everywhere: list[str] = []
    with (
        world.consumers.listening(lambda each: here.append(each.consumer_id)),
        world.consumers.listening(lambda each: everywhere.append(each.consumer_id), elsewhere=True),
    ):
        await world.report("a")
        world.consumers.note_elsewhere(Consumer("m", "b", 0, "loading"))
    assert (here, everywhere) == (["a"], ["a", "b"])
