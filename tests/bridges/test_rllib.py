"""The callback for Ray RLlib, in a real training."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.bridges.conftest import needed, on_slow_machines

needed("torch")
ray = needed("ray")
torch = needed("cogment_model_registry.torch")
bridge = needed("cogment_model_registry.bridges.rllib")
ppo = needed("ray.rllib.algorithms.ppo")

pytestmark = [on_slow_machines, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, on one core of this machine."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


def algorithm(callback: Any) -> Any:
    """Return an algorithm that learns little, fast."""
    config = ppo.PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0).learners(num_learners=0)
    config.training(train_batch_size=200, minibatch_size=50, num_epochs=1).callbacks(callback)
    return config.build_algo()


def test_an_algorithm_is_published_while_it_learns(
    cluster: None, registry: ModelRegistry, shared_endpoint: str
) -> None:
    options = {"every_iterations": 2, "best_alias": "best", "tags": {"run": "7"}}
    trained = algorithm(functools.partial(bridge.PublishCallback, shared_endpoint, "cartpole", **options))
    try:
        for _ in range(4):
            trained.train()
        versions = registry.find_versions("cartpole")
        assert [each.user_data["iteration"] for each in versions] == ["2", "4"]
        assert versions[0].user_data["algorithm"] == "PPO"
        assert int(versions[0].user_data["steps"]) >= 400
        assert versions[0].tags == {"run": "7"}
        assert versions[0].metrics["return"] > 5
        best = registry.describe_version("cartpole", "best")
        assert best.archived
        assert best.metrics["return"] == max(each.metrics["return"] for each in versions)
        module = trained.get_module()
        wanted = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        for tensor in module.parameters():
            tensor.data.zero_()
        torch.load(registry, "cartpole", into=module)
        assert all(bool((module.state_dict()[name] == tensor).all()) for name, tensor in wanted.items())
    finally:
        trained.stop()


class Algorithm:
    """What the callback asks of an algorithm."""

    def get_module(self, module_id: str) -> Any:
        import torch as pytorch  # noqa: PLC0415

        return pytorch.nn.Linear(2, 2)


def test_the_training_goes_on_if_the_registry_does_not_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "ModelRegistry", functools.partial(ModelRegistry, retry_seconds=0))
    callback = bridge.PublishCallback("grpc://127.0.0.1:1", "cartpole")
    with caplog.at_level(logging.WARNING):
        callback.on_train_result(algorithm=Algorithm(), result={"training_iteration": 1})
    assert callback.failures == 1
    assert "publishing after iteration 1 failed" in caplog.text
    strict = bridge.PublishCallback("grpc://127.0.0.1:1", "cartpole", stops_on_errors=True)
    with pytest.raises(errors.UnavailableError):
        strict.on_train_result(algorithm=Algorithm(), result={"training_iteration": 1})
    with pytest.raises(errors.InvalidError, match="every_iterations is 0"):
        bridge.PublishCallback("grpc://127.0.0.1:1", "cartpole", every_iterations=0)
