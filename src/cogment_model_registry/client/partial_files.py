"""Downloads that another process can go on with: what was received stays next to the target until that is complete.

Next to `FILE` are `FILE.cogment-partial`, with bytes of the version at their positions, and its journal: which version
it is, as one line of JSON, and then one line for each range of bytes, which is written once these are synced. So the
journal never claims bytes that a crash could take away, and a line that a crash cut off only costs a range. Whoever
downloads holds a lock on the journal, which ends with the process.
"""

import contextlib
import errno
import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import quoted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.file_locks import lock_soon
from cogment_model_registry.system.replacement import Replacement

_log = logging.getLogger(__name__)

SUFFIX = ".cogment-partial"
JOURNAL_SUFFIX = ".journal"
"""What the names of the two files add: the second one to that of the first."""

_SYNC_BYTES = 2 * 1024 * 1024
"""From how many bytes on a thread syncs them, and records them."""

_UNSYNCED_BYTES = 8 * 1024 * 1024
"""How many bytes may wait for that. They, and what is on its way, are all that is received again after a crash, and
together less than the 16 MiB that docs/client.md promises."""

_OPEN_ATTEMPTS = 10
"""How often to open a journal again that another process finished with, and removed, before it was locked here."""

_BINARY: int = getattr(os, "O_BINARY", 0)
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True, slots=True)
class Started:
    """What a journal says.

    Attributes:
        model_id: The model of the version.
        number: Its number.
        data_hash: Its hash.
        data_size_bytes: Its size.
        present: The positions of the bytes that are there and synced, in order and disjoint.
    """

    model_id: str
    number: int
    data_hash: str
    data_size_bytes: int
    present: Sequence[range] = field(default=(), compare=False)

    @classmethod
    def of(cls, info: VersionInfo) -> "Started":
        """Return what the journal of a version says at first."""
        return cls(info.model_id, info.number, info.data_hash, info.data_size_bytes)

    def line(self) -> bytes:
        """Return its first line."""
        words = {name: getattr(self, name) for name in ("model_id", "number", "data_hash", "data_size_bytes")}
        return json.dumps(words).encode() + b"\n"


class PartialFile:
    """A file that is received in parts, and keeps them when it is closed without a commit.

    Open it first, and close it in any case; one thread may open it while another one closes it.

    Args:
        path: The file, which is replaced as a whole by `commit`.
    """

    def __init__(self, path: str) -> None:
        self._replacement = Replacement(path, suffix=SUFFIX)
        self._path = path
        self._journal = _Journal(self._replacement.temporary_path + JOURNAL_SUFFIX)
        self._opening = threading.Lock()
        self._file: BinaryIO | None = None
        self._news = threading.Condition()
        self._unsynced: list[range] = []
        self._unsynced_bytes = 0
        self._is_syncing = False
        self._is_closed = False
        self._failure: OSError | None = None

    def open(self) -> BinaryIO:
        """Open it, or begin it, and return `file`.

        Raises:
            BlockingIOError: Another download to this file is under way.
            OSError: The directory takes no file, or the name belongs to something that is not a regular file.
            ValueError: It is closed.
        """
        with self._opening:
            if self._is_closed:
                raise ValueError("the partial file is closed")
            try:
                is_ours = self._journal.open()
            except OSError as error:
                raise type(error)(error.errno, error.strerror, self._path) from None  # the caller knows this name
            if not is_ours:
                raise BlockingIOError(errno.EAGAIN, "another download to this file is under way", self._path)
            self._journal.read()
            self._file = self._replacement.open()
            return self._file

    @property
    def file(self) -> BinaryIO:
        """The bytes at their positions."""
        if self._file is None:
            raise ValueError("the partial file is not open")
        return self._file

    def begin(self, info: VersionInfo) -> Sequence[range]:
        """Begin with a version, or go on with it; the bytes of any other version are thrown away.

        Returns:
            The positions of the bytes that are there, in order and disjoint.
        """
        self._forget_unsynced()
        before = self._journal.read()
        if before == Started.of(info):
            size_bytes = os.fstat(self.file.fileno()).st_size
            return [each for each in before.present if each.stop <= size_bytes]
        if before is not None and before.present:
            found = f"version {before.number} of model {quoted(before.model_id)}"
            wanted = f"version {info.number} of model {quoted(info.model_id)}"
            _log.warning("the partial download is of %s, and %s is downloaded from its beginning", found, wanted)
        self.file.truncate(0)
        self._journal.begin(Started.of(info))
        return []

    def give_up(self) -> None:
        """Forget what was received: it is not that of the version, or no other process could go on with it."""
        self._forget_unsynced()
        self._journal.clear()

    def _forget_unsynced(self) -> None:
        with self._news:
            self._news.wait_for(lambda: not self._is_syncing)
            self._unsynced, self._unsynced_bytes = [], 0

    def note(self, written: range) -> None:
        """Record the positions of bytes that were written, once they are synced; blocks while many wait for that.

        Raises:
            OSError: Syncing failed.
        """
        with self._news:
            self._unsynced.append(written)
            self._unsynced_bytes += len(written)
            if self._unsynced_bytes >= _SYNC_BYTES and not self._is_syncing and not self._is_closed:
                self._is_syncing = True
                submit(self._sync)
            self._news.wait_for(lambda: self._unsynced_bytes <= _UNSYNCED_BYTES or self._failure or self._is_closed)
            if self._failure is not None:
                raise self._failure

    def _sync(self) -> None:
        """Sync and record until little is left."""
        while (positions := self._next_unsynced()) is not None:
            try:
                self.file.flush()
                os.fsync(self.file.fileno())
                self._journal.record(merged(positions))
            except OSError as error:
                self._failure = error
            with self._news:
                self._unsynced_bytes -= sum(map(len, positions))
                self._news.notify_all()

    def _next_unsynced(self) -> list[range] | None:
        with self._news:
            self._is_syncing = self._unsynced_bytes >= _SYNC_BYTES and not self._failure and not self._is_closed
            if not self._is_syncing:
                self._news.notify_all()
                return None
            positions, self._unsynced = self._unsynced, []
            return positions

    def commit(self) -> None:
        """Give the file its name: durable on return.

        Raises:
            OSError: The file could not be written, renamed or made durable.
        """
        self._stop_syncing()
        self._replacement.commit()
        self._journal.remove()

    def close(self) -> None:
        """Close it: what was recorded stays, unless it was committed or given up. Waits for the sync of a few MiB."""
        with self._opening:
            self._stop_syncing()
            self._replacement.close()
            if self._journal.is_open and not self._journal.has_version:
                with contextlib.suppress(OSError):
                    os.unlink(self._replacement.temporary_path)
                self._journal.remove()
            self._journal.close()

    def _stop_syncing(self) -> None:
        with self._news:
            self._is_closed = True
            self._news.notify_all()
            self._news.wait_for(lambda: not self._is_syncing)


class _Journal:
    """The journal of a partial file, locked while it is open.

    Args:
        path: The file.

    Attributes:
        has_version: Whether it names a version.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self.has_version = False

    def open(self) -> bool:
        """Open and lock it, and return whether nobody else has locked it."""
        for _ in range(_OPEN_ATTEMPTS):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _BINARY | _NO_FOLLOW, 0o666)
            file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 # see `close`
            if lock_soon(descriptor, attempts=1, pause_seconds=0) and self._is_there(descriptor):
                self._file = file
                return True
            file.close()
        return False

    def _is_there(self, descriptor: int) -> bool:
        """Return whether it was not removed before it was locked."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        return False

    @property
    def is_open(self) -> bool:
        """Whether it is open, and locked."""
        return self._file is not None and not self._file.closed

    @property
    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the journal is not open")
        return self._file

    def read(self) -> Started | None:
        """Return what it says; None if it names no version. What follows is written after that."""
        self._opened.seek(0)
        first, *lines = self._opened.read().split(b"\n")
        started = _started(first) if lines else None
        good_bytes, present = len(first) + 1, list[range]()
        for line in lines[:-1]:  # the last one is empty, or was cut off
            if started is None or (positions := _positions(line, started.data_size_bytes)) is None:
                break
            present.append(positions)
            good_bytes += len(line) + 1
        self.has_version = started is not None
        if started is None:
            return None
        self._opened.truncate(good_bytes)
        self._opened.seek(good_bytes)
        return Started(started.model_id, started.number, started.data_hash, started.data_size_bytes, merged(present))

    def begin(self, started: Started) -> None:
        """Replace what it says, durably."""
        self.clear()
        self._opened.write(started.line())
        os.fsync(self._opened.fileno())
        self.has_version = True

    def record(self, present: Iterable[range]) -> None:
        """Add ranges that are there."""
        self._opened.write(b"".join(b"[%d, %d]\n" % (each.start, each.stop) for each in present))

    def clear(self) -> None:
        """Let it name no version."""
        self.has_version = False
        self._opened.seek(0)
        self._opened.truncate()

    def remove(self) -> None:
        """Remove it, and release the lock."""
        try:
            os.unlink(self._path)
        except PermissionError:  # Windows removes no file that is open
            self.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()


def _started(line: bytes) -> Started | None:
    """Return what the first line of a journal says; None if it is malformed. Texts of other types match no version."""
    try:
        words = Started(**json.loads(line))
    except (ValueError, TypeError):
        return None
    return words if _is_size(words.number) and _is_size(words.data_size_bytes) else None


def _positions(line: bytes, size_bytes: int) -> range | None:
    """Return what another line of a journal says; None if it is malformed."""
    try:
        start, stop = json.loads(line)
    except (ValueError, TypeError):
        return None
    return range(start, stop) if _is_size(start) and _is_size(stop) and start < stop <= size_bytes else None


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def merged(positions: Iterable[range]) -> list[range]:
    """Return positions in order, with those joined that touch or overlap."""
    joined: list[range] = []
    for each in sorted(positions, key=lambda each: each.start):
        if joined and each.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, each.stop))
        else:
            joined.append(each)
    return joined
