"""The rules of a watch: what is told, in which order, and how it resumes.

A watch has no queue. It keeps a place for each model that it has told (see `places`) and the set of models that have
news; when it may tell something, it takes the next of them and asks the catalog what is newer than its place. So what a
slow watch skips costs nothing.

A watch of a few models tells them in turn, and its token has the place of each. A watch of all models, or of many,
tells changes in the order in which they were made: then one sequence number says what has been told.
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
from cogment_model_registry.registry.places import LIFE_UNKNOWN, PLACES_MAX, Place, Token
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.system.tasks import SharedWork

_WALKED = 64
"""Among how many new versions the newest that a filter accepts is looked for one by one, before a search."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is watched.

    Attributes:
        model_ids: The models; all of them if there are none.
        every: Whether to tell every version, and not only the newest of each model.
        accepted: Which versions to tell.
        token: Where to go on; empty to begin.
        may_read: Which models may be told.
    """

    model_ids: Sequence[str] = ()
    every: bool = False
    accepted: Filter = EVERYTHING
    token: str = ""
    may_read: Callable[[str], bool] = lambda _model_id: True


class _Item(NamedTuple):
    """What comes next of a model.

    Attributes:
        sequence: When it happened.
        kind: What it is.
        first_number: The lowest number that it is about.
        last_number: The highest.
        reason: Why versions disappeared.
        is_last: Whether the model has nothing more to tell after it, unless it is changed again.
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
        """Return the context manager in which somebody counts as a watcher."""
        self._registry.watchers += 1
        try:
            yield
        finally:
            self._registry.watchers -= 1

    async def describe(self, model_id: str, number: int, life: int) -> Version | None:
        """Return a version of a life of a model; None if it is not there any more.

        A thousand watchers that ask at once cost one look: what it found holds for all that the same news woke.
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
        token: Where to go on.
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
        self._is_ordered = not self._model_ids or len(self._model_ids) > PLACES_MAX
        self._places: dict[str, Place] = {}
        self._missed: set[str] = set()  # models of which nobody knows what was told
        self._queue: list[tuple[int, str]] = []
        self._queued: set[str] = set()
        self._turns = 0
        self._behind: set[str] = set()  # models of which not all that existed has been told
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
        """Watch no more."""
        self._resources.close()

    async def _begin(self) -> None:
        self._token = Token(self._watcher.epoch, places=self._places)
        existing = await self._watcher.changed(wait=False)
        if self._begin_at:
            await self._resume(self._begin_at, existing)
        self._enqueue([*existing, *self._places])
        self._behind = {*self._queued}

    async def events(self) -> AsyncGenerator[tuple[str, Event], None]:
        """Yield what is told; see `Watches.watch`."""
        with self._watches.counted():
            async with self:
                while True:
                    told = await self.next()
                    if told is not None:
                        yield told

    async def next(self, *, wait: bool = True) -> tuple[str, Event] | None:
        """Return what is told next, and the token that resumes after it; see `Watches.watch`.

        Args:
            wait: Whether to wait until there is something; otherwise, None says that nothing is left to be told.

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
                return None  # also when what has changed may not be told
            told = await self._next_of_queue()
            if told is not None:
                return told

    async def _next_of_queue(self) -> tuple[str, Event] | None:
        """Return what is told of the model that is first in the queue, if it is told now."""
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
        event = await self._tell(model_id, item)
        if event is None or not (item.is_last and self._is_caught_up):
            self._enqueue([model_id], item.sequence)
        if event is None:
            return None
        self._token.sequence = max(self._token.sequence, item.sequence)
        return self._token.encode(), event

    def state(self) -> object:
        """Return what all that will be told depends on: two watches of the same models with equal states tell the same.

        Only of a watch of a few models: what others have told is a sequence number.
        """
        return self._token.epoch, tuple([(model_id, *place.parts()) for model_id, place in self._places.items()])

    def _enqueue(self, model_ids: Iterable[str], sequence: int = 0) -> None:
        """Queue models: in order of what comes next of each, as far as it is known; or in turn."""
        for model_id in model_ids:
            if model_id not in self._queued and self._may_read(model_id):
                self._turns += 1
                self._queued.add(model_id)
                heapq.heappush(self._queue, (sequence if self._is_ordered else self._turns, model_id))

    async def _resume(self, token: Token, existing: Sequence[str]) -> None:
        """Find the place of each model, also of those that were removed, since that is told next."""
        is_same_epoch = token.epoch == self._watcher.epoch
        if token.places is not None:
            for model_id, place in token.places.items():
                if self._is_watched(model_id):
                    if not is_same_epoch:
                        place.lost_sequence = place.changed = 0
                    self._places[model_id] = place
            return
        removed = await self._catalog.removed_since(token.sequence) if is_same_epoch else None
        for model_id in existing:
            news = await self._catalog.get_news(model_id, 0, 0, 1)
            if removed is not None and news.life and news.since <= token.sequence:
                self._places[model_id] = await self._place_at(model_id, news, token)
            elif removed is None and news.life and self._every:
                self._places[model_id] = Place(news.life)
                self._missed.add(model_id)
        if is_same_epoch:
            self._token.sequence, self._token.model_id = token.sequence, token.model_id
            self._token.number = token.number
        self._places.update((each, Place(LIFE_UNKNOWN)) for each in removed or () if self._is_watched(each))

    def _is_watched(self, model_id: str) -> bool:
        return not self._model_ids or model_id in self._model_ids

    async def _place_at(self, model_id: str, news: News, token: Token) -> Place:
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
                # One that came later is gone. Perhaps it kept the newest from being told, which must arrive.
                number = max(newest - 1, 0)
            elif newest > number and model_id != token.model_id:
                # A later one may have kept this one from being told; it is the newest again if that disappears.
                return self._place(news, max(number - 1, 0), number, token)
        return self._place(news, number, number, token)

    def _place(self, news: News, number: int, told: int, token: Token) -> Place:
        return Place(news.life, number, told, lost_sequence=token.sequence, changed=token.sequence)

    async def _find(self, model_id: str) -> _Item | None:
        """Return what comes next of a model."""
        place = self._places.get(model_id) or Place()
        news = await self._catalog.get_news(model_id, place.number, place.lost_sequence, int(self._every))
        if place.life and (place.life != news.life or place.number > news.last_number):
            # Not when the next life began: what happened between would be told before, and say that this was told.
            return _Item(news.removed or news.since, "end")
        if not news.life:
            return None
        if not place.life:
            return _Item(news.since, "model")
        if model_id in self._missed and news.last_number:
            return _Item(news.since, "gap", 1, news.last_number)
        items = []
        if news.lost and (lost := self._find_lost(place, news)):
            items.append(lost)
        if shown := self._find_version(place, news):
            items.append(shown)
        if news.changed > place.changed:
            items.append(_Item(news.changed, "model", is_last=True))
        if len(items) < 2:
            return items[0] if items else None
        return min(items, key=lambda item: item.sequence)._replace(is_last=False)

    def _find_lost(self, place: Place, news: News) -> _Item | None:
        for lost in news.lost:
            was_told = (
                lost.first_number <= place.number
                if self._every
                else lost.first_number <= place.told <= lost.last_number
            )
            if was_told:
                return _Item(lost.sequence, "lost", lost.first_number, min(lost.last_number, place.number), lost.reason)
            place.lost_sequence = lost.sequence
        return None

    def _find_version(self, place: Place, news: News) -> _Item | None:
        following = place.number + 1
        if news.shown:
            shown = news.shown[0]
            if self._every and shown.number > following:
                return _Item(news.next_sequence, "gap", following, shown.number - 1)
            is_last = not self._every or shown.number == news.last_number
            return _Item(shown.sequence, "version", shown.number, shown.number, is_last=is_last)
        if self._every and news.last_number >= following:
            return _Item(news.next_sequence, "gap", following, news.last_number)
        return None

    async def _tell(self, model_id: str, item: _Item) -> Event | None:
        """Return what an item says, after noting that it was told; None if that is nothing."""
        place = self._places.get(model_id)
        self._missed.discard(model_id)
        if place is None or item.kind == "model":
            return await self._tell_model(model_id)
        if item.kind == "end":
            del self._places[model_id]
            if self._token.model_id == model_id:
                self._token.model_id, self._token.number = "", 0  # the next life has numbers of its own
            return Gone(model_id, None, "deleted")
        if item.kind == "version":
            return await self._tell_version(model_id, place, item.last_number)
        if item.kind == "gap":
            last_number = await self._cut(model_id, item)
            self._note_number(model_id, place, last_number)
            return Gap(model_id, item.first_number, last_number)
        place.lost_sequence = item.sequence
        if item.reason:
            return Gone(model_id, item.first_number, item.reason)
        return Gap(model_id, item.first_number, item.last_number)

    async def _cut(self, model_id: str, gap: _Item) -> int:
        """Return where a gap ends that is told before what comes next of other models."""
        if not self._is_ordered or not self._queue:
            return gap.last_number
        number = await self._catalog.number_at(model_id, self._queue[0][0]) or 0
        return min(max(number, gap.first_number), gap.last_number)

    async def _tell_version(self, model_id: str, place: Place, number: int) -> Version | None:
        if self._is_filtered and not self._every:
            version = await self._newest_accepted(model_id, place, number)
        else:
            version = await self._watches.describe(model_id, number, place.life)
            if version is None:
                return None  # it has just disappeared
            if self._is_filtered and not matches(self._accepted, version):
                version = None
        self._note_number(model_id, place, number)
        if version is not None:
            place.told = version.number
        return version

    def _note_number(self, model_id: str, place: Place, number: int) -> None:
        place.number = self._token.number = number
        self._token.model_id = model_id

    async def _tell_model(self, model_id: str) -> ModelSummary | None:
        news = await self._catalog.get_news(model_id, 0, 0, 0)
        found = await self._catalog.summarize([ModelInfo(model_id)])
        if not found or not news.life:
            return None
        [summary] = found
        if model_id not in self._places and self._token.model_id == model_id:
            self._token.model_id, self._token.number = "", 0  # its numbers begin again
        place = self._places.setdefault(model_id, Place(news.life, lost_sequence=news.since))
        if place.life != news.life:
            return None  # that life has just ended
        before, place.digest = place.digest, _digest(summary)
        place.changed = news.changed
        return summary if place.digest != before else None

    async def _newest_accepted(self, model_id: str, place: Place, newest: int) -> Version | None:
        """Return the newest version up to a number that a filter accepts, unless it was seen before."""
        if not place.number or newest - place.number > _WALKED:
            search = Search(model_id, self._accepted, parse_order("version_number desc"), None, 1)
            try:
                found = await self._catalog.search(search)
            except NotFoundError:
                return None
            return found[0] if found and place.number < found[0].number <= newest else None
        for number in range(newest, place.number, -1):
            version = await self._watches.describe(model_id, number, place.life)
            if version is not None and matches(self._accepted, version):
                return version
        return None


def _digest(summary: ModelSummary) -> int:
    """Return a number that stands for what people said and decided about a model."""
    parts = (
        sorted(summary.user_data.items()),
        summary.aliases,
        sorted(summary.tags.items()),
        summary.retention,
        summary.share,
        summary.revision,
    )
    return zlib.crc32(repr(parts).encode("utf-8", "surrogatepass"))
