"""The calls of ModelLifecycle for models: decode the request, call the rules, encode the reply."""

from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import asdict

import structlog

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Decision, ModelSummary
from cogment_model_registry.registry.access import find_readable
from cogment_model_registry.registry.filters import MODELS, parse_filter
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.retention import Application
from cogment_model_registry.server.retention import RetentionWork
from cogment_model_registry.serving.calls import Call, UnaryAnswers
from cogment_model_registry.wire import models
from cogment_model_registry.wire.lifecycle import build_index, build_token, fitting, page_size, parse_index, parse_token

_log = structlog.stdlib.get_logger(__name__)


class ModelCalls:
    """Answers the calls for models.

    Args:
        rules: What answers.
        retention: Applies rules of retention.
        reply_max_bytes: Where a reply ends.
    """

    def __init__(self, rules: Models, retention: RetentionWork, reply_max_bytes: int) -> None:
        self._rules = rules
        self._retention = retention
        self._reply_max_bytes = reply_max_bytes

    def answers(self) -> UnaryAnswers:
        """Return the methods by the names of the calls."""
        return {
            "ListModels": (models.ListModelsRequest, self._list_models),
            "UpdateModel": (models.UpdateModelRequest, self._update_model),
            "ApplyRetention": (models.ApplyRetentionRequest, self._apply_retention),
        }

    async def _list_models(self, request: models.ListModelsRequest, call: Call) -> bytes:
        if request.model_ids:
            return await self._get_models(request)
        # A model that is created or deleted in the meantime moves no page: the next one begins after an id.
        question = (request.filter,)
        after = parse_token(request.page_token, question, 1)
        limit = page_size(request.page_size)
        accepted = parse_filter(request.filter, MODELS)

        def find(after: str, limit: int) -> Awaitable[Sequence[ModelSummary]]:
            return self._rules.find(accepted, after, limit)

        begin = str(after[0]) if after else ""
        found = await find_readable(call.caller, find, begin, limit, lambda model: (model.model_id, model.model_id))
        page = self._page(found)
        token = ""
        if len(page) < len(found) or len(found) == limit:
            token = build_token(question, (found[len(page) - 1].model_id,))
        return models.ListModelsReply(models=page, next_page_token=token).SerializeToString()

    async def _get_models(self, request: models.ListModelsRequest) -> bytes:
        """Return the page of the models that are named."""
        if request.filter:
            raise InvalidError("ListModels takes model_ids, or a filter, and not both")
        model_ids = [*request.model_ids]
        start = parse_index(request.page_token, model_ids)
        page = self._page(await self._rules.get(model_ids[start:]))
        token = build_index(model_ids, start + len(page))
        return models.ListModelsReply(models=page, next_page_token=token).SerializeToString()

    def _page(self, found: Sequence[ModelSummary]) -> list[models.ModelMessage]:
        """Return the messages of as many models as fit a reply, at least one."""
        return fitting(map(models.model_message, found), self._reply_max_bytes)

    async def _update_model(self, request: models.UpdateModelRequest, call: Call) -> bytes:
        call.about(model_id=request.model_id)
        change = models.model_change(request)
        model = await self._rules.update(request.model_id, change)
        if change.retention is not None:
            rules = [str(rule) for rule in model.retention]
            _log.info("retention set", model_id=model.model_id, rules=rules, peer=call.context.peer())
        if change.share is not None:
            _log.info("transient share set", model_id=model.model_id, **asdict(model.share), peer=call.context.peer())
        if change.signers is not None:
            keys = [key.key_id for key in model.signers]
            _log.info("signers set", model_id=model.model_id, keys=keys, peer=call.context.peer())
        return models.model_message(model).SerializeToString()

    async def _apply_retention(self, request: models.ApplyRetentionRequest, call: Call) -> bytes:
        if request.model_id:
            call.about(model_id=request.model_id)
        trial = models.trial_of(request)
        models.check_apply_retention(request)
        only = frozenset(request.version_numbers) or None
        if not request.validate_only:
            self._retention.require_writable(request.model_id)
        report = _Report(self._reply_max_bytes)
        async with aclosing(self._retention.plan(request.model_id, trial, only)) as applications:
            async for application in applications:
                application.check_revision(request.expected_revision)
                if request.validate_only:
                    await report.try_out(application)
                else:
                    await report.apply(application, self._retention, call.context.peer())
                await report.add_kept(application)
        return report.reply().SerializeToString()


class _Report:
    """What the rules of some models did or would do: as many decisions as fit a reply, and the counts of all."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._deleted = _Decisions(max_bytes)
        self._kept = _Decisions(max_bytes)
        self._deleted_count = self._kept_count = self._freed_bytes = 0

    async def try_out(self, application: Application) -> None:
        """Add what rules would delete."""
        self._deleted_count += len(application.doomed)
        self._freed_bytes += sum(verdict.size_bytes for verdict in application.doomed)
        await self._deleted.add_all(application.decisions(application.doomed))

    async def apply(self, application: Application, retention: RetentionWork, peer: str) -> None:
        """Delete what rules do not keep, and add it."""
        async with aclosing(retention.delete(application, peer=peer)) as deletions:
            async for decision in deletions:
                self._deleted.add(decision)
        self._deleted_count += application.deleted
        self._freed_bytes += application.freed_bytes

    async def add_kept(self, application: Application) -> None:
        """Add what rules keep."""
        kept = application.kept
        self._kept_count += len(kept)
        await self._kept.add_all(application.decisions(kept))

    def reply(self) -> models.ApplyRetentionReply:
        """Return the reply."""
        reply = models.ApplyRetentionReply(
            freed_bytes=self._freed_bytes, deleted_versions=self._deleted_count, kept_versions=self._kept_count
        )
        size_bytes = 0
        for message in (*self._deleted.messages, *self._kept.messages):
            size_bytes += message.ByteSize()
            if size_bytes > self._max_bytes:
                break
            reply.decisions.append(message)
        return reply


class _Decisions:
    """As many decisions as fit a reply."""

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes
        self.messages: list[models.DecisionMessage] = []

    def add(self, decision: Decision) -> bool:
        """Add a decision if it fits; return whether there is space for more."""
        if self._left_bytes > 0:
            message = models.decision_message(decision)
            self._left_bytes -= message.ByteSize()
            self.messages.append(message)
        return self._left_bytes > 0

    async def add_all(self, decisions: AsyncGenerator[Decision, None]) -> None:
        """Add decisions until no more fit."""
        async with aclosing(decisions):
            async for decision in decisions:
                if not self.add(decision):
                    break
