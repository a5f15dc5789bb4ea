"""The arithmetic of the scale model, on figures with which it can be done by heart; and the file and the page of it."""

import json
import re
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.machine import Machine
from benchmarks.scale_model import keeping, spreading, tables
from benchmarks.scale_model.__main__ import main
from benchmarks.scale_model.costs import costs
from benchmarks.scale_model.figures import FILE, Figures, Measured, rows
from benchmarks.scale_model.inputs import GIB, INPUTS, Inputs, Kept, Machines, Prices, Work
from tests import pages
from tests.pages import ROOT
from tests.processes import run

ONE_OF_EACH = Figures(**dict.fromkeys((each.name for each in fields(Figures)), 1.0))
FREE = replace(ONE_OF_EACH, publish=0.0, relay=0.0)
"""Sending a GiB takes a second of a core, and receiving one takes nothing."""

FAST_NETWORK = Machines(cores=1.0, network_gbit=1e6, usable=1.0)
PUBLISHED, STORED = spreading.published, spreading.stored
WORK = Work(actors=100, version_gib=1.0, interval_seconds=60.0)


def test_one_server_sends_a_version_to_each_actor() -> None:
    alone = spreading.published(1, WORK, FAST_NETWORK, FREE)
    assert alone.sent_bytes == 100 * GIB
    assert alone.seconds == pytest.approx(100)
    assert alone.limit == "processor"


def test_the_first_of_several_servers_also_sends_to_the_others() -> None:
    ten = spreading.published(10, WORK, FAST_NETWORK, FREE)
    assert ten.sent_bytes == (10 + 9) * GIB
    assert ten.seconds == pytest.approx(19)


def test_the_best_number_of_servers_is_the_root_of_the_fetches() -> None:
    assert spreading.fastest(PUBLISHED, WORK, FAST_NETWORK, FREE).servers == 10
    assert spreading.fastest(PUBLISHED, replace(WORK, actors=10_000), FAST_NETWORK, FREE).servers == 100


def test_the_fewest_servers_are_those_that_are_just_in_time() -> None:
    # Two take 51 seconds.
    fewest = spreading.fewest(PUBLISHED, WORK, FAST_NETWORK, FREE)
    assert fewest is not None
    assert fewest.servers == 2
    just = spreading.fewest(PUBLISHED, replace(WORK, interval_seconds=50.9), FAST_NETWORK, FREE)
    assert just is not None
    assert just.servers == 3


def test_no_number_of_servers_is_in_time_if_the_first_one_cannot_send_enough_copies() -> None:
    assert spreading.fewest(PUBLISHED, replace(WORK, interval_seconds=18.9), FAST_NETWORK, FREE) is None
    assert spreading.fewest(PUBLISHED, replace(WORK, interval_seconds=19.1), FAST_NETWORK, FREE) is not None


def test_actors_of_a_host_that_share_a_fetch_count_once() -> None:
    shared = replace(WORK, actors_per_fetch=10)
    assert shared.fetches == 10
    assert spreading.published(1, shared, FAST_NETWORK, FREE).sent_bytes == 10 * GIB


def test_the_models_that_publish_are_spread_over_the_servers() -> None:
    two = replace(WORK, publishing_models=2)
    spread = spreading.published(2, two, FAST_NETWORK, ONE_OF_EACH)
    # Each server is the first one of a model: it has half of 200 fetches, sends one copy, and receives two versions.
    assert spread.sent_bytes == (100 + 1) * GIB
    assert spread.processor_seconds == pytest.approx(101 + 1 + 1)


def test_what_may_be_planned_with_is_a_part() -> None:
    half = spreading.published(1, WORK, replace(FAST_NETWORK, usable=0.5), FREE)
    assert half.processor_seconds == pytest.approx(200)


def test_a_slow_network_is_the_limit() -> None:
    slow = spreading.published(1, WORK, Machines(cores=1.0, network_gbit=0.8, usable=1.0), FREE)
    assert slow.limit == "network"
    assert slow.seconds == pytest.approx(100 * GIB / 1e8)


def test_a_server_that_relays_may_be_busier_than_the_first_one() -> None:
    two = spreading.published(2, WORK, FAST_NETWORK, replace(FREE, relay=5.0))
    assert two.processor_seconds == pytest.approx(50 + 5)


def test_stored_versions_take_half_the_time_with_twice_the_servers() -> None:
    figures = replace(FREE, bucket_write=0.0)
    assert spreading.stored(2, WORK, FAST_NETWORK, figures).seconds == pytest.approx(50)
    assert spreading.stored(4, WORK, FAST_NETWORK, figures).seconds == pytest.approx(25)
    fewest = spreading.fewest(STORED, replace(WORK, interval_seconds=9.9), FAST_NETWORK, figures)
    assert fewest is not None
    assert fewest.servers == 11


def test_memory_is_that_of_actors_and_of_three_versions() -> None:
    assert spreading.memory_bytes(WORK, 10, ONE_OF_EACH) == 2**20 + 10 * 2 * 2**10 + 3 * GIB


def test_a_version_is_rows_a_record_and_parts() -> None:
    kept = Kept(models=10, versions=100, archived_mib=20.0, stores_per_second=2.0)
    room = keeping.room(kept, replace(ONE_OF_EACH, version_row=500.0, model_row=200.0))
    assert room.objects_per_version == 4
    assert room.objects == 410
    assert room.database_bytes == 52_000
    assert room.stored_bytes == 100 * 20 * 2**20
    assert keeping.room(replace(kept, archived_mib=0.1), ONE_OF_EACH).objects_per_version == 2
    assert keeping.written_gib_per_second(kept) == pytest.approx(40 / 1024)


def test_postgresql_takes_as_many_calls_as_its_cores_have_time_for() -> None:
    figures = replace(ONE_OF_EACH, small_publish_database=2.0, small_store_database=4.0, lookup_database=0.5)
    machines = Machines(database_cores=4, usable=0.5)
    assert keeping.publishes_per_second(machines, figures) == pytest.approx(1000)
    assert keeping.stores_per_second(machines, figures) == pytest.approx(500)
    assert keeping.lookups_per_second(machines, figures) == pytest.approx(4000)


def test_a_month_costs_what_its_quantities_cost() -> None:
    inputs = Inputs(
        work=WORK,
        kept=Kept(models=0, versions=1024, archived_mib=1.0, stores_per_second=1.0),
        prices=Prices(server_hour=2.0, stored_gib_month=0.5, thousand_writes=1.0),
    )
    servers = spreading.published(3, WORK, FAST_NETWORK, FREE)
    found = {each.what: each for each in costs(inputs, servers, ONE_OF_EACH)}
    assert found["3 servers"].amount == pytest.approx(3 * 730.5 * 2)
    assert found["bytes in the object store"].amount == pytest.approx(0.5)
    assert found["requests that write objects"].amount == pytest.approx(2 * 30.4375 * 86_400 / 1000)
    assert found["bytes to actors"].quantity == pytest.approx(100 * 30.4375 * 86_400 / 60)
    assert found["bytes to actors"].amount == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.5, "1.50"), (15.55, "15.6"), (1234567.8, "1,234,568")]
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert tables.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 bytes"), (2**20, "1.00 MiB"), (1500 * 2**20, "1.46 GiB"), (2**53, "8.00 PiB")]
)
def test_sizes_have_the_unit_that_fits(value: float, text: str) -> None:
    assert tables.size(value) == text


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    machine = Machine("2026-01-02T00:00:00+00:00", 2, "processor", 1024, 0.5, "Linux", "ext4", "3.11", "1.80", "abc")
    measured = Measured(machine, {"PostgreSQL": "15"}, ONE_OF_EACH)
    path = tmp_path / "scale.json"
    measured.write(path)
    assert Measured.read(path) == measured
    assert json.loads(path.read_text())["figures"]["send"] == {
        "value": 1.0,
        "unit": "core s / GiB",
        "what": "send a version from memory",
    }


def scale_model(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_each_input_is_an_option_that_changes_the_tables() -> None:
    command = (sys.executable, "-m", "benchmarks.scale_model")
    usual = run(*command, cwd=ROOT, environment={"PYTHONPATH": ""}).stdout
    assert usual == scale_model()
    text = scale_model("--help")
    for part in INPUTS:
        for each in fields(part):
            assert f"--{each.name} " in text
    changed = scale_model("--actors=50", "--version_gib=0.5", "--server_hour=2")
    assert changed != usual
    assert "50 actors, a version of 512 MiB every 60 s" in changed
    assert re.search(r"\| [\d,]+ servers \| [\d.,]+ hours \| [\d.,]+ \|", changed)


def test_the_measured_figures_are_complete_and_positive() -> None:
    measured = Measured.read(FILE)
    assert {name for name, *_ in rows(measured.figures)} == {*asdict(measured.figures)}
    assert all(value > 0 for value in asdict(measured.figures).values())
    assert measured.machine.cores >= 1


def test_the_page_shows_the_tables_of_the_defaults() -> None:
    page = pages.text_of("docs/scale_model.md")
    for table in tables.report(Inputs(), Measured.read(FILE)).values():
        assert table in page


def test_the_commands_of_the_page_print_tables() -> None:
    lines = [line for block in pages.blocks("docs/scale_model.md", "sh") for line in block.splitlines()]
    commands = [line.removeprefix("python -m benchmarks.scale_model").split() for line in lines]
    assert ["measure"] in commands
    for arguments in commands:
        assert "fastest" in scale_model(*arguments) if arguments != ["measure"] else scale_model("measure", "--help")
