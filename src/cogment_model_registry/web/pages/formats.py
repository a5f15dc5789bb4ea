"""How the pages write sizes, times, numbers and addresses: rounded for people; titles have exact values."""

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from cogment_model_registry.records.sizes import size_text

NS_PER_SECOND = 10**9
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s"))


def span_text(seconds: float) -> str:
    """Return a span of time in its largest unit, or in two units where one would be too coarse."""
    if seconds < 1:
        return "0 s" if seconds < 0.05 else f"{seconds:.1f} s"
    for position, (unit, name) in enumerate(_UNITS):
        if seconds >= unit:
            whole = int(seconds // unit)
            if whole < 10 and position < len(_UNITS) - 2:
                smaller, smaller_name = _UNITS[position + 1]
                rest = int(seconds % unit // smaller)
                return f"{whole} {name} {rest} {smaller_name}" if rest else f"{whole} {name}"
            return f"{whole} {name}"
    raise AssertionError(seconds)


def ago_text(time_ns: int, now_ns: int) -> str:
    """Return how long ago a time was; ``just now`` for less than a second, and for times in the future."""
    seconds = (now_ns - time_ns) / NS_PER_SECOND
    return "just now" if seconds < 1 else f"{span_text(seconds)} ago"


def moment_text(time_ns: int) -> str:
    """Return a time in UTC, to the second."""
    moment = datetime.fromtimestamp(time_ns // NS_PER_SECOND, timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def machine_time(time_ns: int) -> str:
    """Return a time in the format of the attribute ``datetime``."""
    return f"{datetime.fromtimestamp(time_ns // NS_PER_SECOND, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def count_text(number: int) -> str:
    """Return a number with separators of thousands."""
    return f"{number:,}"


def metric_text(value: float) -> str:
    """Return a metric with as many digits as people compare."""
    if value and (abs(value) >= 1e7 or abs(value) < 1e-4):
        return f"{value:.4g}"
    if math.isclose(value, round(value)) and abs(value) < 1e7:
        return f"{round(value)}"
    return f"{value:.6g}"


def rate_text(per_second: float | None) -> str:
    """Return how often versions are published, in the unit that makes it at least one."""
    if per_second is None or per_second <= 0:
        return "\N{EN DASH}"
    for unit, name in ((1, "s"), (_MINUTE, "min"), (_HOUR, "h")):
        if per_second * unit >= 1:
            return f"{per_second * unit:.3g} / {name}"
    return f"{per_second * _DAY:.2g} / d"


def path_of(*parts: str | int) -> str:
    """Return a path of names and numbers, each of which is one part of it."""
    return "/" + "/".join(quote(str(part), safe="") for part in parts)


def with_query(path: str, **values: object) -> str:
    """Return a path with a query of those values that are given."""
    given = {name: str(value) for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


FILTERS: Mapping[str, Any] = {
    "size": size_text,
    "span": span_text,
    "moment": moment_text,
    "machine_time": machine_time,
    "count": count_text,
    "metric": metric_text,
    "rate": rate_text,
}
"""The filters of the templates."""
