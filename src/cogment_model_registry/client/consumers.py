"""What the client offers for consumers: reports, lists, and waiting until they run a version."""

from collections.abc import Iterable, Mapping
from typing import SupportsIndex

from cogment_model_registry.client.arguments import (
    checked_id,
    checked_key,
    checked_limit,
    checked_tags,
    checked_text,
    checked_whole,
)
from cogment_model_registry.client.barriers import Barrier, Goal
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.client.lifecycle_calls import LifecyclePart, look_up
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.consumers import STATES, TTL_DEFAULT_SECONDS, Consumer


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
            checked_limit(limit),
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
        goal = await self._goal(
            checked_id(model_id), key, deadline, count=count, max_versions_behind=max_versions_behind, accepted=accepted
        )
        return await Barrier(self._calls, goal, deadline).passed()

    async def _goal(
        self,
        model_id: str,
        key: Key | None,
        deadline: Deadline,
        *,
        count: SupportsIndex | None,
        max_versions_behind: SupportsIndex | None,
        accepted: str,
    ) -> Goal:
        number = most_behind = None
        if key is not None:
            checked = checked_key(model_id, key)
            is_number = isinstance(checked, int) and checked > 0
            number = int(checked) if is_number else (await look_up(self._calls, model_id, checked, deadline)).number
        if max_versions_behind is not None:
            most_behind = checked_whole("max_versions_behind", max_versions_behind)
        if number is None and most_behind is None:
            raise InvalidError("nothing to wait for: give the version, or max_versions_behind")
        wanted = None if count is None else checked_whole("count", count)
        if wanted is not None and wanted < 1:
            raise InvalidError(f"count is {wanted}; it must be at least 1, or None for all consumers")
        return Goal(model_id, number, most_behind, checked_text("the filter", accepted), wanted)


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
    set_labels, removed = checked_tags(labels or {}, "labels")
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
