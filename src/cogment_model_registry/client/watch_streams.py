"""Streams of Watch, the call that sends versions with their bytes; servers of the original do not have it."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from cogment_model_registry.client.backends import Replies
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.streams import streaming
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import NotFoundError, UnavailableError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import CaughtUp, Event, Gone
from cogment_model_registry.records.versions import VersionInfo, digest_text
from cogment_model_registry.wire import watching as wire
from cogment_model_registry.wire.lifecycle import SERVICE_NAME

INLINE_MAX_BYTES = 4 * 1024 * 1024
"""The size up to which versions come with the news; larger ones are fetched, over several connections if need be."""

NO_VERSION = "version_number = 0"
"""A filter that accepts no version."""

_APART_BYTES = 64 * 1024
"""From this size on bytes are hashed on a thread."""


@dataclass(frozen=True, slots=True)
class Received:
    """A version that was received.

    Attributes:
        version: The version.
        data: Its bytes, if they came along and match its hash.
    """

    version: VersionInfo
    data: bytes | None = None


@dataclass(slots=True)
class Wishes:
    """What is asked of a stream; the stream updates it.

    Attributes:
        every: Whether every version is wanted, or the newest.
        accepted: A filter of versions.
        token: Where to go on.
        inline_max_bytes: The size up to which versions come with their bytes.
        known_hash: The hash of bytes that are known.
        ends_with_model: Whether the stream is about one model, and ends with it.
    """

    every: bool = False
    accepted: str = ""
    token: str = ""
    inline_max_bytes: int = 0
    known_hash: str = ""
    ends_with_model: bool = True

    def has_bytes(self, version: Version) -> bool:
        """Return whether bytes follow a version."""
        return version.data_size_bytes <= self.inline_max_bytes > 0 and version.data_hash != self.known_hash


async def stream(
    calls: Calls, model_ids: Sequence[str], subject: Subject, wishes: Wishes, seconds: float
) -> AsyncGenerator[Event | Received, None]:
    """Yield the news of some models from one stream, until it has lasted for its time, or the server ended it.

    Versions are `Received`, with the bytes that came along, except in a stream of every version without bytes.

    Once the next event is asked for, the wishes have the token of the last one. When a stream ends within the bytes of
    a version, they ask for none any more: the next one might not be long enough for them either.

    Args:
        calls: Makes the call.
        model_ids: The models; none for all.
        subject: What it is about.
        wishes: What is asked for.
        seconds: How long it lasts at most.

    Raises:
        NotFoundError: The model does not exist, or was deleted.
        WrongServerError: The server does not have the call.
    """
    asked = replace(wishes)
    request = wire.watch_request(
        model_ids,
        asked.token,
        every=asked.every,
        inline_max_bytes=asked.inline_max_bytes,
        known_hash=asked.known_hash,
        accepted=asked.accepted,
        in_one_reply=True,
    )
    exists = bool(asked.token)
    async with streaming(calls, method_path("Watch", SERVICE_NAME), request, subject, seconds) as replies:
        while (message := await replies.read()) is not None:
            reply = wire.decode_reply(message)
            if isinstance(reply, wire.Bytes):
                continue  # nobody asked for them
            event = reply.event
            if event is None or isinstance(event, Consumer):
                continue  # one of a newer release, or one that nobody asked for
            exists = exists or isinstance(event, ModelSummary)
            if asked.ends_with_model and (_is_end(event) or (isinstance(event, CaughtUp) and not exists)):
                raise NotFoundError.model(model_ids[0])
            if isinstance(event, Version) and (asked.inline_max_bytes or not asked.every):
                wishes.inline_max_bytes = 0  # unless the bytes arrive in the time of the stream
                data = await _received(calls, event, reply.data, replies) if asked.has_bytes(event) else None
                wishes.inline_max_bytes = asked.inline_max_bytes
                yield Received(event.info, data)
            else:
                yield event
            wishes.token = reply.token


async def consumers_of(
    calls: Calls, model_id: str, subject: Subject, seconds: float
) -> AsyncGenerator[Consumer | None, None]:
    """Yield the consumers of a model, then None, and then what they report.

    Args:
        calls: Makes the call.
        model_id: The model.
        subject: What it is about.
        seconds: How long it lasts at most.

    Raises:
        WrongServerError: The server does not have the call.
    """
    request = wire.watch_request([model_id], "", accepted=NO_VERSION, consumers=True)
    async with streaming(calls, method_path("Watch", SERVICE_NAME), request, subject, seconds) as replies:
        while (message := await replies.read()) is not None:
            reply = wire.decode_reply(message)
            event = reply.event if isinstance(reply, wire.Reply) else None
            if isinstance(event, Consumer):
                yield event
            elif isinstance(event, CaughtUp):
                yield None


def _is_end(event: Event) -> bool:
    """Return whether an event says that the model was deleted."""
    return isinstance(event, Gone) and event.version_number is None


async def _received(calls: Calls, version: Version, data: memoryview | None, replies: Replies) -> bytes | None:
    """Return the bytes of a version; None if they are not those that were published.

    Args:
        calls: Made the call.
        version: The version.
        data: Its bytes if they came with it.
        replies: The stream, which has them otherwise.
    """
    parts, is_last = ([], False) if data is None else ([data], True)
    while not is_last:
        message = await replies.read()
        if message is None:
            raise UnavailableError("the server ended the stream within a version", model_id=version.model_id)
        reply = wire.decode_reply(message)
        if not isinstance(reply, wire.Bytes):
            return None
        parts.append(reply.data)
        is_last = reply.is_last
    received = b"".join(parts)

    def is_intact() -> bool:
        return len(received) == version.data_size_bytes and (
            digest_text(hashlib.sha256(received).digest()) == version.data_hash
        )

    intact = await calls.backend.wait(submit(is_intact)) if len(received) >= _APART_BYTES else is_intact()
    return received if intact else None
