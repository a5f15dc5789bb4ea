"""What people decide about a model: tags, rules that keep and delete versions, its share of memory, and who signs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from cogment_model_registry.errors import ConflictError, InvalidError, counted, quoted
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.versions import user_data_bytes

RULES_MAX = 32
"""How many rules a model may have: each of them looks at each version."""

Tier: TypeAlias = Literal["any", "transient", "archived"]
TIERS: tuple[Tier, ...] = get_args(Tier)

_COUNT_MAX = 2**32 - 1
_LONG_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """Which versions of a model are kept, of those that the rule is about; the others are deleted.

    A version is kept if any of the ``keep_`` fields says so, or any other rule, if an alias points to it, if a consumer
    holds it, or if it is the newest. Versions that no rule is about are kept.

    Attributes:
        tier: About versions of which tier: ``any``, ``transient`` or ``archived``.
        filter: About which of them, as in a search; all if empty.
        keep_last: Keep the newest so many.
        keep_best: Keep so many with the best `metric`.
        metric: The metric that `keep_best` compares.
        lower_is_better: Whether the lowest values are the best.
        keep_seconds: Keep those that are younger.
        keep_every: Keep those whose number is a multiple.
    """

    tier: Tier = "any"
    filter: str = ""
    keep_last: int = 0
    keep_best: int = 0
    metric: str = ""
    lower_is_better: bool = False
    keep_seconds: int = 0
    keep_every: int = 0

    @property
    def keeps(self) -> list[str]:
        """What it keeps, in words."""
        best = f"the {self.keep_best} with the {'lowest' if self.lower_is_better else 'highest'} {quoted(self.metric)}"
        texts = (
            (self.keep_last, f"the last {self.keep_last}"),
            (self.keep_best, best),
            (self.keep_seconds, f"those younger than {self.keep_seconds} seconds"),
            (self.keep_every, f"multiples of {self.keep_every}"),
        )
        return [text for value, text in texts if value]

    def __str__(self) -> str:
        """Return the rule in words."""
        about = "all versions" if self.tier == "any" else f"{self.tier} versions"
        if self.filter:
            about += f" with {self.filter}"
        *most, last = self.keeps or ["none"]
        return f"of {about}, keep {', '.join(most)}{' and ' if most else ''}{last}"


@dataclass(frozen=True, slots=True)
class TransientShare:
    """What a model may take of the transient store, and what is reserved for it; 0 is no bound, or no reserve.

    Attributes:
        max_items: The most versions that are kept.
        max_bytes: The most bytes of versions that are kept. The newest version is kept even if it has more.
        reserved_items: So many versions are not evicted for other models while other older versions may go.
        reserved_bytes: The same for so many bytes.
    """

    max_items: int = 0
    max_bytes: int = 0
    reserved_items: int = 0
    reserved_bytes: int = 0


NO_SHARE = TransientShare()
"""The share of a model that has none of its own."""


@dataclass(frozen=True, slots=True)
class ModelAnnotations:
    """What people may change about a model.

    Attributes:
        tags: Texts by name.
        retention: The rules that keep and delete its versions.
        share: Its share of the transient store.
        revision: Changes whenever the others change; never repeats while the model exists.
        signers: The keys of which one must have signed each new version, ordered by id; none if that is not required.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    retention: tuple[RetentionRule, ...] = ()
    share: TransientShare = NO_SHARE
    revision: int = 1
    signers: tuple[PublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A change of what people may change about a model.

    Attributes:
        set_tags: Tags to set.
        remove_tags: Tags to remove; those that do not exist are ignored.
        retention: The rules that replace all others; None to leave them.
        share: The share of the transient store; None to leave it.
        expected_revision: The revision that the model must have now; 0 for any.
        max_bytes: The most bytes of UTF-8 in the tags afterwards, if they grow.
        signers: The keys that replace those of which one must have signed each new version; None to leave them.
    """

    set_tags: Mapping[str, str] = field(default_factory=dict)
    remove_tags: Sequence[str] = ()
    retention: tuple[RetentionRule, ...] | None = None
    share: TransientShare | None = None
    expected_revision: int = 0
    max_bytes: int | None = None
    signers: tuple[PublicKey, ...] | None = None

    def apply_to(self, model_id: str, before: ModelAnnotations, revision: int) -> ModelAnnotations:
        """Return the annotations of a model after the change.

        Raises:
            InvalidError: The tags grow beyond what is allowed.
        """
        left = {name: text for name, text in before.tags.items() if name not in self.remove_tags}
        tags = {**left, **self.set_tags}
        size_bytes = user_data_bytes(tags)
        if self.max_bytes is not None and user_data_bytes(before.tags) < size_bytes > self.max_bytes:
            raise InvalidError(
                f"the tags of model {quoted(model_id)} would have {counted(size_bytes, 'byte')}; "
                f"at most {self.max_bytes} are allowed",
                model_id=model_id,
            )
        return ModelAnnotations(
            tags,
            before.retention if self.retention is None else self.retention,
            before.share if self.share is None else self.share,
            revision,
            before.signers if self.signers is None else ordered_signers(self.signers),
        )


def ordered_signers(keys: Iterable[PublicKey]) -> tuple[PublicKey, ...]:
    """Return each of some keys once, ordered by id."""
    return tuple(sorted({*keys}, key=lambda key: key.key_id))


def check_model_revision(model_id: str, now: ModelAnnotations, change: ModelChange) -> None:
    """Refuse a change that expects another revision.

    Raises:
        ConflictError: It does.
    """
    if change.expected_revision not in (0, now.revision):
        raise ConflictError(
            f"model {quoted(model_id)} has revision {now.revision}; {change.expected_revision} was expected",
            model_id=model_id,
        )


def check_rules(rules: Sequence[RetentionRule], model_id: str) -> None:
    """Refuse rules that contradict themselves; what their filters say is not checked.

    Raises:
        InvalidError: A rule does, or there are too many.
    """
    if len(rules) > RULES_MAX:
        raise InvalidError(f"retention has {len(rules)} rules; at most {RULES_MAX} are allowed", model_id=model_id)
    for position, rule in enumerate(rules, 1):
        for _, problem in problems_of(rule):
            raise InvalidError(f"retention rule {position}: {problem}", model_id=model_id)


def problems_of(rule: RetentionRule) -> Iterable[tuple[str, str]]:
    """Yield what is wrong with a rule, but for its filter: the field, and the problem in words."""
    if rule.tier not in TIERS:
        yield "tier", f"tier {quoted(str(rule.tier))} must be one of {', '.join(TIERS)}"
    for name, limit in (
        ("keep_last", _COUNT_MAX),
        ("keep_best", _COUNT_MAX),
        ("keep_every", _COUNT_MAX),
        ("keep_seconds", _LONG_MAX),
    ):
        yield from ((name, problem) for problem in _range_problem(name, getattr(rule, name), limit))
    if rule.keep_best and not rule.metric:
        yield "metric", f"keep_best {rule.keep_best} needs the metric to compare"
    if not rule.keep_best and (rule.metric or rule.lower_is_better):
        field_name = f"metric {quoted(rule.metric)}" if rule.metric else "lower_is_better"
        yield "keep_best", f"{field_name} has no effect without keep_best"
    if not rule.filter.strip() and not rule.keeps:
        problem = "it has no filter and keeps nothing, so it would delete all versions but the newest; give keep_last"
        yield "keep_last", problem


def check_share(share: TransientShare, model_id: str) -> None:
    """Refuse a share that contradicts itself.

    Raises:
        InvalidError: It does.
    """
    for name in ("max_items", "max_bytes", "reserved_items", "reserved_bytes"):
        for problem in _range_problem(name, getattr(share, name), _LONG_MAX):
            raise InvalidError(f"transient share: {problem}", model_id=model_id)
    for reserved, bound, unit in (
        (share.reserved_items, share.max_items, "items"),
        (share.reserved_bytes, share.max_bytes, "bytes"),
    ):
        if bound and reserved > bound:
            message = f"transient share: reserved_{unit} {reserved} is more than max_{unit} {bound}"
            raise InvalidError(message, model_id=model_id)


def _range_problem(name: str, value: int, limit: int) -> Iterable[str]:
    if type(value) is not int or not 0 <= value <= limit:
        yield f"{name} must be a whole number from 0 to {limit}, not {value!r}"
