"""Conversion between records and messages of the API, and between errors and statuses of gRPC."""

import functools
import weakref
from collections.abc import Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError as _DecodeError
from google.protobuf.message import Message

from cogment_model_registry.errors import (
    ConflictError,
    DataLossError,
    ExistsError,
    InvalidError,
    LimitedError,
    ModelRegistryError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PreconditionError,
    TimedOutError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.wire import messages
from cogment_model_registry.wire.frames import embed, split_body, split_data_chunk

DecodeError = _DecodeError

_T = TypeVar("_T")

STATUS_BY_ERROR: Mapping[type[ModelRegistryError], grpc.StatusCode] = {
    InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    OutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ConflictError: grpc.StatusCode.ABORTED,
    ExistsError: grpc.StatusCode.ALREADY_EXISTS,
    LimitedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DataLossError: grpc.StatusCode.DATA_LOSS,
    TimedOutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}
"""The one table of errors and statuses, for answers of servers and of clients' calls."""

_ERROR_BY_STATUS: Mapping[grpc.StatusCode, type[ModelRegistryError]] = {
    **{status: kind for kind, status in STATUS_BY_ERROR.items()},
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLargeError,  # a limit of the caller comes with when to try again
    grpc.StatusCode.CANCELLED: UnavailableError,  # by the server, or by a proxy
}


def status_of(error: ModelRegistryError) -> grpc.StatusCode:
    """Return the status of an error: that of its nearest class in the table, else INTERNAL."""
    statuses = (STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_BY_ERROR)
    return next(statuses, grpc.StatusCode.INTERNAL)


def error_type_of(status: grpc.StatusCode) -> type[ModelRegistryError]:
    """Return the class of error that a status means: `ModelRegistryError` itself for one that is not in the table."""
    return _ERROR_BY_STATUS.get(status, ModelRegistryError)


AnyMessage = TypeVar("AnyMessage", bound=Message)


def decode(message_type: type[AnyMessage], data: bytes) -> AnyMessage:
    """Return the message that `data` encodes.

    Raises:
        InvalidError: The bytes are malformed.
    """
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise InvalidError(f"the request is not a {message_type.DESCRIPTOR.full_name}") from None


def decode_upload_chunk(data: bytes) -> VersionHeader | memoryview:
    """Return the content of a `CreateVersionRequestChunk`: the header of an upload, or a view of some of its bytes.

    Raises:
        InvalidError: It has neither, or a header without `version_info`.
    """
    if (body := split_body(data)) is not None:
        return body
    chunk = decode(messages.CreateVersionRequestChunk, data)
    kind = chunk.WhichOneof("msg")
    if kind == "body":
        return memoryview(chunk.body.data_chunk)
    if kind is None:
        raise InvalidError("a chunk of CreateVersion must be a header or a body; this one is neither")
    header = chunk.header
    if not header.HasField("version_info"):
        raise InvalidError("the header of CreateVersion must have a version_info")
    return header_from_message(header.version_info)


def header_from_message(info: messages.ModelVersionInfo) -> VersionHeader:
    """Return the declaration of a version that a message has."""
    return VersionHeader(
        model_id=info.model_id,
        archived=info.archived,
        data_size_bytes=info.data_size,
        data_hash=info.data_hash,
        created_ns=info.creation_timestamp,
        user_data=entries(info.user_data),
    )


def header_message(header: VersionHeader) -> messages.ModelVersionInfo:
    """Return the message that declares a version."""
    return messages.ModelVersionInfo(
        model_id=header.model_id,
        archived=header.archived,
        data_size=header.data_size_bytes,
        data_hash=header.data_hash,
        creation_timestamp=header.created_ns,
        user_data=header.user_data,
    )


def decode_data_chunk(message: bytes) -> memoryview:
    """Return the bytes that a `RetrieveVersionDataReplyChunk` carries.

    Raises:
        DecodeError: The bytes are malformed.
    """
    data = split_data_chunk(message)
    return memoryview(messages.RetrieveVersionDataReplyChunk.FromString(message).data_chunk) if data is None else data


def encode_header(header: VersionHeader) -> bytes:
    """Return the first message of an upload."""
    declared = messages.CreateVersionRequestChunk.Header(version_info=header_message(header))
    chunk = messages.CreateVersionRequestChunk(header=declared)
    return chunk.SerializeToString()


def version_from_message(message: messages.ModelVersionInfo) -> VersionInfo:
    """Return the record of a version that a message describes."""
    return VersionInfo(
        model_id=message.model_id,
        number=message.version_number,
        created_ns=message.creation_timestamp,
        archived=message.archived,
        data_hash=message.data_hash,
        data_size_bytes=message.data_size,
        user_data=entries(message.user_data),
    )


def entries(field: Mapping[str, _T]) -> dict[str, _T]:
    """Return the entries of a field that is a map: `dict` alone asks protobuf for the value of each key."""
    return dict(field.items()) if field else {}


def version_message(info: VersionInfo) -> messages.ModelVersionInfo:
    """Return the message that describes a version."""
    return messages.ModelVersionInfo(
        model_id=info.model_id,
        version_number=info.number,
        creation_timestamp=info.created_ns,
        archived=info.archived,
        data_hash=info.data_hash,
        data_size=info.data_size_bytes,
        user_data=info.user_data or None,  # filling in an empty map takes as long as all the rest
    )


def version_from_reply(data: bytes) -> VersionInfo:
    """Return the version in a CreateVersionReply or a VersionUpdateReply, which are alike.

    Raises:
        DecodeError: The bytes are not such a reply.
    """
    return version_from_message(messages.CreateVersionReply.FromString(data).version_info)


def model_message(info: ModelInfo) -> messages.ModelInfo:
    """Return the message that describes a model."""
    return messages.ModelInfo(model_id=info.model_id, user_data=info.user_data)


def model_from_message(message: messages.ModelInfo) -> ModelInfo:
    """Return the record of a model that a message describes."""
    return ModelInfo(model_id=message.model_id, user_data=entries(message.user_data))


_INFO_FIELD = 1
"""The field of a model or a version in all replies that have any."""


def encode_model(info: ModelInfo) -> bytes:
    """Return a model as the field of a reply: one entry of RetrieveModelsReply."""
    return embed(_INFO_FIELD, model_message(info).SerializeToString())


_encodings: dict[int, tuple[bytes, weakref.ref[VersionInfo]]] = {}
"""Versions as the field of a reply, for as long as their records live.

By the identity of the record: comparing two records takes longer than encoding one.
"""


def encode_version(info: VersionInfo) -> bytes:
    """Return a version as the field of a reply: one entry of RetrieveVersionInfosReply.

    It is also the whole of a CreateVersionReply or a VersionUpdateReply. A record does not change, so each is encoded
    once, however many listings and watchers it goes to.
    """
    key = id(info)
    if (known := _encodings.get(key)) is not None:
        return known[0]
    data = embed(_INFO_FIELD, version_message(info).SerializeToString())
    # The end of the record takes the entry out; a function of our own would take longer to call.
    _encodings[key] = data, weakref.ref(info, functools.partial(_encodings.pop, key))
    return data
