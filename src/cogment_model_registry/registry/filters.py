"""Filters and orders of searches: their text, checked and turned into a tree that a catalog can evaluate.

The language is that of https://google.aip.dev/160, as far as registries need it:

    metrics.return > 480 AND (tags.stage = "candidate" OR aliases:production) AND NOT archived = true

As that page demands, `OR` binds tighter than `AND`: ``a AND b OR c`` is ``a AND (b OR c)``. Terms without an operator
between them must all hold, as with `AND`.

A comparison with something that a version does not have is false, with ``!=`` too; `NOT` of it is therefore true.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import lark

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.timestamps import parse_timestamp

FILTER_MAX_CHARACTERS = 4096
"""Longer filters are refused: nobody writes one by hand, and parsing takes time on the event loop."""

DEPTH_MAX = 32
"""How deep parentheses and negations may nest."""

Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]
Value: TypeAlias = str | int | float | bool

_KINDS: dict[str, type[str | int | bool]] = {
    "version_number": int,
    "archived": bool,
    "data_size": int,
    "creation_timestamp": int,
    "data_hash": str,
}
_MAPS: dict[str, type[str | float]] = {"user_data": str, "tags": str, "metrics": float}
_COLLECTIONS = ("aliases", *_MAPS)


@dataclass(frozen=True, slots=True)
class Field:
    """What of a version is compared, or ordered by.

    Attributes:
        name: ``version_number``, ``archived``, ``data_size`` (bytes), ``creation_timestamp`` (nanoseconds since the
            Unix epoch), ``data_hash``, ``user_data``, ``tags`` or ``metrics``.
        key: The key in one of the last three; empty for the others.
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
    """Whether `name` (``aliases``, ``tags``, ``metrics`` or ``user_data``) has an entry `key`."""

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

_GRAMMAR = r"""
    ?filter: and_
    ?and_: sequence ("AND" sequence)*
    ?sequence: or_+ -> and_
    ?or_: term ("OR" term)*
    ?term: simple | ("NOT" | "-") simple -> not_
    ?simple: "(" and_ ")" | restriction
    restriction: member COMPARATOR arg
    member: TEXT ("." (TEXT | STRING))*
    ?arg: TIMESTAMP | NUMBER | TEXT | STRING | STAR

    COMPARATOR: "<=" | ">=" | "!=" | "=" | "<" | ">" | ":"
    STAR: "*"
    TIMESTAMP.3: /[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9]{2}:[0-9]{2})/
    NUMBER.2: /-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![\w\/.+@~-])/
    TEXT: /[^\W_][\w\/+@~-]*|_[\w\/+@~-]*/
    STRING: /"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/s

    %ignore /\s+/
"""

_PARSER = lark.Lark(_GRAMMAR, start="filter", parser="lalr", propagate_positions=True, maybe_placeholders=False)

_EXPECTED = {
    "COMPARATOR": "one of = != < <= > >= :",
    "TEXT": "a name or a value",
    "STRING": "a text in quotes",
    "NUMBER": "a number",
    "TIMESTAMP": "a time",
    "RPAR": "a closing parenthesis",
    "$END": "the end",
}


@lru_cache(256)  # a program that searches asks for the same again and again
def parse_filter(text: str) -> Filter:
    """Return the filter that a text describes; the empty text accepts every version.

    Raises:
        InvalidError: The text is malformed; the message points at the position.
    """
    if len(text) > FILTER_MAX_CHARACTERS:
        raise InvalidError(f"filter has {len(text)} characters; at most {FILTER_MAX_CHARACTERS} are allowed")
    if not text.strip():
        return EVERYTHING
    try:
        tree = _PARSER.parse(text)
    except lark.UnexpectedInput as error:
        raise _malformed(text, _position(text, error), _expectation(error)) from None
    return _build(tree, text, 0)


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
    if (name in _KINDS and not key) or (name in _MAPS and key):
        return Order(field, direction == "desc")
    raise InvalidError(f"order_by {quoted(text)} names no field; {_FIELDS}")


_FIELDS = f"fields are {', '.join(_KINDS)}, and user_data, tags and metrics with a key, as in metrics.return"


def _malformed(text: str, position: int, expectation: str) -> InvalidError:
    return InvalidError(f"filter {quoted(text)} is malformed at character {position + 1}: {expectation}")


def _position(text: str, error: lark.UnexpectedInput) -> int:
    if isinstance(error, lark.UnexpectedToken):
        return len(text) if _is_end(error) else error.token.start_pos or 0
    return int(getattr(error, "pos_in_stream", None) or 0)


def _is_end(error: lark.UnexpectedInput) -> bool:
    return isinstance(error, lark.UnexpectedToken) and error.token.type == "$END"


def _expectation(error: lark.UnexpectedInput) -> str:
    if isinstance(error, lark.UnexpectedToken):
        accepted, found = error.expected, "the end" if _is_end(error) else quoted(str(error.token))
    else:
        accepted = set(getattr(error, "allowed", None) or ())
        found = "this character"
    expected = [words for name, words in _EXPECTED.items() if name in accepted]
    return f"{' or '.join(expected[:2]) or 'a term'} was expected, not {found}"


_Node: TypeAlias = lark.Tree[lark.Token] | lark.Token


def _build(node: _Node, text: str, depth: int) -> Filter:
    if not isinstance(node, lark.Tree):
        raise TypeError("a filter is made of trees")
    if depth > DEPTH_MAX:
        raise InvalidError(f"filter nests deeper than {DEPTH_MAX} levels")
    if node.data == "restriction":
        return _restriction(node, text)
    parts = tuple(_build(child, text, depth + 1) for child in node.children)
    if node.data == "not_":
        return Not(parts[0])
    if len(parts) == 1:
        return parts[0]
    return And(parts) if node.data == "and_" else Or(parts)


def _restriction(node: lark.Tree[lark.Token], text: str) -> Filter:
    member, comparator, argument = node.children
    if not isinstance(member, lark.Tree) or isinstance(comparator, lark.Tree) or isinstance(argument, lark.Tree):
        raise TypeError("a comparison has a field, an operator and a value")
    names = [name for name in member.children if isinstance(name, lark.Token)]
    field = Field(_text(names[0]), ".".join(_text(name) for name in names[1:]))
    position = names[0].start_pos or 0
    if comparator == ":":
        return _has(field, argument, text, position)
    kind: type[Value] | None = _MAPS.get(field.name) if field.key else _KINDS.get(field.name)
    if kind is None:
        raise _malformed(text, position, f"there is no field {quoted(str(field))} to compare; {_FIELDS}")
    symbol = next(each for each in get_args(Operator) if each == comparator)
    if kind is bool and symbol not in ("=", "!="):
        raise _malformed(text, comparator.start_pos or 0, f"{field} is true or false, and has no order")
    return Comparison(field, symbol, _value(field, kind, argument, text))


def _has(field: Field, argument: lark.Token, text: str, position: int) -> Filter:
    if field.name not in _COLLECTIONS:
        expectation = f"':' asks what {', '.join(_COLLECTIONS)} have, not for {quoted(str(field))}"
        raise _malformed(text, position, expectation)
    if not field.key:
        if argument.type == "STAR":
            raise _malformed(text, argument.start_pos or 0, f"a key was expected, as in {field.name}:name")
        return Has(field.name, _text(argument))
    if argument.type == "STAR":
        return Has(field.name, field.key)
    if field.name not in _MAPS:
        raise _malformed(text, position, f"{field.name} have no values; write {field.name}:{field.key}")
    return Comparison(field, "=", _value(field, _MAPS[field.name], argument, text))


def _value(field: Field, kind: type[Value], token: lark.Token, text: str) -> Value:
    """Return a value as the type of its field."""
    position = token.start_pos or 0
    words = _text(token)
    if token.type == "STAR":
        raise _malformed(text, position, f"a value was expected; {field}:* asks whether there is one")
    if kind is str:
        return words
    if kind is bool:
        if words.lower() in ("true", "false"):
            return words.lower() == "true"
        raise _malformed(text, position, f"true or false was expected, not {quoted(words)}")
    if kind is float:
        number = _number(words)
        if number is None:
            raise _malformed(text, position, f"a finite number was expected, not {quoted(words)}")
        return number
    if field.name == "creation_timestamp" and not re.fullmatch("[0-9]+", words):
        try:
            return parse_timestamp(words)
        except ValueError:
            expectation = "a time in RFC 3339 (2026-11-27T10:00:00Z) or nanoseconds were expected"
            raise _malformed(text, position, expectation) from None
    if not re.fullmatch("-?[0-9]{1,19}", words) or abs(int(words)) >= 2**63:
        raise _malformed(text, position, f"a whole number was expected, not {quoted(words)}")
    return int(words)


def _number(words: str) -> float | None:
    try:
        number = float(words)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(token: lark.Token) -> str:
    if token.type != "STRING":
        return str(token)
    return re.sub(r"\\(.)", r"\1", str(token)[1:-1], flags=re.DOTALL)


_COMPARE: Mapping[Operator, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def matches(accepted: Filter, version: Version) -> bool:
    """Return whether a filter accepts a version. Texts compare by code point."""
    match accepted:
        case Comparison(field, symbol, value):
            found = value_of(field, version)
            return found is not None and _COMPARE[symbol](found, value)
        case Has(name, key):
            return key in (version.aliases if name == "aliases" else _map(name, version))
        case Not(part):
            return not matches(part, version)
        case And(parts):
            return all(matches(part, version) for part in parts)
        case Or(parts):
            return any(matches(part, version) for part in parts)


def value_of(field: Field, version: Version) -> Value | None:
    """Return what a version has in a field; None for nothing."""
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
            return _map(field.name, version).get(field.key)


def _map(name: str, version: Version) -> Mapping[str, Value]:
    if name == "user_data":
        return version.info.user_data
    return version.annotations.tags if name == "tags" else version.annotations.metrics


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
