"""Changes that make versions archived, or disappear."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import ModelRef, Promotion
from cogment_model_registry.storage.postgres import aliases, pending
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import NOTIFY, Core
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.publishing import put_metrics
from cogment_model_registry.storage.postgres.rows import alias_of, escaped, version_values
from cogment_model_registry.storage.postgres.versions import require_version

_log = structlog.stdlib.get_logger(__name__)

_HAS_ALIASES = "SELECT FROM aliases WHERE life = $1 AND number = $2 LIMIT 1"

PROMOTE = """
WITH gone AS (DELETE FROM transient WHERE life = $1 AND number = $2),
promoted AS (
    INSERT INTO versions (life, number, created, data_hash, data_size, signature, user_data, tags, metrics, revision)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
),
counted AS (
    UPDATE models SET archived_versions = archived_versions + 1, archived_bytes = archived_bytes + $5,
        last_revision = $10, changes = changes + 1 WHERE life = $1
)
DELETE FROM pending WHERE pending = $11
"""

REMOVE_ARCHIVED = """
WITH unnamed AS (DELETE FROM aliases WHERE life = $1 AND number = $2 RETURNING name),
counted AS (
    UPDATE models SET archived_versions = archived_versions - gone.versions,
        archived_bytes = archived_bytes - gone.bytes,
        stamp = CASE WHEN EXISTS (SELECT FROM unnamed) THEN pg_current_xact_id() ELSE stamp END
    FROM (SELECT count(*) AS versions, coalesce(sum(data_size), 0) AS bytes FROM versions
        WHERE life = $1 AND number = $2 AND damage = '') gone
    WHERE life = $1
)
DELETE FROM pending WHERE pending = $3
"""

# After the aliases, which refer to it.
DELETE_VERSION = "DELETE FROM versions WHERE life = $1 AND number = $2"

REMOVE_TRANSIENT = """
WITH gone AS (DELETE FROM transient WHERE life = $1 AND number = $2)
INSERT INTO deleted (life, number) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""

MARK_DAMAGED = """
WITH transient_one AS (
    UPDATE transient SET damage = $3 WHERE life = $1 AND number = $2 AND damage = '' RETURNING number
),
archived_one AS (
    UPDATE versions SET damage = $3 WHERE life = $1 AND number = $2 AND damage = '' RETURNING data_size
),
counted AS (
    UPDATE models SET archived_versions = archived_versions - 1, archived_bytes = archived_bytes - data_size
    FROM archived_one WHERE life = $1
)
SELECT pg_notify('cogment_model_registry', message) FROM unnest($4::text[]) AS message
WHERE EXISTS (SELECT FROM transient_one) OR EXISTS (SELECT FROM archived_one)
"""


class _Promotion(Promotion):
    """A promotion in one change."""

    def __init__(self, version: Version, revision: int) -> None:
        self.info = version.info
        self.annotations = version.annotations
        self.shown: VersionInfo | None = None
        self._revision = revision

    async def annotate(self, info: VersionInfo) -> None:
        # Committed with the row.
        self.annotations = replace(self.annotations, revision=self._revision)

    def show(self, info: VersionInfo) -> None:
        self.shown = info


@asynccontextmanager
async def promoting(core: Core, ref: ModelRef, number: int) -> AsyncGenerator[Promotion, None]:
    """Return the change that archives a transient version; see `Catalog.promoting`."""
    async with core.changes.entered(ref.model_id) as change:
        found = await require_version(core, change, ref, number)
        revision = found.last_revision + 1
        promotion = _Promotion(found.version, revision)
        if promotion.info.archived:
            yield promotion
            return
        key = await pending.begin(change, "promote", ref, number)
        core.entered.add(key)
        try:
            yield promotion
            info = promotion.shown
            if info is None:
                await change.fetch("end pending", pending.DELETE, key)
                await change.commit()
                return
            annotations = replace(promotion.annotations, revision=revision)
            await change.fetch("promote", PROMOTE, ref.life, *version_values(info, annotations), key)
            await put_metrics(change, ref, number, annotations)
            sending = core.sending(Note("promoted", ref.model_id, ref.life, [number], info=info))
            await change.fetch("notify", NOTIFY, sending.messages)
            await sending.commit(change)
            journals.record_promoted(info)
        finally:
            core.entered.discard(key)


@asynccontextmanager
async def removing_version(core: Core, ref: ModelRef, number: int) -> AsyncGenerator[VersionInfo, None]:
    """Return the change that removes a version; see `Catalog.removing_version`."""
    async with core.changes.entered(ref.model_id) as change:
        found = await require_version(core, change, ref, number)
        info = found.version.info
        if not info.archived:
            yield info
            sending = core.sending(Note("lost", ref.model_id, ref.life, [number], "deleted"))
            await change.fetch("remove transient", REMOVE_TRANSIENT, ref.life, number)
            await change.fetch("notify", NOTIFY, sending.messages)
            await sending.commit(change)
            journals.record_deleted(found.version)
            return
        key = await pending.begin(change, "remove", ref, number)
        core.entered.add(key)
        try:
            before = await change.fetch("read aliases", aliases.ALIASES, ref.life)
            try:
                yield info
            except BaseException:
                await pending.void(change, key)
                raise
            await remove_archived(core, change, ref, number, key)
        finally:
            core.entered.discard(key)
        journals.record_deleted(found.version)
        named = {alias.name: alias for alias in map(alias_of, before)}
        kept = {name: alias for name, alias in named.items() if alias.version_number != number}
        journals.record_aliases(ref.model_id, named, kept)


async def remove_archived(core: Core, change: Change, ref: ModelRef, number: int, key: int) -> None:
    """Remove the row of an archived version whose files are gone, with its aliases, and commit."""
    had_aliases = await change.fetch("look at aliases", _HAS_ALIASES, ref.life, number)
    await change.fetch("remove archived", REMOVE_ARCHIVED, ref.life, number, key)
    await change.fetch("remove archived", DELETE_VERSION, ref.life, number)
    notes = [Note("lost", ref.model_id, ref.life, [number], "deleted")]
    if had_aliases:
        notes.append(Note("changed", ref.model_id, ref.life))
    sending = core.sending(*notes)
    await change.fetch("notify", NOTIFY, sending.messages)
    await sending.commit(change)


async def mark_damaged(core: Core, ref: ModelRef, error: DataLossError) -> None:
    """Take a damaged version out of the listing; see `Catalog.mark_damaged`."""
    number, reason = error.version_number, escaped(error.reason) or "damaged"
    if number is None:
        return
    sending = core.sending(Note("lost", ref.model_id, ref.life, [number], "damaged"))
    if await core.connections.fetch("mark damaged", MARK_DAMAGED, ref.life, number, reason, sending.messages):
        _log.error("damaged version found", model_id=ref.model_id, number=number, reason=error.reason)
        sending.take()
