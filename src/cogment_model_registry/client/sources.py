"""What is uploaded: bytes in memory, a file or a folder by its path, or an open file; each can be read repeatedly."""

import contextlib
import io
import os
import re
import select
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias, cast
from weakref import WeakValueDictionary

from cogment_model_registry.client.arguments import checked_path
from cogment_model_registry.client.blocks import Source
from cogment_model_registry.client.packing import Folder, PackedFolder
from cogment_model_registry.client.threads import start_thread
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.payload import INLINE_HASH_MAX_BYTES, hash_of
from cogment_model_registry.system.paths import expanded
from cogment_model_registry.system.sealed_memory import SealedMemory

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library from Python 3.12 on


class Parts(tuple["Buffer", ...]):
    """Bytes in memory in several places, one after another; for what is put together without a copy."""

    __slots__ = ()


Data: TypeAlias = "Buffer | str | os.PathLike[str] | IO[bytes] | Parts | SealedMemory | Folder"
"""What can be uploaded: an object with a contiguous buffer (bytes, a NumPy array), the path of a file or a folder, an
open binary file, sealed memory, or a folder with options."""

_BLOCK_BYTES = 1024 * 1024

_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
"""The flag that opens a named pipe without waiting; Windows has neither."""

_LOOK_MILLISECONDS = 100
"""How often a thread that waits for a pipe checks whether to go on."""


class _Memory(Source):
    """Bytes in memory.

    Args:
        views: The bytes, in one place or in several, one after another.
        callers: The caller's `BytesIO` that has them, if any.
        sealed: The caller's sealed memory that has them, if any.
    """

    def __init__(
        self, *views: memoryview, callers: io.BytesIO | None = None, sealed: SealedMemory | None = None
    ) -> None:
        self._views = views
        self._callers = callers
        self.sealed = sealed
        self.is_fixed = all(type(view.obj) is bytes for view in views)
        self._parts = [view.cast("B") for view in views if view.nbytes]
        self.size_bytes = sum(map(len, self._parts))

    def blocks(self, size_bytes: int, start: int = 0) -> Iterator[memoryview | bytes]:
        pieces: list[memoryview] = []
        room_bytes = size_bytes
        for part in self._parts:
            while start < len(part):
                pieces.append(part[start : start + room_bytes])
                start += len(pieces[-1])
                room_bytes -= len(pieces[-1])
                if not room_bytes:
                    yield _taken(pieces)
                    room_bytes = size_bytes
            start -= len(part)
        if pieces:
            yield _taken(pieces)

    def finish(self) -> None:
        if self._callers is not None:
            self._callers.seek(0, io.SEEK_END)

    def close(self) -> None:
        # A mapped file or a growing array cannot be closed or resized while a view of it exists. If a thread of gRPC
        # still reads for an abandoned attempt, the garbage collector releases the view later.
        for view in (*self._parts, *self._views):
            with contextlib.suppress(BufferError):
                view.release()


def _taken(pieces: list[memoryview]) -> memoryview | bytes:
    """Return the bytes of some pieces, of which the list then refers to none."""
    block = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    pieces.clear()
    return block


class _File(Source):
    """The rest of a regular file from a position on, read without moving the position of the caller.

    Args:
        file: The file, closed with the source.
        start: The position.
        callers: The caller's open file, if it is one.
    """

    def __init__(self, file: IO[bytes], start: int, callers: IO[bytes] | None = None) -> None:
        self._file = file
        self._start = start
        self._callers = callers
        self.size_bytes = max(os.fstat(file.fileno()).st_size - start, 0)

    def blocks(self, size_bytes: int, start: int = 0) -> Iterator[memoryview | bytes]:
        done_bytes = start
        while left_bytes := self.size_bytes - done_bytes:
            block = _read_at(self._file.fileno(), min(size_bytes, left_bytes), self._start + done_bytes)
            if not block:
                message = (
                    f"the file was truncated while it was read: {left_bytes} of {self.size_bytes} bytes are missing"
                )
                raise InvalidError(message)
            done_bytes += len(block)
            yield block

    def finish(self) -> None:
        if self._callers is not None:
            self._callers.seek(self._start + self.size_bytes)

    def close(self) -> None:
        self._file.close()


class Prepared(NamedTuple):
    """Data that is ready to be uploaded.

    Attributes:
        source: The bytes; to be closed.
        data_hash: Their SHA-256, in standard base64 with padding.
    """

    source: Source
    data_hash: str


class Preparation:
    """Opens the data of an upload and computes its hash: at once if it is small, else on a thread.

    An open file is read from its position on, and stays open. A regular file keeps its position until the upload has
    succeeded. Anything else that can be read, such as a pipe, is copied to a temporary file first, since the size and
    the hash are sent before the bytes.

    Args:
        data: The data, or what `memory_of` returned for it.

    Attributes:
        prepared: The result. It raises `InvalidError` for data without bytes, and `OSError` for a file that cannot be
            read.
    """

    def __init__(self, data: "Data | Source") -> None:
        self._is_given_up = threading.Event()
        self.prepared: Future[Prepared] = Future()
        self.prepared.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
        source = data if isinstance(data, Source) else memory_of(data) or data
        if isinstance(source, Source) and source.size_bytes <= INLINE_HASH_MAX_BYTES:
            self.prepared.set_result(self._hashed(source))
        else:
            start_thread(lambda: self._prepare(source))

    def give_up(self, error: Exception) -> None:
        """Stop reading; those who wait for the result get the error instead, unless the result exists."""
        self._is_given_up.set()
        with contextlib.suppress(InvalidStateError):
            self.prepared.set_exception(error)

    def abandon(self) -> None:
        """Stop reading, and close the source: nobody waits for the result any more."""
        self.give_up(_GivenUpError())
        if self.prepared.exception() is None:
            self.prepared.result().source.close()

    def _prepare(self, source: "Source | Data") -> None:
        try:
            prepared = self._hashed(source if isinstance(source, Source) else self._opened(source))
        except BaseException as error:
            # No coroutine can raise StopIteration, and asyncio's futures refuse it.
            reported = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
            with contextlib.suppress(InvalidStateError):  # it was given up
                self.prepared.set_exception(reported)
            return
        try:
            self.prepared.set_result(prepared)
        except InvalidStateError:
            prepared.source.close()

    def _hashed(self, source: Source) -> Prepared:
        try:
            return Prepared(source, hash_of(self._until_given_up(source.blocks(_BLOCK_BYTES))))
        except BaseException:
            source.close()
            raise

    def _until_given_up(self, blocks: Iterator[memoryview | bytes]) -> Iterator[memoryview | bytes]:
        for block in blocks:
            if self._is_given_up.is_set():
                raise _GivenUpError
            yield block

    def _opened(self, data: Data) -> Source:
        if isinstance(data, Folder):
            return PackedFolder(data)
        if isinstance(data, str | os.PathLike):
            if os.path.isdir(expanded(data)):
                return PackedFolder(Folder(data))
            opened = open(expanded(data), "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115 # closed with the source
            if _has_known_size(opened):
                return _File(opened, 0)
            with opened:
                return self._copied(opened)
        file = cast("IO[bytes]", data)
        raw = _raw_file(file)
        if raw is None or not _has_known_size(raw):
            return self._copied(file)
        if file.writable():
            file.flush()
        return _File(open(os.dup(raw.fileno()), "rb", buffering=0), file.tell(), file)

    def _copied(self, file: IO[bytes]) -> Source:
        """Return a temporary file with the rest of a file."""
        raw = _raw_file(file)
        wait = self._wait_for_pipe if raw is not None and not stat.S_ISREG(_mode_of(raw)) else None
        # `read1` returns what a pipe has now; how other objects wait is unknown.
        read: Callable[[int], bytes | None] = file.read
        if wait and isinstance(file, io.BufferedReader):
            read = file.read1
        with self._turn(file):
            copy = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the source
            start = file.tell() if hasattr(file, "seekable") and file.seekable() else None
            try:
                while True:
                    if wait and raw is not None:
                        wait(raw.fileno())
                    block = read(_BLOCK_BYTES)
                    if block is None:
                        message = "the file is in non-blocking mode and has no data now; make it blocking"
                        raise InvalidError(message)
                    if not block:
                        break
                    copy.writelines(self._until_given_up(iter([block])))
                copy.flush()
            except BaseException:
                copy.close()
                if start is not None:
                    file.seek(start)
                raise
        return _File(copy, 0)

    @contextlib.contextmanager
    def _turn(self, file: IO[bytes]) -> Iterator[None]:
        """Return a context manager that first waits until no cancelled upload reads the same file."""
        turn = _turns.setdefault(id(file), _Turn())
        while not turn.lock.acquire(timeout=_LOOK_MILLISECONDS / 1000):
            if self._is_given_up.is_set():
                raise _GivenUpError
        try:
            yield
        finally:
            turn.lock.release()

    def _wait_for_pipe(self, descriptor: int) -> None:
        if not hasattr(select, "poll"):  # Windows waits for sockets alone; the read waits
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll(_LOOK_MILLISECONDS):
            if self._is_given_up.is_set():
                raise _GivenUpError


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()


_turns: WeakValueDictionary[int, _Turn] = WeakValueDictionary()
"""The locks of files that are being read, by the identity of the file."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.clear)  # the threads that read are those of the parent


class _GivenUpError(Exception):
    """Nobody waits for the source any more."""


def _raw_file(file: IO[bytes]) -> io.FileIO | None:
    """Return the raw file below an open file; None if it is another kind of object."""
    raw = file.raw if isinstance(file, io.BufferedReader | io.BufferedRandom) else file
    return raw if isinstance(raw, io.FileIO) else None


def memory_of(data: Data) -> Source | None:
    """Return what is in memory already, to be closed; None for a file.

    Raises:
        InvalidError: It is neither.
    """
    if isinstance(data, str | os.PathLike):
        checked_path("data", data)
        return None
    if isinstance(data, Folder):
        checked_path("path", data.path)
        if data.links_within is not None:
            checked_path("links_within", data.links_within)
        return None
    if isinstance(data, io.TextIOBase):
        raise InvalidError("data is a text file; open it in binary mode")
    if getattr(data, "closed", False):
        raise InvalidError("data is a closed file; open it, or give its path")
    if type(data) is io.BytesIO:  # not a subclass, which may read in its own way
        return _Memory(data.getbuffer()[data.tell() :], callers=data)
    if isinstance(data, SealedMemory):
        return _Memory(data.view[:], sealed=data)
    if isinstance(data, Parts):
        return _Memory(*(memoryview(part) for part in data))
    view = _view_of(data)
    return None if view is None else _Memory(view)


def _view_of(data: object) -> memoryview | None:
    """Return the memory of an object; None for one that can be read instead.

    Raises:
        InvalidError: It is neither, or its memory says nothing without the object.
    """
    kind = type(data).__name__
    try:
        view = memoryview(cast("Buffer", data))
    except TypeError:
        if hasattr(data, "read"):
            return None
        raise InvalidError(f"data is of type {kind}; it must be bytes-like, a path or a binary file") from None
    except (ValueError, BufferError) as error:  # it was released, or has elements without a plain format
        raise InvalidError(f"data is of type {kind}, and gives no bytes: {error}") from None
    if "O" in re.sub(":[^:]*:", "", view.format):  # without the names of fields
        raise InvalidError("data has elements that are objects of Python; encode them first")
    if not view.c_contiguous:
        raise InvalidError("data is not contiguous in memory; copy it first")
    return view


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for reading; do not wait for the writer of a named pipe."""
    descriptor = os.open(path, flags | _NONBLOCK)
    if _NONBLOCK:
        os.set_blocking(descriptor, True)
    return descriptor


def _read_at(descriptor: int, size_bytes: int, start: int) -> bytes:
    """Return bytes of a file from a position on; on Windows, which lacks `os.pread`, its position moves."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size_bytes, start)
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size_bytes)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


def _mode_of(file: io.FileIO) -> int:
    return os.fstat(file.fileno()).st_mode


def _has_known_size(file: io.FileIO) -> bool:
    """Return whether the size of a file is known: not that of a pipe, nor of files of /proc, which report 0."""
    status = os.fstat(file.fileno())
    return stat.S_ISREG(status.st_mode) and status.st_size > 0
