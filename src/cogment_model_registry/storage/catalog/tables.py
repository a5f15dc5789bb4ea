"""The tables of a catalog, and what is asked of them.

An archived version has a row, which can be rebuilt from its files. What people may change (tags, metrics, aliases)
is only here. Transient versions are not: they end with the process.

Times are nanoseconds since the Unix epoch less 2^63, since their range is that of an unsigned integer of 64 bits, and
the order of SQLite's integers is signed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

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
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.filters import And, Comparison, Field, Filter, Has, Not, Or, Value
from cogment_model_registry.storage.catalog.database import Migration

_TIME_OFFSET = 2**63

MIGRATIONS = (
    Migration(
        """
        CREATE TABLE models (
            model INTEGER PRIMARY KEY,
            model_id TEXT NOT NULL UNIQUE,
            last_revision INTEGER NOT NULL DEFAULT 1
        );
        CREATE TABLE versions (
            model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
            number INTEGER NOT NULL,
            created INTEGER NOT NULL,
            data_hash TEXT NOT NULL,
            data_size INTEGER NOT NULL,
            revision INTEGER NOT NULL DEFAULT 1,
            PRIMARY KEY (model, number)
        ) WITHOUT ROWID;
        CREATE TABLE user_data (
            model INTEGER NOT NULL,
            number INTEGER NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (model, number, key),
            FOREIGN KEY (model, number) REFERENCES versions ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE TABLE tags (
            model INTEGER NOT NULL,
            number INTEGER NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (model, number, key),
            FOREIGN KEY (model, number) REFERENCES versions ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE INDEX tags_by_value ON tags (key, value, model, number);
        CREATE TABLE metrics (
            model INTEGER NOT NULL,
            number INTEGER NOT NULL,
            key TEXT NOT NULL,
            value REAL NOT NULL,
            PRIMARY KEY (model, number, key),
            FOREIGN KEY (model, number) REFERENCES versions ON DELETE CASCADE
        ) WITHOUT ROWID;
        CREATE INDEX metrics_by_value ON metrics (key, value, model, number);
        CREATE TABLE aliases (
            model INTEGER NOT NULL,
            name TEXT NOT NULL,
            number INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            set_at INTEGER NOT NULL,
            PRIMARY KEY (model, name),
            FOREIGN KEY (model, number) REFERENCES versions
        ) WITHOUT ROWID;
        CREATE INDEX aliases_by_version ON aliases (model, number);
        """
    ),
)
"""The schema, step by step. A step that was released never changes."""


# Changes. Each is an operation of `Database.change`, with the connection first.


def put_versions(connection: Connection, infos: Iterable[VersionInfo]) -> None:
    """Add archived versions; those that exist with the same record keep what people changed about them."""
    for info in infos:
        model = _model_of(connection, info.model_id)
        row = (model, info.number, info.created_ns - _TIME_OFFSET, info.data_hash, info.data_size_bytes)
        connection.execute(
            "INSERT INTO versions (model, number, created, data_hash, data_size) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET created = excluded.created, data_hash = excluded.data_hash,"
            " data_size = excluded.data_size",
            row,
        )
        _put_entries(connection, "user_data", (model, info.number), info.user_data)


def remove_versions(connection: Connection, model_id: str, numbers: Iterable[int]) -> None:
    """Remove versions, with the aliases that point to them."""
    model = _find_model(connection, model_id)
    keys = [(model, number) for number in numbers]
    connection.executemany("DELETE FROM aliases WHERE model = ? AND number = ?", keys)
    connection.executemany("DELETE FROM versions WHERE model = ? AND number = ?", keys)


def remove_model(connection: Connection, model_id: str) -> None:
    """Remove a model and all that belongs to it; does nothing when it has no rows."""
    model = _find_model(connection, model_id)
    connection.execute("DELETE FROM aliases WHERE model = ?", (model,))
    connection.execute("DELETE FROM models WHERE model = ?", (model,))


def set_aliases(connection: Connection, model_id: str, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
    """Make changes of the aliases of a model, all or none; return its aliases afterwards, ordered by name.

    Raises:
        ConflictError: An alias has another revision than was expected.
        NotFoundError: An alias to be removed does not exist.
    """
    model = _model_of(connection, model_id)
    aliases = {alias.name: alias for alias in aliases_of(connection, model_id)}
    for change in changes:
        check_alias_revision(model_id, aliases.pop(change.name, None), change)
        connection.execute("DELETE FROM aliases WHERE model = ? AND name = ?", (model, change.name))
        if change.version_number is not None:
            alias = Alias(change.name, change.version_number, _next_revision(connection, model), now_ns)
            row = (model, alias.name, alias.version_number, alias.revision, now_ns - _TIME_OFFSET)
            connection.execute("INSERT INTO aliases VALUES (?, ?, ?, ?, ?)", row)
            aliases[alias.name] = alias
    return [aliases[name] for name in sorted(aliases)]


def change_annotations(connection: Connection, info: VersionInfo, change: AnnotationChange) -> Annotations:
    """Change tags and metrics of an archived version; return what it has afterwards.

    Raises:
        ConflictError: It has another revision than was expected.
    """
    before = annotations_of(connection, info.model_id, info.number)
    check_revision(info, before, change)
    after = change.apply_to(before, next_revision(connection, info.model_id))
    put_annotations(connection, info.model_id, info.number, after)
    return after


def put_annotations(connection: Connection, model_id: str, number: int, annotations: Annotations) -> None:
    """Replace the tags, the metrics and the revision of an archived version."""
    key = (_find_model(connection, model_id), number)
    connection.execute("UPDATE versions SET revision = ? WHERE model = ? AND number = ?", (annotations.revision, *key))
    _put_entries(connection, "tags", key, annotations.tags)
    _put_entries(connection, "metrics", key, annotations.metrics)


def _put_entries(
    connection: Connection, table: str, key: tuple[int | None, int], entries: Mapping[str, str | float]
) -> None:
    connection.execute(f"DELETE FROM {table} WHERE model = ? AND number = ?", key)  # noqa: S608 - a name of ours
    rows = [(*key, name, value) for name, value in entries.items()]
    connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", rows)  # noqa: S608 - a name of ours


def next_revision(connection: Connection, model_id: str) -> int:
    """Return a revision that no change of the model had before."""
    return _next_revision(connection, _model_of(connection, model_id))


def _next_revision(connection: Connection, model: int | None) -> int:
    [revision] = connection.execute(
        "UPDATE models SET last_revision = last_revision + 1 WHERE model = ? RETURNING last_revision", (model,)
    ).fetchone()
    return int(revision)


# Questions. Each is an operation of `Database.read`.


def numbers(connection: Connection) -> dict[str, set[int]]:
    """Return the numbers of all versions by model."""
    found: dict[str, set[int]] = {}
    for model_id, number in connection.execute("SELECT model_id, number FROM models LEFT JOIN versions USING (model)"):
        found.setdefault(model_id, set()).add(number)
    return {model_id: numbers - {None} for model_id, numbers in found.items()}


def numbers_of(connection: Connection, model_id: str) -> set[int]:
    """Return the numbers of the versions of a model."""
    key = (_find_model(connection, model_id),)
    return {number for (number,) in connection.execute("SELECT number FROM versions WHERE model = ?", key)}


def all_aliases(connection: Connection) -> dict[str, dict[str, Alias]]:
    """Return all aliases by model and name, in the order of their names."""
    found: dict[str, dict[str, Alias]] = {}
    for model_id, *row in connection.execute(
        "SELECT model_id, name, number, revision, set_at FROM aliases JOIN models USING (model) ORDER BY model, name"
    ):
        alias = _alias(row)
        found.setdefault(model_id, {})[alias.name] = alias
    return found


def aliases_of(connection: Connection, model_id: str) -> list[Alias]:
    """Return the aliases of a model, ordered by name."""
    rows = connection.execute(
        "SELECT name, number, revision, set_at FROM aliases WHERE model = ? ORDER BY name",
        (_find_model(connection, model_id),),
    )
    return [_alias(row) for row in rows]


def annotations_of(connection: Connection, model_id: str, number: int) -> Annotations:
    """Return the annotations of an archived version; none for one that has no row."""
    key = (_find_model(connection, model_id), number)
    row = connection.execute("SELECT revision FROM versions WHERE model = ? AND number = ?", key).fetchone()
    if row is None:
        return Annotations()
    return Annotations(_entries(connection, "tags", key), _entries(connection, "metrics", key), row[0])


def _entries(connection: Connection, table: str, key: tuple[int | None, int]) -> dict[str, Any]:
    sql = f"SELECT key, value FROM {table} WHERE model = ? AND number = ?"  # noqa: S608 - a name of ours
    return dict(connection.execute(sql, key).fetchall())


def find_versions(connection: Connection, search: Search) -> list[Version]:
    """Return archived versions, up to the limit of the search.

    Ordered by a metric or a tag, they come by the index of its values: first those that have it, then the others. By
    anything else, they are read and sorted.
    """
    versions: list[Version] = []
    for plan in plans(search):
        if len(versions) < search.limit:
            rows = connection.execute(plan.sql(), [*plan.parameters, search.limit - len(versions)]).fetchall()
            versions += [_version(connection, row) for row in rows]
    return versions


@dataclass(slots=True)
class _Query:
    """A query for versions ``v`` of models ``m``, in pieces."""

    source: str
    conditions: list[str]
    parameters: list[Value]
    order: str

    def sql(self) -> str:
        return (
            "SELECT v.model, m.model_id, v.number, v.created, v.data_hash, v.data_size, v.revision"  # noqa: S608 - all values are parameters
            f" FROM {self.source} WHERE {' AND '.join(self.conditions) or '1'} ORDER BY {self.order} LIMIT ?"
        )


_COLUMNS = {
    "version_number": "v.number",
    "data_size": "v.data_size",
    "creation_timestamp": "v.created",
    "data_hash": "v.data_hash",
    "archived": "(v.number > 0)",  # true, as all rows are; a plain 1 would name the first column
}


def plans(search: Search) -> Iterable[_Query]:
    """Yield the queries that answer a search, to be asked in turn until there is enough."""
    field, direction = search.order.field, "DESC" if search.order.is_descending else "ASC"
    value, lacking = _COLUMNS.get(field.name, "o.value"), ""
    keyed = _Query("versions v JOIN models m USING (model)", [], [], "")
    if field.key:
        keyed.source = f"{field.name} o CROSS JOIN versions v USING (model, number) CROSS JOIN models m USING (model)"
        keyed.conditions.append("o.key = ?")
        keyed.parameters.append(field.key)
        lacking = f"(v.model, v.number) NOT IN (SELECT model, number FROM {field.name} WHERE key = ?)"  # noqa: S608 - a name of ours
    keyed.order = f"{value} {direction}, m.model_id {direction}, v.number {direction}"
    if search.after is None or search.after.value is not None:
        yield _restricted(keyed, search, value)
    if lacking:
        others = _Query("versions v JOIN models m USING (model)", [lacking], [field.key], "")
        others.order = f"m.model_id {direction}, v.number {direction}"
        yield _restricted(others, search, "")


def _restricted(query: _Query, search: Search, value: str) -> _Query:
    """Return a query restricted to the model, the filter, and what comes after the last page."""
    if search.model_id is not None:
        query.conditions.append("m.model_id = ?")
        query.parameters.append(search.model_id)
    if search.after is not None and (search.after.value is None) == (not value):
        later = "<" if search.order.is_descending else ">"
        columns = [value, "m.model_id", "v.number"] if value else ["m.model_id", "v.number"]
        at: list[Value] = [search.after.model_id, search.after.number]
        if search.after.value is not None:
            at.insert(0, _stored(search.order.field, search.after.value))
        query.conditions.append(f"({', '.join(columns)}) {later} ({', '.join('?' * len(columns))})")
        query.parameters += at
    query.conditions.append(f"({_condition(search.accepted, query.parameters)})")
    return query


def _condition(accepted: Filter, parameters: list[Value]) -> str:
    """Return a filter as a condition in SQL, which is never NULL; add its values to the parameters."""
    match accepted:
        case Comparison(field, symbol, value):
            parameters.extend([field.key, _stored(field, value)] if field.key else [_stored(field, value)])
            if field.key:
                entries = f"SELECT model, number FROM {field.name} WHERE key = ? AND value {symbol} ?"  # noqa: S608 - names of ours
                return f"(v.model, v.number) IN ({entries})"
            return f"{_COLUMNS[field.name]} {symbol} ?"
        case Has(name, key):
            parameters.append(key)
            column = "name" if name == "aliases" else "key"
            return f"(v.model, v.number) IN (SELECT model, number FROM {name} WHERE {column} = ?)"  # noqa: S608 - names of ours
        case Not(part):
            return f"NOT ({_condition(part, parameters)})"
        case And(parts):
            return " AND ".join(f"({_condition(part, parameters)})" for part in parts) or "1"
        case Or(parts):
            return " OR ".join(f"({_condition(part, parameters)})" for part in parts)


def _stored(field: Field, value: Value) -> Value:
    """Return a value as its column has it."""
    if field.name == "creation_timestamp" and isinstance(value, int):
        return value - _TIME_OFFSET
    return value


def _version(connection: Connection, row: Sequence[Any]) -> Version:
    model, model_id, number, created, data_hash, data_size, revision = row
    key = (model, number)
    user_data, tags, metrics = (_entries(connection, table, key) for table in ("user_data", "tags", "metrics"))
    names = connection.execute("SELECT name FROM aliases WHERE model = ? AND number = ? ORDER BY name", key)
    info = VersionInfo(model_id, number, created + _TIME_OFFSET, True, data_hash, data_size, user_data)
    return Version(info, Annotations(tags, metrics, revision), tuple(name for (name,) in names))


def _alias(row: Sequence[Any]) -> Alias:
    name, number, revision, set_at = row
    return Alias(name, number, revision, set_at + _TIME_OFFSET)


def _find_model(connection: Connection, model_id: str) -> int | None:
    row = connection.execute("SELECT model FROM models WHERE model_id = ?", (model_id,)).fetchone()
    return int(row[0]) if row else None


def _model_of(connection: Connection, model_id: str) -> int:
    """Return the key of a model, which gets a row when it has none."""
    found = _find_model(connection, model_id)
    if found is not None:
        return found
    cursor = connection.execute("INSERT INTO models (model_id) VALUES (?)", (model_id,))
    return int(cursor.lastrowid or 0)
