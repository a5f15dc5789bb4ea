"""What the catalog of a single server has of a model in memory."""

import asyncio
import bisect
from dataclasses import dataclass, field

from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.catalog.feed import History


@dataclass(eq=False, slots=True)
class Model:
    """One life of a model.

    `numbers` has the numbers of the visible versions, ascending; `transient` has those whose info stays in memory;
    `unread` has those of which nothing but the name is known; `damaged` is what is wrong with others. `annotations` has
    those of transient versions. `changes` counts what `ModelState.changes` tells of.
    """

    info: ModelInfo
    life: int
    history: History
    next_number: int = 1
    persisted_number: int = 0
    numbers: list[int] = field(default_factory=list)
    transient: dict[int, VersionInfo] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    archived_bytes: dict[int, int] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    annotations: dict[int, Annotations] = field(default_factory=dict)
    changes: int = 0
    watchers: set[asyncio.Event] = field(default_factory=set)
    removed: bool = False
    persisting: asyncio.Task[None] | None = None

    @property
    def model_id(self) -> str:
        """Its id."""
        return self.info.model_id

    def has(self, number: int) -> bool:
        """Return whether a version is visible."""
        position = bisect.bisect_left(self.numbers, number)
        return position < len(self.numbers) and self.numbers[position] == number

    def drop(self, number: int) -> None:
        """Make a visible version invisible."""
        del self.numbers[bisect.bisect_left(self.numbers, number)]
        self.transient.pop(number, None)
        self.annotations.pop(number, None)
        self.unread.discard(number)
        self.archived_bytes.pop(number, None)

    def wake_watchers(self) -> None:
        """Let its watchers look for news."""
        for watcher in self.watchers:
            watcher.set()
