"""Threads for what takes its time beside gRPC: hashing, files, and what the main thread lets others do.

The standard library's pools do not do here. Their locks are code of Python's, so that an interruption may leave one
taken for ever, and a signal's handler or a finalizer that comes in the middle waits for itself; and they take no work
once the main thread has ended, though other threads go on. What the main thread does here are single steps of the
interpreter, on queues and deques of C.
"""

import _thread
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, ParamSpec, TypeVar

from cogment_model_registry.errors import ClosedError

_P = ParamSpec("_P")
_T = TypeVar("_T")

SIGNAL_SECONDS = 1.0
"""How long the main thread waits before it looks for signals again. Python only takes note of a signal, and acts
between two of its own steps; one that comes right before a wait begins does not end it."""


class Job(Generic[_T]):
    """Something that a thread is to do once, unless it is revoked before.

    Args:
        work: What.

    Attributes:
        is_over: Whether it was done.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._turn = deque([None])  # whoever takes it out decides
        self._outcome: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()
        self.is_over = False

    def revoke(self) -> bool:
        """Return whether it will not be done: it was not begun."""
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True

    def do(self) -> None:
        """Do it, unless it was revoked."""
        if not self.revoke():
            return
        outcome: tuple[_T | None, BaseException | None]
        try:
            outcome = (self._work(), None)
        except BaseException as error:
            outcome = (None, error)
        self.is_over = True
        self._outcome.put(outcome)

    def result(self) -> _T:
        """Wait for what comes of it, and return or raise that. To be called once."""
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


_Mailbox = queue.SimpleQueue[Job[Any] | None]


class _Idle:
    """The mailboxes of threads that have nothing to do."""

    def __init__(self) -> None:
        self.mailboxes: deque[_Mailbox] = deque()
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True
        while self.mailboxes:
            try:
                self.mailboxes.pop().put(None)
            except IndexError:  # someone else took the last one
                return


class Threads:
    """As many threads as are needed at once, which are kept for the next jobs. No process waits for them at its end.

    Args:
        name: What they are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle = _Idle()

    def begin(self, job: Job[Any]) -> None:
        """Let one of them do a job.

        Raises:
            ClosedError: They were closed.
        """
        if self._idle.is_closed:
            raise ClosedError
        try:
            mailbox = self._idle.mailboxes.pop()
        except IndexError:
            mailbox = queue.SimpleQueue()
            _thread.start_new_thread(_start, (self._name, mailbox, self._idle))
        mailbox.put(job)

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Let one of them do something, for others than the main thread, or for an event loop.

        Raises:
            ClosedError: They were closed.
        """
        future: Future[_T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(*args, **kwargs)
            except StopIteration as error:  # which no coroutine can raise, and asyncio's futures refuse
                future.set_exception(RuntimeError(repr(error)))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.begin(Job(do))
        return future

    def close(self) -> None:
        """Let them end, each with the job that it has."""
        self._idle.close()

    def __del__(self) -> None:
        self._idle.close()


def _start(name: str, mailbox: _Mailbox, idle: _Idle) -> None:
    """Start a thread that has a name, which takes locks of Python's; so not on the thread that wants it."""
    threading.Thread(target=_serve, args=(mailbox, idle), name=name, daemon=True).start()


def _serve(mailbox: _Mailbox, idle: _Idle) -> None:
    while (job := mailbox.get()) is not None:
        job.do()
        del job  # and all that it holds
        idle.mailboxes.append(mailbox)
        if idle.is_closed:
            idle.close()


def do_apart(work: Callable[[], _T]) -> _T:
    """Do something on a thread of its own, and wait for it, so that an interruption leaves no lock taken."""
    job = Job(work)
    _thread.start_new_thread(job.do, ())
    return job.result()
