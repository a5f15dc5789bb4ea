"""Deadlines of calls, and the waits between their attempts."""

import random
import time

from cogment_model_registry.client.arguments import checked_seconds
from cogment_model_registry.errors import LimitedError

CALL_SECONDS = 30.0
"""How long a call that moves no data may take by default, with all retries."""

_TRANSFER_SECONDS = 60.0
_TRANSFER_BYTES_PER_SECOND = 1024 * 1024
_TRANSFER_MAX_SECONDS = 7 * 24 * 3600.0
"""How long a transfer may take by default: a minute, and what it takes at 1 MiB in a second; a week at most."""

_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 2.0
_BACKOFF_FORGOTTEN_SECONDS = 15.0


class Deadline:
    """A deadline.

    Args:
        seconds: The time until then.
    """

    def __init__(self, seconds: float) -> None:
        self._moment = time.monotonic() + seconds

    def left_seconds(self) -> float:
        """Return the seconds until then; never negative."""
        return max(self._moment - time.monotonic(), 0.0)


class Timeouts:
    """How long calls may take.

    Args:
        seconds: What the client was given; None for the defaults.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def of_call(self, timeout: float | None, default_seconds: float = CALL_SECONDS) -> Deadline:
        """Return the deadline of a call that moves no data, for the argument of the caller."""
        return self.wanted(timeout) or Deadline(default_seconds)

    def wanted(self, timeout: float | None) -> Deadline | None:
        """Return the deadline that the caller or the client was given, if any."""
        seconds = self._seconds if timeout is None else checked_seconds("timeout", timeout)
        return None if seconds is None else Deadline(seconds)


def transfer_deadline(size_bytes: int) -> Deadline:
    """Return the deadline of a transfer for which none was given."""
    return Deadline(min(_TRANSFER_SECONDS + size_bytes / _TRANSFER_BYTES_PER_SECOND, _TRANSFER_MAX_SECONDS))


_LATER = 1.25
"""Callers that were told the same come back at different times, up to so many times later than they were told."""


class Backoff:
    """How long to wait before each further attempt, with jitter: twice as long each time, or what the server said.

    After an attempt that lasted for long, it begins again.
    """

    def __init__(self) -> None:
        self._seconds = _BACKOFF_FIRST_SECONDS
        self._last = time.monotonic()

    def next_seconds(self, error: Exception | None = None) -> float:
        """Return how long to wait now.

        Args:
            error: Why the last attempt failed.
        """
        if isinstance(error, LimitedError):
            return error.retry_after_seconds * random.uniform(1.0, _LATER)  # noqa: S311 # nothing secret
        now = time.monotonic()
        seconds = _BACKOFF_FIRST_SECONDS if now - self._last > _BACKOFF_FORGOTTEN_SECONDS else self._seconds
        self._last = now
        self._seconds = min(2 * seconds, _BACKOFF_MAX_SECONDS)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 # nothing secret
