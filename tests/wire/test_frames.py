"""Messages that are split and built by hand equal those that protobuf reads and writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import CaughtUp
from cogment_model_registry.wire import convert, lifecycle, watching
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.convert import decode_upload_chunk
from cogment_model_registry.wire.frames import (
    build_data_chunk,
    build_read_chunk,
    build_version_data,
    build_watch_data,
    embed,
    split_body,
    split_read_chunk,
)
from tests.client import body, header

# Around each size at which one more byte of length is needed.
_SIZES = [0, 1, 2, 123, 124, 125, 126, 127, 128, 129, 16_379, 16_380, 16_381, 16_383, 16_384, 2_097_152, 2_097_160]


def test_a_body_is_split_without_a_copy_whatever_its_size() -> None:
    for size in _SIZES:
        data = bytes(size)
        message = body(data).SerializeToString()
        view = split_body(message)
        assert view is not None
        assert view == data
        assert size == 0 or view.obj is message


def test_a_data_chunk_is_built_as_protobuf_does() -> None:
    for size in _SIZES:
        data = bytes(size)
        parts = [memoryview(data)[: size // 3], memoryview(data)[size // 3 :]]
        assert build_data_chunk(parts) == m.RetrieveVersionDataReplyChunk(data_chunk=data).SerializeToString()


def test_a_chunk_of_a_part_is_built_and_split_as_protobuf_does() -> None:
    for size in _SIZES:
        data = bytes(size)
        message = build_read_chunk([memoryview(data)[: size // 3], memoryview(data)[size // 3 :]])
        assert message == lifecycle.ReadVersionReply(data_chunk=data).SerializeToString()
        view = split_read_chunk(message)
        assert view is not None
        assert view.obj is message


def test_the_version_before_a_part_is_parsed_by_protobuf() -> None:
    info = m.ModelVersionInfo(model_id="m", version_number=1)
    message = lifecycle.ReadVersionReply(version=lifecycle.VersionMessage(version_info=info)).SerializeToString()
    assert split_read_chunk(message) is None
    version = lifecycle.read_reply(message)
    assert isinstance(version, Version)
    assert version.number == 1
    with pytest.raises(convert.DecodeError):
        lifecycle.read_reply(b"")


def test_an_embedded_message_is_built_as_protobuf_does() -> None:
    for size in (0, 1, 127, 128, 300):
        info = m.ModelInfo(model_id="x" * size)
        reply = m.RetrieveModelsReply(model_infos=[info])
        assert embed(1, info.SerializeToString()) == reply.SerializeToString()


def test_messages_other_than_plain_bodies_are_parsed_by_protobuf() -> None:
    plain = body(b"data").SerializeToString()
    inner = m.CreateVersionRequestChunk.Body(data_chunk=b"data").SerializeToString()
    for message in (
        b"",
        b"\x12",
        plain[:-1],
        plain + plain,  # protobuf: the last one counts
        plain + b"\x18\x01",  # an unknown field behind
        b"\x12\x80\x80\x80\x80\x80\x01",  # a length that is too long
        embed(2, inner + inner),
        header("m", 1).SerializeToString(),
    ):
        assert split_body(message) is None


@given(st.binary(max_size=40))
def test_a_split_body_is_what_protobuf_reads(message: bytes) -> None:
    view = split_body(message)
    if view is not None:
        chunk = m.CreateVersionRequestChunk.FromString(message)
        assert chunk.WhichOneof("msg") == "body"
        assert chunk.body.data_chunk == view


@given(st.lists(st.binary(max_size=200), max_size=3), st.booleans())
def test_a_body_in_any_form_is_decoded_as_protobuf_reads_it(datas: list[bytes], unknown: bool) -> None:
    inner = b"".join(m.CreateVersionRequestChunk.Body(data_chunk=data).SerializeToString() for data in datas)
    message = embed(2, inner) + (b"\x18\x01" if unknown else b"")
    view = decode_upload_chunk(message)
    assert isinstance(view, memoryview)
    assert view == m.CreateVersionRequestChunk.FromString(message).body.data_chunk


@given(st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=200))
def test_a_version_with_its_bytes_is_what_protobuf_reads_and_writes(parts: list[bytes], token: str) -> None:
    data, rest = b"".join(parts), watching.WatchReply(resume_token=token, caught_up=True).SerializeToString()
    message = build_version_data(parts, rest)
    reply = watching.WatchReply.FromString(message)
    assert (reply.version_data, reply.resume_token, reply.caught_up) == (data, token, True)
    for encoded in (message, reply.SerializeToString(), message + message):
        decoded = watching.decode_reply(encoded)
        assert isinstance(decoded, watching.Reply)
        assert decoded.data is not None
        assert (bytes(decoded.data), decoded.token, decoded.event) == (data, token, CaughtUp())


@given(st.lists(st.binary(max_size=300), max_size=4), st.booleans())
def test_data_of_a_watch_is_what_protobuf_reads_and_writes(parts: list[bytes], is_last: bool) -> None:
    data = b"".join(parts)
    message = build_watch_data(parts, is_last=is_last)
    reply = watching.WatchReply.FromString(message)
    assert (reply.data.data_chunk, reply.data.last) == (data, is_last)
    for encoded in (message, reply.SerializeToString()):
        decoded = watching.decode_reply(encoded)
        assert isinstance(decoded, watching.Bytes)
        assert (bytes(decoded.data), decoded.is_last) == (data, is_last)
