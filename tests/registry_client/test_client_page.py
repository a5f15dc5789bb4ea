"""Every snippet of the page about the client runs with a real server."""

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest

from cogment_model_registry import errors
from cogment_model_registry.client import cache, deadlines, fetching, opening, watching
from cogment_model_registry.records.sizes import MIB
from tests import processes
from tests.processes import server_process

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/client.md").read_text()


def snippets(page: str) -> list[str]:
    """Return the snippets of Python on a page."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def run(page: str, directory: Path) -> str:
    """Run all snippets of a page as one program, with a real server, and return what it prints."""
    script = directory / "page.py"
    with server_process(directory / "archive", f"--audit_log={directory / 'audit'}") as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        script.write_text("\n".join(snippets(page)).replace("grpc://localhost:9002", endpoint))
        environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": endpoint}
        result = processes.run(sys.executable, "-W", "error", str(script), environment=environment, cwd=directory)
    assert result.returncode == 0, textwrap.indent(result.stderr, "  ")
    return result.stdout


def test_every_snippet_runs(tmp_path: Path) -> None:
    assert len(snippets("docs/client.md")) > 10
    output = run("docs/client.md", tmp_path)
    assert 'looking up version 99 of model "policy": model "policy" has no version 99' in output
    assert (tmp_path / "copy.bin").exists()
    assert os.listdir(tmp_path / "cache")


def test_every_snippet_on_the_life_of_versions_runs(tmp_path: Path) -> None:
    output = run("docs/lifecycle.md", tmp_path)
    assert "points to version 3 with revision" in output
    assert 'has the alias "production": remove it first' in output


def test_every_snippet_on_watching_runs(tmp_path: Path) -> None:
    run("docs/watching.md", tmp_path)


def test_every_snippet_on_consumers_runs(tmp_path: Path) -> None:
    output = run("docs/consumers.md", tmp_path)
    assert "actor-7 runs 1" in output
    assert 'is held by consumer "evaluator"' in output


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("`retry_seconds` (10,", opening.RETRY_SECONDS == 10),
        ("`patience_seconds` (300)", watching.PATIENCE_SECONDS == 300),
        ("`cache_max_bytes` (10 GiB)", cache.DEFAULT_MAX_BYTES == 10 * 2**30),
        ("The default is 30 seconds;", deadlines.CALL_SECONDS == 30),
        (f"`{opening.CACHE_VARIABLE}`", True),
        ("first 16 MiB of an archived", fetching._FIRST_BYTES == 16 * MIB),
        ("version of 64 MiB or more", fetching._LARGE_BYTES == 64 * MIB),
        ("slower than 300 MiB per second", fetching._FAST_BYTES_PER_SECOND == 300 * MIB),
        ("in parts over four connections", fetching._CONNECTIONS == 4),
    ],
)
def test_the_numbers_on_the_page_match_the_code(text: str, value: bool) -> None:
    assert text in PAGE
    assert value


def test_every_error_that_a_client_can_get_is_on_the_page() -> None:
    # Tests and commands have their own errors, and a client never starts a server.
    subclasses = errors.ModelRegistryError.__subclasses__()
    kinds = {kind.__name__ for kind in subclasses if kind.__module__ == errors.__name__} - {"StartError"}
    assert kinds == set(re.findall(r"^\| `(\w+Error)` \|", PAGE, re.MULTILINE))
