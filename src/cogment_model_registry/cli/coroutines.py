"""Coroutines of commands, and the signals that end them."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from cogment_model_registry.cli.running import handling_signals

if TYPE_CHECKING:
    from cogment_model_registry.storage.tools.bucket_transfer import Run

_T = TypeVar("_T")


@contextlib.contextmanager
def running_coroutines() -> Iterator["Run"]:
    """Return a context manager with a function that runs a coroutine, always on the same event loop.

    SIGTERM and SIGHUP cancel the coroutine and then end the command, as SIGINT does. An exception in the middle of
    the event loop would leave its tasks without an end, and print a traceback for each.
    """
    with asyncio.Runner() as runner:

        def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
            numbers: list[int] = []

            async def cancellable() -> _T:
                loop, task = asyncio.get_running_loop(), asyncio.ensure_future(coroutine)

                def end(number: int, _frame: FrameType | None) -> None:
                    numbers.append(number)
                    loop.call_soon_threadsafe(task.cancel)  # which wakes a loop that waits

                with handling_signals(end):
                    return await task

            try:
                return runner.run(cancellable())
            except asyncio.CancelledError:
                if not numbers:
                    raise
                raise SystemExit(128 + numbers[0]) from None

        yield run


def run_coroutine(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine; see `running_coroutines`."""
    with running_coroutines() as run:
        return run(coroutine)
