"""What the errors of PostgreSQL and of its client library mean, in one place.

https://www.postgresql.org/docs/current/errcodes-appendix.html lists the codes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Protocol

import asyncpg

from cogment_model_registry.errors import ModelRegistryError, OutOfServiceError, TooLargeError, UnavailableError


class Record(Protocol):
    """A row."""

    def __getitem__(self, column: str) -> Any: ...


class Connection(Protocol):
    """What is used of a connection of asyncpg, which has no types."""

    async def execute(self, query: str, *values: object, timeout: float | None = None) -> str:
        """Run statements; return the word for the last one."""

    async def fetch(self, query: str, *values: object, timeout: float | None = None) -> Sequence[Record]:
        """Return the rows of a statement."""

    async def fetchval(self, query: str, *values: object, timeout: float | None = None) -> Any:
        """Return the first column of the first row; None for none."""

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> AbstractAsyncContextManager[object]:
        """Return the context manager in which a transaction is open."""

    def get_server_pid(self) -> int:
        """Return the process of PostgreSQL that serves it."""

    def is_in_transaction(self) -> bool:
        """Return whether one is open."""

    def is_closed(self) -> bool:
        """Return whether the connection was lost or closed."""

    def terminate(self) -> None:
        """Break it off."""

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it."""

    async def add_listener(self, channel: str, listener: Callable[[object, int, str, object], None]) -> None:
        """Call a listener with each notification in a channel."""

    def add_termination_listener(self, listener: Callable[[object], None]) -> None:
        """Call a listener when the connection is lost or closed."""


LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # a server that has become a standby
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What is raised when a connection is lost, or cannot be made: what was asked for may have happened."""


class CatalogAwayError(OutOfServiceError):
    """PostgreSQL does not answer."""


class NoLeaseError(OutOfServiceError):
    """This server has no lease, so that it may change nothing."""

    def __init__(self) -> None:
        super().__init__("this server has no lease in the catalog; it takes one when the catalog answers")


class UnclearError(OutOfServiceError):
    """The connection was lost while a change was committed."""


def meaning(error: BaseException) -> ModelRegistryError:
    """Return what an error of PostgreSQL means."""
    if isinstance(error, LOST):
        return CatalogAwayError("the catalog is not available: its database does not answer")
    if isinstance(error, asyncpg.TooManyConnectionsError):  # it answers on those that there are
        message = "the database of the catalog has no connection left; raise max_connections of PostgreSQL"
        return OutOfServiceError(message)
    if isinstance(error, asyncpg.DiskFullError):
        return TooLargeError("the catalog has no space left")
    if isinstance(error, asyncpg.LockNotAvailableError):
        return UnavailableError("another server is changing this model; try again")
    return UnavailableError(f"the catalog failed: {error}")


@contextmanager
def translated() -> Iterator[None]:
    """Return a context manager that raises errors of PostgreSQL as ours."""
    try:
        yield
    except (asyncpg.PostgresError, *LOST) as error:
        raise meaning(error) from error
