"""What the client offers for what people decide about models: checks of arguments, and the calls."""

from collections.abc import Iterable, Mapping
from typing import SupportsIndex, TypeVar

from cogment_model_registry.client.arguments import checked_id, checked_limit, checked_tags, checked_text, checked_whole
from cogment_model_registry.client.lifecycle_calls import LifecyclePart
from cogment_model_registry.client.signatures import TrustedKeys, public_keys_of
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import InvalidError, ModelRegistryError, quoted
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.lifecycle import ModelSummary, RetentionReport
from cogment_model_registry.records.retention import (
    ModelChange,
    RetentionRule,
    TransientShare,
    check_rules,
    check_share,
    ordered_signers,
)
from cogment_model_registry.records.signatures import check_signers
from cogment_model_registry.records.versions import CREATED_MAX_NS

_Record = TypeVar("_Record")

_APPLY_SECONDS = 3600.0
"""How long an application of rules may take by default: the server deletes one version after the other."""


class Models(LifecyclePart):
    """The calls of a client for models."""

    async def describe_model(self, model_id: str, timeout: float | None) -> ModelSummary:
        """See `ModelRegistry.describe_model`."""
        what = f"looking up model {quoted(checked_id(model_id))}"
        return await self._calls_within(timeout).summarize(model_id, what)

    async def find_models(self, accepted: str, limit: int | None, timeout: float | None) -> list[ModelSummary]:
        """See `ModelRegistry.find_models`."""
        most = checked_limit(limit)
        return await self._calls_within(timeout).find_models(checked_text("the filter", accepted), most)

    async def update_model(
        self, model_id: str, tags: Mapping[str, str | None], expected: SupportsIndex | None, timeout: float | None
    ) -> ModelSummary:
        """See `ModelRegistry.update_model`."""
        set_tags, remove_tags = checked_tags(tags)
        change = ModelChange(set_tags, remove_tags, expected_revision=_revision(expected))
        return await self._calls_within(timeout).update_model(checked_id(model_id), change)

    async def set_retention(
        self, model_id: str, rules: Iterable[RetentionRule], expected: SupportsIndex | None, timeout: float | None
    ) -> ModelSummary:
        """See `ModelRegistry.set_retention`."""
        checked = _checked_rules(checked_id(model_id), rules)
        change = ModelChange(retention=checked, expected_revision=_revision(expected))
        return await self._calls_within(timeout).update_model(model_id, change)

    async def set_share(
        self, model_id: str, share: TransientShare, expected: SupportsIndex | None, timeout: float | None
    ) -> ModelSummary:
        """See `ModelRegistry.set_share`."""
        checked = _checked_record("share", share, TransientShare)
        check_share(checked, checked_id(model_id))
        change = ModelChange(share=checked, expected_revision=_revision(expected))
        return await self._calls_within(timeout).update_model(model_id, change)

    async def set_signers(
        self, model_id: str, keys: TrustedKeys, expected: SupportsIndex | None, timeout: float | None
    ) -> ModelSummary:
        """See `ModelRegistry.set_signers`."""
        signers = await self._calls.backend.wait(submit(lambda: public_keys_of(keys)))
        check_signers(signers, checked_id(model_id))
        change = ModelChange(signers=tuple(signers), expected_revision=_revision(expected))
        model = await self._calls_within(timeout).update_model(model_id, change)
        if model.signers != ordered_signers(signers):
            message = (
                f"the signers of model {quoted(model_id)} were not set, since the server is of an older release, which "
                "demands no signatures"
            )
            raise ModelRegistryError(message, model_id=model_id)
        return model

    async def apply_retention(
        self, model_id: str | None, rules: Iterable[RetentionRule] | None, timeout: float | None, *, dry_run: bool
    ) -> RetentionReport:
        """See `ModelRegistry.apply_retention`."""
        checked_model = "" if model_id is None else checked_id(model_id)
        checked = None if rules is None else _checked_rules(checked_model, rules)
        if checked is not None and not dry_run:
            raise InvalidError("rules are only for a dry run; set the rules of a model with set_retention")
        calls = self._calls_within(timeout, _APPLY_SECONDS)
        return await calls.apply_retention(checked_model, checked, is_dry_run=dry_run)

    async def history(
        self,
        model_id: str,
        alias: str | None,
        since_ns: SupportsIndex | None,
        limit: int | None,
        timeout: float | None,
    ) -> list[HistoryEntry]:
        """See `ModelRegistry.history`."""
        since = 0 if since_ns is None else checked_whole("since_ns", since_ns)
        if not 0 <= since <= CREATED_MAX_NS:
            raise InvalidError(f"since_ns is {since}; it must be from 0 to {CREATED_MAX_NS}")
        most = checked_limit(limit)
        name = "" if alias is None else checked_text("the alias", alias)
        return await self._calls_within(timeout).list_changes(checked_id(model_id), name, since, most)


def _revision(expected: SupportsIndex | None) -> int:
    return 0 if expected is None else checked_whole("expected", expected)


def _checked_rules(model_id: str, rules: Iterable[RetentionRule]) -> tuple[RetentionRule, ...]:
    """Return rules.

    Raises:
        InvalidError: They are none, or contradict themselves.
    """
    if isinstance(rules, RetentionRule) or not isinstance(rules, Iterable):
        raise InvalidError(f"rules is {rules!r}; it must be a list of RetentionRule")
    checked = tuple(_checked_record("a rule", rule, RetentionRule) for rule in rules)
    for rule in checked:
        checked_text("the filter of a rule", rule.filter)
        checked_text("the metric of a rule", rule.metric)
    check_rules(checked, model_id)
    return checked


def _checked_record(name: str, value: object, kind: type[_Record]) -> _Record:
    if not isinstance(value, kind):
        raise InvalidError(f"{name} is {value!r}; it must be a {kind.__name__}")
    return value
