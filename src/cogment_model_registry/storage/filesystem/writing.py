"""Durable writes below an archive directory, by blocking calls.

A sync that fails is not repeated, since the kernel may have dropped the bytes and report success the next time
(https://wiki.postgresql.org/wiki/Fsync_Errors). Nothing is written any more until the next start.
"""

import contextlib
import os
import time
from collections.abc import Callable

import structlog

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.model_files import close_quietly

_log = structlog.stdlib.get_logger(__name__)


class DurableWriter:
    """Writes files whole and durably, or not at all. Errors are `OSError`.

    Args:
        files: The file operations.
        observe_sync: Called after each sync, with its kind (`file`, `directory`) and the seconds that it took.

    Attributes:
        failure: Why nothing is written any more; empty while it is.
    """

    def __init__(self, files: Files, observe_sync: Callable[[str, float], None]) -> None:
        self._files = files
        self._observe_sync = observe_sync
        self.failure = ""
        self._left: list[tuple[int, str]] = []

    def require_writable(self) -> None:
        """Refuse to write after a failed sync.

        Raises:
            UnavailableError: A sync failed.
        """
        if self.failure:
            raise UnavailableError(f"the archive takes no writes until a restart: {self.failure}")

    def write(self, directory: int, name: str, text: bytes) -> None:
        """Write a file whole or not at all: temporary, synced, renamed, its directory synced."""
        self._replace(directory, name, text, sync=True)
        self.sync_directory(directory)

    def restore(self, directory: int, name: str, text: bytes) -> None:
        """Put the former text of a file back after a sync of its directory failed; no sync is tried."""
        with contextlib.suppress(OSError):
            self._replace(directory, name, text, sync=False)

    def _replace(self, directory: int, name: str, text: bytes, *, sync: bool) -> None:
        temporary = layout.temporary_name()
        file = self._files.create(directory, temporary)
        try:
            try:
                self._files.write(file, [text])
                if sync:
                    self.sync_file(file)
            finally:
                close_quietly(self._files, file)
            self._files.rename(directory, temporary, name)
        except BaseException:
            self.remove(directory, temporary)
            raise

    def remove(self, directory: int, name: str) -> None:
        """Remove a file that this process made; if that fails, try again with the next write."""
        try:
            self._files.remove(directory, name)
        except OSError:
            with contextlib.suppress(OSError):
                self._left.append((os.dup(directory), name))

    def remove_what_was_left(self) -> None:
        """Try again to remove the files that could not be removed before."""
        left, self._left = self._left, []
        for directory, name in left:
            self.remove(directory, name)
            close_quietly(self._files, directory)

    def sync_file(self, file: int) -> None:
        """Make a file durable; a failure ends all writing."""
        self._sync("file", self._files.sync_file, file)

    def sync_directory(self, directory: int) -> None:
        """Make the names in a directory durable; a failure ends all writing."""
        self._sync("directory", self._files.sync_directory, directory)

    def _sync(self, kind: str, sync: Callable[[int], None], descriptor: int) -> None:
        started = time.perf_counter()
        try:
            sync(descriptor)
        except OSError as error:
            self.failure = f"a sync failed: {error.strerror}"
            _log.error("archive stopped taking writes until a restart", reason=self.failure)
            raise
        self._observe_sync(kind, time.perf_counter() - started)

    def close(self) -> None:
        """Give up the files that could not be removed."""
        for directory, _ in self._left:
            close_quietly(self._files, directory)
        self._left.clear()
