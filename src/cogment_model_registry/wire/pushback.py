"""When to call again: what a server says that refuses a call for now.

It is metadata at the end of the call, which the retries of stock clients of gRPC keep to, if they are configured to
repeat calls that end with the status (https://github.com/grpc/proposal/blob/master/A6-client-retries.md).
"""

import math
from typing import Any

from cogment_model_registry.errors import LimitedError, ModelRegistryError

PUSHBACK_KEY = "grpc-retry-pushback-ms"

_MAX_MS = 2**31 - 1
"""The largest number that clients understand."""


def pushback(error: ModelRegistryError) -> tuple[tuple[str, str], ...]:
    """Return the metadata at the end of a call that failed: when to call again, if that is known."""
    if not isinstance(error, LimitedError):
        return ()
    return ((PUSHBACK_KEY, str(min(math.ceil(error.retry_after_seconds * 1000), _MAX_MS))),)


def retry_after_seconds(error: Any) -> float | None:
    """Return when to call again after a call that failed, as its server says; None if it does not.

    Args:
        error: What gRPC raised, of either flavour.
    """
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY and isinstance(value, str) and value.isascii() and value.isdecimal():
            return min(int(value[:10]), _MAX_MS) / 1000
    return None
