"""The trainer: starts actors, learns from what they play, and publishes each update, with its return as a metric.

What learns is `train.py`'s or `train_torch.py`'s; everything that has to do with the registry and the actors is here.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
from actors import Episode, playing

from cogment_model_registry import ModelRegistry, Version, VersionInfo
from cogment_model_registry.errors import ModelRegistryError, UnavailableError

ENDPOINT_VARIABLE = "COGMENT_MODEL_REGISTRY_ENDPOINT"


class Learner(Protocol):
    """What learns a policy."""

    def update(self, episodes: Sequence[Episode]) -> None:
        """Take one step of learning."""

    def publish(
        self, registry: ModelRegistry, model_id: str, user_data: dict[str, str], metrics: dict[str, float]
    ) -> VersionInfo:
        """Publish the policy as a transient version."""


class Trainer:
    """One run of training.

    Args:
        registry: The client.
        model_id: The model whose versions are published.
        learner: What learns.

    Attributes:
        returns: The returns of all episodes by the number of the version that they were played with.
    """

    def __init__(self, registry: ModelRegistry, model_id: str, learner: Learner) -> None:
        self.returns: dict[int, list[float]] = defaultdict(list)
        self._registry = registry
        self._model_id = model_id
        self._learner = learner
        self._steps = 0
        self._latest = learner.publish(registry, model_id, {"step": "0"}, {})

    def train(self, episodes: Iterator[Episode], updates: int, episodes_per_update: int) -> None:
        """Learn from episodes until there are no more, and print how it goes about twenty times."""
        for update in range(1, updates + 1):
            batch = self._gather(episodes, episodes_per_update)
            if len(batch) < episodes_per_update:
                return
            mean_return = float(np.mean([episode.total_return for episode in batch]))
            self._learner.update(batch)
            self._publish(mean_return)
            if update % max(updates // 20, 1) == 0:
                numbers = [episode.version_number for episode in batch]
                print(
                    f"update {update:4d}  version {self._latest.number:4d}  mean return {mean_return:5.1f}"
                    f"  steps {self._steps:7,d}  played with versions {min(numbers)} to {max(numbers)}",
                    flush=True,
                )

    def _gather(self, episodes: Iterator[Episode], count: int) -> list[Episode]:
        """Return the next episodes, and take note of how good their versions are."""
        batch = list(itertools.islice(episodes, count))
        for episode in batch:
            self._steps += episode.total_return
            self.returns[episode.version_number].append(episode.total_return)
        return batch

    def _publish(self, mean_return: float) -> None:
        """Publish what was learned, with the mean return of the episodes that it was learned from."""
        user_data, metrics = {"step": str(self._steps)}, {"training_return": mean_return}
        try:
            self._latest = self._learner.publish(self._registry, self._model_id, user_data, metrics)
        except UnavailableError as error:
            # The registry is away for longer than the client tries. The actors play on with what they have, and the
            # next update is another chance.
            print(f"not published: {error}", flush=True)


@contextmanager
def own_server() -> Iterator[str]:
    """Open a context in which a registry of our own serves, with its endpoint; what it stores goes with it."""
    with tempfile.TemporaryDirectory() as archive_dir:
        command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry"]
        command += ["--host=127.0.0.1", "--port=0", f"--archive_dir={archive_dir}", "--log_format=json"]
        # A process group of its own, so that Ctrl-C does not end it before those who use it.
        with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as server, ExitStack() as stack:
            try:
                lines = map(json.loads, server.stdout or ())
                port = next(line["port"] for line in lines if line["event"] == "serving")
                reader = threading.Thread(target=list, args=[lines])  # a pipe that nobody reads would stop it one day
                reader.start()
                stack.callback(reader.join)
                yield f"grpc://127.0.0.1:{port}"
            finally:
                server.terminate()


def parse_options(description: str) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--endpoint",
        default=os.environ.get(ENDPOINT_VARIABLE),
        help=f"where the registry is, such as grpc://localhost:9002 (default: that of {ENDPOINT_VARIABLE}, "
        "else one is started, and ends with the training)",
    )
    parser.add_argument("--model", default="cartpole", help="the id of the model (default: cartpole)")
    parser.add_argument("--updates", type=int, default=200, help="how many updates to make (default: 200)")
    parser.add_argument("--episodes", type=int, default=8, help="how many episodes an update is made of (default: 8)")
    parser.add_argument("--actors", type=int, default=4, help="how many processes play (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="begins all chance but that of timing (default: 0)")
    parser.add_argument("--plot", metavar="FILE", help="plot the returns to this file: .svg, .png or .pdf")
    return parser.parse_args()


def interruption() -> threading.Event:
    """Return an event that is set by Ctrl-C or SIGTERM; the second one raises `KeyboardInterrupt`.

    An update is published whole or not begun, so the end is looked for between two of them. While the registry is away,
    that may take the ten seconds for which the client tries.
    """
    interrupted = threading.Event()

    def note(*_: object) -> None:
        interrupted.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return interrupted


def plotter(path: str, model_id: str) -> Callable[[Trainer, Sequence[Version]], None]:
    """Return what plots a run, and the versions that were promoted, to a file."""
    # Actors load this module too, and plot nothing. Whoever has no matplotlib learns it before the training.
    from plot import plot_returns  # noqa: PLC0415

    def write(trainer: Trainer, promoted: Sequence[Version]) -> None:
        plot_returns(path, trainer.returns, promoted, f"{model_id}: return by version")
        print(f"plotted {path}", flush=True)

    return write


def run(description: str, new_learner: Callable[[int], Learner]) -> int:
    """Train as the command line says, and return the exit code.

    Args:
        description: What `--help` says.
        new_learner: Makes what learns from a seed.
    """
    options = parse_options(description)
    write_plot = plotter(options.plot, options.model) if options.plot else None
    interrupted = interruption()
    try:
        with ExitStack() as stack:
            endpoint = options.endpoint or stack.enter_context(own_server())
            registry = stack.enter_context(ModelRegistry(endpoint))
            print(f"training {options.model} with the registry at {endpoint}", flush=True)
            trainer = Trainer(registry, options.model, new_learner(options.seed))
            episodes = stack.enter_context(
                playing(options.actors, endpoint, options.model, options.seed, interrupted),
            )
            trainer.train(episodes, options.updates, options.episodes)
            # An evaluator may have run at the same time; see evaluate.py.
            promoted = registry.find_versions(options.model, "archived = true AND metrics:return")
    except (EOFError, ModelRegistryError) as error:
        print(f"error: {str(error) or 'an actor ended'}", file=sys.stderr)
        return 1
    if write_plot is not None and trainer.returns:
        write_plot(trainer, promoted)
    for version in promoted:
        for alias in version.aliases:
            print(f"{alias} is version {version.number}, with return {version.metrics['return']:.1f}", flush=True)
    if interrupted.is_set():
        print("interrupted", flush=True)
        return 130
    return 0
