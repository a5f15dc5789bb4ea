"""The call Watch of ModelLifecycle: sends events, with the bytes of versions."""

import dataclasses
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import CaughtUp, Event, Gap
from cogment_model_registry.registry.consumers import Consumers
from cogment_model_registry.registry.filters import parse_filter
from cogment_model_registry.registry.positions import POSITIONS_MAX
from cogment_model_registry.registry.registry import Registry, VersionReader
from cogment_model_registry.registry.watching import Question, Watches
from cogment_model_registry.server.consumer_news import with_consumers
from cogment_model_registry.server.follower_groups import Follower, FollowerGroups, Prepared
from cogment_model_registry.server.shared_bytes import SharedBytes
from cogment_model_registry.server.transfers import ReplySender, Transfers
from cogment_model_registry.serving.calls import Call
from cogment_model_registry.wire import watching as wire
from cogment_model_registry.wire.frames import build_watch_data

_ENCODED_MAX_ITEMS = 64
"""How many replies with versions stay encoded, for other watchers."""


class WatchCalls:
    """Answers Watch.

    Args:
        rules: What answers.
        registry: Where the bytes come from.
        transfers: The limits of transfers.
        consumers: Who reports which version it runs.
    """

    def __init__(self, rules: Watches, registry: Registry, transfers: Transfers, consumers: Consumers) -> None:
        self._rules = rules
        self._consumers = consumers
        self._registry = registry
        self._transfers = transfers
        self._shared = SharedBytes(registry)
        self._groups = FollowerGroups()
        self._encoded: OrderedDict[tuple[int, str], tuple[Event, bytes]] = OrderedDict()

    async def watch(self, request: wire.WatchRequest, call: Call) -> None:
        """Answer a call."""
        call.about(model_ids=[*request.model_ids], mode=request.mode)
        every = wire.is_every(request)
        accepted = parse_filter(request.filter)
        question = Question([*request.model_ids], every, accepted, request.resume_token, call.caller.may_read)
        with self._transfers.replying(call) as sender:
            # A group can neither send every version to a slow watcher nor compare positions in very many models.
            if every or request.consumers or not 0 < len(question.model_ids) <= POSITIONS_MAX:
                await self._watch_alone(request, question, sender, call)
            else:
                with self._rules.counted():
                    await self._follow(request, question, sender, call)

    async def drained(self) -> None:
        """Wait until no task of a group of followers is left."""
        await self._groups.drained()

    async def _watch_alone(
        self, request: wire.WatchRequest, question: Question, sender: ReplySender, call: Call
    ) -> None:
        async with (
            aclosing(self._rules.watch(question)) as events,
            aclosing(self._with_consumers(request, events, question.may_read)) as all_events,
        ):
            async for token, event in all_events:
                if isinstance(event, Consumer):
                    await sender.send(wire.with_token(wire.encode_consumer(event), token))
                else:
                    await self._send(request, event, token, sender, call)

    async def _follow(self, request: wire.WatchRequest, question: Question, sender: ReplySender, call: Call) -> None:
        """Send a follower what exists, and then what is new, together with others that have the same position."""
        kind = (*question.model_ids,), request.filter, request.inline_max_bytes, request.in_one_reply
        follower = Follower(sender, request.known_hash, question.token)

        async def prepare(token: str, event: Event) -> Prepared:
            return await self._prepare(request, event, token)

        try:
            while True:
                async with AsyncExitStack() as stack:
                    watch = await stack.enter_async_context(
                        self._rules.open(dataclasses.replace(question, token=follower.token))
                    )
                    while (found := await watch.next(wait=False)) is not None:
                        follower.token, event = found
                        if not isinstance(event, CaughtUp):
                            await self._send(request, event, follower.token, sender, call)
                        elif not follower.is_caught_up:  # it goes on alone for the first time
                            follower.is_caught_up = True
                            await self._send(request, event, follower.token, sender, call)
                    self._groups.join(follower, kind, watch, prepare)
                    stack.pop_all()
                while (step := await follower.next_step()) is not None:
                    await self._send(request, step.event, step.token, sender, call)
        finally:
            if follower.group is not None:
                follower.group.leave(follower)

    async def _prepare(self, request: wire.WatchRequest, event: Event, token: str) -> Prepared:
        """Return the messages that followers share."""
        plain = self._encode(event, token)
        if not isinstance(event, Version) or not _may_have_bytes(request, event):
            return Prepared(plain, plain)
        chunk_bytes = self._transfers.small_chunk_bytes
        if not request.in_one_reply or event.data_size_bytes > chunk_bytes:
            return Prepared(plain)
        try:
            shared = await self._shared.get(event, chunk_bytes, plain)
        except (DataLossError, NotFoundError):
            shared = None  # each follower handles it for itself
        return Prepared(plain, shared.messages[0], shared) if shared is not None else Prepared(plain)

    async def _send(
        self, request: wire.WatchRequest, event: Event, token: str, sender: ReplySender, call: Call
    ) -> None:
        """Send an event, with the bytes if it is a version that has them."""
        if isinstance(event, Version) and _has_bytes(request, event):
            await self._send_with_bytes(request, event, token, sender, call)
        else:
            await sender.send(self._encode(event, token))

    def _with_consumers(
        self,
        request: wire.WatchRequest,
        events: AsyncGenerator[tuple[str, Event], None],
        may_read: Callable[[str], bool],
    ) -> AsyncGenerator[tuple[str, Event | Consumer], None] | AsyncGenerator[tuple[str, Event], None]:
        if not request.consumers:
            return events
        model_ids = {*request.model_ids}

        def is_wanted(model_id: str) -> bool:
            return model_id in model_ids if model_ids else may_read(model_id)

        return with_consumers(events, self._consumers, is_wanted, request.resume_token)

    async def _send_with_bytes(
        self, request: wire.WatchRequest, version: Version, token: str, sender: ReplySender, call: Call
    ) -> None:
        """Send a version and its bytes; if it has just disappeared, a gap, or nothing where the newest is enough."""
        reader = None
        first = self._encode(version, token)
        with self._transfers.window(call, version.data_size_bytes) as chunk_bytes:
            is_one = request.in_one_reply and version.data_size_bytes <= chunk_bytes
            try:
                shared = await self._shared.get(version, chunk_bytes, first if is_one else b"")
                if shared is None:
                    reader = await self._registry.open_same_version(version)
            except (DataLossError, NotFoundError):
                if request.mode == wire.MODE_ALL:
                    gap = Gap(version.model_id, version.number, version.number)
                    await sender.send(wire.with_token(wire.encode_event(gap), token))
                return
            if reader is not None:
                await _stream(first, reader, sender, chunk_bytes)
            elif shared is not None:
                if not is_one:
                    await sender.send(first)
                for message in shared.messages:
                    await sender.send(message)

    def _encode(self, event: Event, token: str) -> bytes:
        """Return a reply; that of a version is kept for other watchers with the same position."""
        if not isinstance(event, Version):
            return wire.with_token(wire.encode_event(event), token)
        known = self._encoded.get((id(event), token))
        if known is not None:
            return known[1]
        encoded = wire.with_token(wire.encode_event(event), token)
        self._encoded[id(event), token] = event, encoded
        if len(self._encoded) > _ENCODED_MAX_ITEMS:
            self._encoded.popitem(last=False)
        return encoded


def _has_bytes(request: wire.WatchRequest, version: Version) -> bool:
    """Return whether the bytes of a version follow it."""
    return _may_have_bytes(request, version) and version.data_hash != request.known_hash


def _may_have_bytes(request: wire.WatchRequest, version: Version) -> bool:
    """Return whether the bytes of a version follow it, unless the client has them."""
    return version.data_size_bytes <= request.inline_max_bytes > 0


async def _stream(first: bytes, opened: VersionReader, sender: ReplySender, chunk_bytes: int) -> None:
    """Send a version with bytes that this watcher reads by itself."""
    async with opened as reader, aclosing(reader.chunks(chunk_bytes, 2 * chunk_bytes)) as chunks:
        missing_bytes = reader.info.data_size_bytes
        await sender.send(first)
        async for parts in chunks:
            missing_bytes -= sum(map(len, parts))
            await sender.send(build_watch_data(parts, is_last=not missing_bytes))
