"""The callbacks for Stable-Baselines3, in real training, and an actor that loads what they publish."""

import logging
import warnings
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.bridges.conftest import needed, on_slow_machines

sb3 = needed("stable_baselines3")
bridge = needed("cogment_model_registry.bridges.stable_baselines3")
callbacks = needed("stable_baselines3.common.callbacks")
gymnasium = needed("gymnasium")
monitor = needed("stable_baselines3.common.monitor")

pytestmark = [on_slow_machines, pytest.mark.filterwarnings("default")]


def trainer(kind: str = "PPO", **options: Any) -> Any:
    """Return a trainer that learns little, fast."""
    small = {"n_steps": 64, "batch_size": 32, "n_epochs": 1} if kind == "PPO" else {"learning_starts": 50}
    return getattr(sb3, kind)("MlpPolicy", "CartPole-v1", device="cpu", seed=1, **{**small, **options})


def test_the_policy_is_published_while_it_learns(registry: ModelRegistry) -> None:
    callback = bridge.PublishCallback(registry, "cartpole", every_steps=100, tags={"run": "7"}, user_data={"seed": "1"})
    model = trainer()
    model.learn(320, callback=callback)
    versions = registry.find_versions("cartpole")
    steps = [int(each.user_data["steps"]) for each in versions]
    assert steps == [100, 200, 300, 320]
    assert callback.latest == versions[-1].info
    assert not any(each.archived for each in versions)
    assert versions[-1].tags == {"run": "7"}
    assert {key: versions[0].user_data[key] for key in ("algorithm", "seed", "format")} == {
        "algorithm": "PPO",
        "seed": "1",
        "format": "safetensors",
    }
    assert versions[-1].metrics["return"] > 5
    assert versions[-1].metrics["episode_length"] == versions[-1].metrics["return"]  # in this environment
    assert any(name.startswith("train/") for name in versions[1].metrics)


def test_training_goes_on_where_it_was(registry: ModelRegistry) -> None:
    callback = bridge.PublishCallback(registry, "cartpole", every_steps=100)
    model = trainer()
    model.learn(128, callback=callback)
    model.learn(128, callback=callback, reset_num_timesteps=False)
    assert [each.user_data["steps"] for each in registry.list_versions("cartpole")] == ["100", "128", "228", "256"]


@pytest.mark.parametrize("kind", ["PPO", "DQN"])
def test_an_actor_acts_as_the_trainer_does(registry: ModelRegistry, kind: str) -> None:
    model = trainer(kind)
    model.learn(128, callback=bridge.PublishCallback(registry, "cartpole", every_steps=1000))
    environment = gymnasium.make("CartPole-v1")
    actor = trainer(kind, policy_kwargs={}, learning_rate=0.5)
    version = bridge.load_policy(registry, "cartpole", actor)
    assert version.user_data["algorithm"] == kind
    for seed in range(20):
        observation, _ = environment.reset(seed=seed)
        ours, _ = actor.predict(observation, deterministic=True)
        theirs, _ = model.predict(observation, deterministic=True)
        assert ours == theirs
    environment.close()


def test_an_actor_follows_the_trainer(registry: ModelRegistry) -> None:
    model, actor = trainer(), trainer()
    with bridge.follow_policy(registry, "cartpole", actor, consumer="actor-1") as followed:
        callback = bridge.PublishCallback(registry, "cartpole", every_steps=64)
        model.learn(64, callback=callback)  # publishes before and after it learns from these steps
        followed.wait_for(newer_than=callback.latest.number - 1, timeout=60)
        assert (actor.policy.action_net.weight == model.policy.action_net.weight).all()
        (consumer,) = registry.wait_for_consumers("cartpole", 1, count=1, timeout=60)
        assert consumer.consumer_id == "actor-1"


def test_a_policy_with_other_layers_is_refused(registry: ModelRegistry) -> None:
    trainer().learn(64, callback=bridge.PublishCallback(registry, "cartpole", every_steps=64))
    with pytest.raises(errors.InvalidError, match="action_net"):
        bridge.load_policy(registry, "cartpole", trainer(policy_kwargs={"net_arch": [8]}))


def evaluate(registry: ModelRegistry, model: Any, **options: Any) -> Any:
    """Return a callback that evaluates often, and stores the best."""
    environment = monitor.Monitor(gymnasium.make("CartPole-v1"))
    best = bridge.StoreBestCallback(registry, "cartpole", **options)
    return best, callbacks.EvalCallback(
        environment, callback_on_new_best=best, eval_freq=100, n_eval_episodes=2, verbose=0, warn=False
    )


def test_the_best_policy_by_evaluation_is_archived_with_an_alias(registry: ModelRegistry) -> None:
    best, callback = evaluate(registry, None)
    trainer().learn(256, callback=callback)
    version = registry.describe_version("cartpole", "best")
    assert version.archived
    assert version.info == best.latest
    assert version.metrics["return"] == callback.best_mean_reward
    found = registry.find_versions("cartpole", "metrics:return", order_by="metrics.return desc", limit=1)
    assert found == [version]


def test_a_later_training_takes_the_alias_only_if_it_is_better(registry: ModelRegistry) -> None:
    registry.store("cartpole", b"perfect", metrics={"return": 1000}, alias="best")
    best, callback = evaluate(registry, None)
    trainer().learn(128, callback=callback)
    assert best.latest is None
    assert registry.retrieve("cartpole", "best") == b"perfect"
    _, callback = evaluate(registry, None, every_run=True)
    trainer().learn(128, callback=callback)
    assert registry.describe_version("cartpole", "best").metrics["return"] == callback.best_mean_reward < 1000


def test_the_training_goes_on_if_the_registry_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    with ModelRegistry("grpc://127.0.0.1:1", retry_seconds=0) as nowhere:
        callback = bridge.PublishCallback(nowhere, "cartpole", every_steps=64)
        best, evaluation = evaluate(nowhere, None)
        with caplog.at_level(logging.WARNING):
            trainer().learn(128, callback=[callback, evaluation])
        assert callback.failures == 3  # after 64 and 128 steps, and at the end
        assert best.failures == 1
        assert "publishing the policy after 64 steps failed" in caplog.text
        strict = bridge.PublishCallback(nowhere, "cartpole", every_steps=64, stops_on_errors=True)
        with pytest.raises(errors.UnavailableError):
            trainer().learn(128, callback=strict)


def test_wrong_use_is_refused(registry: ModelRegistry) -> None:
    with pytest.raises(errors.InvalidError, match="every_steps is 0"):
        bridge.PublishCallback(registry, "cartpole", every_steps=0)
    with pytest.raises(errors.InvalidError, match="callback_on_new_best of EvalCallback"), warnings.catch_warnings():
        trainer().learn(64, callback=bridge.StoreBestCallback(registry, "cartpole"))
