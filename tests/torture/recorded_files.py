"""File operations that are performed and recorded; `cut_disk` computes what a power cut may leave of them.

Names are recorded with their files, so that a rename differs from a removal and a creation.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.storage.filesystem.files import Files


class ProcessKilled(ModelRegistryError):
    """The process was killed before this operation. Not an OSError, which would be handled."""


@dataclass(eq=False, slots=True)
class File:
    """A file, whatever its names are."""


@dataclass(eq=False, slots=True)
class Directory:
    """A directory, whatever its names are."""


Node = File | Directory
Names = dict[Directory, dict[str, Node]]


@dataclass(frozen=True, eq=False, slots=True)
class NameChange:
    """The entries of a directory change: an old name is removed, a new one is added, or both at once.

    Attributes:
        directory: The directory.
        old: The removed name; empty for none.
        new: The added name; empty for none.
        node: The file or directory with the new name; None without one.
    """

    directory: Directory
    old: str
    new: str
    node: Node | None

    def change(self, entries: dict[str, Node]) -> None:
        """Change the entries of the directory."""
        if self.old:
            entries.pop(self.old, None)
        if self.node is not None:
            entries[self.new] = self.node

    def __str__(self) -> str:
        if self.old and self.new:
            return f"rename of {self.old} to {self.new}"
        return f"removal of {self.old}" if self.old else f"creation of {self.new}"


@dataclass(frozen=True, eq=False, slots=True)
class Write:
    """Bytes are added to the end of a file."""

    file: File
    data: bytes

    def __str__(self) -> str:
        return f"write of {len(self.data)} bytes"


@dataclass(frozen=True, eq=False, slots=True)
class Patch:
    """Bytes are written anywhere in a file, or the file is truncated, as SQLite does.

    Attributes:
        file: The file.
        offset: The position, in bytes.
        data: The bytes; None to truncate the file here.
    """

    file: File
    offset: int
    data: bytes | None

    def apply(self, content: bytes) -> bytes:
        """Return the bytes of the file afterwards."""
        before = content[: self.offset].ljust(self.offset, b"\0")
        return before if self.data is None else before + self.data + content[self.offset + len(self.data) :]

    def __str__(self) -> str:
        return f"end at {self.offset}" if self.data is None else f"write of {len(self.data)} bytes at {self.offset}"


@dataclass(frozen=True, eq=False, slots=True)
class Sync:
    """A file or a directory becomes durable."""

    node: Node

    def __str__(self) -> str:
        return f"sync of a {type(self.node).__name__.lower()}"


Operation = NameChange | Write | Patch | Sync


class RecordedFiles(Files):
    """Performs operations, one at a time, and records those that change something.

    Other file operations, such as the lock of the archive, are not recorded.

    Args:
        place: The recorded directory; its present content is certain.

    Attributes:
        history: The operations so far.
        root: The directory at `place`.
        can_rename: Returns whether the directory of this name can be renamed; at first all can.
    """

    def __init__(self, place: Path) -> None:
        self.history: list[Operation] = []
        self.can_rename: Callable[[str], bool] = lambda _name: True
        self._place = str(place)
        self._one_at_a_time = threading.RLock()
        self._operations_left: int | None = None
        self._at_sync = False
        self._killed = False
        self._missing: list[str] = []
        self._nodes: dict[int, Node] = {}
        self._names: Names = {}
        self._first_bytes: dict[File, bytes] = {}
        self.root = self._adopt_directory(self._place)
        self._first_names = {directory: dict(entries) for directory, entries in self._names.items()}

    def kill_after(self, operations: int, *, at_sync: bool = False) -> None:
        """Kill the process after a number of further operations: later ones are not performed.

        Args:
            operations: The number of further operations.
            at_sync: Whether to continue until the next sync of a directory, which is not made.
        """
        self._operations_left = operations
        self._at_sync = at_sync

    def revive(self) -> None:
        """Let a new process perform the following operations."""
        self._operations_left = None
        self._killed = False

    def first(self) -> tuple[Names, dict[File, bytes]]:
        """Return the entries of the directories and the bytes of the files before the first operation."""
        return {directory: dict(entries) for directory, entries in self._first_names.items()}, dict(self._first_bytes)

    def _adopt_directory(self, path: str) -> Directory:
        directory = Directory()
        entries: dict[str, Node] = {}
        with os.scandir(path) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    entries[entry.name] = self._adopt_directory(entry.path)
                else:
                    entries[entry.name] = file = File()
                    self._nodes[entry.inode()] = file
                    self._first_bytes[file] = Path(entry.path).read_bytes()
        self._nodes[os.stat(path).st_ino] = directory
        self._names[directory] = entries
        return directory

    def _node(self, descriptor: int) -> Node:
        return self._nodes[os.fstat(descriptor).st_ino]

    def _directory(self, descriptor: int) -> Directory:
        node = self._node(descriptor)
        assert isinstance(node, Directory)
        return node

    def _record(self, operation: Operation) -> None:
        self.history.append(operation)
        if isinstance(operation, NameChange):
            operation.change(self._names[operation.directory])
        if self._operations_left is not None:
            self._operations_left -= 1

    def _record_new(self, directory: Directory, name: str, node: Node, status: os.stat_result) -> None:
        self._nodes[status.st_ino] = node
        if isinstance(node, Directory):
            self._names[node] = {}
        self._record(NameChange(directory, "", name, node))

    def _is_killed(self, at_sync: bool = False) -> bool:
        due = self._operations_left is not None and self._operations_left <= 0
        self._killed = self._killed or (due and (at_sync or not self._at_sync))
        return self._killed

    def _require_alive(self, at_sync: bool = False) -> None:
        if self._is_killed(at_sync):
            raise ProcessKilled("the process was killed")

    # Operations of other parts of the process.

    @contextmanager
    def performing(self) -> Iterator[None]:
        """Return a context manager for an operation that is not one of `Files`, and is recorded afterwards."""
        with self._one_at_a_time:
            yield

    def has(self, path: str) -> bool:
        """Return whether a path is in the recorded directory."""
        return path.startswith(f"{self._place}/")

    def file_at(self, path: str) -> File:
        """Return the file at a path; record its creation if it is new."""
        directory, name = self.directory_of(path), os.path.basename(path)
        node = self._names[directory].get(name)
        if not isinstance(node, File):
            node = File()
            self._record_new(directory, name, node, os.stat(path))
        return node

    def directory_of(self, path: str) -> Directory:
        """Return the directory of a path."""
        node = self._nodes[os.stat(os.path.dirname(path)).st_ino]
        assert isinstance(node, Directory)
        return node

    def record(self, operation: Operation) -> None:
        """Record an operation that was made."""
        self._record(operation)

    # The operations of `Files`, recorded.

    def open_root(self, path: str) -> int:
        self._require_alive()
        self._missing.clear()
        missing = os.path.abspath(path)
        while not os.path.isdir(missing):
            self._missing.insert(0, missing)
            missing = os.path.dirname(missing)
        root = super().open_root(path)
        self._record_made_directories()
        return root

    def _record_made_directories(self) -> None:
        """Record the directories that `open_root` has created, which it does without a recorded operation."""
        while self._missing and os.path.isdir(self._missing[0]):
            path = self._missing.pop(0)
            parent = self._nodes[os.stat(os.path.dirname(path)).st_ino]
            assert isinstance(parent, Directory)
            self._record_new(parent, os.path.basename(path), Directory(), os.stat(path))

    def make_directory(self, parent: int, name: str) -> None:
        with self._one_at_a_time:
            self._require_alive()
            super().make_directory(parent, name)
            self._record_new(self._directory(parent), name, Directory(), os.stat(name, dir_fd=parent))

    def create(self, directory: int, name: str) -> int:
        with self._one_at_a_time:
            self._require_alive()
            file = super().create(directory, name)
            self._record_new(self._directory(directory), name, File(), os.fstat(file))
            return file

    def write(self, file: int, parts: Sequence[memoryview | bytes | bytearray]) -> None:
        with self._one_at_a_time:
            self._require_alive()
            super().write(file, parts)
            node = self._node(file)
            assert isinstance(node, File)
            if data := b"".join(parts):
                self._record(Write(node, data))

    def sync_file(self, file: int) -> None:
        with self._one_at_a_time:
            self._require_alive()
            super().sync_file(file)
            self._record(Sync(self._node(file)))

    def sync_directory(self, directory: int) -> None:
        with self._one_at_a_time:
            self._record_made_directories()
            self._require_alive(at_sync=True)
            super().sync_directory(directory)
            # Directories above `place` are not recorded.
            if node := self._nodes.get(os.fstat(directory).st_ino):
                self._record(Sync(node))

    def rename(self, directory: int, old: str, new: str) -> None:
        with self._one_at_a_time:
            self._require_alive()
            node = self._directory(directory)
            if isinstance(self._names[node].get(old), Directory) and not self.can_rename(old):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            super().rename(directory, old, new)
            self._record(NameChange(node, old, new, self._names[node][old]))

    def link(self, directory: int, old: str, new: str) -> None:
        with self._one_at_a_time:
            self._require_alive()
            super().link(directory, old, new)
            node = self._directory(directory)
            self._record(NameChange(node, "", new, self._names[node][old]))

    def remove(self, directory: int, name: str) -> None:
        with self._one_at_a_time:
            if self._is_killed():
                return
            super().remove(directory, name)
            node = self._directory(directory)
            if name in self._names[node]:
                self._record(NameChange(node, name, "", None))

    def remove_directory(self, parent: int, name: str) -> None:
        with self._one_at_a_time:
            self._require_alive()
            super().remove_directory(parent, name)
            self._record(NameChange(self._directory(parent), name, "", None))

    def remove_tree(self, parent: int, name: str, on_error: Callable[[OSError], None]) -> None:
        with self._one_at_a_time:
            if self._is_killed():
                return
            super().remove_tree(parent, name, on_error)
            node = self._directory(parent)
            assert not _exists(parent, name), f"{name} was removed only in part, which no scenario does"
            self._record_removed(node, name)

    def _record_removed(self, parent: Directory, name: str) -> None:
        """Record the removal of an entry, after that of its content; the order of the files does not matter."""
        node = self._names[parent].get(name)
        if isinstance(node, Directory):
            for entry in list(self._names[node]):
                self._record_removed(node, entry)
        if node is not None:
            self._record(NameChange(parent, name, "", None))


def _exists(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
