"""Scopes: their patterns compared with a slow oracle, their texts, and the calls that they allow."""

import dataclasses
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.access import (
    ACTIONS,
    ANY,
    PATTERN_MAX_BYTES,
    SCOPES_MAX,
    Grant,
    Need,
    Scope,
    check_name,
    matches,
    missing_grants,
    parse_scopes,
)


@given(st.text("ab*", max_size=12), st.text("ab*\n", max_size=12))
@example("*a*a*a*a*", "aaa")
@example("a*a", "a")
@example("*", "")
def test_patterns_match_as_the_regular_expression_says(pattern: str, text: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, text) == bool(re.fullmatch(expression, text, re.DOTALL))


def test_no_pattern_takes_long() -> None:
    assert not matches("*a" * 100 + "b", "a" * 100_000)


@given(
    st.sampled_from([*ACTIONS]),
    st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
    st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
)
def test_scopes_round_trip_through_their_texts(action: str, models: str, aliases: str) -> None:
    text = f"alias:{models}/{aliases}" if action == "alias" else f"{action}:{models}"
    try:
        scope = Scope.parse(text)
    except InvalidError:
        assert "/" in models or "/" in aliases or not (models + aliases).isprintable()
        return
    assert Scope.parse(str(scope)) == scope
    assert scope.models == models


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reads",
        "Read",
        " read",
        "read:",
        "read:a/b",
        "alias:a/",
        "alias:/a",
        "alias:a/b/c",
        "read:a\nb",
        "read:" + "x" * (PATTERN_MAX_BYTES + 1),
        "*",
        "read,publish",
        "admin:a/b",
    ],
)
def test_malformed_scopes_are_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="malformed"):
        Scope.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_scope_or_invalid(text: str) -> None:
    try:
        scope = Scope.parse(text)
    except InvalidError:
        return
    assert scope.action in ACTIONS


def test_a_grant_has_some_scopes_each_once() -> None:
    assert parse_scopes(["read", "read:*", "publish"]) == (Scope("read"), Scope("publish"))
    for texts in ([], [f"read:{number}" for number in range(SCOPES_MAX + 1)]):
        with pytest.raises(InvalidError, match="scopes"):
            parse_scopes(texts)


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 256])
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="printable"):
        check_name("--name", name)


@pytest.mark.parametrize(
    ("scope", "need", "is_covered"),
    [
        ("read", Need(("read",), "a"), True),
        ("read", Need(("publish",), "a"), False),
        ("publish", Need(("publish", "store"), "a"), True),
        ("read:a*", Need(("read",), "b"), False),
        ("read:a*", Need(("read",), ANY), False),
        ("read:*", Need(("read",), ANY), True),
        ("read:a*", Need(("read",), None), True),
        ("publish", Need(("read",), None), False),
        ("admin:a*", Need(("delete",), "ab"), True),
        ("admin:a*", Need(("delete",), "ba"), False),
        ("alias:a/s*", Need(("alias",), "a", "staging"), True),
        ("alias:a/s*", Need(("alias",), "a", "production"), False),
        ("alias:a/s*", Need(("alias",), "a", ANY), False),
        ("alias:a", Need(("alias",), "a", ANY), True),
        ("admin", Need(("alias",), "a", "production"), True),
    ],
)
def test_a_scope_allows_its_calls(scope: str, need: Need, is_covered: bool) -> None:
    assert Scope.parse(scope).covers(need) is is_covered


def test_grants_are_missing_that_a_catalog_does_not_have_as_they_are() -> None:
    kept, changed, new = (Grant(name, "token", name, parse_scopes(["read"]), 1, None) for name in ("a", "b", "c"))
    known = [kept, dataclasses.replace(changed, created_ns=2)]
    assert missing_grants([kept, changed, new], known) == [changed, new]
    assert missing_grants(known, known) == []
