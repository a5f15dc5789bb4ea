"""The tables of a catalog: searches agree with the rules, and changes are compare-and-set."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogment_model_registry.errors import ConflictError
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange, Annotations, Version
from cogment_model_registry.records.versions import CREATED_MAX_NS, VersionInfo
from cogment_model_registry.registry import filters
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import (
    BY_NUMBER,
    EVERYTHING,
    Field,
    Filter,
    Order,
    arranged,
    matches,
    position_of,
)
from cogment_model_registry.storage.catalog import searches, tables
from cogment_model_registry.testing.bytes import hash_of

NOW_NS = 1_795_773_600_000_000_000
HASHES = [hash_of(bytes([number])) for number in range(3)]
KEYS = ["a", "b.c", "d e"]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)
times = st.integers(0, CREATED_MAX_NS) | st.sampled_from([0, 2**63 - 1, 2**63, CREATED_MAX_NS])


def connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    for migration in tables.MIGRATIONS:
        connection.executescript(migration.statements)
    return connection


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(connect()) as connection:
        yield connection


@st.composite
def versions(draw: st.DrawFn) -> list[Version]:
    found = []
    for model_id in draw(st.sets(st.sampled_from(["m", "n", "policy"]), min_size=1)):
        for number in draw(st.sets(st.integers(1, 2**32 - 1) | st.integers(1, 4), max_size=5)):
            user_data = draw(st.dictionaries(st.sampled_from(KEYS), texts, max_size=2))
            info = VersionInfo(
                model_id,
                number,
                draw(times),
                True,
                draw(st.sampled_from(HASHES)),
                draw(st.integers(0, 2**63 - 1)),
                user_data,
            )
            tags = draw(st.dictionaries(st.sampled_from(KEYS), texts, max_size=2))
            metrics = draw(st.dictionaries(st.sampled_from(KEYS), numbers, max_size=2))
            aliases = draw(st.sets(st.sampled_from(["best", "production"])))
            found.append(Version.of(info, Annotations(tags, metrics, draw(st.integers(0, 9))), tuple(sorted(aliases))))
    return found


def fields(*, with_aliases: bool = False) -> st.SearchStrategy[Field]:
    plain = st.sampled_from(["version_number", "archived", "data_size", "creation_timestamp", "data_hash"]).map(Field)
    keyed = st.builds(Field, st.sampled_from(["user_data", "tags", "metrics"]), st.sampled_from(KEYS))
    return plain | keyed


@st.composite
def comparisons(draw: st.DrawFn) -> Filter:
    field = draw(fields())
    operators = ["=", "!="] if field.name == "archived" else ["=", "!=", "<", "<=", ">", ">="]
    values: dict[str, st.SearchStrategy[filters.Value]] = {
        "version_number": st.integers(1, 5),
        "archived": st.booleans(),
        "data_size": st.integers(0, 2**63 - 1),
        "creation_timestamp": times,
        "data_hash": st.sampled_from(HASHES),
        "metrics": numbers,
    }
    value = values.get(field.name, texts)
    return filters.Comparison(field, draw(st.sampled_from(operators)), draw(value))


having = st.builds(filters.Has, st.sampled_from(["tags", "metrics", "user_data"]), st.sampled_from(KEYS)) | st.builds(
    filters.Has, st.just("aliases"), st.sampled_from(["best", "production", "none"])
)
accepted = st.recursive(
    comparisons() | having,
    lambda parts: (
        parts.map(filters.Not)
        | st.lists(parts, max_size=3).map(lambda each: filters.And(tuple(each)))
        | st.lists(parts, min_size=1, max_size=3).map(lambda each: filters.Or(tuple(each)))
    ),
    max_leaves=5,
)
orders = st.builds(Order, fields(), st.booleans())


def fill(connection: sqlite3.Connection, content: list[Version]) -> None:
    """Insert versions into the tables, with their aliases; each alias ends on one version."""
    tables.put_versions(connection, [version.info for version in content])
    for version in content:
        info = version.info
        tables.put_annotations(connection, info.model_id, info.number, version.annotations)


def with_aliases(connection: sqlite3.Connection, content: list[Version]) -> list[Version]:
    """Return the versions with the aliases that point to them after all aliases were set in turn."""
    owners: dict[tuple[str, str], int] = {}
    for version in content:
        for alias in version.aliases:
            change = AliasChange(alias, version.info.number)
            tables.set_aliases(connection, version.info.model_id, [change], NOW_NS)
            owners[version.info.model_id, alias] = version.info.number
    return [
        Version.of(
            version.info,
            version.annotations,
            tuple(a for a in ("best", "production") if owners.get((version.info.model_id, a)) == version.info.number),
        )
        for version in content
    ]


@pytest.mark.parametrize("few", [-1, 2, 2000])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=versions(),
    accepted=accepted,
    order=orders,
    model_id=st.sampled_from([None, "m", "none"]),
    limit=st.integers(1, 4),
)
def test_a_search_in_sql_agrees_with_the_rules(  # noqa: PLR0917 # hypothesis gives them by name
    monkeypatch: pytest.MonkeyPatch,
    few: int,
    content: list[Version],
    accepted: Filter,
    order: Order,
    model_id: str | None,
    limit: int,
) -> None:
    monkeypatch.setattr(searches, "FEW", few)
    with closing(connect()) as connection:
        fill(connection, content)
        content = with_aliases(connection, content)
        candidates = [v for v in content if model_id in (None, v.info.model_id) and matches(accepted, v)]
        expected = arranged(order, candidates)
        after: filters.Position | None = None
        found: list[Version] = []
        while page := searches.find_versions(connection, Search(model_id, accepted, order, after, limit)):
            assert len(page) <= limit
            assert len(found) <= len(expected), "a page began where an earlier one did"
            found += page
            after = position_of(order, page[-1])
        assert found == expected


def info_of(number: int = 1, model_id: str = "m") -> VersionInfo:
    return VersionInfo(model_id, number, NOW_NS, True, HASHES[0], 4, {"seed": "12"})


def test_an_alias_moves_only_from_the_expected_revision(connection: sqlite3.Connection) -> None:
    tables.put_versions(connection, [info_of(1), info_of(2)])
    [first] = tables.set_aliases(connection, "m", [AliasChange("production", 1, 0)], NOW_NS)
    assert (first.version_number, first.set_ns) == (1, NOW_NS)
    for stale in (0, first.revision + 1):
        with pytest.raises(ConflictError, match=f"points to version 1 with revision {first.revision}"):
            tables.set_aliases(connection, "m", [AliasChange("production", 2, stale)], NOW_NS)
    [second] = tables.set_aliases(connection, "m", [AliasChange("production", 2, first.revision)], NOW_NS)
    assert second.version_number == 2
    assert second.revision > first.revision


def test_a_revision_never_repeats_after_an_alias_was_removed(connection: sqlite3.Connection) -> None:
    tables.put_versions(connection, [info_of(1)])
    [first] = tables.set_aliases(connection, "m", [AliasChange("production", 1)], NOW_NS)
    assert tables.set_aliases(connection, "m", [AliasChange("production", None, first.revision)], NOW_NS) == []
    [again] = tables.set_aliases(connection, "m", [AliasChange("production", 1, 0)], NOW_NS)
    assert again.revision > first.revision


def test_annotations_change_only_from_the_expected_revision(connection: sqlite3.Connection) -> None:
    tables.put_versions(connection, [info_of(1)])
    change = AnnotationChange(set_tags={"stage": "candidate"}, set_metrics={"return": 487.5})
    first = tables.change_annotations(connection, info_of(1), change)
    assert (first.tags, first.metrics) == ({"stage": "candidate"}, {"return": 487.5})
    with pytest.raises(ConflictError, match=f"has revision {first.revision}"):
        tables.change_annotations(connection, info_of(1), AnnotationChange(expected_revision=first.revision + 1))
    change = AnnotationChange(remove_tags=["stage", "none"], set_metrics={"loss": 1}, expected_revision=first.revision)
    second = tables.change_annotations(connection, info_of(1), change)
    assert (second.tags, second.metrics) == ({}, {"return": 487.5, "loss": 1})
    assert tables.annotations_of(connection, info_of(1)) == second


def test_a_version_found_again_in_the_archive_keeps_its_annotations(connection: sqlite3.Connection) -> None:
    tables.put_versions(connection, [info_of(1)])
    annotations = tables.change_annotations(connection, info_of(1), AnnotationChange(set_tags={"stage": "candidate"}))
    tables.set_aliases(connection, "m", [AliasChange("production", 1)], NOW_NS)
    tables.put_versions(connection, [info_of(1)])
    [version] = searches.find_versions(connection, Search("m", EVERYTHING, BY_NUMBER, None, 10))
    assert version == Version.of(info_of(1), annotations, ("production",))


@pytest.mark.parametrize("changed", [{"data_hash": hash_of(b"another")}, {"created_ns": 1}])
def test_a_different_version_with_the_same_number_inherits_nothing(
    changed: dict[str, Any], connection: sqlite3.Connection
) -> None:
    tables.put_versions(connection, [info_of(1), info_of(2)])
    before = tables.change_annotations(connection, info_of(1), AnnotationChange(set_tags={"stage": "candidate"}))
    tables.set_aliases(connection, "m", [AliasChange("production", 1), AliasChange("next", 2)], NOW_NS)
    other = replace(info_of(1), **changed)
    assert tables.annotations_of(connection, other) == Annotations()
    assert tables.put_versions(connection, [other, info_of(2)]) == [1]
    assert [alias.name for alias in tables.aliases_of(connection, "m")] == ["next"]
    after = tables.annotations_of(connection, other)
    assert (after.tags, after.metrics) == ({}, {})
    assert after.revision > before.revision
    assert tables.info_of(connection, "m", 1) == other


def test_a_version_with_other_user_data_is_the_same_one(connection: sqlite3.Connection) -> None:
    tables.put_versions(connection, [info_of(1)])
    annotations = tables.change_annotations(connection, info_of(1), AnnotationChange(set_tags={"stage": "candidate"}))
    edited = replace(info_of(1), user_data={"edited": "by hand"}, data_size_bytes=7)
    assert tables.put_versions(connection, [edited]) == []
    assert tables.info_of(connection, "m", 1) == edited
    assert tables.annotations_of(connection, edited) == annotations


def test_a_removed_version_loses_its_aliases_and_annotations(connection: sqlite3.Connection) -> None:
    tables.put_versions(connection, [info_of(1), info_of(2), info_of(1, "n")])
    for number in (1, 2):
        tables.change_annotations(connection, info_of(number), AnnotationChange(set_tags={"stage": "candidate"}))
        tables.set_aliases(connection, "m", [AliasChange(f"alias{number}", number)], NOW_NS)
    tables.remove_versions(connection, "m", [1])
    assert [alias.name for alias in tables.aliases_of(connection, "m")] == ["alias2"]
    assert tables.numbers(connection) == {"m": {2}, "n": {1}}
    tables.remove_model(connection, "m")
    assert tables.all_aliases(connection) == {}
    assert tables.numbers(connection) == {"n": {1}}
    assert connection.execute("SELECT count(*) FROM tags").fetchone() == (0,)


def steps_of(connection: sqlite3.Connection, search: Search) -> list[list[str]]:
    """Return the steps of each query of a search, as SQLite plans them."""
    return [
        [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query.sql()}", [*query.parameters, 10])]
        for query in searches.queries(connection, search)
    ]


@pytest.mark.parametrize("model_id", [None, "m"])
@pytest.mark.parametrize("direction", ["", " desc"])
@pytest.mark.parametrize("field", ["metrics.return", "tags.stage"])
def test_a_search_uses_the_index_of_its_order(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, model_id: str | None, direction: str, field: str
) -> None:
    monkeypatch.setattr(searches, "FEW", -1)
    tables.put_versions(connection, [info_of()])
    search = Search(model_id, parse_filter("metrics.return > 480"), filters.parse_order(field + direction), None, 10)
    steps, *_ = steps_of(connection, search)
    table = field.partition(".")[0]
    assert any((f"{table}_of_model" if model_id else f"{table}_by_value") in step for step in steps), steps
    assert not any("TEMP B-TREE FOR ORDER BY" in step for step in steps), steps


@pytest.mark.parametrize("order", ["version_number", "version_number desc", "creation_timestamp desc"])
def test_a_search_of_a_model_sorts_nothing_to_order_it_by_number_or_time(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(searches, "FEW", -1)
    tables.put_versions(connection, [info_of()])
    search = Search(
        "m", parse_filter('user_data.seed = "12" AND NOT tags:broken'), filters.parse_order(order), None, 10
    )
    [steps] = steps_of(connection, search)
    assert not any("TEMP B-TREE" in step for step in steps), steps


@pytest.mark.parametrize(
    "text",
    ["metrics.return > 480", "aliases:production AND data_size > 1", "tags:a OR metrics:b", "version_number = 3"],
)
def test_a_search_starts_from_the_most_selective_index(connection: sqlite3.Connection, text: str) -> None:
    tables.put_versions(connection, [info_of()])
    [query] = searches.queries(connection, Search("m", parse_filter(text), filters.parse_order("data_size"), None, 10))
    assert query.source.startswith("(SELECT")
