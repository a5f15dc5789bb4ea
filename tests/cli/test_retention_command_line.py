"""Tags, rules of retention and shares of models on the command line."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry import ModelRegistry, RetentionRule
from cogment_model_registry.cli.rules import parse_rule, parse_rules, rule_text
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.documents import rule_as_json
from cogment_model_registry.records.retention import TransientShare
from tests.cli.test_model_registry_command_line import Cogment, cogment, failed, registry

__all__ = ["cogment", "registry"]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
RULES = st.builds(
    RetentionRule,
    tier=st.sampled_from(["any", "transient", "archived"]),
    filter=TEXTS,
    keep_last=st.integers(0, 2**32 - 1),
    keep_best=st.integers(0, 9),
    metric=TEXTS,
    lower_is_better=st.booleans(),
    keep_seconds=st.integers(0, 2**40),
    keep_every=st.integers(0, 9),
)


@given(rule=RULES)
def test_a_rule_is_read_back_from_its_text_and_from_its_json(rule: RetentionRule) -> None:
    assert parse_rule(rule_text(rule)) == rule
    assert parse_rules(json.dumps([rule_as_json(rule)]), "a file") == [rule]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("archive keep_last=1", "has the word 'archive'; allowed are transient, archived"),
        ("keep_last", "has the word 'keep_last'"),
        ("keep=3", "has the word 'keep=3'"),
        ("keep_last=ten", "keep_last is 'ten'; it must be a whole number"),
        ("keep_last=1 keep_last=2", "has keep_last twice"),
        ("filter='tags.a", "is malformed: No closing quotation"),
        ("lower_is_better=maybe", "must be true or false"),
    ],
)
def test_a_malformed_rule_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        parse_rule(text)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("[", "a file is not JSON"),
        ("{}", "must have a JSON list of objects"),
        ("[5]", "must have a JSON list of objects"),
        ('[{"keep": 5}]', "rule 1 of a file has the field 'keep'"),
        ('[{}, {"keep_last": "5"}]', "rule 2 of a file: keep_last is '5'; it must be a whole number"),
        ('[{"keep_last": true}]', "it must be a whole number"),
    ],
)
def test_a_malformed_document_is_refused(document: str, problem: str) -> None:
    with pytest.raises(InvalidError, match=problem):
        parse_rules(document, "a file")


def test_rules_are_set_shown_dry_run_and_applied(cogment: Cogment, registry: ModelRegistry) -> None:
    for number in range(1, 5):
        registry.store("walker", b"%d" % number)
    registry.set_alias("walker", "production", 1)
    table = cogment.output("apply_retention", "walker", "--dry_run", "--rule=archived keep_last=2")
    assert table.splitlines() == [
        "VERSION  KIND      SIZE  ACTION  REASON",
        "      2  archived     1  delete  rule 1 keeps the last 2, and this is number 3",
        "      1  archived     1  keep    alias production",
        "      3  archived     1  keep    rule 1 keeps the last 2",
        "      4  archived     1  keep    newest version",
        "1 version would be deleted (1 B), 3 kept",
    ]
    said = cogment.output("set_retention", "walker", "--rule=archived keep_last=2", "--rule=keep_best=1 metric=return")
    assert said.startswith("model walker has 2 rules; revision ")
    assert cogment.output("show_retention", "walker").splitlines() == [
        "archived keep_last=2",
        "keep_best=1 metric=return",
    ]
    rules = cogment.output("show_retention", "walker", "--json")
    assert json.loads(rules) == [{"tier": "archived", "keep_last": 2}, {"keep_best": 1, "metric": "return"}]
    (cogment.directory / "rules.json").write_text(rules)
    registry.set_retention("walker", [])
    cogment.output("set_retention", "walker", "--file=rules.json")
    registry.set_retention("walker", [])
    cogment.piped("set_retention", "walker", "--file=-", "--quiet", data=rules.encode())
    assert cogment.output("apply_retention", "walker", "--quiet") == "2\n"
    report = cogment.json("apply_retention")
    assert (report["deleted_versions"], report["kept_versions"], report["freed_bytes"]) == (0, 3, 0)
    assert {"deleted", "reason", "number", "aliases"} <= report["decisions"][0].keys()
    assert cogment.json("set_retention", "walker", "--none")["retention"] == []
    assert cogment.output("show_retention", "walker") == ""


def test_tags_and_shares_are_set_and_models_found(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.create_model("walker")
    registry.create_model("other")
    model: Any = cogment.json("update_model", "walker", "--tag=team=robots", "--tag=stage=test")
    assert model["tags"] == {"team": "robots", "stage": "test"}
    revision = model["revision"]
    assert failed(cogment.run("update_model", "walker", "--tag=a=b", "--expected=99"), 1, f"revision {revision}")
    cogment.output("update_model", "walker", "--remove_tag=stage", f"--expected={revision}")
    share = cogment.json("set_share", "walker", "--max_bytes=4GiB", "--reserved_items=10")["share"]
    assert share == {"max_items": 0, "max_bytes": 2**32, "reserved_items": 10, "reserved_bytes": 0}
    assert registry.describe_model("walker").share == TransientShare(max_bytes=2**32, reserved_items=10)
    assert cogment.output("find_models", "--filter=tags.team = robots").splitlines() == [
        "MODEL   LATEST  VERSIONS  ARCHIVED  RULES  ALIASES  TAGS",
        "walker       -         0         0      0  -        team=robots",
    ]
    assert cogment.output("find_models", "--quiet", "--limit=1") == "other\n"
    assert [each["model_id"] for each in cogment.json("find_models")] == ["other", "walker"]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["set_retention", "m"], 2, "give --rule, --file or --none"),
        (["set_retention", "m", "--none", "--rule=keep_last=1"], 2, "give either --rule or --file or --none"),
        (["set_retention", "m", "--rule=keep_last"], 1, "has the word 'keep_last'"),
        (["set_retention", "m", "--rule=keep_best=1"], 1, "needs the metric"),
        (["set_retention", "m", "--file=none.json"], 1, "cannot read none.json failed"),
        (["apply_retention", "m", "--rule=keep_last=1"], 2, "only for --dry_run"),
        (["update_model", "m"], 2, "at least one of --tag"),
        (["set_share", "m", "--max_bytes=many"], 2, "must be a number of bytes"),
        (["find_models", "--filter=metrics.a > 1"], 1, "malformed at character 1"),
    ],
)
def test_invalid_arguments_are_reported(
    cogment: Cogment, registry: ModelRegistry, words: list[str], code: int, problem: str
) -> None:
    registry.create_model("m")
    result = cogment.run(*words)
    assert result.returncode == code
    assert problem in result.stderr


def test_a_file_that_is_too_large_is_refused(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.create_model("m")
    (cogment.directory / "rules.json").write_bytes(b" " * (1024 * 1024 + 1))
    assert failed(cogment.run("set_retention", "m", "--file=rules.json"), 1, "more than 1048576 bytes")
