"""The transient store in memory passes the conformance suite; its slabs are tested below."""

import contextlib
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from cogment_model_registry.errors import TooLargeError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.memory import sealing
from cogment_model_registry.storage.memory.slabs import SLAB_BYTES, SlabPool
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.system.sealed_memory import SealedMemory, UnsealedMemory
from cogment_model_registry.testing.bytes import describe, hash_of, keep, read
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

    async def hand_over(self, store: MemoryTransientStore, info: VersionInfo) -> bytes | None:
        """Return the bytes of the passed descriptor; None if there is none."""
        async with await store.open_version(info) as reader:
            descriptor = await reader.hand_over()
        if descriptor is None:
            return None
        try:
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)

    async def test_a_version_passed_as_a_descriptor_is_not_in_slabs_any_more(self) -> None:
        store = self.make(10, 8 * SLAB_BYTES)
        data = Random(1).randbytes(3 * SLAB_BYTES + 5)
        info = describe("m", 1, data, False)
        await keep(store, info, data)
        assert await self.hand_over(store, info) == data
        assert store.usage.bytes == len(data)
        await store.remove_version(info)
        assert (store.usage.bytes, store._slabs.free_bytes) == (0, 0)

    async def test_a_reader_continues_in_the_slabs_after_the_version_moved(self) -> None:
        store = self.make(10, 32 * SLAB_BYTES)
        data = Random(2).randbytes(20 * SLAB_BYTES + 5)
        info = describe("m", 1, data, False)
        await keep(store, info, data)
        for read_bytes in range(0, len(data), 3 * SLAB_BYTES):
            async with await store.open_version(info) as reader:
                chunks = reader.chunks(SLAB_BYTES, 2 * SLAB_BYTES)
                parts = [b"".join(await anext(chunks)) for _ in range(read_bytes // SLAB_BYTES)]
                view = await anext(chunks)
                assert await self.hand_over(store, info) == data
                parts.append(b"".join(view))
                parts += [b"".join(chunk) async for chunk in chunks]
            assert b"".join(parts) == data
            await store.remove_version(info)
            await keep(store, info, data)

    async def test_descriptors_are_reused_for_other_readers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sealing, "_descriptors_max", lambda: 16)  # space for one version
        store = self.make(10, 8 * SLAB_BYTES)
        infos = [describe("m", number, b"data", False) for number in (1, 2)]
        for info in infos:
            await keep(store, info, b"data")
        assert [await self.hand_over(store, info) for info in infos] == [b"data", None]
        with SealedMemory.of(b"more") as memory:
            async with await store.open_upload("m", 4) as upload:
                await upload.adopt(memory, hash_of(b"more"))
                await upload.finish()
                await upload.commit(describe("m", 3, b"more", False))
        assert await read(store, describe("m", 3, b"more", False)) == b"more"
        await store.remove_version(infos[0])
        assert await self.hand_over(store, infos[1]) == b"data"

    async def test_a_version_comes_into_sealed_memory_where_the_one_before_was_handed_over(self) -> None:
        store = self.make(10, 16 * SLAB_BYTES)
        for number in (1, 2, 3):
            data = Random(number).randbytes(3 * SLAB_BYTES + 5)
            info = describe("m", number, data, False)
            await keep(store, info, data)
            with forbidden(UnsealedMemory, "write", is_forbidden=number > 1):
                assert await read(store, info) == data
                assert await self.hand_over(store, info) == data
        await keep(store, info := describe("m", 4, data, False), data)
        assert await read(store, info) == data
        await keep(store, info := describe("m", 5, data, False), data)
        await store.remove_version(info)
        assert store._slabs.free_bytes == 3 * SLAB_BYTES  # nobody wanted the one before by a descriptor
        await store.remove_model("m")
        assert store.usage.bytes == 0

    async def test_sealed_memory_and_free_slabs_together_stay_within_the_budget(self) -> None:
        store = self.make(100, 8 * SLAB_BYTES)
        data = bytes(2 * SLAB_BYTES)
        for number in range(1, 10):
            await keep(store, info := describe("n", number, data, False), data)
            await keep(store, info := describe("m", number, data, False), data)
            assert await self.hand_over(store, info) == data
            assert store.usage.bytes + store._slabs.free_bytes <= 8 * SLAB_BYTES

    async def test_an_upload_into_sealed_memory_that_ends_early_frees_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sealing, "_descriptors_max", lambda: 32)  # space for two versions
        store = self.make(10, 16 * SLAB_BYTES)
        data = bytes(2 * SLAB_BYTES)
        await keep(store, info := describe("m", 1, data, False), data)
        assert await self.hand_over(store, info) == data
        for _ in range(3):
            async with await store.open_upload("m", len(data)) as upload:
                await upload.write(memoryview(data)[: SLAB_BYTES + 7])
        assert store.usage.bytes == len(data)
        await keep(store, info := describe("m", 2, data, False), data)
        with forbidden(UnsealedMemory, "write"):
            assert await self.hand_over(store, info) == data

    async def test_an_upload_fails_if_the_system_has_no_memory_to_seal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.make(10, 16 * SLAB_BYTES)
        data = bytes(2 * SLAB_BYTES)
        await keep(store, info := describe("m", 1, data, False), data)
        assert await self.hand_over(store, info) == data
        with forbidden(UnsealedMemory, "write"), pytest.raises(TooLargeError, match="the system has no memory left"):
            await keep(store, describe("m", 2, data, False), data)
        assert store.usage.bytes == len(data)

    @pytest.mark.parametrize("failing", [0, 1, 2])
    async def test_a_version_stays_complete_if_the_system_is_out_of_memory(
        self, monkeypatch: pytest.MonkeyPatch, failing: int
    ) -> None:
        store = self.make(10, 32 * SLAB_BYTES)
        data = Random(3).randbytes(20 * SLAB_BYTES + 5)
        info = describe("m", 1, data, False)
        await keep(store, info, data)
        writes = iter(range(100))
        write = UnsealedMemory.write

        def fail(memory: UnsealedMemory, parts: Any) -> None:
            if next(writes) == failing:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            write(memory, parts)

        with monkeypatch.context() as patch:
            patch.setattr(UnsealedMemory, "write", fail)
            assert await self.hand_over(store, info) is None
        assert await read(store, info) == data
        assert await self.hand_over(store, info) == data
        await store.remove_version(info)
        assert store.usage.bytes == 0


@contextlib.contextmanager
def forbidden(kind: type, name: str, *, is_forbidden: bool = True) -> Iterator[None]:
    """Return a context manager in which a method raises `OSError`."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.MonkeyPatch.context() as patch:
        if is_forbidden:
            patch.setattr(kind, name, fail)
        yield


def test_a_pool_keeps_at_most_the_given_bytes() -> None:
    pool = SlabPool()
    for slab in [pool.take() for _ in range(5)]:
        pool.give_back(slab)
    pool.trim(2 * SLAB_BYTES + 1)
    assert pool.free_bytes == 2 * SLAB_BYTES
    pool.trim(-1)
    assert pool.free_bytes == 0
