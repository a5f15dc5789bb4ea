"""SQLite's own file operations, recorded for power cuts, or failing on command.

SQLite reaches files through a table of functions (https://www.sqlite.org/vfs.html). Here the default one is replaced by
a copy whose writes, syncs, truncations and removals pass through Python; all others are SQLite's own. So this watches
the library that Python's `sqlite3` uses, and sees every change to a database or its log. Shared memory (`-shm`) is not
watched, since it does not outlive the processes.
"""

import ctypes
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tests.torture.recorded_files import File, NameChange, Patch, RecordedFiles, Sync

_OPEN_MAIN = 0x100  # SQLITE_OPEN_MAIN_DB
_IOERR_WRITE, _IOERR_FSYNC, _IOERR_TRUNCATE, _IOERR_DELETE = (10 | n << 8 for n in (3, 4, 6, 10))
FULL = 13
IOERR = 10

_POINTER = ctypes.c_void_p


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`."""

    _fields_ = [("version", ctypes.c_int)] + [
        (name, _POINTER)
        for name in (
            *("close", "read", "write", "truncate", "sync", "file_size", "lock", "unlock", "check_reserved_lock"),
            *("file_control", "sector_size", "device_characteristics", "shm_map", "shm_lock", "shm_barrier"),
            *("shm_unmap", "fetch", "unfetch"),
        )
    ]


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`."""

    _fields_ = [
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("path_max", ctypes.c_int),
        ("next", _POINTER),
        ("name", ctypes.c_char_p),
        ("app_data", _POINTER),
        *(
            (name, _POINTER)
            for name in (
                *("open", "delete", "access", "full_pathname", "dl_open", "dl_error", "dl_sym", "dl_close"),
                *("randomness", "sleep", "current_time", "get_last_error", "current_time_int64"),
                *("set_system_call", "get_system_call", "next_system_call"),
            )
        ),
    ]


# Names stay pointers: SQLite keeps them.
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER)
_DELETE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int)
_CLOSE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int)


def missing() -> str:
    """Return why SQLite's operations cannot be watched here; empty if they can."""
    try:
        library = _library()
    except OSError:
        return "Python does not use a shared library of SQLite"
    version = library.sqlite3_libversion
    version.restype = ctypes.c_char_p
    if version().decode() != sqlite3.sqlite_version:
        return "Python uses another library of SQLite than the one of the system"
    return ""


def _library() -> ctypes.CDLL:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if "libsqlite3.so" in line:
                return ctypes.CDLL(line.split(maxsplit=5)[-1].strip())
    raise OSError("no shared library of SQLite is loaded")


@dataclass(eq=False)
class _OpenFile:
    """A file that SQLite has open."""

    path: str
    node: File | None
    is_main: bool
    is_directory_synced: bool


class WatchedSQLite:
    """All changes that SQLite makes to files.

    Args:
        files: Records the changes to files in its directory; None to record nothing.

    Attributes:
        fail: Called with the name of each operation on a database (`write`, `sync`, `truncate`, `delete`); returns the
            error code that it fails with, or 0.
        syncs: Whether files that are not recorded are synced.
    """

    def __init__(self, files: RecordedFiles | None) -> None:
        self.fail: Callable[[str, str], int] = lambda _operation, _path: 0
        self.syncs = files is None
        self._files = files
        self._open: dict[int, _OpenFile] = {}
        self._tables: dict[int, _Methods] = {}
        self._lock = threading.Lock()
        library = _library()
        library.sqlite3_vfs_find.restype = _POINTER
        library.sqlite3_vfs_register.argtypes = [_POINTER, ctypes.c_int]
        library.sqlite3_vfs_unregister.argtypes = [_POINTER]
        self._library = library
        self._real = _Vfs.from_address(library.sqlite3_vfs_find(None))
        self._real_open, self._real_delete = _OPEN(self._real.open), _DELETE(self._real.delete)
        self._callbacks: list[Any] = [_OPEN(self._on_open), _DELETE(self._on_delete)]
        self._vfs = _Vfs.from_buffer_copy(self._real)
        self._vfs.name = b"watched"
        self._vfs.open, self._vfs.delete = (ctypes.cast(each, _POINTER) for each in self._callbacks)

    @contextmanager
    def installed(self) -> Iterator["WatchedSQLite"]:
        """Return a context manager in which the connections of this process are watched."""
        self._library.sqlite3_vfs_register(ctypes.addressof(self._vfs), 1)
        try:
            yield self
        finally:
            assert not self._open, f"SQLite still has {[each.path for each in self._open.values()]} open"
            self._library.sqlite3_vfs_unregister(ctypes.addressof(self._vfs))

    def _watched(self, path: str) -> RecordedFiles | None:
        return self._files if self._files is not None and self._files.has(path) else None

    def _performing(self, path: str) -> Any:
        files = self._watched(path)
        return files.performing() if files is not None else nullcontext()

    def _on_open(self, vfs: int, name: int | None, file: int, flags: int, out_flags: int) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        with self._performing(path):
            existed = os.path.exists(path)
            code: int = self._real_open(vfs, name, file, flags, out_flags)
            if code or not path:
                return code
            files = self._watched(path)
            is_main = bool(flags & _OPEN_MAIN)
            node = files.file_at(path) if files is not None else None
            self._open[file] = _OpenFile(path, node, is_main, is_directory_synced=existed or is_main)
            methods = ctypes.cast(file, ctypes.POINTER(_POINTER))
            methods[0] = self._table(methods[0] or 0)
        return 0

    def _table(self, address: int) -> int:
        """Return the address of a copy of a table of methods, some of which are ours."""
        with self._lock:
            if address not in self._tables:
                real = _Methods.from_address(address)
                table = _Methods.from_buffer_copy(real)
                for name, prototype, method in (
                    ("close", _CLOSE, self._on_close),
                    ("write", _WRITE, self._on_write),
                    ("truncate", _TRUNCATE, self._on_truncate),
                    ("sync", _SYNC, self._on_sync),
                ):
                    callback = prototype(_bound(method, prototype(getattr(real, name))))
                    self._callbacks.append(callback)
                    setattr(table, name, ctypes.cast(callback, _POINTER))
                self._tables[address] = table
            return ctypes.addressof(self._tables[address])

    def _on_close(self, real: Callable[..., int], file: int) -> int:
        del self._open[file]
        return real(file)

    def _on_write(self, real: Callable[..., int], file: int, data: int, count: int, offset: int) -> int:
        opened = self._open[file]
        with self._performing(opened.path):
            if code := self.fail("write", opened.path):
                real(file, data, count // 2, offset)
                return _IOERR_WRITE if code == IOERR else code
            code = real(file, data, count, offset)
            self._record(opened, offset, ctypes.string_at(data, count))
            return code

    def _on_truncate(self, real: Callable[..., int], file: int, size: int) -> int:
        opened = self._open[file]
        with self._performing(opened.path):
            if self.fail("truncate", opened.path):
                return _IOERR_TRUNCATE
            code = real(file, size)
            self._record(opened, size, None)
            return code

    def _record(self, opened: _OpenFile, offset: int, data: bytes | None) -> None:
        if self._files is not None and opened.node is not None:
            self._files.record(Patch(opened.node, offset, data))

    def _on_sync(self, real: Callable[..., int], file: int, flags: int) -> int:
        opened = self._open[file]
        with self._performing(opened.path):
            if self.fail("sync", opened.path):
                return _IOERR_FSYNC
            if opened.node is None or self._files is None:
                return real(file, flags) if self.syncs else 0
            code = real(file, flags)
            self._files.record(Sync(opened.node))
            if not opened.is_directory_synced:  # SQLite syncs the directory of a new log with its first sync
                opened.is_directory_synced = True
                self._files.record(Sync(self._files.directory_of(opened.path)))
            return code

    def _on_delete(self, vfs: int, name: int, syncs_directory: int) -> int:
        path = os.fsdecode(ctypes.string_at(name))
        with self._performing(path):
            if self.fail("delete", path):
                return _IOERR_DELETE
            files = self._watched(path)
            existed = os.path.exists(path)
            code: int = self._real_delete(vfs, name, syncs_directory if files is not None or self.syncs else 0)
            if files is not None and existed and not code:
                directory = files.directory_of(path)
                files.record(NameChange(directory, os.path.basename(path), "", None))
                if syncs_directory:
                    files.record(Sync(directory))
            return code


def _bound(method: Callable[..., int], real: Callable[..., int]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        return method(real, *arguments)

    return call
