"""Calls with gRPC's blocking client, and waits by blocking the thread.

Nothing suspends on this backend, so `run` gets to the end of a coroutine in one step.
"""

import functools
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from cogment_model_registry.client.backends import (
    Backend,
    Channel,
    Metadata,
    Replies,
    blocking_channel,
    checked_requests,
    metadata_of,
    options,
    read_replies,
    refusing_closed_channels,
    reply_of,
)
from cogment_model_registry.client.credentials import Credentials, authorized
from cogment_model_registry.client.threads import Job, start_thread, submit
from cogment_model_registry.wire.tls import Tls

_T = TypeVar("_T")


class StoppedError(Exception):
    """A backend was stopped while something waited with it."""


class BlockingBackend:
    """Calls with gRPC's blocking client, and waits by blocking the thread, until it is stopped.

    Args:
        within: The backend whose channels it uses; it can be stopped on its own, and stops with that one.
    """

    def __init__(self, within: "BlockingBackend | None" = None) -> None:
        self._end: Future[Exception] = Future()
        self._ends: list[Future[Exception]] = [self._end, *(within._ends if within else ())]  # noqa: SLF001 # one of us
        self._lock = threading.RLock()  # a finalizer may end a call in the middle of another one
        self._calls: set[Any] = set()

    def check_here(self) -> None:
        """Do nothing: any thread may use it."""

    def connect(
        self, address: str, *, tls: Tls | None, window_bytes: int, is_pinged: bool, credentials: Credentials
    ) -> Channel:
        """Return a channel, which any thread may use."""
        channel = blocking_channel(address, options(window_bytes, is_pinged=is_pinged), tls=tls)
        return authorized(channel, credentials)

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel."""
        channel.close()

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""
        with self._under_way(lambda: channel.unary_unary(path).future(request, timeout=timeout_seconds)) as call:
            return reply_of(call, [])

    async def upload(
        self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float, metadata: Metadata = None
    ) -> bytes:
        """Send messages, and return the reply."""
        failures: list[BaseException] = []
        method = channel.stream_unary(path)
        with self._under_way(
            lambda: method.future(checked_requests(requests, failures), timeout=timeout_seconds, metadata=metadata)
        ) as call:
            return reply_of(call, failures)

    async def exchange(
        self,
        channel: Channel,
        path: str,
        requests: Iterator[bytes],
        on_reply: Callable[[bytes], None],
        timeout_seconds: float,
    ) -> None:
        """Send messages, and pass on each reply as it comes."""
        failures: list[BaseException] = []
        method = channel.stream_stream(path)
        with self._under_way(lambda: method(checked_requests(requests, failures), timeout=timeout_seconds)) as call:
            read_replies(call, failures, on_reply)

    @contextmanager
    def _under_way(self, begin: Callable[[], Any]) -> Generator[Any]:
        call = self._begin(begin)
        try:
            with self.stopped_not_failed():
                yield call
        finally:
            self.forget(call)
            call.cancel()

    def stream(self, channel: Channel, path: str, request: bytes, timeout_seconds: float, token: str = "") -> Replies:
        """Send one message, and return the replies."""
        method = channel.unary_stream(path)
        call = self._begin(lambda: method(request, timeout=timeout_seconds, metadata=metadata_of(token)))
        call.add_done_callback(_keep)
        return _BlockingReplies(call, self)

    def _begin(self, begin: Callable[[], Any]) -> Any:
        with refusing_closed_channels():
            call = begin()
        with self._lock:
            self._calls.add(call)
        if self._end.done():
            call.cancel()
        return call

    def forget(self, call: Any) -> None:
        """Remove a call that is over."""
        with self._lock:
            self._calls.discard(call)

    @contextmanager
    def stopped_not_failed(self) -> Generator[None]:
        """Return a context manager that raises the reason of a stop in place of the errors that it causes."""
        try:
            yield
        except grpc.RpcError:
            if self._end.done():
                raise self._end.result() from None
            raise

    async def together(self, works: Sequence[Callable[[Backend], Awaitable[None]]]) -> None:
        """Do several things at the same time, each on a thread; when one fails, end the others."""
        backends = [BlockingBackend(within=self) for _ in works]
        working = [submit(functools.partial(run, work(backend))) for work, backend in zip(works, backends, strict=True)]
        left: set[Future[Any]] = set(working)
        try:
            while left:
                over, _ = futures.wait([*left, *self._ends], return_when=futures.FIRST_COMPLETED)
                for each in over:
                    if each not in left:
                        raise each.result()
                    left.discard(each)
                    each.result()
        finally:
            for backend in backends:
                backend.stop()
            futures.wait(working)

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        for end in futures.wait(self._ends, seconds, return_when=futures.FIRST_COMPLETED).done:
            raise end.result()

    async def wait(self, future: "Future[_T]", timeout_seconds: float | None = None) -> _T:
        """Wait for the result of a thread."""
        awaited: list[Future[Any]] = [future, *self._ends]
        futures.wait(awaited, timeout_seconds, return_when=futures.FIRST_COMPLETED)
        if future.done():
            return future.result()
        future.cancel()
        for end in self._ends:
            if end.done():
                raise end.result()
        raise TimeoutError

    def stop(self, reason: Exception | None = None) -> None:
        """End all calls and waits, now and later; they raise the reason."""
        with self._lock:
            if not self._end.done():
                self._end.set_result(reason or StoppedError())
            calls = list(self._calls)
        for call in calls:
            call.cancel()


def _keep(_call: Any) -> None:
    """Do nothing.

    As the callback of a call, it makes gRPC's own thread keep that until it is over. When a call is finalized, gRPC
    takes a lock; at the end of Python a thread that stands still may have it.
    """


class _BlockingReplies:
    def __init__(self, call: Any, backend: BlockingBackend) -> None:
        self._call = call
        self._backend = backend

    async def read(self) -> bytes | None:
        with self._backend.stopped_not_failed():
            message: bytes | None = next(self._call, None)
            return message

    def cancel(self) -> None:
        self._backend.forget(self._call)
        self._call.cancel()


def run(work: Awaitable[_T]) -> _T:
    """Return the result of an awaitable that never suspends: one that waits by a `BlockingBackend`."""
    steps: Any = work.__await__()
    try:
        steps.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    raise RuntimeError("something suspended in the blocking client")


def run_interruptibly(work: Callable[[], Awaitable[_T]], stop: Callable[[], None]) -> _T:
    """Return the result of what never suspends, so that an interruption, such as Ctrl-C, ends it cleanly.

    Python raises KeyboardInterrupt wherever the main thread is, also between two steps of gRPC that belong together;
    then closing a channel may wait indefinitely. So the main thread only waits, and another one does the work.

    Args:
        work: What is to be done.
        stop: Ends it; called on a thread after an interruption.
    """
    job = Job(lambda: run(work()))
    try:
        start_thread(job.do)
        return job.result()
    except BaseException:
        if not job.is_over and not job.revoke():
            start_thread(stop)
            job.wait()
        raise
