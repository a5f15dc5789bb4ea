"""What a catalog remembers for those who watch, in memory: the order of changes, bounded, and who waits for them."""

import asyncio
import bisect
import contextlib
import itertools
import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from cogment_model_registry.errors import StoppingError
from cogment_model_registry.registry.contracts import Lost, News, Shown, Watcher

_REMEMBERED = 1024
"""How many versions of a model that disappeared, and twice as many that appeared, are known one by one."""

_REMEMBERED_MODELS = 4096
"""How many removed models are known."""

_ANSWERS = 64
"""How many answers are kept for those who ask the same until the next change."""


class History:
    """What happened to one life of a model.

    Args:
        sequence: When it was created, or loaded.
        last_number: The highest number that it has given.

    Attributes:
        since: When it was created, or loaded.
        changed: When the model itself was changed last.
        last_number: The highest number that it has given to a visible version, or had given before.
    """

    def __init__(self, sequence: int, last_number: int) -> None:
        self.since = self.changed = sequence
        self.last_number = last_number
        # Versions that are in neither became visible at `_base`, with numbers up to `_base_number`.
        self._base, self._base_number = sequence, last_number
        self._shown_at: list[int] = []
        self._shown_numbers: list[int] = []
        self._lost: deque[tuple[int, int, str]] = deque()
        # Of those that disappeared before: when the last one did, and the lowest and the highest of their numbers.
        self._forgotten_at = self._forgotten_first = self._forgotten_last = 0

    def show(self, sequence: int, number: int) -> None:
        """Record that a version became visible."""
        self.last_number = max(self.last_number, number)
        self._shown_at.append(sequence)
        self._shown_numbers.append(number)
        if len(self._shown_at) > 2 * _REMEMBERED:
            self._base, self._base_number = self._shown_at[_REMEMBERED], self._shown_numbers[_REMEMBERED]
            del self._shown_at[: _REMEMBERED + 1], self._shown_numbers[: _REMEMBERED + 1]

    def lose(self, sequence: int, number: int, reason: str) -> None:
        """Record that a version is not visible any more."""
        self._lost.append((sequence, number, reason))
        if len(self._lost) > _REMEMBERED:
            self._forgotten_at, number, _ = self._lost.popleft()
            self._forgotten_first = min(self._forgotten_first or number, number)
            self._forgotten_last = max(self._forgotten_last, number)

    def shows(self, number: int) -> bool:
        """Return whether it is known when exactly this version became visible."""
        index = bisect.bisect_left(self._shown_numbers, number)
        return index < len(self._shown_numbers) and self._shown_numbers[index] == number

    def begin_after(self, number: int) -> None:
        """Record that only versions up to this number are old; does nothing when later ones are known."""
        if not self._shown_numbers:
            self._base_number = min(self._base_number, number)

    def lose_unknown(self, sequence: int) -> None:
        """Record that any of the versions so far may have disappeared."""
        self._lost.clear()
        self._forgotten_at, self._forgotten_first, self._forgotten_last = sequence, 1, self.last_number

    def shown(self, numbers: Iterable[int]) -> list[Shown]:
        """Return visible versions with the moments at which they became visible."""
        return [Shown(self.sequence_of(number), number) for number in numbers]

    def lost(self, after: int) -> list[Lost]:
        """Return versions that disappeared after a moment."""
        newest_first = itertools.takewhile(lambda each: each[0] > after, reversed(self._lost))
        lost = [Lost(sequence, number, number, reason) for sequence, number, reason in newest_first]
        if self._forgotten_at > after:
            lost.append(Lost(self._forgotten_at, self._forgotten_first, self._forgotten_last, ""))
        return lost[::-1]

    def number_at(self, sequence: int) -> int | None:
        """Return the highest number at a moment; None if it is not known."""
        if sequence < self._base:
            return 0 if self._base == self.since else None
        index = bisect.bisect_right(self._shown_at, sequence)
        return self._shown_numbers[index - 1] if index else self._base_number

    def sequence_of(self, number: int) -> int:
        """Return when the first version with this number or a higher one became visible, as far as it is known."""
        if number <= self._base_number:
            return self._base
        index = bisect.bisect_left(self._shown_numbers, number)
        return self._shown_at[index] if index < len(self._shown_at) else self._base


class NewsMemo:
    """What was found for those who watch, until the next change: a thousand that are equally far ask the same."""

    def __init__(self) -> None:
        self._sequence = 0
        self._found: dict[tuple[str, int, int, int], News] = {}

    def find(self, sequence: int, key: tuple[str, int, int, int]) -> News | None:
        """Return what was found after the last change, which had this sequence number; None if nothing was."""
        if sequence != self._sequence or len(self._found) > _ANSWERS:
            self._sequence = sequence
            self._found.clear()
        return self._found.get(key)

    def add(self, key: tuple[str, int, int, int], news: News) -> None:
        """Keep what was found after the change for which it was looked for."""
        self._found[key] = news


class Feed:
    """The order of changes, and who waits for them.

    Args:
        existing: Returns the models that exist, of some or of all.

    Attributes:
        epoch: Differs for each feed.
        sequence: How many changes there were.
    """

    def __init__(self, existing: Callable[[Collection[str] | None], Sequence[str]]) -> None:
        self.epoch = secrets.randbits(48)
        self.sequence = 0
        self._existing = existing
        self._removed: deque[tuple[int, int, str]] = deque()  # when, since when the model had existed, and which
        self._removed_at: dict[str, list[int]] = {}
        self._forgotten = 0
        self._watchers: defaultdict[str | None, set[_FeedWatcher]] = defaultdict(set)
        self._is_stopping = False

    def note(self, model_id: str) -> int:
        """Record a change of a model, and wake those who watch it; return its sequence number."""
        self.sequence += 1
        if self._watchers:
            for key in (model_id, None):
                for watcher in self._watchers.get(key, ()):
                    watcher.note(model_id)
        return self.sequence

    def note_removed(self, model_id: str, since: int) -> None:
        """Record that a model was removed, which had existed since a moment."""
        removed_at = self.note(model_id)
        self._removed_at.setdefault(model_id, []).append(removed_at)
        self._removed.append((removed_at, since, model_id))
        if len(self._removed) > _REMEMBERED_MODELS:
            self._forgotten, _, oldest = self._removed.popleft()
            self._removed_at[oldest].pop(0)
            if not self._removed_at[oldest]:
                del self._removed_at[oldest]

    def removed_at(self, model_id: str) -> int:
        """Return when a model with this id was removed last; 0 if it is not known."""
        return self._removed_at.get(model_id, [0])[-1]

    def first_removed(self, model_id: str, after: int) -> int:
        """Return when a model with this id was removed first after a moment; 0 if it is not known."""
        moments = self._removed_at.get(model_id, ())
        index = bisect.bisect_right(moments, after)
        return moments[index] if index < len(moments) else 0

    def removed_since(self, sequence: int) -> list[str] | None:
        """Return the models that existed at a moment and were removed later; None if it is not known."""
        if sequence < self._forgotten:
            return None
        return [model_id for removed_at, since, model_id in self._removed if since <= sequence < removed_at]

    def stop(self) -> None:
        """End all watchers, and later ones, with `StoppingError`."""
        self._is_stopping = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.stop()

    @contextlib.contextmanager
    def watching(self, model_ids: Collection[str] | None) -> Iterator[Watcher]:
        """Return the context manager in which models are watched."""
        watcher = _FeedWatcher(self.epoch, self.sequence, self._existing(model_ids))
        if self._is_stopping:
            watcher.stop()
        keys: set[str | None] = {None} if model_ids is None else {*model_ids}
        for key in keys:
            self._watchers[key].add(watcher)
        try:
            yield watcher
        finally:
            for key in keys:
                self._watchers[key].discard(watcher)
                if not self._watchers[key]:
                    del self._watchers[key]


class _FeedWatcher(Watcher):
    """Someone who waits for changes.

    Args:
        epoch: The epoch of the feed.
        sequence: The last change.
        changed: The models to begin with.
    """

    def __init__(self, epoch: int, sequence: int, changed: Iterable[str]) -> None:
        self.epoch, self.sequence = epoch, sequence
        self._changed = dict.fromkeys(changed)
        self._waiting: asyncio.Future[None] | None = None
        self._is_stopping = False

    def note(self, model_id: str) -> None:
        self._changed[model_id] = None
        if self._waiting is not None:
            self._wake()

    def stop(self) -> None:
        self._is_stopping = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            if not self._waiting.done():  # nor cancelled
                self._waiting.set_result(None)
            self._waiting = None

    async def changed(self, *, wait: bool) -> Sequence[str]:
        if wait and not self._changed and not self._is_stopping:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        if self._is_stopping:
            raise StoppingError
        changed, self._changed = self._changed, {}
        return [*changed]
