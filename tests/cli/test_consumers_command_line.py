"""Consumers and their versions on the command line."""

import json
from typing import Any

from cogment_model_registry import ModelRegistry
from tests.cli.test_model_registry_command_line import Cogment, cogment, failed, line_of, registry
from tests.terminal import on_terminal

__all__ = ["cogment", "registry"]

WORDS = ("client", "model_registry")


def report(registry: ModelRegistry) -> None:
    for data in (b"1", b"2", b"3"):
        registry.publish("m", data)
    registry.report_consumer("m", "b 2", version=1, labels={"host": "node 1"}, held_versions=[1, 2])
    registry.report_consumer("m", "a", state="failed", error="no\tmemory")


def test_consumers_are_listed_as_a_table_as_ids_and_as_json(cogment: Cogment, registry: ModelRegistry) -> None:
    report(registry)
    head, first, second = cogment.output("list_consumers", "m").splitlines()
    assert head.split() == ["CONSUMER", "VERSION", "BEHIND", "SECONDS", "STATE", "HELD", "LABELS", "ERROR"]
    words = first.split()
    assert [*words[:3], *words[4:]] == ["a", "-", "3", "failed", "-", "-", '"no\\tmemory"']
    assert second.split()[:4] == ['"b', '2"', "1", "2"]
    assert second.endswith('active  1,2   host="node 1"')
    assert cogment.output("list_consumers", "m", "--quiet") == 'a\n"b 2"\n'
    assert cogment.output("list_consumers", "--quiet", "--limit=1") == "m a\n"
    assert cogment.output("list_consumers", "m", "--quiet", "--filter=versions_behind = 2") == '"b 2"\n'
    [listed] = cogment.json("list_consumers", "m", "--filter=state = active")
    seconds, reported = listed.pop("seconds_behind"), listed.pop("reported_ns")
    assert seconds > 0
    assert reported > 0
    assert listed == {
        "model_id": "m",
        "consumer_id": "b 2",
        "version_number": 1,
        "state": "active",
        "error": "",
        "labels": {"host": "node 1"},
        "ttl_seconds": 30,
        "held_versions": [1, 2],
        "versions_behind": 2,
    }
    assert failed(cogment.run("list_consumers", "none"), 3, '"none"')
    assert failed(cogment.run("list_consumers", "m", "--filter=nothing = 1"), 1, "malformed")


def test_changes_of_consumers_are_printed_with_follow(cogment: Cogment, registry: ModelRegistry) -> None:
    report(registry)
    with cogment.started("list_consumers", "m", "--follow", "--json", "--filter=NOT state = failed") as process:
        assert [each["version_number"] for each in json.loads(line_of(process))] == [1]
        registry.report_consumer("m", "b 2", version=3)
        changed: Any = json.loads(line_of(process))
        assert [(each["version_number"], each["versions_behind"]) for each in changed] == [(3, 0)]
    with cogment.started("list_consumers", "m", "--follow", "--quiet") as process:
        assert [line_of(process), line_of(process)] == [b"a\n", b'"b 2"\n']
        registry.report_consumer("m", "c", version=3)
        assert [line_of(process) for _ in range(4)] == [b"\n", b"a\n", b'"b 2"\n', b"c\n"]


def test_a_terminal_shows_the_table_in_place(cogment: Cogment, registry: ModelRegistry) -> None:
    report(registry)
    with on_terminal(*WORDS, "list_consumers", "m", "--follow", environment=cogment.environment) as terminal:
        terminal.wait_for("b 2")
        registry.report_consumer("m", "actor-99", version=3)
        terminal.wait_for("actor-99")
