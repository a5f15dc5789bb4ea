"""Conversion between the events of a watch and the messages of Watch."""

from collections.abc import Sequence
from dataclasses import dataclass

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import CaughtUp, Event, Gap, Gone
from cogment_model_registry.wire import convert
from cogment_model_registry.wire._generated.cogment_model_registry.v1 import lifecycle_pb2
from cogment_model_registry.wire.consumers import consumer_from_message, consumer_message
from cogment_model_registry.wire.frames import embed, split_version_data, split_watch_data
from cogment_model_registry.wire.lifecycle import version_from_message, version_message
from cogment_model_registry.wire.models import model_from_message, model_message

WatchRequest = lifecycle_pb2.WatchRequest
WatchReply = lifecycle_pb2.WatchReply
MODE_ALL = lifecycle_pb2.WatchRequest.MODE_ALL

_TOKEN_FIELD = WatchReply.RESUME_TOKEN_FIELD_NUMBER
_VERSION_FIELD = WatchReply.VERSION_FIELD_NUMBER


def is_every(request: lifecycle_pb2.WatchRequest) -> bool:
    """Return whether a request wants every version.

    Raises:
        InvalidError: Its mode is unknown.
    """
    if request.mode not in lifecycle_pb2.WatchRequest.Mode.values():
        raise InvalidError(f"mode {request.mode} is unknown; it must be MODE_LATEST or MODE_ALL")
    return request.mode == MODE_ALL


def encode_event(event: Event) -> bytes:
    """Return a reply without its token; see `with_token`."""
    if isinstance(event, Version):
        return embed(_VERSION_FIELD, version_message(event).SerializeToString())
    reply = WatchReply()
    if isinstance(event, ModelSummary):
        reply.model.CopyFrom(model_message(event))
    elif isinstance(event, Gone):
        reply.gone.version.model_id = event.model_id
        if event.version_number is not None:
            reply.gone.version.version_number = event.version_number
        reply.gone.reason = event.reason
    elif isinstance(event, Gap):
        reply.gap.model_id = event.model_id
        reply.gap.first_number, reply.gap.last_number = event.first_number, event.last_number
    else:
        reply.caught_up = True
    return reply.SerializeToString()


def encode_consumer(consumer: Consumer) -> bytes:
    """Return a reply with what a consumer reports, without its token."""
    return WatchReply(consumer=consumer_message(consumer)).SerializeToString()


def with_token(encoded: bytes, token: str) -> bytes:
    """Return a reply with the token that resumes after it."""
    return encoded + embed(_TOKEN_FIELD, token.encode())


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes of the version before.

    Attributes:
        data: The bytes.
        is_last: Whether no more follow.
    """

    data: memoryview
    is_last: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with an event.

    Attributes:
        token: Resumes after it.
        event: The event, or the report of a consumer; None for an event of a newer release.
        data: All bytes of the version, if they came in the same message.
    """

    token: str
    event: Event | Consumer | None
    data: memoryview | None = None


def decode_reply(message: bytes) -> Reply | Bytes:
    """Return a reply, or bytes of the version before.

    Raises:
        DecodeError: The bytes are malformed.
    """
    chunk = split_watch_data(message)
    if chunk is not None:
        return Bytes(*chunk)
    data, rest = split_version_data(message) or (None, message)
    reply = WatchReply.FromString(rest)
    if reply.HasField("version_data"):
        data = memoryview(reply.version_data)
    if reply.WhichOneof("event") == "data":
        return Bytes(memoryview(reply.data.data_chunk), reply.data.last)
    return Reply(reply.resume_token, _event(reply), data)


def _event(reply: lifecycle_pb2.WatchReply) -> Event | Consumer | None:
    kind = reply.WhichOneof("event")
    if kind == "version":
        return version_from_message(reply.version)
    if kind == "consumer":
        return consumer_from_message(reply.consumer)
    if kind == "model":
        return model_from_message(reply.model)
    if kind == "gap":
        return Gap(reply.gap.model_id, reply.gap.first_number, reply.gap.last_number)
    if kind == "gone":
        ref = reply.gone.version
        number = ref.version_number if ref.WhichOneof("version") == "version_number" else None
        return Gone(ref.model_id, number, reply.gone.reason)
    return CaughtUp() if kind == "caught_up" else None


def watch_request(
    model_ids: Sequence[str],
    token: str,
    *,
    every: bool = False,
    inline_max_bytes: int = 0,
    known_hash: str = "",
    accepted: str = "",
    in_one_reply: bool = False,
    consumers: bool = False,
) -> bytes:
    """Return the request to watch some models, or all if none is named."""
    return WatchRequest(
        model_ids=model_ids,
        mode=MODE_ALL if every else lifecycle_pb2.WatchRequest.MODE_LATEST,
        resume_token=token,
        inline_max_bytes=inline_max_bytes,
        known_hash=known_hash,
        filter=accepted,
        in_one_reply=in_one_reply,
        consumers=consumers,
    ).SerializeToString()


DecodeError = convert.DecodeError
