"""A watcher that records exactly what a server sends, and can resume."""

import asyncio
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import CaughtUp, Event, Gap, Gone
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import watching as wire
from tests.client import Client
from tests.waiting import PATIENCE_SECONDS


class Follower:
    """A Watch call.

    Args:
        client: Makes the call.
        model_ids: The models.
        every: Whether to watch every version.
        token: The token to resume from.
        inline: The size up to which versions are sent with their bytes.
        fields: Other fields of the request.

    Attributes:
        token: The token for the next follower.
        data: The bytes of the last version that was sent with bytes.
        came_in_one: Whether the last event and its bytes were in one reply.
    """

    def __init__(
        self, client: Client, *model_ids: str, every: bool = False, token: str = "", inline: int = 0, **fields: Any
    ) -> None:
        mode = "MODE_ALL" if every else "MODE_LATEST"
        request = wire.WatchRequest(
            model_ids=model_ids, mode=mode, resume_token=token, inline_max_bytes=inline, **fields
        )
        self.token = token
        self.data: bytes | None = None
        self.came_in_one = False
        self._inline, self._known_hash = inline, request.known_hash
        self.call: Any = Client(client.channel, lifecycle.SERVICE_NAME).streamed("Watch", request)

    async def next(self) -> Event:
        """Return the next event; the bytes of a version are then in `data`."""
        reply = await self._read()
        assert not isinstance(reply, wire.Bytes), "bytes without a version"
        event = reply.event
        assert event is not None
        assert not isinstance(event, Consumer)
        self.came_in_one = reply.data is not None
        if reply.data is not None:
            assert isinstance(event, Version)
            assert self._has_bytes(event)
            self.data = bytes(reply.data)
        elif isinstance(event, Version) and self._has_bytes(event):
            self.data = await self._read_bytes()
        self.token = reply.token
        return event

    def _has_bytes(self, version: Version) -> bool:
        return 0 < self._inline >= version.data_size_bytes and version.data_hash != self._known_hash

    async def _read(self) -> wire.Reply | wire.Bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = await self.call.read()
        assert message is not grpc.aio.EOF, await self.call.code()
        return wire.decode_reply(message)

    async def _read_bytes(self) -> bytes:
        received, is_last = b"", False
        while not is_last:
            reply = await self._read()
            assert isinstance(reply, wire.Bytes)
            received, is_last = received + reply.data, reply.is_last
        return received

    async def until_caught_up(self) -> list[str]:
        """Return the events up to `caught_up`, as texts of `text_of`."""
        texts: list[str] = []
        while not isinstance(event := await self.next(), CaughtUp):
            texts.append(text_of(event))
        return texts

    async def texts(self, count: int) -> list[str]:
        """Return a number of events as texts."""
        return [text_of(await self.next()) for _ in range(count)]

    async def cancel(self) -> None:
        """End the call."""
        self.call.cancel()
        assert await self.call.code() == grpc.StatusCode.CANCELLED


def text_of(event: Event) -> str:
    """Return an event as a short text."""
    if isinstance(event, Version):
        return f"{event.model_id} {event.number}"
    if isinstance(event, ModelSummary):
        aliases = "".join(f" {alias.name}={alias.version_number}" for alias in event.aliases)
        return f"model {event.model_id}{aliases}"
    if isinstance(event, Gap):
        return f"{event.model_id} gap {event.first_number}-{event.last_number}"
    if isinstance(event, Gone):
        return f"{event.model_id} {event.version_number or 'all'} {event.reason}"
    return "caught up"
