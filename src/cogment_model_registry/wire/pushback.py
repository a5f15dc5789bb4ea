"""What a server says at the end of a call that it refuses: when to call again, and whether another server may help.

The first is metadata which the retries of stock clients of gRPC keep to, if they are configured to repeat calls that
end with the status (https://github.com/grpc/proposal/blob/master/A6-client-retries.md). The second is our own.
"""

import math
from typing import Any

from cogment_model_registry.errors import LimitedError, ModelRegistryError, OutOfServiceError, UnavailableError

PUSHBACK_KEY = "grpc-retry-pushback-ms"

SERVING_KEY = "cogment-model-registry-serving"
"""Comes with UNAVAILABLE where only this request cannot be done now, and the server goes on."""

_MAX_MS = 2**31 - 1
"""The largest number that clients understand."""


def pushback(error: ModelRegistryError) -> tuple[tuple[str, str], ...]:
    """Return the metadata at the end of a call that failed."""
    if isinstance(error, LimitedError):
        return ((PUSHBACK_KEY, str(min(math.ceil(error.retry_after_seconds * 1000), _MAX_MS))),)
    if isinstance(error, UnavailableError) and not isinstance(error, OutOfServiceError):
        return ((SERVING_KEY, "true"),)
    return ()


def retry_after_seconds(error: Any) -> float | None:
    """Return when to call again after a call that failed, as its server says; None if it does not.

    Args:
        error: What gRPC raised, of either flavour.
    """
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY and isinstance(value, str) and value.isascii() and value.isdecimal():
            return min(int(value[:10]), _MAX_MS) / 1000
    return None


def is_serving(error: Any) -> bool:
    """Return whether the server of a call that failed says that it goes on, and only this request cannot be done.

    Args:
        error: What gRPC raised, of either flavour.
    """
    return any(key == SERVING_KEY for key, _ in error.trailing_metadata() or ())
