"""The PyTorch variant of the training: PyTorch loads what it publishes, and actors play it without PyTorch."""

import re
import sys
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry
from tests.frameworks.conftest import FRAMEWORK_SECONDS, on_slow_machines
from tests.processes import run, server_process

torch = pytest.importorskip("torch")

TRAIN = Path(__file__).parent.parent.parent / "examples/cartpole/train_torch.py"


@on_slow_machines
def test_pytorch_trains_actors_that_do_not_have_pytorch(tmp_path: Path) -> None:
    from cogment_model_registry import torch as versions  # noqa: PLC0415 # PyTorch is installed, as checked above

    plot = tmp_path / "returns.svg"
    with server_process(tmp_path / "archive") as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        command = [sys.executable, str(TRAIN), f"--endpoint={endpoint}", f"--plot={plot}"]
        command += ["--updates=10", "--episodes=4", "--actors=2"]
        result = run(*command, within_seconds=FRAMEWORK_SECONDS)
        assert result.returncode == 0, result.stdout + result.stderr
        with ModelRegistry(endpoint, progress=False) as registry:
            published = registry.find_versions("cartpole")
            version, state = versions.load(registry, "cartpole")
    assert len(published) == 1 + 10
    assert all(each.metrics["training_return"] > 1 for each in published[1:])
    assert version.user_data["framework"] == "torch"
    assert state["hidden.weight"].shape == (32, 4)
    used = {int(number) for pair in re.findall(r"versions (\d+) to (\d+)", result.stdout) for number in pair}
    assert len(used) > 1, "actors kept to one version"
    assert plot.is_file()
