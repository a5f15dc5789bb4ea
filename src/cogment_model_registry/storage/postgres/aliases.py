"""Changes of aliases, and of what people say of versions."""

from collections.abc import Mapping, Sequence

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    Version,
    check_alias_revision,
    check_revision,
)
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.core import NOTIFY, Core
from cogment_model_registry.storage.postgres.notes import Note
from cogment_model_registry.storage.postgres.rows import (
    TIME_OFFSET,
    alias_of,
    metric_rows,
    metrics_json,
    texts_json,
)
from cogment_model_registry.storage.postgres.versions import require_version

LOOK = """
SELECT EXISTS (SELECT FROM servers WHERE server = $2) AS leased,
    (SELECT last_revision FROM models WHERE life = $1) AS last_revision,
    coalesce((SELECT array_agg(number) FROM versions WHERE life = $1 AND number = ANY($3) AND damage = ''), '{}')
        AS archived
"""

ALIASES = "SELECT name, number, revision, set_at FROM aliases WHERE life = $1 ORDER BY name"

PUT = """
WITH model AS (
    UPDATE models SET last_revision = $2, changes = changes + 1, stamp = pg_current_xact_id() WHERE life = $1
),
removed AS (DELETE FROM aliases WHERE life = $1 AND name = ANY($3))
INSERT INTO aliases (life, name, number, revision, set_at)
    SELECT $1, * FROM unnest($4::text[], $5::bigint[], $6::bigint[], $7::bigint[])
    ON CONFLICT (life, name) DO UPDATE
        SET number = excluded.number, revision = excluded.revision, set_at = excluded.set_at
"""

ANNOTATE = """
WITH model AS (UPDATE models SET last_revision = $3, changes = changes + 1 WHERE life = $1)
UPDATE {table} SET tags = $4, metrics = $5, revision = $3 WHERE life = $1 AND number = $2
"""

REPLACE_METRICS = """
WITH gone AS (DELETE FROM metrics WHERE life = $1 AND number = $2 AND NOT name = ANY($3::text[]))
INSERT INTO metrics (life, number, name, value) SELECT $1, $2, * FROM unnest($3::text[], $4::float8[])
    ON CONFLICT (life, number, name) DO UPDATE SET value = excluded.value
"""


async def set_aliases(core: Core, ref: ModelRef, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
    """Make changes of aliases; see `Catalog.set_aliases`."""
    async with core.changes.entered(ref.model_id) as change:
        numbers = [each.version_number for each in changes if each.version_number is not None]
        row = await change.fetch_one("look at aliases", LOOK, ref.life, change.server, numbers)
        core.require_lease(row["leased"])
        if row["last_revision"] is None:
            raise NotFoundError.model(ref.model_id)
        for number in numbers:
            if number not in row["archived"]:
                raise NotFoundError.version(ref.model_id, number)
        before, after = await put(change, ref, changes, now_ns)
        sending = core.sending(Note("changed", ref.model_id, ref.life))
        await change.fetch("notify", NOTIFY, sending.messages)
        await sending.commit(change)
        journals.record_aliases(ref.model_id, before, after)
        return [*after.values()]


async def put(
    change: Change, ref: ModelRef, changes: Sequence[AliasChange], now_ns: int
) -> tuple[Mapping[str, Alias], Mapping[str, Alias]]:
    """Make changes of aliases to versions that exist; return the aliases by name before and after, in their order.

    Raises:
        ConflictError: An alias has another revision than was expected.
        NotFoundError: An alias to be removed does not exist.
    """
    rows = await change.fetch("read aliases", ALIASES, ref.life)
    before = {alias.name: alias for alias in map(alias_of, rows)}
    row = await change.fetch_one("next revision", "SELECT last_revision FROM models WHERE life = $1", ref.life)
    revision, after = row["last_revision"], dict(before)
    for each in changes:
        check_alias_revision(ref.model_id, after.get(each.name), each)
        if each.version_number is None:
            del after[each.name]
        else:
            revision += 1
            after[each.name] = Alias(each.name, each.version_number, revision, now_ns)
    put = [alias for alias in after.values() if before.get(alias.name) != alias]
    await change.fetch(
        "put aliases",
        PUT,
        ref.life,
        revision,
        [name for name in before if name not in after],
        [alias.name for alias in put],
        [alias.version_number for alias in put],
        [alias.revision for alias in put],
        [alias.set_ns - TIME_OFFSET for alias in put],
    )
    return before, {name: after[name] for name in sorted(after)}


async def change_annotations(core: Core, ref: ModelRef, number: int, asked: AnnotationChange) -> Version:
    """Change tags and metrics of a version; see `Catalog.change_annotations`."""
    async with core.changes.entered(ref.model_id) as change:
        found = await require_version(core, change, ref, number)
        before = found.version.annotations
        check_revision(found.version, before, asked)
        after = asked.apply_to(found.version, before, found.last_revision + 1)
        info = found.version.info
        await _put(core, change, ref, info, after)
        journals.record_annotated(info, before, after)
        return Version.of(info, after, found.version.aliases)


async def _put(core: Core, change: Change, ref: ModelRef, info: VersionInfo, after: Annotations) -> None:
    sql = ANNOTATE.format(table="versions" if info.archived else "transient")
    values = ref.life, info.number, after.revision, texts_json(after.tags), metrics_json(after.metrics)
    await change.fetch("put annotations", sql, *values)
    if info.archived:
        names, numbers = metric_rows(after.metrics)
        await change.fetch("put metrics", REPLACE_METRICS, ref.life, info.number, names, numbers)
        await change.commit()
        return
    sending = core.sending(Note("annotated", ref.model_id, ref.life, [info.number], annotations=after))
    await change.fetch("notify", NOTIFY, sending.messages)
    await sending.commit(change, durably=False)
