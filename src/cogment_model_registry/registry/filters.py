"""Filters and orders of searches, and their evaluation on records; `filter_text` reads filters from text."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.consumers import STATES, Consumer
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.versions import CREATED_MAX_NS

Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]
Value: TypeAlias = str | int | float | bool


@dataclass(frozen=True, eq=False, slots=True)
class Vocabulary:
    """What filters may ask of records of one kind.

    Attributes:
        kinds: Fields, and the types of their values.
        maps: Fields with keys, and the types of the values.
        sets: Fields that are no more than their entries.
        choices: The texts that a field may have, where these are few: as on the wire, such as ``STATE_ACTIVE``, or
            ``active`` for short.
    """

    kinds: Mapping[str, type[str | int | float | bool]]
    maps: Mapping[str, type[str | float]]
    sets: tuple[str, ...] = ("aliases",)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def collections(self) -> tuple[str, ...]:
        """Fields of which `:` asks whether they have an entry."""
        return (*self.sets, *self.maps)

    def __str__(self) -> str:
        maps = [*self.maps]
        listed = " and ".join(filter(None, (", ".join(maps[:-1]), maps[-1])))
        return f"fields are {', '.join(self.kinds)}, and {listed} with a key, as in {maps[-1]}.name"


VERSIONS = Vocabulary(
    {"version_number": int, "archived": bool, "data_size": int, "creation_timestamp": int, "data_hash": str},
    {"user_data": str, "tags": str, "metrics": float},
)
"""What a search for versions may ask for."""

MODELS = Vocabulary(
    {"model_id": str, "latest_version_number": int, "versions": int, "archived_bytes": int},
    {"user_data": str, "tags": str},
)
"""What a search for models may ask for."""


CONSUMERS = Vocabulary(
    {
        "consumer_id": str,
        "model_id": str,
        "state": str,
        "version_number": int,
        "versions_behind": int,
        "seconds_behind": float,
    },
    {"labels": str},
    sets=(),
    choices={"state": STATES},
)
"""What a search for consumers may ask for."""


@dataclass(frozen=True, slots=True)
class Field:
    """What of a record is compared, or ordered by.

    Attributes:
        name: Of a version ``version_number``, ``archived``, ``data_size`` (bytes), ``creation_timestamp`` (nanoseconds
            since the Unix epoch), ``data_hash``, ``user_data``, ``tags`` or ``metrics``; of a model ``model_id``,
            ``latest_version_number``, ``versions``, ``archived_bytes``, ``user_data`` or ``tags``; of a consumer what
            `CONSUMERS` has.
        key: The key in ``user_data``, ``tags``, ``metrics`` or ``labels``; empty for the others.
    """

    name: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.key}" if self.key else self.name


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field operator value`; the value has the type of the field."""

    field: Field
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class Has:
    """Whether `name` (``aliases``, ``tags``, ``metrics``, ``user_data`` or ``labels``) has an entry `key`."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold. Without parts, it holds for every version."""

    parts: tuple["Filter", ...] = ()


@dataclass(frozen=True, slots=True)
class Or:
    """One part at least holds."""

    parts: tuple["Filter", ...]


Filter: TypeAlias = Comparison | Has | Not | And | Or

EVERYTHING = And()
"""The empty filter."""

ARCHIVED = Comparison(Field("archived"), "=", True)
"""The filter that accepts all archived versions."""


@dataclass(frozen=True, slots=True)
class Order:
    """By what a search is ordered. Versions that lack the field come last in either direction.

    Attributes:
        field: What is compared.
        is_descending: The largest first.
    """

    field: Field
    is_descending: bool = False


BY_NUMBER = Order(Field("version_number"))
"""The order of a search that asks for none."""


def parse_filter(text: str, vocabulary: Vocabulary = VERSIONS) -> Filter:
    """Return the filter that a text describes; see `filter_text.parse_filter`.

    The parser is loaded with the first text that is not empty: that takes longer than the rest of a start.
    """
    if not text:
        return EVERYTHING
    from cogment_model_registry.registry import filter_text  # noqa: PLC0415 # as above

    return filter_text.parse_filter(text, vocabulary)


def parse_order(text: str) -> Order:
    """Return the order that a text such as ``metrics.return desc`` describes; by number for the empty text.

    Raises:
        InvalidError: The text is malformed, or names no field.
    """
    words = text.split()
    if not words:
        return BY_NUMBER
    direction = words[1].lower() if len(words) == 2 else ""
    if len(words) > 2 or direction not in ("", "asc", "desc"):
        raise InvalidError(f"order_by {quoted(text)} must be one field, which 'desc' may follow")
    name, _, key = words[0].partition(".")
    field = Field(name, key)
    if (name in VERSIONS.kinds and not key) or (name in VERSIONS.maps and key):
        return Order(field, direction == "desc")
    raise InvalidError(f"order_by {quoted(text)} names no field; {VERSIONS}")


_COMPARE: Mapping[Operator, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


Record: TypeAlias = Version | ModelSummary | Consumer
"""What a filter accepts or not."""


def matches(accepted: Filter, record: Record) -> bool:
    """Return whether a filter accepts a record. Texts compare by code point."""
    match accepted:
        case Comparison(field, symbol, value):
            found = value_of(field, record)
            return found is not None and _COMPARE[symbol](found, value)
        case Has("aliases", key):
            return key in _names(record)
        case Has(name, key):
            return key in _map(name, record)
        case Not(part):
            return not matches(part, record)
        case And(parts):
            return all(matches(part, record) for part in parts)
        case Or(parts):
            return any(matches(part, record) for part in parts)


def value_of(field: Field, record: Record) -> Value | None:
    """Return what a record has in a field; None for nothing."""
    if field.key:
        return _map(field.name, record).get(field.key)
    if isinstance(record, Version):
        return _version_value(field, record)
    return _model_value(field, record) if isinstance(record, ModelSummary) else _consumer_value(field, record)


def _names(record: Record) -> Iterable[str]:
    """Return the aliases of a version or a model."""
    if isinstance(record, Consumer):
        return ()
    return (each if isinstance(each, str) else each.name for each in record.aliases)


def _version_value(field: Field, version: Version) -> Value | None:
    info = version.info
    match field.name:
        case "version_number":
            return info.number
        case "archived":
            return info.archived
        case "data_size":
            return info.data_size_bytes
        case "creation_timestamp":
            return info.created_ns
        case "data_hash":
            return info.data_hash
        case _:
            return None


def _model_value(field: Field, model: ModelSummary) -> Value | None:
    match field.name:
        case "model_id":
            return model.model_id
        case "latest_version_number":
            return model.latest_number
        case "versions":
            return model.versions
        case "archived_bytes":
            return model.archived_bytes
        case _:
            return None


def _consumer_value(field: Field, consumer: Consumer) -> Value | None:
    value: Value = getattr(consumer, field.name)  # which has the names of the fields of filters
    return value


def may_have(field: Field, value: Value | None) -> bool:
    """Return whether a version may have a value in a field."""
    if field.key:
        return value is None or type(value) is VERSIONS.maps[field.name]
    largest = CREATED_MAX_NS if field.name == "creation_timestamp" else 2**63 - 1
    return type(value) is VERSIONS.kinds[field.name] and (not isinstance(value, int) or 0 <= value <= largest)


def _map(name: str, record: Record) -> Mapping[str, Value]:
    if isinstance(record, Consumer):
        return record.labels
    if name == "user_data":
        return record.info.user_data
    if name == "metrics":
        return record.metrics if isinstance(record, Version) else {}
    return record.tags


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a version in an order, from which the next page of a search begins.

    Attributes:
        value: What the version has in the field of the order; None for nothing.
        model_id: Its model.
        number: Its number.
    """

    value: Value | None
    model_id: str
    number: int


def position_of(order: Order, version: Version) -> Position:
    """Return the place of a version in an order."""
    return Position(value_of(order.field, version), version.info.model_id, version.info.number)


def arranged(order: Order, versions: Iterable[Version], after: Position | None = None) -> list[Version]:
    """Return versions in an order; with `after`, those that come later than it.

    Versions with equal values are ordered by model and number, in the direction of the order.
    """
    valued: list[tuple[tuple[Any, str, int], Version]] = []
    missing: list[tuple[tuple[Any, str, int], Version]] = []
    for version in versions:
        at = position_of(order, version)
        (missing if at.value is None else valued).append(((at.value, at.model_id, at.number), version))
    if after is not None:
        last = (after.value, after.model_id, after.number)
        is_later = operator.lt if order.is_descending else operator.gt
        missing = [each for each in missing if after.value is not None or is_later(each[0][1:], last[1:])]
        valued = [each for each in valued if after.value is not None and is_later(each[0], last)]
    for part in (valued, missing):
        part.sort(key=lambda each: each[0] if each[0][0] is not None else each[0][1:], reverse=order.is_descending)
    return [version for _, version in (*valued, *missing)]
