"""The archive on a directory fulfils the contract; what is its own is tested below."""

import asyncio
import errno
import fcntl
import os
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from cogment_model_registry.errors import NotFoundError, StartError, UnavailableError
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.testing.archive import ArchiveSuite, remove
from cogment_model_registry.testing.bytes import describe, keep, read, read_chunks, write_pieces
from tests.waiting import until

MIB = 1024 * 1024


def archive_at(place: Path, files: Files | None = None) -> DirectoryArchive:
    return DirectoryArchive(str(place / "archive"), model_id_max_bytes=128, files=files)


class TestDirectoryArchive(ArchiveSuite):
    def make(self, place: Path) -> DirectoryArchive:
        return archive_at(place)

    async def test_one_model_can_be_scanned(self, store: DirectoryArchive) -> None:
        await keep(store, describe("m", 3, b"data", True), b"data")
        contents = await store.scan_model("m")
        assert contents is not None
        assert list(contents.version_numbers) == [3]
        assert await store.scan_model("other") is None

    async def test_numbers_in_use_and_the_high_water_mark_are_reported_separately(
        self, store: DirectoryArchive
    ) -> None:
        await keep(store, describe("m", 5, b"data", True), b"data")
        await store.write_high_water_mark("m", 2)
        contents = await store.scan_model("m")
        assert contents is not None
        assert (contents.last_number, contents.high_water_mark) == (5, 2)

    async def test_the_high_water_mark_survives_a_restart_and_goes_with_its_model(
        self, store: DirectoryArchive, tmp_path: Path
    ) -> None:
        await store.write_high_water_mark("m", 128)
        async with self.reopened(store, tmp_path) as again:
            assert isinstance(again, DirectoryArchive)
            [contents] = await again.scan()
            assert contents.high_water_mark == 128
            await remove(again, "m")
            await again.write_model(ModelInfo("m"))
            [contents] = await again.scan()
            assert contents.high_water_mark == 0

    async def test_an_unknown_model_cannot_get_a_high_water_mark(self, store: DirectoryArchive) -> None:
        with pytest.raises(NotFoundError):
            await store.write_high_water_mark("other", 1)


async def test_lock_file_with_a_second_hard_link_leaves_the_linked_file_unchanged(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "elsewhere").write_text("precious")
    os.link(tmp_path / "elsewhere", tmp_path / "archive/.lock")
    archive = archive_at(tmp_path)
    await archive.open()
    second = archive_at(tmp_path)
    with pytest.raises(StartError, match=f"in use by process {os.getpid()}"):
        await second.open()
    await second.close()
    await archive.close()
    assert (tmp_path / "elsewhere").read_text() == "precious"


class TellingFiles(Files):
    """Signals that an archive is being opened: its lock is taken next."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def open_root(self, path: str) -> int:
        root = super().open_root(path)
        self.opened.set()
        return root


async def test_reading_the_lock_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/.lock").touch()
    files = TellingFiles()
    archive = archive_at(tmp_path, files)
    with (tmp_path / "archive/.lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        opening = asyncio.ensure_future(archive.open())
        await asyncio.to_thread(files.opened.wait)
    await opening
    await archive.close()


@asynccontextmanager
async def opened(place: Path, files: Files) -> AsyncIterator[DirectoryArchive]:
    """Return a context manager with an archive that has a model `m`."""
    archive = archive_at(place, files)
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    try:
        yield archive
    finally:
        await archive.close()


class PartlyCachedFiles(Files):
    """Has only the first bytes of a file in memory."""

    def __init__(self, cached_bytes: int) -> None:
        self.cached_bytes = cached_bytes
        self.read_in_place_bytes = 0

    def read_cached(self, file: int, buffer: memoryview) -> int:
        left = max(self.cached_bytes - os.lseek(file, 0, os.SEEK_CUR), 0)
        count = super().read_cached(file, buffer[:left])
        self.read_in_place_bytes += count
        return count


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system cannot read without waiting")
@pytest.mark.parametrize("cached_bytes", [0, 1, 100_000, 100_001, 250_000, 333_332, 333_333, MIB])
async def test_bytes_are_the_same_however_much_of_the_file_is_cached(tmp_path: Path, cached_bytes: int) -> None:
    data = random.Random(1).randbytes(333_333)
    files = PartlyCachedFiles(cached_bytes)
    async with opened(tmp_path, files) as archive:
        info = describe("m", 1, data, True)
        await keep(archive, info, data)
        os.utime(tmp_path / "archive/m/m-v000001.data", ns=(1, 1))
        file, fingerprint = archive.directory.open_data(info)
        archive.directory.close_file(file)
        while not archive.is_checked(info, fingerprint):
            assert await read(archive, info) == data  # until a change would show
        assert files.read_in_place_bytes == 0
        async with await archive.open_version(info) as reader:
            chunks = await read_chunks(reader, 100_000)
        assert b"".join(chunks) == data
        assert [len(chunk) for chunk in chunks] == [100_000] * 3 + [33_333]
        assert files.read_in_place_bytes == min(cached_bytes, len(data))


class SyncingFiles(Files):
    """Counts syncs of files, of which one may fail."""

    def __init__(self) -> None:
        self.syncs = 0
        self.failing = 0

    def sync_file(self, file: int) -> None:
        self.syncs += 1
        if self.syncs == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_file(file)


def _has_synced(files: SyncingFiles, count: int) -> bool:
    return files.syncs == count


async def test_large_upload_is_synced_while_it_is_received(tmp_path: Path) -> None:
    files = SyncingFiles()
    async with opened(tmp_path, files) as archive:
        before = files.syncs
        piece = memoryview(bytes(2 * MIB))
        async with await archive.open_upload("m", 20 * len(piece)) as upload:
            for number in range(20):
                await upload.write(piece)
                if number in (8, 17):  # a piece after each 16 MiB; while a sync runs, no other one begins
                    await until(partial(_has_synced, files, before + number // 8))
            await upload.finish()
            assert files.syncs - before == 3


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_failed_early_sync_is_not_hidden_by_a_later_one(tmp_path: Path, failing: int) -> None:
    files = SyncingFiles()
    async with opened(tmp_path, files) as archive:
        before = files.syncs
        files.failing = before + failing
        data = bytes(40 * MIB)
        async with await archive.open_upload("m", len(data)) as upload:
            with pytest.raises(UnavailableError):
                await write_pieces(upload, data, [2 * MIB] * 19)
        assert archive.failure
        assert files.syncs - before <= max(failing, 2)  # the next one may be under way, but none follows
        assert os.listdir(tmp_path / "archive/m") == ["m.yaml"]
