"""Rules of retention as people write them: in words of the command line, and as JSON.

    archived keep_last=10 keep_best=3 metric=return
    transient filter='tags.stage = trial' keep_seconds=86400

A rule is a tier, unless it is about both, and fields with their values, in any order; quotes are those of a shell.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.retention import TIERS, RetentionRule

_DEFAULTS = {field.name: field.default for field in fields(RetentionRule)}


def parse_rule(text: str) -> RetentionRule:
    """Return the rule that a text describes.

    Raises:
        InvalidError: It is malformed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidError(f"the rule {text!r} is malformed: {error}") from None
    values: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name in TIERS:
            name, value = "tier", name
        elif not equals and name == "lower_is_better":
            value = "true"
        elif not equals or name not in _DEFAULTS:
            names = ", ".join(each for each in _DEFAULTS if each not in ("tier", "lower_is_better"))
            raise InvalidError(
                f"the rule {text!r} has the word {word!r}; allowed are transient, archived, lower_is_better, "
                f"and each of {names} with '=' and its value"
            )
        if name in values:
            raise InvalidError(f"the rule {text!r} has {name} twice")
        values[name] = _value(name, value)
    return _rule(values, f"the rule {text!r}")


def _value(name: str, text: str) -> object:
    """Return the value of a field, as JSON would have it."""
    default = _DEFAULTS[name]
    if isinstance(default, str):
        return text
    if isinstance(default, bool) and text in ("true", "false"):
        return text == "true"
    return int(text) if text.isascii() and text.isdecimal() else text


def parse_rules(text: str, what: str) -> list[RetentionRule]:
    """Return the rules in a JSON document: a list of objects with the fields of rules.

    Args:
        text: The document.
        what: Where it comes from, for errors.

    Raises:
        InvalidError: It is malformed.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidError(f"{what} is not JSON: {error}") from None
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise InvalidError(f"{what} must have a JSON list of objects, each a rule")
    return [_rule(values, f"rule {position} of {what}") for position, values in enumerate(document, 1)]


def _rule(values: Mapping[str, object], what: str) -> RetentionRule:
    for name, value in values.items():
        if name not in _DEFAULTS:
            raise InvalidError(f"{what} has the field {name!r}; the fields are {', '.join(_DEFAULTS)}")
        kind = type(_DEFAULTS[name])
        if type(value) is not kind:
            expected = {str: "a text", bool: "true or false", int: "a whole number"}[kind]
            raise InvalidError(f"{what}: {name} is {value!r}; it must be {expected}")
    return RetentionRule(**values)  # type: ignore[arg-type] # checked above


def rule_text(rule: RetentionRule) -> str:
    """Return the words that `parse_rule` reads as a rule."""
    words: list[str] = [] if rule.tier == "any" else [rule.tier]
    for name, value in rule_as_json(rule).items():
        if name == "lower_is_better":
            words.append(name)
        elif name != "tier":
            words.append(f"{name}={shlex.quote(str(value))}")
    return " ".join(words)


def rule_as_json(rule: RetentionRule) -> dict[str, object]:
    """Return the object that stands for a rule, without what has its default."""
    values = {name: getattr(rule, name) for name in _DEFAULTS}
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}
