"""Evictions of transient versions: those that occur while one statement is in progress share the next one.

They do not lock the model, because usually each publish to a model evicts one of its versions.
"""

import asyncio
import json
from collections.abc import Sequence

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres.core import Core, Held
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET

# Rows are locked in order, so that two servers that forget the same versions cannot deadlock.
FORGET = """
WITH given AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb)
        AS g(life bigint, number bigint, created bigint, data_hash text, message text)
),
held AS (
    SELECT t.life, t.number, t.holders, g.message FROM given g JOIN transient t USING (life, number)
    WHERE t.created = g.created AND t.data_hash = g.data_hash ORDER BY t.life, t.number FOR UPDATE OF t
),
kept AS (
    UPDATE transient t SET holders = array_remove(t.holders, $2::integer) FROM held
    WHERE t.life = held.life AND t.number = held.number AND held.holders <> ARRAY[$2::integer]
        AND $2::integer = ANY(held.holders)
),
gone AS (
    DELETE FROM transient t USING held
    WHERE t.life = held.life AND t.number = held.number AND held.holders = ARRAY[$2::integer]
    RETURNING t.life, t.number, held.message
)
SELECT life, number, pg_notify('cogment_model_registry', message) FROM gone
"""


def let_go(core: Core, info: VersionInfo) -> Held | None:
    """Remove this server from the holders of a version whose bytes are gone; return it if this server held it."""
    held = core.held.get((info.model_id, info.number))
    if held is None or (held.info is not info and held.info != info):
        return None
    return core.held.pop((info.model_id, info.number))


def forgotten_json(forgotten: Sequence[Held], messages: Sequence[str]) -> str:
    """Return the first parameter of `FORGET`.

    Args:
        forgotten: The versions.
        messages: For each of them, the message that is sent if no other server has it.
    """
    return json.dumps(
        [
            {
                "life": held.life,
                "number": held.info.number,
                "created": held.info.created_ns - TIME_OFFSET,
                "data_hash": held.info.data_hash,
                "message": message,
            }
            for held, message in zip(forgotten, messages, strict=True)
        ]
    )


def lost_note(held: Held) -> Note:
    """Return the message about an eviction."""
    return Note("lost", held.info.model_id, held.life, [held.info.number], "evicted")


async def forget_held(core: Core, forgotten: Sequence[Held]) -> None:
    """Record that this server no longer has the bytes of some versions.

    Raises:
        UnavailableError: PostgreSQL does not answer.
    """
    sendings = [core.sending(lost_note(held)) for held in forgotten]
    keys = [(held.life, held.info.number) for held in forgotten]
    texts = forgotten_json(forgotten, [message for sending in sendings for message in sending.messages])
    rows = await core.connections.fetch("forget", FORGET, texts, core.server)
    gone = {(row["life"], row["number"]) for row in rows}
    for key, sending in zip(keys, sendings, strict=True):
        if key in gone:
            sending.take()


class Forgetting:
    """Records which versions this server no longer has; the last holder makes a version invisible.

    Args:
        core: The state of the catalog.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = asyncio.Lock()
        self._waiting: list[Held] = []
        self._next: asyncio.Task[None] | None = None

    async def forget(self, info: VersionInfo) -> None:
        """Record that this server no longer has the bytes of a version; see `Catalog.forget`.

        While PostgreSQL is not available, it is postponed (see `Leases.beat`).
        """
        held = let_go(self._core, info)
        if held is None:
            return
        self._waiting.append(held)
        if self._next is None:
            self._next = asyncio.create_task(self._forget_all())
        await asyncio.shield(self._next)

    async def _forget_all(self) -> None:
        """Forget all waiting versions in one statement."""
        async with self._turn:
            forgotten, self._waiting, self._next = self._waiting, [], None
            try:
                await forget_held(self._core, forgotten)
            except UnavailableError:
                self._core.forgotten.extend(forgotten)
