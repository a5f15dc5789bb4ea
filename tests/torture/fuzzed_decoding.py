"""The process of a proof in `fuzzed_messages`: decoders that are fed whatever brings their code further.

Atheris counts which lines and branches an input reaches, and makes new inputs out of those that reached new ones. It
ends the process when it is done, so the proof starts this module as one of its own:

    python -m tests.torture.fuzzed_decoding -atheris_runs=1000 -seed=1 <directory of inputs>

The first byte of an input says which decoder gets the rest. A decoder may refuse it with an error of the package;
anything else that it raises, and any disagreement with protobuf or with its own encoder, ends the process with a crash.
"""

import base64
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

atheris: Any = importlib.import_module("atheris")  # not there on every platform, so nothing else may import this module

with atheris.instrument_imports(include=["cogment_model_registry"]):
    from cogment_model_registry.errors import InvalidError, ModelRegistryError
    from cogment_model_registry.records import versions as records
    from cogment_model_registry.records.lifecycle import Annotations, Version
    from cogment_model_registry.records.timestamps import format_timestamp, parse_timestamp
    from cogment_model_registry.registry import filter_text, filters
    from cogment_model_registry.storage.filesystem import layout
    from cogment_model_registry.wire import convert, frames, paging
    from cogment_model_registry.wire import messages as m

_REQUESTS: list[Any] = [
    m.CreateOrUpdateModelRequest,
    m.DeleteModelRequest,
    m.RetrieveModelsRequest,
    m.RetrieveVersionInfosRequest,
    m.RetrieveVersionDataRequest,
    m.VersionUpdateRequest,
    m.VersionRequest,
    m.StatusRequest,
]


_VERSION = Version.of(
    records.VersionInfo("m", 1, 1, True, records.digest_text(bytes(32)), 5, {"key": "yes"}),
    Annotations(tags={"stage": "best"}, metrics={"return": 487.5}, revision=1),
    aliases=("production",),
)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def split_a_body(data: bytes) -> None:
    """Split an upload's chunk by hand, and compare with what protobuf reads."""
    view = frames.split_body(data)
    if view is not None:
        chunk = m.CreateVersionRequestChunk.FromString(data)
        assert chunk.WhichOneof("msg") == "body", "split what protobuf does not take for a body"
        assert chunk.body.data_chunk == view, "split another text than protobuf reads"
        assert (
            frames.build_data_chunk([view])
            == m.RetrieveVersionDataReplyChunk(data_chunk=bytes(view)).SerializeToString()
        )


def decode_a_chunk(data: bytes) -> None:
    """Decode an upload's chunk, and compare with what protobuf reads."""
    try:
        expected = m.CreateVersionRequestChunk.FromString(data)
    except DecodeError:
        expected = m.CreateVersionRequestChunk()  # neither a header nor a body
    try:
        decoded = convert.decode_upload_chunk(data)
    except InvalidError:
        assert not expected.HasField("body"), "refused a body"
        assert not expected.header.HasField("version_info"), "refused a header"
        return
    if not isinstance(decoded, records.VersionHeader):
        assert expected.body.data_chunk == decoded, "decoded another body than protobuf reads"
        return
    info = expected.header.version_info
    assert (info.model_id, info.archived, info.data_size) == (
        decoded.model_id,
        decoded.archived,
        decoded.data_size_bytes,
    )
    assert (info.data_hash, info.creation_timestamp) == (decoded.data_hash, decoded.created_ns)
    assert dict(info.user_data) == decoded.user_data
    _check_header(decoded)


def _check_header(header: records.VersionHeader) -> None:
    records.check_data_size(header.data_size_bytes, header.model_id)
    records.check_user_data(header.user_data, 100, header.model_id)
    records.check_data_hash(header.data_hash, header.model_id)
    records.check_model_id(header.model_id, 128)


def decode_a_request(data: bytes) -> None:
    """Decode a request, and turn the model in it into a record and back."""
    if data:
        request = convert.decode(_REQUESTS[data[0] % len(_REQUESTS)], data[1:])
        if isinstance(request, m.CreateOrUpdateModelRequest):
            info = convert.model_from_message(request.model_info)
            message = m.RetrieveModelsReply.FromString(convert.encode_model(info)).model_infos[0]
            assert (message.model_id, dict(message.user_data)) == (info.model_id, info.user_data)
            records.check_user_data(info.user_data, 100, info.model_id)


def parse_handles(data: bytes) -> None:
    """Parse the handle of a page, and look for where it begins."""
    text = _text(data)
    explicit = paging.ExplicitHandle.parse(text)
    for numbers in ([], [1], [5, 3, 3, 9], list(range(20))):
        assert 0 <= explicit.start(numbers) <= len(numbers), "a page begins outside of its list"
    assert paging.parse_handle(text) == min(int(text or "0"), 10**20), "a number is read as another one"


def parse_a_version(data: bytes) -> None:
    """Read the metadata of a version, and write it again."""
    info = layout.parse_version(data, "m", 1)
    assert layout.parse_version(layout.format_version(info), "m", 1) in (info, _archived(info)), "rewritten as another"
    assert m.VersionUpdateReply.FromString(convert.encode_version(info)).version_info.data_size == info.data_size_bytes


def _archived(info: records.VersionInfo) -> records.VersionInfo:
    """Return a version as it is written: only archived ones are."""
    return records.VersionInfo(
        info.model_id, info.number, info.created_ns, True, info.data_hash, info.data_size_bytes, info.user_data
    )


def parse_a_model(data: bytes) -> None:
    """Read the metadata of a model, and write it again."""
    info = layout.parse_model(data, "m")
    assert layout.parse_model(layout.format_model(info), "m") == info, "rewritten as another"
    assert m.RetrieveModelsReply.FromString(convert.encode_model(info)).model_infos[0].model_id == "m"


def parse_a_time(data: bytes) -> None:
    """Read the time of a version, and write it again."""
    try:
        created_ns = parse_timestamp(_text(data))
    except ValueError:
        return
    assert 0 <= created_ns <= records.CREATED_MAX_NS, "the wire cannot say this time"
    assert parse_timestamp(format_timestamp(created_ns)) == created_ns, "rewritten as another"


def check_a_hash(data: bytes) -> None:
    """Check a hash, of which nothing that is let through may be anything else."""
    text = _text(data)
    records.check_data_hash(text, "m")
    assert records.digest_text(base64.b64decode(text)) == text, "what is no hash passes for one"


def parse_a_filter(data: bytes) -> None:
    """Read a filter, and evaluate it."""
    filters.matches(filter_text.parse_filter(_text(data)), _VERSION)


def parse_an_order(data: bytes) -> None:
    """Read an order, and apply it."""
    filters.arranged(filters.parse_order(_text(data)), [_VERSION])


def parse_a_mark(data: bytes) -> None:
    """Read a high-water mark, and write it again."""
    number = layout.parse_high_water_mark(data)
    assert 0 <= number <= records.VERSION_NUMBER_MAX, "the mark is no version number"
    assert layout.parse_high_water_mark(layout.format_high_water_mark(number)) == number


def parse_a_file_name(data: bytes) -> None:
    """Read the name of a version's file, and make it again."""
    name = _text(data)
    found = layout.parse_file_name("m", name)
    if found:
        number, ending = found
        made = layout.version_file_name("m", number) if ending == "yaml" else layout.data_file_name("m", number)
        assert made == name, "the name of another file"


def check_an_id(data: bytes) -> None:
    """Check an id, of which nothing that is let through may be a path."""
    model_id = _text(data)
    records.check_model_id(model_id, 128)
    assert os.path.basename(model_id) == model_id, "a path passes for an id"
    assert model_id.isprintable(), "what cannot be seen passes for an id"
    assert model_id not in ("", ".", ".."), "a directory passes for an id"
    model_id.encode()


_DECODERS: list[Callable[[bytes], None]] = [
    split_a_body,
    decode_a_chunk,
    decode_a_request,
    parse_handles,
    parse_a_version,
    parse_a_model,
    parse_a_time,
    parse_a_filter,
    parse_an_order,
    parse_a_mark,
    parse_a_file_name,
    check_a_hash,
    check_an_id,
]


def feed(data: bytes) -> None:
    """Feed an input to the decoder that it names."""
    if data:
        with contextlib.suppress(ModelRegistryError, layout.BadMetadata):
            _DECODERS[data[0] % len(_DECODERS)](data[1:])


def _seeds() -> list[tuple[Callable[[bytes], None], bytes]]:
    """Return inputs to begin with: what each decoder takes."""
    hash_of = records.digest_text(bytes(32))
    version = records.VersionInfo("m", 1, 1, True, hash_of, 5, {"key": "yes"})
    model = m.ModelInfo(model_id="m", user_data={"key": "value"})
    chunk = m.CreateVersionRequestChunk
    body = chunk(body=chunk.Body(data_chunk=b"bytes")).SerializeToString()
    info = m.CreateVersionReply.FromString(convert.encode_version(version)).version_info
    header = chunk(header=chunk.Header(version_info=info)).SerializeToString()
    request = m.CreateOrUpdateModelRequest(model_info=model).SerializeToString()
    infos = m.RetrieveVersionInfosRequest(model_id="m", version_numbers=[-1, 2], version_handle="3").SerializeToString()
    return [
        (split_a_body, body),
        (split_a_body, header),
        (decode_a_chunk, body),
        (decode_a_chunk, header),
        (decode_a_request, b"\0" + request),
        (decode_a_request, b"\3" + infos),
        (parse_handles, b"12"),
        (parse_handles, b"@3"),
        (parse_a_version, layout.format_version(version)),
        (parse_a_version, layout.format_version(version) + b"transient: true\nother: [a, {b: c}]\n"),
        (parse_a_model, layout.format_model(records.ModelInfo("m", {"a": "\0", "b": "~"}))),
        (parse_a_time, b"2026-11-22T16:53:02.313162077Z"),
        (parse_a_time, b"2021-1-2 3:04:05.6 -07:30"),
        (parse_a_filter, b"metrics.return > 480 AND (tags.stage = 'best' OR aliases:production) NOT archived = true"),
        (parse_a_filter, b"-creation_timestamp >= 2026-11-22T16:53:02Z OR user_data.key:*"),
        (parse_an_order, b"metrics.return desc"),
        (check_a_hash, hash_of.encode()),
        (parse_a_mark, b"128\n"),
        (parse_a_file_name, b"m-v000001.yaml"),
        (parse_a_file_name, b"m-v1000000.data"),
        (check_an_id, "été-v000001.a b".encode()),
    ]


def main() -> None:
    """Write the first inputs into the directory named last, and feed the decoders for as long as the flags say."""
    sys.set_int_max_str_digits(0)  # for the numbers that results are compared with
    for index, (decoder, data) in enumerate(_seeds()):
        with open(os.path.join(sys.argv[-1], f"seed{index}"), "wb") as file:
            file.write(bytes((_DECODERS.index(decoder),)) + data)
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
