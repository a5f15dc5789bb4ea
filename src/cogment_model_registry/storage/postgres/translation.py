"""What the errors of PostgreSQL and of its client library mean, in one place.

https://www.postgresql.org/docs/current/errcodes-appendix.html lists the codes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from cogment_model_registry.errors import ModelRegistryError, TooLargeError, UnavailableError

if TYPE_CHECKING:
    Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
    Record: TypeAlias = asyncpg.Record
else:
    Connection = Record = object

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,  # a server that has become a standby
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What is raised when a connection is lost, or cannot be made: what was asked for may have happened."""


class CatalogAwayError(UnavailableError):
    """PostgreSQL does not answer."""


class UnclearError(UnavailableError):
    """The connection was lost while a change was committed."""


def meaning(error: BaseException) -> ModelRegistryError:
    """Return what an error of PostgreSQL means."""
    if isinstance(error, LOST):
        return CatalogAwayError("the catalog is not available: its database does not answer")
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
