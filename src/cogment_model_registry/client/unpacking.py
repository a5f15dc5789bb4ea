"""Unpacks a version that is a folder: completely and durably, or not at all.

Anybody may have published it, so nothing in the archive is trusted. Only what `packing` writes is accepted: files and
folders in ustar headers, with the path and the size that PAX adds. Paths follow the rules of `records.folders`, and
links and devices are refused, so nothing is written outside of the folder. `tarfile` only decodes single headers; its
reader of archives would use as much memory as an archive declares, and accept formats that are not needed.
"""

import errno
import os
import secrets
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.folders import FOLDER_FORMAT, FORMAT_KEY, PathNames
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.paths import expanded

_BLOCK_BYTES = 1024 * 1024

_PAX_MAX_BYTES = 16 * 1024
"""The largest extension of a header by PAX; a path and a size need far less."""

_NAME_MAX_CHARACTERS = 40
"""How many characters of the folder's name a temporary name has; in any script they fit into 255 bytes."""

_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))

_BINARY: int = getattr(os, "O_BINARY", 0)
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY: int | None = getattr(os, "O_DIRECTORY", None)
"""The flag that opens a directory; None on Windows, which cannot sync one."""


def check_folder(info: VersionInfo) -> None:
    """Check that a version is marked as a folder in its `user_data`.

    Raises:
        InvalidError: It is not.
    """
    if info.user_data.get(FORMAT_KEY) != FOLDER_FORMAT:
        message = f"version {info.number} of model {quoted(info.model_id)} is not a folder; give the path of a file"
        raise InvalidError(message, model_id=info.model_id, version_number=info.number)


def is_path_of_folder(path: str, unpack: bool | None) -> bool:
    """Return whether a version is unpacked to a path; by default if the path can only be that of a folder."""
    if unpack is None:
        return path.endswith(_SEPARATORS) or os.path.isdir(expanded(path))
    return unpack


class NewFolder:
    """A target folder that does not exist yet, or is empty: a version is unpacked next to it, and renamed.

    Close it in any case: one thread may unpack while another one closes it.

    Args:
        path: The folder.

    Attributes:
        archive_path: Where its archive may be kept in the meantime.
    """

    def __init__(self, path: str) -> None:
        self._shown = path
        self._path = os.path.realpath(expanded(path))
        parent, name = os.path.split(self._path)
        self._temporary = os.path.join(parent, f".{name[:_NAME_MAX_CHARACTERS]}.{secrets.token_hex(8)}")
        self.archive_path = self._path + ".tar"
        self._lock = threading.Lock()
        self._is_closed = False

    def check(self) -> None:
        """Check that the target can be created.

        Raises:
            OSError: It is a file, or a folder that is not empty.
        """
        try:
            with os.scandir(self._path) as found:
                if next(found, None) is not None:
                    raise FileExistsError(errno.ENOTEMPTY, "the folder is not empty", self._shown)
        except NotADirectoryError:
            raise FileExistsError(errno.EEXIST, "the path exists, and is not a folder", self._shown) from None
        except FileNotFoundError:
            pass

    def unpack(self, info: VersionInfo, archive: IO[bytes]) -> None:
        """Unpack the archive of a version, whose hash was checked; the folder is durable on return.

        Raises:
            InvalidError: The archive is malformed, or has an entry that is not allowed.
            OSError: The folder cannot be written, or something else was created at its path in the meantime.
        """
        with self._lock:
            os.mkdir(self._temporary)
            try:
                self._fill(info, archive)
                _sync(self._temporary)
                if os.name == "nt" and os.path.isdir(self._path):  # which is replaced nowhere else but there
                    os.rmdir(self._path)
                os.rename(self._temporary, self._path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise FileExistsError(error.errno, error.strerror, self._shown) from None
                raise
            finally:
                shutil.rmtree(self._temporary, ignore_errors=True)  # which is gone if all went well
            _sync(os.path.dirname(self._path))

    def _fill(self, info: VersionInfo, archive: IO[bytes]) -> None:
        names, folders = PathNames(), list[bytes]()
        try:
            for member in _members(archive, info.data_size_bytes):
                names.add(member.path, is_folder=member.is_folder)
                # Bytes, since Linux has no other names; so the locale changes nothing.
                path = os.path.join(os.fsencode(self._temporary), *member.path.encode().split(b"/"))
                if member.is_folder:
                    os.mkdir(path)
                    folders.append(path)
                else:
                    self._write(path, member, archive)
        except InvalidError as error:
            message = f"version {info.number} of model {quoted(info.model_id)} cannot be unpacked: {error.message}"
            raise InvalidError(message, model_id=info.model_id, version_number=info.number) from error
        for path in folders:
            _sync(path)

    def _write(self, path: bytes, member: "_Member", archive: IO[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _NO_FOLLOW
        archive.seek(member.start)
        left_bytes = member.size_bytes
        with open(os.open(path, flags, 0o777 if member.is_executable else 0o666), "wb", buffering=0) as file:
            while left_bytes:
                if self._is_closed:
                    raise ValueError("the folder is closed")
                block = archive.read(min(_BLOCK_BYTES, left_bytes))
                if not block:
                    raise InvalidError("it ends in the middle of a file")
                file.write(block)
                left_bytes -= len(block)
            os.fsync(file.fileno())

    def close(self) -> None:
        """Block until no thread unpacks; a thread of a cancelled caller stops after its current block."""
        self._is_closed = True
        with self._lock:
            pass


@dataclass(frozen=True, slots=True)
class _Member:
    """A file or a folder in an archive.

    Attributes:
        path: Its path in the archive.
        is_folder: Whether it is a folder.
        is_executable: Whether it is a file that can be executed.
        start: The position of its bytes.
        size_bytes: The number of its bytes.
    """

    path: str
    is_folder: bool
    is_executable: bool
    start: int
    size_bytes: int


def _members(archive: IO[bytes], size_bytes: int) -> Iterator[_Member]:
    """Yield the entries of an archive, up to the block of zeros at its end."""
    position = 0
    added: dict[str, str] = {}
    while (info := _header(archive, position, size_bytes)) is not None:
        position += tarfile.BLOCKSIZE
        if info.type == tarfile.XHDTYPE and not added:
            added = _added(archive, position, info.size, size_bytes)
            position += _padded_bytes(info.size)
            continue
        if info.type not in (tarfile.REGTYPE, tarfile.DIRTYPE):
            raise InvalidError(f"{quoted(info.name)} is neither a file nor a folder")
        length = _whole(added.get("size"), info.size)
        path = added.get("path", info.name)
        added = {}
        if not 0 <= length <= size_bytes - position or (length and info.isdir()):
            raise InvalidError(f"{quoted(path)} has {length} bytes, more than are left in the version")
        path = path.removesuffix("/") if info.isdir() else path
        yield _Member(path, info.isdir(), bool(info.mode & 0o100), position, length)
        position += _padded_bytes(length)


def _header(archive: IO[bytes], position: int, size_bytes: int) -> tarfile.TarInfo | None:
    """Return the header at a position; None at the end of the archive."""
    block = _read(archive, position, tarfile.BLOCKSIZE, size_bytes)
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise InvalidError(f"it is not a tar archive: {error}") from None


def _added(archive: IO[bytes], position: int, length: int, size_bytes: int) -> dict[str, str]:
    """Return the extension of the next header by PAX: lines of their length, a name and a value."""
    if not 0 < length <= _PAX_MAX_BYTES:
        raise InvalidError(f"the extension of a header has {length} bytes, which is too many")
    rest, added = _read(archive, position, length, size_bytes), dict[str, str]()
    while rest:
        digits, _, _ = rest.partition(b" ")
        end = _whole(digits.decode("ascii", "replace"), 0)
        line = rest[len(digits) + 1 : end]
        if end > len(rest) or not line.endswith(b"\n"):
            raise InvalidError("a header is malformed")
        name, equals, value = line[:-1].partition(b"=")
        if name not in (b"path", b"size") or not equals:
            raise InvalidError(f"a header has the field {quoted(name.decode(errors='replace'))}, which is not allowed")
        try:
            added[name.decode()] = value.decode()
        except UnicodeDecodeError:
            raise InvalidError("a field of a header is not UTF-8") from None
        rest = rest[end:]
    return added


def _whole(digits: str | None, otherwise: int) -> int:
    """Return a number of a header; the default if there are no digits."""
    if digits is None:
        return otherwise
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise InvalidError(f"a header has {quoted(digits)} where a number is expected")
    return int(digits)


def _read(archive: IO[bytes], position: int, length: int, size_bytes: int) -> bytes:
    archive.seek(position)
    block = archive.read(length)
    if position + length > size_bytes or len(block) < length:
        raise InvalidError("it ends without the block of zeros that marks the end")
    return block


def _padded_bytes(size_bytes: int) -> int:
    return size_bytes + -size_bytes % tarfile.BLOCKSIZE


def _sync(directory: str | bytes) -> None:
    """Make the names in a directory durable."""
    if _DIRECTORY is None:
        return
    descriptor = os.open(directory, os.O_RDONLY | _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
