"""Versions that are imported from elsewhere: each is imported once, and updated when it is imported again.

`user_data` has the origin of a version, since it never changes and can be searched for. Data that people change at the
origin later, such as tags and aliases, is compared each time.
"""

import logging
import math
from collections.abc import Iterable, Mapping

from cogment_model_registry import Folder, ModelRegistry, Version
from cogment_model_registry.errors import InvalidError, NotFoundError

_log = logging.getLogger(__name__)


def imported(registry: ModelRegistry, model_id: str, origin: Mapping[str, str]) -> Version | None:
    """Return the archived version that was imported from an origin; None if there is none."""
    words = [f"user_data.{_text(key)} = {_text(value)}" for key, value in origin.items()]
    try:
        found = registry.find_versions(model_id, " AND ".join(["archived = true", *words]), limit=1)
    except NotFoundError:
        return None
    return found[0] if found else None


def _text(text: str) -> str:
    """Return a text as a quoted value of a filter."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def bring(
    registry: ModelRegistry,
    model_id: str,
    path: "str | Folder | None",
    origin: Mapping[str, str],
    *,
    before: Version | None,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    aliases: Iterable[str],
) -> Version:
    """Store a version from its origin, or update it with the changes since then; return the version.

    Args:
        registry: The registry.
        model_id: The model.
        path: The file or the folder; None if the version exists.
        origin: The entries of `user_data` that say where it comes from.
        before: The version that was imported from there before; None for none.
        tags: Its tags; others that the version has stay.
        metrics: Its metrics, without those that are not finite; others that the version has stay.
        aliases: The aliases that point to it.
    """
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if before is None:
        if path is None:
            raise ValueError("there is neither a version nor its files")
        info = registry.store(model_id, path, user_data=origin, tags=tags, metrics=finite)
        before = registry.describe_version(model_id, info)
    new_tags = {name: text for name, text in tags.items() if before.tags.get(name) != text}
    new_metrics = {name: value for name, value in finite.items() if before.metrics.get(name) != value}
    if new_tags or new_metrics:
        before = registry.update_version(model_id, before, tags=new_tags, metrics=new_metrics)
    new_aliases = sorted(set(aliases) - set(before.aliases))
    for alias in new_aliases:
        try:
            registry.set_alias(model_id, alias, before)
        except InvalidError as error:  # such as one of digits; the version is complete without it
            _log.warning("an alias is not copied: %s", error)
    return registry.describe_version(model_id, before) if new_aliases else before
