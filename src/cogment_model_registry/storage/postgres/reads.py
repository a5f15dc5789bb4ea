"""What is asked of the shared catalog: each question is one query, so that all of its answer is of one moment."""

import json
from collections.abc import Hashable, Sequence
from time import time_ns

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import Alias, ModelSummary, Version
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.uploads import FinishedUpload
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import CatalogCounts, ModelOutline, ModelRef, ModelState, Newer
from cogment_model_registry.storage.postgres.connections import Connections
from cogment_model_registry.storage.postgres.core import Core
from cogment_model_registry.storage.postgres.joining import Joining
from cogment_model_registry.storage.postgres.rows import (
    DECIDED,
    TIME_OFFSET,
    VERSION,
    alias_of,
    decided_of,
    info_of,
    model_of,
    signers_of,
    version_of,
)
from cogment_model_registry.storage.postgres.translation import CatalogAwayError, Record

_NUMBER_MAX = 2**63 - 1

_ALIASES = "(SELECT array_agg(a.name ORDER BY a.name) FROM aliases a WHERE a.life = v.life AND a.number = v.number)"
"""The names of the aliases of a version ``v``."""

_V = ", ".join(f"v.{column}" for column in VERSION.split(", "))

_ROW = f"life, {VERSION}, damage"


def _both(condition: str, rest: str = "") -> str:
    """Return the query for versions of both tiers that meet a condition, each tier with the same rest of a query."""
    tiers = (("versions", "true"), ("transient", "false"))
    return " UNION ALL ".join(
        f"(SELECT {_ROW.replace('archived', f'{archived} AS archived')} FROM {table} WHERE {condition} {rest})"
        for table, archived in tiers
    )


def _ordered(condition: str, direction: str, limit: str, offset: str = "0") -> str:
    """Return the query for sound versions in the order of their numbers.

    Each tier is ordered and cut by itself first: PostgreSQL would sort all of both otherwise.
    """
    rest = f"ORDER BY number {direction} LIMIT {limit}"
    each = _both(f"{condition} AND damage = ''", rest if offset == "0" else f"{rest} + {offset}")
    return f"SELECT * FROM ({each}) both_tiers {rest} OFFSET {offset}"


_NEWEST = """coalesce(greatest(
    (SELECT max(number) FROM versions WHERE life = m.life AND damage = '' {condition}),
    (SELECT max(number) FROM transient WHERE life = m.life AND damage = '' {condition})), 0)"""

FIND = "SELECT life FROM models WHERE model_id = $1"

FIND_WITH_SIGNERS = "SELECT life, signers FROM models WHERE model_id = $1"

MODEL = "SELECT life, model_id, user_data FROM models WHERE model_id = $1"

MODELS = "SELECT model_id, user_data FROM models ORDER BY model_id OFFSET $1 LIMIT $2"

MODELS_AFTER = "SELECT model_id, user_data FROM models WHERE model_id > $1 ORDER BY model_id LIMIT $2"

WITH_SHARES = "SELECT model_id FROM models WHERE share <> '{0,0,0,0}' ORDER BY model_id"

SUMMARIES = f"""
SELECT m.model_id, m.user_data, {DECIDED}, m.archived_bytes::text AS archived_bytes,
    m.archived_versions + (SELECT count(*) FROM transient t WHERE t.life = m.life AND t.damage = '') AS versions,
    {_NEWEST.format(condition="")} AS latest,
    (SELECT json_agg(json_build_array(a.name, a.number, a.revision, a.set_at) ORDER BY a.name)::text
        FROM aliases a WHERE a.life = m.life) AS aliases
FROM models m WHERE m.model_id = ANY($1)
"""

BY_NUMBERS = f"""
SELECT m.life AS model, {_V}, v.damage
FROM models m LEFT JOIN LATERAL ({_both("life = m.life AND number = ANY($2)")}) v ON true WHERE m.model_id = $1
"""

FROM_LAST = f"""
SELECT m.life AS model, w.asked, {_V}
FROM models m CROSS JOIN unnest($2::bigint[]) AS w(asked)
LEFT JOIN LATERAL ({_ordered("life = m.life", "DESC", "1", "(-w.asked - 1)")}) v ON true WHERE m.model_id = $1
"""

LATEST = f"""
SELECT m.life AS model, {_V}
FROM models m LEFT JOIN LATERAL ({_ordered("life = m.life", "DESC", "1")}) v ON true WHERE m.model_id = $1
"""

LIST = f"""
SELECT m.life AS model, {_V}
FROM models m LEFT JOIN LATERAL ({_ordered("life = m.life AND number >= $2", "ASC", "$3")}) v ON true
WHERE m.model_id = $1 ORDER BY v.number
"""

DESCRIBE = f"""
SELECT w.position, m.model_id, {_V}, v.damage, {_ALIASES} AS aliases
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS w(model_id, number, position)
JOIN models m ON m.model_id = w.model_id
JOIN LATERAL ({_both("life = m.life AND number = w.number")}) v ON true
"""

COPIES = f"""
SELECT m.life AS model, {_V} FROM models m LEFT JOIN LATERAL (
    {_both("life = m.life AND data_hash = $2 AND data_size = $3 AND damage = ''", "ORDER BY number DESC LIMIT 8")}
) v ON true WHERE m.model_id = $1
"""

STATE = """
SELECT changes,
    (SELECT coalesce(array_agg(number ORDER BY number), '{}') FROM visible v WHERE v.life = m.life) AS numbers
FROM models m WHERE life = $1
"""

OUTLINE = f"""
SELECT m.changes,
    m.archived_versions - (SELECT count(*) FROM versions v WHERE v.life = m.life AND v.number > $2 AND v.damage = '')
    + (SELECT count(*) FROM transient t WHERE t.life = m.life AND t.number <= $2 AND t.damage = '') AS versions,
    {_NEWEST.format(condition="AND number <= $2")} AS newest
FROM models m WHERE life = $1
"""

NEWER = f"""
SELECT
    (SELECT count(*) FROM transient t WHERE t.life = m.life AND t.number > $2 AND t.damage = '')
    + CASE WHEN 2 * $2::bigint > m.mark  -- whichever is fewer
        THEN (SELECT count(*) FROM versions v WHERE v.life = m.life AND v.number > $2 AND v.damage = '')
        ELSE m.archived_versions
            - (SELECT count(*) FROM versions v WHERE v.life = m.life AND v.number <= $2 AND v.damage = '')
        END AS versions,
    (SELECT appeared FROM appearances a WHERE a.life = m.life AND a.number > $2 ORDER BY number LIMIT 1) AS appeared,
    (SELECT number FROM appearances a WHERE a.life = m.life ORDER BY number LIMIT 1) AS first_known,
    v.number, v.created
FROM models m LEFT JOIN LATERAL ({_ordered("life = m.life AND number > $2", "ASC", "1")}) v ON true
WHERE m.model_id = $1
"""

SIGNERS = "SELECT signers FROM models WHERE life = $1"

ALIASES = """
SELECT m.life AS model, a.name, a.number, a.revision, a.set_at
FROM models m LEFT JOIN aliases a USING (life) WHERE m.model_id = $1 ORDER BY a.name
"""

UPLOAD = """
SELECT r.digest, r.model_id, CASE WHEN m.life IS NULL THEN 0 ELSE r.number END AS number
FROM (SELECT * FROM requests WHERE request_id = $1 UNION ALL SELECT * FROM transient_requests WHERE request_id = $1) r
LEFT JOIN models m ON m.life = r.life ORDER BY r.finished DESC LIMIT 1
"""

COUNT = """
SELECT count(*) AS models, coalesce(sum(archived_versions), 0)::bigint
    + (SELECT count(*) FROM transient WHERE damage = '') AS versions,
    coalesce(sum(archived_bytes), 0)::text AS archived_bytes
FROM models
"""

_NEWS = "life = m.life AND number > $2 AND number <= $3"

NEWS = f"""
SELECT coalesce(h.last_number, m.mark) AS head, CASE WHEN $4::bigint > 0
    THEN (SELECT array_agg(number ORDER BY number) FROM ({_ordered(_NEWS, "ASC", "$4::bigint")}) v)
    ELSE (SELECT array_agg(number) FROM ({_ordered(_NEWS, "DESC", "1")}) v) END AS numbers
FROM models m LEFT JOIN heads h USING (life) WHERE m.life = $1
"""

HEAD = f"""
SELECT m.life, coalesce(h.last_number, m.mark) AS head, {_NEWEST.format(condition="")} AS newest
FROM models m LEFT JOIN heads h USING (life) WHERE m.model_id = $1
"""


class Reads:
    """Answers questions. The methods are those of `Catalog`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._connections: Connections = core.connections
        self._joining = Joining()

    async def _join(self, name: str, query: str, *values: Hashable) -> Sequence[Record]:
        """Return the rows of a query that many may send at once."""
        return await self._joining.result((query, *values), lambda: self._connections.fetch(name, query, *values))

    async def find(self, model_id: str) -> ModelRef:
        try:
            rows = await self._join("find", FIND, model_id)
        except CatalogAwayError:
            if (known := self._core.cache.find(model_id)) is None:
                raise
            return known
        if not rows:
            raise NotFoundError.model(model_id)
        ref = ModelRef(model_id, rows[0]["life"])
        self._core.cache.put_ref(ref)
        return ref

    async def find_with_signers(self, model_id: str) -> tuple[ModelRef, Sequence[PublicKey]]:
        rows = await self._join("find", FIND_WITH_SIGNERS, model_id)
        if not rows:
            raise NotFoundError.model(model_id)
        ref, signers = ModelRef(model_id, rows[0]["life"]), signers_of(rows[0])
        self._core.cache.put_ref(ref)
        return ref, signers

    async def get_model(self, model_id: str) -> ModelInfo:
        try:
            rows = await self._connections.fetch("get_model", MODEL, model_id)
        except CatalogAwayError:
            if (known := self._core.cache.get_model(model_id)) is None:
                raise
            return known
        if not rows:
            raise NotFoundError.model(model_id)
        info = model_of(rows[0])
        self._core.cache.put_model(rows[0]["life"], info)
        return info

    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        return (await self._find_versions(model_id, numbers))[1]

    async def find_version(self, model_id: str, number: int) -> tuple[ModelRef, VersionInfo]:
        ref, [info] = await self._find_versions(model_id, [number])
        return ref, info

    async def _find_versions(self, model_id: str, numbers: Sequence[int]) -> tuple[ModelRef, list[VersionInfo]]:
        cache = self._core.cache
        try:
            ref, infos = await self._get_versions(model_id, numbers)
        except CatalogAwayError:
            known_ref, known = cache.find(model_id), cache.get_versions(model_id, numbers)
            if known_ref is None or known is None:
                raise
            return known_ref, known
        cache.put_versions(ref, numbers, infos)
        return ref, infos

    async def _get_versions(self, model_id: str, numbers: Sequence[int]) -> tuple[ModelRef, list[VersionInfo]]:
        wanted = {number for number in numbers if abs(number) <= _NUMBER_MAX}
        found: dict[int, VersionInfo] = {}
        damage: dict[int, str] = {}
        last = sorted(number for number in wanted if number < 0)
        if wanted == {-1}:
            rows = await self._join("get_latest", LATEST, model_id)
            found.update((-1, info_of(model_id, row)) for row in rows if row["number"] is not None)
        else:
            rows = []
            if last:
                rows = await self._join("get_last", FROM_LAST, model_id, tuple(last))
                found.update((row["asked"], info_of(model_id, row)) for row in rows if row["number"] is not None)
            others = sorted(number for number in wanted if number >= 0)
            if others or not last:
                rows = await self._join("get_versions", BY_NUMBERS, model_id, tuple(others))
                sound = [row for row in rows if row["number"] is not None]
                found.update((row["number"], info_of(model_id, row)) for row in sound if not row["damage"])
                damage = {row["number"]: row["damage"] for row in sound if row["damage"]}
        if not rows:
            raise NotFoundError.model(model_id)
        for number in numbers:
            if number in damage:
                raise DataLossError.version(model_id, number, damage[number])
            if number not in found:
                raise NotFoundError.version(model_id, number)
        return ModelRef(model_id, rows[0]["model"]), [found[number] for number in numbers]

    async def latest(self, model_id: str) -> tuple[int, VersionInfo | None]:
        """Return the life of a model, 0 if it does not exist, and its newest version."""
        rows = await self._join("get_latest", LATEST, model_id)
        if not rows:
            return 0, None
        return rows[0]["model"], None if rows[0]["number"] is None else info_of(model_id, rows[0])

    async def list_versions(self, model_id: str, first_number: int, limit: int) -> list[VersionInfo]:
        first = max(min(first_number, _NUMBER_MAX), -_NUMBER_MAX)
        rows = await self._require(model_id, "list_versions", LIST, first, min(limit, _NUMBER_MAX))
        return [info_of(model_id, row) for row in rows if row["number"] is not None]

    async def find_copies(self, model_id: str, data_hash: str, size_bytes: int) -> list[VersionInfo]:
        rows = await self._require(model_id, "find_copies", COPIES, data_hash, min(size_bytes, _NUMBER_MAX))
        return [info_of(model_id, row) for row in rows if row["number"] is not None]

    async def get_aliases(self, model_id: str) -> list[Alias]:
        rows = await self._require(model_id, "get_aliases", ALIASES)
        return [alias_of(row) for row in rows if row["name"] is not None]

    async def _require(self, model_id: str, name: str, query: str, *values: object) -> Sequence[Record]:
        """Return the rows about a model, of which there is one at least."""
        rows = await self._connections.fetch(name, query, model_id, *values)
        if not rows:
            raise NotFoundError.model(model_id)
        return rows

    async def list_models(self, offset: int, limit: int) -> list[ModelInfo]:
        bounds = min(offset, _NUMBER_MAX), min(limit, _NUMBER_MAX)
        return [model_of(row) for row in await self._connections.fetch("list_models", MODELS, *bounds)]

    async def list_models_after(self, model_id: str, limit: int) -> list[ModelInfo]:
        after = model_id.replace("\0", "\1")  # an id has none, but whoever asks may
        rows = await self._connections.fetch("list_models", MODELS_AFTER, after, min(limit, _NUMBER_MAX))
        return [model_of(row) for row in rows]

    async def models_with_shares(self) -> list[str]:
        return [row["model_id"] for row in await self._connections.fetch("list_shares", WITH_SHARES)]

    async def summarize(self, models: Sequence[ModelInfo]) -> list[ModelSummary]:
        ids = [info.model_id for info in models]
        rows = await self._connections.fetch("summarize", SUMMARIES, ids)
        found = {row["model_id"]: summary_of(row) for row in rows}
        return [found[model_id] for model_id in ids if model_id in found]

    async def describe(self, infos: Sequence[VersionInfo]) -> list[Version]:
        found = await self._find_all(infos)
        return [
            Version.of(info, version.annotations, version.aliases)
            if (version := found.get(position)) and _is_same(version, info)
            else Version.of(info)
            for position, info in enumerate(infos)
        ]

    async def describe_visible(self, infos: Sequence[VersionInfo]) -> list[Version]:
        found = await self._find_all(infos, damaged=True)
        for position, info in enumerate(infos):
            if position not in found or not _is_same(found[position], info):
                raise NotFoundError.version(info.model_id, info.number)
        return [found[position] for position in range(len(infos))]

    async def _find_all(self, infos: Sequence[VersionInfo], *, damaged: bool = False) -> dict[int, Version]:
        """Return those versions that exist now, by position.

        Raises:
            DataLossError: One is damaged, if `damaged` says that this is an error.
        """
        if not infos:
            return {}
        ids, numbers = [info.model_id for info in infos], [info.number for info in infos]
        rows = await self._connections.fetch("describe", DESCRIBE, ids, numbers)
        for row in rows:
            if damaged and row["damage"]:
                raise DataLossError.version(row["model_id"], row["number"], row["damage"])
        return {row["position"] - 1: version_of(row["model_id"], row) for row in rows}

    async def newer_than(self, model_id: str, number: int) -> Newer:
        [row] = await self._require(model_id, "newer_than", NEWER, number)
        since_ns = None if row["appeared"] is None else row["appeared"] + TIME_OFFSET
        if row["number"] is not None and (row["first_known"] is None or row["number"] < row["first_known"]):
            # It became visible before the times that are known.
            since_ns = min(row["created"] + TIME_OFFSET, since_ns or time_ns())
        return Newer(row["versions"], since_ns)

    async def get_signers(self, ref: ModelRef) -> Sequence[PublicKey]:
        known = self._core.signers.get(ref.life)
        return known if known is not None else signers_of(await self._require_life(ref, "get_signers", SIGNERS))

    async def get_state(self, ref: ModelRef) -> ModelState:
        row = await self._require_life(ref, "get_state", STATE)
        return ModelState(tuple(row["numbers"]), row["changes"])

    async def get_outline(self, ref: ModelRef, last_number: int) -> ModelOutline:
        row = await self._require_life(ref, "get_outline", OUTLINE, last_number)
        return ModelOutline(row["changes"], row["versions"], row["newest"])

    async def _require_life(self, ref: ModelRef, name: str, query: str, *values: object) -> Record:
        rows = await self._connections.fetch(name, query, ref.life, *values)
        if not rows:
            raise NotFoundError.model(ref.model_id)
        return rows[0]

    async def find_upload(self, request_id: str) -> FinishedUpload | None:
        rows = await self._connections.fetch("find_upload", UPLOAD, request_id)
        return FinishedUpload(rows[0]["digest"], rows[0]["model_id"], rows[0]["number"]) if rows else None

    async def count(self) -> CatalogCounts:
        [row] = await self._connections.fetch("count", COUNT)
        return CatalogCounts(row["models"], row["versions"], int(row["archived_bytes"]))

    async def existing(self, model_ids: Sequence[str] | None) -> list[str]:
        """Return the models that exist, of some or of all."""
        condition, values = ("", []) if model_ids is None else (" WHERE model_id = ANY($1)", [model_ids])
        rows = await self._connections.fetch("watch_models", f"SELECT model_id FROM models{condition}", *values)
        return [row["model_id"] for row in rows]


def summary_of(row: Record) -> ModelSummary:
    """Return the summary in a row of `SUMMARIES`."""
    aliases = [
        Alias(name, number, revision, set_at + TIME_OFFSET)
        for name, number, revision, set_at in json.loads(row["aliases"] or "[]")
    ]
    return ModelSummary.of(
        model_of(row),
        decided_of(row),
        aliases=tuple(aliases),
        latest_number=row["latest"],
        versions=row["versions"],
        archived_bytes=int(row["archived_bytes"]),
    )


def _is_same(version: Version, info: VersionInfo) -> bool:
    """Return whether a version is the one of a record, of whichever tier."""
    return (version.created_ns, version.data_hash) == (info.created_ns, info.data_hash)
