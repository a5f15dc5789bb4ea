"""What the tests of the bridges share: a client of a server process, and how to skip without a library."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
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
    with warnings.catch_warnings():  # those of the library's own imports are not ours
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    """A client of a server process without models."""
    with ModelRegistry(shared_endpoint, progress=False) as client:
        yield client
