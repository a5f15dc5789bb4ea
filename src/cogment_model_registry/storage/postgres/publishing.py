"""The publishing of a version: a number, and its row.

A transient version takes one transaction, of tables that a crash empties: it waits for no disk. Its number comes from
`heads`, which a crash empties too; so `models.mark` has a number up to which none may be given again, and is raised
ahead, durably, by a block. Without a head, the next number is the one after the mark.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from time import time_ns

from cogment_model_registry.errors import ModelRegistryError, NotFoundError, UnavailableError
from cogment_model_registry.records.lifecycle import AliasChange, Annotations
from cogment_model_registry.records.uploads import UploadRequest
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, VersionInfo, check_version_number
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import ModelRef, Slot
from cogment_model_registry.storage.postgres import aliases, pending
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import NOTIFY, Core, Held
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET, metric_rows, signers_of, version_values
from cogment_model_registry.storage.postgres.translation import UnclearError

NUMBER_BLOCK = 1000
"""How many numbers are made durable ahead: one sync for as many publishes, and as many skipped after a crash."""

_APPEARANCES = 1024
"""Of so many versions of a model it is known when they became visible."""

TAKE = f"""
WITH fence AS (SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased),
model AS (SELECT life, mark, signers FROM models CROSS JOIN fence WHERE life = $1 AND leased),
taken AS (
    INSERT INTO heads AS h (life, last_number) SELECT life, greatest(mark, $3::bigint) + 1 FROM model
    ON CONFLICT (life) DO UPDATE
        SET last_number = greatest(h.last_number, $3) + 1, stamp = pg_current_xact_id()
    RETURNING last_number
),
raised AS (
    UPDATE models SET mark = least(taken.last_number + {NUMBER_BLOCK - 1}, {VERSION_NUMBER_MAX}) FROM taken
    WHERE models.life = $1 AND models.mark < taken.last_number RETURNING models.mark
)
SELECT fence.leased, model.signers, taken.last_number, raised.mark IS NOT NULL AS is_raised
FROM fence LEFT JOIN model ON true LEFT JOIN taken ON true LEFT JOIN raised ON true
"""

SHOW_TRANSIENT = """
WITH shown AS (
    INSERT INTO transient (life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision,
        holders)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, ARRAY[$11::integer])
),
appeared AS (INSERT INTO appearances VALUES ($1, $2, $12) ON CONFLICT DO NOTHING)
SELECT pg_notify('cogment_model_registry', message) FROM unnest($13::text[]) AS message
"""

SHOW_ARCHIVED = """
WITH shown AS (
    INSERT INTO versions (life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
),
counted AS (
    UPDATE models SET archived_versions = archived_versions + 1, archived_bytes = archived_bytes + $5 WHERE life = $1
),
appeared AS (INSERT INTO appearances VALUES ($1, $2, $11) ON CONFLICT DO NOTHING),
head AS (UPDATE heads SET stamp = pg_current_xact_id() WHERE life = $1)
DELETE FROM pending WHERE pending = $12
"""

PUT_METRICS = "INSERT INTO metrics (life, number, name, value) SELECT $1, $2, * FROM unnest($3::text[], $4::float8[])"

PUT_REQUEST = """
INSERT INTO {table} AS r VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (request_id) DO UPDATE
    SET digest = $2, model_id = $3, life = $4, number = $5, finished = $6
    WHERE NOT EXISTS (SELECT FROM visible v WHERE v.life = r.life AND v.number = r.number)
RETURNING number
"""

FORGET_APPEARANCES = "DELETE FROM appearances WHERE life = $1 AND number <= $2"


class _Slot(Slot):
    """A place for a version in one change."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.info: VersionInfo | None = None
        self.annotations = Annotations()
        self.is_annotated = False
        self.request: UploadRequest | None = None

    async def annotate(self, info: VersionInfo, annotations: Annotations, request: UploadRequest | None = None) -> None:
        # All of it is committed with the row that makes the version exist.
        self.annotations, self.request, self.is_annotated = annotations, request, True

    def show(self, info: VersionInfo) -> None:
        self.info = info


@asynccontextmanager
async def publishing(core: Core, ref: ModelRef, archived: bool) -> AsyncGenerator[Slot, None]:
    """Return the change that publishes a version; see `Catalog.publishing`."""
    async with core.changes.entered(ref.model_id) as change:
        slot, is_raised = await _take(core, change, ref)
        key = 0
        if archived:
            key = await pending.begin(change, "store", ref, slot.number)
            is_raised = False
            core.entered.add(key)
        try:
            try:
                yield slot
            except BaseException:
                # The number is used up nevertheless. What an archive has is removed with the pending row.
                if not archived:
                    with suppress(ModelRegistryError):
                        await change.commit(durably=is_raised)
                raise
            if slot.info is None:
                if archived:
                    await change.fetch("end pending", pending.DELETE, key)
                await change.commit(durably=archived or is_raised)
            elif archived:
                await _show_archived(core, change, ref, slot, slot.info, key=key)
            else:
                await _show_transient(core, change, ref, slot, slot.info, is_raised=is_raised)
        finally:
            core.entered.discard(key)
            core.signers.pop(ref.life, None)


async def _take(core: Core, change: Change, ref: ModelRef) -> tuple[_Slot, bool]:
    """Return the place of the next number, and whether the mark was raised."""
    row = await change.fetch_one("take number", TAKE, ref.life, change.server, core.given.get(ref.life, 0))
    core.require_lease(row["leased"])
    number = row["last_number"]
    if number is None:
        raise NotFoundError.model(ref.model_id)
    check_version_number(number, ref.model_id)
    core.given[ref.life] = number
    core.signers[ref.life] = signers_of(row)
    return _Slot(number), row["is_raised"]


async def _show_transient(
    core: Core, change: Change, ref: ModelRef, slot: _Slot, info: VersionInfo, *, is_raised: bool
) -> None:
    sending = core.sending(Note("shown", ref.model_id, ref.life, [info.number], info=info))
    now = time_ns() - TIME_OFFSET
    values = (ref.life, *version_values(info, slot.annotations), change.server, now, sending.messages)
    await change.fetch("show transient", SHOW_TRANSIENT, *values)
    if slot.request is not None:
        await _put_request(change, ref, info, slot.request, now)
    await _forget_appearances(change, ref, info.number)
    await _take_missed(core, ref, info.number)
    key = info.model_id, info.number
    held = core.held[key] = Held(ref.life, info, slot.annotations)
    try:
        await sending.commit(change, durably=is_raised)
    except UnclearError:
        core.unclear.append(held)
        raise
    except BaseException:
        core.held.pop(key, None)
        raise
    journals.record_created(info, slot.annotations if slot.is_annotated else None)


async def _show_archived(
    core: Core, change: Change, ref: ModelRef, slot: _Slot, info: VersionInfo, *, key: int
) -> None:
    now_ns = time_ns()
    now = now_ns - TIME_OFFSET
    await change.fetch("show archived", SHOW_ARCHIVED, ref.life, *version_values(info, slot.annotations), now, key)
    await put_metrics(change, ref, info.number, slot.annotations)
    notes = [Note("shown", ref.model_id, ref.life, [info.number], info=info)]
    moved = None
    if slot.request is not None:
        await _put_request(change, ref, info, slot.request, now)
        if slot.request.aliases:
            changes = [AliasChange(name, info.number) for name in slot.request.aliases]
            moved = await aliases.put(change, ref, changes, now_ns)
            notes.append(Note("changed", ref.model_id, ref.life))
    await _forget_appearances(change, ref, info.number)
    await _take_missed(core, ref, info.number)
    sending = core.sending(*notes)
    await change.fetch("notify", NOTIFY, sending.messages)
    await sending.commit(change)
    journals.record_created(info, slot.annotations if slot.is_annotated else None)
    if moved is not None:
        journals.record_aliases(ref.model_id, *moved)


async def put_metrics(change: Change, ref: ModelRef, number: int, annotations: Annotations) -> None:
    """Add the metrics of an archived version to the table that searches use."""
    if annotations.metrics:
        await change.fetch("put metrics", PUT_METRICS, ref.life, number, *metric_rows(annotations.metrics))


async def _put_request(change: Change, ref: ModelRef, info: VersionInfo, request: UploadRequest, now: int) -> None:
    """Record that an upload made this version.

    Raises:
        UnavailableError: Another server has finished the same upload since this one looked: the client had lost its
            reply, and repeated it here. The next attempt finds the version.
    """
    sql = PUT_REQUEST.format(table="requests" if info.archived else "transient_requests")
    values = (request.request_id, request.digest, ref.model_id, ref.life, info.number, now)
    if not await change.fetch("put request", sql, *values):
        raise UnavailableError("another server has just finished this upload; try again")


async def _forget_appearances(change: Change, ref: ModelRef, number: int) -> None:
    if number % _APPEARANCES == 0:
        await change.fetch("forget appearances", FORGET_APPEARANCES, ref.life, number - _APPEARANCES)


async def _take_missed(core: Core, ref: ModelRef, number: int) -> None:
    """Record versions of other servers that come before this one, if they were not heard of yet."""
    line = core.lines.find(ref.model_id)
    if line is not None and line.life == ref.life and line.history.last_number < number - 1:
        sql = "SELECT number FROM visible WHERE life = $1 AND number > $2 AND number < $3 ORDER BY number"
        rows = await core.connections.fetch("read missed", sql, ref.life, line.history.last_number, number)
        if rows:
            core.lines.take(Note("shown", ref.model_id, ref.life, [row["number"] for row in rows]))
