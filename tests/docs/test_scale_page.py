"""docs/scale.md, run: its shell commands, as one script, against a real S3 server and a real PostgreSQL."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cogment_model_registry.storage.postgres import connections
from tests import pages
from tests.object_store import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from tests.ports import free_ports

PAGE = "docs/scale.md"
RUN_SECONDS = 300


def script(server: S3Server, database: str) -> str:
    """Return the commands of the page with the servers of the tests, and an end at the first one that fails."""
    text = "\n".join(pages.blocks(PAGE, "sh"))
    one, *several = free_ports(4)
    at = urlsplit(database)
    places = {
        "http://127.0.0.1:8333": server.endpoint,
        "my-key": ACCESS_KEY_ID,
        "my-secret": SECRET_ACCESS_KEY,
        "REGISTRY_PORT=9002": f"REGISTRY_PORT={one}",
        "(9012 9022 9032)": f"({' '.join(map(str, several))})",
        "registry@127.0.0.1:5432/registry": f"{at.netloc}{at.path}",
        # A prefix of its own, on a server that other tests use.
        "s3://archives/models": "s3://archives/scale-page",
    }
    for documented, actual in places.items():
        assert documented in text, documented
        text = text.replace(documented, actual)
    return "set -euo pipefail\n" + text


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_commands_of_the_page_work_from_top_to_bottom(
    object_store: S3Server, database: str, tmp_path: Path
) -> None:
    directory = tmp_path / "session"
    text = pages.run_script(script(object_store, database), directory, RUN_SECONDS)
    logs = "".join(log.read_text() for log in directory.glob("*.log"))
    for secret in (SECRET_ACCESS_KEY, "my-password"):
        assert secret not in logs + text


def test_the_installation_names_the_extras() -> None:
    [block] = pages.blocks(PAGE, "console")
    assert re.search(r"pip install 'cogment-model-registry\[server,bucket,postgresql\]'", block)
    project = (pages.ROOT / "pyproject.toml").read_text()
    assert "bucket = [" in project
    assert "postgresql = [" in project


def test_the_page_says_how_many_connections_a_server_opens() -> None:
    of_the_lease = of_notifications = 1
    most = connections.CHANGES + connections.READS + connections._SEARCHES + of_the_lease
    assert f"each opens up to {most + of_notifications} connections to PostgreSQL" in pages.text_of(PAGE)
    assert f"stays near {most}," in pages.text_of("docs/metrics.md")
    usual = 100
    assert 5 * (most + of_notifications) < usual < 6 * (most + of_notifications)
