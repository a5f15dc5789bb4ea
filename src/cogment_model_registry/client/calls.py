"""A connection to a registry, and how calls on it fail: deadlines, retries, errors in the registry's own terms."""

import random
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.endpoints import Direct, Discovered
from cogment_model_registry.directory_records import Protocol
from cogment_model_registry.errors import ModelRegistryError, NotFoundError, TimedOutError, UnavailableError
from cogment_model_registry.wire import convert, messages
from cogment_model_registry.wire import directory as directory_wire

_T = TypeVar("_T")

_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 2.0

_DIRECTORY_SECONDS = 10.0
"""How long a Directory may take to answer."""


_UNREACHABLE = "failed to connect to all addresses"
"""What gRPC says, and in no other way tells, of a call that was never sent."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a call is about, to begin an error's message with.

    Attributes:
        text: In words.
        model_id: Its model, if it has one.
        version_number: Its version, if it has one.
    """

    text: str
    model_id: str | None = None
    version_number: int | None = None


class Deadline:
    """A moment until which something must be done.

    Args:
        seconds: How far away it is.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._moment = time.monotonic() + seconds

    def left_seconds(self) -> float:
        """Return how far away it still is; never less than nothing."""
        return max(self._moment - time.monotonic(), 0.0)


class Backoff:
    """How long to wait before each further attempt: twice as long each time, and never quite as long as others do."""

    def __init__(self) -> None:
        self._seconds = _BACKOFF_FIRST_SECONDS

    def next_seconds(self) -> float:
        """Return how long to wait now."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, _BACKOFF_MAX_SECONDS)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 # nothing secret


class Connection:
    """A connection to wherever the registry is; shared by all that one client does.

    Args:
        location: Where that is.
    """

    def __init__(self, location: Direct | Discovered) -> None:
        self.location = location
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._outdated: list[Channel] = []
        self._is_closed = False

    async def channel(self, backend: Backend, deadline: Deadline) -> Channel:
        """Return the channel; finds out first where the registry is, if it has to.

        Raises:
            NotFoundError: The Directory knows no such registry.
            UnavailableError: The Directory does not answer.
        """
        if self._is_closed:
            raise RuntimeError("the model registry client is closed")
        if self._channel is None:
            address, secure = await self._find(backend, deadline)
            with self._lock:
                if self._channel is None:  # nobody else was faster
                    self._channel = backend.connect(address, secure=secure)
        return self._channel

    async def _find(self, backend: Backend, deadline: Deadline) -> tuple[str, bool]:
        if isinstance(self.location, Direct):
            return self.location.address, False
        return await _ask_directory(backend, self.location, deadline)

    def suspect(self, channel: Channel) -> None:
        """Ask the Directory anew before the next call: the registry may have moved."""
        with self._lock:
            if isinstance(self.location, Discovered) and self._channel is channel:
                self._channel = None
                self._outdated.append(channel)  # other calls may still be under way on it

    async def aclose(self, backend: Backend) -> None:
        """Close it."""
        self._is_closed = True
        channels = [*self._outdated, self._channel]
        self._outdated, self._channel = [], None
        for channel in channels:
            if channel is not None:
                await backend.disconnect(channel)


async def _ask_directory(backend: Backend, location: Discovered, deadline: Deadline) -> tuple[str, bool]:
    """Return the address of the registry that a Directory hands out, and whether it wants encryption."""
    request = directory_wire.inquire_request(location.inquiry)
    subject = Subject(f"asking {location}")
    channel = backend.connect(location.directory_address, secure=False)
    try:
        with translated(subject, location), ExitStack() as stack:
            path = f"/{directory_wire.SERVICE_NAME}/Inquire"
            seconds = min(deadline.left_seconds(), _DIRECTORY_SECONDS)
            replies = backend.stream(channel, path, request.SerializeToString(), seconds, location.token)
            stack.callback(replies.cancel)
            while (message := await replies.read()) is not None:
                service = directory_wire.service_from_reply(message)
                if service.endpoint.protocol is not Protocol.COGMENT:
                    return service.endpoint.address, service.endpoint.protocol is Protocol.GRPC_SSL
    finally:
        await backend.disconnect(channel)
    raise NotFoundError(f"{location} knows no such model registry that is ready")


@contextmanager
def translated(subject: Subject, where: object) -> Generator[None]:
    """Open a context in which gRPC's errors become the registry's.

    Args:
        subject: What the calls are about.
        where: Who is called.
    """
    try:
        yield
    except grpc.RpcError as error:
        details = str(error.details() or error.code().name)
        was_sent = _UNREACHABLE not in details
        if not was_sent:
            # The rest is a list of addresses that were tried, and why the last one failed at the end.
            details = f"there is no connection to {where}: {details.rsplit(': ', 1)[-1]}"
        told = convert.error_of(
            error.code(),
            f"{subject.text}: {details}",
            model_id=subject.model_id,
            version_number=subject.version_number,
        )
        told.was_sent = was_sent
        raise told from error
    except convert.DecodeError as error:
        raise ModelRegistryError(
            f"{subject.text}: the server's answer makes no sense",
            model_id=subject.model_id,
            version_number=subject.version_number,
        ) from error


class Calls:
    """Makes calls on a connection.

    Args:
        backend: How.
        connection: On which.
        retry_seconds: How long a call is retried while the registry is unavailable.
    """

    def __init__(self, backend: Backend, connection: Connection, retry_seconds: float) -> None:
        self.backend = backend
        self.connection = connection
        self.retry_seconds = retry_seconds

    def on(self, backend: Backend) -> "Calls":
        """Return what makes calls on the same connection in another way."""
        return Calls(backend, self.connection, self.retry_seconds)

    def without_retries(self) -> "Calls":
        """Return what makes each call once."""
        return Calls(self.backend, self.connection, 0.0)

    async def unary(
        self,
        method: str,
        request: messages.Message,
        reply_type: Any,
        subject: Subject,
        timeout_seconds: float,
        *,
        retry: bool = True,
    ) -> Any:
        """Make a call with one request and one reply, and return the reply.

        Args:
            method: The name of the method.
            request: The request.
            reply_type: The reply's message.
            subject: What it is about.
            timeout_seconds: How long it may take, with all retries.
            retry: Whether it may be made again when nobody knows whether it was done.
        """
        data = request.SerializeToString()

        async def call(channel: Channel, deadline: Deadline) -> Any:
            reply = await self.backend.unary(channel, method_path(method), data, deadline.left_seconds())
            return reply_type.FromString(reply)

        return await self.retrying(call, subject, Deadline(timeout_seconds), may_retry=lambda: retry)

    async def retrying(
        self,
        call: Callable[[Channel, Deadline], Awaitable[_T]],
        subject: Subject,
        deadline: Deadline,
        may_retry: Callable[[], bool] = lambda: True,
    ) -> _T:
        """Make a call, and again while the registry is unavailable.

        Args:
            call: Makes it once, on a channel.
            subject: What it is about.
            deadline: When to give up.
            may_retry: Whether the server cannot have done what it was asked for; asked after each failure.

        Raises:
            ModelRegistryError: It failed; with `may_be_done` when the server may have done it nevertheless.
        """
        backoff = Backoff()
        patience: Deadline | None = None
        while True:
            channel = None
            try:
                channel = await self.connection.channel(self.backend, deadline)
                with translated(subject, self.connection.location):
                    return await call(channel, deadline)
            except (UnavailableError, TimedOutError) as error:
                if channel is not None:
                    self.connection.suspect(channel)
                    if not may_retry() and error.was_sent:
                        raise _uncertain(error) from error.__cause__
                if isinstance(error, TimedOutError):
                    raise
                patience = patience or Deadline(min(self.retry_seconds, deadline.left_seconds()))
                seconds = backoff.next_seconds()
                if patience.left_seconds() < seconds:
                    raise
            except ModelRegistryError as error:
                # A status of no certain meaning, such as of a stream that broke, or an answer that makes no sense.
                if type(error) is ModelRegistryError and not may_retry():
                    raise _uncertain(error) from error.__cause__
                raise
            await self.backend.sleep(seconds)


def _uncertain(error: ModelRegistryError) -> ModelRegistryError:
    """Return an error with the note that the server may have done what it was asked for."""
    message = f"{error.message}; the server may have done it nevertheless"
    uncertain = type(error)(message, model_id=error.model_id, version_number=error.version_number)
    uncertain.may_be_done = True
    return uncertain


def method_path(method: str) -> str:
    """Return the path of a method of the registry."""
    return f"/{messages.SERVICE_NAMES[0]}/{method}"
