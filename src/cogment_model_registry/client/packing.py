"""A folder as bytes to upload: a tar archive that is the same on every machine, for every user and at every time.

It is in the PAX format. Each folder precedes its entries, which are sorted by the bytes of their names. It has no times
and owners, and of the permissions only whether a file is executable. Only the headers are in memory; the files are read
when their bytes are needed, by each reader again.
"""

import itertools
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from cogment_model_registry.client.blocks import Source
from cogment_model_registry.errors import InvalidError, quoted, shown
from cogment_model_registry.records.folders import ENTRIES_MAX, FOLDER_FORMAT, FORMAT_KEY, PathNames
from cogment_model_registry.system.paths import expanded

_END = bytes(2 * tarfile.BLOCKSIZE)

_BINARY: int = getattr(os, "O_BINARY", 0)
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
"""The flag that does not wait for a writer, in case a named pipe has replaced a file."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to publish or store as one version, with options that a path does not have.

    Attributes:
        path: The folder.
        links_within: The folder that contains the targets of symbolic links to files; None for the folder itself. Links
            are packed as the files that they point to.
    """

    path: str | os.PathLike[str]
    links_within: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file or a folder in the archive.

    Attributes:
        header: Its header, with the extension of PAX.
        path: The file; empty for a folder.
        size_bytes: The size of the file.
        identity: The device and inode of the file, or what the system has in their place, and when it was changed.
    """

    header: bytes
    path: bytes = b""
    size_bytes: int = 0
    identity: tuple[int, int, int] = (0, 0, 0)


class PackedFolder(Source):
    """The archive of a folder.

    Args:
        folder: The folder.

    Raises:
        InvalidError: The folder has an entry that cannot be packed: see `docs/client.md`.
        OSError: It cannot be read.
    """

    def __init__(self, folder: Folder) -> None:
        self.marks = {FORMAT_KEY: FOLDER_FORMAT}
        root = os.fsencode(expanded(folder.path))
        within = root if folder.links_within is None else os.fsencode(expanded(folder.links_within))
        self._entries = list(_entries(root, os.path.realpath(within)))
        self.size_bytes = len(_END) + sum(
            len(entry.header) + entry.size_bytes + _padding_bytes(entry.size_bytes) for entry in self._entries
        )

    def blocks(self, size_bytes: int, start: int = 0) -> Iterator[memoryview | bytes]:
        """Yield all bytes from a position on, in blocks of at most a size."""
        waiting: list[memoryview | bytes] = []
        waiting_bytes = 0
        for piece in self._pieces(size_bytes, start):
            # Join small files into one block.
            if waiting_bytes + len(piece) > size_bytes:
                yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
                waiting, waiting_bytes = [], 0
            waiting.append(piece)
            waiting_bytes += len(piece)
        if waiting:
            yield b"".join(waiting)

    def _pieces(self, size_bytes: int, start: int) -> Iterator[memoryview | bytes]:
        """Yield the bytes from a position on, in pieces of at most a size."""
        for entry in self._entries:
            for part in (entry.header, None, bytes(_padding_bytes(entry.size_bytes))):
                length = entry.size_bytes if part is None else len(part)
                if start < length:
                    if part is None:
                        yield from _file_pieces(entry, size_bytes, start)
                    else:
                        yield from _cut(part, size_bytes, start)
                start = max(start - length, 0)
        yield from _cut(_END, size_bytes, start)

    def finish(self) -> None:
        """Do nothing: there is no open file."""

    def close(self) -> None:
        """Do nothing: the reader of a file closes it."""


def _cut(data: bytes, size_bytes: int, start: int) -> Iterator[memoryview]:
    view = memoryview(data)
    for position in range(start, len(data), size_bytes):
        yield view[position : position + size_bytes]


def _file_pieces(entry: _Entry, size_bytes: int, start: int) -> Iterator[bytes]:
    """Yield the bytes of a file from a position on; only as many as it had when the folder was listed."""
    with _opened(entry) as file:
        file.seek(start)
        left_bytes = entry.size_bytes - start
        while left_bytes:
            block = file.read(min(size_bytes, left_bytes))
            if not block:
                raise _changed(entry)
            left_bytes -= len(block)
            yield block


def _opened(entry: _Entry) -> IO[bytes]:
    """Return the file that was listed, opened.

    Raises:
        InvalidError: Another file has replaced it, or it was changed.
    """
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | _BINARY | _NO_FOLLOW | _NONBLOCK)
    except FileNotFoundError:
        raise _changed(entry) from None
    file = open(descriptor, "rb", buffering=0)  # noqa: SIM115 # the caller closes it
    status = os.fstat(descriptor)
    if _identity(status) != entry.identity or status.st_size != entry.size_bytes:
        file.close()
        raise _changed(entry)
    return file


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _changed(entry: _Entry) -> InvalidError:
    return InvalidError(f"the file {shown(os.fsdecode(entry.path))} changed while its folder was uploaded")


def _padding_bytes(size_bytes: int) -> int:
    """Return the number of zeros that pad a size to full blocks."""
    return -size_bytes % tarfile.BLOCKSIZE


def header_of(path: str, size_bytes: int, *, is_folder: bool, is_executable: bool) -> bytes:
    """Return the header of a file or a folder."""
    info = tarfile.TarInfo(path)
    info.size = size_bytes
    info.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
    info.mode = 0o755 if is_folder or is_executable else 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _entries(root: bytes, within: bytes) -> Iterator[_Entry]:
    """Yield the entries below a folder, in order."""
    names = PathNames()
    # Paths are bytes, since Linux has no other names; so the locale changes nothing.
    waiting = _children(root, b"")
    while waiting:
        name = waiting.pop()
        path = os.path.join(root, *name.split(b"/"))
        text = _text_of(name)
        status, path = _resolved(path, text, within)
        is_folder = stat.S_ISDIR(status.st_mode)
        names.add(text, is_folder=is_folder)
        if is_folder:
            yield _Entry(header_of(text, 0, is_folder=True, is_executable=False))
            waiting += _children(root, name)
            continue
        # Windows has no such permission, and Python derives one from the name.
        is_executable = os.name != "nt" and bool(status.st_mode & stat.S_IXUSR)
        header = header_of(text, status.st_size, is_folder=False, is_executable=is_executable)
        yield _Entry(header, path, status.st_size, _identity(status))


def _children(root: bytes, folder: bytes) -> list[bytes]:
    """Return the paths in a folder, the last one first."""
    with os.scandir(os.path.join(root, *filter(None, folder.split(b"/")))) as found:
        names = [each.name for each in itertools.islice(found, ENTRIES_MAX + 1)]
    return [folder + b"/" + name if folder else name for name in sorted(names, reverse=True)]


def _text_of(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise InvalidError(f"the path {quoted(name.decode(errors='backslashreplace'))} is not UTF-8") from None


def _resolved(path: bytes, text: str, within: bytes) -> tuple[os.stat_result, bytes]:
    """Return the status and the path of a file or a folder; for a link, of the file that it points to.

    Raises:
        InvalidError: It is of another kind, or the link points to something else.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        try:
            path = os.path.realpath(path, strict=True)
            status = os.stat(path)
        except OSError:
            raise InvalidError(f"{quoted(text)} is a broken link; remove it") from None
        if os.path.commonpath([within, path]) != within:
            raise InvalidError(f"{quoted(text)} is a link to something outside of the folder; copy it into the folder")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidError(
                f"{quoted(text)} is a link to something that is not a file; only links to files can be packed"
            )
    is_junction = getattr(status, "st_reparse_tag", 0) == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    if is_junction or not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise InvalidError(f"{quoted(text)} is neither a file nor a folder, so it cannot be packed; remove it")
    return status, path
