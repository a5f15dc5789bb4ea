"""Watch: existing versions, then new ones, with the bytes, over a real channel."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import pytest

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.server import transfers
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import consumers as consumer_messages
from cogment_model_registry.wire import watching as wire
from tests.client import Client, connected, refused, upload
from tests.followers import Follower
from tests.server.test_model_lifecycle import Lifecycle
from tests.server.under_way import under_way
from tests.waiting import eventually

SETTINGS = Settings(cache_max_bytes=64 * MIB, grace_seconds=0)
EVERY = pytest.mark.parametrize("every", [False, True], ids=["latest", "all"])
ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])


@contextlib.asynccontextmanager
async def restarted(tmp_path: Path, settings: Settings | None = None) -> AsyncIterator[Client]:
    """Return a context manager for a client of a server that uses the same archive each time."""
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        yield client


async def fill(client: Client, model_id: str, *datas: bytes, archived: bool = False) -> None:
    await client.create_model(model_id)
    for data in datas:
        await client.create_version(upload(model_id, data, archived))


async def test_the_newest_version_of_each_model_is_sent_first_and_then_newer_ones(client: Client) -> None:
    await fill(client, "m", b"1", b"2")
    await fill(client, "n", b"1")
    follower = Follower(client, "m", "n")
    assert sorted(await follower.until_caught_up()) == ["m 2", "model m", "model n", "n 1"]
    await client.publish("n", b"2")
    assert await follower.texts(1) == ["n 2"]
    await client.publish("m", b"3")
    assert await follower.texts(1) == ["m 3"]


async def test_every_version_is_sent_in_order_or_a_gap(client: Client) -> None:
    await fill(client, "m", b"1", b"2", b"3", b"4")
    await Lifecycle(client).delete(2)
    follower = Follower(client, "m", every=True)
    assert await follower.until_caught_up() == ["model m", "m 1", "m gap 2-2", "m 3", "m 4"]
    await client.publish("m", b"5")
    assert await follower.texts(1) == ["m 5"]


@EVERY
async def test_all_models_are_watched_when_none_is_named(client: Client, every: bool) -> None:
    follower = Follower(client, every=every)
    assert await follower.until_caught_up() == []
    await fill(client, "m", b"1")
    assert await follower.texts(2) == ["model m", "m 1"]
    await fill(client, "n", b"1")
    assert await follower.texts(2) == ["model n", "n 1"]
    await client.delete_model("m")
    assert await follower.texts(1) == ["m all deleted"]


@EVERY
async def test_a_model_is_watched_before_it_exists_and_over_its_lives(client: Client, every: bool) -> None:
    follower = Follower(client, "m", every=every)
    assert await follower.until_caught_up() == []
    for _ in range(2):
        await fill(client, "m", b"1")
        assert await follower.texts(2) == ["model m", "m 1"]
        await client.delete_model("m")
        assert await follower.texts(1) == ["m all deleted"]


async def test_the_deletion_of_a_sent_version_is_reported(client: Client) -> None:
    await fill(client, "m", b"1", b"2")
    latest, every = Follower(client, "m"), Follower(client, "m", every=True)
    await latest.until_caught_up()
    await every.until_caught_up()
    await Lifecycle(client).delete(1)
    await Lifecycle(client).delete(2)
    assert await every.texts(2) == ["m 1 deleted", "m 2 deleted"]
    assert await latest.texts(1) == ["m 2 deleted"]


async def test_an_eviction_is_reported_to_watchers_of_every_version(tmp_path: Path) -> None:
    async with restarted(tmp_path, replace(SETTINGS, cache_max_items=2)) as client:
        await fill(client, "m", b"1", b"2")
        every = Follower(client, "m", every=True)
        await every.until_caught_up()
        await client.publish("m", b"3")
        assert sorted(await every.texts(2)) == ["m 1 evicted", "m 3"]


async def test_watchers_receive_aliases_and_tags_of_models_but_not_tags_of_versions(client: Client) -> None:
    await fill(client, "m", b"1", b"2", archived=True)
    lifecycle = Lifecycle(client)
    follower = Follower(client, "m")
    assert await follower.until_caught_up() == ["model m", "m 2"]
    await lifecycle.set_aliases(AliasChange("production", 1))
    assert await follower.texts(1) == ["model m production=1"]
    await lifecycle.update(1, AnnotationChange(set_tags={"a": "b"}))
    await lifecycle.delete(1, force=True)
    assert await follower.texts(1) == ["model m"]
    await client.publish("m", b"3")
    assert await follower.texts(1) == ["m 3"]


@ARCHIVED
@EVERY
@pytest.mark.parametrize("in_one_reply", [False, True], ids=["apart", "in one reply"])
async def test_small_versions_are_sent_with_their_bytes(
    client: Client, archived: bool, every: bool, in_one_reply: bool
) -> None:
    random = Random(1)
    follower = Follower(client, "m", every=every, inline=5 * MIB, in_one_reply=in_one_reply)
    await follower.until_caught_up()
    await client.create_model("m")
    assert await follower.texts(1) == ["model m"]
    for number, size in enumerate((0, 1, 100_000, 131_072, 131_073, 5 * MIB), 1):
        data = random.randbytes(size)
        await client.create_version(upload("m", data, archived))
        assert await follower.texts(1) == [f"m {number}"]
        assert follower.data == data
        assert follower.came_in_one == (in_one_reply and size < 5 * MIB)
    follower.data = None
    await client.create_version(upload("m", random.randbytes(5 * MIB + 1), archived))
    assert await follower.texts(1) == ["m 7"]
    assert follower.data is None


@pytest.mark.parametrize("in_one_reply", [False, True], ids=["apart", "in one reply"])
async def test_bytes_that_the_client_has_are_not_sent(client: Client, in_one_reply: bool) -> None:
    await fill(client, "m", b"1")
    [info] = (await client.infos("m")).version_infos
    follower = Follower(client, "m", inline=100, known_hash=info.data_hash, in_one_reply=in_one_reply)
    assert await follower.until_caught_up() == ["model m", "m 1"]
    assert follower.data is None
    await client.publish("m", b"2")
    assert await follower.texts(1) == ["m 2"]
    assert follower.data == b"2"


async def test_a_version_larger_than_the_shared_memory_is_sent_with_its_bytes(client: Client) -> None:
    data = Random(2).randbytes(20 * MIB)
    await fill(client, "m", data)
    follower = Follower(client, "m", inline=64 * MIB)
    assert await follower.until_caught_up() == ["model m", "m 1"]
    assert follower.data == data


async def test_a_filter_selects_the_versions_that_are_sent(client: Client) -> None:
    await client.create_model("m")
    for number in range(1, 7):
        await client.publish("m", b"x", user_data={"kind": "good" if number in (2, 3) else "bad"})
    accepted = 'user_data.kind = "good"'
    every, latest = (Follower(client, "m", every=every, filter=accepted) for every in (True, False))
    assert await every.until_caught_up() == ["model m", "m 2", "m 3"]
    assert await latest.until_caught_up() == ["model m", "m 3"]
    for kind in ("bad", "good", "bad"):
        await client.publish("m", b"x", user_data={"kind": kind})
    assert await every.texts(1) == await latest.texts(1) == ["m 8"]


@EVERY
@pytest.mark.parametrize("model_ids", [("m", "n"), ()], ids=["named", "everything"])
async def test_a_watch_resumes_exactly_over_restarts(tmp_path: Path, every: bool, model_ids: tuple[str, ...]) -> None:
    async with restarted(tmp_path) as client:
        await fill(client, "m", b"1", b"2", archived=True)
        await fill(client, "n", b"1", archived=True)
        follower = Follower(client, *model_ids, every=every)
        await follower.until_caught_up()
        await follower.cancel()
        await client.store("m", b"3")
        await Lifecycle(client).set_aliases(AliasChange("production", 3))
        follower = Follower(client, *model_ids, every=every, token=follower.token)
        assert sorted(await follower.until_caught_up()) == ["m 3", "model m production=3"]
        await client.store("n", b"2")
    for restart in range(3):
        async with restarted(tmp_path) as client:
            follower = Follower(client, *model_ids, every=every, token=follower.token)
            assert await follower.until_caught_up() == ([] if restart else ["n 2"])
    async with restarted(tmp_path) as client:
        await client.store("m", b"4")
        await client.delete_model("n")
        await fill(client, "n", b"other", archived=True)
    async with restarted(tmp_path) as client:
        follower = Follower(client, *model_ids, every=every, token=follower.token)
        received = await follower.until_caught_up()
        assert sorted(received) == ["m 4", "model n", "n 1", "n all deleted"]
        assert [each for each in received if each.split()[0] == "n" or each == "model n"] == [
            "n all deleted",
            "model n",
            "n 1",
        ]


@EVERY
async def test_a_watch_of_very_many_models_resumes_exactly_while_the_server_runs(client: Client, every: bool) -> None:
    names = [f"m{number}" for number in range(70)]
    for name in names:
        await fill(client, name, b"1")
    follower = Follower(client, every=every)
    received = await follower.texts(100)
    await follower.cancel()
    follower = Follower(client, every=every, token=follower.token)
    received += await follower.until_caught_up()
    await follower.cancel()
    assert sorted(received) == sorted([f"{name} 1" for name in names] + [f"model {name}" for name in names])
    await client.create_model("never received")
    await client.delete_model("never received")
    await client.publish("m7", b"2")
    await client.delete_model("m8")
    follower = Follower(client, every=every, token=follower.token)
    assert await follower.until_caught_up() == ["m7 2", "m8 all deleted"]


async def test_a_watch_of_very_many_models_reports_possible_gaps_after_a_restart(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(70)]
    async with restarted(tmp_path) as client:
        for name in names:
            await fill(client, name, b"1", archived=True)
        follower = Follower(client, every=True)
        await follower.until_caught_up()
    async with restarted(tmp_path) as client:
        follower = Follower(client, every=True, token=follower.token)
        received = await follower.until_caught_up()
        assert {f"{name} gap 1-1" for name in names} <= {*received}
        assert not {f"{name} 1" for name in names} & {*received}
        await client.publish("m3", b"2")
        assert await follower.texts(1) == ["m3 2"]


@pytest.mark.parametrize("token", ["x", "AAAA", "W10=", "é", "WzEsMiwzLDQsNV0="])
async def test_a_malformed_token_is_refused(client: Client, token: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "resume_token is malformed"):
        async for _ in Follower(client, "m", token=token).call:
            pass


async def test_contradictory_requests_to_watch_are_refused(client: Client) -> None:
    for request, details in (
        (wire.WatchRequest(model_ids=["a/b"]), "model_id"),
        (wire.WatchRequest(filter="("), "filter"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, details):
            async for _ in Client(client.channel, "cogment_model_registry.v1.ModelLifecycle").streamed(
                "Watch", request
            ):
                pass


async def test_watches_are_counted_and_end_when_the_server_stops(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with serving(tmp_path) as server:
            client = await clients.enter_async_context(connected(server.port))
            follower = Follower(client, "m")
            await under_way(client, watchers=1)
            await follower.cancel()
            await under_way(client, watchers=0)
            follower = Follower(client)
            await follower.until_caught_up()
        assert await follower.call.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_slow_watcher_skips_to_the_newest_and_delays_no_other(client: Client) -> None:
    """The bytes of the first versions fill its window, since it reads nothing."""
    await client.create_model("m")
    slow, quick = Follower(client, "m", inline=8 * MIB), Follower(client, "m", inline=8 * MIB)
    await quick.until_caught_up()
    for number in range(1, 31):
        await client.publish("m", Random(number).randbytes(MIB))
        assert await quick.texts(1) == [f"m {number}"]
    received = await slow.until_caught_up()
    while received[-1] != "m 30":
        received += await slow.texts(1)
    assert slow.data == Random(30).randbytes(MIB)
    numbers = [int(each.split()[1]) for each in received if each != "model m"]
    assert numbers == sorted({*numbers})
    assert len(numbers) < 30


async def test_the_call_of_a_watcher_that_reads_nothing_is_ended(tmp_path: Path) -> None:
    async with restarted(tmp_path, replace(SETTINGS, retrieval_idle_seconds=1)) as client:
        await client.create_model("m")
        stuck = Follower(client, "m", inline=64 * MIB)
        await under_way(client, watchers=1)
        await client.publish("m", bytes(32 * MIB))
        await under_way(client, watchers=0)
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "the client took nothing"):
            async for _ in stuck.call:
                pass


async def test_the_call_of_a_follower_that_stops_reading_is_ended(tmp_path: Path) -> None:
    """It read the existing versions; then new ones that fit one message each filled its window."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(tmp_path, replace(SETTINGS, retrieval_idle_seconds=1)))
        client = await stack.enter_async_context(connected(server.port))
        # Otherwise the window would hold some MiB.
        taking_little = connected(server.port, further_options=[("grpc.http2.bdp_probe", 0)])
        stuck = Follower(await stack.enter_async_context(taking_little), "m", inline=MIB, in_one_reply=True)
        await client.create_model("m")
        await stuck.texts(2)
        for _ in range(10):
            await client.publish("m", bytes(100_000))
        await under_way(client, watchers=0)
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "the client took nothing"):
            while True:
                await stuck.call.read()


@pytest.mark.parametrize("in_one_reply", [False, True], ids=["apart", "in one reply"])
async def test_new_versions_are_sent_with_bytes_of_any_size_to_followers_that_lack_them(
    client: Client, in_one_reply: bool
) -> None:
    await client.create_model("m")
    known = Random(3).randbytes(1000)
    followers = [
        Follower(client, "m", inline=300_000, in_one_reply=in_one_reply, known_hash=known_hash)
        for known_hash in ("", hash_of(known))
    ]
    for follower in followers:
        await follower.until_caught_up()
    for number, data in enumerate((b"", b"1", known, bytes(200_000), bytes(400_000), b"2"), 1):
        for follower in followers:
            follower.data = None
        await client.publish("m", data)
        assert [await follower.texts(1) for follower in followers] == [[f"m {number}"]] * 2
        sent = data if len(data) <= 300_000 else None
        assert [follower.data for follower in followers] == [sent, None if data == known else sent]


@pytest.mark.parametrize("in_one_reply", [False, True], ids=["apart", "in one reply"])
async def test_bytes_are_sent_to_very_many_watchers(client: Client, in_one_reply: bool) -> None:
    await client.create_model("m")
    followers = [Follower(client, "m", inline=MIB, in_one_reply=in_one_reply) for _ in range(90)]
    await asyncio.gather(*(follower.until_caught_up() for follower in followers))
    for number in range(1, 4):
        data = Random(number).randbytes(300_000)
        await client.publish("m", data)
        assert {text for [text] in await asyncio.gather(*(each.texts(1) for each in followers))} == {f"m {number}"}
        assert {follower.data for follower in followers} == {data}


async def test_memory_used_for_watchers_is_freed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    give_back = transfers.Transfers._give_back_window

    def note(self: transfers.Transfers, window_bytes: int) -> None:
        give_back(self, window_bytes)
        given.append(self._send_bytes)

    monkeypatch.setattr(transfers.Transfers, "_give_back_window", note)
    await client.create_model("m")
    follower = Follower(client, "m", inline=64 * MIB)
    await follower.until_caught_up()
    await client.publish("m", bytes(8 * MIB))
    await follower.texts(1)
    stuck = Follower(client, "m", inline=64 * MIB)
    await under_way(client, watchers=2)
    await stuck.cancel()
    await follower.cancel()

    async def all_freed() -> bool:
        return bool(given) and given[-1] == transfers._SEND_BYTES

    await eventually(all_freed)


async def test_consumers_are_sent_on_request(client: Client) -> None:
    await fill(client, "m", b"1")
    lifecycle = Client(client.channel, "cogment_model_registry.v1.ModelLifecycle")

    async def report(number: int, model_id: str = "m") -> None:
        request = consumer_messages.ReportConsumerRequest(
            consumer={"consumer_id": "actor", "model_id": model_id, "version_number": number, "state": "STATE_ACTIVE"}
        )
        await lifecycle.unary("ReportConsumer", request, consumer_messages.ReportConsumerReply)

    await report(1)
    call = Follower(client, "m", consumers=True).call
    replies = [wire.WatchReply.FromString(await call.read()) for _ in range(4)]
    assert {reply.WhichOneof("event") for reply in replies} == {"consumer", "model", "version", "caught_up"}
    await client.publish("m", b"2")
    assert wire.WatchReply.FromString(await call.read()).version.version_info.version_number == 2
    await fill(client, "n", b"1")
    await report(1, "n")
    await report(2)
    reply = wire.WatchReply.FromString(await call.read())
    assert (reply.consumer.consumer_id, reply.consumer.version_number) == ("actor", 2)
    call.cancel()
    await under_way(client, watchers=0)
