"""What rules of retention say about the versions of a model: a function of what exists, without side effects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.retention import RetentionRule, check_rules
from cogment_model_registry.registry.filters import EVERYTHING, Filter, matches, parse_filter


@dataclass(frozen=True, slots=True)
class Candidate:
    """What rules need to know of a version.

    Attributes:
        number: Its number.
        created_ns: When it was created, in nanoseconds since the Unix epoch.
        size_bytes: Its size.
        aliases: The aliases that point to it.
        rules: The positions of the rules that are about it, from 0.
        metrics: The metrics that rules compare, by name.
    """

    number: int
    created_ns: int
    size_bytes: int
    aliases: tuple[str, ...]
    rules: tuple[int, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided about a version, and why."""

    number: int
    size_bytes: int
    is_deleted: bool
    reason: str


class Rules:
    """Rules whose filters are understood.

    Args:
        rules: The rules.
        model_id: Their model, for errors.

    Raises:
        InvalidError: A rule contradicts itself, or its filter is malformed.
    """

    def __init__(self, rules: Sequence[RetentionRule], model_id: str) -> None:
        check_rules(rules, model_id)
        self.rules = rules
        self._filters = [_filter_of(rule, position, model_id) for position, rule in enumerate(rules, 1)]
        self._metrics = {rule.metric for rule in rules if rule.metric}

    def look_at(self, version: Version) -> Candidate:
        """Return what the rules need to know of a version."""
        tier = "archived" if version.info.archived else "transient"
        about = (
            position
            for position, (rule, accepted) in enumerate(zip(self.rules, self._filters, strict=True))
            if rule.tier in ("any", tier) and matches(accepted, version)
        )
        return Candidate(
            version.number,
            version.info.created_ns,
            version.info.data_size_bytes,
            version.aliases,
            tuple(about),
            {name: version.metrics[name] for name in self._metrics if name in version.metrics},
        )


def _filter_of(rule: RetentionRule, position: int, model_id: str) -> Filter:
    if not rule.filter.strip():
        return EVERYTHING
    try:
        return parse_filter(rule.filter)
    except InvalidError as error:
        raise InvalidError(f"retention rule {position}: {error.message}", model_id=model_id) from None


def decide(
    rules: Sequence[RetentionRule],
    candidates: Sequence[Candidate],
    newest: int,
    held: Mapping[int, str],
    now_ns: int,
) -> list[Verdict]:
    """Return what rules say about each version.

    Args:
        rules: The rules of a model.
        candidates: Its versions, ordered by number.
        newest: The number of its newest version.
        held: Numbers of versions that somebody needs, and why.
        now_ns: The time, in nanoseconds since the Unix epoch.
    """
    opinions = [_Opinion(rule, position, candidates, now_ns) for position, rule in enumerate(rules)]
    verdicts = []
    for candidate in candidates:
        reason = _reason_to_keep(candidate, newest, held, opinions)
        is_deleted = not reason
        if is_deleted:
            reason = "; ".join(opinions[position].objection(candidate) for position in candidate.rules)
        verdicts.append(Verdict(candidate.number, candidate.size_bytes, is_deleted, reason))
    return verdicts


def _reason_to_keep(candidate: Candidate, newest: int, held: Mapping[int, str], opinions: "Sequence[_Opinion]") -> str:
    """Return why a version is kept; empty if it is not."""
    if candidate.number == newest:
        return "newest version"
    if candidate.aliases:
        return f"alias {', '.join(candidate.aliases)}"
    if candidate.number in held:
        return held[candidate.number]
    if not candidate.rules:
        return "no rule is about it"
    reasons = (opinions[position].reason_to_keep(candidate) for position in candidate.rules)
    return next((reason for reason in reasons if reason), "")


class _Opinion:
    """What one rule says about the versions that it is about."""

    def __init__(self, rule: RetentionRule, position: int, candidates: Sequence[Candidate], now_ns: int) -> None:
        self._rule = rule
        self._name = f"rule {position + 1}"
        about = [candidate for candidate in candidates if position in candidate.rules]
        self._age_ranks = _ranks(candidate.number for candidate in reversed(about)) if rule.keep_last else {}
        sign = 1 if rule.lower_is_better else -1
        # Of equal values, that of the newer version is the better one.
        measured = sorted(
            (sign * each.metrics[rule.metric], -each.number) for each in about if rule.metric in each.metrics
        )
        self._value_ranks = _ranks(-number for _, number in measured)
        self._young_ns = now_ns - rule.keep_seconds * 10**9

    def reason_to_keep(self, candidate: Candidate) -> str:
        rule, number = self._rule, candidate.number
        if rule.keep_last and self._age_ranks[number] <= rule.keep_last:
            return f"{self._name} keeps the last {rule.keep_last}"
        if rule.keep_best and self._value_ranks.get(number, rule.keep_best + 1) <= rule.keep_best:
            return f"{self._name} keeps the best {rule.keep_best} by {quoted(rule.metric)}"
        if rule.keep_seconds and candidate.created_ns > self._young_ns:
            return f"{self._name} keeps those younger than {rule.keep_seconds} seconds"
        if rule.keep_every and number % rule.keep_every == 0:
            return f"{self._name} keeps multiples of {rule.keep_every}"
        return ""

    def objection(self, candidate: Candidate) -> str:
        """Return why the rule does not keep a version."""
        rule, number, objections = self._rule, candidate.number, []
        if rule.keep_last:
            objections.append(f"the last {rule.keep_last}, and this is number {self._age_ranks[number]}")
        if rule.keep_best:
            rank = self._value_ranks.get(number)
            place = f"this is number {rank}" if rank else "this has no such metric"
            objections.append(f"the best {rule.keep_best} by {quoted(rule.metric)}, and {place}")
        if rule.keep_seconds:
            objections.append(f"those younger than {rule.keep_seconds} seconds")
        if rule.keep_every:
            objections.append(f"multiples of {rule.keep_every}")
        return f"{self._name} keeps {', or '.join(objections) or 'none that it is about'}"


def _ranks(numbers: Iterable[int]) -> dict[int, int]:
    return {number: rank for rank, number in enumerate(numbers, 1)}
