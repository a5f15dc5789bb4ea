"""docs/object_store.md, run: its shell commands, as one script, against a real S3 server."""

import re
from pathlib import Path

import pytest

from tests import pages
from tests.object_store import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from tests.ports import free_port

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
    directory = tmp_path / "session"
    text = pages.run_script(script(object_store), directory, RUN_SECONDS)
    log = "".join((directory / "registry.log").read_text())
    assert SECRET_ACCESS_KEY not in log + text


def test_the_installation_names_the_extra() -> None:
    [block] = pages.blocks(PAGE, "console")
    assert re.search(r"pip install 'cogment-model-registry\[server,bucket\]'", block)
    assert "bucket = [" in (pages.ROOT / "pyproject.toml").read_text()
