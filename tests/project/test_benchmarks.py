"""The benchmarks run and write reports; their figures are not tested, since machines differ."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/performance.md").read_text()
FIGURES = json.loads((ROOT / "docs/benchmarks/figures.json").read_text())


def benchmarks(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": "", "PATH": path}  # with rich
    return run(sys.executable, "-m", "benchmarks", *arguments, cwd=ROOT, environment=environment)


def test_a_quick_run_prints_a_table_and_writes_its_measurements(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = benchmarks("--quick", "--only", "infos-calls", "--only", "list", "--json", str(file))
    assert result.returncode == 0, result.stdout + result.stderr
    run = json.loads(file.read_text())
    assert {figure["name"] for figure in run["figures"]} == {"infos calls", "list versions"}
    for figure in run["figures"]:
        assert 0 < figure["value"]["lower"] <= figure["value"]["median"] <= figure["value"]["upper"]
        assert figure["ratio"]["median"] > 0
        assert figure["peak_mib"] > 10
        assert figure["what"].split()[0] in result.stdout
    assert run["quick"] is True
    assert run["failed"] == {}


def test_benchmarks_that_need_a_missing_program_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = benchmarks("--quick", "--only", "h2load", "--json", str(file), path=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped: h2load: no h2load" in result.stdout
    assert json.loads(file.read_text())["skipped"] == {"h2load": "no h2load"}


def test_every_measurement_is_listed() -> None:
    listed = {line.split()[0] for line in benchmarks("--list").stdout.splitlines()}
    names = "publish store start large h2load redis mlflow shardcast throughput trial-publish"
    assert listed >= {*names.split()}


def test_an_unknown_measurement_is_a_usage_error() -> None:
    result = benchmarks("--only", "nothing")
    assert result.returncode == 2
    assert "there is no nothing" in result.stderr


def test_the_figures_of_the_page_are_of_a_full_run_in_which_nothing_failed() -> None:
    assert FIGURES["quick"] is False
    assert FIGURES["failed"] == {}
    assert FIGURES["skipped"] == {}


@pytest.mark.parametrize("curve", [curve["name"] for curve in FIGURES["curves"]])
def test_the_page_shows_each_plot(curve: str) -> None:
    assert f"(benchmarks/{curve}.svg)" in PAGE
    assert (ROOT / f"docs/benchmarks/{curve}.svg").is_file()


def test_the_targets_on_the_page_match_the_measurements() -> None:
    missed = [figure["what"] for figure in FIGURES["figures"] if figure["reached"] is False]
    explained = PAGE.split("## Missed targets")[1].split("\n## ")[0]
    for what in missed:
        assert re.search(re.escape(what), explained, re.IGNORECASE), (
            f"{what} is missed, and the page does not explain it"
        )
