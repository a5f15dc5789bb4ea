"""The shared part of the conformance suites of both tiers."""

import os
from abc import ABC, abstractmethod
from itertools import cycle

import pytest

from cogment_model_registry.errors import DataLossError, NotFoundError, TooLargeError
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.registry.contracts import VersionStore
from cogment_model_registry.system.sealed_memory import SealedMemory, is_supported
from cogment_model_registry.testing.bytes import describe, keep, read, read_chunks, read_part, write_pieces


def _sealed(data: bytes) -> SealedMemory:
    if not is_supported():
        pytest.skip("this system has no sealed memory")
    return SealedMemory.of(data)


SIZES = [0, 1, 65_535, 65_536, 1_048_575, 1_048_576, 1_048_577, 3_000_000]


class VersionStoreSuite(ABC):
    """Requirements of every store of versions. A subclass provides the fixture `store`, with the model ``m`` in it."""

    archived: bool

    @pytest.fixture
    @abstractmethod
    def store(self) -> VersionStore:
        """The store, open, with a budget of 16 MiB."""

    @pytest.mark.parametrize("piece", [1_000_000, 70_000, 2_000_000])
    async def test_bytes_come_back_for_any_sizes_of_pieces(self, store: VersionStore, piece: int) -> None:
        for number, size in enumerate(SIZES, start=1):
            data = bytes(index * 31 % 251 for index in range(1000)) * (size // 1000 + 1)
            data = data[:size]
            info = describe("m", number, data, self.archived)
            await keep(store, info, data, [piece] * (size // piece))
            assert await read(store, info) == data, size

    async def test_bytes_written_one_by_one_come_back(self, store: VersionStore) -> None:
        data = bytes(range(250)) * 8
        info = describe("m", 1, data, self.archived)
        await keep(store, info, data, [1] * len(data))
        assert await read(store, info) == data

    async def test_chunks_have_the_size_asked_for(self, store: VersionStore) -> None:
        data = bytes(1000)
        info = describe("m", 1, data, self.archived)
        await keep(store, info, data)
        for max_bytes in (1, 7, 999, 1000, 1001):
            async with await store.open_version(info) as reader:
                sizes = [len(chunk) for chunk in await read_chunks(reader, max_bytes)]
            assert sizes == [max_bytes] * (1000 // max_bytes) + ([1000 % max_bytes] if 1000 % max_bytes else [])

    async def test_an_empty_version_is_one_chunk_without_bytes(self, store: VersionStore) -> None:
        info = describe("m", 1, b"", self.archived)
        await keep(store, info, b"")
        async with await store.open_version(info) as reader:
            assert await read_chunks(reader) == [b""]

    async def test_a_part_has_the_requested_bytes(self, store: VersionStore) -> None:
        size = 3_000_000
        data = bytes(index * 31 % 251 for index in range(1000)) * 3000
        info = describe("m", 1, data, self.archived)
        await keep(store, info, data)
        edges = [0, 1, 65_535, 65_536, 65_537, 1_048_576, 2_500_000, size - 1, size]
        # Each offset, and each limit, with each size of chunks.
        chunk_sizes = cycle([999, 65_536, 1_048_576, 999])
        for _ in range(2):  # after a read of the whole version, parts may be read in another way
            for offset in edges:
                for limit in (None, 0, 1, 70_000, 2**60):
                    max_bytes = next(chunk_sizes)
                    chunks = await read_part(store, info, offset, limit, max_bytes)
                    end = size if limit is None else offset + limit
                    assert b"".join(chunks) == data[offset:end], (offset, limit, max_bytes)
                    assert all(len(chunk) == max_bytes for chunk in chunks[:-1])
            assert await read(store, info) == data

    async def test_an_empty_part_is_one_chunk_without_bytes(self, store: VersionStore) -> None:
        info = describe("m", 1, b"data", self.archived)
        await keep(store, info, b"data")
        assert await read_part(store, info, 4, None) == [b""]
        assert await read_part(store, info, 2, 0) == [b""]

    @pytest.mark.parametrize("data", [b"", b"data", bytes(range(256)) * 8192])
    async def test_the_view_in_memory_equals_the_chunks(self, store: VersionStore, data: bytes) -> None:
        info = describe("m", 1, data, self.archived)
        await keep(store, info, data)
        async with await store.open_version(info) as reader:
            assert reader.in_memory(len(data) - 1) is None
            parts = reader.in_memory(len(data))
            assert parts is None or b"".join(parts) == data
            assert b"".join(await read_chunks(reader)) == data

    async def test_an_upload_returns_the_hash(self, store: VersionStore) -> None:
        data = b"chunk_1chunk_2"
        async with await store.open_upload("m", len(data)) as upload:
            assert await write_pieces(upload, data, [7]) == "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI="

    async def test_an_uncommitted_upload_leaves_nothing(self, store: VersionStore) -> None:
        info = describe("m", 1, b"data", self.archived)
        async with await store.open_upload("m", 4) as upload:
            await write_pieces(upload, b"data")
        with pytest.raises(NotFoundError):
            await store.open_version(info)

    async def test_an_upload_and_a_reader_may_be_closed_twice_and_early(self, store: VersionStore) -> None:
        info = describe("m", 1, b"data", self.archived)
        await keep(store, info, b"data")
        reader = await store.open_version(info)
        await reader.aclose()
        await reader.aclose()
        upload = await store.open_upload("m", 10)
        await upload.write(memoryview(b"12345"))
        await upload.aclose()
        await upload.aclose()

    async def test_a_reader_closed_early_releases_its_resources(self, store: VersionStore) -> None:
        data = bytes(3_000_000)
        info = describe("m", 1, data, self.archived)
        await keep(store, info, data)
        async with await store.open_version(info) as reader:
            await anext(reader.chunks(1000, MIB))
        assert await read(store, info) == data

    async def test_concurrent_uploads_do_not_mix(self, store: VersionStore) -> None:
        datas = [bytes([number]) * 100_000 for number in range(4)]
        uploads = [await store.open_upload("m", len(data)) for data in datas]
        for start in range(0, 100_000, 30_000):
            for upload, data in zip(uploads, datas, strict=True):
                await upload.write(memoryview(data)[start : start + 30_000])
        infos = [describe("m", number + 1, data, self.archived) for number, data in enumerate(datas)]
        for upload, info in zip(uploads, infos, strict=True):
            assert await upload.finish() == info.data_hash
            await upload.commit(info)
            await upload.aclose()
        assert [await read(store, info) for info in infos] == datas

    async def test_several_buffers_may_be_written_at_once(self, store: VersionStore) -> None:
        data = bytes(range(256)) * 12_000
        info = describe("m", 1, data, self.archived)
        view = memoryview(data)
        async with await store.open_upload("m", len(data)) as upload:
            await upload.write(view[:10], view[10:20], view[20:20])
            await upload.write(view[20:1_000_000], view[1_000_000:])
            assert await upload.finish() == info.data_hash
            await upload.commit(info)
        assert await read(store, info) == data

    @pytest.mark.parametrize("size", [1, 65_537, 3_000_000])
    async def test_sealed_memory_is_adopted_or_copied(self, store: VersionStore, size: int) -> None:
        data = bytes(index * 31 % 251 for index in range(1000)) * (size // 1000 + 1)
        data = data[:size]
        info = describe("m", 1, data, self.archived)
        with _sealed(data) as memory:
            async with await store.open_upload("m", size) as upload:
                await upload.adopt(memory, info.data_hash)
                assert await upload.finish() == info.data_hash
                await upload.commit(info)
            async with await store.open_upload("m", size) as upload:
                await upload.adopt(memory, info.data_hash)  # leaves nothing behind
        assert await read(store, info) == data
        assert b"".join(await read_part(store, info, size // 2, None)) == data[size // 2 :]
        await store.remove_version(info)
        with pytest.raises(NotFoundError):
            await read(store, info)

    @pytest.mark.parametrize("size", [1, 65_537, 1_048_576, 12_000_000])
    async def test_a_passed_descriptor_has_the_bytes_and_is_read_only(self, store: VersionStore, size: int) -> None:
        data = bytes(index * 31 % 251 for index in range(1000)) * (size // 1000 + 1)
        data = data[:size]
        info = describe("m", 1, data, self.archived)
        await keep(store, info, data)
        for _ in range(2):
            async with await store.open_version(info) as reader, await store.open_version(info) as other:
                chunks = other.chunks(1_000_000, MIB)
                start = b"".join(await anext(chunks))
                descriptor = await reader.hand_over()
                assert start + b"".join([b"".join(chunk) async for chunk in chunks]) == data
            if descriptor is None:
                pytest.skip("this store passes no descriptors")
            try:
                assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.write(descriptor, b"x")
                await store.remove_version(info)
                await keep(store, info, data)
                assert os.fstat(descriptor).st_size == size
                assert os.pread(descriptor, size, 0) == data
            finally:
                os.close(descriptor)
        assert await read(store, info) == data

    async def test_a_version_that_can_never_fit_is_refused_before_its_bytes(self, store: VersionStore) -> None:
        with pytest.raises(TooLargeError):
            await store.open_upload("m", 2**62)

    async def test_an_unknown_version_is_not_found(self, store: VersionStore) -> None:
        with pytest.raises(NotFoundError):
            await store.open_version(describe("m", 7, b"", self.archived))

    async def test_a_removed_version_is_gone_and_its_readers_continue(self, store: VersionStore) -> None:
        infos = [describe("m", number, bytes([number]) * 100_000, self.archived) for number in (1, 2)]
        for info in infos:
            await keep(store, info, bytes([info.number]) * 100_000)
        async with await store.open_version(infos[0]) as reader:
            await store.remove_version(infos[0])
            await store.remove_version(infos[0])
            with pytest.raises((NotFoundError, DataLossError)):
                await read(store, infos[0])
            assert b"".join(await read_chunks(reader)) == b"\1" * 100_000
        assert await read(store, infos[1]) == b"\2" * 100_000
