"""Memory that nobody can change any more, which processes of one host share by its descriptor.

It is a file without a name in the system's memory, sealed against writing, growing, shrinking and further seals
(memfd_create(2), fcntl(2)). Whoever gets its descriptor can map it, and relies on bytes that stay as they are, whatever
the process does that filled it. Linux has it; elsewhere `is_supported` says no.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cogment_model_registry.errors import InvalidError, counted

try:
    import fcntl

    _SEALS: int = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
except (ImportError, AttributeError):  # on Windows, and on macOS
    _SEALS = 0

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_NAME = "cogment-model-registry"
"""What the memory is called in /proc/PID/maps."""


def is_supported() -> bool:
    """Return whether the system has such memory."""
    return bool(_SEALS) and hasattr(os, "memfd_create")


def mapped(descriptor: int, size_bytes: int, *, is_writable: bool) -> mmap.mmap:
    """Return the bytes of a file or of sealed memory, which are shared with all others who map them.

    The mapping has a descriptor of its own. Where it is writable, what is written to becomes a copy of this process,
    page by page.

    Raises:
        OSError: It cannot be mapped.
        ValueError: It has fewer bytes, or there are none to map.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE if is_writable else mmap.PROT_READ
    # Not MAP_SHARED: Linux before 6.7 refuses it for sealed memory whose descriptor was opened for writing.
    return mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_PRIVATE, prot=protection)


def is_sealed(descriptor: int) -> bool:
    """Return whether what a descriptor refers to is memory that nobody can change any more."""
    try:
        return bool(_SEALS) and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # a file
        return False


class UnsealedMemory:
    """Memory that is being filled; to be sealed or closed.

    Args:
        size_bytes: How many bytes it will have, at least one. Memory is taken as they are written.

    Attributes:
        view: The bytes, read-only. What was not written yet must not be read.

    Raises:
        OSError: The system has no such memory, or no descriptor left.
    """

    def __init__(self, size_bytes: int) -> None:
        if not is_supported():
            raise OSError("this system has no sealed memory")
        self._size_bytes = size_bytes
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, size_bytes)
            self.view = memoryview(mapped(self._descriptor, size_bytes, is_writable=False))
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, parts: Iterable[memoryview | bytes | bytearray]) -> None:
        """Write the next bytes.

        Raises:
            OSError: The system has no memory left.
        """
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def has(self, parts: Iterable[memoryview | bytes]) -> bool:
        """Return whether the bytes are those of some parts; other threads go on while they are compared."""
        compare = ctypes.CDLL(None).memcmp
        written = memoryview(mapped(self._descriptor, self._size_bytes, is_writable=True))
        position = 0
        for part in parts:
            here = written[position : position + len(part)]
            if compare(_memory_at(part), _memory_at(here), ctypes.c_size_t(len(part))):
                return False
            position += len(part)
        return position == self._size_bytes

    def fill(self, fill: Callable[[memoryview], object]) -> None:
        """Let a function write all bytes.

        Raises:
            InvalidError: Something still refers to the bytes after that, and could go on writing.
        """
        shared = mmap.mmap(self._descriptor, self._size_bytes)
        view = memoryview(shared)
        fill(view)
        try:
            view.release()
            shared.close()
        except BufferError:
            message = "something still refers to the memory that was filled, such as an array; delete it first"
            raise InvalidError(message) from None

    def seal(self) -> "SealedMemory":
        """Return the memory, of which nothing changes any more.

        Raises:
            OSError: Something could still write to it.
        """
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return SealedMemory(self._descriptor, self.view)

    def close(self) -> None:
        """Close it; views stay valid."""
        os.close(self._descriptor)


class SealedMemory:
    """Memory that nobody can change any more. Made by `SealedMemory.of` and `SealedMemory.filled`; to be closed.

    Attributes:
        view: The bytes, read-only. It stays valid when the memory is closed.
    """

    def __init__(self, descriptor: int, view: memoryview) -> None:
        self.view = view
        self._descriptor = descriptor
        self._is_open = True

    @classmethod
    def of(cls, data: memoryview | bytes | bytearray) -> "SealedMemory":
        """Return a copy of some bytes, at least one.

        Raises:
            InvalidError: It is something else.
            OSError: The system has no such memory, or none left.
        """
        try:
            view = memoryview(data).cast("B")
        except TypeError:
            raise InvalidError(f"data is of type {type(data).__name__}; it must be contiguous bytes") from None
        return _sealed(len(view), lambda memory: memory.write([view]))

    @classmethod
    def filled(cls, size_bytes: int, fill: Callable[[memoryview], object]) -> "SealedMemory":
        """Return memory that a function fills, so that its bytes need not be anywhere else before.

        Args:
            size_bytes: How many bytes it has, at least one.
            fill: Writes them to the view that it gets, and keeps nothing that refers to that.

        Raises:
            InvalidError: Something still refers to the view when `fill` has returned.
            OSError: The system has no such memory, or none left.
        """
        return _sealed(size_bytes, lambda memory: memory.fill(fill))

    @classmethod
    def received(cls, descriptor: int, size_bytes: int) -> "SealedMemory":
        """Return the memory of a descriptor that another process handed over, which stays the caller's to close.

        Nothing but sealed memory is touched: of any other file, reading might block or its pages might vanish.

        Raises:
            InvalidError: It is something else, can still change, or has another size.
            OSError: It cannot be mapped.
        """
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except (OSError, NameError):
            raise InvalidError("the descriptor is not one of memory that can be sealed") from None
        if seals & _SEALS != _SEALS or not _SEALS:
            raise InvalidError("the memory that was handed over is not sealed against writing, resizing and more seals")
        found_bytes = os.fstat(descriptor).st_size
        if found_bytes != size_bytes or not size_bytes:
            found = counted(found_bytes, "byte")
            raise InvalidError(f"data_size is {counted(size_bytes, 'byte')}, but the memory handed over has {found}")
        view = memoryview(mapped(descriptor, size_bytes, is_writable=False))
        return cls(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC), view)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never made
            self.close()

    def __repr__(self) -> str:
        return f"<SealedMemory: {counted(self.size_bytes, 'byte')}{'' if self._is_open else ', closed'}>"

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return len(self.view)

    def descriptor(self) -> int:
        """Return a descriptor of its own for one receiver, which can only read, for the caller to close.

        It is not a duplicate: those share a position and flags, by which receivers could disturb each other.

        Raises:
            OSError: No descriptor is left, or the memory is closed.
        """
        if not self._is_open:
            raise OSError("the memory is closed")
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def shared(self) -> "SealedMemory":
        """Return the same memory once more, to be closed on its own.

        Raises:
            OSError: No descriptor is left, or the memory is closed.
        """
        return SealedMemory(self.descriptor(), self.view)

    def close(self) -> None:
        """Close it; views stay valid. Closing twice does nothing."""
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)


def _memory_at(part: memoryview | bytes) -> Any:
    """Return some bytes as ctypes takes them, which copies those that are read-only."""
    if isinstance(part, memoryview) and not part.readonly:
        return (ctypes.c_char * len(part)).from_buffer(part)
    return bytes(part)


def _sealed(size_bytes: int, write: Callable[[UnsealedMemory], object]) -> SealedMemory:
    if size_bytes < 1:
        raise InvalidError("sealed memory has at least one byte")
    memory = UnsealedMemory(size_bytes)
    try:
        write(memory)
        return memory.seal()
    except BaseException:
        memory.close()
        raise
