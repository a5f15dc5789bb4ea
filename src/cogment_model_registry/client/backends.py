"""How the client calls and waits: the one interface that its logic awaits, and the two ways of doing so.

The logic is written once, as coroutines. With `AsyncioBackend` they run as any others do. With `BlockingBackend`
nothing that they await ever suspends, since each wait blocks the thread instead; so `run` gets to the end of a
coroutine in one step.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio

from cogment_model_registry.wire.directory import TOKEN_KEY

_T = TypeVar("_T")

Channel: TypeAlias = Any
"""What the backend that made it calls on."""

_OPTIONS = (
    # Replies are as large as the server makes them; uploads go in chunks of our own.
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found within seconds, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Five minutes is what servers allow by default between pings of a client. What is sent and not acknowledged for
    # the timeout ends the connection, so a peer that is gone without a word is noticed with the next call.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A registry is one connection: closing it disturbs no other one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Replies(Protocol):
    """The messages of one streamed reply."""

    async def read(self) -> bytes | None:
        """Return the next message; None at the end."""

    def cancel(self) -> None:
        """Give the call up; harmless when it is over."""


class Backend(Protocol):
    """A way of calling and waiting. All calls raise `grpc.RpcError`, with its `code()` and `details()`."""

    def connect(self, address: str, *, secure: bool) -> Channel:
        """Return a channel, which connects when it is first needed."""

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel; the calls that are under way on it end."""

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""

    async def upload(self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float) -> bytes:
        """Send messages, and return the reply.

        The iterator may be used from another thread; what it raises ends the call, and is raised.
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

    async def wait(self, future: "Future[_T]") -> _T:
        """Wait for what a thread does."""


def _metadata(token: str) -> tuple[tuple[str, str], ...] | None:
    return ((TOKEN_KEY, token),) if token else None


def _checked_requests(requests: Iterator[bytes], failures: list[Exception]) -> Iterator[bytes]:
    """Yield messages to gRPC, on whose thread it is, and which would tell of what they raise in its log alone."""
    try:
        yield from requests
    except Exception as error:
        failures.append(error)
        raise


def _reply_of(call: Any, failures: list[Exception]) -> bytes:
    """Return the reply of a call with a stream of requests that is over."""
    try:
        reply: bytes = call.result()
    except grpc.RpcError:
        if failures:
            raise failures[0] from None
        raise
    return reply


def _new_blocking_channel(address: str, *, secure: bool) -> Channel:
    if secure:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=_OPTIONS)
    return grpc.insecure_channel(address, options=_OPTIONS)


class _AsyncioChannel:
    """A channel of `grpc.aio`, and a blocking one for uploads.

    A call of `grpc.aio` that is written to when the server ends it may lose the status for an INTERNAL error of its own
    (https://github.com/grpc/grpc/issues/36066). Blocking calls have none of that, and take messages on a thread, where
    reading a file holds up no event loop. Neither channel connects before it is used.
    """

    def __init__(self, address: str, *, secure: bool) -> None:
        if secure:
            self.calls: Any = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=_OPTIONS)
        else:
            self.calls = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.uploads = _new_blocking_channel(address, secure=secure)


class AsyncioBackend:
    """Calls with `grpc.aio`, and waits as asyncio does."""

    def connect(self, address: str, *, secure: bool) -> Channel:
        """Return a channel of the running loop."""
        return _AsyncioChannel(address, secure=secure)

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel."""
        channel.uploads.close()
        await channel.calls.close()

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""
        reply: bytes = await channel.calls.unary_unary(path)(request, timeout=timeout_seconds)
        return reply

    async def upload(self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float) -> bytes:
        """Send messages, and return the reply."""
        failures: list[Exception] = []
        is_over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end(_call: Any) -> None:
            with suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(is_over.set)

        method = channel.uploads.stream_unary(path)
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
        return _AsyncioReplies(method(request, timeout=timeout_seconds, metadata=_metadata(token)))

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        await asyncio.sleep(seconds)

    async def wait(self, future: "Future[_T]") -> _T:
        """Wait for what a thread does."""
        return await asyncio.wrap_future(future)


class _AsyncioReplies:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> bytes | None:
        message = await self._call.read()
        if isinstance(message, bytes):
            return message
        if await self._call.code() is not grpc.StatusCode.OK:
            async for _ in self._call:  # raises what the call ended with
                pass
        return None

    def cancel(self) -> None:
        self._call.cancel()


class StoppedError(Exception):
    """A backend was stopped while something waited with it."""


class BlockingBackend:
    """Calls with gRPC's blocking client, and waits by blocking the thread, until it is stopped.

    A backend may use the channels of another one, and be stopped without it.
    """

    def __init__(self) -> None:
        self._stopped: Future[None] = Future()
        self._lock = threading.Lock()
        self._calls: set[Any] = set()

    def connect(self, address: str, *, secure: bool) -> Channel:
        """Return a channel, which any thread may use."""
        return _new_blocking_channel(address, secure=secure)

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel."""
        channel.close()

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""
        with self._begun(lambda: channel.unary_unary(path).future(request, timeout=timeout_seconds)) as call:
            reply: bytes = call.result()
            return reply

    async def upload(self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float) -> bytes:
        """Send messages, and return the reply."""
        failures: list[Exception] = []
        method = channel.stream_unary(path)
        with self._begun(lambda: method.future(_checked_requests(requests, failures), timeout=timeout_seconds)) as call:
            return _reply_of(call, failures)

    @contextmanager
    def _begun(self, begin: Callable[[], Any]) -> Generator[Any]:
        call = begin()
        self._add(call)
        try:
            yield call
        except grpc.FutureCancelledError:
            raise StoppedError from None
        finally:
            self.forget(call)
            call.cancel()

    def stream(self, channel: Channel, path: str, request: bytes, timeout_seconds: float, token: str = "") -> Replies:
        """Send one message, and return the replies."""
        call = channel.unary_stream(path)(request, timeout=timeout_seconds, metadata=_metadata(token))
        self._add(call)
        return _BlockingReplies(call, self)

    def _add(self, call: Any) -> None:
        with self._lock:
            self._calls.add(call)
        if self.is_stopped:
            call.cancel()

    def forget(self, call: Any) -> None:
        """Take note that a call is over."""
        with self._lock:
            self._calls.discard(call)

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        if futures.wait([self._stopped], seconds).done:
            raise StoppedError

    async def wait(self, future: "Future[_T]") -> _T:
        """Wait for what a thread does."""
        both: list[Future[Any]] = [future, self._stopped]
        futures.wait(both, return_when=futures.FIRST_COMPLETED)
        if not future.done():
            future.cancel()
            raise StoppedError
        return future.result()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing waits with it any more."""
        return self._stopped.done()

    def stop(self) -> None:
        """Give up all calls and waits that are under way, and all that are to come."""
        with self._lock:
            if not self._stopped.done():
                self._stopped.set_result(None)
            calls = list(self._calls)
        for call in calls:
            call.cancel()


class _BlockingReplies:
    def __init__(self, call: Any, backend: BlockingBackend) -> None:
        self._call = call
        self._backend = backend

    async def read(self) -> bytes | None:
        try:
            message: bytes | None = next(self._call, None)
        except grpc.RpcError as error:
            if self._backend.is_stopped:
                raise StoppedError from error
            raise
        return message

    def cancel(self) -> None:
        self._backend.forget(self._call)
        self._call.cancel()


def run(work: Awaitable[_T]) -> _T:
    """Return the result of what never suspends, as nothing on a `BlockingBackend` does."""
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
    then a channel may wait for ever when it is closed. So the main thread only waits, and another one does the work.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model registry client, main")
        self._is_closed = False
        self._backend = BlockingBackend()

    def run(self, work: Callable[[BlockingBackend], Awaitable[_T]]) -> _T:
        """Return the result of what never suspends on the backend that it is given.

        To be called by the main thread alone.
        """
        if self._is_closed:
            raise RuntimeError("the model registry client is closed")
        backend = self._backend
        future: Future[_T] | None = None
        try:
            future = self._thread.submit(lambda: run(work(backend)))
            return future.result()
        except BaseException:
            # An interruption may also come while the work is handed over: then it is under way, and has no future.
            if future is None or not future.done():
                self._backend = BlockingBackend()
                backend.stop()
                futures.wait([future] if future else [])
            raise

    def close(self) -> None:
        """Let the thread end."""
        self._is_closed = True
        self._thread.shutdown(wait=False)
