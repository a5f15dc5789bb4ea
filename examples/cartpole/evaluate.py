"""Evaluate each new version of the policy, and deploy the best one.

    python examples/cartpole/evaluate.py --endpoint grpc://localhost:9002

It plays with the newest version as a deployment does, with the most probable actions, and keeps the mean return as a
metric of the version. If that is better than the one in production, it moves the alias `production`, for which the
registry archives the version first. Several evaluators may run at the same time: the alias moves only if it still is
where the evaluator saw it, so a worse version never takes the place of a better one.
"""

import argparse
import sys
import time

import gymnasium
import numpy as np
from policy import Array, Weights, forward

from cogment_model_registry import ModelRegistry, Version, VersionInfo, numpy
from cogment_model_registry.errors import ConflictError, ModelRegistryError

ALIAS = "production"

BETTER = 5.0
"""By how many steps a version must be better than the deployed one: the mean of a few games is not exact."""

RETRY_SECONDS = 1.0


class Evaluator:
    """Evaluates the versions of a model.

    Args:
        registry: The client.
        model_id: The model.
        episodes: How many games to play with each version; the same ones with all.
    """

    def __init__(self, registry: ModelRegistry, model_id: str, episodes: int) -> None:
        self._registry = registry
        self._model_id = model_id
        self._episodes = episodes
        self._environment: gymnasium.Env[Array, int] = gymnasium.make("CartPole-v1")

    def evaluate(self, info: VersionInfo) -> Version:
        """Play with a version, and return it with its metric."""
        _, weights = numpy.load(self._registry, info)
        mean_return = np.mean([self._play(weights, seed) for seed in range(self._episodes)])
        version = self._registry.update_version(self._model_id, info, metrics={"return": mean_return})
        print(f"version {version.number}: return {mean_return:.1f}", flush=True)
        return version

    def _play(self, weights: Weights, seed: int) -> int:
        """Play one game, and return how many steps the pole stayed up."""
        observation, _ = self._environment.reset(seed=seed)
        steps, is_over = 0, False
        while not is_over:
            _, probabilities = forward(weights, observation)
            observation, _, terminated, truncated, _ = self._environment.step(int(np.argmax(probabilities)))
            steps += 1
            is_over = terminated or truncated
        return steps

    def deploy_if_better(self, version: Version) -> None:
        """Move the alias to a version that is better than the one that it points to."""
        while True:
            alias = self._registry.aliases(self._model_id).get(ALIAS)
            if alias is not None:
                deployed = self._registry.describe_version(self._model_id, alias.version_number)
                if version.metrics["return"] < deployed.metrics.get("return", 0) + BETTER:
                    return
            try:
                expected = alias.revision if alias else 0
                self._registry.set_alias(self._model_id, ALIAS, version, expected=expected)
            except ConflictError:
                continue  # another evaluator moved it: compare again
            print(f"version {version.number} is in production", flush=True)
            return


def follow(evaluator: Evaluator, registry: ModelRegistry, model_id: str, versions: int | None) -> None:
    """Evaluate the newest version again and again, as many times as asked for, whatever happens to the registry."""
    count, trouble = 0, ""
    while True:
        try:
            for info in registry.watch(model_id):
                trouble = ""
                evaluator.deploy_if_better(evaluator.evaluate(info))
                count += 1
                if count == versions:
                    return
        except ModelRegistryError as error:
            # The model may not exist yet, and the version may have been evicted. What went wrong is told once.
            if str(error) != trouble:
                trouble = str(error)
                print(f"waiting: {trouble}", flush=True)
        time.sleep(RETRY_SECONDS)


def main() -> int:
    """Evaluate as the command line says, until Ctrl-C, and return the exit code."""
    parser = argparse.ArgumentParser(description="Evaluate new versions of a policy, and deploy the best one.")
    parser.add_argument("--endpoint", help="where the registry is, such as grpc://localhost:9002")
    parser.add_argument("--model", default="cartpole", help="the id of the model (default: cartpole)")
    parser.add_argument("--episodes", type=int, default=20, help="how many games to play with each (default: 20)")
    parser.add_argument("--versions", type=int, help="end after so many evaluations (default: never)")
    options = parser.parse_args()
    try:
        with ModelRegistry(options.endpoint) as registry:
            evaluator = Evaluator(registry, options.model, options.episodes)
            follow(evaluator, registry, options.model, options.versions)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except ModelRegistryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
