"""The signals of a server process, from its first step to its last one.

A signal without a handler ends the process, or is lost where it is the first one of a container (PID 1). So the
handlers are installed before anything slow is imported, and stay until the process ends; what comes before somebody
acts on signals is kept. An event loop's own handlers would come too late and go too early.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio  # importing it would take time in which a signal is lost

_STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """SIGTERM and SIGINT, which stop a server, and SIGHUP. To be created on the main thread, once.

    The second signal that stops ends the process at once, whatever it does at that moment.
    """

    def __init__(self) -> None:
        self._is_stopping = False
        self._early: list[signal.Signals] = []
        self._pass_on: Callable[[signal.Signals], object] = self._early.append
        for number in (*_STOPS, signal.SIGHUP):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPS:
            if self._is_stopping:
                os._exit(128 + number)
            self._is_stopping = True
        self._pass_on(signal.Signals(number))

    @contextlib.contextmanager
    def passed_to(self, loop: "asyncio.AbstractEventLoop", act: Callable[[signal.Signals], object]) -> Iterator[None]:
        """Return a context manager in which an event loop calls `act` for each signal, also for those before it."""

        def pass_on(number: signal.Signals) -> None:
            loop.call_soon_threadsafe(act, number)

        self._pass_on = pass_on
        for number in self._early:
            pass_on(number)
        try:
            yield
        finally:
            self._pass_on = self._early.append
            # The server has stopped, and the process ends; Python would let its own handler go before that.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
