"""Changes of models themselves."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.lifecycle import ModelSummary
from cogment_model_registry.records.retention import ModelChange, check_model_revision
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.postgres import pending
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import NOTIFY, Core
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.reads import SUMMARIES, summary_of
from cogment_model_registry.storage.postgres.rows import DECIDED, decided_of, decided_values, model_of, texts_json

LOOK = f"""
SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased, m.life, m.model_id, m.user_data, {DECIDED},
    m.last_revision
FROM (SELECT) one LEFT JOIN models m ON m.model_id = $1
"""

WRITE = """
INSERT INTO models AS m (life, model_id, user_data) VALUES ($1, $2, $3)
    ON CONFLICT (model_id) DO UPDATE SET user_data = $3, stamp = pg_current_xact_id() RETURNING life
"""

DECIDE = """
UPDATE models SET tags = $2, rules = $3, share = $4, signers = $5, revision = $6, last_revision = $6,
    changes = changes + 1, stamp = pg_current_xact_id()
WHERE life = $1
"""

REMOVE = (
    "DELETE FROM transient WHERE life = $1",
    "DELETE FROM heads WHERE life = $1",
    "DELETE FROM appearances WHERE life = $1",
    "DELETE FROM aliases WHERE life = $1",
    "DELETE FROM models WHERE life = $1",
)


def new_life() -> int:
    """Return a number for a life of a model that no other one is likely to have."""
    return secrets.randbits(53) | 1  # not 0, and any reader of JSON can have it


@asynccontextmanager
async def writing_model(core: Core, info: ModelInfo) -> AsyncGenerator[None, None]:
    """Return the change that creates a model or replaces its `user_data`; see `Catalog.writing_model`."""
    async with core.changes.entered(info.model_id) as change:
        row = await change.fetch_one("look at model", LOOK, info.model_id, change.server)
        core.require_lease(row["leased"])
        before = None if row["life"] is None else model_of(row)
        yield
        values = new_life(), info.model_id, texts_json(info.user_data)
        life = (await change.fetch_one("write model", WRITE, *values))["life"]
        sending = core.sending(Note("changed" if before else "created", info.model_id, life))
        await change.fetch("notify", NOTIFY, sending.messages)
        await sending.commit(change)
        journals.record_model_written(info, before)


@asynccontextmanager
async def changing_model(core: Core, ref: ModelRef, asked: ModelChange) -> AsyncGenerator[ModelSummary, None]:
    """Return the change of what people decide about a model; see `Catalog.changing_model`."""
    async with core.changes.entered(ref.model_id) as change:
        row = await change.fetch_one("look at model", LOOK, ref.model_id, change.server)
        core.require_lease(row["leased"])
        if row["life"] != ref.life:
            raise NotFoundError.model(ref.model_id)
        before = decided_of(row)
        check_model_revision(ref.model_id, before, asked)
        after = asked.apply_to(ref.model_id, before, row["last_revision"] + 1)
        await change.fetch("change model", DECIDE, ref.life, *decided_values(after))
        sending = core.sending(Note("changed", ref.model_id, ref.life))
        await change.fetch("notify", NOTIFY, sending.messages)
        await change.commit_and_go_on()
        sending.take()
        journals.record_model_changed(ref.model_id, before, after)
        yield await _summary(change, ref)


async def _summary(change: Change, ref: ModelRef) -> ModelSummary:
    return summary_of(await change.fetch_one("summarize", SUMMARIES, [ref.model_id]))


@asynccontextmanager
async def removing_model(core: Core, model_id: str) -> AsyncGenerator[None, None]:
    """Return the change that removes a model; see `Catalog.removing_model`."""
    async with core.changes.entered(model_id) as change:
        row = await change.fetch_one("look at model", LOOK, model_id, change.server)
        core.require_lease(row["leased"])
        if row["life"] is None:
            raise NotFoundError.model(model_id)
        ref = ModelRef(model_id, row["life"])
        key = await pending.begin(change, "remove model", ref)
        core.entered.add(key)
        try:
            summary = await _summary(change, ref)
            try:
                yield
            except BaseException:
                await pending.void(change, key)
                raise
            await remove_model(core, change, ref, key)
        finally:
            core.entered.discard(key)
        journals.record_model_deleted(summary)


async def remove_model(core: Core, change: Change, ref: ModelRef, key: int) -> None:
    """Remove the rows of a model whose files are gone, and commit."""
    for statement in REMOVE:
        await change.fetch("remove model", statement, ref.life)
    await change.fetch(
        "remove model", "INSERT INTO ended VALUES ($1, $2) ON CONFLICT DO NOTHING", ref.life, ref.model_id
    )
    await change.fetch("end pending", pending.DELETE, key)
    sending = core.sending(Note("removed", ref.model_id, ref.life))
    await change.fetch("notify", NOTIFY, sending.messages)
    await sending.commit(change)
