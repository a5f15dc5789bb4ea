"""The process of a proof in `fuzzed_messages`: coverage-guided fuzzing of the decoders.

Atheris records which lines and branches an input reaches, and mutates the inputs that reached new ones. It ends the
process when it is done, so the proof starts this module as a separate process:

    python -m tests.torture.fuzzed_decoding -atheris_runs=1000 -seed=1 <directory of inputs>

The first byte of an input selects the decoder of the rest. A decoder may refuse it with an error of the package;
anything else that it raises, and any disagreement with protobuf or with its own encoder, ends the process with a crash.
"""

import base64
import contextlib
import importlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

atheris: Any = importlib.import_module(
    "atheris"
)  # not available on every platform, so nothing else may import this module

with atheris.instrument_imports(include=["cogment_model_registry"]):
    from cogment_model_registry.errors import InvalidError, ModelRegistryError
    from cogment_model_registry.records import versions as records
    from cogment_model_registry.records.lifecycle import (
        AliasChange,
        AnnotationChange,
        Annotations,
        Version,
        check_alias,
        check_metrics,
    )
    from cogment_model_registry.records.retention import ModelChange
    from cogment_model_registry.records.timestamps import format_timestamp, parse_timestamp
    from cogment_model_registry.registry import filter_text, filters
    from cogment_model_registry.registry.contracts import Search
    from cogment_model_registry.server import model_lifecycle
    from cogment_model_registry.storage.catalog import searches, tables
    from cogment_model_registry.storage.filesystem import layout
    from cogment_model_registry.wire import consumers, convert, frames, lifecycle, models, paging
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


_LIFECYCLE_REQUESTS: list[tuple[Any, Callable[[Any], object]]] = [
    (lifecycle.UpdateVersionRequest, lifecycle.annotation_change),
    (lifecycle.UpdateVersionRequest, lambda request: lifecycle.key_of(request.version)),
    (lifecycle.PromoteVersionRequest, lambda request: lifecycle.key_of(request.version)),
    (lifecycle.DeleteVersionRequest, lambda request: lifecycle.key_of(request.version)),
    (lifecycle.SetAliasesRequest, lifecycle.alias_changes),
    (lifecycle.ReadVersionRequest, lambda request: lifecycle.key_of(request.version)),
    (models.ListModelsRequest, lambda request: lifecycle.parse_token(request.page_token, (), 1)),
    (models.UpdateModelRequest, models.model_change),
    (models.ApplyRetentionRequest, models.trial_of),
    (models.ModelMessage, models.model_from_message),
    (models.ApplyRetentionReply, models.report_from_message),
    (consumers.ConsumerMessage, consumers.consumer_from_message),
    (consumers.ListConsumersRequest, lambda request: lifecycle.parse_token(request.page_token, (), 2)),
    (lifecycle.ListVersionsRequest, lambda request: [lifecycle.key_of(ref) for ref in request.versions]),
    (lifecycle.VersionMessage, lifecycle.version_from_message),
]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def split_a_body(data: bytes) -> None:
    """Split an upload's chunk by hand, and compare with what protobuf reads."""
    view = frames.split_body(data)
    if view is not None:
        chunk = m.CreateVersionRequestChunk.FromString(data)
        assert chunk.WhichOneof("msg") == "body", "split a message that is not a body for protobuf"
        assert chunk.body.data_chunk == view, "split bytes that differ from what protobuf reads"
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
        assert expected.body.data_chunk == decoded, "decoded a body that differs from what protobuf reads"
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
    """Parse the handle of a page, and check where the page begins."""
    text = _text(data)
    explicit = paging.ExplicitHandle.parse(text)
    for numbers in ([], [1], [5, 3, 3, 9], list(range(20))):
        assert 0 <= explicit.start(numbers) <= len(numbers), "a page begins outside of its list"
    assert paging.parse_handle(text) == min(int(text or "0"), 10**20), "a number changes when it is parsed"


def parse_a_version(data: bytes) -> None:
    """Read the metadata of a version, and write it again."""
    info = layout.parse_version(data, "m", 1)
    assert layout.parse_version(layout.format_version(info), "m", 1) in (info, _archived(info)), (
        "changed by writing and reading"
    )
    assert m.VersionUpdateReply.FromString(convert.encode_version(info)).version_info.data_size == info.data_size_bytes


def _archived(info: records.VersionInfo) -> records.VersionInfo:
    """Return a version as it is written: as an archived one."""
    return records.VersionInfo(
        info.model_id, info.number, info.created_ns, True, info.data_hash, info.data_size_bytes, info.user_data
    )


def parse_a_model(data: bytes) -> None:
    """Read the metadata of a model, and write it again."""
    info = layout.parse_model(data, "m")
    assert layout.parse_model(layout.format_model(info), "m") == info, "changed by writing and reading"
    assert m.RetrieveModelsReply.FromString(convert.encode_model(info)).model_infos[0].model_id == "m"


def parse_a_time(data: bytes) -> None:
    """Read the time of a version, and write it again."""
    try:
        created_ns = parse_timestamp(_text(data))
    except ValueError:
        return
    assert 0 <= created_ns <= records.CREATED_MAX_NS, "the wire cannot say this time"
    assert parse_timestamp(format_timestamp(created_ns)) == created_ns, "changed by writing and reading"


def check_a_hash(data: bytes) -> None:
    """Check a hash: whatever is accepted must be a hash."""
    text = _text(data)
    records.check_data_hash(text, "m")
    assert records.digest_text(base64.b64decode(text)) == text, "something that is not a hash is accepted"


def decode_a_lifecycle_request(data: bytes) -> None:
    """Decode a request of the second service; encoding and decoding a change returns the same change."""
    if not data:
        return
    kind, convert_request = _LIFECYCLE_REQUESTS[data[0] % len(_LIFECYCLE_REQUESTS)]
    request = convert.decode(kind, data[1:])
    converted: Any = convert_request(request)
    if isinstance(converted, AnnotationChange):
        update = lifecycle.update_request("m", 1, converted)
        assert repr(lifecycle.annotation_change(update)) == repr(converted), "a change is different on the wire"
        with contextlib.suppress(ModelRegistryError):
            check_metrics(converted.set_metrics, "m")
            before = lifecycle.version_message(_VERSION).ByteSize()
            after = converted.apply_to(_VERSION.info, _VERSION.annotations, 2)
            assert lifecycle.version_message(Version.of(_VERSION.info, after)).ByteSize() < before + 8 * len(data) + 100
    elif isinstance(converted, ModelChange):
        again = models.update_model_request("m", converted)
        assert repr(models.model_change(again)) == repr(converted), "a change of a model is different on the wire"
    elif isinstance(request, lifecycle.SetAliasesRequest):
        changes = lifecycle.set_aliases_request("m", converted)
        assert lifecycle.alias_changes(changes) == converted, "a change of aliases is different on the wire"
        for change in converted:
            with contextlib.suppress(ModelRegistryError):
                check_alias(change.name, "m", 128)
                assert os.path.basename(change.name) == change.name, "a path is accepted as an alias"
                assert not change.name.lstrip("+-").isnumeric(), "a number is accepted as an alias"


def parse_a_token(data: bytes) -> None:
    """Parse a generated page token with any values, and search with it."""
    if data:
        order = filters.parse_order(_ORDERS[data[0] % len(_ORDERS)])
        for token in (base64.urlsafe_b64encode(data[1:]).decode(), _text(data[1:])):
            with contextlib.suppress(ModelRegistryError):
                lifecycle.parse_token(token, (), 3)
        try:
            values = json.loads(data[1:])
        except (ValueError, RecursionError):
            return
        if isinstance(values, list) and all(isinstance(each, str | int | float | None) for each in values):
            parts = lifecycle.parse_token(lifecycle.build_token((), values), (), 3)
            after = model_lifecycle.position_in(order, parts)
            ask(filters.EVERYTHING, order, after)


def ask(accepted: filters.Filter, order: filters.Order, after: filters.Position | None = None) -> None:
    """Search a database with one version, and compare the result with the evaluation in memory."""
    found = searches.find_versions(_DATABASE, Search(None, accepted, order, after, 10))
    expected = filters.arranged(order, [_VERSION] if filters.matches(accepted, _VERSION) else [], after)
    assert found == expected, f"the database finds {found} for {accepted} {order} {after}"


_ORDERS = ["version_number", "archived", "data_size desc", "creation_timestamp", "data_hash", "metrics.return desc"]
_ORDERS += ["tags.stage", "user_data.key desc"]


def _database_of_one() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    for migration in tables.MIGRATIONS:
        database.executescript(migration.statements)
    tables.put_versions(database, [_VERSION.info])
    tables.put_annotations(database, "m", 1, _VERSION.annotations)
    tables.set_aliases(database, "m", [AliasChange(_VERSION.aliases[0], 1)], 0)
    return database


_DATABASE = _database_of_one()


def parse_a_filter(data: bytes) -> None:
    """Read a filter, evaluate it, and ask a database with it."""
    text = _text(data)
    accepted = filter_text.parse_filter(text)
    filters.matches(accepted, _VERSION)
    if text == data.decode(errors="ignore"):  # protobuf accepts nothing else
        for order in _ORDERS:
            ask(accepted, filters.parse_order(order))


def parse_an_order(data: bytes) -> None:
    """Read an order, and apply it."""
    filters.arranged(filters.parse_order(_text(data)), [_VERSION])


def parse_a_mark(data: bytes) -> None:
    """Read a high-water mark, and write it again."""
    number = layout.parse_high_water_mark(data)
    assert 0 <= number <= records.VERSION_NUMBER_MAX, "the mark is not a version number"
    assert layout.parse_high_water_mark(layout.format_high_water_mark(number)) == number


def parse_a_file_name(data: bytes) -> None:
    """Parse the name of a version's file, and write it again."""
    name = _text(data)
    found = layout.parse_file_name("m", name)
    if found:
        number, ending = found
        made = layout.version_file_name("m", number) if ending == "yaml" else layout.data_file_name("m", number)
        assert made == name, "the name of another file"


def check_an_id(data: bytes) -> None:
    """Check an id: whatever is accepted must not be a path."""
    model_id = _text(data)
    records.check_model_id(model_id, 128)
    assert os.path.basename(model_id) == model_id, "a path is accepted as an id"
    assert model_id.isprintable(), "unprintable text is accepted as an id"
    assert model_id not in ("", ".", ".."), "a directory is accepted as an id"
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
    parse_a_token,
    decode_a_lifecycle_request,
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
    """Return the first inputs: valid ones for each decoder."""
    hash_of = records.digest_text(bytes(32))
    version = records.VersionInfo("m", 1, 1, True, hash_of, 5, {"key": "yes"})
    model = m.ModelInfo(model_id="m", user_data={"key": "value"})
    chunk = m.CreateVersionRequestChunk
    body = chunk(body=chunk.Body(data_chunk=b"bytes")).SerializeToString()
    info = m.CreateVersionReply.FromString(convert.encode_version(version)).version_info
    header = chunk(header=chunk.Header(version_info=info)).SerializeToString()
    request = m.CreateOrUpdateModelRequest(model_info=model).SerializeToString()
    infos = m.RetrieveVersionInfosRequest(model_id="m", version_numbers=[-1, 2], version_handle="3").SerializeToString()
    change = AnnotationChange({"stage": "best"}, ("note",), {"return": 1.5}, ("loss",), 7)
    update = lifecycle.update_request("m", "production", change).SerializeToString()
    changes = [AliasChange("production", 1, 2), AliasChange("canary", None)]
    aliases = lifecycle.set_aliases_request("m", changes).SerializeToString()
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
        *((parse_a_token, bytes((index,)) + b'[487.5, "m", 1]') for index in range(len(_ORDERS))),
        (parse_a_token, bytes((6,)) + b'[null, "m", 4294967295]'),
        *((decode_a_lifecycle_request, bytes((index,)) + update) for index in (0, 1)),
        (decode_a_lifecycle_request, b"\4" + aliases),
        (decode_a_lifecycle_request, b"\7" + lifecycle.version_message(_VERSION).SerializeToString()),
        (check_a_hash, hash_of.encode()),
        (parse_a_mark, b"128\n"),
        (parse_a_file_name, b"m-v000001.yaml"),
        (parse_a_file_name, b"m-v1000000.data"),
        (check_an_id, "été-v000001.a b".encode()),
    ]


def main() -> None:
    """Write the first inputs into the directory in the last argument, and fuzz the decoders as the flags say."""
    sys.set_int_max_str_digits(0)  # for the numbers that metrics are compared with
    for index, (decoder, data) in enumerate(_seeds()):
        with open(os.path.join(sys.argv[-1], f"seed{index}"), "wb") as file:
            file.write(bytes((_DECODERS.index(decoder),)) + data)
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
