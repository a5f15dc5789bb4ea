"""Which versions the consumers of each server hold, so that no other server deletes them."""

from collections.abc import Mapping

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.postgres.core import Core
from cogment_model_registry.storage.postgres.rows import escaped, unescaped

LOOK = """
SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased, EXISTS (SELECT FROM models WHERE life = $1) AS exists,
    (SELECT min(n) FROM unnest($3::bigint[]) AS n
        WHERE NOT EXISTS (SELECT FROM visible WHERE life = $1 AND number = n)) AS gone
"""

REPLACE = """
WITH wanted AS (SELECT * FROM unnest($3::bigint[], $4::text[]) AS w(number, reason)),
ended AS (
    DELETE FROM holds WHERE life = $1 AND server = $2 AND number NOT IN (SELECT number FROM wanted)
)
INSERT INTO holds AS h (life, server, number, reason) SELECT $1, $2, number, reason FROM wanted
ON CONFLICT (life, server, number) DO UPDATE SET reason = excluded.reason
"""

ELSEWHERE = "SELECT number, reason FROM holds WHERE life = $1 AND server <> $2"


async def set_holds(core: Core, ref: ModelRef, held: Mapping[int, str]) -> None:
    """Set what consumers of this server hold; see `Catalog.set_holds`.

    Under the lock of the model, so that a version is either deleted before or not at all.
    """
    async with core.changes.entered(ref.model_id) as change:
        look = await change.fetch_one("look at held", LOOK, ref.life, change.server, [*held])
        core.require_lease(look["leased"])
        if not look["exists"]:
            raise NotFoundError.model(ref.model_id)
        if look["gone"] is not None:
            raise NotFoundError.version(ref.model_id, look["gone"])
        reasons = [escaped(reason) for reason in held.values()]
        await change.fetch("set holds", REPLACE, ref.life, change.server, [*held], reasons)
        await change.commit(durably=False)


async def held_elsewhere(core: Core, ref: ModelRef) -> dict[int, str]:
    """Return what consumers of other servers hold; see `Catalog.held_elsewhere`."""
    rows = await core.connections.fetch("read holds", ELSEWHERE, ref.life, core.server)
    return {row["number"]: unescaped(row["reason"]) for row in rows}
