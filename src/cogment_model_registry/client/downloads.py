"""The target of a download: memory or a file, hashed on the way, and not returned before its hash is right."""

import functools
import io
from collections.abc import Sequence
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
            await self._settle()
            self._working = submit(functools.partial(self._take, self._waiting))
            self._waiting, self._waiting_bytes = [], 0

    async def finish(self) -> None:
        """Check that all bytes were received, and match their hash.

        Raises:
            DataLossError: They were not, or do not.
        """
        await self._settle()
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if sum(map(len, waiting)) > INLINE_HASH_MAX_BYTES:
            self._working = submit(functools.partial(self._take, waiting))
            await self._settle()
        else:
            self._take(waiting)
        if self._received_bytes < self._info.data_size_bytes:
            raise self._loss(f"{self._received_bytes} of its {self._info.data_size_bytes} bytes were received")
        data_hash = self._hash.digest_text()
        if data_hash != self._info.data_hash:
            raise self._loss(f"its data_hash is {self._info.data_hash}, but the bytes received have {data_hash}")

    def abandon(self) -> None:
        """Block until no thread uses the file: the caller may be cancelled, and the backlog is short."""
        if self._working is not None and not self._working.cancel():
            futures.wait([self._working])

    def _take(self, parts: Sequence[memoryview]) -> None:
        self._hash.update(parts)
        if not self._is_memory:
            self._file.writelines(parts)

    async def _settle(self) -> None:
        if self._working is not None:
            await self._backend.wait(self._working)
            self._working = None

    def _loss(self, reason: str) -> DataLossError:
        return DataLossError.version(self._info.model_id, self._info.number, reason)
