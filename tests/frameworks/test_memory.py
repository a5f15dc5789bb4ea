"""The memory that publishing and loading parameters takes, in processes of their own."""

import os
from pathlib import Path

import pytest

from cogment_model_registry.system import sealed_memory
from tests.frameworks import memory
from tests.frameworks.conftest import on_slow_machines

SIZE_BYTES = 256 * memory.MIB
MESSAGES = 0.9
"""What messages in transfer may take: some 150 MiB were measured on a busy machine. A second copy would take more."""


@on_slow_machines
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not show the peak")
@pytest.mark.parametrize(("framework", "copies"), [("numpy", 1), ("torch", 1), ("jax", 2)])
def test_parameters_are_published_without_a_copy_and_loaded_with_one(framework: str, copies: int) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed: make test-frameworks")
    found = memory.multiples(framework, SIZE_BYTES)
    assert found.pop("publish") < MESSAGES
    assert all(multiple < copies + MESSAGES for multiple in found.values()), found


@on_slow_machines
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not show the peak")
@pytest.mark.skipif(not sealed_memory.is_supported(), reason="the system has no sealed memory")
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_parameters_on_the_same_host_are_loaded_without_a_copy(framework: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed: make test-frameworks")
    assert memory.multiples(framework, SIZE_BYTES, local_socket="auto")["load"] < 0.1


def test_the_page_has_the_command_that_measures_the_memory() -> None:
    page = (Path(__file__).parent.parent.parent / "docs/frameworks.md").read_text()
    assert f"`python -m {memory.__name__}`" in page
