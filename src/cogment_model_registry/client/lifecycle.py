"""What the client offers for the life of versions: checks of arguments, and the calls."""

from collections.abc import Mapping
from typing import SupportsIndex, TypeAlias

from cogment_model_registry.client.arguments import (
    SupportsItem,
    checked_id,
    checked_key,
    checked_limit,
    checked_metrics,
    checked_tags,
    checked_text,
    checked_whole,
)
from cogment_model_registry.client.lifecycle_calls import LifecyclePart
from cogment_model_registry.errors import quoted
from cogment_model_registry.records.lifecycle import Alias, AliasChange, AnnotationChange, Version
from cogment_model_registry.records.versions import VersionInfo

Key: TypeAlias = SupportsIndex | str | VersionInfo | Version
"""What names a version: its number, -n for the n-th from the last, an alias, or a record of it."""

_PROMOTE_SECONDS = 3600.0
"""How long a promotion may take by default: the server copies the bytes, however many, and sends none."""


class Lifecycle(LifecyclePart):
    """The calls of a client for versions that exist."""

    async def describe_version(self, model_id: str, key: Key, timeout: float | None) -> Version:
        """See `ModelRegistry.describe_version`."""
        checked = checked_key(checked_id(model_id), key)
        return await self._calls_within(timeout).get_version(model_id, checked)

    async def find_versions(
        self, model_id: str | None, accepted: str, order_by: str, limit: int | None, timeout: float | None
    ) -> list[Version]:
        """See `ModelRegistry.find_versions`."""
        return await self._calls_within(timeout).find_versions(
            None if model_id is None else checked_id(model_id),
            checked_text("the filter", accepted),
            checked_text("order_by", order_by),
            checked_limit(limit),
        )

    async def update_version(
        self,
        model_id: str,
        key: Key,
        timeout: float | None,
        *,
        tags: Mapping[str, str | None],
        metrics: Mapping[str, float | SupportsItem | None],
        expected: int | None,
    ) -> Version:
        """See `ModelRegistry.update_version`."""
        checked = checked_key(checked_id(model_id), key)
        set_tags, remove_tags = checked_tags(tags)
        set_metrics, remove_metrics = checked_metrics(metrics)
        revision = 0 if expected is None else checked_whole("expected", expected)
        change = AnnotationChange(set_tags, remove_tags, set_metrics, remove_metrics, revision)
        return await self._calls_within(timeout).update_version(model_id, checked, change)

    async def promote(self, model_id: str, key: Key, alias: str | None, timeout: float | None) -> Version:
        """See `ModelRegistry.promote`."""
        checked = checked_key(checked_id(model_id), key)
        aliases = [] if alias is None else [checked_text("the alias", alias)]
        calls = self._calls_within(timeout, _PROMOTE_SECONDS)
        return await calls.promote_version(model_id, checked, aliases)

    async def delete_version(self, model_id: str, key: Key, timeout: float | None, *, force: bool) -> None:
        """See `ModelRegistry.delete_version`."""
        checked = checked_key(checked_id(model_id), key)
        await self._calls_within(timeout).delete_version(model_id, checked, force=force)

    async def aliases(self, model_id: str, timeout: float | None) -> dict[str, Alias]:
        """See `ModelRegistry.aliases`."""
        what = f"listing the aliases of model {quoted(checked_id(model_id))}"
        summary = await self._calls_within(timeout).summarize(model_id, what)
        return {alias.name: alias for alias in summary.aliases}

    async def set_alias(
        self, model_id: str, alias: str, key: Key, expected: int | None, timeout: float | None
    ) -> Alias:
        """See `ModelRegistry.set_alias`."""
        checked = checked_key(checked_id(model_id), key)
        what = f"setting alias {quoted(checked_text('the alias', alias))} of model {quoted(model_id)}"
        calls = self._calls_within(timeout, _PROMOTE_SECONDS)
        if isinstance(checked, str):
            checked = (await calls.get_version(model_id, checked)).number
        revision = None if expected is None else checked_whole("expected", expected)
        changes = [AliasChange(alias, checked, revision)]
        return (await calls.change_aliases(model_id, changes, what))[alias]

    async def remove_alias(self, model_id: str, alias: str, expected: int | None, timeout: float | None) -> None:
        """See `ModelRegistry.remove_alias`."""
        what = f"removing alias {quoted(checked_text('the alias', alias))} of model {quoted(checked_id(model_id))}"
        revision = None if expected is None else checked_whole("expected", expected)
        changes = [AliasChange(alias, None, revision)]
        await self._calls_within(timeout).change_aliases(model_id, changes, what)
