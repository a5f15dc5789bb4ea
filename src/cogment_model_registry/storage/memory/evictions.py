"""Which transient version goes first when room is needed, found without looking at all of them.

The versions of a model are a line, least recently used first. Of all lines, the one that has most of what is scarce
(versions, or bytes) gives up a version first, so that what is left approaches fair shares; lines within their reserve
come later, and newest versions last. A single line is evicted as it is used: least recently used first.

A copy of a version that another server has goes before what this server alone may have: it can be read again there.

Lines wait in queues by their rank. Reading a version only raises the rank of its line, which is noticed when the line
gets to the front of its queue; what lowers a rank must be noted.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Literal, TypeAlias

from cogment_model_registry.records.retention import NO_SHARE, TransientShare
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.sealed_memory import SealedMemory, UnsealedMemory

Bound: TypeAlias = Literal["items", "bytes"]
"""What is scarce."""

_Rank: TypeAlias = tuple[bool, bool, int, int]
"""Whether the line is within its reserve, whether its version is no copy, how much it has (negative), and when its
version was used last."""


@dataclass(eq=False, slots=True)
class Blob:
    """The memory of one version: full slabs, then a buffer for the rest. `size_bytes` counts what is allocated.

    A version that was handed over, or came that way, lies in `sealed` memory, of which the slabs are views; one that is
    expected to be handed over comes into `unsealed` memory. `used` grows with each use; `readers` read it, and `holds`
    keep it from eviction. `is_copy` says that another server has it, too.
    """

    slabs: list[memoryview] = field(default_factory=list)
    rest: bytearray = field(default_factory=bytearray)
    sealed: SealedMemory | None = None
    unsealed: UnsealedMemory | None = None
    was_handed_over: bool = False
    size_bytes: int = 0
    used: int = 0
    readers: int = 0
    holds: int = 0
    is_gone: bool = False
    is_copy: bool = False
    info: VersionInfo | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is a version that must not be evicted."""
        return self.holds > 0 and not self.is_gone

    @property
    def pinned_bytes(self) -> int:
        """The bytes that cannot be freed now."""
        return self.size_bytes if self.readers or self.is_held else 0

    def parts(self) -> Iterator[memoryview]:
        """Yield the views that make up the bytes."""
        yield from self.slabs
        if self.rest:
            yield memoryview(self.rest)


@dataclass(eq=False, slots=True)
class Line:
    """The versions of one model, least recently used first; `copies` are those that other servers have, too.

    `newest` is the number of the newest version of the model, which another store may have. `upload_bytes` are those of
    its uploads, `version_bytes` those of its versions.
    """

    model_id: str
    blobs: OrderedDict[int, Blob] = field(default_factory=OrderedDict)
    copies: OrderedDict[int, Blob] = field(default_factory=OrderedDict)
    newest: int = 0
    version_bytes: int = 0
    upload_bytes: int = 0
    share: TransientShare = NO_SHARE

    @property
    def is_idle(self) -> bool:
        """Whether nothing is known of the model that counts."""
        return not self.blobs and not self.upload_bytes and self.share == NO_SHARE

    @property
    def is_reserved(self) -> bool:
        """Whether all that it has is within its reserve."""
        if self.share is NO_SHARE:
            return False
        has_bytes = self.version_bytes + self.upload_bytes
        return 0 < len(self.blobs) <= self.share.reserved_items or 0 < has_bytes <= self.share.reserved_bytes

    def add(self, number: int, blob: Blob) -> None:
        """Add a version that an upload has written."""
        self.blobs[number] = blob
        if blob.is_copy:
            self.copies[number] = blob
        self.newest = max(self.newest, number)
        self.upload_bytes -= blob.size_bytes
        self.version_bytes += blob.size_bytes

    def take(self, number: int) -> Blob:
        """Take a version out; the newest one that is left takes its place if it was the newest."""
        blob = self.blobs.pop(number)
        self.copies.pop(number, None)
        self.version_bytes -= blob.size_bytes
        if self.newest == number:
            self.newest = max(self.blobs, default=0)
        return blob

    def use(self, number: int) -> None:
        """Make a version the one that was used last."""
        self.blobs.move_to_end(number)
        if number in self.copies:
            self.copies.move_to_end(number)

    def own(self, number: int) -> None:
        """Treat a version as no copy from now on."""
        blob = self.copies.pop(number, None)
        if blob is not None:
            blob.is_copy = False

    def oldest(self, *, pinned_too: bool = False) -> int | None:
        """Return the number of the version that is evicted first, the newest one excepted."""
        for number, blob in chain(self.copies.items(), self.blobs.items()):
            if number < self.newest and not blob.holds and (pinned_too or not blob.readers):
                return number
        return None

    def last_used(self) -> Blob | None:
        """Return the version that was used last; None if there is none."""
        return next(reversed(self.blobs.values()), None)

    def last(self) -> int | None:
        """Return the number of the newest version if it can be evicted."""
        blob = self.blobs.get(self.newest)
        return None if blob is None or blob.holds or blob.readers else self.newest


class _Queue:
    """Lines by rank, the lowest first; those whose rank is None are not in it.

    `noted` has those whose rank may be lower than before; they are looked at when somebody asks for the first.
    """

    def __init__(self, rank: Callable[[Line], _Rank | None]) -> None:
        self._rank = rank
        self._heap: list[tuple[_Rank, int, Line]] = []
        self._ranks: dict[Line, _Rank] = {}  # each line's entry that counts; the heap may have older ones too
        self.noted: set[Line] = set()
        self._entries = count()

    def _look_at_noted(self) -> None:
        for line in self.noted:
            rank = self._rank(line)
            if rank is not None:
                known = self._ranks.get(line)
                if known is None or rank < known:
                    self._push(line, rank)
        self.noted.clear()

    def _push(self, line: Line, rank: _Rank) -> None:
        self._ranks[line] = rank
        heapq.heappush(self._heap, (rank, next(self._entries), line))
        if len(self._heap) > 2 * len(self._ranks) + 64:
            self._heap = [(rank, next(self._entries), line) for line, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def discard(self, line: Line) -> None:
        """Forget a line."""
        self._ranks.pop(line, None)
        self.noted.discard(line)

    def first(self) -> Line | None:
        """Return the line with the lowest rank."""
        if self.noted:
            self._look_at_noted()
        while self._heap:
            entered, _, line = self._heap[0]
            if self._ranks.get(line) is not entered:
                heapq.heappop(self._heap)
                continue
            rank = self._rank(line)
            if rank == entered:
                return line
            heapq.heappop(self._heap)
            del self._ranks[line]
            if rank is not None:
                self._push(line, rank)
                if self._heap[0][0] is rank:
                    return line
        return None


class Lines:
    """The lines of a store."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._uses = count()
        self._by_items = _Queue(_rank_by_items)
        self._by_bytes = _Queue(_rank_by_bytes)
        self._newest = _Queue(_rank_last)

    def find(self, model_id: str) -> Line | None:
        """Return the line of a model that has one."""
        return self._lines.get(model_id)

    def get(self, model_id: str) -> Line:
        """Return the line of a model, a new one if it has none."""
        line = self._lines.get(model_id)
        if line is None:
            line = self._lines[model_id] = Line(model_id)
        return line

    def tidy(self, line: Line) -> None:
        """Forget a line of which nothing is left."""
        if line.is_idle:
            self._lines.pop(line.model_id, None)
            for queue in (self._by_items, self._by_bytes, self._newest):
                queue.discard(line)

    def use(self, blob: Blob) -> None:
        """Note that a version is used now."""
        blob.used = next(self._uses)

    def note(self, line: Line) -> None:
        """Note that a line has grown, or that one of its versions may be evicted now that could not be before."""
        self._by_items.noted.add(line)
        self._by_bytes.noted.add(line)
        self._newest.noted.add(line)

    def victim(self, bound: Bound, taker: Line, *, pinned_too: bool) -> tuple[Line, int] | None:
        """Return the version that goes first to make room.

        Args:
            bound: What is scarce.
            taker: The line that needs the room: it gives up its own versions before what is reserved for others.
            pinned_too: Whether one that is being read may go if there is no other.
        """
        line = (self._by_items if bound == "items" else self._by_bytes).first()
        if line is not None and line.share is not NO_SHARE and line.is_reserved and taker.oldest() is not None:
            line = taker
        if line is not None:
            number = line.oldest()
        else:
            line = self._newest.first()
            number = line.last() if line is not None else None
        if line is not None and number is not None:
            return line, number
        return self._pinned_victim() if pinned_too else None

    def _pinned_victim(self) -> tuple[Line, int] | None:
        """Return the version that goes first when all of them are being read."""
        candidates = [
            ((number >= line.newest, not blob.is_copy, blob.used), line, number)
            for line in self._lines.values()
            for number, blob in line.blobs.items()
            if not blob.holds
        ]
        if not candidates:
            return None
        _, line, number = min(candidates, key=lambda each: each[0])
        return line, number


def _rank(line: Line, amount: int) -> _Rank | None:
    number = line.oldest()
    if number is None:
        return None
    blob = line.blobs[number]
    return (line.share is not NO_SHARE and line.is_reserved, not blob.is_copy, -amount, blob.used)


def _rank_by_items(line: Line) -> _Rank | None:
    return _rank(line, len(line.blobs))


def _rank_by_bytes(line: Line) -> _Rank | None:
    return _rank(line, line.version_bytes + line.upload_bytes)


def _rank_last(line: Line) -> _Rank | None:
    number = line.last()
    if number is None:
        return None
    blob = line.blobs[number]
    return (line.is_reserved, not blob.is_copy, 0, blob.used)
