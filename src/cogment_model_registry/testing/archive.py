"""The conformance suite of `Archive`."""

from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cogment_model_registry.errors import DataLossError, NotFoundError, StartError
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Archive, ModelContents
from cogment_model_registry.testing.bytes import SIGNATURE, describe, keep, read, read_part, write_pieces
from cogment_model_registry.testing.version_store import VersionStoreSuite


async def remove(archive: Archive, model_id: str) -> None:
    """Remove a model from an archive, and free its bytes."""
    removal = await archive.begin_removal(model_id)
    await removal.finish()


class ArchiveSuite(VersionStoreSuite):
    """Requirements of every archive. A subclass implements how to create one."""

    archived = True

    @abstractmethod
    def make(self, place: Path) -> Archive:
        """Return the archive in a directory, not yet open: each time with the same content."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Archive]:
        """An archive with the model ``m``, without versions."""
        archive = self.make(tmp_path)
        await archive.open()
        await archive.write_model(ModelInfo("m", {"a": "b"}))
        yield archive
        await archive.close()

    @asynccontextmanager
    async def reopened(self, archive: Archive, place: Path) -> AsyncIterator[Archive]:
        """Close an archive, and return a context manager that opens it again."""
        await archive.close()
        again = self.make(place)
        await again.open()
        try:
            yield again
        finally:
            await again.close()

    async def test_a_second_opener_of_an_exclusive_archive_is_refused(self, store: Archive, tmp_path: Path) -> None:
        second = self.make(tmp_path)
        if store.is_exclusive:
            with pytest.raises(StartError):
                await second.open()
        else:
            await second.open()
            assert len(await second.scan()) == 1
        await second.close()
        async with self.reopened(store, tmp_path) as third:
            assert len(await third.scan()) == 1

    async def test_models_and_versions_survive_a_restart(self, store: Archive, tmp_path: Path) -> None:
        info = describe("m", 1, b"data", True, note="yes", figure="1e3", nothing="")
        await keep(store, info, b"data")
        async with self.reopened(store, tmp_path) as again:
            [contents] = await again.scan()
            assert contents.info == ModelInfo("m", {"a": "b"})
            assert list(contents.version_numbers) == [1]
            assert await again.read_version_infos("m", [1, 2]) == [info, None]
            assert await read(again, info) == b"data"

    async def test_a_signature_survives_a_restart(self, store: Archive, tmp_path: Path) -> None:
        info = replace(describe("m", 1, b"data", True), signature=SIGNATURE)
        await keep(store, info, b"data")
        async with self.reopened(store, tmp_path) as again:
            [found] = await again.read_version_infos("m", [1])
            assert isinstance(found, VersionInfo)
            assert found.signature == SIGNATURE

    async def test_models_are_listed_in_order(self, store: Archive) -> None:
        for model_id in ("z", "a", "m-v000001", "été"):
            await store.write_model(ModelInfo(model_id))
        assert [contents.info.model_id for contents in await store.scan()] == ["a", "m", "m-v000001", "z", "été"]

    async def test_the_highest_number_in_use_is_reported(self, store: Archive) -> None:
        await keep(store, describe("m", 5, b"data", True), b"data")
        [contents] = await store.scan()
        assert (list(contents.version_numbers), contents.last_number) == ([5], 5)

    async def test_user_data_of_a_model_is_replaced(self, store: Archive) -> None:
        await keep(store, describe("m", 1, b"data", True), b"data")
        await store.write_model(ModelInfo("m", {"c": "d"}))
        [contents] = await store.scan()
        assert contents.info.user_data == {"c": "d"}
        assert list(contents.version_numbers) == [1]

    async def test_a_removed_model_is_gone_with_its_versions(self, store: Archive, tmp_path: Path) -> None:
        info = describe("m", 1, b"data", True)
        await keep(store, info, b"data")
        await remove(store, "m")
        assert await store.scan() == []
        assert await store.read_version_infos("m", [1]) == [None]
        with pytest.raises(NotFoundError):
            await store.open_version(info)
        await store.write_model(ModelInfo("m"))
        async with self.reopened(store, tmp_path) as again:
            [contents] = await again.scan()
            assert list(contents.version_numbers) == []

    async def test_a_removed_version_stays_removed_after_a_restart(self, store: Archive, tmp_path: Path) -> None:
        for number in (1, 2):
            await keep(store, describe("m", number, b"data", True), b"data")
        await store.remove_version(describe("m", 2, b"data", True))
        async with self.reopened(store, tmp_path) as again:
            [contents] = await again.scan()
            assert list(contents.version_numbers) == [1]
            assert await again.read_version_infos("m", [2]) == [None]

    async def test_a_reader_continues_when_its_model_is_removed(self, store: Archive) -> None:
        data = bytes(range(256)) * 20_000
        info = describe("m", 1, data, True)
        await keep(store, info, data)
        async with await store.open_version(info) as reader, aclosing(reader.chunks(100_000, MIB)) as chunks:
            received = b"".join(await anext(chunks))
            await remove(store, "m")
            async for chunk in chunks:
                received += b"".join(chunk)
        assert received == data

    async def test_a_model_can_be_created_again_before_its_bytes_are_freed(
        self, store: Archive, tmp_path: Path
    ) -> None:
        await keep(store, describe("m", 1, b"data", True), b"data")
        removal = await store.begin_removal("m")
        assert await store.scan() == []
        info = describe("m", 1, b"other", True)
        await store.write_model(ModelInfo("m"))
        await keep(store, info, b"other")
        await removal.finish()
        async with self.reopened(store, tmp_path) as again:
            assert await read(again, info) == b"other"

    async def test_a_removal_interrupted_by_a_crash_is_complete_after_a_restart(
        self, store: Archive, tmp_path: Path
    ) -> None:
        await keep(store, describe("m", 1, b"data", True), b"data")
        await store.begin_removal("m")
        async with self.reopened(store, tmp_path) as again:
            assert await again.scan() == []

    async def test_an_upload_fails_when_its_model_is_removed_before_the_commit(self, store: Archive) -> None:
        info = describe("m", 1, b"data", True)
        async with await store.open_upload("m", 4) as upload:
            await write_pieces(upload, b"data")
            await remove(store, "m")
            await store.write_model(ModelInfo("m"))
            with pytest.raises(NotFoundError):
                await upload.commit(info)
        assert await store.read_version_infos("m", [1]) == [None]

    async def test_uploads_and_removals_refuse_an_unknown_model(self, store: Archive) -> None:
        with pytest.raises(NotFoundError):
            await store.open_upload("other", 1)
        with pytest.raises(NotFoundError):
            await remove(store, "other")

    async def test_an_upload_interrupted_by_a_crash_is_removed(self, store: Archive, tmp_path: Path) -> None:
        upload = await store.open_upload("m", 100)
        await upload.write(memoryview(b"data"))
        [before] = await store.scan()
        await upload.aclose()
        async with self.reopened(store, tmp_path) as again:
            [after] = await again.scan()
        for field in fields(ModelContents):  # an archive may add the state of its folder
            assert getattr(before, field.name) == getattr(after, field.name)

    async def test_bytes_that_do_not_match_their_hash_are_never_complete(self, store: Archive) -> None:
        data = bytes(3_000_000)
        info = describe("m", 1, data, True)
        await keep(store, info, data)
        wrong = replace(info, data_hash=describe("m", 1, b"", True).data_hash)
        received: list[int] = []

        async def receive() -> None:
            async with await store.open_version(wrong) as reader:
                async for chunk in reader.chunks(100_000, MIB):
                    received.extend(len(part) for part in chunk)

        with pytest.raises(DataLossError):
            await receive()
        assert sum(received) < len(data)

    async def test_a_part_is_read_without_the_rest(self, store: Archive) -> None:
        data = bytes(3_000_000)
        info = describe("m", 1, data, True)
        await keep(store, info, data)
        wrong = replace(info, data_hash=describe("m", 1, b"", True).data_hash)
        parts = [await read_part(store, wrong, *part) for part in ((0, 2_999_999), (1, None), (1_000_000, 1))]
        assert [sum(map(len, chunks)) for chunks in parts] == [2_999_999, 2_999_999, 1]

    async def test_bytes_of_an_unexpected_size_are_refused(self, store: Archive) -> None:
        info = describe("m", 1, b"data", True)
        await keep(store, info, b"data")
        with pytest.raises(DataLossError):
            await store.open_version(replace(info, data_size_bytes=5))

    async def test_a_copy_has_the_bytes_of_its_source_whichever_of_them_is_removed(
        self, store: Archive, tmp_path: Path
    ) -> None:
        data = bytes(range(256)) * 10_000
        infos = [describe("m", number, data, True) for number in (1, 2, 3)]
        await keep(store, infos[0], data)
        for source, copy in ((infos[0], infos[1]), (infos[1], infos[2])):
            assert await read(store, source) == data
            async with await store.open_copy(source) as upload:
                assert await upload.finish() == source.data_hash
                await upload.commit(copy)
        assert [await read(store, info) for info in infos] == [data] * 3
        await store.remove_version(infos[0])
        assert [await read(store, info) for info in infos[1:]] == [data] * 2
        await store.remove_version(infos[2])
        async with self.reopened(store, tmp_path) as again:
            [contents] = await again.scan()
            assert list(contents.version_numbers) == [2]
            assert await again.read_version_infos("m", [2]) == [infos[1]]
            assert await read(again, infos[1]) == data

    @pytest.mark.parametrize("is_copy", [False, True])
    @pytest.mark.parametrize("is_committed", [False, True])
    async def test_an_upload_is_prepared_before_its_commit(
        self, store: Archive, tmp_path: Path, is_copy: bool, is_committed: bool
    ) -> None:
        first, second = (describe("m", number, b"data", True) for number in (1, 2))
        await keep(store, first, b"data")
        async with await (store.open_copy(first) if is_copy else store.open_upload("m", 4)) as upload:
            if not is_copy:
                await upload.write(memoryview(b"data"))
            await upload.finish()
            await upload.prepare(second)
            assert await store.read_version_infos("m", [2]) == [None]
            if is_committed:
                await upload.commit(second)
        async with self.reopened(store, tmp_path) as again:
            [contents] = await again.scan()
            assert list(contents.version_numbers) == ([1, 2] if is_committed else [1])
            assert contents.last_number == (2 if is_committed else 1)
            assert await read(again, second if is_committed else first) == b"data"

    async def test_an_uncommitted_copy_leaves_nothing(self, store: Archive, tmp_path: Path) -> None:
        info = describe("m", 1, b"data", True)
        await keep(store, info, b"data")
        async with await store.open_copy(info) as upload:
            await upload.finish()
        async with self.reopened(store, tmp_path) as again:
            [contents] = await again.scan()
            assert list(contents.version_numbers) == [1]
            assert await read(again, info) == b"data"

    async def test_a_copy_fails_when_its_model_is_removed_before_the_commit(self, store: Archive) -> None:
        info = describe("m", 1, b"data", True)
        await keep(store, info, b"data")
        async with await store.open_copy(info) as upload:
            await upload.finish()
            await remove(store, "m")
            await store.write_model(ModelInfo("m"))
            with pytest.raises(NotFoundError):
                await upload.commit(describe("m", 2, b"data", True))
        assert await store.read_version_infos("m", [1, 2]) == [None, None]

    async def test_readers_continue_while_their_version_is_copied_and_copies_are_removed(self, store: Archive) -> None:
        data = bytes(range(256)) * 20_000
        infos = [describe("m", number, data, True) for number in (1, 2)]
        await keep(store, infos[0], data)
        assert await read(store, infos[0]) == data
        async with await store.open_version(infos[0]) as reader, aclosing(reader.chunks(100_000, MIB)) as chunks:
            received = b"".join(await anext(chunks))
            async with await store.open_copy(infos[0]) as upload:
                await upload.finish()
                await upload.commit(infos[1])
            await store.remove_version(infos[1])
            async with await store.open_copy(infos[0]) as upload:
                await upload.finish()
            async for chunk in chunks:
                received += b"".join(chunk)
        assert received == data

    async def test_only_versions_that_exist_can_be_copied(self, store: Archive) -> None:
        for info in (describe("m", 7, b"", True), describe("other", 1, b"", True)):
            with pytest.raises(NotFoundError):
                await store.open_copy(info)

    async def test_a_working_archive_reports_no_failure(self, store: Archive) -> None:
        await store.check()
        assert store.failure == ""
        assert not store.is_read_only
