"""The conformance suite of `TransientStore`."""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogment_model_registry.errors import NotFoundError, TooLargeError
from cogment_model_registry.records.retention import TransientShare
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Reader, TransientStore
from cogment_model_registry.testing.bytes import describe, keep, read, write_pieces
from cogment_model_registry.testing.eviction_rule import STEPS, EvictionRule, Pin, Publish, Share, Step, Unpin, Use
from cogment_model_registry.testing.version_store import VersionStoreSuite


class Evictions:
    """Receives the evictions of a store."""

    def __init__(self, store: TransientStore) -> None:
        self._evicted: list[tuple[str, int]] = []
        store.on_evicted(self._receive)

    async def _receive(self, evicted: Sequence[VersionInfo]) -> None:
        self._evicted += [(info.model_id, info.number) for info in evicted]

    def take(self) -> list[tuple[str, int]]:
        """Return the model and number of each version evicted since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted


class TransientStoreSuite(VersionStoreSuite):
    """Requirements of every transient store. A subclass implements how to create one."""

    archived = False

    @abstractmethod
    def make(self, max_items: int, max_bytes: int) -> TransientStore:
        """Return an empty store with these bounds."""

    @pytest.fixture
    def store(self) -> TransientStore:
        """A store with a budget of 16 MiB."""
        return self.make(100, 16 * MIB)

    async def test_the_bound_on_items_evicts_the_least_recently_used(self) -> None:
        store = self.make(3, MIB)
        evictions = Evictions(store)
        infos = [describe("m", number, b"x", False) for number in range(1, 6)]
        for info in infos[:3]:
            await keep(store, info, b"x")
        await read(store, infos[0])
        await keep(store, infos[3], b"x")
        assert evictions.take() == [("m", 2)]
        assert evictions.take() == []
        with pytest.raises(NotFoundError):
            await store.open_version(infos[1])
        assert store.usage.items == 3

    async def test_the_bound_on_bytes_counts_exactly(self) -> None:
        store = self.make(100, 3 * MIB)
        evictions = Evictions(store)
        data = bytes(MIB)
        for number in range(1, 4):
            await keep(store, describe("m", number, data, False), data)
        assert evictions.take() == []
        assert store.usage.bytes == 3 * MIB
        await keep(store, describe("m", 4, b"x", False), b"x")
        assert evictions.take() == [("m", 1)]
        assert store.usage.bytes == 2 * MIB + 1

    async def test_evictions_by_a_commit_are_reported_when_the_upload_is_closed(self) -> None:
        store = self.make(1, MIB)
        evictions = Evictions(store)
        await keep(store, describe("m", 1, b"x", False), b"x")
        async with await store.open_upload("m", 1) as upload:
            await write_pieces(upload, b"y")
            await upload.commit(describe("m", 2, b"y", False))
            assert evictions.take() == []
        assert evictions.take() == [("m", 1)]

    async def test_the_newest_version_of_each_model_is_evicted_last(self) -> None:
        store = self.make(3, MIB)
        evictions = Evictions(store)
        await keep(store, describe("old", 1, b"x", False), b"x")
        for number in range(1, 4):
            await keep(store, describe("m", number, b"x", False), b"x")
        assert evictions.take() == [("m", 1)]
        await keep(store, describe("other", 1, b"x", False), b"x")
        assert evictions.take() == [("m", 2)]
        await keep(store, describe("another", 1, b"x", False), b"x")
        assert evictions.take() == [("old", 1)]

    async def publish_many(self, store: TransientStore, model_id: str, count: int, data: bytes = b"x") -> None:
        """Commit versions of a model, numbered from 1."""
        for number in range(1, count + 1):
            await keep(store, describe(model_id, number, data, False), data)

    async def test_a_model_that_publishes_much_gets_only_its_fair_share(self) -> None:
        store = self.make(100, MIB)
        evictions = Evictions(store)
        for model_id in "abc":
            await self.publish_many(store, model_id, 30)
        await self.publish_many(store, "sweep", 300)
        evicted = evictions.take()
        left = {model_id: 30 - sum(each[0] == model_id for each in evicted) for model_id in "abc"}
        assert left == {"a": 25, "b": 25, "c": 25}
        assert ("sweep", 275) in evicted
        assert ("sweep", 276) not in evicted
        assert ("a", 6) not in evicted  # the least recently used one was evicted

    async def test_a_model_that_needs_less_than_its_share_loses_nothing(self) -> None:
        store = self.make(10, MIB)
        evictions = Evictions(store)
        await self.publish_many(store, "small", 2)
        for model_id in ("a", "b"):
            await self.publish_many(store, model_id, 20)
        evicted = evictions.take()
        assert not [each for each in evicted if each[0] == "small"]
        assert 40 - len(evicted) == 10 - 2

    async def test_bytes_are_shared_by_bytes_and_not_by_items(self) -> None:
        store = self.make(100, 100)
        evictions = Evictions(store)
        await self.publish_many(store, "many", 30, b"x")
        await self.publish_many(store, "large", 20, bytes(10))
        assert {model_id for model_id, _ in evictions.take()} == {"large"}

    async def test_the_bound_of_a_model_evicts_only_its_own_older_versions(self) -> None:
        store = self.make(100, MIB)
        evictions = Evictions(store)
        await self.publish_many(store, "other", 5)
        await store.set_share("m", TransientShare(max_items=2))
        await self.publish_many(store, "m", 4)
        assert evictions.take() == [("m", 1), ("m", 2)]
        await store.set_share("m", TransientShare(max_items=1))
        assert evictions.take() == [("m", 3)]
        assert store.usage.evictions["share"] == 3
        await store.set_share("m", TransientShare(max_bytes=3))
        await keep(store, describe("m", 5, b"1234", False), b"1234")
        assert evictions.take() == [("m", 4)]
        assert await read(store, describe("m", 5, b"1234", False)) == b"1234"

    async def test_reserved_memory_is_kept_for_its_model(self) -> None:
        store = self.make(10, MIB)
        evictions = Evictions(store)
        await store.set_share("m", TransientShare(reserved_items=6))
        await self.publish_many(store, "m", 8)
        await self.publish_many(store, "other", 20)
        evicted = evictions.take()
        assert [each for each in evicted if each[0] == "m"] == [("m", 1), ("m", 2)]
        await store.remove_model("m")
        await self.publish_many(store, "m", 8)
        await self.publish_many(store, "third", 20)
        assert len([each for each in evictions.take() if each[0] == "m"]) > 2

    async def test_the_newest_version_of_another_model_outlives_a_reserve(self) -> None:
        store = self.make(3, MIB)
        evictions = Evictions(store)
        await store.set_share("m", TransientShare(reserved_items=3))
        await self.publish_many(store, "m", 3)
        for model_id in "ab":
            await self.publish_many(store, model_id, 1)
        assert evictions.take() == [("m", 1), ("m", 2)]
        await self.publish_many(store, "c", 1)
        assert evictions.take() == [("a", 1)]

    async def test_a_version_older_than_an_archived_one_is_not_protected(self) -> None:
        store = self.make(2, MIB)
        evictions = Evictions(store)
        await keep(store, describe("a", 1, b"x", False), b"x")
        await keep(store, describe("b", 1, b"x", False), b"x")
        store.note_newest("b", 2)
        await keep(store, describe("c", 1, b"x", False), b"x")
        assert evictions.take() == [("b", 1)]

    async def test_after_a_removal_of_the_newest_version_the_previous_one_is_evicted_last(self) -> None:
        store = self.make(2, MIB)
        evictions = Evictions(store)
        await keep(store, describe("a", 1, b"x", False), b"x")
        await keep(store, describe("b", 1, b"x", False), b"x")
        store.note_newest("a", 2)
        store.note_removed("a", 2, 1)
        store.note_newest("b", 3)
        store.note_removed("b", 2, 1)  # has no effect: a newer one was published in the meantime
        await keep(store, describe("c", 1, b"x", False), b"x")
        assert evictions.take() == [("b", 1)]

    async def test_a_version_of_a_deleted_model_is_not_confused_with_its_successor(self) -> None:
        store = self.make(1, MIB)
        old, new = describe("m", 1, b"old", False), describe("m", 1, b"new", False)
        await keep(store, new, b"new")
        with store.holding(old), pytest.raises(NotFoundError):
            await store.open_version(old)
        await store.remove_version(old)
        assert await read(store, new) == b"new"

    async def test_its_own_versions_are_found_by_number(self, store: TransientStore) -> None:
        infos = [describe("m", number, bytes([number]), False) for number in (1, 2)]
        for info in infos:
            await keep(store, info, bytes([info.number]))
        found, reader = await store.open_own("m", 1)
        async with reader:
            assert found == infos[0]
            await store.remove_version(infos[0])
            assert [b"".join(chunk) async for chunk in reader.chunks(10, MIB)] == [b"\1"]
        for model_id, number in (("m", 1), ("m", 3), ("other", 1)):
            with pytest.raises(NotFoundError):
                await store.open_own(model_id, number)

    async def test_a_version_found_by_number_was_used(self) -> None:
        store = self.make(3, MIB)
        evictions = Evictions(store)
        await self.publish_many(store, "m", 3)
        _, reader = await store.open_own("m", 1)
        await reader.aclose()
        await keep(store, describe("m", 4, b"x", False), b"x")
        assert evictions.take() == [("m", 2)]

    async def test_a_version_being_read_keeps_its_bytes_and_they_count(self) -> None:
        store = self.make(1, 100)
        evictions = Evictions(store)
        first, second = describe("m", 1, bytes(60), False), describe("m", 2, bytes(40), False)
        await keep(store, first, bytes(60))
        async with await store.open_version(first) as reader:
            with pytest.raises(TooLargeError):
                await store.open_upload("m", 41)
            await keep(store, second, bytes(40))
            assert evictions.take() == [("m", 1)]
            assert store.usage.bytes == 100
            with pytest.raises(NotFoundError):
                await store.open_version(first)
            assert [b"".join(chunk) async for chunk in reader.chunks(60, MIB)] == [bytes(60)]
        assert store.usage.bytes == 40

    async def test_a_held_version_is_not_evicted(self) -> None:
        store = self.make(1, 100)
        evictions = Evictions(store)
        first = describe("m", 1, bytes(60), False)
        await keep(store, first, bytes(60))
        with store.holding(first) as is_there, store.holding(describe("m", 9, b"", False)) as is_other_there:
            assert (is_there, is_other_there) == (True, False)
            await keep(store, describe("m", 2, bytes(40), False), bytes(40))
            assert evictions.take() == []
            assert await read(store, first) == bytes(60)
        await keep(store, describe("m", 3, bytes(40), False), bytes(40))
        assert evictions.take() == [("m", 1), ("m", 2)]

    async def test_uploads_cannot_use_the_memory_of_a_held_version(self) -> None:
        store = self.make(10, 100)
        first = describe("m", 1, bytes(60), False)
        await keep(store, first, bytes(60))
        with store.holding(first), store.holding(first):
            assert store.usage.held_bytes == 60
            with pytest.raises(TooLargeError, match="consumers hold"):
                await store.open_upload("m", 41)
            async with await store.open_version(first):
                assert store.usage.held_bytes == 60
            assert store.usage.held_bytes == 60
        assert store.usage.held_bytes == 0
        async with await store.open_upload("m", 100) as upload:
            with store.holding(first), pytest.raises(TooLargeError, match="held by consumers"):
                await upload.write(memoryview(bytes(100)))
            assert await read(store, first) == bytes(60)

    async def test_a_held_version_can_be_removed(self) -> None:
        store = self.make(10, 100)
        first = describe("m", 1, bytes(60), False)
        await keep(store, first, bytes(60))
        with store.holding(first):
            async with await store.open_version(first):
                await store.remove_version(first)
                assert (store.usage.bytes, store.usage.held_bytes) == (60, 60)
            assert (store.usage.bytes, store.usage.held_bytes, store.usage.items) == (0, 0, 0)
        assert (store.usage.bytes, store.usage.held_bytes) == (0, 0)
        await keep(store, first, bytes(60))
        with store.holding(first):
            await store.remove_model("m")
            assert (store.usage.bytes, store.usage.held_bytes) == (0, 0)
        assert (store.usage.bytes, store.usage.held_bytes) == (0, 0)

    async def test_uploads_reserve_their_memory(self) -> None:
        store = self.make(100, 100)
        async with await store.open_upload("m", 60):
            assert store.usage.held_bytes == 60
            with pytest.raises(TooLargeError):
                await store.open_upload("m", 41)
        assert store.usage.held_bytes == 0
        async with await store.open_upload("m", 100):
            pass

    async def test_an_upload_evicts_only_for_received_bytes(self) -> None:
        store = self.make(100, 2 * MIB)
        evictions = Evictions(store)
        data = bytes(MIB)
        await keep(store, describe("m", 1, data, False), data)
        async with await store.open_upload("m", 2 * MIB) as upload:
            await upload.write(memoryview(data))
            assert evictions.take() == []
            await upload.write(memoryview(data)[:1])
            assert evictions.take() == [("m", 1)]
        assert store.usage.bytes == 0

    async def test_a_removed_model_frees_its_bytes(self, store: TransientStore) -> None:
        evictions = Evictions(store)
        infos = [describe("m", number, b"data", False) for number in (1, 2)]
        for info in infos:
            await keep(store, info, b"data")
        async with await store.open_version(infos[0]) as reader:
            await store.remove_model("m")
            assert store.usage.bytes == 4
            assert [b"".join(chunk) async for chunk in reader.chunks(10, MIB)] == [b"data"]
        assert store.usage.bytes == 0
        assert evictions.take() == []
        with pytest.raises(NotFoundError):
            await store.open_version(infos[1])
        await store.remove_model("m")

    async def test_a_cancelled_upload_frees_its_bytes(self, store: TransientStore) -> None:
        started = asyncio.Event()

        async def upload() -> None:
            async with await store.open_upload("m", 8 * MIB) as upload:
                await upload.write(memoryview(bytes(4 * MIB)))
                started.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(upload())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (store.usage.bytes, store.usage.held_bytes) == (0, 0)

    # The machine may be busy; and the suite runs in a class for each store, which share nothing.
    @settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(steps=STEPS, max_items=st.integers(1, 6), max_bytes=st.integers(1, 150))
    def test_eviction_follows_the_rule(self, steps: Sequence[Step], max_items: int, max_bytes: int) -> None:
        asyncio.run(self._follow(steps, EvictionRule(max_items, max_bytes)))

    async def _follow(self, steps: Sequence[Step], rule: EvictionRule) -> None:
        follower = _Follower(self.make(rule.max_items, rule.max_bytes), rule)
        for step in steps:
            match step:
                case Publish(model_id, size):
                    await follower.publish(model_id, size)
                case Use(position):
                    await follower.open(position, pin=False)
                case Pin(position):
                    await follower.open(position, pin=True)
                case Unpin():
                    await follower.unpin()
                case Share(model_id, share):
                    await follower.set_share(model_id, share)
            follower.check()
        await follower.finish()


class _Follower:
    """Performs the same steps on a store and on the rule, and compares them."""

    def __init__(self, store: TransientStore, rule: EvictionRule) -> None:
        self.store = store
        self.evictions = Evictions(store)
        self.rule = rule
        self.published: list[VersionInfo] = []
        self.readers: list[Reader] = []

    async def publish(self, model_id: str, size: int) -> None:
        before = set(self.rule.used)
        key = self.rule.publish(model_id, size)
        if key is None:
            with pytest.raises(TooLargeError):
                await self.store.open_upload(model_id, size)
            return
        data = bytes([key[1]]) * size
        info = describe(*key, data, False)
        await keep(self.store, info, data)
        self.published.append(info)
        assert set(self.evictions.take()) == before - set(self.rule.used)

    async def set_share(self, model_id: str, share: TransientShare) -> None:
        before = set(self.rule.used)
        self.rule.set_share(model_id, share)
        await self.store.set_share(model_id, share)
        assert set(self.evictions.take()) == before - set(self.rule.used)

    async def open(self, position: int, *, pin: bool) -> None:
        if not self.published:
            return
        info = self.published[position % len(self.published)]
        key = (info.model_id, info.number)
        if key not in self.rule.used:
            with pytest.raises(NotFoundError):
                await self.store.open_version(info)
            return
        self.rule.used.remove(key)
        self.rule.used.append(key)
        reader = await self.store.open_version(info)
        if pin:
            self.rule.pins.append(key)
            self.readers.append(reader)
        else:
            await reader.aclose()

    async def unpin(self) -> None:
        if self.readers:
            await self.readers.pop(0).aclose()
            key = self.rule.pins.pop(0)
            if key not in self.rule.pins:
                self.rule.lingering.pop(key, None)

    def check(self) -> None:
        assert self.store.usage.bytes == self.rule.held <= self.rule.max_bytes
        assert self.store.usage.items == len(self.rule.used) <= self.rule.max_items

    async def finish(self) -> None:
        for info in self.published:
            if (info.model_id, info.number) in self.rule.used:
                assert await read(self.store, info) == bytes([info.number]) * info.data_size_bytes
        while self.readers:
            await self.unpin()
        self.check()
