"""Lines that callers wait for, in a file a day that only grows: written by a thread, many with one write.

A line that cannot be written is kept, and written first when writing works again; whoever has a choice looks at
`failure` before it adds one. What a failed write left of a line is truncated. Where that fails too, or the process was
killed, the next line begins after a line end, and readers skip what is no whole line.
"""

import asyncio
import contextlib
import datetime
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic

import structlog

from cogment_model_registry.errors import StartError, counted
from cogment_model_registry.system.file_locks import lock_soon

_log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 0.5
"""How soon a write that failed is tried again."""

_SYNC_SECONDS = 1.0
"""How soon lines reach the disk for which nobody waits until they do."""

_LOOK_SECONDS = 0.2
"""How soon a new day, or a file that was moved away, is noticed: a look takes as long as a write."""

_SLOW_SECONDS = 5.0
"""A write that takes longer counts as a failure until it ends: the disk may hang."""

_CLOSE_SECONDS = 5.0
"""How long a stop waits for the lines that are left: a disk that hangs may take any time."""

_LOCK = "lock"
_LOCK_ATTEMPTS = 50
_LOCK_SECONDS = 0.1

_synced = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, slots=True)
class _Line:
    data: bytes
    is_durable: bool
    done: "asyncio.Future[str]"


class DailyLines:
    """A directory with a file of lines for each day, in UTC. Made on the event loop; to be closed.

    Args:
        directory: The directory, which is created if it does not exist, and which no other process may use.
        stem: How the names of the files begin: ``stem_2026-11-22.jsonl``.
        setting: The setting that names the directory, for errors.

    Attributes:
        written: How many lines were written.
        failed: How many lines could not be written at the first try.

    Raises:
        StartError: The directory cannot be used.
    """

    def __init__(self, directory: str, stem: str, setting: str) -> None:
        self._directory = directory
        self._stem = stem
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Line | None] = SimpleQueue()
        self._file = -1
        self._path = ""
        self._day = datetime.date.min
        self._is_cut = False
        self._size_bytes = self._whole_bytes = 0  # of the file, and before what is being written
        self._looks_at = float("-inf")
        self._unwritten: list[_Line] = []
        self._unsynced_since: float | None = None
        self._failure = ""
        self._begun: float | None = None  # when the write under way began
        self.written = self.failed = 0
        self._lock = self._take_lock(setting)
        try:
            self._open()
        except OSError as error:
            os.close(self._lock)
            raise StartError(f"{setting} {directory} cannot be written: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name=f"log {stem}", daemon=True)
        self._thread.start()

    def _take_lock(self, setting: str) -> int:
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            lock = os.open(os.path.join(self._directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
            raise StartError(f"{setting} {self._directory} cannot be written: {reason}") from None
        if not lock_soon(lock, _LOCK_ATTEMPTS, _LOCK_SECONDS):
            os.close(lock)
            raise StartError(f"{setting} {self._directory} is in use by another server")
        return lock

    @property
    def failure(self) -> str:
        """Why lines cannot be written; empty while they can."""
        begun = self._begun
        if begun is not None and monotonic() - begun > _SLOW_SECONDS:
            return f"writing takes more than {counted(_SLOW_SECONDS, 'second')}"
        return self._failure

    def append(self, line: bytes, *, is_durable: bool) -> "asyncio.Future[str]":
        """Add a line, in the order of these calls.

        Args:
            line: The line, without its end.
            is_durable: Whether it must outlive a power failure when the future is done.

        Returns:
            What becomes an empty text when the line is written, or says why it could not be.
        """
        done = self._loop.create_future()
        self._queue.put(_Line(line, is_durable, done))
        return done

    async def close(self) -> None:
        """Write what is left, as far as that works, and end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, _CLOSE_SECONDS)

    # On the thread.

    def _run(self) -> None:
        is_stopped = False
        while not is_stopped:
            lines, is_stopped = self._take()
            reason = self._try_to_write([*self._unwritten, *lines])
            if lines:
                self._report(lines, reason)
        for line in self._unwritten:
            _log.error("line lost", of=self._stem, line=line.data.decode())
        self._close()
        os.close(self._lock)

    def _take(self) -> tuple[list[_Line], bool]:
        """Wait for lines, or until something else is to be done; return all lines, and whether to stop."""
        lines: list[_Line] = []
        with contextlib.suppress(Empty):
            line = self._queue.get(timeout=self._patience_seconds())
            while line is not None:
                lines.append(line)
                line = self._queue.get_nowait()
            return lines, True
        return lines, False

    def _patience_seconds(self) -> float | None:
        if self._failure:
            return _RETRY_SECONDS
        if self._unsynced_since is not None:
            return max(0.0, self._unsynced_since + _SYNC_SECONDS - monotonic())
        return None

    def _try_to_write(self, lines: Sequence[_Line]) -> str:
        """Write lines and sync what is to be synced; return why that failed, or nothing."""
        self._begun = monotonic()
        try:
            self._write(lines)
        except OSError as error:
            self._close()
            reason = error.strerror or str(error)
            self.failed += len(lines) - len(self._unwritten)
            self._unwritten = [*lines]
            if not self._failure:
                _log.error("lines cannot be written", of=self._stem, directory=self._directory, reason=reason)
            self._failure = reason
            return reason
        finally:
            self._begun = None
        self.written += len(lines)
        self._unwritten.clear()
        if self._failure:
            _log.info("lines can be written again", of=self._stem)
        self._failure = ""
        return ""

    def _write(self, lines: Sequence[_Line]) -> None:
        now = monotonic()
        if self._file < 0 or now >= self._looks_at:
            self._look(now)
        try:
            if lines:
                self._write_whole(b"".join([b"%s\n" % line.data for line in lines]))
                self._unsynced_since = self._unsynced_since or now
            is_due = self._unsynced_since is not None and now - self._unsynced_since >= _SYNC_SECONDS
            if is_due or any(line.is_durable for line in lines):
                _synced(self._file)
                self._unsynced_since = None
        except OSError:
            try:
                # So that lines are not there twice when they are written again.
                os.ftruncate(self._file, self._whole_bytes)
            except OSError:
                self._is_cut = True
            raise
        self._whole_bytes = self._size_bytes

    def _write_whole(self, data: bytes) -> None:
        rest = memoryview(b"\n" + data if self._is_cut else data)
        while rest:
            written = os.write(self._file, rest)
            self._size_bytes += written
            rest = rest[written:]
        self._is_cut = False

    def _look(self, now: float) -> None:
        """Open the file of today if it is another one, or if the open one was moved away."""
        if self._file < 0 or datetime.datetime.now(datetime.UTC).date() > self._day or not self._is_in_place():
            self._open()
        self._looks_at = now + _LOOK_SECONDS

    def _is_in_place(self) -> bool:
        """Return whether the open file still has its name."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            return False

    def _open(self) -> None:
        """Open the file of today, or of the last day that was written if the clock was set back."""
        self._close()
        self._day = max(self._day, datetime.datetime.now(datetime.UTC).date())
        self._path = os.path.join(self._directory, f"{self._stem}_{self._day.isoformat()}.jsonl")
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size_bytes = self._size_bytes = self._whole_bytes = os.fstat(self._file).st_size
        if not size_bytes:
            self._sync_directory()
        self._is_cut = size_bytes > 0 and os.pread(self._file, 1, size_bytes - 1) != b"\n"

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)

    def _report(self, lines: Sequence[_Line], reason: str) -> None:
        """Tell those who wait for lines."""

        def report() -> None:
            for line in lines:
                if not line.done.done():  # whoever waited may have given up
                    line.done.set_result(reason)

        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(report)
