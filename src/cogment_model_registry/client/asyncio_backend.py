"""Calls with `grpc.aio`, and waits as asyncio does."""

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

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
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import ClosedError
from cogment_model_registry.system.tasks import wait_at_most
from cogment_model_registry.wire.tls import Tls

_T = TypeVar("_T")


class _AsyncioChannel:
    """A channel of `grpc.aio`, and a blocking one for uploads.

    A call of `grpc.aio` that is still writing when the server ends it may report INTERNAL instead of the status
    (https://github.com/grpc/grpc/issues/36066). Blocking calls are not affected, and take messages on a thread, where
    reading a file does not block an event loop. Neither channel connects before it is used.
    """

    def __init__(
        self, address: str, *, tls: Tls | None, window_bytes: int, is_pinged: bool, credentials: Credentials
    ) -> None:
        settings = options(window_bytes, is_pinged=is_pinged)
        if tls is not None:
            calls = grpc.aio.secure_channel(address, tls.credentials(), options=settings)
        else:
            calls = grpc.aio.insecure_channel(address, options=settings)
        self.calls = authorized(calls, credentials)
        self.uploads = authorized(blocking_channel(address, options(is_pinged=is_pinged), tls=tls), credentials)
        # gRPC 1.60 ends only those calls with its channel that a task awaits with nothing in between.
        self.streams: set[Any] = set()
        self.is_closed = False
        _open.add(self)


_open: "weakref.WeakSet[_AsyncioChannel]" = weakref.WeakSet()
_was_open_at_fork = False
"""Whether this process was forked while its parent used `grpc.aio`, whose calls then never end in this one."""


def _note_fork() -> None:
    global _was_open_at_fork  # noqa: PLW0603 # it is a state of the process
    _was_open_at_fork = _was_open_at_fork or bool(_open)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class AsyncioBackend:
    """Calls with `grpc.aio`, and waits as asyncio does."""

    def __init__(self) -> None:
        self._is_stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the first call

    def check_here(self) -> None:
        """Refuse to be used outside of the event loop in which it was used first, and where gRPC would hang.

        Raises:
            ClosedError: It is used on another one, or on none, or in a process that was forked at the wrong moment.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ClosedError("this client needs an event loop of asyncio, and none is running here") from None
        if _was_open_at_fork:
            raise ClosedError(
                "this process was forked while its parent used a client for asyncio, and gRPC cannot serve asyncio in "
                "it: use cogment_model_registry.ModelRegistry here, or start processes with the spawn method of "
                "multiprocessing"
            )
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ClosedError(
                "this client belongs to the event loop in which it was first used, and this is another one: make "
                "another client here (each asyncio.run has an event loop of its own)"
            )

    def stop(self) -> None:
        """End all sleeps, now and later; there are none when the event loop has ended.

        Raises:
            ClosedError: It is called on another event loop.
        """
        if self._loop is None or not self._loop.is_closed():
            self.check_here()
            self._is_stopped.set()

    def connect(
        self, address: str, *, tls: Tls | None, window_bytes: int, is_pinged: bool, credentials: Credentials
    ) -> Channel:
        """Return a channel of the running event loop."""
        return _AsyncioChannel(
            address, tls=tls, window_bytes=window_bytes, is_pinged=is_pinged, credentials=credentials
        )

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel; nothing of it is left to await when its event loop has ended."""
        channel.is_closed = True
        channel.uploads.close()
        if self._loop is asyncio.get_running_loop():
            for call in [*channel.streams]:
                call.cancel()
            await channel.calls.close()

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""
        with _closed_not_cancelled(channel):
            with refusing_closed_channels():
                call = channel.calls.unary_unary(path)(request, timeout=timeout_seconds)
            reply: bytes = await call
            return reply

    async def upload(
        self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float, metadata: Metadata = None
    ) -> bytes:
        """Send messages, and return the reply."""
        failures: list[BaseException] = []
        is_over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end(_call: Any) -> None:
            with suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(is_over.set)

        method = channel.uploads.stream_unary(path)
        with refusing_closed_channels():
            call = method.future(checked_requests(requests, failures), timeout=timeout_seconds, metadata=metadata)
        try:
            call.add_done_callback(end)
            await is_over.wait()
            return reply_of(call, failures)
        finally:
            call.cancel()

    async def exchange(
        self,
        channel: Channel,
        path: str,
        requests: Iterator[bytes],
        on_reply: Callable[[bytes], None],
        timeout_seconds: float,
    ) -> None:
        """Send messages, and pass on each reply as it comes, on a thread."""
        failures: list[BaseException] = []
        method = channel.uploads.stream_stream(path)
        with refusing_closed_channels():
            call = method(checked_requests(requests, failures), timeout=timeout_seconds)
        try:
            await self.wait(submit(lambda: read_replies(call, failures, on_reply)))
        finally:
            call.cancel()

    def stream(self, channel: Channel, path: str, request: bytes, timeout_seconds: float, token: str = "") -> Replies:
        """Send one message, and return the replies."""
        method = channel.calls.unary_stream(path)
        with refusing_closed_channels():
            call = method(request, timeout=timeout_seconds, metadata=metadata_of(token))
        channel.streams.add(call)
        call.add_done_callback(channel.streams.discard)
        return _AsyncioReplies(call, channel)

    async def together(self, works: Sequence[Callable[[Backend], Awaitable[None]]]) -> None:
        """Do several things at the same time, each in a task; when one fails, end the others."""
        tasks = [asyncio.ensure_future(work(self)) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""
        try:
            await wait_at_most(seconds, self._is_stopped.wait())
        except TimeoutError:
            return
        raise ClosedError

    async def wait(self, future: "Future[_T]", timeout_seconds: float | None = None) -> _T:
        """Wait for the result of a thread."""
        return await wait_at_most(timeout_seconds, asyncio.wrap_future(future))


@contextmanager
def _closed_not_cancelled(channel: Channel) -> Generator[None]:
    """Return a context manager for one call that raises `ClosedError` if its channel was closed.

    gRPC reports that as a cancellation, too. Only a new cancellation of the task itself is passed on: the task may have
    survived an earlier one.
    """
    before = _cancellations()
    try:
        yield
    except asyncio.CancelledError:
        if not channel.is_closed or _cancellations() > before:
            raise
        raise ClosedError from None


def _cancellations() -> int:
    """Return how often the current task was cancelled; 0 before Python 3.11, which does not count."""
    count: Callable[[], int] = getattr(asyncio.current_task(), "cancelling", lambda: 0)
    return count()


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
