"""Between the records of the registry and the messages of the API, and between its errors and gRPC's statuses."""

from collections.abc import Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from cogment_model_registry.errors import (
    DataLossError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)
from cogment_model_registry.records import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.wire import messages
from cogment_model_registry.wire.frames import embed, split_body

STATUS_BY_ERROR: Mapping[type, grpc.StatusCode] = {
    InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DataLossError: grpc.StatusCode.DATA_LOSS,
    TimedOutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: ModelRegistryError) -> grpc.StatusCode:
    """Return the status that stands for an error; that of its nearest kind in the table."""
    return next((STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_BY_ERROR), _OTHERWISE)


_OTHERWISE = grpc.StatusCode.INTERNAL

_AnyMessage = TypeVar("_AnyMessage", bound=Message)


def decode(message_type: type[_AnyMessage], data: bytes) -> _AnyMessage:
    """Return the message that `data` encodes.

    Raises:
        InvalidError: It encodes none.
    """
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise InvalidError(f"the request is not a {message_type.DESCRIPTOR.full_name}") from None


def decode_upload_chunk(data: bytes) -> VersionHeader | memoryview:
    """Return what a `CreateVersionRequestChunk` carries: the header of an upload, or a view of some of its bytes.

    Raises:
        InvalidError: It carries neither, or a header without `version_info`.
    """
    body = split_body(data)
    if body is not None:
        return body
    chunk = decode(messages.CreateVersionRequestChunk, data)
    kind = chunk.WhichOneof("msg")
    if kind == "body":
        return memoryview(chunk.body.data_chunk)
    if kind is None:
        raise InvalidError("a chunk of CreateVersion must be a header or a body; this one is neither")
    if not chunk.header.HasField("version_info"):
        raise InvalidError("the header of CreateVersion must have a version_info")
    info = chunk.header.version_info
    return VersionHeader(
        model_id=info.model_id,
        archived=info.archived,
        data_size_bytes=info.data_size,
        data_hash=info.data_hash,
        created_ns=info.creation_timestamp,
        user_data=dict(info.user_data),
    )


def model_from_message(message: messages.ModelInfo) -> ModelInfo:
    """Return the record of a model that a message describes."""
    return ModelInfo(model_id=message.model_id, user_data=dict(message.user_data))


_INFO_FIELD = 1
"""The field of a model or a version in all replies that have any."""


def encode_model(info: ModelInfo) -> bytes:
    """Return a model as the field of a reply: one entry of RetrieveModelsReply."""
    message = messages.ModelInfo(model_id=info.model_id, user_data=info.user_data)
    return embed(_INFO_FIELD, message.SerializeToString())


def encode_version(info: VersionInfo) -> bytes:
    """Return a version as the field of a reply: one entry of RetrieveVersionInfosReply.

    It is all of a CreateVersionReply or a VersionUpdateReply, too. A version does not change, so it is encoded once.
    """
    if not info.memo:
        message = messages.ModelVersionInfo(
            model_id=info.model_id,
            version_number=info.number,
            creation_timestamp=info.created_ns,
            archived=info.archived,
            data_hash=info.data_hash,
            data_size=info.data_size_bytes,
            user_data=info.user_data,
        )
        info.memo.append(embed(_INFO_FIELD, message.SerializeToString()))
    return info.memo[0]
