"""Consumers on the pages: which are furthest behind, and how many run which version."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.web.registries import Registry

CONSUMERS_MAX = 10_000
"""How many consumers are looked at; as many as a server knows by default."""


@dataclass(frozen=True, slots=True)
class Row:
    """A consumer, as a row shows it.

    Attributes:
        consumer: The consumer.
        behind_since_ms: When the first version that it does not have became visible, in milliseconds since the Unix
            epoch; 0 if it runs the newest. Rounded, so that a row stays as it is while time passes.
    """

    consumer: Consumer
    behind_since_ms: int

    @property
    def key(self) -> str:
        """The key of the row."""
        return f"{self.consumer.model_id}/{self.consumer.consumer_id}"

    @property
    def is_notable(self) -> bool:
        """Whether it is live, and is behind or failed to load a version."""
        return self.consumer.is_live and (self.consumer.versions_behind > 0 or self.consumer.state == "failed")


@dataclass(frozen=True, slots=True)
class Share:
    """How many consumers run a version.

    Attributes:
        version_number: The version; 0 for none yet.
        count: How many run it.
        versions_behind: How many versions are newer.
    """

    version_number: int
    count: int
    versions_behind: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The consumers of a model, or of all.

    Attributes:
        live: How many still report.
        gone: How many have ended or stopped reporting.
        behind: How many of the live ones do not run the newest version.
        failed: How many of them failed to load one.
        greatest: The most versions that one of them is behind.
        rows: The live ones, those that are furthest behind first; then those that are gone.
        shares: By version how many of the live ones run it, the newest version first.
    """

    live: int
    gone: int
    behind: int
    failed: int
    greatest: int
    rows: Sequence[Row]
    shares: Sequence[Share]


def _urgency(consumer: Consumer) -> tuple[object, ...]:
    """Return the sort key of consumers: those that are furthest behind first."""
    return (
        not consumer.is_live,
        -consumer.versions_behind,
        consumer.state != "failed",
        -round(consumer.seconds_behind),
        consumer.model_id,
        consumer.consumer_id,
    )


def overview_of(consumers: Sequence[Consumer], now: float | None = None) -> Overview:
    """Return the overview of some consumers.

    Args:
        consumers: The consumers.
        now: Seconds since the Unix epoch when they were listed; None for now.
    """
    now = time.time() if now is None else now
    live = [each for each in consumers if each.is_live]
    counts = Counter(each.version_number for each in live)
    behind = {each.version_number: each.versions_behind for each in live}
    shares = [Share(number, counts[number], behind[number]) for number in sorted(counts, reverse=True)]
    return Overview(
        live=len(live),
        gone=len(consumers) - len(live),
        behind=sum(each.versions_behind > 0 for each in live),
        failed=sum(each.state == "failed" for each in live),
        greatest=max((each.versions_behind for each in live), default=0),
        rows=[Row(each, _since_ms(each, now)) for each in sorted(consumers, key=_urgency)],
        shares=shares,
    )


def _since_ms(consumer: Consumer, now: float) -> int:
    if not consumer.seconds_behind or not consumer.is_live:
        return 0
    return round(now - consumer.seconds_behind) * 1000


def by_model(consumers: Sequence[Consumer]) -> dict[str, tuple[int, int]]:
    """Return by model how many live consumers it has, and the most versions that one of them is behind."""
    found: dict[str, tuple[int, int]] = {}
    for each in consumers:
        if each.is_live:
            count, greatest = found.get(each.model_id, (0, 0))
            found[each.model_id] = (count + 1, max(greatest, each.versions_behind))
    return found


async def read_consumers(registry: Registry, model_id: str | None) -> list[Consumer]:
    """Return the consumers of a model, or of all; at most `CONSUMERS_MAX`."""
    return await registry.consumers(model_id, limit=CONSUMERS_MAX)
