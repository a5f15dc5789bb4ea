"""What the catalog of a single server has of a model in memory."""

import asyncio
import bisect
from dataclasses import dataclass, field

from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.feed import History

_SHOWN_MAX = 1024
"""Of so many versions of a model it is known when they became visible. Who asks for older ones asked before."""


class Appearances:
    """When the newest versions of a model became visible, also of those that are gone.

    Args:
        after: The number after which all are known.
    """

    __slots__ = ("_numbers", "_times_ns", "after")

    def __init__(self, after: int = 0) -> None:
        self.after = after
        self._numbers: list[int] = []
        self._times_ns: list[int] = []

    def add(self, number: int, now_ns: int) -> None:
        """Record that a version, the newest one, becomes visible."""
        self._numbers.append(number)
        self._times_ns.append(now_ns)
        if len(self._numbers) >= 2 * _SHOWN_MAX:
            self.after = self._numbers[_SHOWN_MAX - 1]
            del self._numbers[:_SHOWN_MAX], self._times_ns[:_SHOWN_MAX]

    def first_after(self, number: int) -> int | None:
        """Return when the first known version with a higher number became visible; None if none is known."""
        position = bisect.bisect_right(self._numbers, number)
        return self._times_ns[position] if position < len(self._times_ns) else None


@dataclass(eq=False, slots=True)
class Model:
    """One life of a model.

    `numbers` has the numbers of the visible versions, ascending; `transient` has those whose info stays in memory;
    `unread` has those of which nothing but the name is known; `damaged` is what is wrong with others. `annotations` has
    those of transient versions. `archived_sizes` has the bytes of archived ones, `archived_bytes` their sum. `changes`
    counts what `ModelState.changes` reports. `appearances` is when versions became visible since the start.
    `ref` refers to it. `lock` is that of its id, which a later life shares.
    """

    info: ModelInfo
    life: int
    history: History
    next_number: int = 1
    persisted_number: int = 0
    numbers: list[int] = field(default_factory=list)
    transient: dict[int, VersionInfo] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    archived_sizes: dict[int, int] = field(default_factory=dict)
    archived_bytes: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    annotations: dict[int, Annotations] = field(default_factory=dict)
    changes: int = 0
    appearances: Appearances = field(default_factory=Appearances)
    watchers: set[asyncio.Event] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    removed: bool = False
    persisting: asyncio.Task[None] | None = None
    ref: ModelRef = field(init=False)

    def __post_init__(self) -> None:
        self.ref = ModelRef(self.info.model_id, self.life)

    @property
    def model_id(self) -> str:
        """Its id."""
        return self.ref.model_id

    def has(self, number: int) -> bool:
        """Return whether a version is visible."""
        position = bisect.bisect_left(self.numbers, number)
        return position < len(self.numbers) and self.numbers[position] == number

    def add_archived(self, number: int, size_bytes: int) -> None:
        """Record the size of an archived version."""
        self.archived_sizes[number] = size_bytes
        self.archived_bytes += size_bytes

    def drop(self, number: int) -> bool:
        """Make a version invisible; return whether it was visible."""
        position = bisect.bisect_left(self.numbers, number)
        if position == len(self.numbers) or self.numbers[position] != number:
            return False
        del self.numbers[position]
        self.annotations.pop(number, None)
        if self.transient.pop(number, None) is None:
            self.unread.discard(number)
            self.archived_bytes -= self.archived_sizes.pop(number, 0)
        return True

    def wake_watchers(self) -> None:
        """Let its watchers look for news."""
        for watcher in self.watchers:
            watcher.set()
