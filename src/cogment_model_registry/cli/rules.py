"""Rules of retention as people write them: in words of the command line, and as JSON.

    archived keep_last=10 keep_best=3 metric=return
    transient filter='tags.stage = trial' keep_seconds=86400

A rule is a tier, unless it is about both, and fields with their values, in any order; quotes are those of a shell.
"""

import json
import shlex

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.documents import RULE_DEFAULTS, rule_as_json, rule_from_fields, rules_from_json
from cogment_model_registry.records.retention import TIERS, RetentionRule


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
        elif not equals or name not in RULE_DEFAULTS:
            names = ", ".join(each for each in RULE_DEFAULTS if each not in ("tier", "lower_is_better"))
            raise InvalidError(
                f"the rule {text!r} has the word {word!r}; allowed are transient, archived, lower_is_better, "
                f"and each of {names} with '=' and its value"
            )
        if name in values:
            raise InvalidError(f"the rule {text!r} has {name} twice")
        values[name] = _value(name, value)
    return rule_from_fields(values, f"the rule {text!r}")


def _value(name: str, text: str) -> object:
    """Return the value of a field, as JSON would have it."""
    default = RULE_DEFAULTS[name]
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
    return rules_from_json(document, what)


def rule_text(rule: RetentionRule) -> str:
    """Return the words that `parse_rule` reads as a rule."""
    words: list[str] = [] if rule.tier == "any" else [rule.tier]
    for name, value in rule_as_json(rule).items():
        if name == "lower_is_better":
            words.append(name)
        elif name != "tier":
            words.append(f"{name}={shlex.quote(str(value))}")
    return " ".join(words)
