"""Models of another catalog, put into this one: when the archive of one server becomes one that several share."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cogment_model_registry.records.access import Grant, missing_grants
from cogment_model_registry.records.lifecycle import FIRST_REVISION, Alias, Annotations
from cogment_model_registry.records.retention import ModelAnnotations
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo
from cogment_model_registry.storage.postgres.binding import Binding
from cogment_model_registry.storage.postgres.connections import Connections, opened_connections
from cogment_model_registry.storage.postgres.grants import Grants
from cogment_model_registry.storage.postgres.models import new_life
from cogment_model_registry.storage.postgres.rows import (
    TIME_OFFSET,
    decided_values,
    escaped,
    metric_rows,
    texts_json,
    version_values,
)

_BATCH = 1000
"""How many versions are inserted at once."""

_MODEL = """
INSERT INTO models (life, model_id, user_data, mark, archived_versions, archived_bytes, last_revision,
    tags, rules, share, signers, revision)
VALUES ($1, $2, $3, $4, $5, $6::text::numeric, $7, $8, $9, $10, $11, $12)
ON CONFLICT (model_id) DO NOTHING RETURNING life
"""

_VERSIONS = """
INSERT INTO versions (life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision)
SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::jsonb[], $8::jsonb[],
    $9::jsonb[], $10::bigint[])
"""

_METRICS = """
INSERT INTO metrics (life, number, name, value) SELECT $1, * FROM unnest($2::bigint[], $3::text[], $4::float8[])
"""

_ALIASES = """
INSERT INTO aliases (life, name, number, revision, set_at)
SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
"""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model with its archived versions, and what people have said of them.

    Attributes:
        info: The model.
        last_number: No number up to this one may be given again.
        versions: Its archived versions.
        annotations: Tags, metrics and revisions of those that have any, by number.
        decided: What people decided about the model.
        last_revision: No revision up to this one may be given again.
        aliases: Its aliases, to these versions.
    """

    info: ModelInfo
    last_number: int
    versions: Sequence[VersionInfo]
    annotations: dict[int, Annotations] = field(default_factory=dict)
    decided: ModelAnnotations = field(default_factory=ModelAnnotations)
    last_revision: int = FIRST_REVISION
    aliases: Sequence[Alias] = ()


class Filling:
    """Puts models and grants into a catalog.

    Args:
        connections: The connections; open.

    Attributes:
        binding: The archive that the catalog belongs to.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._grants = Grants(connections)
        self.binding = Binding(connections)

    async def known(self) -> set[str]:
        """Return the ids of the models that are there."""
        return {row["model_id"] for row in await self._connections.fetch("known", "SELECT model_id FROM models")}

    async def add_model(self, model: WholeModel) -> bool:
        """Add a model with all that it has, or nothing; return whether it was not there before.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        life, last_number = new_life(), min(model.last_number, VERSION_NUMBER_MAX)
        sizes_bytes = sum(info.data_size_bytes for info in model.versions)
        counts = last_number, len(model.versions), str(sizes_bytes), model.last_revision
        values = life, model.info.model_id, texts_json(model.info.user_data), *counts, *decided_values(model.decided)
        async with self._connections.reading() as connection, connection.transaction():
            if not await connection.fetch(_MODEL, *values):
                return False
            for start in range(0, len(model.versions), _BATCH):
                batch = model.versions[start : start + _BATCH]
                rows = [version_values(info, model.annotations.get(info.number, Annotations())) for info in batch]
                await connection.execute(_VERSIONS, life, *map(list, zip(*rows, strict=True)))
                metrics = [
                    (info.number, name, value)
                    for info in batch
                    if info.number in model.annotations
                    for name, value in zip(*metric_rows(model.annotations[info.number].metrics), strict=True)
                ]
                if metrics:
                    await connection.execute(_METRICS, life, *map(list, zip(*metrics, strict=True)))
            aliases = [
                (escaped(alias.name), alias.version_number, alias.revision, alias.set_ns - TIME_OFFSET)
                for alias in model.aliases
            ]
            if aliases:
                await connection.execute(_ALIASES, life, *map(list, zip(*aliases, strict=True)))
        return True

    async def add_grants(self, grants: Sequence[Grant]) -> int:
        """Add the grants that are not there, and return how many these are.

        Raises:
            ExistsError: There is another one with such a name, or for the same certificate or subject.
        """
        new = missing_grants(grants, await self._grants.read())
        await self._grants.restore(new)
        return len(new)


@asynccontextmanager
async def opened_filling(url: str) -> AsyncGenerator[Filling, None]:
    """Return a context manager with what fills the catalog in a database.

    Raises:
        StartError: PostgreSQL does not answer, or the database is not usable.
    """
    async with opened_connections(url) as connections:
        yield Filling(connections)
