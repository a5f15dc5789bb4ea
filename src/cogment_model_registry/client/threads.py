"""Work on threads of its own: what hashes and uses files, and what the main thread waits for.

Each piece of work has a new thread. A pool saves some 10 microseconds of a call, and has its price: the locks of the
standard library's are Python code, so an interruption of the main thread may leave one locked indefinitely; its threads
are missing in a process that was forked; and it takes no work once the main thread has ended, though others go on.
"""

import _thread
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_T = TypeVar("_T")

SIGNAL_SECONDS = 1.0
"""How long the main thread waits before it looks for signals again. Python only records a signal, and acts between two
of its own steps; one that comes right before a wait begins does not end it."""


def start_thread(work: Callable[[], object]) -> None:
    """Do something on a new thread, which no process waits for at its end; or here, when no thread can be started.

    From 3.12 on Python refuses to start one once the main thread has ended.
    """
    try:
        _thread.start_new_thread(work, ())
    except RuntimeError:
        work()


def submit(work: Callable[[], _T]) -> "Future[_T]":
    """Do something on a new thread, and return its result to come."""
    future: Future[_T] = Future()

    def do() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except StopIteration as error:  # which no coroutine can raise, and asyncio's futures refuse
            future.set_exception(RuntimeError(repr(error)))
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    start_thread(do)
    return future


class Job(Generic[_T]):
    """Work that is done once, unless it is revoked before; the main thread waits for it without a lock of Python's.

    Args:
        work: What is to be done.

    Attributes:
        is_over: Whether it was done.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = [work]  # the one who takes it out decides
        self._outcome: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()
        self.is_over = False

    def revoke(self) -> bool:
        """Return whether it will not be done: nobody had begun it."""
        try:
            self._work.pop()
        except IndexError:
            return False
        return True

    def do(self) -> None:
        """Do it, unless it was revoked."""
        outcome: tuple[_T | None, BaseException | None]
        try:
            work = self._work.pop()
        except IndexError:
            return
        try:
            outcome = (work(), None)
        except BaseException as error:
            outcome = (None, error)
        del work  # with all that it holds, before anyone learns that it is over
        self.is_over = True
        self._outcome.put(outcome)

    def result(self) -> _T:
        """Wait until it is done, and return or raise the result. To be called once."""
        while True:
            try:
                value, error = self._outcome.get(timeout=SIGNAL_SECONDS)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return value  # type: ignore[return-value] # it is None only where that is the value

    def wait(self) -> None:
        """Wait until it is over, also after an interruption of `result`."""
        while not self.is_over:
            try:
                self._outcome.get(timeout=SIGNAL_SECONDS)
            except queue.Empty:
                continue
            return


def do_apart(work: Callable[[], _T]) -> _T:
    """Do something on a thread of its own, and wait for it, so that an interruption leaves no lock locked."""
    job = Job(work)
    start_thread(job.do)
    return job.result()
