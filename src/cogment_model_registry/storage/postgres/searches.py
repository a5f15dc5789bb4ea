"""Searches, as one query of the versions of both tiers: all values are parameters and never text of a query."""

from collections.abc import Iterable
from typing import Literal

import asyncpg

from cogment_model_registry.errors import TooLargeError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.filters import And, Comparison, Field, Filter, Has, Not, Or, Value
from cogment_model_registry.storage.postgres.connections import Connections
from cogment_model_registry.storage.postgres.rows import TIME_OFFSET, VERSION, escaped, texts_json, version_of

SEARCH_SECONDS = 10.0
"""How long a search may take."""

_WHOLE_MAX = 2**63 - 1

_COLUMNS = {
    "version_number": "v.number",
    "data_size": "v.data_size",
    "creation_timestamp": "v.created",
    "data_hash": "v.data_hash",
}

_TIERS = (("versions", "true"), ("transient", "false"))

_LACKING = "NULL::float8"

_CONSTANTS = (_LACKING, "true", "false")
"""What all versions of a query have in common."""

_ROW = ", ".join(f"v.{column}" for column in VERSION.split(", "))

_ALIASES = "(SELECT array_agg(a.name ORDER BY a.name) FROM aliases a WHERE a.life = v.life AND a.number = v.number)"


async def find_versions(connections: Connections, search: Search, life: int | None) -> list[Version]:
    """Return versions in order, up to the limit; those that lack what they are ordered by come last.

    Args:
        connections: The connections.
        search: What to look for.
        life: The life of the model of the search; None for all models.

    Raises:
        TooLargeError: It took too long.
        UnavailableError: PostgreSQL does not answer.
    """
    found: list[Version] = []
    async with connections.reading("search") as connection:
        for query in _queries(search, life):
            if len(found) < search.limit:
                try:
                    rows = await connection.fetch(query.text, *query.values, timeout=SEARCH_SECONDS)
                except (TimeoutError, asyncpg.QueryCanceledError):
                    message = f"the search took longer than {SEARCH_SECONDS:g} seconds: name a model, or compare less"
                    raise TooLargeError(message) from None
                found += [version_of(row["model_id"], row) for row in rows]
    return found[: search.limit]


def _queries(search: Search, life: int | None) -> Iterable["_Query"]:
    """Yield the queries that answer a search, to be asked in turn until there is enough."""
    if search.order.field.name != "metrics":
        yield _Query(search, life, "all")
        return
    if search.after is None or search.after.value is not None:
        yield _Query(search, life, "ordered")
    yield _Query(search, life, "lacking")


class _Query:
    """A query for versions ``v`` of models ``m`` of both tiers, each of which is ordered and cut by itself first.

    So PostgreSQL can go through an index in the order that is asked for, and stop when there is enough.

    Args:
        search: What to look for.
        life: The life of its model; None for all models.
        which: Which versions: ``all``; or, if they are ordered by a metric, those that have it (``ordered``), for which
            there is an index, or those that have not (``lacking``).

    Attributes:
        text: The query.
        values: The values of its parameters.
    """

    def __init__(self, search: Search, life: int | None, which: Literal["all", "ordered", "lacking"]) -> None:
        self.values: list[Value] = []
        self._search = search
        self._life = life
        self._which = which
        self._direction = "DESC" if search.order.is_descending else "ASC"
        limit = self._parameter(min(search.limit, _WHOLE_MAX), "bigint")
        tiers = " UNION ALL ".join(f"({self._tier(table, archived)} LIMIT {limit})" for table, archived in _TIERS)
        order = f"v.value {self._direction} NULLS LAST, v.model_id {self._direction}, v.number {self._direction}"
        page = f"SELECT * FROM ({tiers}) v ORDER BY {order} LIMIT {limit}"
        self.text = f"SELECT v.*, {_ALIASES} AS aliases FROM ({page}) v ORDER BY {order}"

    def _tier(self, table: str, archived: str) -> str:
        """Return the query for the versions of one tier."""
        value = self._value(table, archived)
        conditions = ["v.damage = ''", self._condition(self._search.accepted, archived)]
        source = f"{table} v"
        if self._which != "all":
            key = self._parameter(escaped(self._search.order.field.key))
            if self._which == "lacking":
                conditions.append(f"NOT v.metrics ? {key}")
            elif table == "versions":
                source = "metrics o JOIN versions v USING (life, number)"
                conditions.append(f"o.name = {key}")
            else:
                conditions.append(f"v.metrics ? {key}")
        if self._life is not None:
            conditions.append(
                f"{'o' if source.startswith('metrics') else 'v'}.life = {self._parameter(self._life, 'bigint')}"
            )
        ids = ["v.number"] if self._life is not None else ["m.model_id", "v.number"]
        conditions += self._later(value, ids)
        order = [f"{each} {self._direction}" for each in ids]
        if value == "v.number":
            order = order[-1:] if self._life is not None else order[::-1]
        elif value not in _CONSTANTS:
            nulls = " NULLS LAST" if self._search.order.field.key and self._which == "all" else ""
            order.insert(0, f"{value} {self._direction}{nulls}")
        row = _ROW.replace("v.archived", f"{archived} AS archived")
        return (
            f"SELECT v.life, m.model_id, {row}, {value} AS value FROM {source} JOIN models m ON m.life = v.life"
            f" WHERE {' AND '.join(conditions)} ORDER BY {', '.join(order)}"
        )

    def _parameter(self, value: Value, kind: str = "text") -> str:
        self.values.append(value)
        return f"${len(self.values)}::{kind}"

    def _value(self, table: str, archived: str) -> str:
        """Return what the versions of a tier are ordered by."""
        if self._which == "lacking":
            return _LACKING
        if self._which == "ordered" and table == "versions":
            return "o.value"
        return self._expression(self._search.order.field, archived)

    def _expression(self, compared: Field, archived: str) -> str:
        """Return what a version has in a field, NULL for nothing."""
        if not compared.key:
            return archived if compared.name == "archived" else _COLUMNS[compared.name]
        key = self._parameter(escaped(compared.key))
        if compared.name == "metrics":
            return f"(v.metrics ->> {key})::float8"
        return f'(v.{compared.name} ->> {key}) COLLATE "C"'

    def _later(self, value: str, ids: list[str]) -> list[str]:
        """Return the condition that a version comes after the last page, if there was one."""
        after = self._search.after
        if after is None:
            return []
        symbol = "<" if self._search.order.is_descending else ">"
        if self._which == "lacking" and after.value is not None:
            return []
        at = [self._parameter(after.number, "bigint")]
        if self._life is None:
            at.insert(0, self._parameter(after.model_id))
        ties = f"({', '.join(ids)}) {symbol} ({', '.join(at)})"
        if after.value is None:
            return [ties if self._which == "lacking" else f"({value} IS NULL AND {ties})"]
        if value == "v.number" and self._life is not None:
            return [ties]
        place = self._stored(self._search.order.field, after.value)
        later = f"({value} {symbol} {place} OR ({value} = {place} AND {ties}))"
        if self._search.order.field.key and self._which == "all":
            return [f"({value} IS NULL OR {later})"]
        bound = "<=" if self._search.order.is_descending else ">="
        return [f"{value} {bound} {place}", later]  # the first one lets an index begin there

    def _stored(self, compared: Field, value: Value) -> str:
        """Return the parameter for a value as its column has it."""
        if compared.name == "metrics":
            return self._parameter(float(value), "float8")
        if isinstance(value, bool):
            return self._parameter(value, "boolean")
        if isinstance(value, str):
            return self._parameter(escaped(value))
        whole = int(value) - TIME_OFFSET if compared.name == "creation_timestamp" else int(value)
        return self._parameter(max(-_WHOLE_MAX - 1, min(whole, _WHOLE_MAX)), "bigint")

    def _condition(self, accepted: Filter, archived: str) -> str:
        """Return a filter as a condition, which is never NULL."""
        match accepted:
            case Comparison(Field("tags", key), "=", value) if isinstance(value, str) and key:
                return f"v.tags @> {self._parameter(texts_json({key: value}))}::jsonb"
            case Comparison(compared, symbol, value):
                left, right = self._expression(compared, archived), self._stored(compared, value)
                return f"coalesce({left} {symbol.replace('!=', '<>')} {right}, false)"
            case Has(name, key):
                return self._has(name, self._parameter(escaped(key)))
            case Not(part):
                return f"NOT ({self._condition(part, archived)})"
            case And(parts) | Or(parts):
                by, empty = (" AND ", "true") if isinstance(accepted, And) else (" OR ", "false")
                return f"({by.join(self._condition(part, archived) for part in parts)})" if parts else empty

    def _has(self, name: str, key: str) -> str:
        if name != "aliases":
            return f"v.{name} ? {key}"
        return f"EXISTS (SELECT FROM aliases a WHERE a.life = v.life AND a.number = v.number AND a.name = {key})"
