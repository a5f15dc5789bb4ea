"""A SQLite database whose changes are durable when they are awaited, many of them with one sync.

Changes wait in a queue while a thread commits those before them; then all of the queue goes into one transaction, each
change in a savepoint of its own, so that one that is refused takes back nothing but itself. So a thousand small
changes at once cost a few syncs and not a thousand.

Reads have a connection and a thread of their own. SQLite's write-ahead log lets them go on while changes are committed
(https://www.sqlite.org/wal.html); they see every change that was awaited before, and those that wait in the queue.
Searches, which may take long, have others, so that a slow search delays searches alone.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import structlog

from cogment_model_registry.errors import ModelRegistryError, StoppingError, TooLargeError, UnavailableError, counted
from cogment_model_registry.storage.catalog import connections
from cogment_model_registry.storage.catalog.connections import Migration
from cogment_model_registry.system.tasks import run_to_end

_log = structlog.stdlib.get_logger(__name__)

_T = TypeVar("_T")
Operation: TypeAlias = Callable[[sqlite3.Connection], _T]

_LATER_SECONDS = 0.2
"""How long a change that nobody awaits may wait for others to share its sync."""

SEARCH_SECONDS = 10.0
"""How long a search may take. With two cores, most take milliseconds among 100,000 versions."""

_STEPS = 10_000
"""After how many steps of SQLite's virtual machine the time of a search is looked at: less than a millisecond."""


@dataclass(eq=False, slots=True)
class _Change:
    operation: Operation[Any]
    future: asyncio.Future[Any] | None


class _Reader:
    """A connection for reads, with a thread of its own.

    Args:
        path: The file.
        name: The name of the thread.
        seconds: How long a read may take; None for no bound.
    """

    def __init__(self, path: str, name: str, seconds: float | None = None) -> None:
        self._path = path
        self._seconds = seconds
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None
        self._is_closing = False

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._connection = await loop.run_in_executor(self._executor, connections.connect, self._path, "ro")

    async def run(self, operation: Operation[_T]) -> _T:
        if self._connection is None:
            raise UnavailableError("the catalog is closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, self._connection, operation)

    async def close(self) -> None:
        self._is_closing = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, connection.close)
        self._executor.shutdown()

    def _run(self, connection: sqlite3.Connection, operation: Operation[_T]) -> _T:
        """Return what an operation reads, all of it of one moment."""
        end = time.monotonic() + (self._seconds or 0)
        try:
            if self._seconds is not None:
                connection.set_progress_handler(lambda: self._is_closing or time.monotonic() > end, _STEPS)
            connection.execute("BEGIN")
            try:
                return operation(connection)
            finally:
                connection.set_progress_handler(None, 0)
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if self._seconds is None or getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
                raise UnavailableError(f"the catalog failed: {error}") from error
            if self._is_closing:
                raise StoppingError from None
            message = f"the search took longer than {counted(self._seconds, 'second')}: name a model, or compare less"
            raise TooLargeError(message) from None


class Database:
    """A database in a file.

    Args:
        path: The file; created when it does not exist.
        migrations: The steps of the schema; the schema's version is how many of them were made.
        search_seconds: How long a search may take.
    """

    def __init__(self, path: str, migrations: Sequence[Migration], search_seconds: float = SEARCH_SECONDS) -> None:
        self._path = path
        self._migrations = migrations
        self._changes: list[_Change] = []
        self._committing: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalog-write")
        self._reader = _Reader(path, "catalog-read")
        self._searcher = _Reader(path, "catalog-search", search_seconds)
        self._writing: sqlite3.Connection | None = None
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
        await self._reader.open()
        await self._searcher.open()

    async def close(self) -> None:
        """Commit what waits, and close the file. Closing twice does nothing."""
        await run_to_end(self._close())

    async def _close(self) -> None:
        await self._commit_all()
        await self._searcher.close()
        await self._reader.close()
        if self._writing is not None:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._writing.close)
        self._writer.shutdown()
        self._writing = None

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
        """Run an operation that only reads; all that it reads is of one moment.

        Raises:
            UnavailableError: The database failed.
        """
        await self._commit_waiting()
        return await run_to_end(self._reader.run(operation))

    async def search(self, operation: Operation[_T]) -> _T:
        """Run an operation that only reads, and that may take long; see `read`.

        Raises:
            TooLargeError: It took longer than it may.
            UnavailableError: The database failed.
        """
        await self._commit_waiting()
        return await run_to_end(self._searcher.run(operation))

    async def _commit_waiting(self) -> None:
        """Wait until the changes that wait now are committed, or have failed; those that come later may never stop."""
        if self._changes or self._committing is not None:
            with contextlib.suppress(ModelRegistryError):
                await self.change(lambda _: None)

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
