"""The archive in a directory: uploads and readers whose blocking half runs on the archive's own threads.

An upload hashes and writes one piece while the next one is received; a reader reads one block ahead of what is sent.
So a version is never in memory as a whole. `directory` states the order of writes.
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from time import perf_counter
from typing import ParamSpec, TypeVar

import structlog

from cogment_model_registry.errors import NO_ROOM, DataLossError, ModelRegistryError, TooLargeError, UnavailableError
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Reader, Removal, Upload
from cogment_model_registry.storage.filesystem.checks import CheckedData
from cogment_model_registry.storage.filesystem.directory import ArchiveDirectory, NewFile
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.reading import Fingerprint, fingerprint
from cogment_model_registry.storage.filesystem.removal import DoomedModel
from cogment_model_registry.storage.filesystem.sharing import SharedUpload, hash_of_file
from cogment_model_registry.storage.folder import FolderArchive, FolderContents, KnownFolder
from cogment_model_registry.system.byte_budget import ByteBudget
from cogment_model_registry.system.tasks import run_to_end, run_to_have

_log = structlog.stdlib.get_logger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

_THREADS = 16
"""Enough that a few slow syncs do not delay all reads; an upload may use three."""

_BUFFER_BYTES = 256 * 1024
"""Smaller pieces of an upload are collected up to this size: handing one to a thread costs some 50 us."""

_BLOCK_BYTES = 1024 * 1024
"""The smallest read by one call to a thread, unless less is left."""

_SYNC_BYTES = 16 * 1024 * 1024
"""How much of an upload is synced at once while more is received, so that the disk is always busy, and little is left
to sync at the end. Each sync has a fixed cost, so much smaller steps would take longer."""

_WRITE_BYTES = 32 * 1024 * 1024
"""The memory for pieces of uploads that wait for a thread to write them."""


_SCAN_MODELS = 64
"""How many models a thread scans before a scan can be cancelled."""


class DirectoryArchive(FolderArchive):
    """Archived versions in a directory of the original's layout; see `layout`.

    Args:
        path: The directory; created if it does not exist.
        model_id_max_bytes: Directories with longer names are not models.
        files: The file operations.
        observe: Called after each finished operation on a thread, with its name and the seconds that it took.
        observe_sync: Called after each sync, with its kind (`file`, `directory`) and the seconds that it took.
        read_only: Whether to write nothing, not even a lock, as on a read-only file system.
    """

    def __init__(
        self,
        path: str,
        model_id_max_bytes: int,
        files: Files | None = None,
        observe: Callable[[str, float], None] = lambda _operation, _seconds: None,
        observe_sync: Callable[[str, float], None] = lambda _kind, _seconds: None,
        *,
        read_only: bool = False,
    ) -> None:
        self.directory = ArchiveDirectory(path, model_id_max_bytes, files or Files(), observe_sync, read_only=read_only)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive")
        self._observe = observe
        self._is_open = False
        self._promised_bytes = 0
        self.writing = ByteBudget(_WRITE_BYTES)
        self.checked = CheckedData(self.directory.touches)

    @property
    def is_exclusive(self) -> bool:
        return not self.is_read_only

    @property
    def is_read_only(self) -> bool:
        return self.directory.is_read_only

    @property
    def failure(self) -> str:
        return self.directory.failure

    async def check(self) -> None:
        await run_to_end(self.run(self.directory.check))

    async def open(self) -> None:
        await run_to_end(self._open())

    async def _open(self) -> None:
        await self.run(self.directory.open)
        self._is_open = True

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await run_to_end(self.run(self.directory.close))
        self._executor.shutdown()

    async def scan(self, known: Mapping[str, KnownFolder] | None = None) -> list[FolderContents]:
        names = await run_to_end(self.run(self.directory.list_names))
        models: list[FolderContents] = []
        for start in range(0, len(names), _SCAN_MODELS):
            batch = names[start : start + _SCAN_MODELS]
            models += await run_to_end(self.run(self.directory.scan, batch, known or {}))
        self.directory.end_sweep()
        return models

    async def scan_model(self, model_id: str, known: KnownFolder | None = None) -> FolderContents | None:
        return await self.run(self.directory.scan_model, model_id, known or KnownFolder())

    async def write_model(self, info: ModelInfo) -> None:
        await run_to_end(self.run(self.directory.write_model, info))

    async def begin_removal(self, model_id: str) -> Removal:
        return await run_to_end(self._begin_removal(model_id))

    async def _begin_removal(self, model_id: str) -> "_DirectoryRemoval":
        doomed = await self.run(self.directory.begin_removal, model_id)
        self.checked.forget(model_id)
        return _DirectoryRemoval(self, doomed)

    async def write_high_water_mark(self, model_id: str, number: int) -> None:
        await run_to_end(self.run(self.directory.write_high_water_mark, model_id, number))

    async def read_version_infos(
        self, model_id: str, numbers: Sequence[int]
    ) -> list[VersionInfo | DataLossError | None]:
        return await self.run(self.directory.read_version_infos, model_id, numbers)

    async def open_upload(self, model_id: str, size_bytes: int) -> Upload:
        promised_bytes = self._promised_bytes
        self.promise(size_bytes)
        try:
            creating = self.run(self.directory.create_upload, model_id, size_bytes, promised_bytes)
            new = await run_to_have(creating, self.directory.discard_upload)
        except BaseException:
            self.promise(-size_bytes)
            raise
        return _FileUpload(self, new, size_bytes)

    async def open_version(self, info: VersionInfo) -> Reader:
        opening = self.run(self.directory.open_data, info)
        file, fingerprint = await run_to_have(opening, lambda opened: self.directory.close_file(opened[0]))
        return _FileReader(self, info, file, fingerprint)

    async def open_copy(self, info: VersionInfo) -> Upload:
        new = await run_to_have(self.run(self.directory.share_data, info), self._discard_shared)
        if new is not None:
            return SharedUpload(self.directory, self.checked, self.run, new, info)
        upload = await self.open_upload(info.model_id, info.data_size_bytes)
        try:
            async with (
                await self.open_version(info) as reader,
                aclosing(reader.chunks(_BLOCK_BYTES, 2 * _BLOCK_BYTES)) as chunks,
            ):
                async for parts in chunks:
                    for part in parts:
                        await upload.write(memoryview(bytes(part)))  # the reader fills its buffer again
        except BaseException:
            await upload.aclose()
            raise
        return upload

    def _discard_shared(self, new: NewFile | None) -> None:
        if new is not None:
            self.directory.discard_upload(new)

    async def remove_version(self, info: VersionInfo) -> None:
        await run_to_end(self.run(self.directory.remove_version, info.model_id, info.number))
        self.checked.forget(info.model_id, info.number)

    # Called by uploads and readers.

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a blocking function on a thread of the archive, with errors of the system translated."""
        return await self.start(function, *args, **kwargs)

    def start(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        """Begin to run a blocking function on a thread; see `run`."""

        def call() -> _T:
            started = perf_counter()
            try:
                return _translating_errors(functools.partial(function, *args, **kwargs))
            finally:
                self._observe(getattr(function, "__name__", "other").strip("_"), perf_counter() - started)

        return asyncio.get_running_loop().run_in_executor(self._executor, call)

    def promise(self, size_bytes: int) -> None:
        """Reserve room for bytes that an upload will write; give room back for a negative number."""
        self._promised_bytes += size_bytes


def _translating_errors(function: Callable[[], _T]) -> _T:
    """Call `function`, and translate errors of the system."""
    try:
        return function()
    except ModelRegistryError:
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise TooLargeError(f"the archive has no space left: {error.strerror}") from error
        _log.error("operation on the archive failed", reason=error.strerror)
        raise UnavailableError(f"the archive failed: {error.strerror}") from error


class _DirectoryRemoval(Removal):
    """A directory under a temporary name, whose files go one by one."""

    def __init__(self, archive: DirectoryArchive, doomed: DoomedModel) -> None:
        self._archive = archive
        self._doomed = doomed

    async def finish(self) -> None:
        if self._doomed.failure:
            raise UnavailableError(self._doomed.failure)
        await run_to_end(self._archive.run(self._archive.directory.finish_removal, self._doomed))


class _FileUpload(Upload):
    """Writes a temporary file: one thread hashes and one writes a piece while the next one is received."""

    def __init__(self, archive: DirectoryArchive, new: NewFile, size_bytes: int) -> None:
        self._archive = archive
        self._new = new
        self._missing_bytes = size_bytes
        self._hash = PayloadHash()
        self._buffer = bytearray()
        self._working: list[asyncio.Future[None]] = []
        self._syncing: list[asyncio.Future[None]] = []
        self._unsynced_bytes = 0
        self._open = True

    async def write(self, *parts: memoryview) -> None:
        size_bytes = sum(map(len, parts))
        self._missing_bytes -= size_bytes
        self._archive.promise(-size_bytes)
        if size_bytes >= _BUFFER_BYTES:
            await self._pass_on(self._buffer, *parts)
        else:
            for part in parts:
                self._buffer += part
            if len(self._buffer) >= _BUFFER_BYTES:
                await self._pass_on(self._buffer)

    async def _pass_on(self, *parts: bytearray | memoryview) -> None:
        """Let threads hash and write the parts, once they have finished the previous ones."""
        await self._settle(self._working)
        self._sync_ahead()
        self._buffer = bytearray()
        size_bytes = sum(len(part) for part in parts)
        taken_bytes = await self._archive.writing.take(size_bytes)
        self._unsynced_bytes += size_bytes
        files = self._archive.directory.files
        self._working = [
            self._archive.start(self._hash.update, parts),
            self._archive.start(files.write, self._new.file, parts),
        ]
        done = asyncio.gather(*self._working, return_exceptions=True)
        done.add_done_callback(lambda _: self._archive.writing.give_back(taken_bytes))

    def _sync_ahead(self) -> None:
        """Let a thread sync what was written once it is enough, unless a sync is still running."""
        if self._unsynced_bytes >= _SYNC_BYTES and all(syncing.done() for syncing in self._syncing):
            self._syncing.append(self._archive.start(self._archive.directory.writer.sync_file, self._new.file))
            self._unsynced_bytes = 0

    async def _settle(self, working: list[asyncio.Future[None]]) -> None:
        """Wait until no thread is working; raise the first error."""
        if working:
            # Not awaited themselves, since a cancellation would then abandon a thread that is still working.
            await asyncio.wait(working)
            for each in working:
                each.result()

    async def finish(self) -> str:
        await self._pass_on(self._buffer)
        await self._settle(self._working)
        await self._settle(self._syncing)  # a later sync must not hide one that failed
        await run_to_end(self._archive.run(self._archive.directory.writer.sync_file, self._new.file))
        return self._hash.digest_text()

    async def prepare(self, info: VersionInfo) -> None:
        await run_to_end(self._rename(info))

    async def _rename(self, info: VersionInfo) -> None:
        self._new = await self._archive.run(self._archive.directory.prepare, self._new, info)

    async def commit(self, info: VersionInfo) -> None:
        await run_to_end(self._commit(info))

    async def _commit(self, info: VersionInfo) -> None:
        self._new = await self._archive.run(self._archive.directory.commit, self._new, info)

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await run_to_end(self._aclose())

    async def _aclose(self) -> None:
        if under_way := [*self._working, *self._syncing]:
            await asyncio.wait(under_way)
            for each in under_way:
                each.exception()  # retrieved, so that asyncio does not report it: the upload is over
        self._archive.promise(-self._missing_bytes)
        await self._archive.run(self._archive.directory.discard_upload, self._new)


class _FileReader(Reader):
    """Reads one block ahead, and hashes what it reads unless that was done since the file last changed.

    Of a part it computes no hash: that would take the rest of the file.
    """

    def __init__(self, archive: DirectoryArchive, info: VersionInfo, file: int, fingerprint: Fingerprint) -> None:
        self._archive = archive
        self._info = info
        self._file = file
        self._fingerprint = fingerprint
        self._hash = None if archive.checked.has(info, fingerprint) else PayloadHash()
        self._missing_bytes = info.data_size_bytes
        self._is_whole = True
        self._reading: asyncio.Future[bytes] | None = None
        self._open = True

    async def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        self._choose(offset, limit)
        if not self._hash and self._missing_bytes:
            async with aclosing(self._cached_chunks(max_bytes)) as chunks:
                async for chunk in chunks:
                    yield chunk
            if not self._missing_bytes:
                return
        block_bytes = max_bytes * max(min(_BLOCK_BYTES, buffer_bytes // 2) // max_bytes, 1)
        self._read_ahead(block_bytes)
        while self._reading is not None:
            block = memoryview(await self._settle())
            if self._missing_bytes:
                self._read_ahead(block_bytes)
            for start in range(0, max(len(block), 1), max_bytes):
                yield [block[start : start + max_bytes]]
            del block  # release it before the block after the next is read

    def _choose(self, offset: int, limit: int | None) -> None:
        """Choose the bytes to read."""
        follow_bytes = self._info.data_size_bytes - offset
        self._missing_bytes = follow_bytes if limit is None else min(limit, follow_bytes)
        self._is_whole = self._missing_bytes == self._info.data_size_bytes
        if not self._is_whole:
            self._hash = None
            self._archive.directory.files.seek(self._file, offset)

    async def _cached_chunks(self, max_bytes: int) -> AsyncGenerator[Sequence[memoryview], None]:
        """Yield chunks as long as the system has them cached.

        They are read on the event loop, since handing a read to a thread takes longer than copying cached bytes. If
        the system has only part of a chunk cached, a thread reads the rest.
        """
        buffer = memoryview(bytearray(min(max_bytes, self._missing_bytes)))
        is_cached = True
        while is_cached and self._missing_bytes:
            chunk = buffer[: self._missing_bytes]
            count = self._archive.directory.files.read_cached(self._file, chunk)
            self._missing_bytes -= count
            if is_cached := count == len(chunk):
                if not self._missing_bytes:
                    await self._archive.run(self._check)
                yield [chunk]
            elif count:
                self._read_ahead(len(chunk) - count)
                yield [chunk[:count], memoryview(await self._settle())]

    def _read_ahead(self, block_bytes: int) -> None:
        size_bytes = min(block_bytes, self._missing_bytes)
        self._missing_bytes -= size_bytes
        self._reading = self._archive.start(self._read, size_bytes, self._missing_bytes == 0)

    async def _settle(self) -> bytes:
        """Wait for the block that is being read, if one is, and return it."""
        if self._reading is None:
            return b""
        # Not awaited itself, since a cancellation would then abandon a thread that is still reading.
        await asyncio.wait([self._reading])
        reading, self._reading = self._reading, None
        return reading.result()

    def _read(self, size_bytes: int, is_last: bool) -> bytes:
        """Return the next block; check all of them before returning the last one."""
        block = self._archive.directory.files.read(self._file, size_bytes)
        if len(block) < size_bytes:
            raise self._damage("its data was truncated while it was read")
        if self._hash:
            self._hash.update([block])
        if is_last:
            self._check()
        return block

    def _check(self) -> None:
        """Compare what was read with what was stored."""
        now = fingerprint(self._archive.directory.files, self._file)
        if (now.size_bytes, now.modified_ns) != (self._fingerprint.size_bytes, self._fingerprint.modified_ns):
            raise self._damage("its data was changed while it was read")
        # `changed_ns` changes with the bytes, even if someone sets the other times back; but also when the version
        # is deleted, which leaves its readers alone, and when its file is linked to, as backups do.
        is_touched = not self._hash and now.links and not self._archive.checked.is_unchanged(self._fingerprint, now)
        data_hash = self._hash.digest_text() if self._hash else ""
        if is_touched and self._is_whole:
            data_hash = hash_of_file(self._archive.directory.files, self._file)
        if data_hash and data_hash != self._info.data_hash:
            raise self._damage("its bytes do not match their hash")
        if is_touched:  # they may match now, but may not have when they were sent
            raise UnavailableError("the data file was modified while it was read; retrieve the version again")
        if data_hash and self._fingerprint.is_settled:
            self._archive.checked.add(self._info, self._fingerprint)

    def _damage(self, reason: str) -> DataLossError:
        return DataLossError.version(self._info.model_id, self._info.number, reason)

    async def hand_over(self) -> int | None:
        async with self._archive.checked.turn(self._info):  # sixteen readers at once wait for one hash
            if self._archive.checked.has(self._info, self._fingerprint):
                self._hash = None
            return await run_to_have(self._archive.run(self._checked_duplicate), os.close)

    def _checked_duplicate(self) -> int:
        """Return one more descriptor of the file, whose bytes are those that were stored; blocks."""
        files = self._archive.directory.files
        if self._hash:
            files.seek(self._file, 0)
            while block := files.read(self._file, _BLOCK_BYTES):
                self._hash.update([block])
        self._check()
        files.seek(self._file, 0)
        # It shares its position with the reader's own descriptor alone, which is closed after this.
        return files.duplicate(self._file)

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await run_to_end(self._aclose())

    async def _aclose(self) -> None:
        with contextlib.suppress(ModelRegistryError):
            await self._settle()
        await self._archive.run(self._archive.directory.close_file, self._file)
