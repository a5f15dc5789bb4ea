"""Filters of searches as text: checked, and turned into a tree that a catalog can evaluate.

It is imported by `filters.parse_filter`, since lark and its grammar take longer to load than all the rest of a start.

The language is that of https://google.aip.dev/160, as far as registries need it:

    metrics.return > 480 AND (tags.stage = "candidate" OR aliases:production) AND NOT archived = true

As that page demands, `OR` binds tighter than `AND`: ``a AND b OR c`` is ``a AND (b OR c)``. Terms without an operator
between them must all hold, as with `AND`.

A comparison with something that a version does not have is false, with ``!=`` too; `NOT` of it is therefore true.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias, get_args

import lark

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.timestamps import parse_timestamp
from cogment_model_registry.records.versions import CREATED_MAX_NS
from cogment_model_registry.registry.filters import (
    EVERYTHING,
    VERSIONS,
    And,
    Comparison,
    Field,
    Filter,
    Has,
    Not,
    Operator,
    Or,
    Value,
    Vocabulary,
)

FILTER_MAX_CHARACTERS = 4096
"""Longer filters are refused: nobody writes one by hand, and parsing takes time on the event loop."""

DEPTH_MAX = 32
"""How deep parentheses and negations may nest."""

COMPARISONS_MAX = 64
"""How many comparisons a filter may have: each of them may be made with every version."""

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
def parse_filter(text: str, vocabulary: Vocabulary = VERSIONS) -> Filter:
    """Return the filter that a text describes; the empty text accepts everything.

    Args:
        text: The filter.
        vocabulary: What it may ask for.

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
    comparisons = sum(1 for _ in tree.find_data("restriction"))
    if comparisons > COMPARISONS_MAX:
        raise InvalidError(f"filter has {comparisons} comparisons; at most {COMPARISONS_MAX} are allowed")
    return _build(tree, text, vocabulary, 0)


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


def _build(node: _Node, text: str, vocabulary: Vocabulary, depth: int) -> Filter:
    if not isinstance(node, lark.Tree):
        raise TypeError("a filter is made of trees")
    if depth > DEPTH_MAX:
        raise InvalidError(f"filter nests deeper than {DEPTH_MAX} levels")
    if node.data == "restriction":
        return _restriction(node, text, vocabulary)
    parts = tuple(_build(child, text, vocabulary, depth + 1) for child in node.children)
    if node.data == "not_":
        return Not(parts[0])
    if len(parts) == 1:
        return parts[0]
    return And(parts) if node.data == "and_" else Or(parts)


def _restriction(node: lark.Tree[lark.Token], text: str, vocabulary: Vocabulary) -> Filter:
    member, comparator, argument = node.children
    if not isinstance(member, lark.Tree) or isinstance(comparator, lark.Tree) or isinstance(argument, lark.Tree):
        raise TypeError("a comparison has a field, an operator and a value")
    names = [name for name in member.children if isinstance(name, lark.Token)]
    field = Field(_text(names[0]), ".".join(_text(name) for name in names[1:]))
    position = names[0].start_pos or 0
    if comparator == ":":
        return _has(field, argument, text, vocabulary, position)
    kinds: Mapping[str, type[Value]] = vocabulary.maps if field.key else vocabulary.kinds
    kind = kinds.get(field.name)
    if kind is None:
        raise _malformed(text, position, f"there is no field {quoted(str(field))} to compare; {vocabulary}")
    symbol = next(each for each in get_args(Operator) if each == comparator)
    if kind is bool and symbol not in ("=", "!="):
        raise _malformed(text, comparator.start_pos or 0, f"{field} is true or false, and has no order")
    value = _value(field, kind, argument, text)
    if field.name in vocabulary.choices and not field.key:
        value = _choice(field.name, vocabulary.choices[field.name], argument, text)
    return Comparison(field, symbol, value)


def _choice(name: str, choices: Sequence[str], token: lark.Token, text: str) -> str:
    """Return one of a few texts, which may be written as on the wire."""
    word = _text(token).lower().removeprefix(f"{name}_")
    if word not in choices:
        raise _malformed(text, token.start_pos or 0, f"{name} is one of {', '.join(choices)}")
    return word


def _has(field: Field, argument: lark.Token, text: str, vocabulary: Vocabulary, position: int) -> Filter:
    if field.name not in vocabulary.collections:
        expectation = f"':' asks what {', '.join(vocabulary.collections)} have, not for {quoted(str(field))}"
        raise _malformed(text, position, expectation)
    if not field.key:
        if argument.type == "STAR":
            raise _malformed(text, argument.start_pos or 0, f"a key was expected, as in {field.name}:name")
        return Has(field.name, _text(argument))
    if argument.type == "STAR":
        return Has(field.name, field.key)
    if field.name not in vocabulary.maps:
        raise _malformed(text, position, f"{field.name} have no values; write {field.name}:{field.key}")
    return Comparison(field, "=", _value(field, vocabulary.maps[field.name], argument, text))


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
    largest = CREATED_MAX_NS if field.name == "creation_timestamp" else 2**63 - 1
    if not re.fullmatch("-?[0-9]{1,20}", words) or abs(int(words)) > largest:
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
