"""Actors: processes that play with the latest version of the policy, and send their episodes to the trainer.

An actor has one end of a pipe, the trainer the other one. The trainer answers when it takes an episode, and the actor
waits for that before it plays the next one, so none is played long before it is learned from. A pipe whose other end is
closed makes the actor end, however the trainer ended.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import gymnasium
import numpy as np
from policy import Array, Weights, choose

from cogment_model_registry import Latest, ModelRegistry, numpy

FIRST_VERSION_SECONDS = 30

LOOK_SECONDS = 0.5
"""How often an interruption is looked for while no episode comes."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What an actor played, from the start until the pole fell, or until 500 steps.

    Attributes:
        version_number: The version of the policy that it was played with.
        observations: What was observed before each step, one a row.
        actions: The action of each step.
    """

    version_number: int
    observations: Array
    actions: Array

    @property
    def total_return(self) -> int:
        """The sum of the rewards: CartPole gives 1 for each step."""
        return len(self.actions)


def act(name: str, endpoint: str, model_id: str, seed: int, trainer: "Connection[Episode, None]") -> None:
    """Play until the trainer is gone; the whole life of an actor's process."""
    environment = gymnasium.make("CartPole-v1")
    environment.reset(seed=seed)
    rng = np.random.default_rng(seed)
    with ModelRegistry(endpoint) as registry, registry.track(model_id, decode=numpy.decode) as latest:
        first = latest.wait_for(timeout=FIRST_VERSION_SECONDS)
        print(f"{name}: begins with version {first.number}", flush=True)
        is_stale = False
        # A snapshot is a version with its weights; what comes meanwhile is for the next episode.
        while (snapshot := latest.snapshot) is not None:
            is_stale = tell_staleness(name, latest, is_stale)
            version, weights = snapshot
            try:
                trainer.send(play(environment, version.number, weights, rng))
                trainer.recv()
            except (EOFError, OSError):
                break


def tell_staleness(name: str, latest: Latest[Weights], was_stale: bool) -> bool:
    """Say whether the weights may be stale when that has changed, and return it.

    An actor that has lost the registry plays on, as each episode says which version it was played with.
    """
    error = latest.error
    if error is not None and not was_stale:
        print(f"{name}: the weights may be stale: {error}", flush=True)
    elif error is None and was_stale:
        print(f"{name}: the weights are up to date again", flush=True)
    return error is not None


def play(
    environment: gymnasium.Env[Array, int], version_number: int, weights: Weights, rng: np.random.Generator
) -> Episode:
    """Play one episode."""
    observations, actions = [], []
    observation, _ = environment.reset()
    is_over = False
    while not is_over:
        action = choose(weights, observation, rng)
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, _ = environment.step(action)
        is_over = terminated or truncated
    return Episode(version_number, np.array(observations, np.float32), np.array(actions, np.int8))


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Open a context in which Ctrl-C does nothing, neither here nor, for ever, in processes that are started in it."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def playing(
    count: int, endpoint: str, model_id: str, seed: int, interrupted: threading.Event
) -> Iterator[Iterator[Episode]]:
    """Open a context in which actors play, with an iterator over their episodes, which an interruption ends."""
    # A process that uses gRPC cannot be forked.
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        # Ctrl-C is for all processes of a terminal; actors are to end after the trainer.
        with ignoring_interrupts():
            for number in range(1, count + 1):
                connection, of_actor = context.Pipe()
                connections.append(connection)
                name = f"actor {number}"
                process = context.Process(
                    target=act, args=(name, endpoint, model_id, seed + number, of_actor), name=name, daemon=True
                )
                process.start()
                processes.append(process)
                of_actor.close()  # the actor has its own, and the pipe is to be closed once that one is
        yield receive(connections, interrupted)
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


def receive(connections: "list[Connection[None, Episode]]", interrupted: threading.Event) -> Iterator[Episode]:
    """Yield episodes as they come, one of each actor in turn, until there is an interruption.

    Raises:
        EOFError: An actor ended.
    """
    while not interrupted.is_set():
        ready = wait(connections, LOOK_SECONDS)
        for connection in connections:
            if connection in ready:
                episode = connection.recv()
                connection.send(None)
                yield episode
