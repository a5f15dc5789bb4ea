"""What is uploaded: bytes in memory, a file by its path, or an open file; each can be read more than once."""

import contextlib
import io
import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, TypeAlias, cast

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.payload import PayloadHash

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

Data: TypeAlias = "Buffer | str | os.PathLike[str] | IO[bytes]"
"""What can be uploaded: an object with a contiguous buffer (bytes, a NumPy array), a path, or an open binary file."""

_BLOCK_BYTES = 1024 * 1024


class Source(ABC):
    """Bytes to upload; to be closed.

    Attributes:
        size_bytes: How many.
    """

    size_bytes: int

    @abstractmethod
    def blocks(self, size_bytes: int) -> Iterator[memoryview | bytes]:
        """Yield all bytes, in blocks of at most a size. May be called again."""

    def hash_text(self) -> str:
        """Return the SHA-256 of all bytes, in standard base64 with padding."""
        payload_hash = PayloadHash()
        payload_hash.update(self.blocks(_BLOCK_BYTES))
        return payload_hash.digest_text()

    @abstractmethod
    def rewind(self) -> None:
        """Put an open file of the caller's back to where it stood."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was opened for it."""


class _Memory(Source):
    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._data = view.cast("B") if view.nbytes else memoryview(b"")
        self.size_bytes = view.nbytes

    def blocks(self, size_bytes: int) -> Iterator[memoryview | bytes]:
        for start in range(0, self.size_bytes, size_bytes):
            yield self._data[start : start + size_bytes]

    def rewind(self) -> None:
        pass  # it stands nowhere

    def close(self) -> None:
        # Mapped files and arrays that grow cannot be closed or resized while someone looks at them. A thread of gRPC's
        # may still do so, of an attempt that was given up; then it is the collector's to let go.
        with contextlib.suppress(BufferError):
            self._data.release()
            self._view.release()


class _File(Source):
    """The rest of an open file, from where it stands."""

    def __init__(self, file: IO[bytes], *, is_own: bool) -> None:
        self._file = file
        self._is_own = is_own
        self._lock = threading.Lock()
        self._start = file.tell()
        self.size_bytes = max(file.seek(0, io.SEEK_END) - self._start, 0)

    def blocks(self, size_bytes: int) -> Iterator[memoryview | bytes]:
        left_bytes = self.size_bytes
        while left_bytes:
            # An attempt that was given up may still be reading, at a place of its own.
            with self._lock:
                self._file.seek(self._start + self.size_bytes - left_bytes)
                block = self._file.read(min(size_bytes, left_bytes))
            if not block:
                message = f"the file was cut while it was read: {left_bytes} of {self.size_bytes} bytes are missing"
                raise InvalidError(message)
            left_bytes -= len(block)
            yield block

    def rewind(self) -> None:
        with self._lock:
            self._file.seek(self._start)

    def close(self) -> None:
        if self._is_own:
            self._file.close()


def open_source(data: Data) -> Source:
    """Return the bytes of what is to be uploaded.

    An open file is read from where it stands, and stays open. One that cannot tell its size, such as a pipe, goes to a
    temporary file first, since a size and a hash must be known before the bytes are sent.

    Raises:
        InvalidError: It is nothing that has bytes.
        OSError: The file cannot be read.
    """
    if isinstance(data, str | os.PathLike):
        opened = open(data, "rb", buffering=0)  # noqa: SIM115 # closed with the source
        if _tells_its_size(opened):
            return _File(opened, is_own=True)
        with opened:
            return _File(_copied(opened), is_own=True)
    if isinstance(data, io.TextIOBase):
        raise InvalidError("data is a text file; open it in binary mode")
    try:
        view = memoryview(cast("Buffer", data))
    except TypeError:
        if hasattr(data, "read"):
            file = cast("IO[bytes]", data)
            return _File(file, is_own=False) if _tells_its_size(file) else _File(_copied(file), is_own=True)
        kind = type(data).__name__
        raise InvalidError(f"data is of type {kind}; it must be bytes-like, a path or a binary file") from None
    if not view.c_contiguous:
        raise InvalidError("data is not contiguous in memory; copy it first")
    return _Memory(view)


def _tells_its_size(file: IO[bytes]) -> bool:
    """Return whether a file knows how much it has; pipes do not, nor do those of /proc, which may say: nothing."""
    if not file.seekable():
        return False
    start = file.tell()
    try:
        is_empty = file.seek(0, io.SEEK_END) <= start
    except OSError:
        return False
    file.seek(start)
    if is_empty and file.read(1):
        file.seek(start)
        return False
    return True


def _copied(file: IO[bytes]) -> IO[bytes]:
    """Return a temporary file with what another one still has."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 # handed to the caller
    try:
        shutil.copyfileobj(file, copy, _BLOCK_BYTES)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy
