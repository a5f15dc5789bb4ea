"""The rules of what people decide about models: tags, rules of retention, shares of memory, and signers."""

from collections.abc import Sequence
from dataclasses import replace

from cogment_model_registry.records.lifecycle import ModelSummary
from cogment_model_registry.records.retention import ModelChange, check_share
from cogment_model_registry.records.signatures import check_signers
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.registry.contracts import Catalog, TransientStore
from cogment_model_registry.registry.filters import EVERYTHING, Filter, matches
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.registry.retention_rules import Rules
from cogment_model_registry.registry.signing_rules import check_can_verify
from cogment_model_registry.system.tasks import run_to_end

_PAGE = 256
"""How many models are looked at at once."""


class Models:
    """What people find out and decide about models.

    Args:
        registry: The registry, whose limits hold.
        catalog: What exists.
        transient: The store of which models have shares.
    """

    def __init__(self, registry: Registry, catalog: Catalog, transient: TransientStore) -> None:
        self._registry = registry
        self._catalog = catalog
        self._transient = transient

    async def apply_shares(self) -> None:
        """Set the shares of all models in the transient store: after a start, and when models came otherwise."""
        for model_id in await self._catalog.list_models_with_shares():
            await self.apply_share(model_id)

    async def apply_share(self, model_id: str) -> None:
        """Set the share of a model in the transient store, if the model exists."""
        # As it is now, since somebody may have changed it in the meantime.
        for model in await self._catalog.summarize([ModelInfo(model_id)]):
            await self._transient.set_share(model.model_id, model.share)

    async def find(self, accepted: Filter, after: str, limit: int) -> list[ModelSummary]:
        """Return up to `limit` models that a filter accepts, ordered by id, whose ids come after `after`."""
        found: list[ModelSummary] = []
        size = limit if accepted == EVERYTHING else max(limit, _PAGE)
        while len(found) < limit:
            infos = await self._catalog.list_models_after(after, size)
            if not infos:
                break
            after = infos[-1].model_id
            found += [model for model in await self._catalog.summarize(infos) if matches(accepted, model)]
        return found[:limit]

    async def get(self, model_ids: Sequence[str]) -> list[ModelSummary]:
        """Return the models with these ids, in the order given.

        Raises:
            InvalidError: An id breaks a rule, or the list is too long.
            NotFoundError: One does not exist.
        """
        return await self._catalog.summarize(await self._registry.get_models(model_ids))

    async def update(self, model_id: str, change: ModelChange) -> ModelSummary:
        """Change tags, rules, the share and the signers of a model; durable on return.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: The id or the change breaks a rule.
            NotFoundError: It does not exist.
            PreconditionError: The registry is read-only, or signatures cannot be checked here.
            TooLargeError: No space is left.
        """
        self._registry.check_model_id(model_id)
        self._registry.require_writable(model_id)
        if change.signers:
            check_signers(change.signers, model_id)
            check_can_verify(model_id)
        if change.retention is not None:
            Rules(change.retention, model_id)
        if change.share is not None:
            check_share(change.share, model_id)
        ref = await self._catalog.find(model_id)
        change = replace(change, max_bytes=self._registry.limits.user_data_max_bytes)

        async def update() -> ModelSummary:
            async with self._catalog.changing_model(ref, change) as model:
                if change.share is not None:
                    await self._transient.set_share(model_id, change.share)
                return model

        return await run_to_end(update())
