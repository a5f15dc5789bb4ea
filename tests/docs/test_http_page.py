"""docs/http.md, run: its commands, as one script; and its tables, compared with the code."""

import re
import shutil
from pathlib import Path

import pytest

from cogment_model_registry.web.errors import STATUS_BY_ERROR
from cogment_model_registry.web.serving import HEAD_SECONDS
from cogment_model_registry.web.sessions import IDLE_SECONDS, LONGEST_SECONDS
from tests import pages
from tests.ports import free_ports

PAGE = "docs/http.md"
RUN_SECONDS = 110
PORT = re.compile(r"^(\w+_PORT)=\d+$", re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_page_work_from_top_to_bottom(tmp_path: Path) -> None:
    text = "\n".join(pages.blocks(PAGE, "sh"))
    ports = iter(free_ports(len(PORT.findall(text))))
    script = "set -euo pipefail\n" + PORT.sub(lambda match: f"{match[1]}={next(ports)}", text)
    printed = pages.run_script(script, tmp_path / "session", RUN_SECONDS)
    assert '"next_page_token"' in printed
    assert pages.languages(PAGE) == {"sh"}


def test_the_table_of_errors_is_that_of_the_code() -> None:
    text = pages.text_of(PAGE)
    rows = re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", text, re.MULTILINE)
    documented = {
        (name, int(status))
        for statuses, about in rows
        for name, status in zip(re.findall(r"`(\w+Error)`", about), _spread(statuses, about), strict=True)
    }
    hidden = {"OutOfRangeError", "ClosedError", "SettingError"}  # no caller over HTTP gets them
    in_code = {(kind.__name__, status.value) for kind, status in STATUS_BY_ERROR.items() if kind.__name__ not in hidden}
    assert documented == in_code | {("DataLossError", 500)}


def _spread(statuses: str, about: str) -> list[str]:
    """Return a status for each error of a row, which has one for all or one for each."""
    given = re.findall("[0-9]+", statuses)
    names = re.findall(r"`\w+Error`", about)
    return given if len(given) == len(names) else given[:1] * len(names)


def test_the_bounds_are_those_of_the_code() -> None:
    text = pages.text_of(PAGE)
    assert f"within {HEAD_SECONDS:g} seconds" in text
    assert f"{IDLE_SECONDS / 3600:g} hours" in text
    assert f"{LONGEST_SECONDS / 86400:g} days" in text
