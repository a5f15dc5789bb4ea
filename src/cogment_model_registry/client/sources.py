"""What is uploaded: bytes in memory, a file by its path, or an open file; each can be read more than once."""

import contextlib
import io
import os
import select
import stat
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias, cast

from cogment_model_registry.client.threads import begin_apart
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.payload import INLINE_HASH_MAX_BYTES, PayloadHash

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

Data: TypeAlias = "Buffer | str | os.PathLike[str] | IO[bytes]"
"""What can be uploaded: an object with a contiguous buffer (bytes, a NumPy array), a path, or an open binary file."""

_BLOCK_BYTES = 1024 * 1024

_LOOK_MILLISECONDS = 100
"""How often who waits for a pipe looks whether it is still to wait."""


class Source(ABC):
    """Bytes to upload; to be closed.

    Attributes:
        size_bytes: How many.
    """

    size_bytes: int

    @abstractmethod
    def blocks(self, size_bytes: int) -> Iterator[memoryview | bytes]:
        """Yield all bytes, in blocks of at most a size. May be called again."""

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


class Prepared(NamedTuple):
    """What is ready to be uploaded.

    Attributes:
        source: The bytes; to be closed.
        data_hash: Their SHA-256, in standard base64 with padding.
    """

    source: Source
    data_hash: str


class Preparation:
    """Finds out what is to be uploaded, and its hash: at once if it is little, else on a thread.

    An open file is read from where it stands, and stays open. One that cannot tell its size, such as a pipe, goes to a
    temporary file first, since a size and a hash must be known before the bytes are sent.

    Args:
        data: What it is.

    Attributes:
        prepared: The result, some day. It raises `InvalidError` for what has no bytes, and `OSError` for a file that
            cannot be read.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self._is_given_up = threading.Event()
        self.prepared: Future[Prepared] = Future()
        self.prepared.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
        memory = _memory_of(data)
        if memory is not None and memory.size_bytes <= INLINE_HASH_MAX_BYTES:
            self.prepared.set_result(self._hashed(memory))
        else:
            begin_apart("source", lambda: self._prepare(memory))

    def give_up(self, error: Exception) -> None:
        """Read no further; whoever waits for the result gets the error instead, unless it is there."""
        self._is_given_up.set()
        with contextlib.suppress(InvalidStateError):
            self.prepared.set_exception(error)

    def abandon(self) -> None:
        """Read no further, and let go of what was opened: nobody waits for the result any more."""
        self.give_up(_GivenUpError())
        if self.prepared.exception() is None:
            _let_go(self.prepared.result().source)

    def _prepare(self, memory: _Memory | None) -> None:
        try:
            prepared = self._hashed(memory or self._opened())
        except BaseException as error:
            # No coroutine can raise StopIteration, and asyncio's futures refuse it.
            told = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
            with contextlib.suppress(InvalidStateError):  # it was given up
                self.prepared.set_exception(told)
            return
        try:
            self.prepared.set_result(prepared)
        except InvalidStateError:
            _let_go(prepared.source)

    def _hashed(self, source: Source) -> Prepared:
        payload_hash = PayloadHash()
        try:
            payload_hash.update(self._until_given_up(source.blocks(_BLOCK_BYTES)))
        except BaseException:
            _let_go(source)
            raise
        return Prepared(source, payload_hash.digest_text())

    def _until_given_up(self, blocks: Iterator[memoryview | bytes]) -> Iterator[memoryview | bytes]:
        for block in blocks:
            if self._is_given_up.is_set():
                raise _GivenUpError
            yield block

    def _opened(self) -> Source:
        data = self._data
        if isinstance(data, str | os.PathLike):
            opened = open(data, "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115 # closed with the source
            if _tells_its_size(opened):
                return _File(opened, is_own=True)
            with opened:
                return _File(self._copied(opened), is_own=True)
        file = cast("IO[bytes]", data)
        return _File(file, is_own=False) if _tells_its_size(file) else _File(self._copied(file), is_own=True)

    def _copied(self, file: IO[bytes]) -> IO[bytes]:
        """Return a temporary file with what another one still has."""
        # What stands behind a pipe is all that is here, so a wait for it can be left; of other things nobody knows.
        raw = file.raw if isinstance(file, io.BufferedReader) else file
        wait = self._wait_for_pipe if isinstance(raw, io.FileIO) and not stat.S_ISREG(_mode_of(raw)) else None
        read: Callable[[int], bytes] = file.read1 if isinstance(file, io.BufferedReader) else file.read
        copy = tempfile.TemporaryFile()  # noqa: SIM115 # handed to the caller
        try:
            while True:
                if wait:
                    wait(raw.fileno())
                block = read(_BLOCK_BYTES)
                if not block:
                    break
                copy.writelines(self._until_given_up(iter([block])))
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy

    def _wait_for_pipe(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(_LOOK_MILLISECONDS):
            if self._is_given_up.is_set():
                raise _GivenUpError


class _GivenUpError(Exception):
    """Nobody waits for the source any more."""


def _let_go(source: Source) -> None:
    with contextlib.suppress(OSError, ValueError):  # the caller may have closed its file
        source.rewind()
    source.close()


def _memory_of(data: Data) -> _Memory | None:
    """Return what is in memory already; None for a file.

    Raises:
        InvalidError: It is neither.
    """
    if isinstance(data, str | os.PathLike):
        return None
    if isinstance(data, io.TextIOBase):
        raise InvalidError("data is a text file; open it in binary mode")
    try:
        view = memoryview(cast("Buffer", data))
    except TypeError:
        if hasattr(data, "read"):
            return None
        kind = type(data).__name__
        raise InvalidError(f"data is of type {kind}; it must be bytes-like, a path or a binary file") from None
    if not view.c_contiguous:
        raise InvalidError("data is not contiguous in memory; copy it first")
    return _Memory(view)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for reading; a named pipe, too, without waiting for who writes into it."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _mode_of(file: io.FileIO) -> int:
    return os.fstat(file.fileno()).st_mode


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
