"""Wait for conditions by polling, in bounded time.

Wait directly for events that are reported, such as a line of a log or a reply.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

PATIENCE_SECONDS = 60.0
"""A time limit that suffices on a busy machine."""

_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


def _pauses(describe: Callable[[], object] | None, within_seconds: float) -> Iterator[float]:
    """Yield the pause after each check, and fail after a check at the end of the time."""
    deadline = time.monotonic() + within_seconds
    is_over = False
    pause_seconds = _FIRST_PAUSE_SECONDS
    while not is_over:
        is_over = time.monotonic() >= deadline
        yield pause_seconds
        pause_seconds = min(pause_seconds * 1.3, _LONGEST_PAUSE_SECONDS)
    state = f": {describe()}" if describe else ""
    raise AssertionError(f"it did not happen within {within_seconds:g} s{state}")


def wait_until(
    check: Callable[[], _T | None],
    describe: Callable[[], object] | None = None,
    within_seconds: float = PATIENCE_SECONDS,
) -> _T:
    """Block until a check returns a true value, and return this value.

    Args:
        check: The check.
        describe: Returns the state that a failure shows.
        within_seconds: The time limit.
    """
    for pause_seconds in _pauses(describe, within_seconds):
        if found := check():
            return found
        time.sleep(pause_seconds)
    raise AssertionError("unreachable")


async def until(
    check: Callable[[], _T | None],
    describe: Callable[[], object] | None = None,
    within_seconds: float = PATIENCE_SECONDS,
) -> _T:
    """Wait as `wait_until` does, without blocking the event loop."""
    for pause_seconds in _pauses(describe, within_seconds):
        if found := check():
            return found
        await asyncio.sleep(pause_seconds)
    raise AssertionError("unreachable")


async def eventually(
    check: Callable[[], Awaitable[_T | None]],
    describe: Callable[[], object] | None = None,
    within_seconds: float = PATIENCE_SECONDS,
) -> _T:
    """Wait as `until` does, for an asynchronous check."""
    for pause_seconds in _pauses(describe, within_seconds):
        if found := await check():
            return found
        await asyncio.sleep(pause_seconds)
    raise AssertionError("unreachable")
