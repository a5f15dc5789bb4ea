"""A SQLite database whose changes are durable when they are awaited, many of them with one sync.

Changes wait in a queue while a thread commits those before them; then all of the queue goes into one transaction, each
change in a savepoint of its own, so that one that is refused takes back nothing but itself. So a thousand small
changes at once cost a few syncs and not a thousand.

Reads have a connection and a thread of their own. SQLite's write-ahead log lets them go on while changes are committed
(https://www.sqlite.org/wal.html); they see every change that was awaited before, and those that wait in the queue.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import structlog

from cogment_model_registry.errors import ModelRegistryError, TooLargeError, UnavailableError
from cogment_model_registry.storage.catalog import connections
from cogment_model_registry.storage.catalog.connections import Migration
from cogment_model_registry.system.tasks import run_to_end

_log = structlog.stdlib.get_logger(__name__)

_T = TypeVar("_T")
Operation: TypeAlias = Callable[[sqlite3.Connection], _T]

_LATER_SECONDS = 0.2
"""How long a change that nobody awaits may wait for others to share its sync."""


@dataclass(eq=False, slots=True)
class _Change:
    operation: Operation[Any]
    future: asyncio.Future[Any] | None


class Database:
    """A database in a file.

    Args:
        path: The file; created when it does not exist.
        migrations: The steps of the schema; the schema's version is how many of them were made.
    """

    def __init__(self, path: str, migrations: Sequence[Migration]) -> None:
        self._path = path
        self._migrations = migrations
        self._changes: list[_Change] = []
        self._committing: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalog-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="catalog-read")
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self.failure = ""

    async def open(self) -> None:
        """Open the file, and bring its schema up to date.

        Raises:
            StartError: It is no such database, it is of a newer release, or the system refuses it.
        """
        loop = asyncio.get_running_loop()
        self._writing = await loop.run_in_executor(
            self._writer, connections.open_for_writing, self._path, self._migrations
        )
        self._reading = await loop.run_in_executor(self._reader, connections.connect, self._path, "ro")

    async def close(self) -> None:
        """Commit what waits, and close the file. Closing twice does nothing."""
        await run_to_end(self._close())

    async def _close(self) -> None:
        await self._commit_all()
        loop = asyncio.get_running_loop()
        for executor, connection in ((self._reader, self._reading), (self._writer, self._writing)):
            if connection is not None:
                await loop.run_in_executor(executor, connection.close)
            executor.shutdown()
        self._reading = self._writing = None

    async def change(self, operation: Operation[_T]) -> _T:
        """Run an operation that changes the database; the change is durable on return, and made whole or not at all.

        Raises:
            ModelRegistryError: The operation raised it; nothing is changed.
            TooLargeError: No space is left.
            UnavailableError: The database failed.
        """
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._enqueue(_Change(operation, future))
        self._commit_now()
        return await asyncio.shield(future)

    def change_later(self, operation: Operation[None]) -> None:
        """Queue an operation whose change nobody waits for; the next reads see it.

        It is lost when the process ends before, so it must be one that a start makes up for.
        """
        self._enqueue(_Change(operation, None))
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(_LATER_SECONDS, self._commit_now)

    async def read(self, operation: Operation[_T]) -> _T:
        """Run an operation that only reads.

        Raises:
            UnavailableError: The database failed.
        """
        await self._commit_all()
        return await run_to_end(self._read(operation))

    async def _read(self, operation: Operation[_T]) -> _T:
        connection = self._reading
        if connection is None:
            raise UnavailableError("the catalog is closed")
        call = _translating(operation, connection)
        return await asyncio.get_running_loop().run_in_executor(self._reader, call)

    def _enqueue(self, change: _Change) -> None:
        if self.failure:
            raise UnavailableError(self.failure)
        if self._writing is None:
            raise UnavailableError("the catalog is closed")
        self._changes.append(change)

    def _commit_now(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._committing is None and self._changes:
            self._committing = asyncio.ensure_future(self._commit_queue())

    async def _commit_all(self) -> None:
        """Wait until the changes that are queued now are committed, or have failed."""
        self._commit_now()
        while self._committing is not None:
            await asyncio.wait([self._committing])

    async def _commit_queue(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._changes:
                changes, self._changes = self._changes, []
                outcomes = await loop.run_in_executor(self._writer, self._commit, [each.operation for each in changes])
                for change, outcome in zip(changes, outcomes, strict=True):
                    self._settle(change, outcome)
        finally:
            self._committing = None

    def _settle(self, change: _Change, outcome: object) -> None:
        if change.future is None:
            if isinstance(outcome, ModelRegistryError):
                _log.error("change of the catalog failed", reason=outcome.message)
        elif not change.future.cancelled():
            if isinstance(outcome, Exception):
                change.future.set_exception(outcome)
            else:
                change.future.set_result(outcome)

    # On the threads.

    def _commit(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Make changes in one transaction; return the result or the error of each."""
        connection = self._writing
        if connection is None or self.failure:
            return [UnavailableError(self.failure or "the catalog is closed")] * len(operations)
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_in_savepoint(connection, operation) for operation in operations]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.rollback()
            return [self._fail(error)] * len(operations)
        return outcomes

    def _fail(self, error: sqlite3.Error) -> ModelRegistryError:
        """Return what an error of the database means; after a failed write or sync nothing is written any more."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return TooLargeError("the catalog has no space left")
        if code != sqlite3.SQLITE_BUSY:
            self.failure = f"the catalog failed: {error}"
            _log.error("catalog failed", path=self._path, reason=str(error))
        return UnavailableError(f"the catalog failed: {error}")


def _in_savepoint(connection: sqlite3.Connection, operation: Operation[Any]) -> Any:
    """Return the result of an operation, or the error with which it was taken back."""
    connection.execute("SAVEPOINT change")
    try:
        result = operation(connection)
    except sqlite3.Error:
        raise
    except Exception as error:  # whoever awaits the change gets it
        connection.execute("ROLLBACK TO change")
        connection.execute("RELEASE change")
        return error
    connection.execute("RELEASE change")
    return result


def _translating(operation: Operation[_T], connection: sqlite3.Connection) -> Callable[[], _T]:
    def call() -> _T:
        try:
            return operation(connection)
        except sqlite3.Error as error:
            raise UnavailableError(f"the catalog failed: {error}") from error

    return call
