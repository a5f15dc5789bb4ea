"""The consumers that report to the other servers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.server.peers import Peers
from cogment_model_registry.wire import consumers as wire
from cogment_model_registry.wire.lifecycle import PAGE_MAX_ITEMS, build_token


class PeerConsumers:
    """Asks the other servers for their consumers.

    Args:
        peers: The connections to them.
        endpoints: Returns where they are.
    """

    def __init__(self, peers: Peers, endpoints: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._peers = peers
        self._endpoints = endpoints

    async def find(self, model_id: str | None, after: tuple[str, str], limit: int | None) -> Sequence[Consumer]:
        """Return consumers of a model, or of all, that come after a model and an id, ordered by these.

        Args:
            model_id: The model; None for all.
            after: The last model and id that are not wanted.
            limit: The most to return of each server; None for all.

        Raises:
            UnavailableError: A server does not answer, so that it is not known what reports to it.
        """
        found = await asyncio.gather(
            *(self._find_at(endpoint, model_id, after, limit) for endpoint in await self._endpoints())
        )
        return [consumer for consumers in found for consumer in consumers]

    async def _find_at(
        self, endpoint: str, model_id: str | None, after: tuple[str, str], limit: int | None
    ) -> Sequence[Consumer]:
        found: list[Consumer] = []
        token = build_token((model_id or "", ""), after) if after != ("", "") else ""
        while limit is None or len(found) < limit:
            size = PAGE_MAX_ITEMS if limit is None else min(PAGE_MAX_ITEMS, limit - len(found))
            request = wire.ListConsumersRequest(model_id=model_id or "", page_size=size, page_token=token)
            try:
                reply = wire.ListConsumersReply.FromString(
                    await self._peers.ask(endpoint, "ListConsumers", request.SerializeToString())
                )
            except NotFoundError:
                break  # the model has just been deleted
            found += map(wire.consumer_from_message, reply.consumers)
            token = reply.next_page_token
            if not token:
                break
        return found
