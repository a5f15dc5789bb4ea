"""Searches for archived versions, as queries of the tables: all values are parameters and never text of a query.

A search begins with the few versions that the most selective part of its filter leaves, if an index shows that they
are few; they are checked and sorted. Otherwise it goes through an index in the order that is asked for, checks each
version, and stops when it has enough. So a page costs little among many versions, unless hardly any is accepted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any

from cogment_model_registry.records.lifecycle import Annotations, Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.filters import And, Comparison, Field, Filter, Has, Not, Or, Value
from cogment_model_registry.storage.catalog.tables import TIME_OFFSET, entries, find_model, signature_in

FEW = 2000
"""How many versions are checked and sorted rather than gone through in order; with two cores, in some 10 ms."""

_INDEXED = ("tags", "metrics")
"""The tables with an index by value."""

_VERSIONS = "versions v CROSS JOIN models m USING (model)"

_COLUMNS = {
    "version_number": "v.number",
    "data_size": "v.data_size",
    "creation_timestamp": "v.created",
    "data_hash": "v.data_hash",
    "archived": "(v.number > 0)",  # true, as all rows are; a plain 1 would name the first column
}


def find_versions(connection: Connection, search: Search) -> list[Version]:
    """Return archived versions in order, up to the limit; those that lack what they are ordered by come last."""
    versions: list[Version] = []
    for query in queries(connection, search):
        if len(versions) < search.limit:
            rows = connection.execute(query.sql(), [*query.parameters, search.limit - len(versions)]).fetchall()
            versions += [_version(connection, row) for row in rows]
    return versions


@dataclass(slots=True)
class Query:
    """A query for versions ``v`` of models ``m``, in pieces.

    Attributes:
        source: The tables.
        order: The order.
        conditions: What holds for each version.
        parameters: The values in the pieces, in their order.
        keys: The table that has the model and the number of each version first.
    """

    source: str
    order: str
    conditions: list[str] = field(default_factory=list)
    parameters: list[Value] = field(default_factory=list)
    keys: str = "v"

    def sql(self) -> str:
        """Return it as text; its last parameter is the limit."""
        return (
            "SELECT v.model, m.model_id, v.number, v.created, v.data_hash, v.data_size, v.revision, v.signature"  # noqa: S608 - all values are parameters
            f" FROM {self.source} WHERE {' AND '.join(self.conditions) or '1'} ORDER BY {self.order} LIMIT ?"
        )

    def restrict(self, condition: str, *values: Value) -> None:
        """Add a condition."""
        self.conditions.append(condition)
        self.parameters += values


def queries(connection: Connection, search: Search) -> Iterable[Query]:
    """Yield the queries that answer a search, to be asked in turn until there is enough."""
    model = None
    if search.model_id is not None:
        model = find_model(connection, search.model_id)
        if model is None:
            return
    few = _few(connection, search.accepted, model)
    if few is not None:
        yield _query_of_few(few, search)
        return
    if search.after is None or search.after.value is not None:
        yield _query_in_order(search, model)
    if search.order.field.key and not _requires(search.accepted, search.order.field):
        yield _query_of_lacking(search, model)


def _requires(accepted: Filter, ordered_by: Field) -> bool:
    """Return whether a filter accepts no version that lacks an entry."""
    match accepted:
        case Comparison(compared, _, _):
            return compared == ordered_by
        case Has(name, key):
            return (name, key) == (ordered_by.name, ordered_by.key)
        case And(parts):
            return any(_requires(part, ordered_by) for part in parts)
        case Or(parts):
            return all(_requires(part, ordered_by) for part in parts)
    return False


# From few versions.


@dataclass(frozen=True, slots=True)
class _Few:
    """Versions among which are all that a filter accepts.

    Attributes:
        sql: A query for their models and numbers.
        parameters: The values in it.
        count: How many they are at most.
    """

    sql: str
    parameters: tuple[Value, ...]
    count: int


def _few(connection: Connection, accepted: Filter, model: int | None) -> _Few | None:
    """Return the fewest versions that an index finds for a part of a filter; None if they are not few."""
    match accepted:
        case Comparison(Field(name, key), symbol, value) if name in _INDEXED and symbol != "!=":
            return _counted(connection, name, model, f"key = ? AND value {symbol} ?", key, value)
        case Comparison(Field("version_number"), "=", value) if model is not None:
            return _counted(connection, "versions", model, "number = ?", value)
        case Has(name, key) if name != "user_data":
            return _counted(connection, name, model, f"{_key_column(name)} = ?", key)
        case And(parts):
            found = [few for part in parts if (few := _few(connection, part, model))]
            return min(found, key=lambda few: few.count, default=None)
        case Or(parts):
            return _few_of_any(connection, parts, model)
    return None


def _few_of_any(connection: Connection, parts: Sequence[Filter], model: int | None) -> _Few | None:
    found = []
    for part in parts:
        few = _few(connection, part, model)
        if few is None:
            return None
        found.append(few)
    parameters = tuple(value for few in found for value in few.parameters)
    together = _Few(" UNION ".join(few.sql for few in found), parameters, sum(few.count for few in found))
    return together if together.count <= FEW else None


def _counted(connection: Connection, table: str, model: int | None, condition: str, *values: Value) -> _Few | None:
    """Return the versions with an entry in a table; None if they are not few."""
    if model is not None:
        condition, values = f"model = ? AND {condition}", (model, *values)
    sql = f"SELECT model, number FROM {table} WHERE {condition}"  # noqa: S608 - all values are parameters
    [count] = connection.execute(f"SELECT count(*) FROM ({sql} LIMIT {FEW + 1})", values).fetchone()  # noqa: S608
    return _Few(sql, values, count) if count <= FEW else None


def _query_of_few(few: _Few, search: Search) -> Query:
    direction = _direction(search)
    query = Query(f"({few.sql}) f CROSS JOIN versions v USING (model, number) CROSS JOIN models m USING (model)", "")
    query.parameters += few.parameters
    value = _COLUMNS.get(search.order.field.name, "o.value")
    if search.order.field.key:
        query.source += (
            f" LEFT JOIN {search.order.field.name} o ON o.model = v.model AND o.number = v.number AND o.key = ?"
        )
        query.parameters.append(search.order.field.key)
    query.order = f"{value} IS NULL, {value} {direction}, m.model_id {direction}, v.number {direction}"
    _accept(query, search.accepted)
    if search.after is not None and search.after.value is None:
        query.restrict(f"{value} IS NULL")
        _begin_after(query, search, ["m.model_id", "v.number"])
    elif search.after is not None:
        _begin_after(query, search, [value, "m.model_id", "v.number"], or_else=f"{value} IS NULL")
    return query


# In order.


def _query_in_order(search: Search, model: int | None) -> Query:
    """Return the query for the versions that have what they are ordered by, which goes through them in order."""
    direction, ordered_by = _direction(search), search.order.field
    value = _COLUMNS.get(ordered_by.name, "o.value")
    query = Query(_VERSIONS, "")
    if ordered_by.key:
        query = Query(f"{ordered_by.name} o CROSS JOIN {_VERSIONS.replace(' v ', ' v USING (model, number) ', 1)}", "")
        query.keys = "o"
        query.restrict("o.key = ?", ordered_by.key)
    # The model is left out where it is always the same, so that an index has the order.
    ties = [f"{query.keys}.number"] if model is not None else ["m.model_id", f"{query.keys}.number"]
    if value == "v.number":
        ties.remove("v.number")
    columns = [value, *ties]
    query.order = ", ".join(f"{column} {direction}" for column in columns)
    _restrict_to(query, model)
    if search.after is not None:
        _begin_after(query, search, columns)
    _accept(query, search.accepted, ordered_by)
    return query


def _query_of_lacking(search: Search, model: int | None) -> Query:
    """Return the query for the versions that lack what they are ordered by."""
    direction, ordered_by = _direction(search), search.order.field
    columns = ["v.number"] if model is not None else ["m.model_id", "v.number"]
    query = Query(_VERSIONS, ", ".join(f"{column} {direction}" for column in columns))
    _restrict_to(query, model)
    query.restrict(f"NOT {_exists(query.keys, ordered_by.name)})", ordered_by.key)
    if search.after is not None and search.after.value is None:
        _begin_after(query, search, columns)
    _accept(query, search.accepted)
    return query


# Their pieces.


def _direction(search: Search) -> str:
    return "DESC" if search.order.is_descending else "ASC"


def _restrict_to(query: Query, model: int | None) -> None:
    if model is not None:
        query.restrict(f"{query.keys}.model = ?", model)


def _begin_after(query: Query, search: Search, columns: Sequence[str], or_else: str = "") -> None:
    """Restrict a query to what comes after the last page."""
    if search.after is None:
        return
    after = search.after
    at: dict[str, Value] = {"m.model_id": after.model_id, "v.number": after.number, "o.number": after.number}
    if after.value is not None:
        at.setdefault(columns[0], _stored(search.order.field, after.value))
    values = [at[column] for column in columns]
    later = "<" if search.order.is_descending else ">"
    condition = f"({', '.join(columns)}) {later} ({', '.join('?' * len(columns))})"
    query.restrict(f"({condition} OR {or_else})" if or_else else condition, *values)


def _accept(query: Query, accepted: Filter, ordered_by: Field | None = None) -> None:
    """Restrict a query to what a filter accepts.

    Args:
        query: The query.
        accepted: The filter.
        ordered_by: The field of the entries ``o`` that the query goes through, if it does.
    """
    values: list[Value] = []
    query.restrict(f"({_condition(accepted, query.keys, ordered_by, values)})", *values)


def _condition(accepted: Filter, keys: str, ordered_by: Field | None, values: list[Value]) -> str:
    """Return a filter as a condition in SQL, which is never NULL; add its values to a list."""
    match accepted:
        case Comparison(compared, symbol, value) if compared.key and compared == ordered_by:
            values.append(value)
            return f"o.value {symbol} ?"
        case Comparison():
            return _comparison(accepted, keys, values)
        case Has(name, key):
            values.append(key)
            return f"{_exists(keys, name)})"
        case Not(part):
            return f"NOT ({_condition(part, keys, ordered_by, values)})"
        case And(parts):
            return " AND ".join(f"({_condition(part, keys, ordered_by, values)})" for part in parts) or "1"
        case Or(parts):
            return " OR ".join(f"({_condition(part, keys, ordered_by, values)})" for part in parts)


def _comparison(accepted: Comparison, keys: str, values: list[Value]) -> str:
    compared, symbol, value = accepted.field, accepted.operator, accepted.value
    if compared.key:
        values += [compared.key, value]
        return f"{_exists(keys, compared.name)} AND e.value {symbol} ?)"
    values.append(_stored(compared, value))
    column = f"{keys}.number" if compared.name == "version_number" else _COLUMNS[compared.name]
    return f"{column} {symbol} ?"


def _exists(keys: str, table: str) -> str:
    """Return the condition, still open, that a version has an entry whose key is the next parameter."""
    return (
        f"EXISTS (SELECT 1 FROM {table} e WHERE e.model = {keys}.model AND e.number = {keys}.number"  # noqa: S608 - names of ours
        f" AND e.{_key_column(table)} = ?"
    )


def _key_column(table: str) -> str:
    return "name" if table == "aliases" else "key"


def _stored(field: Field, value: Value) -> Value:
    """Return a value as its column has it."""
    if field.name == "creation_timestamp" and isinstance(value, int):
        return value - TIME_OFFSET
    return value


def _version(connection: Connection, row: Sequence[Any]) -> Version:
    model, model_id, number, created, data_hash, data_size, revision, signature = row
    key = (model, number)
    user_data, tags, metrics = (entries(connection, table, key) for table in ("user_data", "tags", "metrics"))
    names = connection.execute("SELECT name FROM aliases WHERE model = ? AND number = ? ORDER BY name", key)
    info = VersionInfo(
        model_id, number, created + TIME_OFFSET, True, data_hash, data_size, user_data, signature_in(signature)
    )
    return Version.of(info, Annotations(tags, metrics, revision), tuple(name for (name,) in names))
