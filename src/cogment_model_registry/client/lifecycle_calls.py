"""The calls of ModelLifecycle. Servers of the original do not have them, which errors say."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from cogment_model_registry.client import lookups
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import CALL_SECONDS, Deadline, Timeouts
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lookups import version_text
from cogment_model_registry.errors import ModelRegistryError, WrongServerError, quoted
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    ModelSummary,
    RetentionReport,
    Version,
)
from cogment_model_registry.records.retention import ModelChange, RetentionRule
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import audit as wire_audit
from cogment_model_registry.wire import consumers as wire_consumers
from cogment_model_registry.wire import lifecycle as wire
from cogment_model_registry.wire import messages
from cogment_model_registry.wire import models as wire_models

_Reply = TypeVar("_Reply", bound=messages.Message)
_T = TypeVar("_T")


Page: TypeAlias = tuple[Iterable[_T], str]
"""What a page has, and the token of the next one; empty for the last one."""


class LifecycleCalls:
    """Makes the calls.

    Args:
        calls: Makes calls.
        deadline: When to give up.
    """

    def __init__(self, calls: Calls, deadline: Deadline) -> None:
        self._calls = calls
        self._deadline = deadline

    async def _call(
        self,
        method: str,
        request: messages.Message,
        reply_type: type[_Reply],
        subject: Subject,
        *,
        is_idempotent: bool = True,
        service: str = wire.SERVICE_NAME,
    ) -> _Reply:
        try:
            return await self._calls.unary(
                method,
                request,
                reply_type,
                subject,
                self._deadline,
                is_idempotent=is_idempotent,
                service=service,
            )
        except WrongServerError as error:
            raise missing_service(subject, service) from error

    async def get_version(self, model_id: str, key: int | str) -> Version:
        """Return a version by its number, by -n for the n-th from the last, or by an alias."""
        subject = Subject(f"looking up {version_text(model_id, key)}", model_id)
        request = wire.ListVersionsRequest(versions=[wire.version_ref(model_id, key)])
        reply = await self._call("ListVersions", request, wire.ListVersionsReply, subject)
        return lookups.of_model(wire.version_from_message(reply.versions[0]), model_id)

    async def find_versions(
        self, model_id: str | None, accepted: str, order_by: str, limit: int | None
    ) -> list[Version]:
        """Return the versions that a filter accepts, in order; all of them for a limit of None."""
        return await _all_pages(partial(self.versions_page, model_id, accepted, order_by), limit)

    async def versions_page(
        self, model_id: str | None, accepted: str, order_by: str, size: int, token: str
    ) -> Page[Version]:
        """Return a page of the versions that a filter accepts, in order."""
        subject = Subject("looking for versions", model_id)
        request = wire.ListVersionsRequest(
            model_id=model_id or "", filter=accepted, order_by=order_by, page_size=size, page_token=token
        )
        reply = await self._call("ListVersions", request, wire.ListVersionsReply, subject)
        return map(wire.version_from_message, reply.versions), reply.next_page_token

    async def update_version(self, model_id: str, key: int | str, change: AnnotationChange) -> Version:
        """Change tags and metrics of a version."""
        subject = Subject(f"updating {version_text(model_id, key)}", model_id)
        request = wire.update_request(model_id, key, change)
        is_idempotent = not change.expected_revision
        reply = await self._call("UpdateVersion", request, wire.VersionMessage, subject, is_idempotent=is_idempotent)
        return wire.version_from_message(reply)

    async def promote_version(self, model_id: str, key: int | str, aliases: Sequence[str]) -> Version:
        """Make a transient version archived."""
        subject = Subject(f"promoting {version_text(model_id, key)}", model_id)
        request = wire.PromoteVersionRequest(version=wire.version_ref(model_id, key), aliases=aliases)
        reply = await self._call("PromoteVersion", request, wire.VersionMessage, subject)
        return wire.version_from_message(reply)

    async def delete_version(self, model_id: str, key: int | str, *, force: bool) -> None:
        """Delete a version."""
        subject = Subject(f"deleting {version_text(model_id, key)}", model_id)
        request = wire.DeleteVersionRequest(version=wire.version_ref(model_id, key), force=force)
        await self._call("DeleteVersion", request, wire.DeleteVersionReply, subject, is_idempotent=False)

    async def change_aliases(self, model_id: str, changes: Sequence[AliasChange], what: str) -> Mapping[str, Alias]:
        """Change aliases of a model, and return all of them by name."""
        request = wire.set_aliases_request(model_id, changes)
        is_idempotent = all(
            change.expected_revision is None and change.version_number is not None for change in changes
        )
        subject = Subject(what, model_id)
        reply = await self._call("SetAliases", request, wire.SetAliasesReply, subject, is_idempotent=is_idempotent)
        return {alias.name: alias for alias in wire.aliases_from_messages(reply.aliases)}

    async def summarize(self, model_id: str, what: str) -> ModelSummary:
        """Return a model with what it has."""
        request = wire_models.ListModelsRequest(model_ids=[model_id])
        reply = await self._call("ListModels", request, wire_models.ListModelsReply, Subject(what, model_id))
        return wire_models.model_from_message(reply.models[0])

    async def find_models(self, accepted: str, limit: int | None) -> list[ModelSummary]:
        """Return the models that a filter accepts, ordered by id; all of them for a limit of None."""
        return await _all_pages(partial(self.models_page, accepted), limit)

    async def models_page(self, accepted: str, size: int, token: str) -> Page[ModelSummary]:
        """Return a page of the models that a filter accepts, ordered by id."""
        subject = Subject("looking for models", None)
        request = wire_models.ListModelsRequest(filter=accepted, page_size=size, page_token=token)
        reply = await self._call("ListModels", request, wire_models.ListModelsReply, subject)
        return map(wire_models.model_from_message, reply.models), reply.next_page_token

    async def update_model(self, model_id: str, change: ModelChange) -> ModelSummary:
        """Change tags, rules or the share of a model."""
        subject = Subject(f"updating model {quoted(model_id)}", model_id)
        request = wire_models.update_model_request(model_id, change)
        is_idempotent = not change.expected_revision
        reply = await self._call("UpdateModel", request, wire_models.ModelMessage, subject, is_idempotent=is_idempotent)
        return wire_models.model_from_message(reply)

    async def apply_retention(
        self, model_id: str, rules: Sequence[RetentionRule] | None, *, is_dry_run: bool
    ) -> RetentionReport:
        """Apply rules to a model, or to all for the empty id. A second try would report less than both deleted."""
        subject = Subject(f"applying retention to {model_text(model_id)}", model_id or None)
        request = wire_models.apply_retention_request(model_id, rules, is_dry_run=is_dry_run)
        reply = await self._call(
            "ApplyRetention", request, wire_models.ApplyRetentionReply, subject, is_idempotent=is_dry_run
        )
        return wire_models.report_from_message(reply)

    async def report_consumer(self, report: Consumer) -> Consumer:
        """Say what a consumer runs, and return that with its lag."""
        subject = Subject(f"reporting consumer {quoted(report.consumer_id)}", report.model_id)
        request = wire_consumers.ReportConsumerRequest(consumer=wire_consumers.consumer_message(report))
        reply = await self._call("ReportConsumer", request, wire_consumers.ReportConsumerReply, subject)
        return wire_consumers.consumer_from_message(reply.consumer)

    async def find_consumers(self, model_id: str, accepted: str, limit: int | None) -> list[Consumer]:
        """Return consumers of a model, or of all for the empty id, that a filter accepts; all for a limit of None."""
        return await _all_pages(partial(self.consumers_page, model_id, accepted), limit)

    async def consumers_page(self, model_id: str, accepted: str, size: int, token: str) -> Page[Consumer]:
        """Return a page of the consumers of a model, or of all for the empty id, that a filter accepts."""
        subject = Subject(f"listing the consumers of {model_text(model_id)}", model_id or None)
        request = wire_consumers.ListConsumersRequest(
            model_id=model_id, filter=accepted, page_size=size, page_token=token
        )
        reply = await self._call("ListConsumers", request, wire_consumers.ListConsumersReply, subject)
        return map(wire_consumers.consumer_from_message, reply.consumers), reply.next_page_token

    async def list_changes(self, model_id: str, alias: str, since_ns: int, limit: int | None) -> list[HistoryEntry]:
        """Return the changes of a model, or of one of its aliases, from a time on, newest first; all for None."""
        return await _all_pages(partial(self.changes_page, model_id, alias, since_ns), limit)

    async def changes_page(self, model_id: str, alias: str, since_ns: int, size: int, token: str) -> Page[HistoryEntry]:
        """Return a page of the changes of a model, or of one of its aliases, from a time on, newest first."""
        subject = Subject(f"reading the history of model {quoted(model_id)}", model_id)
        request = wire_audit.ListChangesRequest(
            model_id=model_id, alias=alias, since_timestamp=since_ns, page_size=size, page_token=token
        )
        reply = await self._call(
            "ListChanges", request, wire_audit.ListChangesReply, subject, service=wire_audit.SERVICE_NAME
        )
        return map(wire_audit.change_from_message, reply.changes), reply.next_page_token


async def _all_pages(page: Callable[[int, str], Awaitable[Page[_T]]], limit: int | None) -> list[_T]:
    """Return what all pages have, up to a limit.

    Args:
        page: Asks for a page of a size, from a token on.
        limit: The most to return; None for all.
    """
    found: list[_T] = []
    token = ""
    while limit is None or len(found) < limit:
        size = wire.PAGE_MAX_ITEMS if limit is None else min(limit - len(found), wire.PAGE_MAX_ITEMS)
        some, token = await page(size, token)
        found += some
        if not token:
            break
    return found


class LifecyclePart:
    """A part of what the client offers by ModelLifecycle.

    Args:
        calls: Makes calls.
        timeouts: How long they may take.
    """

    def __init__(self, calls: Calls, timeouts: Timeouts) -> None:
        self._calls = calls
        self._timeouts = timeouts

    def _calls_within(self, timeout: float | None, default_seconds: float = CALL_SECONDS) -> LifecycleCalls:
        return LifecycleCalls(self._calls, self._timeouts.of_call(timeout, default_seconds))


def missing_service(subject: Subject, service: str = wire.SERVICE_NAME) -> ModelRegistryError:
    """Return the error for a call that the server does not have."""
    message = f"{subject.text}: the server has no {service}; it is the original one, or an older release"
    return ModelRegistryError(message, model_id=subject.model_id)


def model_text(model_id: str) -> str:
    """Return a model, or all of them for the empty id, as errors name it."""
    return f"model {quoted(model_id)}" if model_id else "all models"


async def look_up(
    calls: Calls, model_id: str, key: int | str, deadline: Deadline, *, archived: bool = False
) -> VersionInfo:
    """Return a version by its number, by -n for the n-th from the last, or by an alias, of archived ones or of all."""
    if isinstance(key, str):  # an alias, which only archived versions have
        return (await LifecycleCalls(calls, deadline).get_version(model_id, key)).info
    find = lookups.one_archived if archived else lookups.one
    return await find(calls, model_id, key, deadline)
