"""Rules of retention as the fields of a form: a row for each rule, and what is wrong with which field."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from cogment_model_registry.records.documents import RULE_DEFAULTS, rule_as_json
from cogment_model_registry.records.retention import RULES_MAX, RetentionRule, problems_of
from cogment_model_registry.web.pages.formats import sentence

Fields: TypeAlias = Mapping[str, str]
"""The texts of a row by the names of the fields of a rule; ``yes`` for true."""

BLANK: Fields = {**dict.fromkeys(RULE_DEFAULTS, ""), "tier": "archived"}
"""The row of no rule."""

_NUMBER_MAX_DIGITS = 19
_OF_RULE = re.compile(r"retention rule (\d+): (.*)", re.DOTALL)


def rows_of(rules: Sequence[RetentionRule]) -> list[Fields]:
    """Return the rows of rules."""
    return [
        {**dict.fromkeys(RULE_DEFAULTS, ""), "tier": rule.tier, **{name: _text(value) for name, value in given.items()}}
        for rule in rules
        for given in (rule_as_json(rule),)
    ]


def _text(value: object) -> str:
    return "yes" if value is True else str(value)


def is_filled(fields: Fields) -> bool:
    """Return whether a form has rows."""
    return any(name.startswith("tier-") for name in fields)


def rows_in(fields: Fields) -> list[Fields]:
    """Return the rows of a form, without those that are blank or to be removed."""
    rows: list[Fields] = []
    for position in range(RULES_MAX + 2):
        row = {name: fields.get(f"{name}-{position}", "").strip() for name in RULE_DEFAULTS}
        is_blank = not any(text for name, text in row.items() if name != "tier")
        if not is_blank and not fields.get(f"remove-{position}"):
            rows.append(row)
    return rows


def fields_of(rows: Sequence[Fields]) -> Fields:
    """Return the fields of a form with some rows."""
    return {f"{name}-{position}": text for position, row in enumerate(rows) for name, text in row.items() if text} or {
        "tier-0": "archived"
    }


def rules_of(rows: Sequence[Fields]) -> tuple[list[RetentionRule], dict[str, str]]:
    """Return the rules that rows are, and what is wrong with them, by the field; then there are no rules."""
    rules: list[RetentionRule] = []
    problems: dict[str, str] = {}
    for position, row in enumerate(rows):
        values: dict[str, object] = {}
        for name, default in RULE_DEFAULTS.items():
            text = row[name]
            if isinstance(default, bool):
                values[name] = text == "yes"
            elif not isinstance(default, int):
                values[name] = text
            elif text.isascii() and text.isdecimal() and len(text) <= _NUMBER_MAX_DIGITS:
                values[name] = int(text)
            elif text:
                problems[f"{name}-{position}"] = "It must be a whole number, 0 or more."
        rule = RetentionRule(**values)  # type: ignore[arg-type] # of the types of the defaults
        if not any(field.endswith(f"-{position}") for field in problems):
            for name, problem in problems_of(rule):
                problems.setdefault(f"{name}-{position}", sentence(problem))
        rules.append(rule)
    return ([], problems) if problems else (rules, {})


def problems_in(message: str) -> dict[str, str]:
    """Return what the server found wrong, by the field of the form: it understands filters, and names the rule."""
    found = _OF_RULE.search(message)
    return {f"filter-{int(found[1]) - 1}": sentence(found[2])} if found else {"": sentence(message)}
