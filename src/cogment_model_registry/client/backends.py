"""How the client calls and waits: the one interface that its logic awaits, and what its two implementations share.

The logic is written once, as coroutines. `asyncio_backend` runs them as any others; on `blocking_backend` nothing that
they await ever suspends.
"""

from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio

from cogment_model_registry.client.credentials import Credentials
from cogment_model_registry.errors import ClosedError
from cogment_model_registry.wire import channels, pings
from cogment_model_registry.wire.directory import TOKEN_KEY
from cogment_model_registry.wire.tls import Tls

_T = TypeVar("_T")

Metadata: TypeAlias = tuple[tuple[str, str], ...] | None
"""Metadata that goes with a call."""

Channel: TypeAlias = Any
"""A connection of the backend that made it."""

OPTIONS = (
    *channels.OPTIONS,
    # Replies are as large as the server makes them; uploads go in chunks of our own.
    ("grpc.max_receive_message_length", -1),
)


def options(window_bytes: int = 0, *, is_pinged: bool = False) -> tuple[tuple[str, str | int], ...]:
    """Return the options of a channel.

    Args:
        window_bytes: How much a server may send ahead, or 0 to leave that to gRPC, which lets it grow with the speed,
            and takes tens of MiB for a few fast streams.
        is_pinged: Whether it pings the server during calls.
    """
    chosen: dict[str, str | int] = dict(OPTIONS)
    if window_bytes:
        chosen.update({"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": window_bytes})
    if is_pinged:
        chosen.update(pings.OPTIONS)
    return tuple(chosen.items())


class Replies(Protocol):
    """The messages of one streamed reply."""

    async def read(self) -> bytes | None:
        """Return the next message; None at the end."""

    def cancel(self) -> None:
        """Cancel the call; harmless when it is over."""


class Backend(Protocol):
    """A way of calling and waiting.

    All calls raise `grpc.RpcError`, with its `code()` and `details()`. Calls and waits raise `ClosedError` when their
    channel is closed, and `StoppedError` when the backend is stopped, if it can be.
    """

    def check_here(self) -> None:
        """Refuse to be used where it cannot work.

        Raises:
            ClosedError: It is used on another event loop than the first time.
        """

    def connect(
        self, address: str, *, tls: Tls | None, window_bytes: int, is_pinged: bool, credentials: Credentials
    ) -> Channel:
        """Return a channel, which connects when it is first needed; see `options`."""

    async def disconnect(self, channel: Channel) -> None:
        """Close a channel; the calls that are under way on it end."""

    async def unary(self, channel: Channel, path: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one message, and return the reply."""

    async def upload(
        self, channel: Channel, path: str, requests: Iterator[bytes], timeout_seconds: float, metadata: Metadata = None
    ) -> bytes:
        """Send messages, and return the reply.

        The iterator may be used from another thread; an error that it raises ends the call, and is raised here.
        """

    async def exchange(
        self,
        channel: Channel,
        path: str,
        requests: Iterator[bytes],
        on_reply: Callable[[bytes], None],
        timeout_seconds: float,
    ) -> None:
        """Send messages, and pass on each reply as it comes, perhaps on another thread; see `upload`.

        The iterator may wait for a reply; it must end soon after the call is over.
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

    async def together(self, works: "Sequence[Callable[[Backend], Awaitable[None]]]") -> None:
        """Do several things at the same time, each with the backend that it gets; when one fails, end the others.

        Raises:
            Exception: The first that one of them raised; the others are over by then.
        """

    async def sleep(self, seconds: float) -> None:
        """Wait for some time."""

    async def wait(self, future: "Future[_T]", timeout_seconds: float | None = None) -> _T:
        """Wait for the result of a thread.

        Raises:
            TimeoutError: The result did not come in time.
        """


def metadata_of(token: str) -> tuple[tuple[str, str], ...] | None:
    """Return the metadata of a call that carries a token of a Directory."""
    return ((TOKEN_KEY, token),) if token else None


def checked_requests(requests: Iterator[bytes], failures: list[BaseException]) -> Iterator[bytes]:
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


def reply_of(call: Any, failures: list[BaseException]) -> bytes:
    """Return the reply of a call that is over, or wait for it."""
    try:
        reply: bytes = call.result()
    except (grpc.RpcError, grpc.FutureCancelledError):
        if failures:
            raise failures[0] from None
        # gRPC also raises this when the server answers CANCELLED.
        raise call from None
    return reply


def read_replies(call: Any, failures: list[BaseException], on_reply: Callable[[bytes], None]) -> None:
    """Pass on the replies of a call until it is over."""
    try:
        for reply in call:
            on_reply(reply)
    except grpc.RpcError:
        if failures:
            raise failures[0] from None
        raise


def blocking_channel(address: str, settings: Sequence[tuple[str, str | int]], *, tls: Tls | None) -> Channel:
    """Return a channel of gRPC's blocking client."""
    if tls is not None:
        return grpc.secure_channel(address, tls.credentials(), options=settings)
    return grpc.insecure_channel(address, options=settings)


@contextmanager
def refusing_closed_channels() -> Generator[None]:
    """Return a context manager for starting a call; it raises `ClosedError` if the channel was closed."""
    try:
        yield
    except (ValueError, grpc.aio.UsageError) as error:
        raise ClosedError from error
