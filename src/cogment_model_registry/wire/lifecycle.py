"""Between the records of the life of versions and the messages of ModelLifecycle."""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import TypeVar

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    Objections,
    Version,
)
from cogment_model_registry.records.signatures import Signature, signature_of
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX
from cogment_model_registry.wire import convert, messages
from cogment_model_registry.wire._generated.cogment_model_registry.v1 import lifecycle_pb2
from cogment_model_registry.wire.frames import embed, split_read_chunk, split_upload_data

_Message = TypeVar("_Message", bound=messages.Message)

SERVICE_NAME = lifecycle_pb2.DESCRIPTOR.services_by_name["ModelLifecycle"].full_name

UploadVersionRequest = lifecycle_pb2.UploadVersionRequest
UploadVersionReply = lifecycle_pb2.UploadVersionReply
ReadVersionRequest = lifecycle_pb2.ReadVersionRequest
ReadVersionReply = lifecycle_pb2.ReadVersionReply
ListVersionsRequest = lifecycle_pb2.ListVersionsRequest
ListVersionsReply = lifecycle_pb2.ListVersionsReply
UpdateVersionRequest = lifecycle_pb2.UpdateVersionRequest
PromoteVersionRequest = lifecycle_pb2.PromoteVersionRequest
DeleteVersionRequest = lifecycle_pb2.DeleteVersionRequest
DeleteVersionReply = lifecycle_pb2.DeleteVersionReply
SetAliasesRequest = lifecycle_pb2.SetAliasesRequest
SetAliasesReply = lifecycle_pb2.SetAliasesReply
VersionMessage = lifecycle_pb2.Version
VersionRef = lifecycle_pb2.VersionRef

WHOLE_UPLOAD = (("cogment-whole-upload", "1"),)
"""Metadata of an UploadVersion call whose client sends all bytes without waiting: the first reply is left out, so that
the call takes no longer than one with a single reply."""

FOR_A_PEER = (("cogment-for-peer", "1"),)
"""Metadata of a call that a server makes of another one, which then answers from what it has and knows itself."""

PAGE_DEFAULT_ITEMS = 100
"""The size of a page when the caller gives none."""

PAGE_MAX_ITEMS = 1000
"""The largest page; a caller that asks for more gets this many."""

_TOKEN_MAX_CHARACTERS = 4_000_000  # a value of `user_data` may be in it, with most of its characters escaped


def page_size(asked: int) -> int:
    """Return how many entries a page has at most."""
    return min(asked, PAGE_MAX_ITEMS) if asked else PAGE_DEFAULT_ITEMS


def fitting(messages: Iterable[_Message], max_bytes: int) -> list[_Message]:
    """Return as many messages, from the first one on, as fit a reply of so many bytes; at least one."""
    size_bytes, page = 0, list[_Message]()
    for message in messages:
        size_bytes += message.ByteSize()
        if page and size_bytes > max_bytes:
            break
        page.append(message)
    return page


# Versions.


def version_message(version: Version) -> lifecycle_pb2.Version:
    """Return the message that describes a version."""
    return lifecycle_pb2.Version(
        version_info=convert.version_message(version),
        tags=version.tags,
        metrics=version.metrics,
        aliases=version.aliases,
        revision=version.revision,
        signature=signature_message(version.signature),
    )


def version_from_message(message: lifecycle_pb2.Version) -> Version:
    """Return the version that a message describes."""
    tags, metrics = convert.entries(message.tags), convert.entries(message.metrics)
    annotations = Annotations(tags, metrics, message.revision)
    info = convert.version_from_message(message.version_info)
    if message.HasField("signature"):
        with suppress(InvalidError):  # a malformed one verifies nothing
            info = replace(info, signature=_signature_from_message(message.signature))
    return Version.of(info, annotations, tuple(message.aliases))


def signature_message(signature: Signature | None) -> lifecycle_pb2.Signature | None:
    """Return the message that has a signature; None for none."""
    if signature is None:
        return None
    return lifecycle_pb2.Signature(key_id=signature.key_id_bytes, value=signature.value_bytes)


def _signature_from_message(message: lifecycle_pb2.Signature) -> Signature:
    """Return the signature in a message.

    Raises:
        InvalidError: It is malformed.
    """
    return signature_of(message.key_id, message.value)


def version_ref(model_id: str, key: int | str) -> lifecycle_pb2.VersionRef:
    """Return the message that names a version by its number, by -n for the n-th from the last, or by an alias."""
    if isinstance(key, str):
        return lifecycle_pb2.VersionRef(model_id=model_id, alias=key)
    return lifecycle_pb2.VersionRef(model_id=model_id, version_number=key)


def key_of(ref: lifecycle_pb2.VersionRef) -> int | str:
    """Return the number, or -n, or the alias in a message.

    Raises:
        InvalidError: It has none.
    """
    kind = ref.WhichOneof("version")
    if kind is None:
        raise InvalidError("a version must be named by version_number or by alias", model_id=ref.model_id)
    if kind == "alias":
        return ref.alias
    if not ref.version_number or abs(ref.version_number) > VERSION_NUMBER_MAX:
        message = f"version_number is {ref.version_number}; it must be from 1, or -n for the n-th from the last"
        raise InvalidError(message, model_id=ref.model_id)
    return ref.version_number


def objections_reply(objections: Objections) -> DeleteVersionReply:
    """Return the reply that says what stands against a deletion."""
    return DeleteVersionReply(aliases=objections.aliases, held=objections.held, state=objections.state)


def objections_from_reply(reply: DeleteVersionReply) -> Objections:
    """Return what stands against a deletion.

    Raises:
        InvalidError: The state is not that of the rest.
    """
    objections = Objections(tuple(reply.aliases), reply.held)
    if objections.state != reply.state:
        raise InvalidError("the state of the version does not fit")
    return objections


def read_request(
    model_id: str, key: int | str, offset: int, limit: int | None, expected_hash: str
) -> lifecycle_pb2.ReadVersionRequest:
    """Return the request for a part of a version; a limit of None is all that follows."""
    return lifecycle_pb2.ReadVersionRequest(
        version=version_ref(model_id, key), offset=offset, limit=limit or 0, expected_hash=expected_hash
    )


def read_reply(message: bytes) -> Version | memoryview:
    """Return the content of a ReadVersionReply: the version, or a view of some of its bytes.

    Raises:
        DecodeError: The bytes are malformed, or have neither.
    """
    data = split_read_chunk(message)
    if data is not None:
        return data
    reply = lifecycle_pb2.ReadVersionReply.FromString(message)
    kind = reply.WhichOneof("reply")
    if kind is None:
        raise convert.DecodeError("a ReadVersionReply must have a version or data")
    return version_from_message(reply.version) if kind == "version" else memoryview(reply.data_chunk)


def annotation_change(request: lifecycle_pb2.UpdateVersionRequest) -> AnnotationChange:
    """Return the change that a request describes."""
    return AnnotationChange(
        set_tags=dict(request.set_tags),
        remove_tags=tuple(request.remove_tags),
        set_metrics=dict(request.set_metrics),
        remove_metrics=tuple(request.remove_metrics),
        expected_revision=request.expected_revision,
    )


def update_request(model_id: str, key: int | str, change: AnnotationChange) -> lifecycle_pb2.UpdateVersionRequest:
    """Return the request for a change of annotations."""
    return lifecycle_pb2.UpdateVersionRequest(
        version=version_ref(model_id, key),
        set_tags=change.set_tags,
        remove_tags=change.remove_tags,
        set_metrics=change.set_metrics,
        remove_metrics=change.remove_metrics,
        expected_revision=change.expected_revision,
    )


# Uploads.


_HEADER_FIELD = UploadVersionRequest.HEADER_FIELD_NUMBER
_VERSION_FIELD = UploadVersionReply.VERSION_FIELD_NUMBER


def decode_upload(data: bytes) -> UploadHeader | memoryview:
    """Return the content of an `UploadVersionRequest`: the header of an upload, or a view of some of its bytes.

    Raises:
        InvalidError: It has neither, or a header without `version_info`.
    """
    view = split_upload_data(data)
    if view is not None:
        return view
    request = convert.decode(UploadVersionRequest, data)
    kind = request.WhichOneof("data")
    if kind == "data_chunk":
        return memoryview(request.data_chunk)
    if kind is None:
        raise InvalidError("a message of UploadVersion must have a header or a data_chunk; this one has neither")
    return upload_header_from_message(request.header)


def upload_header_from_message(header: lifecycle_pb2.UploadVersionRequest.Header) -> UploadHeader:
    """Return the declaration of a version with what belongs to it.

    Raises:
        InvalidError: It has no `version_info`, or a malformed signature.
    """
    if not header.HasField("version_info"):
        raise InvalidError("the header of UploadVersion must have a version_info")
    version = convert.header_from_message(header.version_info)
    if header.HasField("signature"):
        version = replace(version, signature=_signature_from_message(header.signature))
    return UploadHeader(
        version=version,
        tags=dict(header.tags),
        metrics=dict(header.metrics),
        aliases=tuple(header.aliases),
        request_id=header.request_id,
        create_model=header.create_model,
    )


def encode_upload_header(header: UploadHeader) -> bytes:
    """Return the first message of an upload."""
    return embed(_HEADER_FIELD, upload_header_message(header).SerializeToString())


def upload_header_message(header: UploadHeader) -> lifecycle_pb2.UploadVersionRequest.Header:
    """Return the message that declares a version with what belongs to it."""
    return UploadVersionRequest.Header(
        version_info=convert.header_message(header.version),
        tags=header.tags or None,
        metrics=header.metrics or None,
        aliases=header.aliases,
        request_id=header.request_id,
        create_model=header.create_model,
        signature=signature_message(header.version.signature),
    )


def encode_next_offset(offset: int) -> bytes:
    """Return the first reply to an upload."""
    return UploadVersionReply(next_offset=offset).SerializeToString()


def encode_uploaded(version: Version) -> bytes:
    """Return the last reply to an upload."""
    mutable = lifecycle_pb2.Version(
        tags=version.tags or None,
        metrics=version.metrics or None,
        aliases=version.aliases,
        revision=version.revision,
        signature=signature_message(version.signature),
    )
    # The record of a version has the same field in all messages, and its encoding is kept for listings and watchers.
    return embed(_VERSION_FIELD, convert.encode_version(version.info) + mutable.SerializeToString())


# Aliases.


def alias_messages(aliases: Iterable[Alias]) -> list[lifecycle_pb2.Alias]:
    """Return the messages that describe aliases."""
    return [
        lifecycle_pb2.Alias(
            alias=alias.name, version_number=alias.version_number, revision=alias.revision, set_timestamp=alias.set_ns
        )
        for alias in aliases
    ]


def aliases_from_messages(messages: Iterable[lifecycle_pb2.Alias]) -> list[Alias]:
    """Return the aliases that messages describe."""
    return [Alias(each.alias, each.version_number, each.revision, each.set_timestamp) for each in messages]


def alias_changes(request: lifecycle_pb2.SetAliasesRequest) -> list[AliasChange]:
    """Return the changes that a request describes.

    Raises:
        InvalidError: One neither sets nor removes its alias, or two are about the same one.
    """
    changes = [_alias_change(request.model_id, change) for change in request.changes]
    counts = Counter(change.name for change in changes)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise InvalidError(f"alias {quoted(twice)} is changed twice in one request", model_id=request.model_id)
    return changes


def _alias_change(model_id: str, change: lifecycle_pb2.SetAliasesRequest.Change) -> AliasChange:
    expected = change.expected_revision if change.HasField("expected_revision") else None
    if change.WhichOneof("to") == "version_number":
        key = key_of(lifecycle_pb2.VersionRef(model_id=model_id, version_number=change.version_number))
        return AliasChange(change.alias, int(key), expected)
    if not change.removed:
        raise InvalidError(f"alias {quoted(change.alias)} must get a version_number, or be removed", model_id=model_id)
    return AliasChange(change.alias, None, expected)


def set_aliases_request(model_id: str, changes: Sequence[AliasChange]) -> lifecycle_pb2.SetAliasesRequest:
    """Return the request for changes of aliases."""
    request = lifecycle_pb2.SetAliasesRequest(model_id=model_id)
    for change in changes:
        message = request.changes.add(alias=change.name)
        if change.version_number is None:
            message.removed = True
        else:
            message.version_number = change.version_number
        if change.expected_revision is not None:
            message.expected_revision = change.expected_revision
    return request


# Pages.


def build_token(question: Sequence[str], position: Sequence[str | int | float | bool | None]) -> str:
    """Return the token of the page that begins after a position.

    Args:
        question: What was asked for: a token is good for nothing else.
        position: The place of the last entry.
    """
    text = json.dumps([_digest(question), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def build_index(named: Sequence[str], index: int) -> str:
    """Return the token of the page that begins with one of the things that a request names; empty after the last."""
    return build_token(named, [index]) if index < len(named) else ""


def parse_index(token: str, named: Sequence[str]) -> int:
    """Return where the page with a token begins among the things that a request names.

    Raises:
        InvalidError: It is no token, or one of another request.
    """
    [index] = parse_token(token, named, 1) or [0]
    if not isinstance(index, int) or not 0 <= index < len(named):
        raise InvalidError("page_token is malformed")
    return index


def parse_token(token: str, question: Sequence[str], length: int) -> list[str | int | float | bool | None] | None:
    """Return the position in a token; None for the empty one, with which a listing begins.

    Raises:
        InvalidError: It is no token, or one of another question.
    """
    if not token:
        return None
    try:
        if len(token) > _TOKEN_MAX_CHARACTERS:
            raise ValueError
        digest, *position = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
        json.dumps(position, ensure_ascii=False).encode()  # fails where it has half of a character
    except (ValueError, TypeError, RecursionError):
        digest, position = "", []
    parts = [each for each in position if each is None or isinstance(each, str | int | float | bool)]
    if digest != _digest(question) or len(parts) != length:
        raise InvalidError(f"page_token {quoted(token)} is not one that an earlier reply to the same request gave")
    return parts


def _digest(question: Sequence[str]) -> str:
    return sha256("\0".join(question).encode("utf-8", "surrogatepass")).hexdigest()[:16]
