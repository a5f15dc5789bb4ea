"""The archive in a directory passes the conformance suite; its additional behaviour is tested below."""

import asyncio
import errno
import fcntl
import os
import random
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cogment_model_registry.errors import DataLossError, InvalidError, NotFoundError, StartError, UnavailableError
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive, _FileUpload
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

    async def test_the_high_water_mark_survives_a_restart_and_is_removed_with_its_model(
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


class KeepingFiles(Files):
    """Files of a file system that cannot rename directories; `renames_new` says whether it can rename new ones."""

    def __init__(self, *, renames_new: bool) -> None:
        self.renames_new = renames_new

    def rename(self, directory: int, old: str, new: str) -> None:
        is_directory = stat.S_ISDIR(os.stat(old, dir_fd=directory, follow_symlinks=False).st_mode)
        if is_directory and not (self.renames_new and layout.is_temporary(old)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(directory, old, new)


class TestDirectoryArchiveWhoseModelsCannotBeRenamed(ArchiveSuite):
    def make(self, place: Path) -> DirectoryArchive:
        return archive_at(place, KeepingFiles(renames_new=True))

    async def test_a_deletion_that_a_crash_interrupted_is_finished_by_the_next_start(
        self, store: DirectoryArchive, tmp_path: Path
    ) -> None:
        await keep(store, describe("m", 1, b"data", True), b"data")
        await store.begin_removal("m")
        assert sorted(os.listdir(tmp_path / "archive/m")) == [".deleted", "m-v000001.data", "m-v000001.yaml", "m.yaml"]
        async with self.reopened(store, tmp_path) as again:
            assert await again.scan() == []
            assert os.listdir(tmp_path / "archive") == [".lock"]

    async def test_active_uploads_fail_before_the_files_are_removed(self, store: DirectoryArchive) -> None:
        async with await store.open_upload("m", 4) as upload:
            await write_pieces(upload, b"data")
            removal = await store.begin_removal("m")
            with pytest.raises(NotFoundError):
                await upload.commit(describe("m", 1, b"data", True))
        await removal.finish()

    async def test_a_deletion_ends_once(self, store: DirectoryArchive) -> None:
        await store.begin_removal("m")
        with pytest.raises(NotFoundError):
            await store.begin_removal("m")

    async def test_foreign_files_and_directories_are_removed_with_their_model(
        self, store: DirectoryArchive, tmp_path: Path
    ) -> None:
        (tmp_path / "archive/m/notes/more").mkdir(parents=True)
        (tmp_path / "archive/m/notes/more/text").touch()
        await remove(store, "m")
        assert os.listdir(tmp_path / "archive") == [".lock"]


class TestDirectoryArchiveWhoseDirectoriesCannotBeRenamed(ArchiveSuite):
    def make(self, place: Path) -> DirectoryArchive:
        return archive_at(place, KeepingFiles(renames_new=False))


async def test_deletion_that_was_postponed_never_touches_a_new_model_of_that_name(tmp_path: Path) -> None:
    async with opened(tmp_path, KeepingFiles(renames_new=True)) as archive:
        await keep(archive, describe("m", 1, b"data", True), b"data")
        postponed = await archive.begin_removal("m")
        await archive.write_model(ModelInfo("m", {"a": "new one"}))
        info = describe("m", 1, b"other", True)
        await keep(archive, info, b"other")
        await postponed.finish()
        assert await read(archive, info) == b"other"
        assert (await archive.scan())[0].info.user_data == {"a": "new one"}


async def test_directory_that_cannot_be_removed_is_not_a_model_and_can_become_one_again(tmp_path: Path) -> None:
    class MountedFiles(KeepingFiles):
        def remove_directory(self, parent: int, name: str) -> None:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    async with opened(tmp_path, MountedFiles(renames_new=True)) as archive:
        await keep(archive, describe("m", 1, b"data", True), b"data")
        await remove(archive, "m")
        assert os.listdir(tmp_path / "archive/m") == []
        assert await archive.scan() == []
        await archive.write_model(ModelInfo("m", {"a": "new one"}))
        [contents] = await archive.scan()
        assert (contents.info.user_data, list(contents.version_numbers)) == ({"a": "new one"}, [])


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
    """Signals that an archive is being opened, just before its lock is taken."""

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
    """Return a context manager for an archive that has a model `m`."""
    archive = archive_at(place, files)
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    try:
        yield archive
    finally:
        await archive.close()


class PartlyCachedFiles(Files):
    """Files of which only the first bytes are in the page cache."""

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
async def test_bytes_do_not_depend_on_how_much_of_the_file_is_cached(tmp_path: Path, cached_bytes: int) -> None:
    data = random.Random(1).randbytes(333_333)
    files = PartlyCachedFiles(cached_bytes)
    async with opened(tmp_path, files) as archive:
        info = describe("m", 1, data, True)
        await keep(archive, info, data)
        os.utime(tmp_path / "archive/m/m-v000001.data", ns=(1, 1))
        file, fingerprint = archive.directory.open_data(info)
        archive.directory.close_file(file)
        while not archive.checked.has(info, fingerprint):
            assert await read(archive, info) == data  # until a change would be detected
        assert files.read_in_place_bytes == 0
        async with await archive.open_version(info) as reader:
            chunks = await read_chunks(reader, 100_000)
        assert b"".join(chunks) == data
        assert [len(chunk) for chunk in chunks] == [100_000] * 3 + [33_333]
        assert files.read_in_place_bytes == min(cached_bytes, len(data))


class UnlinkableFiles(Files):
    """Files of a file system without hard links."""

    def link(self, directory: int, old: str, new: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class TestDirectoryArchiveWithoutLinks(ArchiveSuite):
    def make(self, place: Path) -> DirectoryArchive:
        return archive_at(place, UnlinkableFiles())


async def copy(archive: DirectoryArchive, source: VersionInfo, number: int) -> VersionInfo:
    info = replace(source, number=number)
    async with await archive.open_copy(source) as upload:
        assert await upload.finish() == source.data_hash
        await upload.commit(info)
    return info


async def test_a_copy_is_a_second_name_of_the_same_file(tmp_path: Path) -> None:
    async with opened(tmp_path, Files()) as archive:
        info = describe("m", 1, b"data", True)
        await keep(archive, info, b"data")
        await copy(archive, info, 2)
        numbers = {os.stat(tmp_path / f"archive/m/m-v00000{number}.data").st_ino for number in (1, 2)}
        assert len(numbers) == 1


async def test_damaged_bytes_are_not_shared(tmp_path: Path) -> None:
    async with opened(tmp_path, Files()) as archive:
        info = describe("m", 1, b"data", True)
        await keep(archive, info, b"data")
        assert await read(archive, info) == b"data"
        (tmp_path / "archive/m/m-v000001.data").write_bytes(b"atad")
        async with await archive.open_copy(info) as upload:
            assert await upload.finish() == describe("m", 1, b"atad", True).data_hash
        (tmp_path / "archive/m/m-v000001.data").write_bytes(b"too long")
        with pytest.raises(DataLossError):
            await archive.open_copy(info)


@pytest.mark.parametrize("is_changed", [False, True])
async def test_links_that_the_archive_creates_do_not_cause_another_check(tmp_path: Path, is_changed: bool) -> None:
    """Other changes of the file do, even between two changes of its links."""
    data = random.Random(1).randbytes(333_333)
    path = tmp_path / "archive/m/m-v000001.data"
    async with opened(tmp_path, Files()) as archive:
        info = describe("m", 1, data, True)
        await keep(archive, info, data)
        os.utime(path, ns=(1, 1))

        def is_checked() -> bool:
            file, fingerprint = archive.directory.open_data(info)
            archive.directory.close_file(file)
            return archive.checked.has(info, fingerprint)

        while not is_checked():
            assert await read(archive, info) == data  # until a change would be detected
        second = await copy(archive, info, 2)
        if is_changed:
            path.write_bytes(data[::-1])
            os.utime(path, ns=(1, 1))
        third = await copy(archive, info, 3) if not is_changed else None
        await archive.remove_version(second)
        assert is_checked() is not is_changed
        if third is not None:
            assert await read(archive, third) == data
        else:
            with pytest.raises(DataLossError):
                await read(archive, info)


class SyncingFiles(Files):
    """Counts syncs of files, one of which may fail."""

    def __init__(self) -> None:
        self.syncs = 0
        self.finished_syncs = 0
        self.failing = 0

    def sync_file(self, file: int) -> None:
        self.syncs += 1
        if self.syncs == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_file(file)
        self.finished_syncs += 1


def _has_synced(files: SyncingFiles, count: int) -> bool:
    return files.finished_syncs == count


async def test_large_upload_is_synced_while_it_is_received(tmp_path: Path) -> None:
    files = SyncingFiles()
    async with opened(tmp_path, files) as archive:
        before = files.finished_syncs
        piece = memoryview(bytes(2 * MIB))
        async with await archive.open_upload("m", 20 * len(piece)) as upload:
            assert isinstance(upload, _FileUpload)
            for number in range(20):
                await upload.write(piece)
                if number in (8, 17):  # one sync for each 16 MiB; while a sync runs, no other one begins
                    await until(partial(_has_synced, files, before + number // 8))
                    await asyncio.wait(upload._syncing)
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
        assert files.syncs - before <= max(failing, 2)  # the next one may be in progress, but none follows
        assert os.listdir(tmp_path / "archive/m") == ["m.yaml"]


class SlowFiles(Files):
    """Blocks the listing of a model's directory until the test allows it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.allowed = threading.Event()
        self.listed = 0

    def open_directory(self, parent: int, name: str) -> int:
        self.begun.set()
        self.allowed.wait()
        self.listed += 1
        return super().open_directory(parent, name)


async def test_scan_of_many_models_ends_soon_after_it_is_cancelled(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"archive/m{number}").mkdir(parents=True)
    files = SlowFiles()
    archive = archive_at(tmp_path, files)
    await archive.open()
    scanning = asyncio.ensure_future(archive.scan())
    await asyncio.to_thread(files.begun.wait)
    scanning.cancel()
    files.allowed.set()
    with pytest.raises(asyncio.CancelledError):
        await scanning
    await archive.close()
    assert files.listed < 200


class UnsyncableFiles(Files):
    """Cannot sync one directory, as on a read-only file system."""

    def __init__(self, path: Path, error: int) -> None:
        self.path = path
        self.error = error

    def sync_directory(self, directory: int) -> None:
        if os.readlink(f"/proc/self/fd/{directory}") == str(self.path):
            raise OSError(self.error, os.strerror(self.error))
        super().sync_directory(directory)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EROFS, errno.ENOTSUP])
async def test_existing_archive_needs_no_sync_of_the_directory_above_it(tmp_path: Path, error: int) -> None:
    (tmp_path / "archive").mkdir()
    archive = archive_at(tmp_path, UnsyncableFiles(tmp_path, error))
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    await archive.close()


@pytest.mark.parametrize(
    ("exists", "error"), [(False, errno.EINVAL), (True, errno.EIO)], ids=["missing", "disk that fails"]
)
async def test_sync_above_the_archive_that_counts_and_fails_is_named(tmp_path: Path, exists: bool, error: int) -> None:
    if exists:
        (tmp_path / "archive").mkdir()
    archive = archive_at(tmp_path, UnsyncableFiles(tmp_path, error))
    with pytest.raises(StartError) as raised:
        await archive.open()
    await archive.close()
    path = tmp_path / "archive"
    assert raised.value.message == f"archive directory {path} cannot be used: {os.strerror(error)}: {tmp_path}"


class FoldingFiles(Files):
    """Files of a case-insensitive file system that keeps the case of the first name."""

    def _existing(self, directory: int, name: str) -> str:
        return next((each for each in os.listdir(directory) if each.casefold() == name.casefold()), name)

    def open_directory(self, parent: int, name: str) -> int:
        return super().open_directory(parent, self._existing(parent, name))

    def open_to_read(self, directory: int, name: str) -> int:
        return super().open_to_read(directory, self._existing(directory, name))

    def rename(self, directory: int, old: str, new: str) -> None:
        super().rename(directory, old, self._existing(directory, new))

    def status_of(self, directory: int, name: str) -> os.stat_result:
        return super().status_of(directory, self._existing(directory, name))


async def test_model_whose_id_differs_only_in_case_is_refused_where_the_file_system_ignores_it(tmp_path: Path) -> None:
    async with opened(tmp_path, FoldingFiles()) as archive:
        await archive.write_model(ModelInfo("Policy", {"a": "b"}))
        with pytest.raises(InvalidError, match='"policy" cannot be created: model "Policy" exists'):
            await archive.write_model(ModelInfo("policy", {"c": "d"}))
        assert [contents.info for contents in await archive.scan()] == [
            ModelInfo("Policy", {"a": "b"}),
            ModelInfo("m", {}),
        ]
        await archive.write_model(ModelInfo("Policy", {"e": "f"}))
        assert (await archive.scan())[0].info.user_data == {"e": "f"}
