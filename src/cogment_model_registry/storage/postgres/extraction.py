"""Reads models from the shared catalog: for an export, and for a copy to an archive of one server."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from cogment_model_registry.records.access import Grant
from cogment_model_registry.records.lifecycle import FIRST_REVISION
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.folder import FolderContents
from cogment_model_registry.storage.postgres.binding import Binding
from cogment_model_registry.storage.postgres.connections import Connections, opened_connections
from cogment_model_registry.storage.postgres.filling import WholeModel
from cogment_model_registry.storage.postgres.grants import Grants
from cogment_model_registry.storage.postgres.rows import (
    DECIDED,
    VERSION,
    alias_of,
    annotations_of,
    decided_of,
    info_of,
    model_of,
)

_LAST_NUMBER = "greatest(coalesce(h.last_number, m.mark), (SELECT max(number) FROM versions v WHERE v.life = m.life))"
"""No number up to this one may be reused; after a crash of PostgreSQL it may be higher than necessary."""

_LISTING = f"""
SELECT m.model_id, m.user_data, {_LAST_NUMBER} AS last_number,
    ARRAY(SELECT number FROM versions v WHERE v.life = m.life ORDER BY number) AS numbers
FROM models m LEFT JOIN heads h USING (life) ORDER BY m.model_id
"""

_MODEL = f"""
SELECT m.life, m.model_id, m.user_data, m.last_revision, {_LAST_NUMBER} AS last_number,
    {", ".join(f"m.{column}" for column in DECIDED.split(", "))}
FROM models m LEFT JOIN heads h USING (life) WHERE m.model_id = $1
"""

_VERSIONS = f"""
SELECT {VERSION.replace("archived", "true AS archived")} FROM versions WHERE life = $1 ORDER BY number
"""

_ALIASES = "SELECT name, number, revision, set_at FROM aliases WHERE life = $1 ORDER BY name"


class Extraction:
    """Reads models and grants of a catalog that servers may be using.

    Args:
        connections: The connections; open.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def check_bound(self, archive_id: str, url: str) -> None:
        """Check that the catalog belongs to an archive; see `Binding.check_bound`."""
        await Binding(self._connections).check_bound(archive_id, url)

    async def listing(self) -> Sequence[FolderContents]:
        """Return the models with the numbers of their archived versions, by id.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        rows = await self._connections.fetch("read_whole_listing", _LISTING)
        return [contents_of(model_of(row), row["numbers"], row["last_number"]) for row in rows]

    async def read_model(self, model_id: str) -> WholeModel | None:
        """Return a model with its versions and aliases as they are at one moment; None if it does not exist.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        async with (
            self._connections.reading() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            rows = await connection.fetch(_MODEL, model_id)
            if not rows:
                return None
            [row] = rows
            versions = await connection.fetch(_VERSIONS, row["life"])
            aliases = [alias_of(alias) for alias in await connection.fetch(_ALIASES, row["life"])]
        annotations = {each["number"]: annotations_of(each) for each in versions}
        return WholeModel(
            model_of(row),
            row["last_number"],
            [info_of(model_id, each) for each in versions],
            {
                number: each
                for number, each in annotations.items()
                if each.tags or each.metrics or each.revision != FIRST_REVISION
            },
            decided_of(row),
            row["last_revision"],
            aliases,
        )

    async def read_grants(self) -> Sequence[Grant]:
        """Return all grants; see `Grants.read`."""
        return await Grants(self._connections).read()


def contents_of(info: ModelInfo, numbers: Sequence[int], last_number: int) -> FolderContents:
    """Return the part of a model in the catalog that belongs in an archive.

    Args:
        info: The model.
        numbers: The numbers of its archived versions, ascending.
        last_number: No number up to this one may be reused.
    """
    return FolderContents(info, numbers, last_number=numbers[-1] if numbers else 0, high_water_mark=last_number)


@asynccontextmanager
async def opened_extraction(url: str) -> AsyncGenerator[Extraction, None]:
    """Return a context manager that opens the catalog of a database for reading.

    Raises:
        StartError: PostgreSQL does not answer, or the database is not usable.
    """
    async with opened_connections(url) as connections:
        yield Extraction(connections)
