"""Learn to balance a pole with NumPy alone, with four actors that follow each version of the policy.

    python examples/cartpole/train.py --endpoint grpc://localhost:9002 --updates 200 --plot returns.svg

The algorithm is REINFORCE: make what was done more likely where it turned out better than usual.
"""

import sys
from collections.abc import Sequence

import numpy as np
from actors import Episode
from policy import ACTIONS, Array, Weights, forward, new_weights
from trainer import run

from cogment_model_registry import ModelRegistry, VersionInfo, numpy

DISCOUNT = 0.99
LEARNING_RATE = 0.005


def advantages(episodes: Sequence[Episode]) -> Array:
    """Return how much better each step of all episodes turned out than the mean of the steps at its time.

    A step turned out as well as the discounted rewards that came from it on. The mean over the episodes, at the same
    time since the start, is the baseline.
    """
    lengths = [episode.total_return for episode in episodes]
    outcomes = np.zeros((len(episodes), max(lengths)))
    for row, length in zip(outcomes, lengths, strict=True):
        row[:length] = (1 - DISCOUNT ** np.arange(length, 0, -1)) / (1 - DISCOUNT)
    relative = outcomes - outcomes.mean(axis=0)
    flat: Array = np.concatenate([row[:length] for row, length in zip(relative, lengths, strict=True)])
    flat /= flat.std() + 1e-8
    return flat


class NumpyLearner:
    """REINFORCE with Adam."""

    def __init__(self, seed: int) -> None:
        self._weights = new_weights(np.random.default_rng(seed))
        self._mean = {name: np.zeros_like(array) for name, array in self._weights.items()}
        self._square = {name: np.zeros_like(array) for name, array in self._weights.items()}
        self._updates = 0

    def publish(
        self, registry: ModelRegistry, model_id: str, user_data: dict[str, str], metrics: dict[str, float]
    ) -> VersionInfo:
        """Publish the weights as a transient version."""
        return numpy.publish(registry, model_id, self._weights, user_data=user_data, metrics=metrics)

    def update(self, episodes: Sequence[Episode]) -> None:
        """Take one step of learning."""
        observations = np.concatenate([episode.observations for episode in episodes])
        actions = np.concatenate([episode.actions for episode in episodes])
        self._climb(self._gradient(observations, actions, advantages(episodes)))

    def _gradient(self, observations: Array, actions: Array, advantage: Array) -> Weights:
        """Return the direction in which the log-probabilities of actions grow, weighted by their advantages."""
        hidden, probabilities = forward(self._weights, observations)
        by_score = (np.eye(ACTIONS)[actions] - probabilities) * advantage[:, None] / len(actions)
        by_hidden = by_score @ self._weights["output.weight"] * (1 - hidden**2)
        return {
            "hidden.weight": by_hidden.T @ observations,
            "hidden.bias": by_hidden.sum(axis=0),
            "output.weight": by_score.T @ hidden,
            "output.bias": by_score.sum(axis=0),
        }

    def _climb(self, gradient: Weights) -> None:
        """Take a step of Adam (Kingma and Ba 2015, algorithm 1, with the constants given there) up the gradient."""
        self._updates += 1
        for name, slope in gradient.items():
            self._mean[name] += 0.1 * (slope - self._mean[name])
            self._square[name] += 0.001 * (slope**2 - self._square[name])
            mean = self._mean[name] / (1 - 0.9**self._updates)
            square = self._square[name] / (1 - 0.999**self._updates)
            self._weights[name] += LEARNING_RATE * mean / (np.sqrt(square) + 1e-8)


if __name__ == "__main__":
    sys.exit(run("Learn to balance a pole, with NumPy.", NumpyLearner))
