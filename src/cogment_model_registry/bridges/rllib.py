"""A callback of Ray RLlib that publishes the module of an algorithm while it trains.

    config.callbacks(functools.partial(PublishCallback, "grpc://localhost:9002", "walker", every_iterations=10))

A version has the parameters of the `RLModule` of PyTorch in the format of `cogment_model_registry.torch`, which
executes no code when it is read. It is for RLlib's new API stack, in which `Algorithm.get_module` returns that module.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from cogment_model_registry import ModelRegistry, VersionInfo, torch
from cogment_model_registry.errors import InvalidError, ModelRegistryError

_log = logging.getLogger(__name__)

RETURN_METRIC = "return"
LENGTH_METRIC = "episode_length"
"""The metrics of a version: means over the episodes of an iteration."""

ALGORITHM_KEY = "algorithm"
ITERATION_KEY = "iteration"
STEPS_KEY = "steps"
MODULE_KEY = "module"
"""The entries of `user_data` of a version."""

DEFAULT_MODULE = "default_policy"
"""The id of the module of an algorithm with a single one."""


class PublishCallback(RLlibCallback):
    """Publishes a module of an algorithm every few iterations, from the process of the algorithm.

    RLlib makes an instance in each of its processes; only that of the algorithm connects.

    Args:
        endpoint: The registry, as for `ModelRegistry`.
        model_id: The model, which is created with its first version.
        every_iterations: The number of iterations between two versions.
        module_id: The module to publish, if the algorithm has several.
        best_alias: If given, a version with a better return than all earlier ones of this training is archived, and
            gets this alias.
        archived: Whether to archive each version; by default it is transient.
        tags: Tags of each version.
        stops_on_errors: Whether an error of the registry ends the training; by default it is logged.

    Raises:
        InvalidError: `every_iterations` is not positive.
    """

    def __init__(
        self,
        endpoint: str,
        model_id: str,
        *,
        every_iterations: int = 1,
        module_id: str = DEFAULT_MODULE,
        best_alias: str | None = None,
        archived: bool = False,
        tags: Mapping[str, str] | None = None,
        stops_on_errors: bool = False,
    ) -> None:
        super().__init__()
        if every_iterations < 1:
            raise InvalidError(f"every_iterations is {every_iterations}; it must be a positive number")
        self.latest: VersionInfo | None = None
        self.failures = 0
        self._endpoint = endpoint
        self._model_id = model_id
        self._every_iterations = every_iterations
        self._module_id = module_id
        self._best_alias = best_alias
        self._best = -math.inf
        self._archived = archived
        self._tags = dict(tags or {})
        self._stops_on_errors = stops_on_errors

    def on_train_result(self, *, algorithm: Any, result: Mapping[str, Any], **_: Any) -> None:
        """Publish after an iteration, if `every_iterations` have passed."""
        iteration = int(result["training_iteration"])
        if iteration % self._every_iterations == 0:
            try:
                self._publish(algorithm, iteration, result)
            except ModelRegistryError as error:
                self.failures += 1
                if self._stops_on_errors:
                    raise
                _log.warning("publishing after iteration %d failed: %s", iteration, error)

    def _publish(self, algorithm: Any, iteration: int, result: Mapping[str, Any]) -> None:
        episodes = result.get("env_runners", {})
        found = {
            RETURN_METRIC: float(episodes.get("episode_return_mean", math.nan)),
            LENGTH_METRIC: float(episodes.get("episode_len_mean", math.nan)),
        }
        metrics = {name: value for name, value in found.items() if math.isfinite(value)}
        is_best = self._best_alias is not None and metrics.get(RETURN_METRIC, -math.inf) > self._best
        noted = {
            ALGORITHM_KEY: type(algorithm).__name__,
            ITERATION_KEY: str(iteration),
            STEPS_KEY: str(int(result.get("num_env_steps_sampled_lifetime", 0))),
            MODULE_KEY: self._module_id,
        }
        # A client for each version: Ray copies callbacks between processes, and a connection belongs to one.
        with ModelRegistry(self._endpoint, progress=False) as registry:
            self.latest = torch.publish(
                registry,
                self._model_id,
                algorithm.get_module(self._module_id),
                archived=self._archived or is_best,
                user_data=noted,
                tags=self._tags,
                metrics=metrics,
                alias=self._best_alias if is_best else None,
            )
        if is_best:
            self._best = metrics[RETURN_METRIC]
