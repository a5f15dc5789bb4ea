"""Every snippet of docs/bridges.md runs, as far as the libraries are installed, against a real server."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

from cogment_model_registry.bridges.webhooks import configuration
from cogment_model_registry.bridges.webhooks.configuration import Configuration, Hook
from tests.bridges.conftest import BRIDGE_SECONDS, on_slow_machines
from tests.processes import run, server_process

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/bridges.md").read_text()
SNIPPETS = re.findall(r"^```python\n# (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

NEEDED = {
    "huggingface": None,
    "rllib": "ray",
    "stable_baselines3": "stable_baselines3",
    "wandb": "wandb",
    "webhooks": None,
}
"""The sections whose snippets run here, and the library that each needs; test_mlflow.py runs those of MLflow."""


def script(section: str) -> str:
    return "\n".join(text for name, text in SNIPPETS if name == section)


def test_every_snippet_is_run_by_a_test() -> None:
    assert {name for name, _ in SNIPPETS} == {*NEEDED, "mlflow"}
    assert PAGE.count("```python") == len(SNIPPETS)


@on_slow_machines
@pytest.mark.parametrize("section", NEEDED)
def test_every_snippet_runs(section: str, tmp_path: Path) -> None:
    library = NEEDED[section]
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: make test-bridges")
    path = tmp_path / "page.py"
    with server_process(tmp_path / "archive") as server:
        path.write_text(script(section).replace("grpc://localhost:9002", f"grpc://127.0.0.1:{server.port}"))
        result = run(sys.executable, str(path), cwd=tmp_path, within_seconds=BRIDGE_SECONDS)
    assert result.returncode == 0, result.stderr


def test_the_configuration_on_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "hooks.toml").write_text(text)
    (tmp_path / "deploy.secret").write_text("x" * 24)
    found = Configuration.read(tmp_path / "hooks.toml", {"CHAT_SECRET": "x" * 24})
    values = tomllib.loads(text)
    assert [hook.name for hook in found.hooks] == [each["name"] for each in values["hook"]]
    defaults = Configuration.__dataclass_fields__
    for name in ("promotions_seconds", "versions_behind", "seconds_behind"):
        assert getattr(found, name) == values[name] == defaults[name].default


def test_the_page_names_each_event_and_the_defaults() -> None:
    for event in configuration.EVENTS:
        assert f"`{event}`" in PAGE
    for name in ("timeout_seconds", "first_pause_seconds", "longest_pause_seconds", "give_up_seconds"):
        default = Hook.__dataclass_fields__[name].default
        assert re.search(rf"`{name}` \({default:,.0f}\)", PAGE), name
    assert f"`waiting_max` ({Configuration.__dataclass_fields__['waiting_max'].default:,})" in PAGE
