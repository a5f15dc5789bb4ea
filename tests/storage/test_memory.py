"""The transient store in memory fulfils the contract; its slabs are tested below."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cogment_model_registry.storage.memory.slabs import SLAB_BYTES, SlabPool
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import describe, keep
from cogment_model_registry.testing.transient_store import TransientStoreSuite


class TestMemoryTransientStore(TransientStoreSuite):
    executor: ThreadPoolExecutor

    @pytest.fixture(autouse=True)
    def hashing(self) -> Iterator[None]:
        with ThreadPoolExecutor(2, thread_name_prefix="hash") as self.executor:
            yield

    def make(self, max_items: int, max_bytes: int) -> MemoryTransientStore:
        return MemoryTransientStore(max_items, max_bytes, self.executor)

    async def test_slabs_are_recycled(self) -> None:
        store = self.make(1, 8 * SLAB_BYTES)
        data = bytes(4 * SLAB_BYTES)
        for number in range(1, 20):
            await keep(store, describe("m", number, data, False), data)
        # The slabs of one version in the store, and of the one it replaced.
        assert len(store._slabs._free) == 4

    async def test_free_slabs_are_released_on_request(self) -> None:
        store = self.make(1, 8 * SLAB_BYTES)
        data = bytes(4 * SLAB_BYTES)
        await keep(store, describe("m", 1, data, False), data)
        store.release_memory()
        assert store.usage.bytes == 4 * SLAB_BYTES
        await store.remove_model("m")
        assert store._slabs.free_bytes == 4 * SLAB_BYTES
        store.release_memory()
        assert store._slabs.free_bytes == 0

    async def test_free_slabs_and_small_versions_together_stay_within_the_budget(self) -> None:
        store = self.make(100, 8 * SLAB_BYTES)
        large, small = bytes(8 * SLAB_BYTES), bytes(SLAB_BYTES // 2)
        await keep(store, describe("m", 1, large, False), large)
        for number in range(2, 18):
            await keep(store, describe("m", number, small, False), small)
            assert store.usage.bytes + store._slabs.free_bytes <= 8 * SLAB_BYTES


def test_a_pool_keeps_at_most_the_given_bytes() -> None:
    pool = SlabPool()
    for slab in [pool.take() for _ in range(5)]:
        pool.give_back(slab)
    pool.trim(2 * SLAB_BYTES + 1)
    assert pool.free_bytes == 2 * SLAB_BYTES
    pool.trim(-1)
    assert pool.free_bytes == 0
