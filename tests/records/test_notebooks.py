"""Records in notebooks and in pandas."""

import copy
import dataclasses
import pickle
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.records.lifecycle import Alias, Annotations, ModelSummary, Version
from cogment_model_registry.records.notebooks import Shown
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

INFO = VersionInfo("policy", 3, 1_795_773_600_000_000_000, True, "the hash", 5_000_000, {"step": "7", "seed": "12"})
VERSION = Version.of(INFO, Annotations({"stage": "candidate"}, {"return": 487.5}, 9), ("best", "production"))
ALIAS = Alias("production", 3, 2, 1_795_773_600_000_000_000)
SUMMARY = ModelSummary("policy", {"task": "walk"}, (ALIAS,), 3, 2, 5_000_000)
LABELS = {
    "VersionInfo": [
        "model_id",
        "number",
        "created",
        "archived",
        "data_hash",
        "data_size_bytes",
        "user_data",
        "signature",
    ],
    "Alias": ["name", "version_number", "revision", "set"],
    "ModelInfo": ["model_id", "user_data"],
}


class Table(HTMLParser):
    """The tags and the texts of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag in ("th", "td", "caption"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data + "\n"

    @property
    def fields(self) -> dict[str, str]:
        texts = [text.rstrip("\n") for text in self.texts[1:]]
        return dict(zip(texts[::2], texts[1::2], strict=True))


def table_of(record: Shown) -> Table:
    return Table(record._repr_html_())


@pytest.mark.parametrize("record", [INFO, ALIAS, ModelInfo("policy")], ids=lambda record: type(record).__name__)
def test_a_notebook_shows_the_fields_of_a_record(record: Shown) -> None:
    name = type(record).__name__
    table = table_of(record)
    assert table.texts[0] == name + "\n"
    assert list(table.fields) == LABELS[name]


def test_a_notebook_shows_values_as_people_read_them() -> None:
    fields = table_of(VERSION).fields
    assert fields["created"] == "2026-11-27T10:00:00.000000000Z"
    assert fields["archived"] == "yes"
    assert fields["data_size_bytes"] == "5000000 (4.8 MiB)"
    assert fields["user_data"] == "seed = 12\nstep = 7"
    assert fields["metrics"] == "return = 487.5"
    assert fields["aliases"] == "best\nproduction"
    summary = table_of(SUMMARY).fields
    assert (summary["model_id"], summary["user_data"], summary["versions"]) == ("policy", "task = walk", "2")
    assert summary["aliases"].startswith("name = production, version_number = 3, revision = 2, set = 2026-11-27T10")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("<>&\"'"), min_size=1))
def test_texts_of_users_are_never_html(text: str) -> None:
    def shown(text: str) -> Table:
        entries = {text: text}
        return table_of(
            dataclasses.replace(VERSION, model_id=text, user_data=entries, tags=entries, aliases=(text, text))
        )

    table = shown(text)
    assert table.tags == shown("x").tags
    assert table.fields["tags"] == f"{text} = {text}".rstrip("\n")


def test_the_table_of_a_version_includes_its_info() -> None:
    assert VERSION.info == INFO
    assert VERSION.annotations == Annotations({"stage": "candidate"}, {"return": 487.5}, 9)
    assert Version.of(VERSION.info, VERSION.annotations, VERSION.aliases) == VERSION
    assert pickle.loads(pickle.dumps(VERSION)) == copy.deepcopy(VERSION) == VERSION
    assert VERSION != INFO


def test_a_list_of_records_is_a_table_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([VERSION, dataclasses.replace(VERSION, number=4, metrics={"return": 9.0, "loss": 1.0})])
    fixed = [field.name for field in dataclasses.fields(VersionInfo)]
    assert list(table.columns) == [*fixed, "tags", "metrics", "aliases", "revision"]
    assert list(table.number) == [3, 4]
    assert table.number.dtype == "int64"
    assert list(table.aliases) == [("best", "production")] * 2
    assert list(pandas.DataFrame([INFO]).columns) == fixed
    assert list(pandas.DataFrame({"production": ALIAS}.values()).version_number) == [3]
    flat = pandas.json_normalize([dataclasses.asdict(version) for version in (VERSION, VERSION)])
    assert list(flat["metrics.return"]) == [487.5, 487.5]
