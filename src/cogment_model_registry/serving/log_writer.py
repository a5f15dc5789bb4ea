"""The thread that writes the log, so that nothing else waits for a pipe that nobody reads, or for a disk that hangs.

Lines wait in a queue of limited size. Lines that find no room there are dropped, and one line in their place says how
many. Lines that cannot be written are counted in the same way; those of a file go to standard error in the meantime.
"""

import contextlib
import datetime
import logging
import os
import select
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from queue import SimpleQueue
from typing import TypeAlias

ERRORS = "backslashreplace"
"""How to write what the encoding of the log lacks: a name on disk may be any bytes."""

QUEUE_MAX_BYTES = 4 * 1024 * 1024
"""The size of the lines that may wait: some 20,000 of them."""

_CLOSE_SECONDS = 2.0
"""How long a stop waits for the lines that are left: what takes longer may take any time."""

_STANDARD_OUTPUT = 1
_STANDARD_ERROR = 2


class Output(ABC):
    """Where the log goes. Only the thread that writes uses it.

    Attributes:
        name: What messages call it.
        has_substitute: Whether its lines go to standard error while it cannot be written.
    """

    name: str
    has_substitute: bool

    def __init__(self) -> None:
        self._is_cut = False

    @abstractmethod
    def write(self, lines: bytes, day: datetime.date) -> None:
        """Write whole lines of a day.

        Raises:
            OSError: Not all of them could be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Close what this opened; the next write opens it again."""

    def _write_to(self, file: int, lines: bytes) -> None:
        """Write to a descriptor; a line that an earlier failure has cut is ended first."""
        data = b"\n" + lines if self._is_cut else lines
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(file, rest) :]
                except BlockingIOError:  # another process that has the same pipe made it non-blocking
                    poll = select.poll()
                    poll.register(file, select.POLLOUT)
                    poll.poll()
        finally:
            written = data[: len(data) - len(rest)]
            self._is_cut = self._is_cut if not written else not written.endswith(b"\n")


class StandardOutput(Output):
    """Standard output; when its reader is gone, the server continues without a log."""

    name = "standard output"
    has_substitute = False

    def write(self, lines: bytes, day: datetime.date) -> None:
        """Write lines, whatever their day."""
        self._write_to(_STANDARD_OUTPUT, lines)

    def close(self) -> None:
        """Leave it open: it is the process's."""


class DailyFile(Output):
    """A file whose name has the local date; each day has its own.

    A file that was moved away or removed is created again, with its directory, before the next line.

    Args:
        base_name: The path of the file, to whose stem the date is added: ``x/cogment.log`` becomes
            ``x/cogment_2026-11-22.log``. Its directory is created if it does not exist.

    Raises:
        OSError: The file of today cannot be opened.
    """

    has_substitute = True

    def __init__(self, base_name: str) -> None:
        super().__init__()
        self._stem, self._suffix = os.path.splitext(base_name)
        self.name = f"log file {base_name}"
        self._path = ""
        self._file = -1
        self._open(self._path_of(datetime.date.today()))

    def _path_of(self, day: datetime.date) -> str:
        return f"{self._stem}_{day.isoformat()}{self._suffix}"

    def write(self, lines: bytes, day: datetime.date) -> None:
        """Write lines to the file of their day."""
        path = self._path_of(day)
        try:
            if self._file < 0 or path != self._path or not self._is_in_place():
                self._open(path)
            self._write_to(self._file, lines)
        except OSError:
            self.close()
            raise

    def _is_in_place(self) -> bool:
        """Return whether the open file still has its name."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            return False

    def _open(self, path: str) -> None:
        self.close()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._path = path
        self._is_cut = self._is_cut and os.fstat(self._file).st_size > 0

    def close(self) -> None:
        """Close the file; the next write opens the one that has its name then."""
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)


@dataclass(frozen=True, slots=True)
class _Line:
    day: datetime.date
    data: bytes


@dataclass(eq=False, slots=True)
class _Gap:
    """The place of lines that were dropped."""

    lines: int = 0


class _Order(Enum):
    """What the thread is to do between two lines."""

    REOPEN = auto()
    STOP = auto()


_Item: TypeAlias = "_Line | _Gap | _Order"


class ThreadHandler(logging.Handler):
    """Formats records where they are logged, and writes them on a thread.

    Args:
        output: Where the lines go.
        encoding: Their encoding.
        max_bytes: The size of the lines that may wait.
    """

    def __init__(self, output: Output, encoding: str = "utf-8", max_bytes: int = QUEUE_MAX_BYTES) -> None:
        super().__init__()
        self._output = output
        self._encoding = encoding
        self._max_bytes = max_bytes
        # A signal handler that logs may interrupt a line that is being queued. The handler's own lock would not do:
        # `logging.shutdown` holds it while it closes the handler.
        self._queueing = threading.RLock()
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._put_bytes = 0  # changed by those who log
        self._done_bytes = 0  # changed by the thread
        self._gap: _Gap | None = None
        self._missing_lines = 0
        self._missing_reason = ""
        # Nothing waits for it at the end of the process but `close`, and that not for long.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of lines wait to be written."""
        return self._put_bytes - self._done_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record; drop it if too much waits already."""
        try:
            line = _Line(datetime.date.fromtimestamp(record.created), self._line(record))
        except Exception:
            self.handleError(record)
            return
        size_bytes = len(line.data)
        with self._queueing:
            if self.waiting_bytes + size_bytes <= self._max_bytes:
                self._put_bytes += size_bytes
                self._gap = None
                self._queue.put(line)
                return
            if self._gap is None:
                self._gap = _Gap()
                self._queue.put(self._gap)
            self._gap.lines += 1

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, ERRORS)

    def reopen(self) -> None:
        """Let the next line go to the file that has the name of the log then."""
        self._queue.put(_Order.REOPEN)

    def close(self) -> None:
        """Write what waits, as far as that is soon done, and end the thread."""
        self._queue.put(_Order.STOP)
        self._thread.join(_CLOSE_SECONDS)
        super().close()

    # On the thread.

    def _run(self) -> None:
        is_stopped = False
        while not is_stopped:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            for day, group in groupby(items, lambda item: item.day if isinstance(item, _Line) else None):
                if day is not None:
                    self._write_lines([item.data for item in group if isinstance(item, _Line)], day)
                    continue
                for item in group:
                    if isinstance(item, _Gap):
                        self._write_gap(item)
                    elif item is _Order.REOPEN:
                        self._output.close()
                    else:
                        is_stopped = True
        if self._missing_lines:
            self._write(b"", datetime.date.today(), lines=0)
        self._output.close()

    def _write_lines(self, lines: list[bytes], day: datetime.date) -> None:
        data = b"".join(lines)
        self._write(data, day, len(lines))
        self._done_bytes += len(data)

    def _write_gap(self, gap: _Gap) -> None:
        with self._queueing:
            if self._gap is gap:
                self._gap = None  # later lines are not part of it
        note = self._note("log lines dropped here", gap.lines, "they came faster than they could be written")
        self._write(note, datetime.date.today(), gap.lines)

    def _write(self, data: bytes, day: datetime.date, lines: int) -> None:
        """Write data that stands for some lines, after a note on those that could not be written before it."""
        try:
            if self._missing_lines:
                self._output.write(self._note("log lines missing here", self._missing_lines, self._missing_reason), day)
                self._missing_lines = 0
            self._output.write(data, day)
        except OSError as error:
            self._substitute(data, lines, error)

    def _substitute(self, data: bytes, lines: int, error: OSError) -> None:
        """Count lines that could not be written, and write them to standard error if they are those of a file."""
        reason = f"{self._output.name} cannot be written: {error.strerror}"
        rest = "; until it can, the log goes to standard error" if self._output.has_substitute else ""
        with contextlib.suppress(OSError):
            # Whoever has stopped reading needs no word of it.
            if not self._missing_lines and not isinstance(error, BrokenPipeError):
                os.write(_STANDARD_ERROR, f"error: {reason}{rest}\n".encode(self._encoding, ERRORS))
            if self._output.has_substitute:
                os.write(_STANDARD_ERROR, data)
        self._missing_lines += lines
        self._missing_reason = reason

    def _note(self, event: str, lines: int, reason: str) -> bytes:
        """Return a line about the log itself."""
        fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": event}
        return self._line(logging.makeLogRecord({**fields, "lines": lines, "reason": reason}))
