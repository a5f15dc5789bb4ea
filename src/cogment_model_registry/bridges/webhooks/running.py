"""The process: it watches the registry, queues events, and posts them on a thread for each hook."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from cogment_model_registry import CaughtUp, ModelRegistry
from cogment_model_registry.bridges.webhooks.configuration import Configuration
from cogment_model_registry.bridges.webhooks.delivery import FINISH_SECONDS, DeadLetters, Delivery
from cogment_model_registry.bridges.webhooks.events import Events
from cogment_model_registry.bridges.webhooks.state import State
from cogment_model_registry.errors import ClosedError, ModelRegistryError, PreconditionError

_log = logging.getLogger("cogment_model_registry.webhooks")

_PAGE = 1000
"""How many events are given up at a time."""

_PATIENCE_SECONDS = 366 * 24 * 3600.0
"""How long to wait for an unavailable registry: as long as the process runs."""


def run(registry: ModelRegistry, configuration: Configuration, is_ready: Callable[[], None] = lambda: None) -> None:
    """Watch a registry, and post its events, until it is stopped.

    Args:
        registry: The client.
        configuration: The hooks.
        is_ready: Called when everything that existed was recorded; all changes after that are events.

    Raises:
        PreconditionError: Another process uses the state, or it or the dead letters cannot be written.
        InvalidError: The registry does not know the position: it is a different registry.
        ModelRegistryError: The registry cannot be reached at the start, or is a server of the original.
    """
    with closing(State(configuration.state_path)) as state:
        dead_letters = DeadLetters(configuration.dead_letters_path)
        _give_up_others(configuration, state, dead_letters)
        events = Events(configuration, state, registry)
        failure = _Failure(registry)
        with _delivering(configuration, state, dead_letters, failure), _promotions(configuration, events, failure):
            token = state.token(configuration.model_ids)
            _log.info("following hooks=%d %s", len(configuration.hooks), "where it was" if token else "from now on")
            options = {"resume_token": token, "consumers": True, "patience_seconds": _PATIENCE_SECONDS}
            with failure.raised(), closing(registry.follow(*configuration.model_ids, **options)) as news:  # type: ignore[arg-type]
                for each in news:
                    events.take(each)
                    if isinstance(each.event, CaughtUp):
                        is_ready()


class _Failure:
    """The first error of a thread, which ends the process: whoever restarts it sees that it does not work.

    Args:
        registry: The client; it is closed, which ends the watch.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._error: BaseException | None = None

    def take(self, error: BaseException) -> None:
        """Record an error, and end the watch."""
        self._error = self._error or error
        self._registry.close()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Return a context manager that raises the recorded error in place of that of the closed client."""
        try:
            yield
        except ClosedError:
            if self._error is not None:
                raise self._error from None
            raise


def _give_up_others(configuration: Configuration, state: State, dead_letters: DeadLetters) -> None:
    """Give up the events of hooks that are not configured any more, or have another name now."""
    for hook in sorted({*state.waiting_hooks()} - {hook.name for hook in configuration.hooks}):
        _log.warning("hook=%s is not configured any more; events given up: %d", hook, state.waiting(hook))
        while posts := state.first_posts(hook, _PAGE):
            dead_letters.add(hook, posts, "the hook is not configured any more")
            state.remove_posts(hook, posts)


@contextmanager
def _delivering(
    configuration: Configuration, state: State, dead_letters: DeadLetters, failure: _Failure
) -> Iterator[None]:
    deliveries = [
        Delivery(hook, state, dead_letters, configuration.waiting_max, failure.take) for hook in configuration.hooks
    ]
    started: list[Delivery] = []
    try:
        for delivery in deliveries:
            delivery.start()
            started.append(delivery)
        yield
    finally:
        for delivery in started:
            delivery.stop_soon()
        until = time.monotonic() + FINISH_SECONDS
        for delivery in started:
            delivery.stop(until)


@contextmanager
def _promotions(configuration: Configuration, events: Events, failure: _Failure) -> Iterator[None]:
    """Return a context manager in which a thread looks for promoted versions, if a hook gets their events.

    Watchers are not notified of promotions, so they are polled for.
    """
    is_stopped = threading.Event()

    def look() -> None:
        while not is_stopped.wait(configuration.promotions_seconds):
            try:
                events.look_for_promoted()
            except PreconditionError as error:  # of the state
                failure.take(error)
                return
            except ModelRegistryError as error:
                if not is_stopped.is_set():
                    _log.warning("looking for archived versions failed: %s", error)
            except Exception as error:
                failure.take(error)
                return

    thread = threading.Thread(target=look, name="webhooks promotions")
    if events.wants_archived:
        thread.start()
    try:
        yield
    finally:
        is_stopped.set()
        if events.wants_archived:
            thread.join(30)
