"""How the pages write sizes, times, numbers and addresses: rounded for people; titles have exact values."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from cogment_model_registry.errors import InvalidError
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


def sentence(text: str) -> str:
    """Return a message as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def path_of(*parts: str | int) -> str:
    """Return a path of names and numbers, each of which is one part of it."""
    return "/" + "/".join(quote(str(part), safe="") for part in parts)


def with_query(path: str, **values: object) -> str:
    """Return a path with a query of those values that are given."""
    given = {name: str(value) for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def ranges_text(numbers: Sequence[int], ranges_max: int | None = None) -> str:
    """Return numbers in ascending order as ranges, such as ``1-3, 7``.

    Args:
        numbers: The numbers.
        ranges_max: How many ranges the text has at most; None for all.
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = ranges if ranges_max is None else ranges[:ranges_max]
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in shown]
    left = sum(last - first + 1 for first, last in ranges[len(shown) :])
    return ", ".join(texts) + (f" and {count_text(left)} others" if left else "")


_NUMBERS_MAX = 100_000
_DIGITS_MAX = 10


def numbers_in(text: str) -> list[int]:
    """Return the numbers of a text of `ranges_text`, in ascending order.

    Raises:
        InvalidError: It is malformed, or has very many numbers.
    """
    numbers: list[int] = []
    for part in text.split(", ") if text else ():
        first, dash, last = part.partition("-")
        ends = [
            int(end) if end.isascii() and end.isdecimal() and len(end) <= _DIGITS_MAX else 0
            for end in (first, last if dash else first)
        ]
        if not 0 < ends[0] <= ends[1] or ends[0] <= (numbers[-1] if numbers else 0):
            raise InvalidError("the numbers of the versions are malformed")
        if ends[1] - ends[0] + len(numbers) >= _NUMBERS_MAX:
            raise InvalidError(f"more than {count_text(_NUMBERS_MAX)} versions cannot be deleted at a time")
        numbers += range(ends[0], ends[1] + 1)
    return numbers


FILTERS: Mapping[str, Any] = {
    "size": size_text,
    "span": span_text,
    "moment": moment_text,
    "machine_time": machine_time,
    "count": count_text,
    "metric": metric_text,
    "rate": rate_text,
    "sentence": sentence,
}
"""The filters of the templates."""
