"""What holds for several catalogs on one database, each of a server of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from cogment_model_registry.errors import ConflictError, NotFoundError, UnavailableError
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange, Annotations
from cogment_model_registry.records.retention import ModelChange, TransientShare
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import ModelRef, News
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.storage.postgres.connections import READS
from cogment_model_registry.storage.postgres.translation import Record
from cogment_model_registry.testing.bytes import describe
from cogment_model_registry.testing.catalog import change_model, publish, publish_annotated
from tests.postgres import execute
from tests.waiting import PATIENCE_SECONDS, eventually, until


@asynccontextmanager
async def opened(url: str, endpoint: str = "grpc://server") -> AsyncIterator[PostgresCatalog]:
    """Open a catalog with a lease; a context manager."""
    catalog = PostgresCatalog(url)
    await catalog.open()
    try:
        await catalog.leases.take(endpoint)
        yield catalog
    finally:
        await catalog.close()


@pytest.fixture
async def two(database: str) -> AsyncIterator[tuple[PostgresCatalog, PostgresCatalog]]:
    """Two catalogs of one database, with the model ``m``, of whose creation no message is under way."""
    async with opened(database, "grpc://a") as a:
        await write_model(a, "m")
        async with opened(database, "grpc://b") as b:
            yield a, b


async def write_model(catalog: PostgresCatalog, model_id: str, **user_data: str) -> ModelRef:
    async with catalog.writing_model(ModelInfo(model_id, user_data)):
        pass
    return await catalog.find(model_id)


async def remove_model(catalog: PostgresCatalog, model_id: str) -> None:
    async with catalog.removing_model(model_id):
        pass


async def numbers(catalog: PostgresCatalog, model_id: str = "m") -> list[int]:
    return [info.number for info in await catalog.list_versions(model_id, 0, 10_000)]


Two = tuple[PostgresCatalog, PostgresCatalog]


async def test_numbers_are_unique_and_increase_in_the_order_of_visibility_over_both(two: Two) -> None:
    seen: list[int] = []

    async def publish_and_look(catalog: PostgresCatalog, archived: bool) -> None:
        info = await publish_annotated(catalog, archived=archived)
        assert info.number in await numbers(catalog)
        seen.append(info.number)

    async def watch(catalog: PostgresCatalog) -> list[int]:
        yielded: list[int] = []
        async with aclosing(catalog.watch("m")) as versions:
            async for info in versions:
                yielded.append(info.number)
                if info.number == 120:
                    return yielded
        return []

    watches = [asyncio.create_task(watch(catalog)) for catalog in two]
    async with asyncio.TaskGroup() as group:
        for turn in range(120):
            group.create_task(publish_and_look(two[turn % 2], turn % 5 == 0))
    assert sorted(seen) == [*range(1, 121)]
    for yielded in await asyncio.gather(*watches):
        assert yielded == sorted(set(yielded))


async def test_a_version_is_visible_on_the_other_server_once_its_publish_was_answered(two: Two) -> None:
    a, b = two
    for turn in range(50):
        publisher, reader = (a, b) if turn % 2 else (b, a)
        info = await publish_annotated(publisher, archived=turn % 3 == 0)
        assert await reader.get_versions("m", [-1]) == [info]
        assert (await reader.list_versions("m", info.number, 5)) == [info]


async def test_changes_of_one_model_are_serialized_over_both(two: Two) -> None:
    a, b = two
    async with a.publishing(await a.find("m")) as slot:
        other = asyncio.create_task(publish(b, "m"))
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: a._connections.fetch("waiting", waiting))
        slot.show(describe("m", slot.number, b"data", False))
    assert (slot.number, (await other).number) == (1, 2)


async def test_a_watcher_on_one_server_sees_what_others_do(two: Two) -> None:
    a, b = two
    with b.watching(["m", "n"]) as watcher:
        assert await watcher.changed(wait=True) == ["m"]

        async def news_of(model_id: str, is_there: Callable[[News], bool], number: int = 0) -> News:
            """Return the news of a model once they are there; only a change that is heard of makes this look again."""
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not is_there(news := await b.get_news(model_id, number, 0, 1)):
                    while model_id not in await watcher.changed(wait=True):
                        pass
            return news

        before = await b.get_news("m", 0, 0, 1)
        info = await publish(a, "m")
        news = await news_of("m", lambda news: news.last_number == info.number)
        assert [each.number for each in news.shown] == [info.number]
        assert news.changed == before.changed
        await change_model(a, await a.find("m"), ModelChange({"a": "1"}))
        await news_of("m", lambda news: news.changed > before.changed)
        await a.forget(info)
        [lost] = (await news_of("m", lambda news: bool(news.lost), info.number)).lost
        assert (lost.first_number, lost.last_number, lost.reason) == (1, 1, "evicted")
        ref = await write_model(a, "n")
        news = await news_of("n", lambda news: news.life == ref.life)
        await remove_model(a, "n")
        await news_of("n", lambda news: news.life == 0)
        assert await b.removed_since(news.since) == ["n"]


async def test_a_watch_ends_when_another_server_deletes_the_model(two: Two) -> None:
    a, b = two
    async with aclosing(b.watch("m")) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await publish(a, "m")
        assert (await waiting).number == 1
        waiting = asyncio.ensure_future(anext(watch))
        await remove_model(a, "m")
        await write_model(a, "m")
        with pytest.raises(NotFoundError):
            await waiting


async def test_a_position_of_another_server_that_is_ahead_is_no_end_of_the_model(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    await b.get_news("m", 0, 0, 1)
    monkeypatch.setattr(b._core, "hear", lambda _letter: None)  # nothing arrives
    info = await publish(a, "m")
    assert (await b.get_news("m", info.number, 0, 1)).last_number == info.number
    assert (await b.get_news("m", info.number + 1, 0, 1)).last_number == 0


async def test_a_version_that_is_heard_of_while_news_are_read_is_in_the_next_news(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    fetch = b._core.connections.fetch

    async def fetch_slowly(name: str, query: str, *values: object) -> Sequence[Record]:
        rows = await fetch(name, query, *values)
        if name == "get_news":
            monkeypatch.undo()
            info = await publish(a, "m")
            await until(lambda: b._core.lines.known()["m"].history.last_number == info.number)
        return rows

    monkeypatch.setattr(b._core.connections, "fetch", fetch_slowly)
    news = await b.get_news("m", 0, 0, 1)
    assert (news.last_number, news.shown) == (0, [])
    news = await b.get_news("m", 0, 0, 1)
    assert (news.last_number, [each.number for each in news.shown]) == (1, [1])


async def test_an_alias_moves_only_from_the_expected_revision_over_both(two: Two) -> None:
    a, b = two
    ref = await a.find("m")
    for _ in range(2):
        await publish_annotated(a, archived=True)
    [alias] = await a.set_aliases(ref, [AliasChange("best", 1)], 0)
    moves = [two[turn % 2].set_aliases(ref, [AliasChange("best", 2, alias.revision)], turn) for turn in range(20)]
    outcomes = await asyncio.gather(*moves, return_exceptions=True)
    assert sum(not isinstance(outcome, ConflictError) for outcome in outcomes) == 1
    assert await a.get_aliases("m") == await b.get_aliases("m")


async def test_uploads_are_found_by_other_servers(two: Two) -> None:
    a, b = two
    for archived in (False, True):
        request = UploadRequest(f"id{archived}", "digest", ("best",) if archived else ())
        info = await publish_annotated(a, Annotations(), archived=archived, request=request)
        assert await b.find_upload(request.request_id) == FinishedUpload("digest", "m", info.number)


@pytest.mark.parametrize("archived", [False, True])
async def test_an_upload_that_another_server_has_just_finished_makes_no_second_version(
    two: Two, archived: bool
) -> None:
    a, b = two
    request = UploadRequest("id", "digest")
    assert await b.find_upload("id") is None  # it was repeated on another server before the first one had finished it
    info = await publish_annotated(a, Annotations(), archived=archived, request=request)
    with pytest.raises(UnavailableError, match="another server has just finished this upload"):
        await publish_annotated(b, Annotations(), archived=archived, request=request)
    assert await numbers(a) == await numbers(b) == [info.number]
    assert await b.find_upload("id") == FinishedUpload("digest", "m", info.number)


# Leases.


async def test_a_server_whose_lease_is_gone_changes_nothing(two: Two) -> None:
    a, b = two
    ref = await a.find("m")
    kept = await publish_annotated(b)
    lost = await publish_annotated(a)
    archived = await publish_annotated(a, archived=True)
    await b.leases.remove(a.leases.server)
    changes = (
        publish_annotated(a),
        publish_annotated(a, archived=True),
        a.set_aliases(ref, [AliasChange("best", archived.number)], 0),
        a.change_annotations(ref, archived.number, AnnotationChange({"a": "1"})),
        change_model(a, ref, ModelChange({"a": "1"})),
        write_model(a, "other"),
        remove_model(a, "m"),
        a.removing_version(ref, archived.number).__aenter__(),
        a.promoting(ref, kept.number).__aenter__(),
    )
    for change in changes:
        with pytest.raises(UnavailableError, match="lease"):
            await change
    assert not await a.leases.beat()
    assert await numbers(b) == [kept.number, archived.number] == await numbers(a)
    await until(lambda: (lost.model_id, lost.number) not in a._core.held)
    await a.leases.take("grpc://a")
    assert (await publish(a, "m")).number == archived.number + 1


async def test_a_removed_lease_takes_its_transient_versions_with_it(two: Two) -> None:
    a, b = two
    await publish_annotated(a, archived=True)
    for _ in range(3):
        await publish(a, "m")
    await publish(b, "m")
    sequence = b._core.lines.feed.sequence
    assert await b.leases.held_numbers(a.leases.server) == {"m": [2, 3, 4]}
    await b.leases.remove(a.leases.server)
    assert await numbers(b) == [1, 5]
    assert [(each.first_number, each.reason) for each in (await b.get_news("m", 5, sequence, 1)).lost] == [
        (number, "server gone") for number in (2, 3, 4)
    ]
    assert [lease.server for lease in await a.leases.servers()] == [b.leases.server]


async def test_a_change_that_was_entered_under_a_removed_lease_delays_the_removal(two: Two) -> None:
    a, b = two
    async with a.publishing(await a.find("m")) as slot:
        removal = asyncio.create_task(b.leases.remove(a.leases.server))
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: b._connections.fetch("waiting", waiting))
        slot.show(describe("m", slot.number, b"data", False))
    await removal
    assert await numbers(b) == []


async def test_a_lease_beats_and_is_listed(two: Two) -> None:
    a, b = two
    first = await b.leases.servers()
    assert [(lease.server, lease.endpoint) for lease in first] == [
        (a.leases.server, "grpc://a"),
        (b.leases.server, "grpc://b"),
    ]
    assert await a.leases.beat()
    now = await b.leases.servers()
    assert now[0].beat > first[0].beat
    assert now[1].beat == first[1].beat


async def test_a_beat_waits_for_no_other_query(two: Two) -> None:
    a, _ = two
    reads = [asyncio.create_task(a._connections.fetch("sleep", "SELECT pg_sleep(600)")) for _ in range(20)]
    await until(lambda: a.pool_in_use == READS)
    assert await a.leases.beat()
    for read in reads:
        read.cancel()
    await asyncio.wait(reads)
    assert await numbers(a) == []


async def test_a_transient_version_is_located_on_the_server_that_has_it(two: Two) -> None:
    a, b = two
    info = await publish(a, "m")
    [holder] = await b.leases.locate(info)
    assert (holder.server, holder.endpoint) == (a.leases.server, "grpc://a")
    assert await a.leases.locate(info) == []
    assert await b.leases.locate(replace(info, created_ns=7)) == []
    await b.forget(info)  # which it never had
    assert await numbers(b) == [info.number]
    await a.forget(info)
    assert await b.leases.locate(info) == []
    assert await numbers(b) == []


async def test_bytes_are_dropped_where_they_are_of_no_use_any_more(two: Two) -> None:
    a, b = two
    dropped: list[VersionInfo] = []
    changed: list[str] = []
    a.on_dropped(dropped.extend)
    a.on_model_changed(changed.append)
    ref = await a.find("m")
    infos = [await publish(a, "m") for _ in range(3)]
    async with b.removing_version(ref, 1):
        pass
    async with b.promoting(ref, 2) as promotion:
        promotion.show(replace(promotion.info, archived=True))
    await until(lambda: dropped == infos[:2])
    await change_model(b, ref, ModelChange(share=TransientShare(5)))
    await until(lambda: changed == ["m"])
    await remove_model(b, "m")
    await until(lambda: dropped == infos)
    await until(lambda: changed == ["m", "m"])


# What is pending.


class _KilledError(BaseException):
    """Stands for the end of a process."""


async def abandon(catalog: PostgresCatalog, change: AbstractAsyncContextManager[object]) -> None:
    """Enter a change, and lose its connection before it is left."""

    async def lose() -> None:
        async with change:
            await execute(catalog._connections._url, _TERMINATE)
            raise _KilledError

    with pytest.raises(_KilledError):
        await lose()


_TERMINATE = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE state LIKE 'idle in transaction%' AND datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_store_that_was_broken_off_stays_pending_until_it_is_resolved(two: Two, is_gone: bool) -> None:
    a, b = two
    ref = await a.find("m")
    await abandon(a, a.publishing(ref, archived=True))
    assert await b.leases.unresolved() == []
    resolver = a
    if is_gone:
        await b.leases.remove(a.leases.server)
        resolver = b
    [pending] = await resolver.leases.unresolved()
    assert (pending.kind, pending.ref, pending.number) == ("store", ref, 1)
    async with resolver.leases.resolving(pending) as resolution:
        assert resolution is not None
    async with resolver.leases.resolving(pending) as resolution:
        assert resolution is None
    assert await resolver.leases.unresolved() == []
    assert (await publish_annotated(b, archived=True)).number == 2


async def test_a_promotion_that_was_broken_off_does_not_undo_a_later_one(two: Two) -> None:
    a, b = two
    ref = await a.find("m")
    info = await publish(a, "m")
    await abandon(a, a.promoting(ref, info.number))
    [pending] = await a.leases.unresolved()
    assert (pending.kind, pending.number) == ("promote", info.number)
    async with b.promoting(ref, info.number) as promotion:
        await promotion.annotate(replace(info, archived=True))
        promotion.show(replace(info, archived=True))
    async with a.leases.resolving(pending) as resolution:
        assert resolution is None
    assert await a.leases.unresolved() == []
    assert [each.archived for each in await a.list_versions("m", 0, 10)] == [True]


async def test_a_resolution_notices_that_its_lock_is_lost(two: Two) -> None:
    a, _ = two
    ref = await a.find("m")
    await abandon(a, a.publishing(ref, archived=True))
    [pending] = await a.leases.unresolved()

    async def resolve() -> None:
        async with a.leases.resolving(pending) as resolution:
            assert resolution is not None
            await resolution.check()
            await execute(a._connections._url, _TERMINATE)
            await resolution.check()

    with pytest.raises(UnavailableError):
        await resolve()
    assert await a.leases.unresolved() == [pending]


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_removal_that_was_broken_off_is_finished_or_void(two: Two, is_finished: bool) -> None:
    a, b = two
    ref = await a.find("m")
    await publish_annotated(a, archived=True)
    await a.set_aliases(ref, [AliasChange("best", 1)], 0)
    other = await write_model(a, "other")
    await abandon(a, a.removing_version(ref, 1))
    await abandon(a, a.removing_model("other"))
    assert await numbers(b) == [1]
    for pending in await a.leases.unresolved():
        async with a.leases.resolving(pending) as resolution:
            assert resolution is not None
            assert (pending.kind, pending.ref) in (("remove", ref), ("remove model", other))
            if is_finished:
                resolution.finish()
    assert await a.leases.unresolved() == []
    assert await numbers(b) == ([] if is_finished else [1])
    assert len(await b.get_aliases("m")) == (0 if is_finished else 1)
    assert [info.model_id for info in await b.list_models(0, 10)] == (["m"] if is_finished else ["m", "other"])


async def test_a_change_whose_connection_dies_before_the_commit_changes_nothing(two: Two) -> None:
    a, b = two
    ref = await a.find("m")

    async def lose() -> None:
        async with a.publishing(ref) as slot:
            await execute(a._connections._url, _TERMINATE)
            slot.show(describe("m", slot.number, b"data", False))

    with pytest.raises(UnavailableError):
        await lose()
    assert await numbers(b) == []
    assert (await publish(a, "m")).number == 2
