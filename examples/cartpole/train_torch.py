"""The same with PyTorch: the trainer alone has it, and the actors play its versions with NumPy.

python examples/cartpole/train_torch.py --endpoint grpc://localhost:9002 --updates 200 --plot returns.svg
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from policy import ACTIONS, HIDDEN_SIZE, OBSERVATION_SIZE
from train import LEARNING_RATE, advantages
from trainer import run

if __name__ == "__main__":
    # Actors are spawned, so they load this module too; they are ready sooner without PyTorch.
    import torch
    from torch import nn

    from cogment_model_registry import torch as torch_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors import Episode

    from cogment_model_registry import ModelRegistry, VersionInfo


class TorchLearner:
    """REINFORCE with Adam."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)  # the network is small, and the cores are the actors'
        self._policy = nn.Sequential(
            OrderedDict(
                hidden=nn.Linear(OBSERVATION_SIZE, HIDDEN_SIZE),
                tanh=nn.Tanh(),
                output=nn.Linear(HIDDEN_SIZE, ACTIONS),
            )
        )
        self._optimiser = torch.optim.Adam(self._policy.parameters(), LEARNING_RATE)

    def publish(
        self, registry: ModelRegistry, model_id: str, user_data: dict[str, str], metrics: dict[str, float]
    ) -> VersionInfo:
        """Publish the weights as a transient version."""
        return torch_versions.publish(registry, model_id, self._policy, user_data=user_data, metrics=metrics)

    def update(self, episodes: Sequence[Episode]) -> None:
        """Take one step of learning."""
        observations = torch.from_numpy(np.concatenate([episode.observations for episode in episodes]))
        actions = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]).astype(np.int64))
        log_probabilities = torch.log_softmax(self._policy(observations), dim=-1)
        chosen = log_probabilities.gather(1, actions[:, None]).squeeze(1)
        loss = -(chosen * torch.from_numpy(advantages(episodes)).float()).mean()
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()


if __name__ == "__main__":
    sys.exit(run("Learn to balance a pole, with PyTorch.", TorchLearner))
