"""Consumers: who runs which version of which model, how far behind the newest one, and what they hold.

All of it is in memory: after a restart, consumers report again within their time to live. A report costs little,
however many consumers there are: it moves the moment at which its consumer is gone, and nothing else. Those moments
wait in one heap, where each consumer is looked at when its earliest one has come.
"""

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from time import monotonic, time_ns
from typing import TypeAlias

from cogment_model_registry.errors import NotFoundError, TooLargeError, UnavailableError, counted, quoted
from cogment_model_registry.records.consumers import TTL_DEFAULT_SECONDS, Consumer, State, check_consumer
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.consumer_holds import ConsumerHolds
from cogment_model_registry.registry.contracts import Catalog, ModelRef, Newer, TransientStore
from cogment_model_registry.registry.filters import EVERYTHING, Filter, matches
from cogment_model_registry.registry.holds import Holds
from cogment_model_registry.registry.registry import Registry

GONE_SECONDS = 60.0
"""How long a consumer that is gone is listed."""

_SWEEP_SECONDS = 0.5
"""How often consumers that are due are looked for when nobody asks."""

_LISTED_AT_ONCE = 256
"""How many consumers a listing looks at before other calls get their turn."""

FindElsewhere: TypeAlias = Callable[[str | None, tuple[str, str], int | None], Awaitable[Sequence[Consumer]]]
"""Returns consumers that report to other servers; the arguments are the model, the position and the limit of `find`."""

Listener: TypeAlias = Callable[[Consumer], None]
"""Receives consumers whose reports change anything, or that are gone. It must neither block nor raise."""


@dataclass(frozen=True, slots=True)
class ConsumerSummary:
    """The consumers of a model.

    Attributes:
        model_id: The model.
        states: How many are in which state.
        versions_behind: The largest lag of a live one that runs a version, in versions; None if there is none.
        seconds_behind: The same in seconds.
    """

    model_id: str
    states: Mapping[State, int]
    versions_behind: int | None
    seconds_behind: float | None


@dataclass(eq=False, slots=True)
class _Entry:
    """A consumer.

    Attributes:
        consumer: Its last report, or that it is gone.
        due: When it is gone; or dropped, if it is gone.
        queued: When the queue has it. It counts if it is the earliest of its moments there.
        behind_since_ns: Since when it has been behind, as far as it was ever asked for.
        is_dropped: Whether it was forgotten.
    """

    consumer: Consumer
    due: float = 0.0
    queued: float = float("inf")
    behind_since_ns: int | None = None
    is_dropped: bool = False


@dataclass(eq=False, slots=True)
class _Group:
    """The consumers of one life of a model, by id."""

    ref: ModelRef
    entries: dict[str, _Entry] = field(default_factory=dict)


class Consumers:
    """The consumers that report to a registry.

    Args:
        registry: The registry, whose limits hold.
        catalog: What exists.
        transient: Where transient versions live.
        holds: Who needs which versions.
        consumers_max: How many consumers are known at most.
        held_max_bytes: How many bytes the versions that they hold may have together.
        find_elsewhere: Returns the consumers that report to other servers of the same models; None if there are none.
        now: A clock that never goes back, in seconds.
        now_ns: The clock of the catalog, in nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        transient: TransientStore,
        *,
        holds: Holds,
        consumers_max: int,
        held_max_bytes: int,
        find_elsewhere: FindElsewhere | None = None,
        now: Callable[[], float] = monotonic,
        now_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._max = consumers_max
        self._now = now
        self._now_ns = now_ns
        self._transient = transient
        self._find_elsewhere = find_elsewhere
        self._held = ConsumerHolds(transient, holds, held_max_bytes)
        self._groups: dict[str, _Group] = {}
        self._count = 0
        self._gone: OrderedDict[_Entry, None] = OrderedDict()  # the first one to go first
        self._queue: list[tuple[float, int, _Entry]] = []
        self._turns = count()
        self._removals = 0
        self._listeners: dict[Listener, bool] = {}
        self._sharing = asyncio.Lock()
        self._unshared: set[ModelRef] = set()  # models of which other servers do not know the holds of now
        registry.on_model_removed(self._forget_model)
        holds.on_removed(self._note_removed)

    @property
    def held_bytes(self) -> int:
        """The bytes of the versions that consumers hold."""
        return self._held.held_bytes

    @contextmanager
    def listening(self, listener: Listener, *, elsewhere: bool = False) -> Iterator[None]:
        """Return a context manager in which a listener receives changes; a report that repeats the last one is none.

        A consumer that is gone is reported once. When a model is deleted, its consumers are not reported.

        Args:
            listener: The listener.
            elsewhere: Whether it also receives the changes of consumers that report to other servers.
        """
        self._listeners[listener] = elsewhere
        try:
            yield
        finally:
            del self._listeners[listener]

    def note_elsewhere(self, consumer: Consumer) -> None:
        """Notify listeners of a change of a consumer that reports to another server."""
        for listener in [each for each, elsewhere in self._listeners.items() if elsewhere]:
            listener(consumer)

    async def run(self) -> None:
        """Notice, until cancelled, which consumers are gone; listings notice it by themselves."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.expire()
            with suppress(UnavailableError):
                await self.share_holds()

    # Reports.

    async def report(self, report: Consumer) -> Consumer:
        """Record what a consumer reports, and return that with its lag.

        Raises:
            InvalidError: The report breaks a rule.
            NotFoundError: The model does not exist, or a version to be held does not.
            TooLargeError: There are too many consumers, or they hold too much. What it reported and held before stays.
        """
        self._registry.check_model_id(report.model_id)
        check_consumer(report, self._registry.limits.model_id_max_bytes)
        self.expire()
        if not report.ttl_seconds or report.held_versions:
            report = replace(
                report,
                ttl_seconds=report.ttl_seconds or TTL_DEFAULT_SECONDS,
                held_versions=tuple(sorted({*report.held_versions})) if report.is_live else (),
            )
        while True:
            ref = await self._catalog.find(report.model_id)
            removals = self._removals
            before = self._held_by(ref, report.consumer_id)
            held = await self._look_up(ref, report, before)
            newer = await self._catalog.newer_than(report.model_id, report.version_number)
            if await self._catalog.find(report.model_id) != ref:
                continue
            # Nothing is awaited from here on. What was deleted in the meantime is looked up again.
            if not report.is_live:
                return self._leave(ref, report, newer)
            is_current = removals == self._removals or not any(held.values())
            entry = self._record(ref, report, held, newer) if is_current else None
            if entry is not None:
                if {*before} != held.keys():
                    await self._share_holds(ref, report)
                return entry.consumer
            await self._catalog.settled(report.model_id)
            await asyncio.sleep(0)

    async def _look_up(self, ref: ModelRef, report: Consumer, before: Sequence[int]) -> dict[int, VersionInfo | None]:
        """Return the versions that a consumer wants to hold; None for those that it holds already."""
        held: dict[int, VersionInfo | None] = {}
        for number in report.held_versions:
            held[number] = None
            if number not in before:
                [info] = await self._catalog.get_versions(ref.model_id, [number])
                if not info.archived:
                    await self._transient.fetch(info)
                if not info.archived and not self._held.is_in_memory(info):
                    # It was evicted; or its bytes lie with the archived ones, and nothing evicts it.
                    async with await self._transient.open_version(info):
                        info = replace(info, archived=True)
                held[number] = info
        return held

    async def _share_holds(self, ref: ModelRef, report: Consumer) -> None:
        """Let other servers know what consumers hold, and give up what a consumer cannot hold any more."""
        try:
            await self._set_holds(ref)
        except NotFoundError:
            entry = self._entry_of(ref, report.consumer_id)
            if entry is not None:
                self._held.release(ref, report.consumer_id, entry.consumer.held_versions)
                entry.consumer = replace(entry.consumer, held_versions=())
            self._unshared.add(ref)
            raise

    async def _set_holds(self, ref: ModelRef) -> None:
        """Set what is held now in the catalog; one after the other, so that the last state stays."""
        async with self._sharing:
            await self._catalog.set_holds(ref, self._held.of(ref))

    def share_all(self) -> None:
        """Let other servers soon know all that consumers hold: they have forgotten it."""
        self._unshared.update(group.ref for group in self._groups.values())

    async def share_holds(self) -> None:
        """Let other servers know what consumers hold, where that has changed without a report.

        Raises:
            UnavailableError: The catalog is not available; it is done by the next call.
        """
        while self._unshared:
            ref = self._unshared.pop()
            try:
                await self._set_holds(ref)
            except NotFoundError:  # they are over as well
                continue
            except BaseException:
                self._unshared.add(ref)
                raise

    def _held_by(self, ref: ModelRef, consumer_id: str) -> Sequence[int]:
        entry = self._entry_of(ref, consumer_id)
        return entry.consumer.held_versions if entry else ()

    def _leave(self, ref: ModelRef, report: Consumer, newer: Newer) -> Consumer:
        """Record that a consumer is gone, as it says itself; who is not known need not leave."""
        entry = self._entry_of(ref, report.consumer_id)
        if entry is None:
            return self._with_lag(_Entry(report), newer)
        if entry.consumer.is_live:
            self._end(entry, self._now())
        return entry.consumer

    def _record(
        self, ref: ModelRef, report: Consumer, held: Mapping[int, VersionInfo | None], newer: Newer
    ) -> _Entry | None:
        """Record a report; None if a version to be held was removed, or released by another report."""
        entry = self._entry_of(ref, report.consumer_id)
        before = entry.consumer.held_versions if entry else ()
        if any(info is None and number not in before for number, info in held.items()):
            return None
        if entry is None:
            self._make_room(report)
        if not self._held.change(ref, report.consumer_id, before, held):
            return None
        if entry is None:
            group = self._groups.setdefault(ref.model_id, _Group(ref))
            entry = group.entries[report.consumer_id] = _Entry(replace(report, state="gone"))
            self._count += 1
        self._update(entry, report, newer)
        return entry

    def _make_room(self, report: Consumer) -> None:
        """Forget who has been gone for the longest time, if there is no room for one more consumer."""
        if self._count < self._max:
            return
        if not self._gone:
            message = (
                f"no room for consumer {quoted(report.consumer_id)}: "
                f"{counted(self._count, 'consumer')} report already, and consumers_max allows no more"
            )
            raise TooLargeError(message, model_id=report.model_id)
        self._drop(next(iter(self._gone)))

    def _update(self, entry: _Entry, report: Consumer, newer: Newer) -> None:
        before = entry.consumer
        if report.version_number != before.version_number:
            entry.behind_since_ns = None
        entry.consumer = report
        entry.consumer = self._with_lag(entry, newer, reported_ns=self._now_ns())
        self._gone.pop(entry, None)
        entry.due = self._now() + report.ttl_seconds
        self._enqueue(entry)
        if _reported(before) != _reported(report):
            self._notify(entry.consumer)

    def _with_lag(self, entry: _Entry, newer: Newer, reported_ns: int | None = None) -> Consumer:
        """Return a consumer with what it lacks now, and perhaps with a new time of its report."""
        consumer = entry.consumer
        reported_ns = consumer.reported_ns if reported_ns is None else reported_ns
        if not newer.versions or newer.since_ns is None:
            entry.behind_since_ns, seconds = None, 0.0
        else:
            # Once known it stays: a catalog forgets when very old versions became visible.
            entry.behind_since_ns = min(newer.since_ns, entry.behind_since_ns or newer.since_ns)
            seconds = max(self._now_ns() - entry.behind_since_ns, 0) / 1e9
        return consumer.with_lag(newer.versions, seconds, reported_ns)

    def _notify(self, consumer: Consumer) -> None:
        for listener in [*self._listeners]:
            listener(consumer)

    # Who is gone.

    def expire(self) -> None:
        """Notice which consumers did not report in time, and forget those that have been gone for a while."""
        now = self._now()
        while self._queue and self._queue[0][0] <= now:
            moment, _, entry = heapq.heappop(self._queue)
            if entry.is_dropped or moment != entry.queued:
                continue
            entry.queued = float("inf")
            if entry.due > now:
                self._enqueue(entry)
            elif entry.consumer.is_live:
                self._end(entry, now)
            else:
                self._drop(entry)

    def _enqueue(self, entry: _Entry) -> None:
        """Let the queue have an entry no later than when it is due."""
        if entry.due >= entry.queued:
            return
        entry.queued = entry.due
        heapq.heappush(self._queue, (entry.queued, next(self._turns), entry))
        if len(self._queue) > 2 * self._count + 64:
            entries = [each for group in self._groups.values() for each in group.entries.values()]
            self._queue = [(each.queued, next(self._turns), each) for each in entries]
            heapq.heapify(self._queue)

    def _end(self, entry: _Entry, now: float) -> None:
        """Record that a consumer is gone, which ends its holds."""
        consumer = entry.consumer
        self._release(self._groups[consumer.model_id].ref, consumer)
        entry.consumer = replace(consumer, state="gone", held_versions=())
        entry.due = now + GONE_SECONDS
        self._gone[entry] = None
        self._enqueue(entry)
        self._notify(entry.consumer)

    def _release(self, ref: ModelRef, consumer: Consumer) -> None:
        """End the holds of a consumer."""
        if consumer.held_versions:
            self._held.release(ref, consumer.consumer_id, consumer.held_versions)
            self._unshared.add(ref)

    def _drop(self, entry: _Entry) -> None:
        """Forget a consumer."""
        consumer = entry.consumer
        group = self._groups[consumer.model_id]
        self._release(group.ref, consumer)
        del group.entries[consumer.consumer_id]
        if not group.entries:
            del self._groups[consumer.model_id]
        self._gone.pop(entry, None)
        self._count -= 1
        entry.is_dropped = True

    def _entry_of(self, ref: ModelRef, consumer_id: str) -> _Entry | None:
        """Return a consumer if it is known; forget those of an earlier model of the same id."""
        group = self._groups.get(ref.model_id)
        if group is not None and group.ref != ref:
            self._forget_model(ref.model_id)
            group = None
        return group.entries.get(consumer_id) if group else None

    def _forget_model(self, model_id: str) -> None:
        """Forget the consumers of a model that was deleted."""
        group = self._groups.get(model_id)
        for entry in [*group.entries.values()] if group else ():
            self._drop(entry)
        self._groups.pop(model_id, None)

    def _note_removed(self, ref: ModelRef, number: int) -> None:
        """End the holds on a version that was deleted by force."""
        self._removals += 1
        group = self._groups.get(ref.model_id)
        if group is None or group.ref != ref:
            return
        for consumer_id in self._held.consumers_of(ref, number):
            entry = group.entries[consumer_id]
            left = tuple(each for each in entry.consumer.held_versions if each != number)
            entry.consumer = replace(entry.consumer, held_versions=left)
        self._held.end(ref, number)

    # Listings.

    async def find(
        self,
        model_id: str | None = None,
        accepted: Filter = EVERYTHING,
        after: tuple[str, str] = ("", ""),
        limit: int | None = None,
    ) -> list[Consumer]:
        """Return consumers with their lag, ordered by model and id.

        Args:
            model_id: Those of a model; of all models when None.
            accepted: Those that a filter accepts.
            after: Those that come after a model and an id.
            limit: At most so many; all when None.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: The model does not exist.
        """
        if model_id is not None:
            self._registry.check_model_id(model_id)
            await self._catalog.find(model_id)
        if self._find_elsewhere is None:
            return await self.find_here(model_id, accepted, after, limit)
        found: list[Consumer] = []
        while True:
            # Of a consumer that has moved, the last report counts; so it is filtered after that is known.
            left = None if limit is None else limit - len(found)
            here = await self.find_here(model_id, EVERYTHING, after, left)
            page = _merged([*here, *await self._find_elsewhere(model_id, after, left)])[:left]
            found += [consumer for consumer in page if matches(accepted, consumer)]
            if left is None or len(page) < left or len(found) == limit:
                return found
            after = _key(page[-1])

    async def find_here(
        self,
        model_id: str | None = None,
        accepted: Filter = EVERYTHING,
        after: tuple[str, str] = ("", ""),
        limit: int | None = None,
    ) -> list[Consumer]:
        """Return consumers that report to this server; see `find`."""
        self.expire()
        model_ids = [model_id] if model_id is not None else sorted(each for each in self._groups if each >= after[0])
        found: list[Consumer] = []
        for each in model_ids:
            first = after[1] if each == after[0] else ""
            left = None if limit is None else limit - len(found)
            found += await self._find_in(each, accepted, first, left)
            if limit is not None and len(found) >= limit:
                break
        return found

    async def _find_in(self, model_id: str, accepted: Filter, after: str, limit: int | None) -> list[Consumer]:
        """Return consumers of a model, without those of an earlier model of the same id."""
        found: list[Consumer] = []
        newer: dict[int, Newer] = {}
        group = self._groups.get(model_id)
        if group is None:
            return found
        try:
            if await self._catalog.find(model_id) != group.ref:
                raise NotFoundError.model(model_id)
            for position, consumer_id in enumerate(sorted(each for each in group.entries if each > after), 1):
                consumer = await self._look_at(group, consumer_id, newer)
                if consumer is not None and matches(accepted, consumer):
                    found.append(consumer)
                if limit is not None and len(found) >= limit:
                    break
                if position % _LISTED_AT_ONCE == 0:
                    await asyncio.sleep(0)
        except NotFoundError:
            if self._groups.get(model_id) is group:
                self._forget_model(model_id)
            return []
        return found

    async def _look_at(self, group: _Group, consumer_id: str, newer: dict[int, Newer]) -> Consumer | None:
        """Return a consumer with its lag; None if it was forgotten. What is newer than versions is noted."""
        # It may report while the catalog is asked.
        while (entry := group.entries.get(consumer_id)) and (number := entry.consumer.version_number) not in newer:
            newer[number] = await self._catalog.newer_than(group.ref.model_id, number)
        if entry is None:
            return None
        entry.consumer = self._with_lag(entry, newer[entry.consumer.version_number])
        return entry.consumer

    async def summarize(self) -> list[ConsumerSummary]:
        """Return the consumers of each model that report to this server, ordered by model."""
        summaries: dict[str, list[Consumer]] = {}
        for consumer in await self.find_here():
            summaries.setdefault(consumer.model_id, []).append(consumer)
        return [_summary(model_id, consumers) for model_id, consumers in summaries.items()]


def _summary(model_id: str, consumers: Sequence[Consumer]) -> ConsumerSummary:
    running = [each for each in consumers if each.is_live and each.version_number]
    return ConsumerSummary(
        model_id,
        Counter(each.state for each in consumers),
        max((each.versions_behind for each in running), default=None),
        max((each.seconds_behind for each in running), default=None),
    )


def _key(consumer: Consumer) -> tuple[str, str]:
    return consumer.model_id, consumer.consumer_id


def _merged(consumers: Sequence[Consumer]) -> list[Consumer]:
    """Return the last report of each consumer, ordered by model and id."""
    latest: dict[tuple[str, str], Consumer] = {}
    for consumer in consumers:
        other = latest.get(_key(consumer))
        if other is None or (other.is_live, other.reported_ns) < (consumer.is_live, consumer.reported_ns):
            latest[_key(consumer)] = consumer
    return [latest[key] for key in sorted(latest)]


def _reported(consumer: Consumer) -> tuple[object, ...]:
    """Return the parts of a consumer whose changes are reported to listeners."""
    return (consumer.version_number, consumer.state, consumer.error, consumer.labels, consumer.held_versions)
