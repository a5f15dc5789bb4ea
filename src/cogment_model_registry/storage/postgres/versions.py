"""A version in a change, and changes that make versions disappear."""

from dataclasses import dataclass

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import Core
from cogment_model_registry.storage.postgres.rows import VERSION, version_of

_COLUMNS = VERSION.replace("archived, ", "")

LOOK = f"""
SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased, m.last_revision, v.*,
    (SELECT array_agg(a.name ORDER BY a.name) FROM aliases a WHERE a.life = m.life AND a.number = $3) AS aliases
FROM (SELECT) one LEFT JOIN models m ON m.life = $1 LEFT JOIN LATERAL (
    SELECT {_COLUMNS}, damage, true AS archived FROM versions WHERE life = m.life AND number = $3
    UNION ALL
    SELECT {_COLUMNS}, damage, false AS archived FROM transient WHERE life = m.life AND number = $3
) v ON true
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A version in a change.

    Attributes:
        version: The version.
        last_revision: The highest revision that anything of its model has had.
    """

    version: Version
    last_revision: int


async def require_version(core: Core, change: Change, ref: ModelRef, number: int) -> Found:
    """Return a version of a life of a model.

    Raises:
        DataLossError: It is damaged.
        NotFoundError: The life is over, or it has no such version.
        UnavailableError: The lease of this server is gone.
    """
    if not 0 < number < 2**63:
        raise NotFoundError.version(ref.model_id, number)
    row = await change.fetch_one("look at version", LOOK, ref.life, change.server, number)
    core.require_lease(row["leased"])
    if row["last_revision"] is None:
        raise NotFoundError.model(ref.model_id)
    if row["number"] is None:
        raise NotFoundError.version(ref.model_id, number)
    if row["damage"]:
        raise DataLossError.version(ref.model_id, number, row["damage"])
    return Found(version_of(ref.model_id, row), row["last_revision"])
