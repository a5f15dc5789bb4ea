"""Pages of listings: how much fits on one, and the handles that say where the next begins.

A handle is a text that the caller gives back. Of a listing of models it is the count of those returned so far. Of a
listing of versions it is the number to go on with: the last one returned plus one. Where versions were asked for by
number, in any order and perhaps twice, a number cannot say where the page was cut; the handle is then ``@`` and a
position in the list that was asked for.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogment_model_registry.errors import InvalidError, TooLargeError, quoted
from cogment_model_registry.wire.frames import embed

_HANDLE_FIELD = 2  # next_model_handle and next_version_handle

PAGE_MAX_BYTES = 64 * 1024 * 1024
"""The largest page when a count was asked for: no caller means more, and the process could not hold it."""


class Page:
    """The infos of one reply.

    Args:
        count: The most infos that the caller asked for; 0 for no limit.
        reply_max_bytes: The size at which a page ends when the caller gave no count.
    """

    def __init__(self, count: int, reply_max_bytes: int) -> None:
        self._count = count
        self._reply_max_bytes = reply_max_bytes
        self._entries: list[bytes] = []
        self._size_bytes = 64  # more than any handle takes

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def missing(self) -> int | None:
        """How many infos the page can still take; None for any number."""
        return self._count - len(self._entries) if self._count else None

    def batch(self, most: int) -> int:
        """Return how many infos to ask for at once: those missing, but at most `most`."""
        missing = self.missing
        return most if missing is None else min(missing, most)

    def extend(self, entries: Iterable[bytes]) -> int:
        """Take infos, each encoded as a field of the reply, as long as they fit.

        A page without a count ends where the reply would pass its size, but never empty. A page with a count is never
        shorter than asked for, since many callers consider a short page the last one.

        Returns:
            How many were taken.

        Raises:
            TooLargeError: The count asked for makes a reply that cannot be sent.
        """
        taken = 0
        for entry in entries:
            if not self._add(entry):
                break
            taken += 1
        return taken

    def _add(self, entry: bytes) -> bool:
        size_bytes = self._size_bytes + len(entry)
        if self._count:
            if len(self._entries) == self._count:
                return False
            if size_bytes > PAGE_MAX_BYTES:
                raise TooLargeError(f"{self._count} entries in one reply are too many; ask for {len(self)} at most")
        elif self._entries and size_bytes > self._reply_max_bytes:
            return False
        self._entries.append(entry)
        self._size_bytes = size_bytes
        return True

    def reply(self, next_handle: str) -> bytes:
        """Return the encoded reply with these infos and the handle of the next page."""
        return b"".join((*self._entries, embed(_HANDLE_FIELD, next_handle.encode())))


def parse_handle(handle: str) -> int:
    """Return the number in a handle; 0 for the empty one, with which a listing begins.

    Raises:
        InvalidError: It is not a plain decimal number.
    """
    if handle == "":
        return 0
    if not re.fullmatch(r"[0-9]+", handle):
        raise InvalidError(f"handle {quoted(handle)} is not a decimal number that an earlier reply gave")
    # More digits than any count or version number has are past every end, and int() would refuse a thousand of them.
    return int(handle[-20:]) if not handle[:-20].strip("0") else 10**20


@dataclass(frozen=True, slots=True)
class ExplicitHandle:
    """Where to continue in a list of version numbers that the caller gave: at a position, or with a version number.

    Attributes:
        position: Position in the list; None when `number` says it.
        number: Version number to go on with.
    """

    position: int | None
    number: int

    @classmethod
    def parse(cls, handle: str) -> "ExplicitHandle":
        """Return the position or the number in a handle.

        Raises:
            InvalidError: It is neither a decimal number nor ``@`` and one.
        """
        if not handle:
            return _BEGINNING
        if handle.startswith("@") and len(handle) > 1:
            return cls(parse_handle(handle[1:]), 0)
        return cls(None, parse_handle(handle))

    def start(self, numbers: Sequence[int]) -> int:
        """Return the position in `numbers` at which the page begins.

        With a number N, that is behind the last entry for N - 1 (with which a reply ended), else at the first entry
        from N on.
        """
        if self.position is not None:
            return min(self.position, len(numbers))
        if self.number == 0:
            return 0
        for position in range(len(numbers) - 1, -1, -1):
            if numbers[position] == self.number - 1:
                return position + 1
        return next((position for position, number in enumerate(numbers) if number >= self.number), len(numbers))


_BEGINNING = ExplicitHandle(position=0, number=0)


def cut_handle(position: int) -> str:
    """Return the handle of the page that begins at `position` of an explicit list."""
    return f"@{position}"
