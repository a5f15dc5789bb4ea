"""Versions as fields of replies: encoded once each, for as long as the record lives."""

import dataclasses
import pickle

from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import convert, messages


def version(number: int = 1, **user_data: str) -> VersionInfo:
    return VersionInfo("m", number, 1_700_000_000, False, "hash", 3, user_data)


def encodings(text: bytes) -> int:
    """Return how many encodings contain a text; records of other tests come and go in the meantime."""
    return sum(text in data for data, _ in [*convert._encodings.values()])


def test_a_record_is_encoded_once() -> None:
    info = version()
    assert convert.encode_version(info) is convert.encode_version(info)


def test_equal_records_have_equal_encodings() -> None:
    assert convert.encode_version(version(step="1")) == convert.encode_version(version(step="1"))
    assert convert.encode_version(version(step="1")) != convert.encode_version(version(step="2"))


def test_an_encoding_is_dropped_with_its_record() -> None:
    infos = [version(number, of="dropped") for number in range(1, 101)]
    for info in infos:
        convert.encode_version(info)
    assert encodings(b"dropped") == 100
    del infos, info
    assert encodings(b"dropped") == 0


def test_a_record_at_a_reused_address_gets_its_own_encoding() -> None:
    for number in range(1, 1001):
        reply = messages.CreateVersionReply.FromString(convert.encode_version(version(number)))
        assert reply.version_info.version_number == number


def test_a_record_does_not_contain_its_encoding() -> None:
    info = version(step="1")
    convert.encode_version(info)
    assert [field.name for field in dataclasses.fields(info)] == [
        "model_id",
        "number",
        "created_ns",
        "archived",
        "data_hash",
        "data_size_bytes",
        "user_data",
        "signature",
    ]
    assert pickle.loads(pickle.dumps(info)) == dataclasses.replace(info) == info
