"""The evictions of transient versions: those that come while one statement is under way share the next one.

They take no lock of a model: versions are evicted while others of the same model are published, usually one for each.
"""

import asyncio
from collections.abc import Sequence

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres.core import Core, Held
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET

# Rows are locked in order, so that two servers that forget the same versions never wait for each other.
FORGET = """
WITH given AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[])
        AS g(life, number, created, data_hash, message)
),
held AS (
    SELECT t.life, t.number, t.holders, g.message FROM given g JOIN transient t USING (life, number)
    WHERE t.created = g.created AND t.data_hash = g.data_hash ORDER BY t.life, t.number FOR UPDATE OF t
),
kept AS (
    UPDATE transient t SET holders = array_remove(t.holders, $6::integer) FROM held
    WHERE t.life = held.life AND t.number = held.number AND held.holders <> ARRAY[$6::integer]
        AND $6::integer = ANY(held.holders)
),
gone AS (
    DELETE FROM transient t USING held
    WHERE t.life = held.life AND t.number = held.number AND held.holders = ARRAY[$6::integer]
    RETURNING t.life, t.number, held.message
)
SELECT life, number, pg_notify('cogment_model_registry', message) FROM gone
"""


async def forget_held(core: Core, forgotten: Sequence[Held]) -> None:
    """Record that this server has not the bytes of some versions any more.

    Raises:
        UnavailableError: PostgreSQL does not answer.
    """
    sendings = [
        core.sending(Note("lost", held.info.model_id, held.life, [held.info.number], "evicted")) for held in forgotten
    ]
    keys = [(held.life, held.info.number) for held in forgotten]
    columns = [
        [life for life, _ in keys],
        [number for _, number in keys],
        [held.info.created_ns - TIME_OFFSET for held in forgotten],
        [held.info.data_hash for held in forgotten],
        [message for sending in sendings for message in sending.messages],
    ]
    rows = await core.connections.fetch("forget", FORGET, *columns, core.server)
    gone = {(row["life"], row["number"]) for row in rows}
    for key, sending in zip(keys, sendings, strict=True):
        if key in gone:
            sending.take()


class Forgetting:
    """Makes versions invisible whose bytes this server has not any more.

    Args:
        core: The state of the catalog.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = asyncio.Lock()
        self._waiting: list[Held] = []
        self._next: asyncio.Task[None] | None = None

    async def forget(self, info: VersionInfo) -> None:
        """Record that this server has not the bytes of a version any more; see `Catalog.forget`.

        While PostgreSQL is away, it is done later (see `Leases.beat`).
        """
        held = self._core.held.get((info.model_id, info.number))
        if held is None or (held.info is not info and held.info != info):
            return
        del self._core.held[info.model_id, info.number]
        self._waiting.append(held)
        if self._next is None:
            self._next = asyncio.create_task(self._forget_all())
        await asyncio.shield(self._next)

    async def _forget_all(self) -> None:
        """Forget those that wait when it is this one's turn."""
        async with self._turn:
            forgotten, self._waiting, self._next = self._waiting, [], None
            try:
                await forget_held(self._core, forgotten)
            except UnavailableError:
                self._core.forgotten.extend(forgotten)
