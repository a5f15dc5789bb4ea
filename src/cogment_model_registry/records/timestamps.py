"""Points in time as text: RFC 3339 with nanoseconds (https://www.rfc-editor.org/rfc/rfc3339)."""

import calendar
import datetime
import re
from functools import lru_cache

from cogment_model_registry.records.versions import CREATED_MAX_NS

_NS_PER_SECOND = 10**9

_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})(?:[Tt]|[ \t]+)([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{0,9}))?"
    r"[ \t]*(?:[Zz]|([+-])([0-9]{1,2}):?([0-9]{2}))"
)


def format_timestamp(ns: int) -> str:
    """Return nanoseconds since the Unix epoch as RFC 3339, in UTC."""
    seconds, fraction_ns = divmod(ns, _NS_PER_SECOND)
    return f"{_format_seconds(seconds)}.{fraction_ns:09d}Z"


@lru_cache(64)  # most times that are formatted are of this second
def _format_seconds(seconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc):%Y-%m-%dT%H:%M:%S}"


def parse_timestamp(text: str) -> int:
    """Return the nanoseconds since the Unix epoch of an RFC 3339 text, within the range of the wire.

    A time before the epoch, such as the one that the original writes for "none", is 0.

    Raises:
        ValueError: The text is malformed.
    """
    match = _TIMESTAMP.fullmatch(text)
    if not match:
        raise ValueError("not a time in RFC 3339")
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = match.groups()
    moment = datetime.datetime(
        int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=datetime.timezone.utc
    )
    offset_seconds = (int(hours or 0) * 60 + int(minutes or 0)) * (-60 if sign == "-" else 60)
    seconds = calendar.timegm(moment.utctimetuple()) - offset_seconds
    fraction_ns = int((fraction or "0").ljust(9, "0"))
    return min(max(seconds * _NS_PER_SECOND + fraction_ns, 0), CREATED_MAX_NS)
