"""The rules of a watch: which events it yields, in which order, and how it resumes.

A watch has no queue of events. It keeps its position in each model (see `positions`) and the set of models that have
news; when its client can take an event, it picks the next model and asks the catalog what is newer than its position.
So what a slow watch skips costs nothing.

A watch of a few models takes them in turn, and its token has the position in each. A watch of all models, or of many,
yields changes in the order in which they were made: then one sequence number is its position.
"""

import contextlib
import heapq
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import CaughtUp, Event, Gap, Gone
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.registry.contracts import Catalog, News, Search, Watcher
from cogment_model_registry.registry.filters import EVERYTHING, Filter, matches, parse_order
from cogment_model_registry.registry.positions import LIFE_UNKNOWN, POSITIONS_MAX, Position, Token
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.system.tasks import SharedWork

_WALKED = 64
"""Among how many new versions the newest that a filter accepts is looked for one by one, before a search."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is watched.

    Attributes:
        model_ids: The models; all of them if there are none.
        every: Whether every version is wanted, and not only the newest of each model.
        accepted: Which versions are wanted.
        token: Where to continue; empty to begin.
        may_read: Which models the caller may read.
    """

    model_ids: Sequence[str] = ()
    every: bool = False
    accepted: Filter = EVERYTHING
    token: str = ""
    may_read: Callable[[str], bool] = lambda _model_id: True


class _Item(NamedTuple):
    """The next event of a model, before it is looked up.

    Attributes:
        sequence: When it happened.
        kind: What it is.
        first_number: The lowest number that it is about.
        last_number: The highest.
        reason: Why versions disappeared.
        is_last: Whether the model has no further events, unless it is changed again.
    """

    sequence: int
    kind: Literal["end", "model", "lost", "gap", "version"]
    first_number: int = 0
    last_number: int = 0
    reason: str = ""
    is_last: bool = False


class Watches:
    """Answers watches.

    Args:
        registry: The registry, whose limits hold; it counts them.
        catalog: What exists.
    """

    def __init__(self, registry: Registry, catalog: Catalog) -> None:
        self._registry = registry
        self._catalog = catalog
        self._looks: SharedWork[tuple[str, int, int], Version | None] = SharedWork()

    def watch(self, question: Question) -> AsyncGenerator[tuple[str, Event], None]:
        """Yield what exists, then `CaughtUp`, then news, each with the token that resumes after it.

        To be closed with `contextlib.aclosing`.

        Raises:
            InvalidError: An id or the token is malformed.
            UnavailableError: The registry stops.
        """
        return self.open(question).events()

    def open(self, question: Question) -> "Watch":
        """Return a watch, to be entered; it is not counted.

        Raises:
            InvalidError: An id or the token is malformed.
        """
        self._registry.check_count("model_ids", len(question.model_ids))
        for model_id in question.model_ids:
            self._registry.check_model_id(model_id)
        token = Token.decode(question.token) if question.token else None
        return Watch(self, self._catalog, question, token)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Return a context manager that counts one more watcher."""
        self._registry.watchers += 1
        try:
            yield
        finally:
            self._registry.watchers -= 1

    async def describe(self, model_id: str, number: int, life: int) -> Version | None:
        """Return a version of a life of a model; None if it no longer exists.

        A thousand watchers that the same news woke cost one lookup.
        """
        return await self._looks.result((model_id, number, life), lambda: self._describe(model_id, number, life))

    async def _describe(self, model_id: str, number: int, life: int) -> Version | None:
        try:
            infos = await self._catalog.get_versions(model_id, [number])
            ref = await self._catalog.find(model_id)
            if ref.life != life:
                return None
            [version] = await self._catalog.describe_visible(infos)
        except (DataLossError, NotFoundError):
            return None
        return version


class Watch:
    """One watch: a context manager, made by `Watches.open`. `close` ends it, too.

    Args:
        watches: Describes versions.
        catalog: What exists.
        question: What is watched.
        token: Where to continue.
    """

    _watcher: Watcher
    _token: Token

    def __init__(self, watches: Watches, catalog: Catalog, question: Question, token: Token | None) -> None:
        self._watches = watches
        self._catalog = catalog
        self._begin_at = token
        self._every = question.every
        self._accepted = question.accepted
        self._is_filtered = question.accepted != EVERYTHING
        self._model_ids = {*question.model_ids}
        self._may_read = question.may_read
        self._is_ordered = not self._model_ids or len(self._model_ids) > POSITIONS_MAX
        self._positions: dict[str, Position] = {}
        self._missed: set[str] = set()  # models in which the position is lost
        self._queue: list[tuple[int, str]] = []
        self._queued: set[str] = set()
        self._turns = 0
        self._behind: set[str] = set()  # models that existed, and have events left
        self._is_caught_up = False
        self._resources = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        self._watcher = self._resources.enter_context(self._catalog.watching([*self._model_ids] or None))
        try:
            await self._begin()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watch."""
        self._resources.close()

    async def _begin(self) -> None:
        self._token = Token(self._watcher.epoch, positions=self._positions)
        existing = await self._watcher.changed(wait=False)
        if self._begin_at:
            await self._resume(self._begin_at, existing)
        self._enqueue([*existing, *self._positions])
        self._behind = {*self._queued}

    async def events(self) -> AsyncGenerator[tuple[str, Event], None]:
        """Yield the events; see `Watches.watch`."""
        with self._watches.counted():
            async with self:
                while True:
                    event = await self.next()
                    if event is not None:
                        yield event

    async def next(self, *, wait: bool = True) -> tuple[str, Event] | None:
        """Return the next event, and the token that resumes after it; see `Watches.watch`.

        Args:
            wait: Whether to wait until there is one; otherwise, None means that there is none now.

        Raises:
            UnavailableError: The registry stops.
        """
        while True:
            if not self._behind and not self._is_caught_up:
                self._is_caught_up = True
                self._token.sequence = max(self._token.sequence, self._watcher.sequence)
                return self._token.encode(), CaughtUp()
            self._enqueue(await self._watcher.changed(wait=wait and not self._queue))
            if not self._queue:
                return None  # also when the caller may not read what has changed
            event = await self._next_of_queue()
            if event is not None:
                return event

    async def _next_of_queue(self) -> tuple[str, Event] | None:
        """Return the next event of the model that is first in the queue, if it is its turn."""
        sequence, model_id = heapq.heappop(self._queue)
        self._queued.discard(model_id)
        item = await self._find(model_id)
        if item is None or item.sequence > self._watcher.sequence:
            self._behind.discard(model_id)
        if item is None:
            return None
        if (self._is_ordered and item.sequence > sequence) or not (self._behind or self._is_caught_up):
            self._enqueue([model_id], item.sequence)
            return None
        event = await self._look_up(model_id, item)
        if event is None or not (item.is_last and self._is_caught_up):
            self._enqueue([model_id], item.sequence)
        if event is None:
            return None
        self._token.sequence = max(self._token.sequence, item.sequence)
        return self._token.encode(), event

    def state(self) -> object:
        """Return what all further events depend on: two watches of the same models with equal states yield the same.

        Only for a watch of a few models.
        """
        return self._token.epoch, tuple(
            [(model_id, *position.parts()) for model_id, position in self._positions.items()]
        )

    def _enqueue(self, model_ids: Iterable[str], sequence: int = 0) -> None:
        """Queue models: in the order of their next events, as far as it is known; or in turn."""
        for model_id in model_ids:
            if model_id not in self._queued and self._may_read(model_id):
                self._turns += 1
                self._queued.add(model_id)
                heapq.heappush(self._queue, (sequence if self._is_ordered else self._turns, model_id))

    async def _resume(self, token: Token, existing: Sequence[str]) -> None:
        """Find the position in each model, also in those that were removed, since their end is an event."""
        is_same_epoch = token.epoch == self._watcher.epoch
        if token.positions is not None:
            for model_id, position in token.positions.items():
                if self._is_watched(model_id):
                    if not is_same_epoch:
                        position.lost_sequence = position.changed = 0
                    self._positions[model_id] = position
            return
        removed = await self._catalog.removed_since(token.sequence) if is_same_epoch else None
        for model_id in existing:
            news = await self._catalog.get_news(model_id, 0, 0, 1)
            if removed is not None and news.life and news.since <= token.sequence:
                self._positions[model_id] = await self._position_at(model_id, news, token)
            elif removed is None and news.life and self._every:
                self._positions[model_id] = Position(news.life)
                self._missed.add(model_id)
        if is_same_epoch:
            self._token.sequence, self._token.model_id = token.sequence, token.model_id
            self._token.number = token.number
        self._positions.update((each, Position(LIFE_UNKNOWN)) for each in removed or () if self._is_watched(each))

    def _is_watched(self, model_id: str) -> bool:
        return not self._model_ids or model_id in self._model_ids

    async def _position_at(self, model_id: str, news: News, token: Token) -> Position:
        number = await self._catalog.number_at(model_id, token.sequence)
        if number is None and self._every:
            self._missed.add(model_id)
        if model_id == token.model_id:
            number = token.number
        number = number or 0
        if not self._every:
            news = await self._catalog.get_news(model_id, 0, 0, 0)
            newest = news.shown[0].number if news.shown else 0
            if newest <= number and newest < news.last_number:
                # A later version is gone. Perhaps the newest was skipped because of it, and must be sent now.
                number = max(newest - 1, 0)
            elif newest > number and model_id != token.model_id:
                # It may have been skipped because of a later version; it is the newest again if that disappears.
                return self._position(news, max(number - 1, 0), number, token)
        return self._position(news, number, number, token)

    def _position(self, news: News, number: int, sent: int, token: Token) -> Position:
        return Position(news.life, number, sent, lost_sequence=token.sequence, changed=token.sequence)

    async def _find(self, model_id: str) -> _Item | None:
        """Return the next event of a model, to be looked up."""
        position = self._positions.get(model_id) or Position()
        news = await self._catalog.get_news(model_id, position.number, position.lost_sequence, int(self._every))
        if position.life and (position.life != news.life or position.number > news.last_number):
            # Not when the next life began: other changes happened before that, and their tokens would cover this event.
            return _Item(news.removed or news.since, "end")
        if not news.life:
            return None
        if not position.life:
            return _Item(news.since, "model")
        if model_id in self._missed and news.last_number:
            return _Item(news.since, "gap", 1, news.last_number)
        items = []
        if news.lost and (lost := self._find_lost(position, news)):
            items.append(lost)
        if shown := self._find_version(position, news):
            items.append(shown)
        if news.changed > position.changed:
            items.append(_Item(news.changed, "model", is_last=True))
        if len(items) < 2:
            return items[0] if items else None
        return min(items, key=lambda item: item.sequence)._replace(is_last=False)

    def _find_lost(self, position: Position, news: News) -> _Item | None:
        for lost in news.lost:
            was_sent = (
                lost.first_number <= position.number
                if self._every
                else lost.first_number <= position.sent <= lost.last_number
            )
            if was_sent:
                return _Item(
                    lost.sequence, "lost", lost.first_number, min(lost.last_number, position.number), lost.reason
                )
            position.lost_sequence = lost.sequence
        return None

    def _find_version(self, position: Position, news: News) -> _Item | None:
        following = position.number + 1
        if news.shown:
            shown = news.shown[0]
            if self._every and shown.number > following:
                return _Item(news.next_sequence, "gap", following, shown.number - 1)
            is_last = not self._every or shown.number == news.last_number
            return _Item(shown.sequence, "version", shown.number, shown.number, is_last=is_last)
        if self._every and news.last_number >= following:
            return _Item(news.next_sequence, "gap", following, news.last_number)
        return None

    async def _look_up(self, model_id: str, item: _Item) -> Event | None:
        """Return the event of an item, after moving the position past it; None if there is none any more."""
        position = self._positions.get(model_id)
        self._missed.discard(model_id)
        if position is None or item.kind == "model":
            return await self._look_up_model(model_id)
        if item.kind == "end":
            del self._positions[model_id]
            if self._token.model_id == model_id:
                self._token.model_id, self._token.number = "", 0  # the next life has numbers of its own
            return Gone(model_id, None, "deleted")
        if item.kind == "version":
            return await self._look_up_version(model_id, position, item.last_number)
        if item.kind == "gap":
            last_number = await self._cut(model_id, item)
            self._note_number(model_id, position, last_number)
            return Gap(model_id, item.first_number, last_number)
        position.lost_sequence = item.sequence
        if item.reason:
            return Gone(model_id, item.first_number, item.reason)
        return Gap(model_id, item.first_number, item.last_number)

    async def _cut(self, model_id: str, gap: _Item) -> int:
        """Return the last number of a gap that comes before the next events of other models."""
        if not self._is_ordered or not self._queue:
            return gap.last_number
        number = await self._catalog.number_at(model_id, self._queue[0][0]) or 0
        return min(max(number, gap.first_number), gap.last_number)

    async def _look_up_version(self, model_id: str, position: Position, number: int) -> Version | None:
        if self._is_filtered and not self._every:
            version = await self._newest_accepted(model_id, position, number)
        else:
            version = await self._watches.describe(model_id, number, position.life)
            if version is None:
                return None  # it has just disappeared
            if self._is_filtered and not matches(self._accepted, version):
                version = None
        self._note_number(model_id, position, number)
        if version is not None:
            position.sent = version.number
        return version

    def _note_number(self, model_id: str, position: Position, number: int) -> None:
        position.number = self._token.number = number
        self._token.model_id = model_id

    async def _look_up_model(self, model_id: str) -> ModelSummary | None:
        news = await self._catalog.get_news(model_id, 0, 0, 0)
        found = await self._catalog.summarize([ModelInfo(model_id)])
        if not found or not news.life:
            return None
        [summary] = found
        if model_id not in self._positions and self._token.model_id == model_id:
            self._token.model_id, self._token.number = "", 0  # its numbers begin again
        position = self._positions.setdefault(model_id, Position(news.life, lost_sequence=news.since))
        if position.life != news.life:
            return None  # this life has just ended
        before, position.digest = position.digest, _digest(summary)
        position.changed = news.changed
        return summary if position.digest != before else None

    async def _newest_accepted(self, model_id: str, position: Position, newest: int) -> Version | None:
        """Return the newest version up to a number that a filter accepts, unless it was seen before."""
        if not position.number or newest - position.number > _WALKED:
            search = Search(model_id, self._accepted, parse_order("version_number desc"), None, 1)
            try:
                found = await self._catalog.search(search)
            except NotFoundError:
                return None
            return found[0] if found and position.number < found[0].number <= newest else None
        for number in range(newest, position.number, -1):
            version = await self._watches.describe(model_id, number, position.life)
            if version is not None and matches(self._accepted, version):
                return version
        return None


def _digest(summary: ModelSummary) -> int:
    """Return a number that changes with what people decided about a model."""
    parts = (
        sorted(summary.user_data.items()),
        summary.aliases,
        sorted(summary.tags.items()),
        summary.retention,
        summary.share,
        summary.revision,
    )
    return zlib.crc32(repr(parts).encode("utf-8", "surrogatepass"))
