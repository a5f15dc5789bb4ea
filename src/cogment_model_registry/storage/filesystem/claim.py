"""The owner of an archive directory, and how a command owns one for a while without serving it.

A command that only reads never holds the lock: a server that starts in the meantime, perhaps after a crash, must not
fail because of it. A command that writes takes the lock as a server does, so that no server starts while it runs.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.directory import ArchiveDirectory
from cogment_model_registry.storage.filesystem.files import Files, on_disk
from cogment_model_registry.storage.filesystem.model_files import MODEL_ID_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that owns the archive.

    Attributes:
        process: Its id, as it wrote it.
        since_ns: When it wrote that, which distinguishes it from a later process with the same id.
    """

    process: str
    since_ns: int


class OwnedFiles(Files):
    """Operations whose new files belong to the owner of the archive, also when root runs a command on it.

    Args:
        path: The archive directory.
    """

    def __init__(self, path: str) -> None:
        status = os.stat(path)
        self._owner = (status.st_uid, status.st_gid)

    def create(self, directory: int, name: str) -> int:
        """Return a descriptor of a new file, open for writing."""
        file = super().create(directory, name)
        if os.geteuid() == 0:
            os.fchown(file, *self._owner)
        return file

    def make_directory(self, parent: int, name: str) -> None:
        """Create a directory."""
        super().make_directory(parent, name)
        self.give(parent, name)

    def give(self, directory: int, name: str) -> None:
        """Give a file or a directory to the owner of the archive."""
        if os.geteuid() == 0:
            os.chown(on_disk(name), *self._owner, dir_fd=directory, follow_symlinks=False)


def find_holder(files: Files, root: int) -> Holder | None:
    """Return the owner of an archive, without changing anything; None when nobody owns it.

    Raises:
        OSError: The lock is not a regular file, or cannot be read.
    """
    try:
        lock = files.open_to_read(root, layout.LOCK_NAME)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        process = files.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        return Holder(process, files.status(lock).st_mtime_ns)
    finally:
        files.close(lock)
    return None


def is_held(files: Files, root: int) -> bool:
    """Return whether a process owns an archive, as far as the lock shows."""
    with contextlib.suppress(OSError):
        return find_holder(files, root) is not None
    return False


@contextlib.contextmanager
def opened_root(files: Files, path: str) -> Iterator[int]:
    """Return a context manager with a descriptor of an archive directory."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        files.close(root)


@contextlib.contextmanager
def claimed(path: str, files: OwnedFiles, root: int) -> Iterator[ArchiveDirectory]:
    """Return a context manager that owns an archive; nothing in it is swept.

    Raises:
        StartError: Another process owns it, or it cannot be written.
    """
    archive = ArchiveDirectory(path, MODEL_ID_MAX_BYTES, files, lambda _kind, _seconds: None)
    archive.open(sweep=False)
    try:
        files.give(root, layout.LOCK_NAME)
        yield archive
    finally:
        archive.close()
