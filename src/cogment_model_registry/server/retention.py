"""Retention on a server: on request and by itself, one version after the other, each with a line in the log."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing

import structlog

from cogment_model_registry.errors import ModelRegistryError, NotFoundError
from cogment_model_registry.records.lifecycle import Decision, ModelSummary
from cogment_model_registry.records.retention import RetentionRule
from cogment_model_registry.registry import journals
from cogment_model_registry.registry.filters import EVERYTHING
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.retention import Application, Mark, Retention

_log = structlog.stdlib.get_logger(__name__)

_PAGE = 256
"""How many models are looked at at once."""


class RetentionWork:
    """Applies the rules of models.

    Args:
        retention: Decides and deletes.
        models: Knows which models have rules.
        observe: Called after each deletion.
    """

    def __init__(self, retention: Retention, models: Models, observe: Callable[[Decision], None]) -> None:
        self._retention = retention
        self._models = models
        self._observe = observe

    async def plan(
        self, model_id: str, trial: Sequence[RetentionRule] | None, only: Collection[int] | None = None
    ) -> AsyncGenerator[Application, None]:
        """Yield what rules say about a model, or about each model that has rules if the id is empty.

        Args:
            model_id: The model; empty for all.
            trial: Rules to try instead of those of the models; then models without rules count too.
            only: The numbers of the only versions of the model that may be deleted; None for all.

        Raises:
            InvalidError: The id or a rule breaks a rule.
            NotFoundError: The model does not exist.
        """
        if model_id:
            yield await self._retention.plan(model_id, trial, only)
            return
        async for model in self._all_models():
            if model.retention or trial is not None:
                try:
                    application = await self._retention.plan(model.model_id, trial)
                except NotFoundError:
                    continue
                yield application

    async def _all_models(self) -> AsyncIterator[ModelSummary]:
        after = ""
        while page := await self._models.find(EVERYTHING, after, _PAGE):
            for model in page:
                yield model
            after = page[-1].model_id

    async def delete(self, application: Application, **fields: object) -> AsyncGenerator[Decision, None]:
        """Delete what rules do not keep, and yield each version; see `Application.delete`.

        Args:
            application: The rules, and what they say.
            **fields: What else the log says of each deletion.
        """
        journals.require_writable()
        async with aclosing(application.delete()) as deletions:
            async for decision in deletions:
                info = decision.version.info
                self._observe(decision)
                _log.info(
                    "version deleted by retention",
                    model_id=info.model_id,
                    number=info.number,
                    archived=info.archived,
                    size_bytes=info.data_size_bytes,
                    reason=decision.reason,
                    **fields,
                )
                await journals.written()  # before the next one: there may be very many
                yield decision

    def require_writable(self, model_id: str) -> None:
        """Refuse to delete where the registry is read-only."""
        self._retention.require_writable(model_id)

    async def run(self, every_seconds: float, is_due: Callable[[], bool] = lambda: True) -> None:
        """Apply the rules of all models from time to time, until it is cancelled.

        After each deletion it rests for as long as that took, so that it never takes more than half of the disk. A
        model that has not changed since its rules had nothing to delete is not looked at again.

        Args:
            every_seconds: How long to wait before each time.
            is_due: Says each time whether it is for this server to apply them.
        """
        marks: dict[str, Mark] = {}
        while True:
            await asyncio.sleep(every_seconds)
            if is_due():
                try:
                    marks = await self._apply_all(marks)
                except ModelRegistryError as error:
                    _log.warning("retention failed", reason=error.message)

    async def _apply_all(self, marks: Mapping[str, Mark]) -> dict[str, Mark]:
        """Apply the rules of the models that have changed since their marks; return the marks of now."""
        now_marks: dict[str, Mark] = {}
        async for model in self._all_models():
            mark = marks.get(model.model_id)
            if model.retention and (mark is None or await self._retention.has_changed(mark)):
                mark = await self._apply_quietly(model.model_id)
            if model.retention and mark is not None:
                now_marks[model.model_id] = mark
        return now_marks

    async def _apply_quietly(self, model_id: str) -> Mark | None:
        """Apply the rules of a model; return the state in which they have nothing to delete, if it is reached."""
        now = asyncio.get_running_loop().time
        try:
            application = await self._retention.plan(model_id)
            begun = now()
            async with aclosing(self.delete(application)) as deletions:
                async for _ in deletions:
                    await asyncio.sleep(now() - begun)
                    begun = now()
        except NotFoundError:
            return None
        except ModelRegistryError as error:
            _log.warning("retention failed", model_id=model_id, reason=error.message)
            return None
        return application.mark
