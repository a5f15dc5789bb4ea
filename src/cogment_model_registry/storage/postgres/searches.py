"""Searches, as one query of the versions of both tiers: all values are parameters and never text of a query."""

import asyncio
from dataclasses import dataclass, field

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
    "archived": "v.archived",
}

_V = ", ".join(f"v.{column}" for column in VERSION.split(", "))

_ALIASES = "(SELECT array_agg(a.name ORDER BY a.name) FROM aliases a WHERE a.life = v.life AND a.number = v.number)"


async def find_versions(connections: Connections, search: Search) -> list[Version]:
    """Return versions in order, up to the limit; those that lack what they are ordered by come last.

    Raises:
        TooLargeError: It took too long.
    """
    query = _Query()
    sql = query.text(search)
    async with connections.reading() as connection:
        try:
            rows = await connection.fetch(sql, *query.values, timeout=SEARCH_SECONDS)
        except (TimeoutError, asyncio.TimeoutError, asyncpg.QueryCanceledError):
            message = f"the search took longer than {SEARCH_SECONDS:g} seconds: name a model, or compare less"
            raise TooLargeError(message) from None
    return [version_of(row["model_id"], row) for row in rows]


@dataclass(slots=True)
class _Query:
    """A query in the making.

    Attributes:
        values: The values of its parameters.
    """

    values: list[Value] = field(default_factory=list)

    def text(self, search: Search) -> str:
        conditions = [self._condition(search.accepted)]
        if search.model_id is not None:
            conditions.append(f"m.model_id = {self._parameter(search.model_id)}")
        ordered_by = self._expression(search.order.field)
        if search.after is not None:
            conditions.append(self._later(search, ordered_by))
        direction = "DESC" if search.order.is_descending else "ASC"
        return (
            f"SELECT m.model_id, {_V}, {_ALIASES} AS aliases FROM visible v JOIN models m USING (life)"
            f" WHERE {' AND '.join(conditions)}"
            f" ORDER BY {ordered_by} {direction} NULLS LAST, m.model_id {direction}, v.number {direction}"
            f" LIMIT {self._parameter(min(search.limit, _WHOLE_MAX), 'bigint')}"
        )

    def _parameter(self, value: Value, kind: str = "text") -> str:
        self.values.append(value)
        return f"${len(self.values)}::{kind}"

    def _expression(self, ordered_by: Field) -> str:
        """Return what a version has in a field, NULL for nothing."""
        if not ordered_by.key:
            return _COLUMNS[ordered_by.name]
        key = self._parameter(escaped(ordered_by.key))
        if ordered_by.name == "metrics":
            return f"(v.metrics ->> {key})::float8"
        return f'(v.{ordered_by.name} ->> {key}) COLLATE "C"'

    def _later(self, search: Search, ordered_by: str) -> str:
        """Return the condition that a version comes after the last page."""
        assert search.after is not None  # noqa: S101 - the caller has looked
        after, symbol = search.after, "<" if search.order.is_descending else ">"
        ids = f"({self._parameter(after.model_id)}, {self._parameter(after.number, 'bigint')})"
        ties = f"(m.model_id, v.number) {symbol} {ids}"
        if after.value is None:
            return f"({ordered_by} IS NULL AND {ties})"
        value = self._stored(search.order.field, after.value)
        return f"({ordered_by} IS NULL OR {ordered_by} {symbol} {value} OR ({ordered_by} = {value} AND {ties}))"

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

    def _condition(self, accepted: Filter) -> str:
        """Return a filter as a condition, which is never NULL."""
        match accepted:
            case Comparison(Field("tags", key), "=", value) if isinstance(value, str) and key:
                return f"v.tags @> {self._parameter(texts_json({key: value}))}::jsonb"
            case Comparison(compared, symbol, value):
                comparison = (
                    f"{self._expression(compared)} {symbol.replace('!=', '<>')} {self._stored(compared, value)}"
                )
                return f"coalesce({comparison}, false)"
            case Has("aliases", key):
                name = self._parameter(escaped(key))
                return (
                    f"EXISTS (SELECT FROM aliases a WHERE a.life = v.life AND a.number = v.number AND a.name = {name})"
                )
            case Has(name, key):
                return f"v.{name} ? {self._parameter(escaped(key))}"
            case Not(part):
                return f"NOT ({self._condition(part)})"
            case And(parts) | Or(parts):
                by, empty = (" AND ", "true") if isinstance(accepted, And) else (" OR ", "false")
                return f"({by.join(self._condition(part) for part in parts)})" if parts else empty

    def _has(self, name: str, key: str) -> str:
        if name != "aliases":
            return f"v.{name} ? {key}"
        return f"EXISTS (SELECT FROM aliases a WHERE a.life = v.life AND a.number = v.number AND a.name = {key})"
