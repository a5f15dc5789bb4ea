"""The change of a model: its lock over all servers, and the transactions in which it is made.

A change has one connection while it is entered. Its transaction has two locks that end with it: one on the model, and
one, shared by all changes of this server, on the server's lease. Whoever removes the lease takes the second one alone,
so that nothing is committed under a lease that is gone, and beats of the lease wait for nobody.

A change that the archive takes part in first commits what must outlive a crash (see `pending`), keeps the lock, and
waits for the archive in a second transaction. A keepalive tells PostgreSQL that this server is alive: a server that is
frozen does not send it, and loses its connection with the lock after `idle_in_transaction_session_timeout`.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

import asyncpg

from cogment_model_registry.errors import ModelRegistryError, UnavailableError
from cogment_model_registry.storage.postgres.connections import Connections, Observe
from cogment_model_registry.storage.postgres.translation import (
    LOST,
    Connection,
    NoLeaseError,
    Record,
    UnclearError,
    translated,
)
from cogment_model_registry.system.tasks import run_to_end

LEASE_LOCKS = 0x436F674D
"""The class of the advisory locks of leases; the second number is that of the server."""

_KEEPALIVE_SECONDS = 2.0

_SOON = "SET LOCAL synchronous_commit = off; "


def lock_key(model_id: str) -> int:
    """Return the advisory lock of a model, which need not exist. Two models rarely share one, and then wait in vain."""
    return int.from_bytes(sha256(model_id.encode()).digest()[:8], signed=True)


class Change:
    """The change of one model, while its lock is held. Made by `Changes.entered`.

    Attributes:
        server: The number of this server's lease.
        began: How the statements ended that the change began with: the word for the last one.
    """

    def __init__(self, model_id: str, server: int, connection: Connection, observe: Observe) -> None:
        self.server = server
        self.began = ""
        self._key = lock_key(model_id)
        self._connection = connection
        self._observe = observe
        self._turn = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_over = False
        self._is_ended = False

    async def begin(self, statements: str) -> None:
        """Begin the transaction, wait for the locks, and run statements, all in one message."""
        lease = f"SELECT pg_advisory_xact_lock_shared({LEASE_LOCKS}, {self.server})" if self.server else ""
        begin = f"BEGIN; SELECT pg_advisory_xact_lock({self._key}); {lease}; {statements}"
        self.began = await self._execute(begin, "lock")
        self._keep_alive()

    async def fetch(self, name: str, query: str, *values: object) -> Sequence[Record]:
        """Return the rows of a statement."""
        start = time.perf_counter()
        async with self._turn:
            with translated():
                rows = await self._connection.fetch(query, *values)
        self._observe(name, time.perf_counter() - start)
        return rows

    async def fetch_one(self, name: str, query: str, *values: object) -> Record:
        """Return the only row of a statement."""
        [row] = await self.fetch(name, query, *values)
        return row

    async def commit_and_go_on(self) -> None:
        """Commit what was done so far, durably, and go on in another transaction with the locks still held.

        A lock of the session bridges the two. All of it is one message, so that a server that is frozen in between
        leaves no lock.
        """
        lease = f"pg_advisory_xact_lock_shared({LEASE_LOCKS}, {self.server})"
        await self._execute(
            f"SELECT pg_advisory_lock({self._key}); COMMIT; BEGIN;"
            f" SELECT pg_advisory_xact_lock({self._key}), {lease}; SELECT pg_advisory_unlock({self._key})",
            "commit and go on",
        )

    async def commit(self, *, durably: bool = True, doing: str = "") -> None:
        """Commit.

        Args:
            durably: Whether to wait for the disk; not needed where only tables are changed that a crash empties.
            doing: Statements to run just before, in the same message.

        Raises:
            UnclearError: The connection was lost, or a statement failed; the change was made or not.
        """
        self._stop_keepalive()
        try:
            status = await self._execute_plainly(f"{'' if durably else _SOON}{doing}COMMIT", "commit")
        except (*LOST, asyncpg.PostgresError) as error:
            self._connection.terminate()
            message = "the connection to the catalog was lost while the change was committed: it was made or not"
            raise UnclearError(message) from error
        if status != "COMMIT":
            raise UnavailableError("the catalog did not take the change")
        self._is_over = True

    async def end(self) -> None:
        """Take back what was not committed."""
        self._is_ended = True
        self._stop_keepalive()
        if self._keeping is not None:
            await asyncio.wait([self._keeping])
        if not self._is_over and not self._connection.is_closed():
            with contextlib.suppress(asyncpg.PostgresError, *LOST):
                await self._connection.execute("ROLLBACK")

    async def _execute(self, statements: str, name: str) -> str:
        with translated():
            return await self._execute_plainly(statements, name)

    async def _execute_plainly(self, statements: str, name: str) -> str:
        start = time.perf_counter()
        async with self._turn:
            status = await self._connection.execute(statements)
        self._observe(name, time.perf_counter() - start)
        return status

    def _keep_alive(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_KEEPALIVE_SECONDS, self._begin_keepalive)

    def _begin_keepalive(self) -> None:
        self._keeping = asyncio.ensure_future(self._keepalive())

    async def _keepalive(self) -> None:
        # What fails here fails again, and is reported, with the next statement.
        with contextlib.suppress(ModelRegistryError):
            if not self._turn.locked():
                await self._execute("SELECT", "keepalive")
            if not self._is_ended:
                self._keep_alive()

    def _stop_keepalive(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Changes:
    """Makes changes, one at a time for a model.

    Those on this server take turns before they take a connection, so that many changes of one model do not keep others
    from theirs.

    Args:
        connections: The connections.
        lease: Returns the number of this server's lease; 0 for none.
        observe: Receives the durations of statements.
    """

    def __init__(self, connections: Connections, lease: Callable[[], int], observe: Observe) -> None:
        self._connections = connections
        self._lease = lease
        self._observe = observe
        self._prepared: weakref.WeakKeyDictionary[Connection, str] = weakref.WeakKeyDictionary()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def entered(
        self, model_id: str, *, leased: bool = True, prepared: str = "", beginning: Callable[[], str] = str
    ) -> AsyncIterator[Change]:
        """Return a context manager with the change of a model; what it has not committed when it is left is taken back.

        Args:
            model_id: The model.
            leased: Whether it needs the lease of this server.
            prepared: Statements that prepare others, run once on each connection.
            beginning: Called when it is the turn of the change on this server: returns statements to run once the lock
                is held, in the same message.

        Raises:
            UnavailableError: This server has no lease, PostgreSQL does not answer, or another change takes too long.
        """
        lock = self._locks.get(model_id)
        if lock is None:
            lock = self._locks[model_id] = asyncio.Lock()
        async with lock:
            server = self._lease() if leased else 0
            if leased and not server:
                raise NoLeaseError
            connection = await self._connections.acquire("change")
            change = Change(model_id, server, connection, self._observe)
            try:
                await self._prepare(connection, prepared)
                await change.begin(beginning())
                yield change
            finally:
                await run_to_end(self._leave(change, connection))

    async def _prepare(self, connection: Connection, statements: str) -> None:
        if statements and self._prepared.get(connection) != statements:
            try:
                with translated():
                    await connection.execute(statements)
            except BaseException:
                connection.terminate()  # it is not known which of them are prepared
                raise
            self._prepared[connection] = statements

    async def _leave(self, change: Change, connection: Connection) -> None:
        try:
            await change.end()
        finally:
            self._connections.release("change", connection)
