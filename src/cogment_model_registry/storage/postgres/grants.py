"""The table of grants: who may do what. The commands use it without a server."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

import asyncpg

from cogment_model_registry.errors import InvalidError, NotFoundError, quoted
from cogment_model_registry.records.access import Grant, scopes_of, scopes_text, taken_by
from cogment_model_registry.storage.postgres.connections import Connections, opened_connections
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET


class Grants:
    """Who may do what.

    Args:
        connections: The connections; open.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def read(self) -> Sequence[Grant]:
        """Return all grants, by name. One with scopes that this release does not know is left out: it allows nothing.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        query = "SELECT name, kind, identity, scopes, created, expires FROM grants ORDER BY name"
        grants = []
        for row in await self._connections.fetch("read_grants", query):
            try:
                scopes = scopes_of(row["scopes"])
            except InvalidError:
                continue
            expires_ns = None if row["expires"] is None else row["expires"] + TIME_OFFSET
            created_ns = row["created"] + TIME_OFFSET
            grants.append(Grant(row["name"], row["kind"], row["identity"], scopes, created_ns, expires_ns))
        return grants

    async def add(self, grant: Grant) -> None:
        """Add a grant, durably.

        Raises:
            ExistsError: There is one with its name, or for the same certificate or subject.
            UnavailableError: PostgreSQL does not answer.
        """
        await self.restore([grant])

    async def restore(self, grants: Iterable[Grant]) -> None:
        """Add grants of another catalog, all or none; see `add`."""
        async with self._connections.reading() as connection, connection.transaction():
            for grant in grants:
                try:
                    async with connection.transaction():
                        await connection.execute(_ADD, *_values(grant))
                except asyncpg.UniqueViolationError:
                    holder = await connection.fetchval(_HOLDER, grant.name, grant.kind, grant.identity)
                    raise taken_by(grant, holder) from None

    async def remove(self, name: str) -> None:
        """Remove a grant, durably.

        Raises:
            NotFoundError: There is none with this name.
            UnavailableError: PostgreSQL does not answer.
        """
        async with self._connections.reading() as connection:
            removed = await connection.fetchval("DELETE FROM grants WHERE name = $1 RETURNING name", name)
        if removed is None:
            raise NotFoundError(f"token {quoted(name)} does not exist")


_ADD = "INSERT INTO grants (name, kind, identity, scopes, created, expires) VALUES ($1, $2, $3, $4, $5, $6)"
_HOLDER = "SELECT name FROM grants WHERE name = $1 OR (kind = $2 AND identity = $3) LIMIT 1"


def _values(grant: Grant) -> tuple[object, ...]:
    scopes = scopes_text(grant.scopes)
    expires = None if grant.expires_ns is None else grant.expires_ns - TIME_OFFSET
    return grant.name, grant.kind, grant.identity, scopes, grant.created_ns - TIME_OFFSET, expires


@asynccontextmanager
async def opened_grants(url: str) -> AsyncGenerator[Grants, None]:
    """Return a context manager with the grants in a database, for a command.

    Raises:
        StartError: PostgreSQL does not answer, or the database is not usable.
    """
    async with opened_connections(url) as connections:
        yield Grants(connections)
