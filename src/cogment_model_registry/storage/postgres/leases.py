"""The leases of servers, and what they hold.

A server takes a lease at its start, and lets it beat. Another one that has seen no beat for some time removes it, with
the transient versions that no other server has: no clocks are compared, and while PostgreSQL is away, nobody removes
anything. A server that finds its lease gone takes another one.
"""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import time_ns

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres.changes import LEASE_LOCKS, Change
from cogment_model_registry.storage.postgres.core import NOTIFY, Core, Held
from cogment_model_registry.storage.postgres.forgetting import forget_held
from cogment_model_registry.storage.postgres.models import remove_model
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.pending import DELETE, LIST, Pending, pending_of
from cogment_model_registry.storage.postgres.removing import remove_archived
from cogment_model_registry.storage.postgres.rows import (
    TIME_OFFSET,
    VERSION,
    info_of,
    metrics_of,
    texts_of,
    version_values,
)
from cogment_model_registry.storage.postgres.translation import NoLeaseError, Record

_BATCH = 500
"""How many versions are announced, or forgotten, in one transaction."""

_DAY_NS = 24 * 3600 * 10**9
_REQUESTS_MAX = 50_000

_TAKE = "INSERT INTO servers (endpoint) VALUES ($1) RETURNING server"

_LEASES = "SELECT server, endpoint, beat FROM servers ORDER BY server"

_BEAT = """
WITH own AS (UPDATE servers SET beat = beat + 1 WHERE server = $1 RETURNING server)
SELECT server, endpoint, beat, EXISTS (SELECT FROM own) AS leased,
    coalesce((SELECT generation FROM generation), 0) AS generation
FROM servers ORDER BY server
"""

_GENERATION = """
WITH made AS (INSERT INTO generation (generation) VALUES ($1) ON CONFLICT DO NOTHING RETURNING generation)
SELECT generation FROM made UNION ALL SELECT generation FROM generation LIMIT 1
"""

_LOSE = """
WITH gone AS (DELETE FROM transient WHERE holders = ARRAY[$1::integer] RETURNING life, number),
kept AS (UPDATE transient SET holders = array_remove(holders, $1::integer)
    WHERE $1::integer = ANY(holders) AND holders <> ARRAY[$1::integer])
SELECT m.model_id, gone.life, gone.number FROM gone JOIN models m USING (life)
"""

_LOCATE = """
SELECT s.server, s.endpoint FROM models m JOIN transient t USING (life) JOIN servers s ON s.server = ANY(t.holders)
WHERE m.model_id = $1 AND t.number = $2 AND t.created = $3 AND t.data_hash = $4 AND s.server <> $5
"""

_HOLD = """
UPDATE transient t SET holders = array_append(array_remove(t.holders, $5::integer), $5::integer)
FROM models m WHERE m.life = t.life AND m.model_id = $1 AND t.number = $2 AND t.created = $3 AND t.data_hash = $4
    AND EXISTS (SELECT FROM servers WHERE server = $5)
RETURNING t.life, t.tags, t.metrics, t.revision
"""

_VERSION_T = ", ".join("false AS archived" if name == "archived" else f"t.{name}" for name in VERSION.split(", "))

_SOLE = f"""
SELECT m.model_id, h.last_number = t.number AS is_newest, {_VERSION_T}
FROM transient t JOIN models m USING (life) LEFT JOIN heads h USING (life)
WHERE t.holders = ARRAY[$1::integer] AND t.damage = '' ORDER BY is_newest DESC, t.number DESC
"""

_COUNT_SOLE = """
SELECT count(*) AS versions FROM transient t JOIN models m USING (life)
WHERE t.holders = ARRAY[$1::integer] AND t.damage = ''
"""

_HELD = """
SELECT m.model_id, t.number FROM transient t JOIN models m USING (life)
WHERE $1::integer = ANY(t.holders) ORDER BY m.model_id, t.number
"""

_ANNOUNCE = """
WITH given AS (
    SELECT g.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::jsonb[],
        $8::jsonb[], $9::jsonb[], $10::bigint[])
        AS g(life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision)
    JOIN models m USING (life)
    WHERE EXISTS (SELECT FROM servers WHERE server = $11)
        AND NOT EXISTS (SELECT FROM deleted d WHERE d.life = g.life AND d.number = g.number)
        AND NOT EXISTS (SELECT FROM versions v WHERE v.life = g.life AND v.number = g.number)
),
raised AS (
    UPDATE models m SET last_revision = greatest(m.last_revision, g.revision)
    FROM (SELECT life, max(revision) AS revision FROM given GROUP BY life) g
    WHERE m.life = g.life AND m.last_revision < g.revision
)
INSERT INTO transient AS t (life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision,
    holders)
SELECT given.*, ARRAY[$11::integer] FROM given
ON CONFLICT (life, number) DO UPDATE SET holders = array_append(array_remove(t.holders, $11::integer), $11::integer)
    WHERE t.created = excluded.created AND t.data_hash = excluded.data_hash
RETURNING life, number
"""

_IS_HELD = "SELECT FROM transient WHERE life = $1 AND number = $2 AND $3::integer = ANY(holders)"

_UNRESOLVED = f"{LIST} WHERE server = $1 OR NOT EXISTS (SELECT FROM servers s WHERE s.server = pending.server)"

_PENDING = """
SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased, kind IN ('store', 'promote') AND EXISTS (
    SELECT FROM versions v WHERE v.life = pending.life AND v.number = pending.number) AS is_archived
FROM pending WHERE pending = $1
"""

_PRUNE = (
    "DELETE FROM deleted WHERE deleted < clock_timestamp() - interval '1 hour'",
    "DELETE FROM ended WHERE ended < clock_timestamp() - interval '1 hour'",
)

_PRUNE_REQUESTS = """
DELETE FROM {table} WHERE finished < greatest(
    $1, (SELECT finished FROM {table} ORDER BY finished DESC OFFSET $2 LIMIT 1))
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of a server.

    Attributes:
        server: Its number, which no other lease ever has.
        endpoint: Where the server is reached by others.
        beat: Grows while the server is alive.
    """

    server: int
    endpoint: str
    beat: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A server that has the bytes of a transient version.

    Attributes:
        server: The number of its lease.
        endpoint: Where it is reached.
    """

    server: int
    endpoint: str


def _lease_of(row: Record) -> Lease:
    return Lease(row["server"], row["endpoint"], row["beat"])


class Resolution:
    """A pending change that is being resolved, while nobody else changes the model.

    Attributes:
        pending: The change.
    """

    def __init__(self, pending: Pending, change: Change) -> None:
        self.pending = pending
        self.is_finished = False
        self._change = change

    async def check(self) -> None:
        """Check that nobody else can have changed the model since this began.

        Raises:
            UnavailableError: The lock may be lost.
        """
        await self._change.fetch("check lock", "SELECT")

    def finish(self) -> None:
        """Let the rows of what was to be removed go, since the archive has not got all of it any more."""
        self.is_finished = True


class Leases:
    """The leases. Made by `PostgresCatalog`.

    All methods raise `UnavailableError` while PostgreSQL does not answer.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._connections = core.connections

    @property
    def server(self) -> int:
        """The number of this server's lease; 0 for none."""
        return self._core.server

    async def take(self, endpoint: str) -> int:
        """Take a lease, where this server is reached by others at `endpoint`; return its number.

        What the last lease of this server held is not held by this one.
        """
        [row] = await self._connections.fetch("take lease", _TAKE, endpoint, kind="lease")
        self._core.held.clear()
        self._core.forgotten.clear()
        self._core.unclear.clear()
        self._core.server = row["server"]
        self._core.generation = await self._generation()
        return self._core.server

    async def _generation(self) -> int:
        [row] = await self._connections.fetch("read generation", _GENERATION, secrets.randbits(62) | 1)
        generation: int = row["generation"]
        return generation

    async def beat(self) -> list[Lease] | None:
        """Let the lease of this server beat, and announce what it holds if PostgreSQL has crashed since the last beat.

        Returns:
            All leases; None if this server's does not exist any more. Then the bytes of all its transient versions are
            of no use, since nobody finds them, and `take` takes a new lease.
        """
        rows = await self._connections.fetch("beat", _BEAT, self._core.server, kind="lease")
        if not rows or not rows[0]["leased"]:
            return None
        await self._settle()
        if rows[0]["generation"] != self._core.generation:
            generation = await self._generation()
            await self._announce()
            self._core.generation = generation
        return [_lease_of(row) for row in rows]

    async def servers(self) -> list[Lease]:
        """Return all leases."""
        rows = await self._connections.fetch("read leases", _LEASES, kind="lease")
        return [_lease_of(row) for row in rows]

    async def remove(self, server: int) -> None:
        """Remove a lease with what it holds, this server's own or that of a server that is gone.

        Transient versions that no other server has are lost, with the reason ``server gone``. Changes of that server
        that are under way are waited for: those of a frozen server end by themselves (see `changes`).
        """
        async with self._connections.reading() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", LEASE_LOCKS, server)
            await connection.execute("DELETE FROM servers WHERE server = $1", server)
            await connection.execute("DELETE FROM holds WHERE server = $1", server)
            lost = await connection.fetch(_LOSE, server)
            numbers: dict[tuple[str, int], list[int]] = {}
            for row in lost:
                numbers.setdefault((row["model_id"], row["life"]), []).append(row["number"])
            notes = [Note("lost", id_, life, sorted(each), "server gone") for (id_, life), each in numbers.items()]
            sending = self._core.sending(*notes)
            await connection.fetch(NOTIFY, sending.messages)
        if server == self._core.server:
            self._core.server = 0
        sending.take()

    async def locate(self, info: VersionInfo) -> list[Holder]:
        """Return the other servers that have the bytes of a transient version; none if it does not exist any more."""
        created = info.created_ns - TIME_OFFSET
        values = info.model_id, info.number, created, info.data_hash, self._core.server
        rows = await self._connections.fetch("locate", _LOCATE, *values)
        return [Holder(row["server"], row["endpoint"]) for row in rows]

    async def hold(self, info: VersionInfo) -> None:
        """Record that this server has the bytes of a transient version, too.

        Raises:
            NotFoundError: The version is not visible any more.
            UnavailableError: This server has no lease.
        """
        server = self._core.server
        if not server:
            raise NoLeaseError
        values = info.model_id, info.number, info.created_ns - TIME_OFFSET, info.data_hash, server
        async with self._connections.reading() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock_shared($1, $2)", LEASE_LOCKS, server)
            rows = await connection.fetch(_HOLD, *values)
        if not rows:
            raise NotFoundError.version(info.model_id, info.number)
        [row] = rows
        annotations = Annotations(texts_of(row["tags"]), metrics_of(row["metrics"]), row["revision"])
        self._core.held[info.model_id, info.number] = Held(row["life"], info, annotations)

    async def sole_versions(self, server: int) -> list[tuple[VersionInfo, bool]]:
        """Return the transient versions that a server alone has, and whether each is the newest of its model.

        Those that are come first, then those with the highest numbers.
        """
        rows = await self._connections.fetch("read sole", _SOLE, server)
        return [(info_of(row["model_id"], row), bool(row["is_newest"])) for row in rows]

    async def count_sole(self, server: int) -> int:
        """Return how many transient versions a server alone has."""
        [row] = await self._connections.fetch("count sole", _COUNT_SOLE, server)
        versions: int = row["versions"]
        return versions

    def give_up_held(self) -> list[VersionInfo]:
        """Hold nothing any more; return what this server had."""
        infos = [held.info for held in self._core.held.values()]
        self._core.held.clear()
        return infos

    async def held_numbers(self, server: int) -> dict[str, list[int]]:
        """Return the transient versions that a server has: their numbers by model, ascending."""
        found: dict[str, list[int]] = {}
        for row in await self._connections.fetch("read held", _HELD, server):
            found.setdefault(row["model_id"], []).append(row["number"])
        return found

    async def _settle(self) -> None:
        """Do what could not be done, or was not clear, while PostgreSQL did not answer."""
        core = self._core
        while forgotten := core.forgotten[:_BATCH]:
            await forget_held(core, forgotten)
            del core.forgotten[: len(forgotten)]
        while core.unclear:
            held = core.unclear[0]
            rows = await self._connections.fetch("read unclear", _IS_HELD, held.life, held.info.number, core.server)
            core.unclear.pop(0)
            if not rows:
                self._drop([held])

    def _drop(self, dropped: Sequence[Held]) -> None:
        """Hold versions no more, and have their bytes freed."""
        gone = [each for each in dropped if self._core.held.get((each.info.model_id, each.info.number)) is each]
        for each in gone:
            del self._core.held[each.info.model_id, each.info.number]
        if gone:
            self._core.on_dropped([each.info for each in gone])

    async def _announce(self) -> None:
        """Make the versions that this server has visible again, and drop those that were deleted in the meantime."""
        held = [*self._core.held.values()]
        for start in range(0, len(held), _BATCH):
            batch = held[start : start + _BATCH]
            async with self._connections.reading() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock_shared($1, $2)", LEASE_LOCKS, self._core.server)
                values = [(each.life, *version_values(each.info, each.annotations)) for each in batch]
                rows = await connection.fetch(_ANNOUNCE, *map(list, zip(*values, strict=True)), self._core.server)
                visible = {(row["life"], row["number"]) for row in rows}
                shown = [each for each in batch if (each.life, each.info.number) in visible]
                notes = [Note("shown", e.info.model_id, e.life, [e.info.number], info=e.info) for e in shown]
                sending = self._core.sending(*notes)
                await connection.fetch(NOTIFY, sending.messages)
            sending.take()
            self._drop([each for each in batch if (each.life, each.info.number) not in visible])

    async def unresolved(self) -> list[Pending]:
        """Return changes of servers that are gone, and those of this one whose outcome was not clear or that failed."""
        rows = await self._connections.fetch("read pending", _UNRESOLVED, self._core.server)
        return [each for each in map(pending_of, rows) if each.pending not in self._core.entered]

    @asynccontextmanager
    async def resolving(self, pending: Pending) -> AsyncGenerator[Resolution | None, None]:
        """Return the change that resolves a pending one, in which nobody else changes the model; see `pending`.

        It yields None when there is nothing to resolve any more. Otherwise, of a version that was to be stored or
        promoted, what the archive has is to be removed before it is left. Of one, or of a model, that was to be
        removed: if the archive has it still whole, nothing is to be done; otherwise the rest is to be removed, and
        `Resolution.finish` to be called. Left with an error, it stays pending.

        Raises:
            UnavailableError: This server has no lease, or the model is being changed.
        """
        ref, key = pending.ref, pending.pending
        async with self._core.changes.entered(ref.model_id) as change:
            rows = await change.fetch("read pending", _PENDING, key, change.server)
            if not rows or key in self._core.entered:
                yield None
                return
            self._core.require_lease(rows[0]["leased"])
            if rows[0]["is_archived"]:  # a later promotion of the same version succeeded, and the archive has its files
                await change.fetch("end pending", DELETE, key)
                await change.commit()
                yield None
                return
            resolution = Resolution(pending, change)
            yield resolution
            if resolution.is_finished and pending.kind == "remove":
                await remove_archived(self._core, change, ref, pending.number, key)
            elif resolution.is_finished and pending.kind == "remove model":
                await remove_model(self._core, change, ref, key)
            else:
                await change.fetch("end pending", DELETE, key)
                await change.commit()

    async def prune(self) -> None:
        """Remove what is too old: deleted versions and ended models after an hour, requests after a day."""
        day_ago = time_ns() - _DAY_NS - TIME_OFFSET
        async with self._connections.reading() as connection:
            for statement in _PRUNE:
                await connection.execute(statement)
            for table in ("requests", "transient_requests"):
                await connection.execute(_PRUNE_REQUESTS.format(table=table), day_ago, _REQUESTS_MAX)
