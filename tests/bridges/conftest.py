"""What the tests of the bridges share: a client of a server process, and how to skip without a library."""

import importlib
import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry

BRIDGE_SECONDS = 400.0
"""How long a test may take that loads such a library, or starts its server: a minute on a busy machine, for imports."""

on_slow_machines = pytest.mark.timeout(BRIDGE_SECONDS + 100)


def needed(name: str) -> Any:
    """Return a library; skip the tests of the module visibly without it."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make test-bridges", allow_module_level=True)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # those of the library's own imports are not ours
        keep_at_home(patch, Path(".cache/bridges").absolute())
        return importlib.import_module(name)


def keep_at_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Let libraries, and the processes that they start, keep their caches, tokens and results in a folder."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("HOME", "USERPROFILE", "MPLCONFIGDIR", "SB3_LOGDIR"):
        patch.setenv(name, str(home))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        patch.setenv(name, str(home / name.lower()))


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home directory for the libraries, so that they write nothing into that of the developer."""
    directory = tmp_path_factory.mktemp("home")
    ray = tempfile.mkdtemp(prefix="ray")  # a short path, since it has sockets
    with pytest.MonkeyPatch.context() as patch:
        keep_at_home(patch, directory)
        patch.setenv("RAY_TMPDIR", ray)
        yield directory
    shutil.rmtree(ray, ignore_errors=True)


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    """A client of a server process without models."""
    with ModelRegistry(shared_endpoint, progress=False) as client:
        yield client
