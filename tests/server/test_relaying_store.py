"""The store that relays versions of other servers: its rules, with servers that the tests script."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from random import Random

import pytest

from cogment_model_registry.errors import (
    DataLossError,
    ModelRegistryError,
    NotFoundError,
    PreconditionError,
    StoppingError,
    TooLargeError,
    UnavailableError,
)
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Reader
from cogment_model_registry.server.relays import RelayingStore
from cogment_model_registry.storage.memory.slabs import SLAB_BYTES
from cogment_model_registry.testing.bytes import describe, keep, read, read_part
from cogment_model_registry.testing.transient_store import Evictions, TransientStoreSuite
from tests.server.relayed import Relaying, ScriptedPeer
from tests.waiting import until

DATA = Random(1).randbytes(1000)
INFO = describe("m", 1, DATA, False)
AWAY = UnavailableError("it is away")


@pytest.fixture(name="executor")
def hashing() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="hash") as executor:
        yield executor


class TestRelayingStore(TransientStoreSuite):
    """Without other servers it is a store like others."""

    executor: ThreadPoolExecutor

    @pytest.fixture(autouse=True)
    def given(self, executor: ThreadPoolExecutor) -> None:
        self.executor = executor

    def make(self, max_items: int, max_bytes: int) -> RelayingStore:
        return Relaying(self.executor, max_bytes, max_items).store


@pytest.fixture
async def relaying(executor: ThreadPoolExecutor) -> AsyncIterator[Relaying]:
    made = Relaying(executor)
    async with made.store:
        yield made
    assert not any(peer.open_streams for peer in made.peers.values())


def is_empty(relaying: Relaying) -> bool:
    """Return whether no byte is kept, and none reserved."""
    usage = relaying.local.usage
    return (usage.items, usage.bytes, usage.held_bytes) == (0, 0, 0)


async def first_chunk(reader: Reader, max_bytes: int = 100) -> bytes:
    """Return the first chunk of a version that arrives."""
    async with aclosing(reader.chunks(max_bytes, 2 * max_bytes)) as chunks:
        return b"".join(await anext(chunks))


async def rest_of(chunks: AsyncIterator[Sequence[memoryview]]) -> bytes:
    return b"".join([b"".join(chunk) async for chunk in chunks])


@pytest.mark.parametrize("size", [0, 1, 999, SLAB_BYTES, 3 * SLAB_BYTES + 5])
@pytest.mark.parametrize("max_bytes", [1000, 70_000, 4 * MIB])
async def test_a_version_of_another_server_is_read_and_kept(relaying: Relaying, size: int, max_bytes: int) -> None:
    data = Random(size).randbytes(size)
    info = describe("m", 1, data, False)
    relaying.add(ScriptedPeer(data, 64 * 1024))
    assert await read(relaying.store, info, max_bytes) == data
    assert await read(relaying.local, info) == data
    assert await read(relaying.store, info) == data
    assert [len(peer.asked) for peer in relaying.peers.values()] == [1]
    counts = relaying.counts
    assert (counts.begun, counts.joined, counts.failed, counts.received_bytes) == (1, 0, 0, size)


@pytest.mark.parametrize("part", [(0, 10), (0, 999), (1, None), (500, 100), (500, 500), (1000, None), (999, None)])
@pytest.mark.parametrize("max_bytes", [1, 99, 100, 1000])
async def test_a_part_is_read_while_the_version_arrives(
    relaying: Relaying, part: tuple[int, int | None], max_bytes: int
) -> None:
    relaying.add(ScriptedPeer(DATA, 64))
    offset, limit = part
    wanted = DATA[offset:] if limit is None else DATA[offset : offset + limit]
    chunks = await read_part(relaying.store, INFO, offset, limit, max_bytes)
    assert b"".join(chunks) == wanted
    assert [len(chunk) for chunk in chunks[:-1]] == [max_bytes] * (len(chunks) - 1)


async def test_the_first_bytes_are_read_before_the_last_ones_arrive(relaying: Relaying) -> None:
    peer = ScriptedPeer(DATA, stops_at=500)
    relaying.add(peer)
    async with await relaying.store.open_version(INFO) as reader:
        chunks = reader.chunks(100, 200)
        assert b"".join([b"".join(await anext(chunks)) for _ in range(5)]) == DATA[:500]
        peer.may_pass.set()
        assert await rest_of(chunks) == DATA[500:]


async def test_many_readers_share_one_relay(relaying: Relaying) -> None:
    peer = ScriptedPeer(DATA, stops_at=300)
    relaying.add(peer)
    reading = [asyncio.create_task(read(relaying.store, INFO, 50)) for _ in range(16)]
    await until(lambda: relaying.counts.received_bytes == 300)
    peer.may_pass.set()
    assert await asyncio.gather(*reading) == [DATA] * 16
    assert peer.asked == [(0, None)]
    assert (relaying.counts.begun, relaying.counts.joined) == (1, 15)


async def test_a_slow_reader_holds_up_neither_the_relay_nor_others(relaying: Relaying) -> None:
    relaying.add(ScriptedPeer(DATA))
    async with await relaying.store.open_version(INFO) as slow:
        chunks = slow.chunks(100, 200)
        first = b"".join(await anext(chunks))
        assert await read(relaying.store, INFO) == DATA
        assert await read(relaying.local, INFO) == DATA
        await relaying.store.remove_version(INFO)
        assert first + await rest_of(chunks) == DATA
    await until(lambda: is_empty(relaying))


async def test_the_relay_ends_with_its_last_reader(relaying: Relaying) -> None:
    peer = ScriptedPeer(DATA, stops_at=500)
    relaying.add(peer)
    readers = [await relaying.store.open_version(INFO) for _ in range(2)]
    assert [await first_chunk(reader) for reader in readers] == [DATA[:100]] * 2
    await readers[0].aclose()
    assert peer.open_streams == 1
    await readers[1].aclose()
    await until(lambda: not peer.open_streams)
    await until(lambda: is_empty(relaying))
    assert relaying.counts.failed == 0
    peer.may_pass.set()
    assert await read(relaying.store, INFO) == DATA
    assert relaying.counts.begun == 2


async def test_a_cancelled_caller_ends_the_relay_that_nobody_else_wants(relaying: Relaying) -> None:
    peer = ScriptedPeer(DATA, stops_at=0)
    relaying.add(peer)
    opening = asyncio.create_task(read(relaying.store, INFO))
    await until(lambda: peer.open_streams)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: not peer.open_streams)
    await until(lambda: is_empty(relaying))


async def test_readers_learn_that_the_server_stops(executor: ThreadPoolExecutor) -> None:
    relaying = Relaying(executor)
    async with relaying.store:
        relaying.add(ScriptedPeer(DATA, stops_at=500))
        reader = await relaying.store.open_version(INFO)
        assert await first_chunk(reader) == DATA[:100]
    with pytest.raises(StoppingError):
        await first_chunk(reader)
    await reader.aclose()
    assert is_empty(relaying)


@pytest.mark.parametrize("failure", [AWAY, NotFoundError("evicted"), DataLossError("damaged there")])
async def test_the_next_server_sends_the_rest(relaying: Relaying, failure: ModelRegistryError) -> None:
    failing, working = ScriptedPeer(DATA, fails_at=300, failure=failure), ScriptedPeer(DATA)
    relaying.add(failing, working)
    async with await relaying.store.open_version(INFO) as reader:
        assert await rest_of(reader.chunks(100, 200)) == DATA
    assert (failing.asked, working.asked) == ([(0, None)], [(300, None)])
    assert await read(relaying.local, INFO) == DATA


async def test_a_server_that_ends_too_early_or_sends_too_much_is_replaced(relaying: Relaying) -> None:
    short, long = ScriptedPeer(DATA[:300]), ScriptedPeer(DATA + bytes(100), 360)
    working = ScriptedPeer(DATA)
    relaying.add(short, long, working)
    assert await read(relaying.store, INFO, 100) == DATA
    assert (long.asked, working.asked) == ([(300, None)], [(660, None)])


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([], NotFoundError),
        ([NotFoundError("no")], NotFoundError),
        ([PreconditionError("another hash")], NotFoundError),
        ([NotFoundError("no"), AWAY], UnavailableError),
        ([AWAY, NotFoundError("no")], UnavailableError),
        ([PreconditionError("no"), DataLossError("damaged")], DataLossError),
        ([DataLossError("damaged"), AWAY], UnavailableError),
    ],
)
async def test_the_error_says_what_the_servers_said(
    relaying: Relaying, failures: list[ModelRegistryError], expected: type[ModelRegistryError]
) -> None:
    relaying.add(*(ScriptedPeer(DATA, refusal=failure) for failure in failures))
    with pytest.raises(expected) as opened:
        await relaying.store.open_version(INFO)
    assert "peer:" not in opened.value.message
    relaying.peers.clear()
    relaying.add(*(ScriptedPeer(DATA, fails_at=300, failure=failure) for failure in failures))
    if failures:
        async with await relaying.store.open_version(INFO) as reader:
            with pytest.raises(expected):
                await rest_of(reader.chunks(100, 200))
        assert relaying.counts.failed == 2
    assert is_empty(relaying)


WRONG = DATA[:-1] + bytes([DATA[-1] ^ 1])


async def test_wrong_bytes_are_never_kept_and_the_next_server_is_asked(relaying: Relaying) -> None:
    lying, honest = ScriptedPeer(WRONG), ScriptedPeer(DATA)
    relaying.add(lying, honest)
    # Nothing of one chunk is read before all of it was checked.
    assert await read(relaying.store, INFO, 1000) == DATA
    assert (lying.asked, honest.asked) == ([(0, None)], [(0, None)])
    assert await read(relaying.local, INFO) == DATA


async def test_who_has_read_wrong_bytes_is_to_try_again(relaying: Relaying) -> None:
    lying, honest = ScriptedPeer(WRONG, stops_at=900), ScriptedPeer(DATA)
    relaying.add(lying, honest)
    async with await relaying.store.open_version(INFO) as early, await relaying.store.open_version(INFO) as late:
        chunks = early.chunks(100, 200)
        assert b"".join(await anext(chunks)) == DATA[:100]
        lying.may_pass.set()
        with pytest.raises(UnavailableError, match="wrong bytes; try again"):
            await rest_of(chunks)
        assert await rest_of(late.chunks(100, 200)) == DATA
    assert await read(relaying.local, INFO) == DATA


async def test_bytes_that_are_wrong_everywhere_are_data_loss(relaying: Relaying) -> None:
    relaying.add(ScriptedPeer(WRONG), ScriptedPeer(WRONG[::-1]))
    async with await relaying.store.open_version(INFO) as reader:
        with pytest.raises(DataLossError):
            await rest_of(reader.chunks(1000, 2000))
    assert [len(peer.asked) for peer in relaying.peers.values()] == [1, 1]
    assert is_empty(relaying)


async def test_a_server_that_sent_the_rest_of_wrong_bytes_is_asked_for_all(relaying: Relaying) -> None:
    lying = ScriptedPeer(bytes(1000), fails_at=300, failure=AWAY)
    honest = ScriptedPeer(DATA)
    relaying.add(lying, honest)
    assert await read(relaying.store, INFO, 1000) == DATA
    assert honest.asked == [(300, None), (0, None)]


@pytest.mark.parametrize("what", ["version", "model"])
async def test_what_was_deleted_in_the_meantime_is_read_and_not_kept(relaying: Relaying, what: str) -> None:
    peer = ScriptedPeer(DATA, stops_at=500)
    relaying.add(peer)
    async with await relaying.store.open_version(INFO) as reader:
        chunks = reader.chunks(100, 200)
        first = b"".join(await anext(chunks))
        await (relaying.store.remove_model("m") if what == "model" else relaying.store.remove_version(INFO))
        relaying.peers.clear()
        with pytest.raises(NotFoundError):
            await relaying.store.open_version(INFO)
        peer.may_pass.set()
        assert first + await rest_of(chunks) == DATA
    await until(lambda: is_empty(relaying))


async def test_a_reader_that_comes_after_a_deletion_gets_its_bytes_although_they_are_not_kept(
    relaying: Relaying,
) -> None:
    relaying.add(ScriptedPeer(DATA))
    async with await relaying.store.open_version(INFO) as reader:
        await relaying.store.remove_version(INFO)
        await until(lambda: relaying.counts.received_bytes == 1000)
        assert await rest_of(reader.chunks(100, 200)) == DATA
    await until(lambda: is_empty(relaying))


# Without room.


@pytest.fixture
async def full(executor: ThreadPoolExecutor) -> AsyncIterator[Relaying]:
    """A store without room for the version."""
    relaying = Relaying(executor, max_bytes=999)
    async with relaying.store:
        yield relaying
        assert is_empty(relaying)
    assert not any(peer.open_streams for peer in relaying.peers.values())


@pytest.mark.parametrize("max_bytes", [64, 300, 1000, 5000])
async def test_without_room_each_reader_receives_the_version_alone(full: Relaying, max_bytes: int) -> None:
    full.add(ScriptedPeer(DATA))
    assert await asyncio.gather(*(read(full.store, INFO, max_bytes) for _ in range(3))) == [DATA] * 3
    assert b"".join(await read_part(full.store, INFO, 10, 200, max_bytes)) == DATA[10:210]
    assert b"".join(await read_part(full.store, INFO, 990, None, max_bytes)) == DATA[990:]
    assert full.counts.unkept == 5


async def test_without_room_an_error_comes_when_the_version_is_opened(full: Relaying) -> None:
    full.add(ScriptedPeer(DATA, refusal=NotFoundError("no")))
    with pytest.raises(NotFoundError):
        await full.store.open_version(INFO)
    full.add(ScriptedPeer(DATA, refusal=AWAY))
    with pytest.raises(UnavailableError):
        await full.store.open_version(INFO)


async def test_without_room_the_next_server_sends_the_rest(full: Relaying) -> None:
    full.add(ScriptedPeer(DATA, fails_at=300, failure=AWAY), ScriptedPeer(DATA))
    assert await read(full.store, INFO, 200) == DATA


async def test_without_room_wrong_bytes_are_found_before_the_last_chunk(full: Relaying) -> None:
    full.add(ScriptedPeer(WRONG))
    async with await full.store.open_version(INFO) as reader:
        chunks = reader.chunks(100, 200)
        received = [b"".join(await anext(chunks)) for _ in range(9)]
        with pytest.raises(DataLossError):
            await anext(chunks)
    assert b"".join(received) == DATA[:900]
    full.add(ScriptedPeer(DATA))
    assert await read(full.store, INFO, 1000) == DATA
    async with await full.store.open_version(INFO) as reader:
        with pytest.raises(UnavailableError, match="try again"):
            await rest_of(reader.chunks(100, 200))


async def test_readers_go_on_alone_when_the_room_is_gone_in_the_middle(executor: ThreadPoolExecutor) -> None:
    data = Random(2).randbytes(3 * SLAB_BYTES)
    info, other = describe("m", 1, data, False), describe("other", 1, data[: 2 * SLAB_BYTES], False)
    relaying = Relaying(executor, max_bytes=4 * SLAB_BYTES)
    peer = ScriptedPeer(data, SLAB_BYTES, stops_at=2 * SLAB_BYTES)
    relaying.add(peer)
    async with relaying.store:
        await keep(relaying.store, other, data[: 2 * SLAB_BYTES])
        async with await relaying.store.open_version(info) as reader, await relaying.store.open_version(info) as late:
            chunks = reader.chunks(SLAB_BYTES, 2 * SLAB_BYTES)
            first = b"".join(await anext(chunks))
            await until(lambda: relaying.counts.received_bytes == 2 * SLAB_BYTES)
            async with await relaying.store.open_version(other):  # now it cannot make room any more
                peer.may_pass.set()
                assert first + await rest_of(chunks) == data
                assert await rest_of(late.chunks(SLAB_BYTES, 2 * SLAB_BYTES)) == data
                with pytest.raises(NotFoundError):
                    await relaying.local.open_version(info)
    assert relaying.counts.unkept == 2


# Copies.


@pytest.mark.parametrize("bound", ["items", "bytes"])
async def test_copies_are_evicted_before_versions_that_no_other_server_has(
    executor: ThreadPoolExecutor, bound: str
) -> None:
    data = Random(2).randbytes(SLAB_BYTES)
    limits = {"max_items": 4} if bound == "items" else {"max_bytes": 4 * SLAB_BYTES}
    relaying = Relaying(executor, **limits)
    evictions = Evictions(relaying.store)
    relaying.add(ScriptedPeer(data))
    async with relaying.store:
        own = [describe(model_id, number, data, False) for model_id in ("m", "other") for number in (20, 21)]
        for info in own[:3]:
            await keep(relaying.store, info, data)
        for number in range(1, 7):
            assert await read(relaying.store, describe("m", number, data, False)) == data
        await keep(relaying.store, own[3], data)
        assert evictions.take() == []
        for info in own:
            assert await read(relaying.store, info) == data


async def test_a_copy_that_became_its_own_is_evicted_like_others(executor: ThreadPoolExecutor) -> None:
    relaying = Relaying(executor, max_items=3)
    evictions = Evictions(relaying.store)
    relaying.add(ScriptedPeer(DATA))
    async with relaying.store:
        own = [describe("m", number, DATA, False) for number in (2, 3, 4)]
        await keep(relaying.store, own[0], DATA)
        await relaying.store.fetch(INFO)
        await keep(relaying.store, own[1], DATA)
        await keep(relaying.store, own[2], DATA)
        assert evictions.take() == [("m", 2)]
        assert await read(relaying.store, INFO) == DATA


async def test_nobody_is_notified_when_a_copy_is_evicted(executor: ThreadPoolExecutor) -> None:
    relaying = Relaying(executor, max_items=2)
    evictions = Evictions(relaying.store)
    relaying.add(ScriptedPeer(DATA))
    async with relaying.store:
        own = [describe("m", number, DATA, False) for number in (2, 3, 4)]
        await keep(relaying.store, own[0], DATA)
        assert await read(relaying.store, INFO) == DATA
        await keep(relaying.store, own[1], DATA)
        await keep(relaying.store, own[2], DATA)
        assert evictions.take() == [("m", 2)]
        with pytest.raises(NotFoundError):
            await relaying.local.open_version(INFO)


async def test_a_fetched_version_makes_this_server_a_holder(executor: ThreadPoolExecutor) -> None:
    relaying = Relaying(executor, max_items=1)
    evictions = Evictions(relaying.store)
    relaying.add(ScriptedPeer(DATA))
    async with relaying.store:
        for _ in range(2):
            await relaying.store.fetch(INFO)
        assert relaying.announced == [INFO]
        await keep(relaying.store, describe("m", 2, DATA, False), DATA)
        assert evictions.take() == [("m", 1)]


async def test_a_copy_that_was_read_before_can_be_fetched(relaying: Relaying) -> None:
    relaying.add(ScriptedPeer(DATA))
    assert await read(relaying.store, INFO) == DATA
    assert relaying.announced == []
    relaying.is_gone = True
    with pytest.raises(NotFoundError):
        await relaying.store.fetch(INFO)
    relaying.is_gone = False
    await relaying.store.fetch(INFO)
    assert relaying.announced == [INFO]


async def test_fetching_refuses_a_version_without_room_and_does_nothing_for_own_ones(full: Relaying) -> None:
    full.add(ScriptedPeer(DATA))
    with pytest.raises(TooLargeError):
        await full.store.fetch(INFO)
    own = describe("own", 1, b"x", False)
    await keep(full.store, own, b"x")
    await full.store.fetch(own)
    assert full.announced == []
    await full.store.remove_version(own)


async def test_a_reader_of_a_relay_hands_over_the_version_when_it_is_here(relaying: Relaying) -> None:
    peer = ScriptedPeer(DATA, stops_at=500)
    relaying.add(peer)
    async with await relaying.store.open_version(INFO) as reader:
        assert reader.in_memory(1000) is None
        handing_over = asyncio.ensure_future(reader.hand_over())
        peer.may_pass.set()
        descriptor = await handing_over
        assert b"".join(reader.in_memory(1000) or ()) == DATA
        if descriptor is None:
            pytest.skip("this system has no sealed memory")
        try:
            assert os.pread(descriptor, 2000, 0) == DATA
        finally:
            os.close(descriptor)


async def test_another_life_of_the_model_has_another_relay(relaying: Relaying) -> None:
    later = VersionInfo("m", 1, INFO.created_ns + 1, False, INFO.data_hash, INFO.data_size_bytes)
    peer = ScriptedPeer(DATA, stops_at=500)
    relaying.add(peer)
    async with await relaying.store.open_version(INFO), await relaying.store.open_version(later):
        assert len(peer.asked) == 2
    with suppress(NotFoundError):
        await relaying.local.open_version(INFO)
