"""A memory budget in bytes that many tasks share."""

import asyncio
from collections import deque


class ByteBudget:
    """Bytes that many tasks share: a task that needs some waits, in turn, until they are free.

    For one event loop. A request for more than the whole budget takes all of it, so that nobody waits indefinitely.

    Args:
        size_bytes: The size of the budget.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._free_bytes = size_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size_bytes: int) -> int:
        """Wait in turn for so many free bytes, and take them; return how many to give back."""
        size_bytes = min(size_bytes, self._size_bytes)
        if not self._waiting and size_bytes <= self._free_bytes:
            self._free_bytes -= size_bytes
            return size_bytes
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._serve()  # the next ones may have waited only for this one
            else:
                self.give_back(size_bytes)  # its turn came at the same moment
            raise
        return size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Give back what `take` returned."""
        self._free_bytes += size_bytes
        self._serve()

    def _serve(self) -> None:
        """Wake the tasks whose bytes are free."""
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free_bytes):
            size_bytes, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free_bytes -= size_bytes
                turn.set_result(None)
