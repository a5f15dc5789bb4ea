"""What the client offers for consumers: reports, lists, and waiting until they run a version."""

import time
from collections.abc import Iterable, Mapping
from typing import SupportsIndex

from cogment_model_registry.client.arguments import checked_id, checked_key, checked_tags, checked_text, checked_whole
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.client.lifecycle_calls import LifecycleCalls, LifecyclePart, look_up
from cogment_model_registry.errors import InvalidError, TimedOutError, counted, quoted
from cogment_model_registry.records.consumers import STATES, TTL_DEFAULT_SECONDS, Consumer

_PAUSE_MIN_SECONDS = 0.003
_PAUSE_MAX_SECONDS = 0.25
_PAUSE_OF_LOOK_SECONDS = 0.02
"""The pauses between two looks at consumers that are waited for: a hundredth of the time that was waited, and twice
what a look takes if that is not long, so that waiting costs the registry little."""

_NAMED_MAX = 3
"""How many of the consumers that it waited for an error names."""

_NAMING_SECONDS = 2.0
"""How long it may take to find them."""

_LAST_LOOK_SECONDS = 1.0
"""How long the last look may take, which begins when the time is over."""


class Consumers(LifecyclePart):
    """The calls of a client for consumers."""

    async def report(self, report: Consumer, timeout: float | None) -> Consumer:
        """See `ModelRegistry.report_consumer`."""
        return await self._calls_within(timeout).report_consumer(report)

    async def find(
        self, model_id: str | None, accepted: str, limit: int | None, timeout: float | None
    ) -> list[Consumer]:
        """See `ModelRegistry.consumers`."""
        return await self._calls_within(timeout).find_consumers(
            "" if model_id is None else checked_id(model_id),
            checked_text("the filter", accepted),
            None if limit is None else checked_whole("limit", limit),
        )

    async def wait_for(
        self,
        model_id: str,
        key: Key | None,
        timeout: float | None,
        *,
        count: SupportsIndex | None,
        max_versions_behind: SupportsIndex | None,
        accepted: str,
    ) -> list[Consumer]:
        """See `ModelRegistry.wait_for_consumers`."""
        deadline = self._timeouts.of_call(timeout)
        goal = await self._goal(checked_id(model_id), key, max_versions_behind, accepted, deadline)
        wanted = None if count is None else checked_whole("count", count)
        if wanted is not None and wanted < 1:
            raise InvalidError(f"count is {wanted}; it must be at least 1, or None for all consumers")
        began = time.monotonic()
        while True:
            left_seconds, look_began = deadline.left_seconds(), time.monotonic()
            calls = LifecycleCalls(self._calls, Deadline(max(left_seconds, _LAST_LOOK_SECONDS)))
            found = await goal.look(calls, wanted)
            if found:
                return found
            now = time.monotonic()
            if not left_seconds:
                raise await self._timed_out(goal, wanted, now - began)
            pause = min(max((now - began) / 100, _PAUSE_MIN_SECONDS), _PAUSE_MAX_SECONDS)
            pause = max(pause, min(2 * (now - look_began), _PAUSE_OF_LOOK_SECONDS))
            await self._calls.backend.sleep(min(pause, deadline.left_seconds()))

    async def _goal(
        self,
        model_id: str,
        key: Key | None,
        max_versions_behind: SupportsIndex | None,
        accepted: str,
        deadline: Deadline,
    ) -> "_Goal":
        number = most_behind = None
        if key is not None:
            checked = checked_key(model_id, key)
            is_number = isinstance(checked, int) and checked > 0
            number = int(checked) if is_number else (await look_up(self._calls, model_id, checked, deadline)).number
        if max_versions_behind is not None:
            most_behind = checked_whole("max_versions_behind", max_versions_behind)
        if number is None and most_behind is None:
            raise InvalidError("nothing to wait for: give the version, or max_versions_behind")
        return _Goal(model_id, number, most_behind, checked_text("the filter", accepted))

    async def _timed_out(self, goal: "_Goal", wanted: int | None, seconds: float) -> TimedOutError:
        """Return the error that says who is behind."""
        calls = LifecycleCalls(self._calls, Deadline(_NAMING_SECONDS))
        there = await calls.find_consumers(goal.model_id, goal.those_there, None)
        behind = await calls.find_consumers(goal.model_id, goal.those_behind, _NAMED_MAX + 1)
        names = [f"{quoted(each.consumer_id)} {_running(each)}" for each in behind[:_NAMED_MAX]]
        if len(behind) > _NAMED_MAX:
            names.append("others")
        asked = "all consumers" if wanted is None else counted(wanted, "consumer")
        message = (
            f"waiting for {asked} of model {quoted(goal.model_id)} to {goal}: "
            f"{len(there)} of them after {counted(round(seconds, 3), 'second')}"
        )
        if names:
            message += f"; not yet: {', '.join(names)}"
        return TimedOutError(message, model_id=goal.model_id)


class _Goal:
    """What consumers are waited for to do, as filters.

    Attributes:
        model_id: The model.
        those_there: Accepts those that do it.
        those_behind: Accepts those that do not.
    """

    def __init__(self, model_id: str, number: int | None, most_behind: int | None, accepted: str) -> None:
        self.model_id = model_id
        conditions, words = ["version_number > 0"], []
        if number is not None:
            conditions.append(f"version_number >= {number}")
            words.append(f"run version {number} or a later one")
        if most_behind is not None:
            conditions.append(f"versions_behind <= {most_behind}")
            words.append(f"be at most {counted(most_behind, 'version')} behind")
        self._text = " and ".join(words)
        live = "NOT state = gone" + (f" AND ({accepted})" if accepted.strip() else "")
        met = " AND ".join(conditions)
        self.those_there = f"{live} AND {met}"
        self.those_behind = f"{live} AND NOT ({met})"

    def __str__(self) -> str:
        return self._text

    async def look(self, calls: LifecycleCalls, wanted: int | None) -> list[Consumer]:
        """Return the consumers that do it, if those are so many; or all of them, if there are any."""
        if wanted is None:
            if await calls.find_consumers(self.model_id, self.those_behind, 1):
                return []
            return await calls.find_consumers(self.model_id, self.those_there, None)
        found = await calls.find_consumers(self.model_id, self.those_there, wanted)
        return found if len(found) == wanted else []


def _running(consumer: Consumer) -> str:
    running = f"runs version {consumer.version_number}" if consumer.version_number else "runs none"
    return f"({consumer.state}, {running})"


def checked_report(
    model_id: str,
    consumer_id: str,
    *,
    version: SupportsIndex | None = None,
    state: str = "active",
    error: str = "",
    labels: Mapping[str, str] | None = None,
    ttl_seconds: SupportsIndex = TTL_DEFAULT_SECONDS,
    held_versions: Iterable[SupportsIndex] = (),
) -> Consumer:
    """Return a report, whose rules are the server's.

    Raises:
        InvalidError: An argument has the wrong type, or the state does not exist.
    """
    known = next((each for each in STATES if each == state), None)
    if known is None:
        raise InvalidError(f"state is {state!r}; it must be one of {', '.join(STATES)}")
    set_labels, removed = checked_tags(labels or {})
    if removed:
        raise InvalidError(f"labels[{removed[0]!r}] is None; it must be a string")
    try:
        numbers = tuple(checked_whole("a held version", number) for number in held_versions)
    except TypeError:
        raise InvalidError(f"held_versions is {held_versions!r}; it must be a list of numbers") from None
    report = Consumer(
        checked_id(model_id),
        checked_text("consumer_id", consumer_id),
        0 if version is None else checked_whole("version", version),
        known,
        checked_text("error", error),
        set_labels,
        checked_whole("ttl_seconds", ttl_seconds),
        numbers,
    )
    if not all(0 <= number < 2**63 for number in (report.version_number, *numbers)):
        raise InvalidError("the numbers of versions must be from 1 on")
    if not 0 <= report.ttl_seconds < 2**32:
        raise InvalidError(f"ttl_seconds is {ttl_seconds!r}; it must be a number of seconds")
    return report
