"""The target of a download: memory or a file, hashed on the way, and not returned before its hash is right."""

import functools
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import IO

from cogment_model_registry.client.backends import Backend
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import DataLossError, counted
from cogment_model_registry.records.payload import INLINE_HASH_MAX_BYTES, PayloadHash
from cogment_model_registry.records.versions import VersionInfo

_BACKLOG_BYTES = 8 * 1024 * 1024
"""How many bytes may wait for the thread that hashes and writes."""

_PART_BYTES = 16 * 1024 * 1024
"""The size of a part: at 100 MiB in a second, asking for the next one takes a small share of the time."""

_READ_BYTES = 1024 * 1024

_HEAP_BLOCK_BYTES = 32 * 1024 * 1024 - 64 * 1024
"""The largest block, nearly, whose release makes glibc keep blocks of that size; see `keep_freed_blocks`."""


@functools.cache
def keep_freed_blocks() -> None:
    """Let the C library keep the memory of received messages for the next ones.

    glibc gets large blocks from the system, page by page, and returns them at once, until it sees a block of their size
    freed: then it considers such blocks short-lived (mallopt(3), "dynamic mmap threshold"). So this frees one, of which
    no page is ever touched.
    """
    bytes(_HEAP_BLOCK_BYTES)


class Download:
    """Receives the bytes of a version.

    Hashing releases the interpreter's lock, so it runs on a thread while further bytes are received; writing to memory
    does not, so it is done at once. No memory is allocated for bytes that a server only announces.

    Args:
        info: The version.
        file: Where the bytes go.
        backend: How to wait for the thread.
    """

    def __init__(self, info: VersionInfo, file: IO[bytes], backend: Backend) -> None:
        self._info = info
        self._file = file
        self._is_memory = isinstance(file, io.BytesIO)
        self._backend = backend
        self._hash = PayloadHash()
        self._received_bytes = 0
        self._waiting: list[memoryview] = []
        self._waiting_bytes = 0
        self._working: Future[None] | None = None
        keep_freed_blocks()

    @property
    def received_bytes(self) -> int:
        """How many bytes were taken."""
        return self._received_bytes

    async def write(self, data: memoryview) -> None:
        """Take the next bytes.

        Raises:
            DataLossError: They are more than the version has.
        """
        self._received_bytes += len(data)
        if self._received_bytes > self._info.data_size_bytes:
            raise self._loss(f"its {counted(self._info.data_size_bytes, 'byte')} were followed by more")
        if self._is_memory:
            self._file.write(data)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        is_idle = self._working is None or self._working.done()
        if self._waiting_bytes > (INLINE_HASH_MAX_BYTES if is_idle else _BACKLOG_BYTES):
            await self.settle()
            self._working = submit(functools.partial(self._take, self._waiting))
            self._waiting, self._waiting_bytes = [], 0

    async def finish(self) -> None:
        """Check that all bytes were received, and match their hash.

        Raises:
            DataLossError: They were not, or do not.
        """
        await self._take_all()
        _check(self._info, self._received_bytes, self._hash)

    async def rest(self) -> "Rest":
        """Return what receives the bytes that follow, in parts."""
        await self._take_all()
        count = self._received_bytes
        return Rest(self._info, self._file, self._backend, [range(count)], payload_hash=self._hash, hashed_bytes=count)

    def abandon(self) -> None:
        """Block until no thread uses the file: the caller may be cancelled, and the backlog is short."""
        if self._working is not None and not self._working.cancel():
            futures.wait([self._working])

    def _take(self, parts: Sequence[memoryview]) -> None:
        self._hash.update(parts)
        if not self._is_memory:
            self._file.writelines(parts)

    async def _take_all(self) -> None:
        await self.settle()
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if sum(map(len, waiting)) > INLINE_HASH_MAX_BYTES:
            self._working = submit(functools.partial(self._take, waiting))
            await self.settle()
        else:
            self._take(waiting)

    async def settle(self) -> None:
        """Wait until no thread uses the file."""
        if self._working is not None:
            await self._backend.wait(self._working)
            self._working = None

    def _loss(self, reason: str) -> DataLossError:
        return DataLossError.version(self._info.model_id, self._info.number, reason)


class Rest:
    """Receives what a file lacks of a version in parts, in any order and from several threads.

    What is there is hashed in order on a thread, as far as nothing is missing, so it is read once more. A part begins
    before the next ones, so the file never grows far beyond what was received.

    Args:
        info: The version.
        file: Where the bytes go.
        backend: How to wait for the thread.
        present: The positions of the bytes that are there, in order and disjoint.
        payload_hash: The hash of the first bytes; None if nothing was hashed yet.
        hashed_bytes: How many bytes it has hashed.
        written: Called with the positions of bytes after they were written, on the thread that wrote them.
    """

    def __init__(
        self,
        info: VersionInfo,
        file: IO[bytes],
        backend: Backend,
        present: Sequence[range],
        *,
        payload_hash: PayloadHash | None = None,
        hashed_bytes: int = 0,
        written: Callable[[range], None] = lambda _positions: None,
    ) -> None:
        self._info = info
        self._file = file
        self._backend = backend
        self._hash = payload_hash or PayloadHash()
        self._hashed_bytes = hashed_bytes
        self._written = written
        self._file_lock = threading.Lock()
        self._lock = threading.Lock()
        self._parts = _missing(info.data_size_bytes, present)
        self._ready = {each.start: each for each in present if each.start >= hashed_bytes}
        self._is_abandoned = False
        self._is_hashing = False
        self._hashing: Future[None] | None = None

    def next_part(self) -> range | None:
        """Return the positions of the next part that nobody receives yet; None if there is none left."""
        with self._lock:
            return next(self._parts, None)

    def write(self, position: int, data: memoryview) -> None:
        """Take bytes of a part; blocks."""
        with self._file_lock:
            self._file.seek(position)
            self._file.write(data)
        self._written(range(position, position + len(data)))

    def finish_part(self, part: range) -> None:
        """Record that a part was received, and let a thread hash what can be hashed, unless one is doing so."""
        with self._lock:
            self._ready[part.start] = part
            self._hash_further()

    async def finish(self) -> None:
        """Check that all bytes were received, and match their hash.

        Raises:
            DataLossError: They were not, or do not.
        """
        with self._lock:
            self._hash_further()
        if self._hashing is not None:
            await self._backend.wait(self._hashing)
        _check(self._info, self._hashed_bytes, self._hash)

    def abandon(self) -> None:
        """Block until no thread reads the file: the caller may be cancelled, and a thread stops after a block."""
        self._is_abandoned = True
        if self._hashing is not None and not self._hashing.cancel():
            futures.wait([self._hashing])

    def _hash_further(self) -> None:
        """Start a thread that hashes, unless one is at it or there is nothing to hash; call this with the lock held."""
        if not self._is_hashing and self._hashed_bytes in self._ready:
            self._is_hashing = True
            self._hashing = submit(self._hash_ready)

    def _hash_ready(self) -> None:
        while (ready := self._next_ready()) is not None:
            for position in range(ready.start, ready.stop, _READ_BYTES):
                if self._is_abandoned:
                    return
                with self._file_lock:
                    self._file.seek(position)
                    block = self._file.read(min(_READ_BYTES, ready.stop - position))
                self._hash.update([block])
            self._hashed_bytes = ready.stop

    def _next_ready(self) -> range | None:
        with self._lock:
            part = self._ready.pop(self._hashed_bytes, None)
            self._is_hashing = part is not None
            return part


def _missing(size_bytes: int, present: Sequence[range]) -> Iterator[range]:
    """Yield the parts that are not there, in order."""
    starts = [0, *(each.stop for each in present)]
    ends = [*(each.start for each in present), size_bytes]
    for start, end in zip(starts, ends, strict=True):
        for position in range(start, end, _PART_BYTES):
            yield range(position, min(position + _PART_BYTES, end))


def _check(info: VersionInfo, received_bytes: int, payload_hash: PayloadHash) -> None:
    reason = ""
    if received_bytes < info.data_size_bytes:
        reason = f"{received_bytes} of its {info.data_size_bytes} bytes were received"
    elif (data_hash := payload_hash.digest_text()) != info.data_hash:
        reason = f"its data_hash is {info.data_hash}, but the bytes received have {data_hash}"
    if reason:
        raise DataLossError.version(info.model_id, info.number, reason)
