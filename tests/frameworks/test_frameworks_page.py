"""Every snippet of the page on frameworks runs, as far as the frameworks are installed, against a real server."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from cogment_model_registry.frameworks import versions
from cogment_model_registry.records.folders import FORMAT_KEY
from tests.frameworks.conftest import FRAMEWORK_SECONDS, on_slow_machines
from tests.processes import run, server_process

PAGE = (Path(__file__).parent.parent.parent / "docs/frameworks.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

SCRIPTS = {
    "torch": ["PyTorch"],
    "jax": ["JAX"],
    "numpy": ["NumPy", "Follow the latest version", "asyncio"],
}
"""The sections that are read one after another, by the framework that they need."""


def snippets(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


def test_every_snippet_is_run_by_a_test() -> None:
    covered = [section for sections in SCRIPTS.values() for section in sections]
    assert sorted(covered) == sorted(section for section in SECTIONS if snippets(section))
    assert PAGE.count("```python") == sum(len(snippets(section)) for section in covered)


@on_slow_machines
@pytest.mark.parametrize("framework", SCRIPTS)
def test_every_snippet_runs(framework: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed: make test-frameworks")
    script = tmp_path / "page.py"
    with server_process(tmp_path / "archive") as server:
        text = "\n".join(snippet for section in SCRIPTS[framework] for snippet in snippets(section))
        script.write_text(text.replace("grpc://localhost:9002", f"grpc://127.0.0.1:{server.port}"))
        result = run(sys.executable, str(script), cwd=tmp_path, within_seconds=FRAMEWORK_SECONDS)
    assert result.returncode == 0, result.stderr


def test_the_page_names_the_reserved_keys() -> None:
    for name in (FORMAT_KEY, versions.FRAMEWORK_KEY, versions.FORMAT):
        assert f"`{name}`" in SECTIONS["Format of a version"]
