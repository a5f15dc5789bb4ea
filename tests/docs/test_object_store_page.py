"""docs/object_store.md, run: its shell commands, as one script, against a real S3 server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pages
from tests.object_store import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from tests.ports import free_port
from tests.processes import clean_environment

PAGE = "docs/object_store.md"
RUN_SECONDS = 300


def script(server: S3Server) -> str:
    """Return the commands of the page with the server of the tests, and an end at the first one that fails."""
    text = "\n".join(pages.blocks(PAGE, "sh"))
    places = {
        "http://127.0.0.1:8333": server.endpoint,
        "my-key": ACCESS_KEY_ID,
        "my-secret": SECRET_ACCESS_KEY,
        "REGISTRY_PORT=9002": f"REGISTRY_PORT={free_port()}",
    }
    for documented, actual in places.items():
        assert documented in text
        text = text.replace(documented, actual)
    return "set -euo pipefail\n" + text


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_commands_of_the_page_work_from_top_to_bottom(object_store: S3Server, tmp_path: Path) -> None:
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    output_path = tmp_path / "output"
    directory = tmp_path / "session"
    directory.mkdir()
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script(object_store)],
            cwd=directory,
            env={**clean_environment(), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a failure leaves running can be ended as a whole
        )
        try:
            code = process.wait(RUN_SECONDS)
        finally:
            left = pages.end_session(process)
    text = output_path.read_text()
    assert code == 0, f"exit code {code} after:\n{text}"
    assert not left, f"the page leaves processes behind, after:\n{text}"
    log = "".join((directory / "registry.log").read_text())
    assert SECRET_ACCESS_KEY not in log + text


def test_the_installation_names_the_extra() -> None:
    [block] = pages.blocks(PAGE, "console")
    assert re.search(r"pip install 'cogment-model-registry\[server,bucket\]'", block)
    assert "bucket = [" in (pages.ROOT / "pyproject.toml").read_text()
