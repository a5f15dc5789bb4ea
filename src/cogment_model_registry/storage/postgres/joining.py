"""One query for all who ask the same at once: a thousand actors that fetch the newest version of a model.

Whoever asks joins a query that has not been sent yet, never one that is under way: that one may have looked before a
change that the caller knows of.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Joining:
    """Queries by what they ask: of each, one is under way at most, and one waits for its end."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Future[Any]] = {}
        self._next: dict[Hashable, asyncio.Future[Any]] = {}

    async def result(self, key: Hashable, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Return the result of a query that is sent after this call began; it goes on when a caller is cancelled.

        Args:
            key: What it asks.
            ask: Sends it.
        """
        waiting = self._next.get(key)
        if waiting is None:
            waiting = self._next[key] = asyncio.ensure_future(self._ask(key, ask))
            waiting.add_done_callback(_retrieve)
        return await asyncio.shield(waiting)

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[_T]]) -> _T:
        before = self._under_way.get(key)
        if before is not None:
            await asyncio.wait([before])
        own = self._under_way[key] = self._next.pop(key)
        try:
            return await ask()
        finally:
            if self._under_way.get(key) is own:
                del self._under_way[key]


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Keep asyncio from reporting an error that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
