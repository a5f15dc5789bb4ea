"""A connection to a registry: where it is, the channel to it, and its errors in the registry's own terms."""

import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import grpc

from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.credentials import Credentials
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.encryption import Encryption
from cogment_model_registry.client.endpoints import DEFAULT, ENDPOINT_VARIABLE, Direct, Discovered
from cogment_model_registry.client.threads import can_start, submit
from cogment_model_registry.errors import (
    ClosedError,
    LimitedError,
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    WrongServerError,
)
from cogment_model_registry.records.services import Protocol
from cogment_model_registry.wire import channels, convert, pushback
from cogment_model_registry.wire import directory as directory_wire
from cogment_model_registry.wire.tls import Tls

_DIRECTORY_SECONDS = 10.0
"""How long a Directory may take to answer."""

_DIRECTORY_AGAIN_SECONDS = 2.0
"""How long it may take if it gave an address before."""

_SILENCE_SECONDS = 5.0
"""A channel on which calls got no answer for so long is replaced: what it is connected to may have frozen, and its name
may have another address by now. A program may give its calls less time than a server sometimes takes."""


_ADVICE = f"start a server there with `cogment services model_registry`, or name its endpoint in {ENDPOINT_VARIABLE}"
"""What to do if no server is at the default address."""


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


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """Where the UNIX socket of the registry is, as the registry says.

    Attributes:
        path: Its path; empty where it has none, or none that this process can reach.
        socket_id: What requests must carry.
        asked: When the registry was asked, by the monotonic clock.
    """

    path: str
    socket_id: str
    asked: float

    @classmethod
    def nowhere(cls) -> "LocalPlace":
        """Return that there is none, as far as is known now."""
        return cls("", "", time.monotonic())


class _Link:
    """A channel to the present or a former address of the registry."""

    def __init__(self, address: str, channel: Channel, tls: Tls | None) -> None:
        self.address = address
        self.tls = tls
        self.channel = channel
        self.users = 0
        self.is_silent = False
        self._unanswered_since: float | None = None

    def note_answer(self) -> None:
        """Record that a call was answered."""
        self._unanswered_since = None

    def note_failure(self, began: float) -> None:
        """Record that a call reached no server, or was not answered in time, and when it began."""
        self._unanswered_since = self._unanswered_since or began
        self.is_silent = time.monotonic() - self._unanswered_since >= _SILENCE_SECONDS


class Connection:
    """The connection of a client to the registry, shared by all its calls.

    Args:
        location: Where the registry is.
        encryption: What it trusts and shows over TLS.
        credentials: The token of its calls.

    Attributes:
        credentials: As above.
        is_closed: Whether it is closed, so that calls are refused.
        has_lifecycle: Whether the server may have ModelLifecycle, as far as is known.
        has_watch: Whether the server may have its call Watch.
        local: Where its UNIX socket is; None if it was not asked yet.
    """

    def __init__(self, location: Direct | Discovered, encryption: Encryption, credentials: Credentials) -> None:
        self.location = location
        self.encryption = encryption
        self.credentials = credentials
        self.is_closed = False
        self.has_lifecycle = self.has_watch = True
        self.local: LocalPlace | None = None
        self._process_id: int | None = None  # from the first call on
        self._lock = threading.RLock()  # a finalizer may end a call in the middle of another one
        self._current: _Link | None = None
        self._is_suspect = False
        self._channels: list[Channel] = []

    @asynccontextmanager
    async def channel(self, backend: Backend, deadline: Deadline) -> AsyncGenerator[Channel]:
        """Return a context manager with the channel for a call; looks the registry up first, if necessary.

        A Directory that gave the address is asked again after a call that found no registry there. A channel on which
        nothing was answered for some seconds is replaced.

        Raises:
            NotFoundError: The Directory knows no such registry.
            UnavailableError: The Directory does not answer.
            WrongServerError: It is no Directory.
            ClosedError: The client is closed.
        """
        link, outdated = self._taken(backend), None
        if link is None:
            address, secure = await self._find(backend, deadline)
            tls = await self._tls(backend, secure=secure)
            link, outdated = self._moved(backend, address, tls)
        began = time.monotonic()
        try:
            await self._disconnect_unused(backend, outdated)
            yield link.channel
            link.note_answer()
        except LimitedError:
            link.note_answer()
            raise
        except (UnavailableError, TimedOutError, WrongServerError) as error:
            self._is_suspect = isinstance(self.location, Discovered)
            if not isinstance(error, WrongServerError):
                link.note_failure(began)
            raise
        finally:
            if self.is_usable():
                with self._lock:
                    link.users -= 1
                await self._disconnect_unused(backend, link)

    @asynccontextmanager
    async def another(self, backend: Backend, window_bytes: int = 0) -> AsyncGenerator[Channel]:
        """Return a context manager with one more channel to where calls go now, with a connection of its own.

        Args:
            backend: How to call and wait.
            window_bytes: How much the server may send ahead; 0 to leave that to gRPC.
        """
        self.check_open(backend)
        with self._lock:
            if self.is_closed or self._current is None:
                raise ClosedError
            now = self._current
            channel = self._connect(backend, now.address, now.tls, window_bytes=window_bytes)
        try:
            yield channel
        finally:
            if self.is_usable():
                await self._disconnect(backend, channel)

    def check_open(self, backend: Backend) -> None:
        """Refuse to begin anything once it is closed, and where gRPC would hang or fail in its own words.

        The first time, the client is bound to this process, and to the event loop if there is one.

        Raises:
            ClosedError: It cannot be used any more, or not here.
        """
        if self._process_id is None:
            self._process_id = os.getpid()
        reason = self.refusal()
        if reason is not None:
            raise reason
        backend.check_here()

    def refusal(self) -> ClosedError | None:
        """Return why no call can be made any more; None if one can."""
        if self._process_id not in (None, os.getpid()):
            return ClosedError(
                "this client was used before the process was forked, and cannot be used in the forked one: "
                "make another client there, or start processes with the spawn method of multiprocessing"
            )
        if self.is_closed:
            return ClosedError()
        if not can_start():
            return ClosedError(
                "Python is ending, and does not start the threads any more that calls need: make the last calls before "
                "the program ends, not in a finalizer or a function of atexit"
            )
        return None

    def is_usable(self) -> bool:
        """Return whether gRPC has its threads: not in a forked process, and not while Python exits."""
        return self._process_id in (None, os.getpid()) and not sys.is_finalizing()

    def _taken(self, backend: Backend) -> _Link | None:
        """Return the present link, for one more user; None if the registry must be looked up first."""
        self.check_open(backend)  # in a forked process the lock may stay locked
        with self._lock:
            if self.is_closed:
                raise ClosedError
            if self._current is None or self._current.is_silent or self._is_suspect:
                return None
            self._current.users += 1
            return self._current

    def _moved(self, backend: Backend, address: str, tls: Tls | None) -> tuple[_Link, _Link | None]:
        """Return the link to an address, for one more user, and the previous link, whose calls go on."""
        with self._lock:
            before = link = self._current
            if link is None or link.is_silent or (link.address, link.tls) != (address, tls):
                link = self._current = _Link(address, self._connect(backend, address, tls), tls)
                self.has_lifecycle = self.has_watch = True
                self.local = None
            self._is_suspect = False
            link.users += 1
            return link, before

    async def _disconnect_unused(self, backend: Backend, link: _Link | None) -> None:
        with self._lock:
            is_over = link is not None and link is not self._current and not link.users
        if link is not None and is_over:
            await self._disconnect(backend, link.channel)

    async def _tls(self, backend: Backend, *, secure: bool) -> Tls | None:
        """Return what a channel trusts and shows, from files that may have been renewed; None for one without TLS."""
        return await backend.wait(submit(self.encryption.current)) if secure else None

    def _connect(
        self,
        backend: Backend,
        address: str,
        tls: Tls | None,
        *,
        window_bytes: int = 0,
        credentials: Credentials | None = None,
    ) -> Channel:
        """Return a new channel; call this with the lock held."""
        self.check_open(backend)
        credentials = credentials or self.credentials
        channel = backend.connect(address, tls=tls, window_bytes=window_bytes, credentials=credentials)
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
            return self.location.address, self.location.is_secure
        known, seconds = self._current, min(deadline.left_seconds(), _DIRECTORY_SECONDS)
        if known is None:
            return await self._ask_directory(backend, self.location, seconds)
        try:
            # The rest of the time is for the registry, which may still have its old address.
            return await self._ask_directory(backend, self.location, min(seconds / 2, _DIRECTORY_AGAIN_SECONDS))
        except (UnavailableError, TimedOutError, WrongServerError, NotFoundError):
            # While a registry restarts the Directory does not know it; and the Directory may be unavailable, too.
            return known.address, known.tls is not None

    async def _ask_directory(self, backend: Backend, location: Discovered, seconds: float) -> tuple[str, bool]:
        """Return the address of the registry that a Directory returns, and whether it requires TLS."""
        request = directory_wire.inquire_request(location.inquiry)
        directory = location.directory
        subject = Subject(f"asking {location}")
        tls = await self._tls(backend, secure=directory.is_secure)
        with self._lock:
            channel = self._connect(backend, directory.address, tls, credentials=Credentials())
        is_any_refused = False
        try:
            with translated(subject, self, str(directory), channels.DIRECTORY), ExitStack() as stack:
                path = f"/{directory_wire.SERVICE_NAME}/Inquire"
                replies = backend.stream(channel, path, request.SerializeToString(), seconds, location.token)
                stack.callback(replies.cancel)
                while (message := await replies.read()) is not None:
                    endpoint = directory_wire.service_from_reply(message).endpoint
                    is_secure = endpoint.protocol is Protocol.GRPC_SSL
                    if is_secure or (endpoint.protocol is Protocol.GRPC and not self.encryption.is_wanted):
                        return endpoint.address, is_secure
                    is_any_refused = is_any_refused or endpoint.protocol is Protocol.GRPC
        except UnavailableError as error:
            await self._check_stranger(backend, subject, error, directory, channels.DIRECTORY)
            raise
        finally:
            await self._disconnect(backend, channel)
        if is_any_refused:
            raise NotFoundError(
                f"{location} knows no ready model registry with TLS that matches; those without it are not used where "
                "tls_ca or tls_certificate is given"
            )
        raise NotFoundError(f"{location} knows no ready model registry that matches")

    @property
    def peer(self) -> str:
        """The endpoint that calls go to now, for messages."""
        link = self._current
        return str(Direct(link.address, link.tls is not None) if link else self.location)

    async def check_stranger(self, backend: Backend, subject: Subject, error: UnavailableError) -> None:
        """Check what answers where the registry should be, after a call that failed.

        If a Directory gave the address, it may know a better one by now, so the call is tried again.

        Raises:
            WrongServerError: Another server, so that it is of no use to try again.
            UnavailableError: The two sides do not agree on TLS, and that is of no use either.
        """
        if isinstance(self.location, Direct):
            await self._check_stranger(backend, subject, error, self.location, channels.REGISTRY)

    async def _check_stranger(
        self, backend: Backend, subject: Subject, error: UnavailableError, place: Direct, kind: str
    ) -> None:
        cause = error.__cause__
        if channels.was_sent(cause):
            return
        link = self._current
        if link is not None and link.tls is not None and await self._tls(backend, secure=True) != link.tls:
            link.is_silent = True  # files were renewed, and the next attempt takes them
            return
        if channels.is_about_tls(cause):
            raise error
        check = (
            partial(channels.check_tls, cause, place.address, str(place), self.encryption.files)
            if place.is_secure
            else partial(channels.check_stranger, place.address, str(place), kind)
        )
        try:
            await backend.wait(submit(check))
        except (WrongServerError, UnavailableError) as stranger:
            raise type(stranger)(
                f"{subject.text}: {stranger.message}", model_id=subject.model_id, version_number=subject.version_number
            ) from cause

    async def aclose(self, backend: Backend) -> None:
        """Close it; calls under way end."""
        with self._lock:
            self.is_closed, self._current = True, None
        while self._channels:
            await self._disconnect(backend, self._channels[-1])


@contextmanager
def translated(
    subject: Subject, connection: Connection, where: str = "", kind: str = channels.REGISTRY
) -> Generator[None]:
    """Return a context manager that translates errors of gRPC into those of the registry.

    Args:
        subject: What the calls are about.
        connection: On which connection they are.
        where: Whom they are for; the registry by default.
        kind: What that is.
    """
    try:
        yield
    except grpc.RpcError as error:
        if connection.is_closed:
            raise ClosedError from error
        advice = _ADVICE if connection.location == DEFAULT else ""
        error_type, message = channels.described(error, where or connection.peer, kind, advice)
        raised = error_type(
            f"{subject.text}: {message}",
            model_id=subject.model_id,
            version_number=subject.version_number,
        )
        if isinstance(raised, LimitedError):
            raised.retry_after_seconds = pushback.retry_after_seconds(error) or 0.0
        raise raised from error
    except convert.DecodeError as error:
        raise ModelRegistryError(
            f"{subject.text}: the server sent a malformed reply",
            model_id=subject.model_id,
            version_number=subject.version_number,
        ) from error
