"""Callbacks of Stable-Baselines3 that publish the policy while it learns, and functions with which actors load it.

    model.learn(100_000, callback=PublishCallback(registry, "walker", every_steps=10_000))

A version has the parameters of `model.policy` in the format of `cogment_model_registry.torch`, which executes no code
when it is read; what `model.save` writes is pickled, so it is not used. An actor builds the same policy, without the
rest of the trainer, and loads versions into it.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from cogment_model_registry import ModelRegistry, VersionInfo, torch
from cogment_model_registry.errors import InvalidError, ModelRegistryError, NotFoundError

_log = logging.getLogger(__name__)

RETURN_METRIC = "return"
LENGTH_METRIC = "episode_length"
"""The metrics of a version: means over the last episodes of the training, or of the evaluation."""

ALGORITHM_KEY = "algorithm"
STEPS_KEY = "steps"
"""The entries of `user_data` of a version: the class of the trainer, and its number of steps."""


class _Publisher(BaseCallback):
    """The common part of both callbacks: publish the policy of the trainer.

    Args:
        registry: The client.
        model_id: The model, which is created with its first version.
        user_data: Further entries of `user_data`.
        tags: Tags of each version.
        stops_on_errors: Whether an error of the registry ends the training.

    Attributes:
        latest: The newest version that was published.
        failures: How many publishes have failed.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        model_id: str,
        *,
        user_data: Mapping[str, str] | None,
        tags: Mapping[str, str] | None,
        stops_on_errors: bool,
    ) -> None:
        super().__init__()
        self.latest: VersionInfo | None = None
        self.failures = 0
        self._registry = registry
        self._model_id = model_id
        self._user_data = dict(user_data or {})
        self._tags = dict(tags or {})
        self._stops_on_errors = stops_on_errors

    def _publish(self, metrics: Mapping[str, float], *, archived: bool, alias: str | None = None) -> None:
        """Publish the policy as it is now; an error is logged, unless it ends the training."""
        noted = {ALGORITHM_KEY: type(self.model).__name__, STEPS_KEY: str(self.num_timesteps), **self._user_data}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        try:
            self.latest = torch.publish(
                self._registry,
                self._model_id,
                self.model.policy,
                archived=archived,
                user_data=noted,
                tags=self._tags,
                metrics=finite,
                alias=alias,
            )
        except ModelRegistryError as error:
            self.failures += 1
            if self._stops_on_errors:
                raise
            _log.warning("publishing the policy after %d steps failed: %s", self.num_timesteps, error)


class PublishCallback(_Publisher):
    """Publishes the policy every few steps, and at the end of the training.

    The metrics of a version are the mean return and length of the last episodes, as the trainer logs them, and the
    numbers that it has recorded since its last log line, such as ``train/loss``.

    Args:
        registry: The client.
        model_id: The model, which is created with its first version.
        every_steps: The number of steps, of all environments together, between two versions.
        archived: Whether to archive each version; by default it is transient.
        user_data: Further entries of `user_data`, next to ``algorithm`` and ``steps``.
        tags: Tags of each version.
        stops_on_errors: Whether an error of the registry ends the training; by default it is logged.

    Raises:
        InvalidError: `every_steps` is not positive.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        model_id: str,
        *,
        every_steps: int,
        archived: bool = False,
        user_data: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        stops_on_errors: bool = False,
    ) -> None:
        super().__init__(registry, model_id, user_data=user_data, tags=tags, stops_on_errors=stops_on_errors)
        if every_steps < 1:
            raise InvalidError(f"every_steps is {every_steps}; it must be a positive number")
        self._every_steps = every_steps
        self._archived = archived
        self._published_steps = 0

    def _on_training_start(self) -> None:
        self._published_steps = self.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps - self._published_steps >= self._every_steps:
            self._publish_now()
        return True

    def _on_training_end(self) -> None:
        # Trainers with rollouts learn once more after their last step.
        self.num_timesteps = self.model.num_timesteps
        self._publish_now()

    def _publish_now(self) -> None:
        self._published_steps = self.num_timesteps
        logged: dict[str, Any] = self.logger.name_to_value
        metrics = {name: float(value) for name, value in logged.items() if _is_number(value)}
        episodes = list(self.model.ep_info_buffer or ())
        if episodes:
            metrics[RETURN_METRIC] = float(np.mean([each["r"] for each in episodes]))
            metrics[LENGTH_METRIC] = float(np.mean([each["l"] for each in episodes]))
        self._publish(metrics, archived=self._archived)


class StoreBestCallback(_Publisher):
    """Archives the best policy by evaluation, and points an alias to it; for `EvalCallback`.

        EvalCallback(environment, callback_on_new_best=StoreBestCallback(registry, "walker"), eval_freq=5_000)

    Args:
        registry: The client.
        model_id: The model, which is created with its first version.
        alias: The alias of the best version.
        every_run: Whether a new best policy of this training gets the alias even if the version with the alias has a
            better return, such as one of an earlier training. By default, the policy is then not stored.
        user_data: Further entries of `user_data`, next to ``algorithm`` and ``steps``.
        tags: Tags of each version.
        stops_on_errors: Whether an error of the registry ends the training; by default it is logged.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        model_id: str,
        *,
        alias: str = "best",
        every_run: bool = False,
        user_data: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        stops_on_errors: bool = False,
    ) -> None:
        super().__init__(registry, model_id, user_data=user_data, tags=tags, stops_on_errors=stops_on_errors)
        self._alias = alias
        self._every_run = every_run

    def _on_step(self) -> bool:
        if not isinstance(self.parent, EvalCallback):
            raise InvalidError("StoreBestCallback is for the argument callback_on_new_best of EvalCallback")
        best = float(self.parent.best_mean_reward)
        if self._every_run or best > self._best_so_far():
            self._publish({RETURN_METRIC: best}, archived=True, alias=self._alias)
        return True

    def _best_so_far(self) -> float:
        """Return the return of the version that has the alias; minus infinity if there is none."""
        try:
            version = self._registry.describe_version(self._model_id, self._alias)
        except NotFoundError:
            return -math.inf
        except ModelRegistryError as error:
            # If it is unknown, store the policy: one version too many is better than losing the best one.
            _log.warning("looking up the best policy failed: %s", error)
            return -math.inf
        return version.metrics.get(RETURN_METRIC, -math.inf)


def load_policy(registry: ModelRegistry, model_id: str, model: Any, version: int | str = -1) -> VersionInfo:
    """Load a version into the policy of a model of Stable-Baselines3, or into a policy; return the version.

    Args:
        registry: The client.
        model_id: The model in the registry.
        model: A model such as ``PPO("MlpPolicy", environment)``, or its policy, with the same layers.
        version: The number of the version, -1 for the latest; or an alias.

    Raises:
        InvalidError: The version does not fit the policy, which has not changed.
        NotFoundError: The model or the version does not exist.
    """
    return torch.load(registry, model_id, version, into=getattr(model, "policy", model))


def follow_policy(registry: ModelRegistry, model_id: str, model: Any, **options: Any) -> "torch.Tracked[Any]":
    """Return a context manager that follows a model, for an actor: see `cogment_model_registry.torch.track`.

    Args:
        registry: The client.
        model_id: The model in the registry, which need not exist yet.
        model: As for `load_policy`; `Tracked.update` loads the newest version into it, between two steps.
        options: Those of `track`, such as `alias` and `consumer`.
    """
    return torch.track(registry, model_id, getattr(model, "policy", model), **options)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
