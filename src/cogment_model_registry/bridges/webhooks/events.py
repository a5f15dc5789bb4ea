"""Converts events of a watch to events for hooks, and queues them in the order in which they happened."""

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from cogment_model_registry import CaughtUp, Consumer, Gone, ModelSummary, News, Version
from cogment_model_registry.bridges.webhooks import configuration as types
from cogment_model_registry.bridges.webhooks.configuration import Configuration
from cogment_model_registry.bridges.webhooks.state import State

_REASONS = {"deleted": types.DELETED, "evicted": types.EVICTED}


class Events:
    """Queues events for hooks.

    Versions and aliases that exist when a registry is watched for the first time are recorded, and are no events.

    Args:
        configuration: The hooks.
        state: The queue, and the recorded versions and aliases.
    """

    def __init__(self, configuration: Configuration, state: State) -> None:
        self._configuration = configuration
        self._state = state
        self._is_first = not state.token(configuration.model_ids)
        self.wants_archived = any(types.ARCHIVED in hook.events for hook in configuration.hooks)

    def take(self, news: News) -> None:
        """Queue an event of the watch for the hooks, and record the position after it, in one transaction."""
        event = news.event
        if self._is_first and isinstance(event, Version) and (event.archived or not self.wants_archived):
            return  # there may be very many, and each transaction takes a sync
        with self._state.changing():
            if isinstance(event, Version):
                self._take_version(event)
            elif isinstance(event, ModelSummary):
                self._take_model(event)
            elif isinstance(event, Gone):
                self._take_gone(event)
            elif isinstance(event, Consumer):
                self._take_consumer(event)
            elif isinstance(event, CaughtUp):
                self._is_first = False
            if not self._is_first:  # otherwise, after a restart, the rest of the existing versions would be events
                self._state.set_token(news.resume_token, self._configuration.model_ids)

    def take_archived(self, version: Version) -> None:
        """Queue the event that a version was promoted."""
        with self._state.changing():
            if self._state.take_transient(version.model_id, version.number):
                self._queue(types.ARCHIVED, version.model_id, _version(version))

    def _take_version(self, version: Version) -> None:
        self._queue(types.PUBLISHED, version.model_id, _version(version))
        if version.archived:
            self._queue(types.ARCHIVED, version.model_id, _version(version))
        elif self.wants_archived:
            self._state.add_transient(version.model_id, version.number)

    def _take_model(self, model: ModelSummary) -> None:
        now = {alias.name: (alias.version_number, alias.revision) for alias in model.aliases}
        for alias, (before, after) in self._state.set_aliases(model.model_id, now).items():
            data = {"alias": alias, "version_number": after, "version_number_before": before}
            self._queue(types.ALIAS_MOVED, model.model_id, data, alias)

    def _take_gone(self, gone: Gone) -> None:
        if gone.version_number is None:
            self._state.forget_model(gone.model_id)
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
