"""The process: it watches the registry, queues events, and posts them on a thread for each hook."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from cogment_model_registry import CaughtUp, ModelRegistry
from cogment_model_registry.bridges.webhooks.configuration import Configuration
from cogment_model_registry.bridges.webhooks.delivery import DeadLetters, Delivery
from cogment_model_registry.bridges.webhooks.events import Events
from cogment_model_registry.bridges.webhooks.state import State
from cogment_model_registry.errors import ModelRegistryError

_log = logging.getLogger("cogment_model_registry.webhooks")

_PATIENCE_SECONDS = 366 * 24 * 3600.0
"""How long to wait for an unavailable registry: as long as the process runs."""


def run(registry: ModelRegistry, configuration: Configuration, is_ready: Callable[[], None] = lambda: None) -> None:
    """Watch a registry, and post its events, until it is stopped.

    Args:
        registry: The client.
        configuration: The hooks.
        is_ready: Called when everything that existed was recorded; all changes after that are events.

    Raises:
        PreconditionError: Another process uses the state.
        InvalidError: The registry does not know the position: it is a different registry.
        ModelRegistryError: The registry cannot be reached at the start, or is a server of the original.
        OSError: The dead letters cannot be written.
    """
    with closing(State(configuration.state_path)) as state:
        for hook, count in state.remove_others(hook.name for hook in configuration.hooks).items():
            _log.warning("hook=%s is not configured any more; events dropped: %d", hook, count)
        events = Events(configuration, state)
        with _delivering(configuration, state) as deliveries, _promotions(registry, configuration, state, events):
            token = state.token(configuration.model_ids)
            _log.info("following hooks=%d %s", len(deliveries), "where it was" if token else "from now on")
            options = {"resume_token": token, "consumers": True, "patience_seconds": _PATIENCE_SECONDS}
            with closing(registry.follow(*configuration.model_ids, **options)) as news:  # type: ignore[arg-type]
                for each in news:
                    events.take(each)
                    if isinstance(each.event, CaughtUp):
                        is_ready()
                    for delivery in deliveries:
                        if delivery.error is not None:
                            raise delivery.error


@contextmanager
def _delivering(configuration: Configuration, state: State) -> Iterator[list[Delivery]]:
    dead_letters = DeadLetters(configuration.dead_letters_path)
    deliveries = [Delivery(hook, state, dead_letters, configuration.waiting_max) for hook in configuration.hooks]
    try:
        for delivery in deliveries:
            delivery.start()
        yield deliveries
    finally:
        for delivery in deliveries:
            delivery.stop()


@contextmanager
def _promotions(registry: ModelRegistry, configuration: Configuration, state: State, events: Events) -> Iterator[None]:
    """Return a context manager in which a thread looks for promoted versions, if a hook gets their events.

    Watchers are not notified of promotions, so they are polled for.
    """
    is_stopped = threading.Event()

    def look() -> None:
        while not is_stopped.wait(configuration.promotions_seconds):
            try:
                for model_id, number in state.transient().items():
                    accepted = f"archived = true AND version_number >= {number}"
                    for version in registry.find_versions(model_id, accepted):
                        events.take_archived(version)
            except ModelRegistryError as error:
                if not is_stopped.is_set():
                    _log.warning("looking for archived versions failed: %s", error)

    thread = threading.Thread(target=look, name="webhooks promotions")
    if events.wants_archived:
        thread.start()
    try:
        yield
    finally:
        is_stopped.set()
        if events.wants_archived:
            thread.join(30)
