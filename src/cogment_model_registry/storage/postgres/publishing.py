"""The publishing of versions: their numbers, and the rows of archived ones. `batches` has the transient ones.

Numbers come from `heads`, which a crash empties; so `models.mark` has a number up to which none may be given again, and
is raised ahead, durably, by a block. Without a head, the next number is the one after the mark.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import time_ns

from cogment_model_registry.errors import NotFoundError, UnavailableError
from cogment_model_registry.records.lifecycle import AliasChange, Annotations
from cogment_model_registry.records.uploads import UploadRequest
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, VersionInfo, check_version_number
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import ModelRef, Slot
from cogment_model_registry.storage.postgres import aliases, pending
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import NOTIFY, Core
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET, metric_rows, signers_of, version_values

NUMBER_BLOCK = 1000
"""How many numbers are made durable ahead: one sync for as many publishes, and as many skipped after a crash."""

_APPEARANCES = 1024
"""Of so many versions of a model it is known when they became visible."""

TAKE = f"""
WITH fence AS (SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased),
model AS (SELECT life, mark, signers FROM models CROSS JOIN fence WHERE life = $1 AND leased),
taken AS (
    INSERT INTO heads AS h (life, last_number) SELECT life, greatest(mark, $3::bigint) + $4 FROM model
    ON CONFLICT (life) DO UPDATE
        SET last_number = greatest(h.last_number, $3) + $4, stamp = pg_current_xact_id()
    RETURNING last_number
),
raised AS (
    UPDATE models SET mark = least(taken.last_number + {NUMBER_BLOCK - 1}, {VERSION_NUMBER_MAX}) FROM taken
    WHERE models.life = $1 AND models.mark < taken.last_number RETURNING models.mark
)
SELECT fence.leased, model.signers, taken.last_number, raised.mark IS NOT NULL AS is_raised
FROM fence LEFT JOIN model ON true LEFT JOIN taken ON true LEFT JOIN raised ON true
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
INSERT INTO requests AS r VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (request_id) DO UPDATE
    SET digest = $2, model_id = $3, life = $4, number = $5, finished = $6
    WHERE NOT EXISTS (SELECT FROM visible v WHERE v.life = r.life AND v.number = r.number)
RETURNING number
"""

FORGET_APPEARANCES = "DELETE FROM appearances WHERE life = $1 AND number <= $2"


class UploadFinishedError(UnavailableError):
    """Another server has finished the same upload: the client had lost its reply, and repeated it here.

    The next attempt finds the version.
    """

    def __init__(self) -> None:
        super().__init__("another server has just finished this upload; try again")


class OwnSlot(Slot):
    """A place for a version in one change.

    Attributes:
        info: The version that is to be visible; None until `show`.
        annotations: What people say of it.
        is_annotated: Whether anything was said of it.
        request: The upload that made it.
    """

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

    def record_created(self, info: VersionInfo) -> None:
        """Record in the journal of the call that the version was created."""
        journals.record_created(info, self.annotations if self.is_annotated else None)


@dataclass(frozen=True, slots=True)
class Taken:
    """Numbers that a change has taken.

    Attributes:
        first: The first one; the others follow.
        is_raised: Whether the mark was raised, so that the change has to be durable.
    """

    first: int
    is_raised: bool


async def take_numbers(core: Core, change: Change, ref: ModelRef, count: int) -> Taken:
    """Take the next numbers of a model, and know its signers until the change ends.

    Raises:
        NotFoundError: That life of the model is over.
        UnavailableError: The lease of this server is gone.
    """
    row = await change.fetch_one("take number", TAKE, ref.life, change.server, core.given.get(ref.life, 0), count)
    core.require_lease(row["leased"])
    last: int | None = row["last_number"]
    if last is None:
        raise NotFoundError.model(ref.model_id)
    core.given[ref.life] = last
    core.signers[ref.life] = signers_of(row)
    return Taken(last - count + 1, row["is_raised"])


@asynccontextmanager
async def publishing_archived(core: Core, ref: ModelRef) -> AsyncGenerator[Slot, None]:
    """Return the change that publishes an archived version; see `Catalog.publishing`."""
    async with core.changes.entered(ref.model_id) as change:
        try:
            number = (await take_numbers(core, change, ref, 1)).first
            check_version_number(number, ref.model_id)
            slot = OwnSlot(number)
            key = await pending.begin(change, "store", ref, number)
            core.entered.add(key)
            try:
                yield slot  # after an error, what the archive has is removed with the pending row
                if slot.info is None:
                    await change.fetch("end pending", pending.DELETE, key)
                    await change.commit()
                else:
                    await _show_archived(core, change, ref, slot, slot.info, key=key)
            finally:
                core.entered.discard(key)
        finally:
            core.signers.pop(ref.life, None)


async def _show_archived(
    core: Core, change: Change, ref: ModelRef, slot: OwnSlot, info: VersionInfo, *, key: int
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
    await forget_appearances(change, ref, info.number, info.number)
    await take_missed(core, ref, info.number)
    sending = core.sending(*notes)
    await change.fetch("notify", NOTIFY, sending.messages)
    await sending.commit(change)
    slot.record_created(info)
    if moved is not None:
        journals.record_aliases(ref.model_id, *moved)


async def put_metrics(change: Change, ref: ModelRef, number: int, annotations: Annotations) -> None:
    """Add the metrics of an archived version to the table that searches use."""
    if annotations.metrics:
        await change.fetch("put metrics", PUT_METRICS, ref.life, number, *metric_rows(annotations.metrics))


async def _put_request(change: Change, ref: ModelRef, info: VersionInfo, request: UploadRequest, now: int) -> None:
    """Record that an upload made this version.

    Raises:
        UnavailableError: Another server has finished the same upload since this one looked.
    """
    values = (request.request_id, request.digest, ref.model_id, ref.life, info.number, now)
    if not await change.fetch("put request", PUT_REQUEST, *values):
        raise UploadFinishedError


async def forget_appearances(change: Change, ref: ModelRef, first: int, last: int) -> None:
    """Forget when versions became visible that are long before those with the numbers from `first` to `last`."""
    turn = last - last % _APPEARANCES
    if turn >= first:
        await change.fetch("forget appearances", FORGET_APPEARANCES, ref.life, turn - _APPEARANCES)


async def take_missed(core: Core, ref: ModelRef, number: int) -> None:
    """Record versions of other servers that come before this one, if they were not heard of yet."""
    line = core.lines.find(ref.model_id)
    if line is not None and line.life == ref.life and line.history.last_number < number - 1:
        sql = "SELECT number FROM visible WHERE life = $1 AND number > $2 AND number < $3 ORDER BY number"
        rows = await core.connections.fetch("read missed", sql, ref.life, line.history.last_number, number)
        if rows:
            core.lines.take(Note("shown", ref.model_id, ref.life, [row["number"] for row in rows]))
