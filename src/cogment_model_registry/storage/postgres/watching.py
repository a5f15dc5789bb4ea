"""Watching in the shared catalog: news of models, from what this server has learned of their changes."""

from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import contextmanager

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import ModelRef, News, Watcher
from cogment_model_registry.storage.feed import NewsMemo
from cogment_model_registry.storage.postgres.core import Core
from cogment_model_registry.storage.postgres.lines import Line
from cogment_model_registry.storage.postgres.reads import HEAD, NEWS, Reads
from cogment_model_registry.system.tasks import SharedWork


class _LoadingWatcher(Watcher):
    """A watcher that asks which models exist when it is asked for changes the first time."""

    def __init__(self, inner: Watcher, reads: Reads, model_ids: Collection[str] | None) -> None:
        self.epoch, self.sequence = inner.epoch, inner.sequence
        self._inner = inner
        self._reads = reads
        self._model_ids = None if model_ids is None else [*model_ids]
        self._has_begun = False

    async def changed(self, *, wait: bool) -> Sequence[str]:
        if self._has_begun:
            return await self._inner.changed(wait=wait)
        changed = await self._inner.changed(wait=False)
        existing = await self._reads.existing(self._model_ids)
        self._has_begun = True
        found = [*dict.fromkeys([*existing, *changed])]
        return found if found or not wait else await self._inner.changed(wait=True)


class Watching:
    """Answers those who watch. The methods are those of `Catalog`."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self._core = core
        self._reads = reads
        self._memo = NewsMemo()
        self._looks: SharedWork[tuple[int, str, int, int, int], News] = SharedWork()

    @contextmanager
    def watching(self, model_ids: Collection[str] | None) -> Iterator[Watcher]:
        with self._core.lines.feed.watching(model_ids) as inner:
            yield _LoadingWatcher(inner, self._reads, model_ids)

    async def watch(self, model_id: str) -> AsyncGenerator[VersionInfo, None]:
        with self._core.lines.feed.watching([model_id]) as watcher:
            life = 0
            last_number = 0
            while True:
                await watcher.changed(wait=False)  # raises when the catalog stops
                found, info = await self._reads.latest(model_id)
                if not found or (life and life != found):
                    raise NotFoundError.model(model_id)
                life = found
                if info is not None and info.number > last_number:
                    last_number = info.number
                    yield info
                    continue
                await watcher.changed(wait=True)

    async def get_news(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        key = model_id, number, sequence, limit
        now = self._core.lines.feed.sequence
        news = self._memo.find(now, key)
        if news is None:
            news = await self._looks.result((now, *key), lambda: self._look(*key))
            if self._core.lines.feed.sequence == now:
                self._memo.find(now, key)
                self._memo.add(key, news)
        return news

    async def _look(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        feed = self._core.lines.feed
        while True:
            line = await self._line(model_id)
            if line is None:
                return News(0, feed.removed_at(model_id), removed=feed.first_removed(model_id, sequence))
            history = line.history
            known = history.last_number  # a version that is heard of while this waits is for the next question
            last = max(known, number)
            rows = await self._core.connections.fetch("get_news", NEWS, line.life, number, last, limit)
            if self._core.lines.find(model_id) is not line:
                continue  # it has just ended
            # A row that is gone already belongs to a model whose end is about to be heard of.
            numbers = [each for each in (rows[0]["numbers"] or ()) if each <= known] if rows else []
            # A watcher may come from another server, which had heard of later versions.
            is_ahead = bool(rows) and known < number <= rows[0]["head"]
            return News(
                life=line.life,
                since=history.since,
                changed=history.changed,
                last_number=number if is_ahead else known,
                next_sequence=history.sequence_of(number + 1),
                shown=history.shown(numbers),
                lost=history.lost(sequence),
                removed=feed.first_removed(model_id, sequence),
            )

    async def number_at(self, model_id: str, sequence: int) -> int | None:
        line = await self._line(model_id)
        return line.history.number_at(sequence) if line else 0

    async def _line(self, model_id: str) -> Line | None:
        """Return what happened to a model, which is read when it is not known; None if it does not exist."""
        line = self._core.lines.find(model_id)
        if line is not None:
            return line
        rows = await self._core.connections.fetch("get_head", HEAD, model_id)
        if not rows:
            return self._core.lines.find(model_id)
        return self._core.lines.begin(ModelRef(model_id, rows[0]["life"]), max(rows[0]["head"], rows[0]["newest"]))
