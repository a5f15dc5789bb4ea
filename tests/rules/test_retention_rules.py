"""The verdicts of retention rules on versions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Annotations, Version
from cogment_model_registry.records.retention import (
    RetentionRule,
    TransientShare,
    check_rules,
    check_share,
)
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import matches
from cogment_model_registry.registry.retention_rules import Rules, Verdict, decide
from cogment_model_registry.testing.bytes import describe

NOW_NS = 1_795_773_600_000_000_000
SECOND_NS = 10**9


def version(
    number: int, *, archived: bool = True, age: int = 0, aliases: Sequence[str] = (), value: float | None = None
) -> Version:
    """Return a version of an age in seconds."""
    info = replace(describe("m", number, b"data", archived), created_ns=NOW_NS - age * SECOND_NS)
    tags = {"parity": "even" if number % 2 == 0 else "odd"}
    return Version.of(info, Annotations(tags, {} if value is None else {"return": value}), tuple(aliases))


def verdicts(
    rules: Sequence[RetentionRule], versions: Sequence[Version], held: Mapping[int, str] | None = None
) -> list[Verdict]:
    understood = Rules(rules, "m")
    candidates = [understood.look_at(each) for each in versions]
    return decide(rules, candidates, versions[-1].number, held or {}, NOW_NS)


def kept(rules: Sequence[RetentionRule], versions: Sequence[Version]) -> list[int]:
    return [each.number for each in verdicts(rules, versions) if not each.is_deleted]


def test_without_rules_every_version_stays() -> None:
    assert kept([], [version(number) for number in range(1, 5)]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RetentionRule(keep_last=3), [8, 9, 10]),
        (RetentionRule(keep_every=4), [4, 8, 10]),
        (RetentionRule(keep_seconds=3), [9, 10]),
        (RetentionRule(keep_best=2, metric="return"), [2, 3, 10]),
        (RetentionRule(keep_best=2, metric="return", lower_is_better=True), [8, 9, 10]),
        (RetentionRule("archived", keep_last=2), [1, 3, 5, 7, 8, 9, 10]),
        (RetentionRule("transient", keep_last=1), [2, 4, 6, 8, 9, 10]),
        (RetentionRule(filter="tags.parity = odd", keep_last=1), [2, 4, 6, 8, 9, 10]),
        (RetentionRule(filter="version_number < 5"), [5, 6, 7, 8, 9, 10]),
    ],
)
def test_a_rule_keeps_its_versions_and_the_newest(rule: RetentionRule, expected: list[int]) -> None:
    returns = {2: 9.0, 3: 9.0, 5: 5.0, 8: 1.0, 9: 0.5}
    versions = [
        version(number, archived=number % 2 == 0, age=2 * (10 - number), value=returns.get(number))
        for number in range(1, 11)
    ]
    assert kept([rule], versions) == expected


def test_a_version_stays_if_any_rule_keeps_it() -> None:
    versions = [version(number) for number in range(1, 11)]
    assert kept([RetentionRule(keep_last=1), RetentionRule(keep_every=5)], versions) == [5, 10]


def test_aliases_and_holds_keep_versions_and_each_verdict_has_its_reason() -> None:
    versions = [version(1), version(2, aliases=["production"]), version(3), version(4), version(5), version(6)]
    rules = [RetentionRule(keep_last=1), RetentionRule(filter="version_number = 5", keep_best=1, metric="return")]
    found = verdicts(rules, versions, {3: "it is being promoted"})
    objection = 'rule 2 keeps the best 1 by "return", and this has no such metric'
    assert [(each.number, each.is_deleted, each.reason) for each in found] == [
        (1, True, "rule 1 keeps the last 1, and this is number 6"),
        (2, False, "alias production"),
        (3, False, "it is being promoted"),
        (4, True, "rule 1 keeps the last 1, and this is number 3"),
        (5, True, f"rule 1 keeps the last 1, and this is number 2; {objection}"),
        (6, False, "newest version"),
    ]
    both = RetentionRule(keep_last=1, keep_best=1, metric="return", keep_every=10)
    assert verdicts([both], [version(1), version(2)], {})[0].reason == (
        'rule 1 keeps the last 1, and this is number 2, or the best 1 by "return", and this has no such metric, '
        "or multiples of 10"
    )
    assert str(both) == 'of all versions, keep the last 1, the 1 with the highest "return" and multiples of 10'
    [first, last] = verdicts([RetentionRule(filter="version_number > 1", keep_last=1)], [version(1), version(2)])
    assert (first.reason, last.reason) == ("no rule is about it", "newest version")


RULES = st.lists(
    st.builds(
        RetentionRule,
        tier=st.sampled_from(["any", "transient", "archived"]),
        filter=st.sampled_from(["", "tags.parity = odd", "metrics.return > 2", "NOT metrics:return"]),
        keep_last=st.integers(1, 4),
        keep_best=st.just(0),
        keep_every=st.sampled_from([0, 3]),
        keep_seconds=st.sampled_from([0, 4]),
    )
    | st.builds(
        RetentionRule,
        keep_best=st.integers(1, 3),
        metric=st.just("return"),
        lower_is_better=st.booleans(),
    ),
    max_size=4,
)
VERSIONS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 9), st.none() | st.integers(0, 5), st.booleans()), min_size=1, max_size=12
).map(
    lambda rows: [
        version(
            number,
            archived=archived,
            age=age,
            aliases=["a"] if has_alias else [],
            value=value,
        )
        for number, (archived, age, value, has_alias) in enumerate(rows, 1)
    ]
)


def is_about(rule: RetentionRule, one: Version) -> bool:
    tier = "archived" if one.info.archived else "transient"
    return rule.tier in ("any", tier) and matches(parse_filter(rule.filter), one)


def keeps(rule: RetentionRule, versions: Sequence[Version], each: Version) -> bool:
    """Return whether a rule keeps a version that it applies to: a slow implementation of the documentation."""
    members = [one for one in versions if is_about(rule, one)]
    sign = -1 if rule.lower_is_better else 1
    places = {
        one.number: (sign * one.metrics[rule.metric], one.number) for one in members if rule.metric in one.metrics
    }
    better = [number for number, place in places.items() if place > places.get(each.number, (math.inf, 0))]
    return bool(
        sum(one.number > each.number for one in members) < rule.keep_last
        or (rule.keep_every and each.number % rule.keep_every == 0)
        or (rule.keep_seconds and NOW_NS - each.info.created_ns < rule.keep_seconds * SECOND_NS)
        or (each.number in places and len(better) < rule.keep_best)
    )


def is_kept(rules: Sequence[RetentionRule], versions: Sequence[Version], each: Version) -> bool:
    """Return whether rules keep a version."""
    about = [rule for rule in rules if is_about(rule, each)]
    is_safe = each is versions[-1] or bool(each.aliases) or not about
    return is_safe or any(keeps(rule, versions, each) for rule in about)


@settings(deadline=None)
@given(rules=RULES, versions=VERSIONS)
def test_verdicts_follow_the_documentation(rules: Sequence[RetentionRule], versions: Sequence[Version]) -> None:
    found = verdicts(rules, versions)
    assert [not each.is_deleted for each in found] == [is_kept(rules, versions, each) for each in versions]


@settings(deadline=None)
@given(rules=RULES, versions=VERSIONS)
def test_a_second_run_deletes_nothing(rules: Sequence[RetentionRule], versions: Sequence[Version]) -> None:
    left = [each for each in versions if each.number in kept(rules, versions)]
    assert kept(rules, left) == [each.number for each in left]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (RetentionRule(keep_last=-1), "rule 2: keep_last must be a whole number from 0 to 4294967295, not -1"),
        (RetentionRule(keep_every=2**32), "rule 2: keep_every must be"),
        (RetentionRule(keep_seconds=1.5), "rule 2: keep_seconds must be"),  # type: ignore[arg-type]
        (RetentionRule(keep_best=3), "rule 2: keep_best 3 needs the metric to compare"),
        (RetentionRule(keep_last=3, metric="return"), 'rule 2: metric "return" has no effect without keep_best'),
        (RetentionRule(keep_last=3, lower_is_better=True), "rule 2: lower_is_better has no effect"),
        (RetentionRule("archive", keep_last=1), 'rule 2: tier "archive" must be one of any, transient, archived'),  # type: ignore[arg-type]
        (RetentionRule("archived"), "rule 2: it has no filter and keeps nothing"),
        (RetentionRule(filter="metrics.return >", keep_last=1), "rule 2: filter .* is malformed at character 17"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(rule: RetentionRule, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        Rules([RetentionRule(keep_last=1), rule], "m")


def test_too_many_rules_are_refused() -> None:
    with pytest.raises(InvalidError, match="33 rules; at most 32"):
        check_rules([RetentionRule(keep_last=1)] * 33, "m")


@pytest.mark.parametrize(
    ("share", "problem"),
    [
        (TransientShare(max_items=-1), "max_items must be a whole number"),
        (TransientShare(max_bytes=5, reserved_bytes=6), "reserved_bytes 6 is more than max_bytes 5"),
    ],
)
def test_a_share_that_contradicts_itself_is_refused(share: TransientShare, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        check_share(share, "m")
