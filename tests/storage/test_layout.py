"""Names and metadata files: written values are read back, and anything else is refused."""

import datetime
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.records.timestamps import parse_timestamp
from cogment_model_registry.records.versions import CREATED_MAX_NS, ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import layout

HASH = "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI="

# The values of a protobuf string: all of Unicode except lone surrogates.
_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["yes", "1e3", "~", "null", "2021-10-01", "", "a\nb", "a: b", "- a", "#", "'", '"', "\0", "\x85", "\u2028",
     "\ufeff",
     " a ", "0x1F", "0o17", "1_000", "=", "<<", "!!str", "&a", "*a", "%", "@", "`",
     "\t", "a" * 2000, "é\r\n", "\U0010ffff"]
)  # fmt: skip
_USER_DATA = st.dictionaries(_TEXT, _TEXT, max_size=5)
_MODEL_ID = st.sampled_from(["m", "123", "yes", "null", "1e3", "été", "a: b", "2021-10-01", "=", "m-v000001", "0x1F"])


@given(_MODEL_ID, _USER_DATA)
def test_a_model_comes_back_unchanged(model_id: str, user_data: dict[str, str]) -> None:
    info = ModelInfo(model_id, user_data)
    assert layout.parse_model(layout.format_model(info), model_id) == info


@given(_MODEL_ID, st.integers(1, 2**32 - 1), st.integers(0, CREATED_MAX_NS), st.integers(0, 2**63 - 1), _USER_DATA)
def test_a_version_comes_back_unchanged(
    model_id: str, number: int, created_ns: int, size: int, user_data: dict[str, str]
) -> None:
    info = VersionInfo(model_id, number, created_ns, True, HASH, size, user_data)
    assert layout.parse_version(layout.format_version(info), model_id, number) == info


@given(_USER_DATA)
def test_other_yaml_readers_read_the_same_texts(user_data: dict[str, str]) -> None:
    fields = yaml.load(layout.format_version(VersionInfo("m", 1, 10**18, True, HASH, 14, user_data)), yaml.CSafeLoader)
    assert fields["user_data"] == user_data
    assert fields["version_number"] == 1
    assert fields["data_size"] == 14
    assert fields["data_hash"] == HASH
    assert isinstance(fields["creation_timestamp"], datetime.datetime)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2021-10-01T20:10:05.10745462Z", 1_633_119_005_107_454_620),
        ("2021-10-01T22:10:05.107454620+02:00", 1_633_119_005_107_454_620),
        ("2021-10-01T15:40:05.107454620-04:30", 1_633_119_005_107_454_620),
        ("2021-10-01T20:10:05Z", 1_633_119_005_000_000_000),
        ("2021-10-01t20:10:05.000000001z", 1_633_119_005_000_000_001),
        ("1970-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999999Z", 0),
        ("2554-07-21T23:34:33.709551615Z", 2**64 - 1),
        ("9999-12-31T23:59:59Z", 2**64 - 1),
    ],
)
def test_a_time_keeps_its_nanoseconds(text: str, ns: int) -> None:
    assert parse_timestamp(text) == ns


@pytest.mark.parametrize("text", ["", "now", "2021-13-01T00:00:00Z", "2021-10-01", "2021-10-01T20:10:05", "1633119005"])
def test_a_malformed_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"year|month|day|RFC 3339"):
        parse_timestamp(text)


@given(st.integers(1, 2**32 - 1), st.sampled_from(["m", "m-v000001", "a.yaml", "123"]))
def test_file_names_contain_their_number(number: int, model_id: str) -> None:
    assert layout.parse_file_name(model_id, layout.version_file_name(model_id, number)) == (number, "yaml")
    assert layout.parse_file_name(model_id, layout.data_file_name(model_id, number)) == (number, "data")
    assert layout.parse_file_name(model_id + "x", layout.data_file_name(model_id, number)) is None


@pytest.mark.parametrize(
    "name",
    ["m.yaml", "m-v1.yaml", "m-v0000001.yaml", "m-v000000.yaml", "m-v000001.yaml.bak", "m-v000001.yml",
     "m-v4294967296.yaml",
     "m-v٠٠٠٠٠١.yaml", "m-v00001x.data", ".m-v000001.yaml", "n-v000001.yaml", "m-v-00001.data"],
)  # fmt: skip
def test_other_names_are_not_versions(name: str) -> None:
    assert layout.parse_file_name("m", name) is None


def test_the_original_ignores_temporary_names() -> None:
    name = layout.temporary_name()
    assert layout.is_temporary(name)
    # The patterns by which the original recognizes a model's directory, and a version's metadata.
    assert not re.search("[a-zA-Z]", name)
    assert not re.search("-v[0-9]+.yaml", name)


@given(st.binary(max_size=200))
def test_any_text_is_read_or_reported_as_bad_metadata(text: bytes) -> None:
    for parse in (lambda: layout.parse_model(text, "m"), lambda: layout.parse_version(text, "m", 1)):
        with pytest.raises(layout.BadMetadata):
            parse()
