"""A connection to a registry, and the calls on it: deadlines, retries, and errors of the registry."""

import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.endpoints import Direct, Discovered
from cogment_model_registry.errors import (
    ClosedError,
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from cogment_model_registry.records.services import Protocol
from cogment_model_registry.wire import convert, messages
from cogment_model_registry.wire import directory as directory_wire

_T = TypeVar("_T")
_Reply = TypeVar("_Reply", bound=messages.Message)

_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_MAX_SECONDS = 2.0

_DIRECTORY_SECONDS = 10.0
"""How long a Directory may take to answer."""

_DIRECTORY_AGAIN_SECONDS = 2.0
"""How long it may take when a registry was found before."""

_UNREACHABLE = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")
"""How the details of a call begin that gRPC never sent; gRPC gives no other sign of that."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a call, with which an error's message begins.

    Attributes:
        text: A description.
        model_id: Its model, if it has one.
        version_number: Its version, if it has one.
    """

    text: str
    model_id: str | None = None
    version_number: int | None = None


class Deadline:
    """A deadline.

    Args:
        seconds: The time until then.
    """

    def __init__(self, seconds: float) -> None:
        self._moment = time.monotonic() + seconds

    def left_seconds(self) -> float:
        """Return the seconds until then; never negative."""
        return max(self._moment - time.monotonic(), 0.0)


class Backoff:
    """How long to wait before each further attempt: twice as long each time, with jitter."""

    def __init__(self) -> None:
        self._seconds = _BACKOFF_FIRST_SECONDS

    def next_seconds(self) -> float:
        """Return how long to wait now."""
        seconds = self._seconds
        self._seconds = min(2 * seconds, _BACKOFF_MAX_SECONDS)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 # nothing secret


class _Link:
    """A channel to the present or a former address of the registry."""

    def __init__(self, address: str, channel: Channel, *, secure: bool) -> None:
        self.address = address
        self.secure = secure
        self.channel = channel
        self.users = 0


class Connection:
    """The connection of a client to the registry, shared by all its calls.

    Args:
        location: Where the registry is.

    Attributes:
        is_closed: Whether it is closed, so that calls are refused.
    """

    def __init__(self, location: Direct | Discovered) -> None:
        self.location = location
        self.is_closed = False
        self._lock = threading.RLock()  # a finalizer may end a call in the middle of another one
        self._current: _Link | None = None
        self._is_suspect = False
        self._channels: list[Channel] = []

    @asynccontextmanager
    async def channel(self, backend: Backend, deadline: Deadline) -> AsyncGenerator[Channel]:
        """Return a context manager with the channel for a call; looks the registry up first, if necessary.

        A Directory that gave the address is asked again after a call that found no registry there.

        Raises:
            NotFoundError: The Directory knows no such registry.
            UnavailableError: The Directory does not answer.
            ClosedError: The client is closed.
        """
        link, outdated = self._taken(), None
        if link is None:
            address, secure = await self._find(backend, deadline)
            link, outdated = self._moved(backend, address, secure=secure)
        try:
            await self._disconnect_unused(backend, outdated)
            yield link.channel
        except (UnavailableError, TimedOutError):
            self._is_suspect = isinstance(self.location, Discovered)
            raise
        finally:
            with self._lock:
                link.users -= 1
            await self._disconnect_unused(backend, link)

    def check_open(self) -> None:
        """Refuse calls once it is closed.

        Raises:
            ClosedError: It is closed.
        """
        if self.is_closed:
            raise ClosedError

    def _taken(self) -> _Link | None:
        """Return the present link, for one more user; None if the registry must be looked up first."""
        with self._lock:
            self.check_open()
            if self._current is None or self._is_suspect:
                return None
            self._current.users += 1
            return self._current

    def _moved(self, backend: Backend, address: str, *, secure: bool) -> tuple[_Link, _Link | None]:
        """Return the link to an address, for one more user, and the previous link, whose calls go on."""
        with self._lock:
            before = link = self._current
            if link is None or (link.address, link.secure) != (address, secure):
                link = self._current = _Link(address, self._connect(backend, address, secure=secure), secure=secure)
            self._is_suspect = False
            link.users += 1
            return link, before

    async def _disconnect_unused(self, backend: Backend, link: _Link | None) -> None:
        with self._lock:
            is_over = link is not None and link is not self._current and not link.users
        if link is not None and is_over:
            await self._disconnect(backend, link.channel)

    def _connect(self, backend: Backend, address: str, *, secure: bool) -> Channel:
        """Return a new channel; call this with the lock held."""
        self.check_open()
        channel = backend.connect(address, secure=secure)
        self._channels.append(channel)
        return channel

    async def _disconnect(self, backend: Backend, channel: Channel) -> None:
        """Close a channel, unless it was closed with the connection."""
        with self._lock:
            is_open = channel in self._channels
            if is_open:
                self._channels.remove(channel)
        if is_open:
            await backend.disconnect(channel)

    async def _find(self, backend: Backend, deadline: Deadline) -> tuple[str, bool]:
        if isinstance(self.location, Direct):
            return self.location.address, False
        known, seconds = self._current, min(deadline.left_seconds(), _DIRECTORY_SECONDS)
        if known is None:
            return await self._ask_directory(backend, self.location, seconds)
        try:
            # The rest of the time is for the registry, which may still have its old address.
            return await self._ask_directory(backend, self.location, min(seconds / 2, _DIRECTORY_AGAIN_SECONDS))
        except (UnavailableError, TimedOutError, NotFoundError):
            # While a registry restarts the Directory does not know it; and the Directory may be unavailable, too.
            return known.address, known.secure

    async def _ask_directory(self, backend: Backend, location: Discovered, seconds: float) -> tuple[str, bool]:
        """Return the address of the registry that a Directory returns, and whether it requires TLS."""
        request = directory_wire.inquire_request(location.inquiry)
        subject = Subject(f"asking {location}")
        with self._lock:
            channel = self._connect(backend, location.directory_address, secure=False)
        try:
            with translated(subject, self), ExitStack() as stack:
                path = f"/{directory_wire.SERVICE_NAME}/Inquire"
                replies = backend.stream(channel, path, request.SerializeToString(), seconds, location.token)
                stack.callback(replies.cancel)
                while (message := await replies.read()) is not None:
                    service = directory_wire.service_from_reply(message)
                    if service.endpoint.protocol is not Protocol.COGMENT:
                        return service.endpoint.address, service.endpoint.protocol is Protocol.GRPC_SSL
        finally:
            await self._disconnect(backend, channel)
        raise NotFoundError(f"{location} knows no ready model registry that matches")

    async def aclose(self, backend: Backend) -> None:
        """Close it; calls under way end."""
        with self._lock:
            self.is_closed = True
        while self._channels:
            await self._disconnect(backend, self._channels[-1])


@contextmanager
def translated(subject: Subject, connection: Connection) -> Generator[None]:
    """Return a context manager that translates errors of gRPC into those of the registry.

    Args:
        subject: What the calls are about.
        connection: On which connection they are.
    """
    try:
        yield
    except grpc.RpcError as error:
        if connection.is_closed:
            raise ClosedError from error
        details = str(error.details() or error.code().name)
        if not _was_sent(error):
            # The rest is the list of addresses that were tried, with the reason of the last one at its end.
            reason = details.rsplit(": ", 1)[-1].rstrip("]")
            details = f"cannot connect to {connection.location}: {reason}"
        error_type = convert.error_type_of(error.code())
        status = f" ({error.code().name})" if error_type is ModelRegistryError else ""
        raise error_type(
            f"{subject.text}: {details}{status}",
            model_id=subject.model_id,
            version_number=subject.version_number,
        ) from error
    except convert.DecodeError as error:
        raise ModelRegistryError(
            f"{subject.text}: the server sent a malformed reply",
            model_id=subject.model_id,
            version_number=subject.version_number,
        ) from error


def _was_sent(error: BaseException | None) -> bool:
    """Return whether a call that failed was sent, as far as gRPC says."""
    return not (isinstance(error, grpc.RpcError) and str(error.details()).startswith(_UNREACHABLE))


class Calls:
    """Makes calls on a connection.

    Args:
        backend: How to call and wait.
        connection: The connection.
        retry_seconds: How long a call is retried while the registry is unavailable.
    """

    def __init__(self, backend: Backend, connection: Connection, retry_seconds: float) -> None:
        self.backend = backend
        self.connection = connection
        self.retry_seconds = retry_seconds

    def on(self, backend: Backend) -> "Calls":
        """Return an object that makes calls on the same connection with another backend."""
        return Calls(backend, self.connection, self.retry_seconds)

    def without_retries(self) -> "Calls":
        """Return an object that makes each call once."""
        return Calls(self.backend, self.connection, 0.0)

    async def unary(
        self,
        method: str,
        request: messages.Message,
        reply_type: type[_Reply],
        subject: Subject,
        deadline: Deadline,
        *,
        is_idempotent: bool = True,
    ) -> _Reply:
        """Make a call with one request and one reply, and return the reply.

        Args:
            method: The name of the method.
            request: The request.
            reply_type: The reply's message.
            subject: What it is about.
            deadline: When to give up, with all retries.
            is_idempotent: Whether to repeat it when it is not known whether it was done.
        """
        data = request.SerializeToString()

        async def call(channel: Channel) -> _Reply:
            reply = await self.backend.unary(channel, method_path(method), data, deadline.left_seconds())
            return reply_type.FromString(reply)

        return await self.retrying(call, subject, deadline, may_be_done=lambda: not is_idempotent)

    async def retrying(
        self,
        call: Callable[[Channel], Awaitable[_T]],
        subject: Subject,
        deadline: Deadline,
        may_be_done: Callable[[], bool] = lambda: False,
    ) -> _T:
        """Make a call, and repeat it while the registry is unavailable.

        Args:
            call: Makes it once, on a channel.
            subject: What it is about.
            deadline: When to give up.
            may_be_done: Returns whether the server may have done the call, which it must not do twice; called after
                a failure that does not say.

        Raises:
            ModelRegistryError: It failed; with `may_be_done` when the server may have done it nevertheless.
        """
        backoff = Backoff()
        patience: Deadline | None = None
        while True:
            is_begun = False
            try:
                async with self.connection.channel(self.backend, deadline) as channel:
                    is_begun = True
                    with translated(subject, self.connection):
                        return await call(channel)
            except ModelRegistryError as error:
                if is_begun and _was_sent(error.__cause__) and _is_vague(error) and may_be_done():
                    raise _uncertain(error) from error.__cause__
                if not isinstance(error, UnavailableError):
                    raise
                patience = patience or Deadline(min(self.retry_seconds, deadline.left_seconds()))
                seconds = backoff.next_seconds()
                if patience.left_seconds() < seconds:
                    raise
            await self.backend.sleep(seconds)


def _is_vague(error: ModelRegistryError) -> bool:
    """Return whether an error leaves open what the server did.

    The base class stands for a status of no certain meaning, such as of a stream that broke, or a malformed reply.
    """
    return type(error) is ModelRegistryError or isinstance(error, UnavailableError | TimedOutError | ClosedError)


def _uncertain(error: ModelRegistryError) -> ModelRegistryError:
    """Return an error with the note that the server may have done the call."""
    message = f"{error.message}; the server may have done it nevertheless"
    uncertain = type(error)(message, model_id=error.model_id, version_number=error.version_number)
    uncertain.may_be_done = True
    return uncertain


def method_path(method: str) -> str:
    """Return the path of a method of the registry."""
    return f"/{messages.SERVICE_NAMES[0]}/{method}"
