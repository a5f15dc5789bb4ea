"""What a server does because others have the same catalog: their decisions hold here, and their news are news here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.registry.consumers import Consumers
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.server.handing_over import HandingOver
from cogment_model_registry.server.replicas import Replicas
from cogment_model_registry.system.tasks import TaskSet, end
from cogment_model_registry.wire import consumers as wire

if TYPE_CHECKING:
    from cogment_model_registry.server.shared_backend import SharedStorage

_log = structlog.stdlib.get_logger(__name__)

_AGAIN_SECONDS = 1.0
"""How long to wait for a catalog that does not answer."""


class Sharing:
    """Joins what several servers share to the rules of this one.

    Args:
        shared: What they share.
        registry: The registry of this server.
        models: Its models.
        consumers: The consumers that report to it.
    """

    def __init__(self, shared: "SharedStorage", registry: Registry, models: Models, consumers: Consumers) -> None:
        self._shared = shared
        self._models = models
        self._consumers = consumers
        self._changed: dict[tuple[str, str], Consumer] = {}  # of which the other servers do not know yet
        self._has_changed = asyncio.Event()
        self._applying = TaskSet()
        self._handing_over = HandingOver(shared)
        self._replicas = Replicas(shared)
        if shared.replicas > 1:
            registry.on_published(self._replicas.keep)

    @asynccontextmanager
    async def joined(self, endpoint: str) -> AsyncIterator[None]:
        """Return a context manager in which this server is one of several.

        Args:
            endpoint: Where the others reach this one.

        Raises:
            UnavailableError: The catalog does not answer.
        """
        catalog, membership = self._shared.catalog, self._shared.membership
        catalog.on_model_changed(self._apply_share)
        catalog.on_received(self._receive)
        membership.on_new_lease = self._consumers.share_all
        sending = asyncio.create_task(self._send_all())
        try:
            with self._consumers.listening(self._note_change):
                await membership.join(endpoint)
                try:
                    yield
                finally:
                    await self._handing_over.aclose()
                    await self._replicas.aclose()
                    await membership.leave()
        finally:
            await end(sending)
            await self._applying.cancel()

    async def hand_over(self, within_seconds: float) -> None:
        """Let the other servers take the transient versions that this one alone has, before it stops."""
        await self._handing_over.hand_over(within_seconds)

    # Consumers.

    def _note_change(self, consumer: Consumer) -> None:
        self._changed[consumer.model_id, consumer.consumer_id] = consumer
        self._has_changed.set()

    async def _send_all(self) -> None:
        """Let the other servers know what consumers of this one report, for those who watch consumers there."""
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            changed, self._changed = self._changed, {}
            texts = [wire.consumer_text(consumer) for consumer in changed.values()]
            try:
                await self._shared.catalog.send(texts)
            except ModelRegistryError:
                self._changed = {**changed, **self._changed}
                self._has_changed.set()
                await asyncio.sleep(_AGAIN_SECONDS)

    def _receive(self, text: str) -> None:
        if self._handing_over.receive(text) or self._replicas.receive(text):
            return
        consumer = wire.consumer_in(text)
        if consumer is not None:
            self._consumers.note_elsewhere(consumer)

    # Models.

    def is_leader(self) -> bool:
        """Return whether this server does what one of them does."""
        return self._shared.membership.is_leader

    def _apply_share(self, model_id: str) -> None:
        """Set the share of memory that another server has recorded for a model."""

        async def apply() -> None:
            try:
                await self._models.apply_share(model_id)
            except ModelRegistryError as error:
                _log.warning("share of a model not applied", model_id=model_id, reason=error.message)

        self._applying.begin(apply())
