"""How the blocking client makes its calls: on the thread of the caller, or on one that Ctrl-C can interrupt."""

import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from cogment_model_registry.client.blocking_backend import BlockingBackend, run, run_interruptibly
from cogment_model_registry.client.core import Core
from cogment_model_registry.client.opening import Client
from cogment_model_registry.errors import ClosedError

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_T = TypeVar("_T")


class BlockingClient(Client[BlockingBackend]):
    """Opens, closes, and makes calls."""

    def _make_backend(self) -> BlockingBackend:
        return BlockingBackend()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the calls of other threads end with `ClosedError`."""

        async def close() -> None:
            self._backend.stop(ClosedError())
            await self._core.aclose()

        if self._core.calls.connection.is_usable():
            self._run_here(close, lambda: self._backend.stop(ClosedError()))

    def _run(self, work: Callable[[Core], Awaitable[_T]]) -> _T:
        """Return the result of a call; another thread makes it for the main thread, see `run_interruptibly`."""
        self._core.calls.check_open()
        if not _is_main_thread():
            return run(work(self._core))
        backend = BlockingBackend(within=self._backend)
        return run_interruptibly(lambda: work(self._core.on(backend)), backend.stop)

    def _run_here(self, work: Callable[[], Awaitable[_T]], stop: Callable[[], None]) -> _T:
        return run_interruptibly(work, stop) if _is_main_thread() else run(work())


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident
