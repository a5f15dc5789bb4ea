"""Threads for slow work: hashing, files, and the calls that the main thread waits for.

The standard library's pools do not serve here. Their locks are Python code, so an interruption of the main thread may
leave one locked for good; their threads are missing in a process that was forked; and they take no work once the main
thread has ended, though others go on.
"""

import _thread
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_T = TypeVar("_T")

SIGNAL_SECONDS = 1.0
"""How long the main thread waits before it looks for signals again. Python only records a signal, and acts between two
of its own steps; one that comes right before a wait begins does not end it."""

_IDLE_MAX = 4
"""How many threads wait for more work; starting one costs a call about a tenth of its time."""

_idle: "deque[queue.SimpleQueue[Callable[[], object]]]" = deque()
"""The mailboxes of the threads that wait for work. Deques and these queues are written in C: an interruption, a signal
handler or a finalizer never comes in the middle of an operation."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # the threads are those of the parent


def can_start() -> bool:
    """Return whether Python starts threads: not while it ends, and some versions not once the main thread has ended."""
    if sys.is_finalizing():
        return False
    if threading.main_thread().is_alive():
        return True
    try:
        _thread.start_new_thread(int, ())  # which does nothing
    except RuntimeError:
        return False
    return True


def start_thread(work: Callable[[], object]) -> None:
    """Do something on another thread, for which the process does not wait when it exits.

    Python 3.12.1 refuses to start one once the main thread has ended (see `can_start`); then the caller does it.

    Args:
        work: What is to be done; it handles its own errors.
    """
    try:
        _idle.pop().put(work)
    except IndexError:
        try:
            _thread.start_new_thread(_serve, (work,))
        except RuntimeError:
            work()


def _serve(work: Callable[[], object]) -> None:
    mailbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    while True:
        work()
        del work  # with all that it holds
        if len(_idle) >= _IDLE_MAX:
            return
        _idle.append(mailbox)
        work = mailbox.get()


def submit(work: Callable[[], _T]) -> "Future[_T]":
    """Do something on another thread, and return a future of its result."""
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
        self._work = [work]  # whoever takes it out decides whether it is done
        self._outcome: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()
        self.is_over = False

    def revoke(self) -> bool:
        """Take the work back; return False if it was already begun."""
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
