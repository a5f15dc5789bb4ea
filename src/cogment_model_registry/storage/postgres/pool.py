"""A pool of connections.

asyncpg has one too. It resets each connection when it is given back, which is one more trip, and takes a connection
that is lost away from whoever uses it, whose next call then fails with a misleading error.
"""

import asyncio
from collections.abc import Awaitable, Callable

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.storage.postgres.translation import LOST, Connection

_CLOSE_SECONDS = 5.0


class Pool:
    """Connections that are made when they are needed, and kept.

    Args:
        connect: Makes one.
        size: How many there are at most.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._is_closed = False

    @property
    def size(self) -> int:
        """How many connections there are."""
        return len(self._idle) + len(self._in_use)

    @property
    def in_use(self) -> int:
        """How many are in use."""
        return len(self._in_use)

    def add(self, connection: Connection) -> None:
        """Take a connection that was made elsewhere, while none was acquired yet."""
        self._idle.append(connection)

    async def acquire(self) -> Connection:
        """Return a connection, to be released.

        Raises:
            UnavailableError: The pool is closed.
        """
        await self._free.acquire()
        try:
            connection = await self._take()
        except BaseException:
            self._free.release()
            raise
        self._in_use.add(connection)
        return connection

    async def _take(self) -> Connection:
        if self._is_closed:
            raise UnavailableError("the catalog is closed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    def release(self, connection: Connection) -> None:
        """Take a connection back; one that is in a transaction is closed, so that it is taken back."""
        self._in_use.discard(connection)
        if self._is_closed or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)
        self._free.release()

    async def close(self) -> None:
        """Close the connections; those in use are broken off."""
        self._is_closed = True
        for connection in self._in_use:
            connection.terminate()
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close(timeout=_CLOSE_SECONDS)
            except LOST:
                connection.terminate()
