"""A policy for CartPole: a network with one hidden layer, as a dict of NumPy arrays.

The names and shapes are those of PyTorch (`hidden` and `output` are linear layers), so a version that PyTorch published
is played by actors that have none of it.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Weights: TypeAlias = dict[str, Array]

OBSERVATION_SIZE = 4
HIDDEN_SIZE = 32
ACTIONS = 2


def new_weights(rng: np.random.Generator) -> Weights:
    """Return weights of a policy that has learned nothing: it plays each action about as often."""
    return {
        "hidden.weight": rng.normal(0, 0.5, (HIDDEN_SIZE, OBSERVATION_SIZE)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN_SIZE, np.float32),
        "output.weight": rng.normal(0, 0.1, (ACTIONS, HIDDEN_SIZE)).astype(np.float32),
        "output.bias": np.zeros(ACTIONS, np.float32),
    }


def forward(weights: Weights, observations: Array) -> tuple[Array, Array]:
    """Return what the hidden layer says, and the probability of each action.

    Args:
        weights: The policy.
        observations: One observation, or one a row.
    """
    hidden = np.tanh(observations @ weights["hidden.weight"].T + weights["hidden.bias"])
    scores = hidden @ weights["output.weight"].T + weights["output.bias"]
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return hidden, odds / odds.sum(axis=-1, keepdims=True)


def choose(weights: Weights, observation: Array, rng: np.random.Generator) -> int:
    """Return an action, drawn with the probabilities that the policy gives."""
    _, probabilities = forward(weights, observation)
    return int(rng.random() >= probabilities[0])
