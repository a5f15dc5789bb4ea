"""The archive that a catalog belongs to: the first one with which it was used.

A server with the same catalog and another archive, for example by a wrong prefix in its address, would keep versions
where the others do not find them. See `storage.binding` for the other direction, and for the order.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from cogment_model_registry.errors import StartError, UnavailableError
from cogment_model_registry.storage.postgres.connections import Connections
from cogment_model_registry.storage.postgres.translation import LOST, Record, meaning

_BIND = """
INSERT INTO archive (id) VALUES ($1) ON CONFLICT (singleton) DO UPDATE SET id = archive.id RETURNING id
"""

_READ = "SELECT identity.id::text AS catalog_id, archive.id AS archive_id FROM identity LEFT JOIN archive ON true"

_LOCK = 0x436F6742
"""The advisory lock of a server that binds a catalog which belongs to no archive yet."""

_LOCK_SECONDS = 120.0
"""How long to wait for it: the other one may wait for the leases of an archive's last server."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a catalog belongs to.

    Attributes:
        catalog_id: What tells the catalog from others; a backup of it has the same.
        archive_id: The id of its archive; empty if it belongs to none yet.
    """

    catalog_id: str
    archive_id: str


class Binding:
    """The archive that a catalog belongs to.

    Args:
        connections: The connections to its database; open.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @asynccontextmanager
    async def deciding(self) -> AsyncIterator[Bound]:
        """Return a context manager with what the catalog belongs to.

        If it belongs to no archive, nobody else decides about that until the end.

        Raises:
            UnavailableError: PostgreSQL does not answer, or others decide for too long.
        """
        bound = await self._read()
        if bound.archive_id:
            yield bound
            return
        async with self._locked():
            yield await self._read()

    async def bind(self, archive_id: str, url: str) -> None:
        """Let a catalog that belongs to no archive belong to this one, and check that it does.

        Args:
            archive_id: What tells the archive from others.
            url: Its address, for the message.

        Raises:
            StartError: It belongs to another one.
            UnavailableError: PostgreSQL does not answer.
        """
        _check(await self._connections.fetch("bind_archive", _BIND, archive_id), archive_id, url)

    async def check_bound(self, archive_id: str, url: str) -> None:
        """Check that the catalog belongs to an archive, or to none yet. See `bind`."""
        _check(await self._connections.fetch("read_archive", "SELECT id FROM archive"), archive_id, url)

    async def _read(self) -> Bound:
        [row] = await self._connections.fetch("read_binding", _READ)
        return Bound(row["catalog_id"], row["archive_id"] or "")

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        # Of a session and not of a transaction, which must not be idle for long.
        try:
            connection = await self._connections.connect()
        except (asyncpg.PostgresError, *LOST) as error:
            raise meaning(error) from error
        try:
            try:
                await connection.execute("SET lock_timeout = 0")
                await connection.execute("SELECT pg_advisory_lock($1)", _LOCK, timeout=_LOCK_SECONDS)
            except TimeoutError:
                raise UnavailableError("another server begins to use the catalog: try again") from None
            except (asyncpg.PostgresError, *LOST) as error:
                raise meaning(error) from error
            yield
        finally:
            connection.terminate()


def _check(rows: Sequence[Record], archive_id: str, url: str) -> None:
    if rows and rows[0]["id"] != archive_id:
        raise refusal(rows[0]["id"], f"archive {url} (id {archive_id})")


def refusal(bound_id: str, archive: str) -> StartError:
    """Return the error of an archive that is not the one of a catalog."""
    return StartError(
        f"{archive} is not the one of this catalog (id {bound_id}): use the address of that archive, or a database of "
        "its own for this one"
    )
