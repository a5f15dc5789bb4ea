"""Deadlines of calls, and the waits between their attempts."""

import random
import time

_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 2.0


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


class Backoff:
    """How long to wait before each further attempt: twice as long each time, with jitter."""

    def __init__(self) -> None:
        self._seconds = _BACKOFF_FIRST_SECONDS

    def next_seconds(self) -> float:
        """Return how long to wait now."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, _BACKOFF_MAX_SECONDS)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 # nothing secret
