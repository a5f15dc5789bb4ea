"""Reads the files of an audit log from their ends, a bounded part at a time, while the last one grows."""

import contextlib
import datetime
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.timestamps import parse_timestamp

_NAME = re.compile(r"audit_([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl")

_BLOCK_BYTES = 256 * 1024

_SEARCHED_MAX_BYTES = 64 * 1024 * 1024
"""How much of the files one page looks at: less than 0.1 s."""

_ONE_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the files.

    Attributes:
        name: The name of a file.
        offset: The lines of it that end at or before this offset are still to be read.
    """

    name: str
    offset: int

    @property
    def is_sound(self) -> bool:
        """Whether it may be a place: it comes from a caller."""
        return bool(_NAME.fullmatch(self.name)) and self.offset >= 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        entries: The changes, newest first.
        next: Where to continue; None at the end.
    """

    entries: list[HistoryEntry]
    next: Place | None


def find_changes(
    directory: str, model_id: str, *, alias: str = "", since_ns: int, start: Place | None, limit: int, max_bytes: int
) -> Found:
    """Return changes of a model, newest first.

    Args:
        directory: The directory of the audit log.
        model_id: The model.
        alias: Only changes of this alias; empty for all.
        since_ns: Only changes from this time on, in nanoseconds since the Unix epoch.
        start: Where to begin; None for the newest.
        limit: The most changes.
        max_bytes: The most bytes of lines, but for the first one.
    """
    name, text = ("alias", alias) if alias else ("model_id", model_id)  # the one that fewer lines have
    needle = f'"{name}":{json.dumps(text)}'.encode()
    entries: list[HistoryEntry] = []
    found_bytes = searched_bytes = 0
    for file_name in _names(directory, since_ns, start):
        offset_of_start = start.offset if start and start.name == file_name else None
        with _Backward(directory, file_name, offset_of_start) as file:
            for offset, line in file.lines(needle):
                entry = _entry(line, model_id, alias, since_ns)
                found_bytes += len(line) if entry else 0
                if entry and entries and found_bytes > max_bytes:
                    return Found(entries, Place(file_name, offset + len(line) + 1))
                entries += [entry] if entry else []
                if len(entries) == limit or searched_bytes + file.read_bytes > _SEARCHED_MAX_BYTES:
                    return Found(entries, Place(file_name, offset))
            searched_bytes += file.read_bytes
    return Found(entries, None)


def _names(directory: str, since_ns: int, start: Place | None) -> list[str]:
    """Return the names of the files to read, newest first."""
    # A line is never in a file of an earlier day; clocks may differ a little from one start to the next.
    first = datetime.datetime.fromtimestamp(since_ns // 10**9, datetime.UTC).date()
    first_name = f"audit_{first - _ONE_DAY}.jsonl"
    names = (name for name in os.listdir(directory) if _NAME.fullmatch(name))
    return sorted((each for each in names if each >= first_name and (not start or each <= start.name)), reverse=True)


class _Backward:
    """A file that is read from its end. To be entered.

    Attributes:
        read_bytes: How much was read so far.
    """

    def __init__(self, directory: str, name: str, end: int | None) -> None:
        self._path = os.path.join(directory, name)
        self._end = end
        self._file = -1
        self.read_bytes = 0

    def __enter__(self) -> Self:
        with contextlib.suppress(FileNotFoundError):  # it was moved away in the meantime
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def lines(self, needle: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield whole lines with their offsets, last first: those that contain a text, and some empty ones between.

        Most blocks are about other models. They are not cut into lines, which would take the interpreter from the
        threads that serve.
        """
        size_bytes = os.fstat(self._file).st_size if self._file >= 0 else 0
        position = size_bytes if self._end is None else min(self._end, size_bytes)
        tail, has_end = b"", False  # the end of a line whose begin is in the block before
        while position > 0:
            length = min(_BLOCK_BYTES, position)
            position -= length
            text = os.pread(self._file, length, position) + tail
            self.read_bytes += length
            if not has_end:
                # What follows the last end of a line is no line: it is being written, or was cut.
                text, has_end = text[: text.rfind(b"\n") + 1][:-1], b"\n" in text
                if not has_end:
                    continue
            if needle not in text:
                tail, separator, _ = text.partition(b"\n")
                if separator:
                    yield position + len(tail) + 1, b""
                continue
            end = position + len(text) + 1
            tail, *lines = text.split(b"\n")
            for line in reversed(lines):
                end -= len(line) + 1
                if needle in line:
                    yield end, line
        if has_end and needle in tail:
            yield 0, tail


def _entry(line: bytes, model_id: str, alias: str, since_ns: int) -> HistoryEntry | None:
    """Return the change that a line describes; None if it is another one's, or no whole line."""
    try:
        fields: dict[str, Any] = json.loads(line)
        entry = HistoryEntry(
            time_ns=parse_timestamp(fields["time"]),
            change=fields["change"],
            model_id=fields["model_id"],
            version_number=fields.get("version_number", 0),
            alias=fields.get("alias", ""),
            before=fields["before"],
            after=fields["after"],
            call=fields["call"],
            caller=fields["caller"],
            caller_kind=fields["caller_kind"],
            peer=fields["peer"],
            reason=fields.get("reason", ""),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_wanted = entry.model_id == model_id and entry.alias == (alias or entry.alias) and entry.time_ns >= since_ns
    return entry if is_wanted else None
