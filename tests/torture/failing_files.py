"""File operations of a disk that fails on command: the n-th operation after arming, once or permanently."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Entry, Files


@dataclass(frozen=True)
class Fault:
    """The operation that fails, and its error.

    Attributes:
        operation: The number of the operation, counted from 1 since the fault was armed.
        error: The errno that it fails with.
        permanent: Whether all operations after it fail too.
    """

    operation: int
    error: int
    permanent: bool


class FailingFiles(Files):
    """Operations on real files, some of which fail while a fault is armed.

    A write that fails has written half of its bytes. A close that fails has closed its descriptor nevertheless, as
    Linux does (close(2)). Any other operation that fails has done nothing. A sync that works does nothing either, since
    no power cut is simulated here.

    Attributes:
        failed: The names of the operations that failed, in order.
        renames_models: Whether directories of models can be renamed, as on most file systems.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.renames_models = True
        self._fault: Fault | None = None
        self._operations = 0
        self._lock = threading.Lock()

    def arm(self, fault: Fault) -> None:
        """Begin to count operations; the fault fires at its operation."""
        with self._lock:
            self._fault, self._operations = fault, 0
            self.failed.clear()

    def disarm(self) -> None:
        """Let all operations work again."""
        with self._lock:
            self._fault = None

    @property
    def a_sync_failed(self) -> bool:
        """Whether a sync is among the operations that failed."""
        return not {"sync_file", "sync_directory"}.isdisjoint(self.failed)

    def _error(self, operation: str) -> OSError | None:
        """Count an operation, and return the error that it fails with, if any."""
        with self._lock:
            fault = self._fault
            if fault is None:
                return None
            self._operations += 1
            due = self._operations >= fault.operation if fault.permanent else self._operations == fault.operation
            if not due:
                return None
            self.failed.append(operation)
            return OSError(fault.error, os.strerror(fault.error))

    def _may_fail(self, operation: str) -> None:
        error = self._error(operation)
        if error is not None:
            raise error

    def open_root(self, path: str) -> int:
        self._may_fail("open_root")
        return super().open_root(path)

    def open_directory(self, parent: int, name: str) -> int:
        self._may_fail("open_directory")
        return super().open_directory(parent, name)

    def make_directory(self, parent: int, name: str) -> None:
        self._may_fail("make_directory")
        super().make_directory(parent, name)

    def list_directory(self, directory: int) -> list[Entry]:
        self._may_fail("list_directory")
        return super().list_directory(directory)

    def open_to_read(self, directory: int, name: str) -> int:
        self._may_fail("open_to_read")
        return super().open_to_read(directory, name)

    def create(self, directory: int, name: str) -> int:
        self._may_fail("create")
        return super().create(directory, name)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._may_fail("close")

    def write(self, file: int, parts: Sequence[memoryview | bytes | bytearray]) -> None:
        error = self._error("write")
        if error is not None:
            data = b"".join(parts)
            super().write(file, [data[: len(data) // 2]])
            raise error
        super().write(file, parts)

    def read(self, file: int, max_bytes: int) -> bytes:
        self._may_fail("read")
        return super().read(file, max_bytes)

    def read_cached(self, file: int, buffer: memoryview) -> int:
        return 0 if self._error("read_cached") else super().read_cached(file, buffer)

    def status(self, file: int) -> os.stat_result:
        self._may_fail("status")
        return super().status(file)

    def status_of(self, directory: int, name: str) -> os.stat_result:
        self._may_fail("status_of")
        return super().status_of(directory, name)

    def status_at(self, path: str) -> os.stat_result:
        self._may_fail("status_at")
        return super().status_at(path)

    def free_bytes(self, directory: int) -> int:
        self._may_fail("free_bytes")
        return super().free_bytes(directory)

    def sync_file(self, file: int) -> None:
        self._may_fail("sync_file")

    def sync_directory(self, directory: int) -> None:
        self._may_fail("sync_directory")

    def rename(self, directory: int, old: str, new: str) -> None:
        self._may_fail("rename")
        if not self.renames_models and not layout.is_temporary(old):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(directory, old, new)

    def link(self, directory: int, old: str, new: str) -> None:
        self._may_fail("link")
        super().link(directory, old, new)

    def remove(self, directory: int, name: str) -> None:
        self._may_fail("remove")
        super().remove(directory, name)

    def remove_directory(self, parent: int, name: str) -> None:
        self._may_fail("remove_directory")
        super().remove_directory(parent, name)

    def remove_tree(self, parent: int, name: str, on_error: Callable[[OSError], None]) -> None:
        error = self._error("remove_tree")
        if error is not None:
            on_error(error)
        else:
            super().remove_tree(parent, name, on_error)


def open_below(directory: Path) -> list[str]:
    """Return what this process has open in a directory, as relative paths; "." is the directory itself."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue  # the descriptor of this listing, or one that was closed in the meantime
        if path == str(directory) or path.startswith(f"{directory}/"):
            found.append(os.path.relpath(path, directory))
    return sorted(found)
