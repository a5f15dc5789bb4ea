"""Searches for archived versions, as queries of the tables: all values are parameters and never text of a query."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from cogment_model_registry.records.lifecycle import Annotations, Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.filters import And, Comparison, Field, Filter, Has, Not, Or, Value
from cogment_model_registry.storage.catalog.tables import TIME_OFFSET, entries


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
        return value - TIME_OFFSET
    return value


def _version(connection: Connection, row: Sequence[Any]) -> Version:
    model, model_id, number, created, data_hash, data_size, revision = row
    key = (model, number)
    user_data, tags, metrics = (entries(connection, table, key) for table in ("user_data", "tags", "metrics"))
    names = connection.execute("SELECT name FROM aliases WHERE model = ? AND number = ? ORDER BY name", key)
    info = VersionInfo(model_id, number, created + TIME_OFFSET, True, data_hash, data_size, user_data)
    return Version(info, Annotations(tags, metrics, revision), tuple(name for (name,) in names))
