"""How the client calls and waits: one interface for its logic, with an asyncio and a blocking implementation.

The logic is written once, as coroutines. With `AsyncioBackend` they run as any others do. With `BlockingBackend` no
await ever suspends, since each wait blocks the thread instead; so `run` completes a coroutine in one step.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio

from cogment_model_registry.client.threads import Job, Threads
from cogment_model_registry.errors import ClosedError
from cogment_model_registry.wire.directory import TOKEN_KEY

_T = TypeVar("_T")

Channel: TypeAlias = Any
"""A connection of the backend that made it."""

_OPTIONS = (
    # Replies are as large as the server makes them; uploads go in chunks of our own.
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found within seconds, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Five minutes is what servers allow by default between pings of a client. What is sent and not acknowledged for
    # the timeout ends the connection, so the next call notices a peer that vanished.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Each client has a connection of its own, so closing it disturbs no other client.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Replies(Protocol):
    """The messages of one streamed reply."""

    async def read(self) -> bytes | None:
        """Return the next message; None at the end."""

    def cancel(self) -> None:
        """Cancel the call; harmless when it is over."""


class Backend(Protocol):
    """A way of calling and waiting.

    All calls raise `grpc.RpcError`, with its `code()` and `details()`. Calls and waits raise `ClosedError` when their
    channel is closed, and `StoppedError` when the backend is stopped, as far as it can be.
    """

    def connect(self, address: str, *, secure: bool) -> Channel:
        """Return a channel, which connects when it is first needed."""

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel; the calls that are under way on it end."""

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""

    async def upload(self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float) -> bytes:
        """Send messages, and return the reply.

        The iterator may be used from another thread; an error that it raises ends the call, and is raised here.
        """

    def stream(self, channel: Channel, path: str, request: bytes, timeout_seconds: float, token: str = "") -> Replies:
        """Send one message, and return the replies.

        Args:
            channel: The connection.
            path: The method.
            request: The message.
            timeout_seconds: How long until the last reply.
            token: The authentication token of a Directory.
        """

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""

    async def wait(self, future: "Future[_T]", timeout_seconds: float | None = None) -> _T:
        """Wait for the result of a thread.

        Raises:
            TimeoutError: The result did not come in time.
        """


def _metadata(token: str) -> tuple[tuple[str, str], ...] | None:
    return ((TOKEN_KEY, token),) if token else None


def _checked_requests(requests: Iterator[bytes], failures: list[BaseException]) -> Iterator[bytes]:
    """Yield messages to gRPC, on its own thread; what they raise would only appear in its log.

    gRPC always gets an `Exception`: any other kind would end its thread but not the call.
    """
    while True:
        try:
            message = next(requests)
        except StopIteration:
            return
        except BaseException as error:
            failures.append(error)
            raise RuntimeError("the upload failed on this side") from error
        yield message


def _reply_of(call: Any, failures: list[BaseException]) -> bytes:
    """Return the reply of a call that is over, or wait for it."""
    try:
        reply: bytes = call.result()
    except (grpc.RpcError, grpc.FutureCancelledError):
        if failures:
            raise failures[0] from None
        # gRPC also raises this when the server answers CANCELLED.
        raise call from None
    return reply


def _new_blocking_channel(address: str, *, secure: bool) -> Channel:
    if secure:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=_OPTIONS)
    return grpc.insecure_channel(address, options=_OPTIONS)


class _AsyncioChannel:
    """A channel of `grpc.aio`, and a blocking one for uploads.

    A call of `grpc.aio` that is written to when the server ends it may lose the status for an INTERNAL error of its own
    (https://github.com/grpc/grpc/issues/36066). Blocking calls are not affected, and take messages on a thread, where
    reading a file does not block an event loop. Neither channel connects before it is used.
    """

    def __init__(self, address: str, *, secure: bool) -> None:
        if secure:
            self.calls: Any = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=_OPTIONS)
        else:
            self.calls = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.uploads = _new_blocking_channel(address, secure=secure)
        self.is_closed = False


class AsyncioBackend:
    """Calls with `grpc.aio`, and waits as asyncio does."""

    def __init__(self) -> None:
        self._is_stopped = asyncio.Event()

    def stop(self) -> None:
        """End all sleeps, now and later."""
        self._is_stopped.set()

    def connect(self, address: str, *, secure: bool) -> Channel:
        """Return a channel of the running event loop."""
        return _AsyncioChannel(address, secure=secure)

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel."""
        channel.is_closed = True
        channel.uploads.close()
        await channel.calls.close()

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""
        with _closed_not_cancelled(channel):
            with _refusing_closed_channels():
                call = channel.calls.unary_unary(path)(request, timeout=timeout_seconds)
            reply: bytes = await call
            return reply

    async def upload(self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float) -> bytes:
        """Send messages, and return the reply."""
        failures: list[BaseException] = []
        is_over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end(_call: Any) -> None:
            with suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(is_over.set)

        method = channel.uploads.stream_unary(path)
        with _refusing_closed_channels():
            call = method.future(_checked_requests(requests, failures), timeout=timeout_seconds)
        try:
            call.add_done_callback(end)
            await is_over.wait()
            return _reply_of(call, failures)
        finally:
            call.cancel()

    def stream(self, channel: Channel, path: str, request: bytes, timeout_seconds: float, token: str = "") -> Replies:
        """Send one message, and return the replies."""
        method = channel.calls.unary_stream(path)
        with _refusing_closed_channels():
            call = method(request, timeout=timeout_seconds, metadata=_metadata(token))
        return _AsyncioReplies(call, channel)

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        try:
            async with asyncio.timeout(seconds):
                await self._is_stopped.wait()
        except TimeoutError:
            return
        raise ClosedError

    async def wait(self, future: "Future[_T]", timeout_seconds: float | None = None) -> _T:
        """Wait for the result of a thread."""
        async with asyncio.timeout(timeout_seconds):
            return await asyncio.wrap_future(future)


@contextmanager
def _closed_not_cancelled(channel: Channel) -> Generator[None]:
    """Return a context manager for one call that tells the closing of its channel from a cancelled task.

    A task may have been cancelled before, and may have continued.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        if not channel.is_closed or (task and task.cancelling() > before):
            raise
        raise ClosedError from None


@contextmanager
def _refusing_closed_channels() -> Generator[None]:
    """Return a context manager in which a call begins, unless its channel was closed since it was returned."""
    try:
        yield
    except (ValueError, grpc.aio.UsageError) as error:
        raise ClosedError from error


class _AsyncioReplies:
    def __init__(self, call: Any, channel: Channel) -> None:
        self._call = call
        self._channel = channel

    async def read(self) -> bytes | None:
        with _closed_not_cancelled(self._channel):
            message = await self._call.read()
            return message if isinstance(message, bytes) else None

    def cancel(self) -> None:
        self._call.cancel()


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

    def connect(self, address: str, *, secure: bool) -> Channel:
        """Return a channel, which any thread may use."""
        return _new_blocking_channel(address, secure=secure)

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel."""
        channel.close()

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""
        with self._under_way(lambda: channel.unary_unary(path).future(request, timeout=timeout_seconds)) as call:
            return _reply_of(call, [])

    async def upload(self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float) -> bytes:
        """Send messages, and return the reply."""
        failures: list[BaseException] = []
        method = channel.stream_unary(path)
        with self._under_way(
            lambda: method.future(_checked_requests(requests, failures), timeout=timeout_seconds)
        ) as call:
            return _reply_of(call, failures)

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
        call = self._begin(lambda: method(request, timeout=timeout_seconds, metadata=_metadata(token)))
        return _BlockingReplies(call, self)

    def _begin(self, begin: Callable[[], Any]) -> Any:
        with _refusing_closed_channels():
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


class Interruptible:
    """Runs what blocks so that an interruption, such as Ctrl-C, ends it cleanly.

    Python raises KeyboardInterrupt wherever the main thread is, also between two steps of gRPC that belong together;
    then closing a channel may wait indefinitely. So the main thread only waits, and another one does the work.
    """

    def __init__(self) -> None:
        # As many as calls: a signal's handler may make one while the main thread waits for another one.
        self._threads = Threads("model registry client, main")

    def run(self, work: Callable[[], Awaitable[_T]], stop: Callable[[], None]) -> _T:
        """Return the result of what never suspends.

        To be called by the main thread alone.

        Args:
            work: What is to be done.
            stop: Ends it; called on a thread after an interruption.
        """
        job = Job(lambda: run(work()))
        try:
            self._threads.begin(job)
            return job.result()
        except BaseException:
            if not job.is_over and not job.revoke():
                self._threads.begin(Job(stop))
                job.wait()
            raise

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()
