"""The hold of a process on an archive directory: the open directory, and its lock.

Files are reached through the open directory, not through its path. So a directory that is moved away would keep its
server, while another server could start on a copy at the path, and each would miss what the other one stores.
`Hold.check` notices this.
"""

import contextlib
import errno
import os
import threading

import structlog

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.model_files import close_quietly
from cogment_model_registry.system.file_locks import lock_soon

_log = structlog.stdlib.get_logger(__name__)

_LOCK_ATTEMPTS = 10
_LOCK_SECONDS = 0.02

_NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}


class Hold:
    """A hold on an archive directory. Errors about the lock are `StartError`, others `OSError`.

    Args:
        path: The directory.
        files: The file operations.
        read_only: Whether nothing is written, not even a lock: others may have the directory open too.

    Attributes:
        root: Descriptor of the directory; -1 while it is not held.
        loss: Why the path does not lead to the held directory and lock, and what to do; empty while it does.
    """

    def __init__(self, path: str, files: Files, *, read_only: bool) -> None:
        self._path = os.path.abspath(path)
        self._shown_path = path
        self._files = files
        self._read_only = read_only
        self._lock = -1
        self._checking = threading.Lock()
        self.root = -1
        self.loss = ""

    def take(self) -> None:
        """Open the directory and lock it; create it if it does not exist, unless nothing is to be written."""
        if self._read_only:
            self.root = self._files.open_existing_root(self._path)
        else:
            self.root = self._files.open_root(self._path)
            self._lock = self._take_lock()

    def _take_lock(self) -> int:
        """Return the descriptor of the lock file, which holds the lock until it is closed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(layout.LOCK_NAME, flags, 0o640, dir_fd=self.root)
        try:
            # Try more than once: a process that looks up the owner holds the lock for a moment.
            if not lock_soon(lock, _LOCK_ATTEMPTS, _LOCK_SECONDS):
                holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
                raise StartError(f"archive directory {self._shown_path} is in use by process {holder}")
            if os.fstat(lock).st_nlink > 1:
                # A file elsewhere has this inode too, as in a backup made of hard links: leave that file alone.
                os.unlink(layout.LOCK_NAME, dir_fd=self.root)
                os.close(lock)
                return self._take_lock()
            os.ftruncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
        except StartError:
            os.close(lock)
            raise
        return lock

    def release(self) -> None:
        """Release the directory."""
        for descriptor in (self._lock, self.root):
            if descriptor >= 0:
                close_quietly(self._files, descriptor)
        self._lock = self.root = -1
        self.loss = ""

    def check(self) -> None:
        """Compare what the path leads to with what is held, set `loss`, and log a change of it.

        An error that does not say where the directory is changes nothing. A lock that was removed is taken again,
        which fails if another process was faster.
        """
        with self._checking:
            if self.root < 0:
                return
            loss = self._find_loss()
            if loss and not self.loss:
                _log.error("archive stopped taking writes", archive_dir=self._path, reason=loss)
            elif self.loss and not loss:
                _log.info("archive takes writes again: its directory is back", archive_dir=self._path)
            self.loss = loss

    def _find_loss(self) -> str:
        try:
            found = self._files.status_at(self._path)
            if not os.path.samestat(found, self._files.status(self.root)):
                return "another directory is at its path: move its own one back, or restart the server"
            return "" if self._read_only else self._find_loss_of_lock()
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return "its directory is not at its path any more: move it back, or restart the server"
            return self.loss

    def _find_loss_of_lock(self) -> str:
        try:
            found = self._files.status_of(self.root, layout.LOCK_NAME)
        except FileNotFoundError:
            with contextlib.suppress(StartError):
                lock = self._take_lock()
                os.close(self._lock)
                self._lock = lock
                return ""
        else:
            if os.path.samestat(found, self._files.status(self._lock)):
                return ""
        return "its lock was replaced, so another process may have written to it: restart the server"
