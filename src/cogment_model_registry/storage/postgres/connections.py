"""The connections to PostgreSQL, of several kinds, so that none waits for another.

Reads never wait for changes, nor for searches, which may take long; and the beats of the lease wait for nobody.
"""

import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import structlog

from cogment_model_registry.errors import ModelRegistryError, StartError, UnavailableError
from cogment_model_registry.storage.postgres.pool import Pool
from cogment_model_registry.storage.postgres.schema import SCHEMA, migrate
from cogment_model_registry.storage.postgres.translation import LOST, CatalogAwayError, Connection, Record, meaning

_log = structlog.stdlib.get_logger(__name__)

CHANGES = 8
READS = 6
"""How many connections a server has at most for these, next to four others: with three servers just over half of the
100 that PostgreSQL has by default."""

_SEARCHES = 2

_SILENT_SECONDS = 4
"""How long PostgreSQL's machine may confirm nothing before a connection counts as lost: it is away then, and the
callers of this server may ask another one. Without it, a cut network is noticed by an answer that does not come."""

Kind: TypeAlias = Literal["change", "read", "search", "lease"]
"""What a connection is for."""

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
"""How long an answer may take; searches have less, and waiting for a lock is bounded by PostgreSQL itself."""

_AGAIN_SECONDS = 0.5
"""While PostgreSQL does not answer, how often a connection is tried; other calls fail at once."""

SETTINGS = {
    "application_name": SCHEMA,
    "search_path": SCHEMA,
    "standard_conforming_strings": "on",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",
    "default_transaction_isolation": "read committed",
    "jit": "off",  # it costs more than any query of ours takes
    "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": str(_SILENT_SECONDS - 1),
    "tcp_user_timeout": f"{_SILENT_SECONDS}s",
}
"""The settings of each session. The second timeout frees the locks of a server that is frozen; those of TCP free the
locks of one that is cut off, and are the same at both ends, so that locks are free when the server connects again."""

Observe = Callable[[str, float], object]
"""Called with the name of a query and the seconds that it took."""


def check_url(url: str) -> None:
    """Refuse an address that is none of PostgreSQL.

    Raises:
        StartError: It is not.
    """
    if urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise StartError("catalog_url must begin with postgresql://")


def _notice_silence(connection: Any) -> None:
    """Let the system break a connection off when nothing arrives on the other side, or nobody is there.

    asyncpg has no option for it: https://github.com/MagicStack/asyncpg/issues/606. It takes Linux.
    """
    used = connection._transport.get_extra_info("socket")  # noqa: SLF001
    if used is not None and used.family != getattr(socket, "AF_UNIX", None) and hasattr(socket, "TCP_USER_TIMEOUT"):
        used.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        used.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        used.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        used.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_SECONDS * 1000)


@asynccontextmanager
async def opened_connections(url: str) -> "AsyncIterator[Connections]":
    """Return a context manager with the few connections that a command needs.

    Raises:
        StartError: PostgreSQL does not answer, or the database is not usable.
    """
    connections = Connections(url, changes=1, reads=1)
    await connections.open()
    try:
        yield connections
    finally:
        await connections.close()


class Connections:
    """The connections of one server.

    Args:
        url: The address of the database, as libpq has it: ``postgresql://user:password@host:port/database``.
        changes: How many changes may be under way at once.
        reads: How many reads.
        observe: Receives the durations of queries.
    """

    def __init__(
        self, url: str, changes: int = CHANGES, reads: int = READS, observe: Observe = lambda _name, _seconds: None
    ) -> None:
        check_url(url)
        self._url = url
        self._observe = observe
        self._sizes: dict[Kind, int] = {"change": changes, "read": reads, "search": _SEARCHES, "lease": 1}
        self._pools: dict[Kind, Pool] = {}
        self._away_until = 0.0
        self.is_away = False

    @property
    def size(self) -> int:
        """How many connections are open, without the one that listens."""
        return sum(pool.size for pool in self._pools.values())

    @property
    def in_use(self) -> int:
        """How many of them are in use."""
        return sum(pool.in_use for pool in self._pools.values())

    async def open(self) -> None:
        """Connect, and bring the tables up to date.

        Raises:
            StartError: PostgreSQL does not answer, refuses us, or has a catalog of a newer release.
        """
        try:
            connection = await self.connect()
            try:
                await migrate(connection)
            except BaseException:
                connection.terminate()
                raise
            self._pools = {name: Pool(self.connect, size) for name, size in self._sizes.items()}
            self._pools["read"].add(connection)
        except (asyncpg.PostgresError, ValueError, ModelRegistryError, *LOST) as error:
            if isinstance(error, StartError):
                raise
            reason = str(error) or type(error).__name__
            if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
                reason += " (the password is that of PGPASSWORD, or of the file that PGPASSFILE names)"
            where = urlsplit(self._url).netloc.rpartition("@")[2]
            at = f" at {where}" if where else ""
            raise StartError(f"the database of the catalog{at} is not usable: {reason}") from error

    async def connect(self) -> Connection:
        """Return a connection that belongs to no pool, for the caller to close."""
        connection: Connection = await asyncpg.connect(
            self._url,
            timeout=_CONNECT_SECONDS,
            command_timeout=_ANSWER_SECONDS,
            server_settings=SETTINGS,
            target_session_attrs="read-write",  # of several hosts the one that takes changes
        )
        _notice_silence(connection)
        return connection

    async def close(self) -> None:
        """Close all connections. Closing twice does nothing."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.close()

    async def acquire(self, kind: Kind) -> Connection:
        """Return a connection of a kind, to be released.

        Raises:
            UnavailableError: PostgreSQL does not answer, or the catalog is closed.
        """
        pool = self._pools.get(kind)
        if pool is None:
            raise UnavailableError("the catalog is closed")
        if self.is_away and time.monotonic() < self._away_until:
            raise CatalogAwayError("the catalog is not available: its database does not answer")
        self._away_until = time.monotonic() + _AGAIN_SECONDS  # of others, while this one tries
        try:
            connection = await pool.acquire()
        except (asyncpg.PostgresError, *LOST) as error:
            if isinstance(meaning(error), CatalogAwayError):
                self.note_away(error)
            raise meaning(error) from error
        if self.is_away:
            self.is_away = False
            _log.info("catalog available again")
        return connection

    def release(self, kind: Kind, connection: Connection) -> None:
        """Take a connection back."""
        pool = self._pools.get(kind)
        if pool is None:
            connection.terminate()
        else:
            pool.release(connection)

    def note_away(self, error: BaseException) -> None:
        """Record that PostgreSQL does not answer, so that calls fail at once for a moment."""
        self._away_until = time.monotonic() + _AGAIN_SECONDS
        if not self.is_away:
            self.is_away = True
            _log.warning("catalog not available", reason=str(error) or type(error).__name__)

    @asynccontextmanager
    async def reading(self, kind: Kind = "read") -> AsyncIterator[Connection]:
        """Return a context manager with a connection that has no transaction."""
        connection = await self.acquire(kind)
        try:
            yield connection
        except (asyncpg.PostgresError, *LOST) as error:
            raise meaning(error) from error
        finally:
            self.release(kind, connection)

    async def fetch(self, name: str, query: str, *values: object, kind: Kind = "read") -> Sequence[Record]:
        """Return the rows of a statement that is a transaction by itself.

        Args:
            name: The name of the query, for whoever measures.
            query: The query.
            values: Its parameters.
            kind: The kind of the connection.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        start = time.perf_counter()
        async with self.reading(kind) as connection:
            rows = await connection.fetch(query, *values)
        self._observe(name, time.perf_counter() - start)
        return rows
