"""A cache of versions' bytes on the local disk, by their hash; shared by all processes that name its directory.

Every file is checked against its hash before use, and removed if it does not match. A file gets its name by a rename
when it is complete, and a file that is removed while it is read stays readable. So no process waits for another one,
except for a moment to remove the least recently used files.
"""

import base64
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.file_locks import lock_soon
from cogment_model_registry.system.paths import expanded

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1024 * 1024
_TEMPORARY = ".new-"
_ABANDONED_SECONDS = 24 * 3600.0
"""The process of a temporary file this old has ended."""

_LOCK_ATTEMPTS = 100
_LOCK_SECONDS = 0.01
"""How often to ask for the lock, and the pause in between: its holder only removes a few files."""

_NAME_CHARACTERS = 64
"""The length of a SHA-256 in hexadecimal digits."""

DEFAULT_MAX_BYTES = 10 * 1024**3


class Cache:
    """A cache in a directory.

    Args:
        directory: The directory; created if it does not exist.
        max_bytes: The size that its files may have together.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._directory = Path(expanded(directory))
        self._max_bytes = max_bytes

    def copy_to(self, info: VersionInfo, file: IO[bytes]) -> bool:
        """Replace the contents of a file by the bytes of a version, if the cache has them.

        Returns:
            Whether it had them, and they matched their hash. If not, the file is empty.
        """
        _empty(file)
        path = self._path(info)
        if path is None:
            return False
        payload_hash = PayloadHash()
        try:
            with open(path, "rb", buffering=0) as cached:
                if os.fstat(cached.fileno()).st_size == info.data_size_bytes:
                    while block := cached.read(_BLOCK_BYTES):
                        payload_hash.update([block])
                        file.write(block)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _log.warning("reading the cache failed: %s", error)
            _empty(file)
            return False
        if payload_hash.digest_text() != info.data_hash:
            _log.warning("damaged bytes of version %d of %r found in the cache", info.number, info.model_id)
            _empty(file)
            with contextlib.suppress(OSError):  # the directory may belong to another user
                path.unlink(missing_ok=True)
            return False
        with contextlib.suppress(OSError):
            os.utime(path)  # it is now the most recently used one
        return True

    def keep(self, info: VersionInfo, source: IO[bytes]) -> None:
        """Add the bytes of a version, which must match its hash; errors are logged and not raised.

        Args:
            info: The version.
            source: A file with its bytes and nothing else.
        """
        path = self._path(info)
        if path is None or info.data_size_bytes > self._max_bytes:
            return
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    source.seek(0)
                    shutil.copyfileobj(source, file, _BLOCK_BYTES)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._shrink()
        except OSError as error:
            _log.warning("writing the cache failed: %s", error)

    def _path(self, info: VersionInfo) -> Path | None:
        """Return the path of the bytes of a version; None if its hash is malformed."""
        try:
            name = base64.b64decode(info.data_hash, validate=True).hex()
        except ValueError:
            return None
        return self._directory / name[:2] / name if len(name) == _NAME_CHARACTERS else None

    def _shrink(self) -> None:
        """Remove the least recently used files until the rest fits."""
        with open(self._directory / "lock", "ab") as lock:
            if not lock_soon(lock.fileno(), _LOCK_ATTEMPTS, _LOCK_SECONDS):
                return  # the next process will
            files = sorted(self._files(), key=lambda file: file[0])
            total_bytes = sum(size_bytes for _used, size_bytes, _path in files)
            for _used, size_bytes, path in files:
                if total_bytes <= self._max_bytes:
                    break
                path.unlink(missing_ok=True)
                total_bytes -= size_bytes

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield the time of use, the size and the path of each file; remove abandoned temporary files."""
        for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if not path.name.startswith(_TEMPORARY):
                    yield status.st_mtime, status.st_size, path
                elif time.time() - status.st_mtime > _ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()
