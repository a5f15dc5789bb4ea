"""Load processes, which make the calls, so that no client delays a server or another client's interpreter.

A job is a coroutine function of a module and its arguments; it runs on the event loop of a load process. Jobs that
belong together prepare themselves (connect, call once), then `meet`, so that all begin at the same moment.
"""

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")

JOB_SECONDS = 240.0
"""The time limit of one job."""

_MEET_SECONDS = 90.0


class JobFailedError(Exception):
    """A job ended with an error; the message has the error."""


@dataclass(slots=True)
class _Meeting:
    """In a load process: its event loop, and the rendezvous with the others."""

    runner: asyncio.Runner
    ready: Event
    go: Event


_meetings: list[_Meeting] = []


async def meet() -> None:
    """In a job: signal that it is prepared, and wait for the others."""
    _meetings[0].ready.set()
    await asyncio.to_thread(_meetings[0].go.wait, _MEET_SECONDS)


@dataclass(frozen=True, slots=True)
class Job(Generic[_T]):
    """A job for a load process."""

    function: Callable[..., Coroutine[Any, Any, _T]]
    arguments: tuple[object, ...]
    options: dict[str, object]


def job(function: Callable[..., Coroutine[Any, Any, _T]], *arguments: object, **options: object) -> Job[_T]:
    """Return the job that calls a coroutine function of a module."""
    return Job(function, arguments, options)


class Load:
    """A process that runs one job at a time. Call `close` to end it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._ready, self._go = context.Event(), context.Event()
        self._executor = ProcessPoolExecutor(1, context, _prepare, (self._ready, self._go))

    def start(self, todo: Job[_T]) -> "Future[_T]":
        """Begin a job that may meet others."""
        self._ready.clear()
        self._go.clear()
        return self._executor.submit(_do, todo)

    def wait_ready(self, future: "Future[Any]") -> None:
        """Wait until a job is prepared, or has ended."""
        deadline = time.monotonic() + _MEET_SECONDS
        while not self._ready.wait(0.05) and not future.done() and time.monotonic() < deadline:
            pass

    def go(self) -> None:
        """Let the waiting job continue."""
        self._go.set()

    def run(self, todo: Job[_T]) -> _T:
        """Run a job without a rendezvous, and return its result."""
        future = self.start(todo)
        self.go()
        return future.result(JOB_SECONDS + _MEET_SECONDS)

    def close(self) -> None:
        """End the process after its job."""
        self._go.set()
        self._executor.shutdown(wait=True, cancel_futures=True)


def together(jobs: Sequence[tuple[Load, Job[_T]]]) -> list[_T]:
    """Run jobs concurrently in as many processes, and return their results."""
    futures = [(load, load.start(todo)) for load, todo in jobs]
    for load, future in futures:
        load.wait_ready(future)
    for load, _ in futures:
        load.go()
    wait(
        [future for _, future in futures], JOB_SECONDS + _MEET_SECONDS
    )  # all of them, so that none delays the next benchmark
    return [future.result(0) for _, future in futures]


def _prepare(ready: Event, go: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    _meetings.append(_Meeting(asyncio.Runner(), ready, go))


def _do(todo: Job[_T]) -> _T:
    try:
        return _meetings[0].runner.run(_limited(todo))
    except Exception as error:
        # As a text: not every exception can be pickled.
        raise JobFailedError(f"{getattr(todo.function, '__name__', 'job')}: {type(error).__name__}: {error}") from None
    finally:
        gc.collect()  # closes connections in reference cycles, so that this does not happen during the next job


async def _limited(todo: Job[_T]) -> _T:
    async with asyncio.timeout(JOB_SECONDS):
        return await todo.function(*todo.arguments, **todo.options)
