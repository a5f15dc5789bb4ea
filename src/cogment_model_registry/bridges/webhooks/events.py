"""Converts events of a watch to events for hooks, and queues them in the order in which they happened."""

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from cogment_model_registry import CaughtUp, Consumer, Gap, Gone, ModelRegistry, ModelSummary, News, Version
from cogment_model_registry.bridges.webhooks import configuration as types
from cogment_model_registry.bridges.webhooks.configuration import Configuration
from cogment_model_registry.bridges.webhooks.state import State
from cogment_model_registry.errors import NotFoundError, PermissionDeniedError

_REASONS = {"deleted": types.DELETED, "evicted": types.EVICTED}

_PAGE = 500
"""How many versions of a gap are looked up and queued at a time."""


class Events:
    """Queues events for hooks.

    Versions and aliases that exist when a registry is watched for the first time are recorded, and are no events.

    Args:
        configuration: The hooks.
        state: The queue, and the recorded versions and aliases.
        registry: The registry, which is asked for what a watch skips.
    """

    def __init__(self, configuration: Configuration, state: State, registry: ModelRegistry) -> None:
        self._configuration = configuration
        self._state = state
        self._registry = registry
        self._is_first = not state.token(configuration.model_ids)
        self._existing: dict[str, int] = {}
        if self._is_first:
            with state.changing():
                state.forget_models()
        self.wants_archived = any(types.ARCHIVED in hook.events for hook in configuration.hooks)

    def take(self, news: News) -> None:
        """Queue an event of the watch for the hooks, and record the position after it, in one transaction."""
        event = news.event
        if self._is_first and isinstance(event, Version):
            self._existing[event.model_id] = event.number
            if event.archived or not self.wants_archived:
                return  # there may be very many, and each transaction takes a sync
        elif not self._is_first and isinstance(event, Gap):
            self._take_skipped(event)
        elif not self._is_first and isinstance(event, CaughtUp):
            self._take_deleted_models()
        with self._state.changing():
            self._take(event)
            if not self._is_first:  # otherwise, after a restart, the rest of the existing versions would be events
                self._state.set_token(news.resume_token, self._configuration.model_ids)

    def _take(self, event: Version | ModelSummary | Gap | Gone | CaughtUp | Consumer) -> None:
        if isinstance(event, Version):
            self._take_version(event)
        elif isinstance(event, ModelSummary):
            self._take_model(event)
        elif isinstance(event, Gone):
            self._take_gone(event)
        elif isinstance(event, Consumer):
            self._take_consumer(event)
        elif isinstance(event, CaughtUp) and self._is_first:
            self._is_first = False
            for model_id, number in self._existing.items():
                self._state.note_number(model_id, number)
            self._existing = {}

    def look_for_promoted(self) -> None:
        """Queue the events of versions that were promoted, of which watchers are not notified.

        Raises:
            ModelRegistryError: The registry does not answer.
        """
        for model_id in self._state.transient_models():
            known = self._state.transient(model_id)
            since = f"version_number >= {min(known, default=0)}"
            try:
                # In this order: a version that is promoted in between is in both.
                transient = self._registry.find_versions(model_id, f"archived = false AND {since}")
                archived = self._registry.find_versions(model_id, f"archived = true AND {since}")
            except NotFoundError:
                transient, archived = [], []
            promoted = [version for version in archived if version.number in known]
            # Versions that were lost with a registry that stopped have no event, so they are forgotten here.
            lost = known.difference(each.number for each in [*transient, *archived])
            if promoted or lost:
                with self._state.changing():
                    for version in promoted:
                        if self._state.take_transient(model_id, version.number):
                            self._queue(types.ARCHIVED, model_id, _version(version))
                    for number in lost:
                        self._state.take_transient(model_id, number)

    def _take_skipped(self, gap: Gap) -> None:
        """Queue the events of versions in a gap that exist.

        A registry that was restarted does not know which versions of all models it has sent, and skips them all.
        """
        first = max(gap.first_number, self._state.last_number(gap.model_id) + 1)
        while first <= gap.last_number:
            accepted = f"version_number >= {first} AND version_number <= {gap.last_number}"
            try:
                versions = self._registry.find_versions(gap.model_id, accepted, limit=_PAGE)
            except NotFoundError:
                return
            with self._state.changing():
                for version in versions:
                    self._take_version(version)
            if len(versions) < _PAGE:
                return
            first = versions[-1].number + 1

    def _take_deleted_models(self) -> None:
        """Queue the events of models that were deleted while this process was not connected.

        A registry that was restarted does not report them to those who watch all models.
        """
        # A token that is for some models may not list all.
        some = self._configuration.model_ids
        existing = set() if some else {model.model_id for model in self._registry.list_models()}
        for model_id in self._state.models():
            if model_id not in existing and not self._exists(model_id):
                with self._state.changing():
                    self._take_gone(Gone(model_id, None, "deleted"))

    def _exists(self, model_id: str) -> bool:
        """Return whether a model exists that was not listed, such as one that was created in between."""
        try:
            self._registry.describe_model(model_id)
        except NotFoundError:
            return False
        except PermissionDeniedError:  # the token is another one than before
            return True
        return True

    def _take_version(self, version: Version) -> None:
        if not self._is_first:
            self._state.note_number(version.model_id, version.number)
        self._queue(types.PUBLISHED, version.model_id, _version(version))
        if version.archived:
            self._queue(types.ARCHIVED, version.model_id, _version(version))
        elif self.wants_archived:
            self._state.add_transient(version.model_id, version.number)

    def _take_model(self, model: ModelSummary) -> None:
        self._state.note_model(model.model_id)
        now = {alias.name: (alias.version_number, alias.revision) for alias in model.aliases}
        for alias, (before, after) in self._state.set_aliases(model.model_id, now).items():
            data = {"alias": alias, "version_number": after, "version_number_before": before}
            self._queue(types.ALIAS_MOVED, model.model_id, data, alias)

    def _take_gone(self, gone: Gone) -> None:
        if gone.version_number is None:
            self._existing.pop(gone.model_id, None)
            if self._state.forget_model(gone.model_id):
                self._queue(types.MODEL_DELETED, gone.model_id, {})
            return
        self._state.take_transient(gone.model_id, gone.version_number)
        kind = _REASONS.get(gone.reason, types.DAMAGED)
        self._queue(kind, gone.model_id, {"version_number": gone.version_number, "reason": gone.reason})

    def _take_consumer(self, consumer: Consumer) -> None:
        lags = consumer.state != "gone" and (
            consumer.versions_behind >= self._configuration.versions_behind
            or consumer.seconds_behind >= self._configuration.seconds_behind
        )
        if self._state.set_lagging(consumer.model_id, consumer.consumer_id, lags=lags):
            data = dataclasses.asdict(consumer)
            self._queue(types.LAGGING if lags else types.RECOVERED, consumer.model_id, data)

    def _queue(self, kind: str, model_id: str, data: Mapping[str, Any], alias: str = "") -> None:
        """Queue an event for all hooks that get it."""
        wanting = (
            [] if self._is_first else [hook for hook in self._configuration.hooks if hook.wants(kind, model_id, alias)]
        )
        if not wanting:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
        document = {"type": kind, "timestamp": now, "data": {"model_id": model_id, **data}}
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        for hook in wanting:
            self._state.add_post(hook.name, body)


def _version(version: Version) -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(version, signature=None)) | {
        "signed_by": version.signature.key_id if version.signature else None
    }
