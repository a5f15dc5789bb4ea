"""Filters and orders of searches: what they accept, and how they are refused."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Annotations, Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.filter_text import COMPARISONS_MAX, DEPTH_MAX, FILTER_MAX_CHARACTERS, parse_filter
from cogment_model_registry.registry.filters import (
    arranged,
    matches,
    parse_order,
    position_of,
)
from cogment_model_registry.testing.bytes import hash_of

HASH = hash_of(b"data")


def version_of(
    number: int = 7, tags: Mapping[str, str] | None = None, metrics: Mapping[str, float] | None = None
) -> Version:
    info = VersionInfo("m", number, 1_795_773_600_000_000_000, True, HASH, 4, {"seed": "12"})
    return Version.of(info, Annotations(tags or {}, metrics or {}), ("best", "production"))


VERSION = version_of(
    tags={"stage": "candidate", "the name": 'a "b"', "eval/set": "x"}, metrics={"return": 487.5, "a.b": -1}
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "version_number = 7",
        "version_number != 8 AND version_number < 8 AND version_number <= 7 AND version_number > 6",
        "archived = true",
        "archived != FALSE",
        "data_size >= 4",
        f"data_hash = '{HASH}'",
        "creation_timestamp = 2026-11-27T10:00:00Z",
        "creation_timestamp = 1795773600000000000",
        'creation_timestamp < "2026-11-27T11:00:00.5+00:30"',
        "user_data.seed = 12",
        "tags.stage = candidate",
        'tags.stage > "b"',
        """tags."the name" = 'a "b"'""",
        r'tags."the name" = "a \"b\""',
        "tags.eval/set = x",
        "metrics.return > 480 AND metrics.return <= 4.875e2",
        "metrics.a.b = -1",
        "aliases:production",
        "tags:stage AND metrics:return AND user_data:seed",
        "tags.stage:* AND tags.stage:candidate AND metrics.return:487.5",
        "NOT aliases:canary",
        "-aliases:canary",
        "NOT (tags:a OR tags:b)",
        "aliases:best aliases:production",
        "aliases:canary OR aliases:best",
        "aliases:best OR aliases:canary AND aliases:production",
        "NOT metrics.loss > 1",
    ],
)
def test_a_filter_accepts_what_it_describes(text: str) -> None:
    assert matches(parse_filter(text), VERSION)


@pytest.mark.parametrize(
    "text",
    [
        "version_number = 8",
        "metrics.loss > 1",
        "metrics.loss != 1",
        "tags.none = x",
        "aliases:canary",
        "aliases:best aliases:canary",
        "NOT tags:stage",
        "aliases:best OR aliases:production AND aliases:canary",
        "archived = false",
    ],
)
def test_a_filter_refuses_what_it_does_not_describe(text: str) -> None:
    assert not matches(parse_filter(text), VERSION)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("production", 11, "one of = != < <= > >= :"),
        ("metrics.return >", 17, "not the end"),
        ("metrics.return > 480 AND", 25, "not the end"),
        ("(tags:x", 8, "a closing parenthesis"),
        ("tags:x)", 7, "the end was expected"),
        ("tags.x = 'unclosed", 10, "this character"),
        ("§", 1, "this character"),
        ("colour = red", 1, "there is no field"),
        ("metrics > 1", 1, "there is no field"),
        ("tags:x AND stage = best", 12, "there is no field"),
        ("metrics.return = high", 18, "a finite number"),
        ("metrics.return = nan", 18, "a finite number"),
        ("metrics.return = 1e999", 18, "a finite number"),
        ("version_number = 1.5", 18, "a whole number"),
        ("version_number = 99999999999999999999", 18, "a whole number"),
        ("archived = maybe", 12, "true or false"),
        ("archived > true", 10, "has no order"),
        ("creation_timestamp > yesterday", 22, "RFC 3339"),
        ("data_size:5", 1, "':' asks what"),
        ("aliases.production:1", 1, "write aliases:production"),
        ("tags:*", 6, "a key"),
        ("tags.x = *", 10, "tags.x:*"),
    ],
)
def test_a_malformed_filter_is_refused_with_its_position(text: str, position: int, words: str) -> None:
    with pytest.raises(InvalidError) as refusal:
        parse_filter(text)
    assert f"at character {position}:" in refusal.value.message
    assert words in refusal.value.message


def test_a_filter_is_bounded_in_length_depth_and_comparisons() -> None:
    deepest = DEPTH_MAX // 2 - 1
    parse_filter("NOT (" * deepest + "tags:x" + ")" * deepest)
    with pytest.raises(InvalidError, match="deeper than"):
        parse_filter("NOT (" * 500 + "tags:x" + ")" * 500)
    with pytest.raises(InvalidError, match="characters; at most"):
        parse_filter("x" * (FILTER_MAX_CHARACTERS + 1))
    parse_filter(" OR ".join(["tags:x"] * COMPARISONS_MAX))
    with pytest.raises(InvalidError, match="65 comparisons; at most 64"):
        parse_filter(" OR ".join(["tags:x"] * (COMPARISONS_MAX + 1)))


@pytest.mark.parametrize(
    "text", ["tags", "colour", "aliases", "version_number.x", "metrics.a up", "data_size desc asc"]
)
def test_a_malformed_order_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="order_by"):
        parse_order(text)


def test_versions_without_the_field_come_last_in_either_direction() -> None:
    versions = [
        version_of(1, metrics={"return": 5}),
        version_of(2),
        version_of(3, metrics={"return": 9}),
        version_of(4, metrics={"return": 5}),
        version_of(5),
    ]

    def numbers(order: str) -> list[int]:
        return [version.info.number for version in arranged(parse_order(order), versions)]

    assert numbers("metrics.return") == [1, 4, 3, 2, 5]
    assert numbers("metrics.return desc") == [3, 4, 1, 5, 2]
    assert numbers("") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["metrics.return desc", "metrics.return", "version_number desc", "tags.stage"])
def test_a_search_continues_after_each_position(text: str) -> None:
    order = parse_order(text)
    versions = [version_of(number, metrics={"return": number % 3} if number % 4 else {}) for number in range(1, 12)]
    whole = arranged(order, versions)
    for index, version in enumerate(whole):
        assert arranged(order, versions, position_of(order, version)) == whole[index + 1 :]


def test_only_a_filter_that_is_not_empty_loads_the_parser() -> None:
    program = """
import sys
from cogment_model_registry.registry.filters import EVERYTHING, MODELS, Has, parse_filter

assert parse_filter("") is parse_filter("", MODELS) is EVERYTHING
assert "lark" not in sys.modules
assert parse_filter("tags:stage") == Has("tags", "stage")
assert "lark" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
