"""The file operations of the archive, each relative to an open directory.

Names are resolved against directory descriptors and never through a symbolic link, so nothing outside the archive is
reached, whatever is planted in it. All of them block: call them from threads. Errors are `OSError`; the archive
translates them.

A name is text here and UTF-8 on the disk, whatever the locale of the process is: only `on_disk` and `from_disk`
convert. Python would use the encoding of the locale, so that processes with different ones would not find each other's
models.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple

_FILE_MODE = 0o640
_DIRECTORY_MODE = 0o750

# O_NONBLOCK: opening a FIFO must not wait for a writer. It means nothing for regular files.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_CANNOT_RENAME = {errno.EACCES, errno.EBUSY, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
_CANNOT_LINK = {errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
_CANNOT_SYNC = {errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS}

_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
"""The flag of a read that returns only cached bytes; Linux has it."""


class NotRegularError(OSError):
    """A file was expected; the entry is a link, a FIFO, a directory or a device."""


class Cause(Enum):
    """Why a file could not be read."""

    FILE = auto()
    """The file is not what it must be. It is damaged, and another attempt will find the same."""
    STORAGE = auto()
    """The disk or the file system fails. The file may be intact, so it is unavailable and not damaged."""
    PROCESS = auto()
    """The process or the machine is short of a resource. The file may be intact, and no other one can be read."""


_CAUSES = {
    errno.EACCES: Cause.FILE,
    errno.EISDIR: Cause.FILE,
    errno.ELOOP: Cause.FILE,
    errno.ENODEV: Cause.FILE,
    errno.ENOTDIR: Cause.FILE,
    errno.ENXIO: Cause.FILE,
    errno.EPERM: Cause.FILE,
    errno.EMFILE: Cause.PROCESS,
    errno.ENFILE: Cause.PROCESS,
    errno.ENOMEM: Cause.PROCESS,
}


def cause_of(error: OSError) -> Cause:
    """Return why a file that exists could not be read: the one rule for the server and the commands."""
    if isinstance(error, NotRegularError):
        return Cause.FILE
    return _CAUSES.get(error.errno or 0, Cause.STORAGE)


def sync_file_system(descriptor: int) -> bool:
    """Make everything in a file system durable, and return whether the system can do that: Linux has ``syncfs``.

    Raises:
        OSError: Something could not be written.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        return False
    if syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return True


def cannot_be_renamed(error: OSError) -> bool:
    """Return whether an error of renaming a directory means that it can never be renamed, while its files can change.

    An overlay file system answers EXDEV for a directory of a lower layer; EBUSY is the answer for a mount point.
    """
    return error.errno in _CANNOT_RENAME


def cannot_be_linked(error: OSError) -> bool:
    """Return whether an error of giving a file a second name means that it can have none.

    File systems without links answer EPERM, a file with too many of them EMLINK, an overlay file system EXDEV.
    """
    return error.errno in _CANNOT_LINK


def on_disk(name: str) -> bytes:
    """Return the bytes that a name has on the disk; the inverse of `from_disk`."""
    return name.encode("utf-8", "surrogateescape")


def from_disk(name: str) -> str:
    """Return the text of a name that Python listed; bytes that are not UTF-8 become lone surrogates.

    Python's own text has all bytes of a name (PEP 383), unless the encoding of the locale has two of the same meaning,
    as Big5 has for a few characters.
    """
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "surrogateescape")


class Entry(NamedTuple):
    """An entry of a directory.

    Attributes:
        name: The name.
        is_file: Whether it is a regular file.
        is_directory: Whether it is a directory.
    """

    name: str
    is_file: bool
    is_directory: bool


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


class Files:
    """The operations on real files. A subclass may record them, or let them fail, for tests."""

    def open_root(self, path: str) -> int:
        """Return a descriptor of the directory at `path`; create it durably, with its parents, if necessary."""
        path = os.path.abspath(path)
        self._make_durably(path)
        return self.open_existing_root(path)

    def open_existing_root(self, path: str) -> int:
        """Return a descriptor of the directory at `path`, and write nothing."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _make_durably(self, path: str) -> None:
        """Create a directory unless it exists, and make its name durable; its parents first.

        The name of an existing one is synced too, since a process that made it may have been killed before that. Where
        that cannot be done, as on a read-only file system above the archive, no process has made it there.
        """
        parent = os.path.dirname(path)
        exists = os.path.isdir(path)
        if not exists:
            self._make_durably(parent)
            os.makedirs(path, mode=_DIRECTORY_MODE, exist_ok=True)
        try:
            self._sync_directory_at(parent)
        except OSError as error:
            if not exists or error.errno not in _CANNOT_SYNC:
                raise OSError(error.errno, error.strerror, parent) from error

    def _sync_directory_at(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync_directory(descriptor)
        finally:
            os.close(descriptor)

    def open_directory(self, parent: int, name: str) -> int:
        """Return a descriptor of a directory."""
        return os.open(on_disk(name), _DIRECTORY_FLAGS, dir_fd=parent)

    def make_directory(self, parent: int, name: str) -> None:
        """Create a directory."""
        os.mkdir(on_disk(name), _DIRECTORY_MODE, dir_fd=parent)

    def list_directory(self, directory: int) -> list[Entry]:
        """Return the entries of a directory."""
        with os.scandir(directory) as entries:
            return [
                Entry(
                    from_disk(entry.name),
                    is_file := entry.is_file(follow_symlinks=False),
                    not is_file and _is_directory(entry),
                )
                for entry in entries
            ]

    def open_to_read(self, directory: int, name: str) -> int:
        """Return a descriptor of a regular file.

        Raises:
            NotRegularError: The entry is not a regular file.
        """
        try:
            file = os.open(on_disk(name), _READ_FLAGS, dir_fd=directory)
        except OSError as error:
            if not stat.S_ISREG(os.stat(on_disk(name), dir_fd=directory, follow_symlinks=False).st_mode):
                raise NotRegularError(f"{name} is not a regular file") from error
            raise
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise NotRegularError(f"{name} is not a regular file")
        return file

    def create(self, directory: int, name: str) -> int:
        """Return a descriptor of a new file, open for writing."""
        return os.open(on_disk(name), _CREATE_FLAGS, _FILE_MODE, dir_fd=directory)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def duplicate(self, descriptor: int) -> int:
        """Return one more descriptor of the same open file."""
        return os.dup(descriptor)

    def write(self, file: int, parts: Sequence[memoryview | bytes | bytearray]) -> None:
        """Write all parts."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]

    def read(self, file: int, max_bytes: int) -> bytes:
        """Return the next bytes; fewer than `max_bytes` only at the end of the file."""
        parts: list[bytes] = []
        while max_bytes:
            part = os.read(file, max_bytes)
            if not part:
                break
            if not parts and len(part) == max_bytes:
                return part
            parts.append(part)
            max_bytes -= len(part)
        return b"".join(parts)

    def read_cached(self, file: int, buffer: memoryview) -> int:
        """Fill a buffer with the next bytes as far as the system has cached them, and never wait for the disk.

        Returns:
            How many bytes it read; fewer than fit the buffer at the end of the file, where the disk has the rest, or
            where the system does not know.
        """
        count = 0
        if _NO_WAIT is None:
            return count
        with contextlib.suppress(OSError):  # it would wait, or the file system does not support such reads
            while count < len(buffer) and (more := os.preadv(file, [buffer[count:]], -1, _NO_WAIT)):
                count += more
        return count

    def seek(self, file: int, position: int) -> None:
        """Let the next read begin at a position of a file. It never waits for the disk."""
        os.lseek(file, position, os.SEEK_SET)

    def status(self, file: int) -> os.stat_result:
        """Return the status of an open file."""
        return os.fstat(file)

    def status_of(self, directory: int, name: str) -> os.stat_result:
        """Return the status of an entry of a directory, which may be a link."""
        return os.stat(on_disk(name), dir_fd=directory, follow_symlinks=False)

    def status_at(self, path: str) -> os.stat_result:
        """Return the status of what is at a path, at the end of any links."""
        return os.stat(path)

    def free_bytes(self, directory: int) -> int:
        """Return the free space of the file system for this process, in bytes."""
        status = os.fstatvfs(directory)
        return (status.f_bavail if os.geteuid() else status.f_bfree) * status.f_frsize

    def sync_file(self, file: int) -> None:
        """Make the bytes of a file durable."""
        os.fsync(file)

    def sync_directory(self, directory: int) -> None:
        """Make the names in a directory durable."""
        os.fsync(directory)

    def rename(self, directory: int, old: str, new: str) -> None:
        """Rename a file or a directory, replacing a file of the new name."""
        os.rename(on_disk(old), on_disk(new), src_dir_fd=directory, dst_dir_fd=directory)

    def link(self, directory: int, old: str, new: str) -> None:
        """Give a file a second, new name in its directory."""
        # The name itself, even if it is a symbolic link.
        os.link(on_disk(old), on_disk(new), src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)

    def remove(self, directory: int, name: str) -> None:
        """Remove a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(on_disk(name), dir_fd=directory)

    def remove_directory(self, parent: int, name: str) -> None:
        """Remove an empty directory."""
        os.rmdir(on_disk(name), dir_fd=parent)

    def remove_tree(self, parent: int, name: str, on_error: Callable[[OSError], None]) -> None:
        """Remove a directory and its contents, following no link, as far as possible."""

        def report(_function: object, _path: object, details: tuple[object, BaseException, object]) -> None:
            error = details[1]
            if isinstance(error, OSError):
                on_error(error)

        # As Python would decode it: shutil joins the name with those that Python lists.
        shutil.rmtree(os.fsdecode(on_disk(name)), onerror=report, dir_fd=parent)
