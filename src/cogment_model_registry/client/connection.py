"""The connection of a client to the registry: the channel over which calls go now, and when another one takes over."""

import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.choosing import Chooser
from cogment_model_registry.client.credentials import Credentials
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.encryption import Encryption
from cogment_model_registry.client.endpoints import Direct, Location
from cogment_model_registry.client.failures import Subject, is_of_request
from cogment_model_registry.client.links import SHORT_SILENCE_SECONDS, SILENCE_SECONDS, Link, LocalPlace
from cogment_model_registry.client.open_channels import OpenChannels
from cogment_model_registry.errors import (
    ClosedError,
    LimitedError,
    ModelRegistryError,
    TimedOutError,
    UnavailableError,
    WrongServerError,
)
from cogment_model_registry.wire import channels
from cogment_model_registry.wire.tls import Tls


class Connection(OpenChannels):
    """The connection of a client to the registry, shared by all its calls.

    Where several registries serve the same models, all calls go to one of them while it works. When it does not answer,
    or says that it stops, the next call goes to another one, and so do all others.

    Args:
        location: Where the registry is.
        encryption: What it trusts and shows over TLS.
        credentials: The token of its calls.

    Attributes:
        location: As above.
        has_lifecycle: Whether the server may have ModelLifecycle, as far as is known.
        has_watch: Whether the server may have its call Watch.
        local: Where its UNIX socket is; None if it was not asked yet.
        on_moved: Called when calls go to another registry.
    """

    def __init__(self, location: Location, encryption: Encryption, credentials: Credentials) -> None:
        super().__init__(encryption, credentials)
        self.location = location
        self.has_lifecycle = self.has_watch = True
        self.local: LocalPlace | None = None
        self.on_moved: set[Callable[[], None]] = set()
        self._chooser = None if isinstance(location, Direct) else Chooser(self, location)
        self._current: Link | None = None
        self._choosing: Future[ModelRegistryError | None] | None = None

    @property
    def has_others(self) -> bool:
        """Whether another registry may go on when one does not answer."""
        return self._chooser is not None

    @property
    def peer(self) -> str:
        """The endpoint that calls go to now, for messages."""
        link = self._current
        return str(link.place if link else self.location)

    @asynccontextmanager
    async def channel(self, backend: Backend, deadline: Deadline) -> AsyncGenerator[Channel]:
        """Return a context manager with the channel for a call; chooses the registry first, if necessary.

        A channel on which nothing was answered for some seconds is replaced.

        Raises:
            NotFoundError: The Directory knows no such registry.
            UnavailableError: The Directory does not answer, or none of several registries.
            WrongServerError: It is no Directory, or what answers is no registry.
            ClosedError: The client is closed.
        """
        link, outdated = self._taken(backend), None
        if link is None:
            link, outdated = await self._found(backend, deadline)
        began = time.monotonic()
        try:
            await self._disconnect_unused(backend, outdated)
            yield link.channel
            link.note_answer()
        except LimitedError:
            link.note_answer()
            raise
        except (UnavailableError, TimedOutError, WrongServerError) as error:
            self._note_failure(link, error, began)
            raise
        finally:
            if self.is_usable():
                with self.lock:
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
        with self.lock:
            if self.is_closed or self._current is None:
                raise ClosedError
            now = self._current
            channel = self.connect(
                backend, now.place.address, now.tls, window_bytes=window_bytes, is_pinged=now.is_pinged
            )
        try:
            yield channel
        finally:
            if self.is_usable():
                await self.disconnect(backend, channel)

    async def check_stranger(self, backend: Backend, subject: Subject, error: UnavailableError) -> None:
        """Check what answers where the registry should be, after a call that failed.

        If there may be another registry, or another address, the call is tried again.

        Raises:
            WrongServerError: Another server, so that it is of no use to try again.
            UnavailableError: The two sides do not agree on TLS, and that is of no use either.
        """
        if not isinstance(self.location, Direct) or self.location.is_local or channels.was_sent(error.__cause__):
            return
        link = self._current
        if link is not None and link.tls is not None and await self.tls(backend, is_secure=True) != link.tls:
            link.is_silent = True  # files were renewed, and the next attempt takes them
            return
        await self.check_stranger_at(backend, subject, error, self.location, channels.REGISTRY)

    async def aclose(self, backend: Backend) -> None:
        """Close it; calls under way end."""
        with self.lock:
            self.is_closed, self._current = True, None
        await self.disconnect_all(backend)

    def _taken(self, backend: Backend) -> Link | None:
        """Return the present link, for one more user; None if the registry must be looked up first."""
        self.check_open(backend)  # in a forked process the lock may stay locked
        with self.lock:
            if self.is_closed:
                raise ClosedError
            if self._current is None or not self._current.is_fit:
                return None
            self._current.users += 1
            return self._current

    async def _found(self, backend: Backend, deadline: Deadline) -> tuple[Link, Link | None]:
        """Return the link to go over now, for one more user, and the previous one, whose calls go on."""
        if self._chooser is None:
            if not isinstance(self.location, Direct):
                raise RuntimeError("registries of which one is to be chosen have a chooser")
            tls = await self.tls(backend, is_secure=self.location.is_secure)
            return self._connected(backend, self.location, tls)
        return await self._chosen(backend, deadline, self._chooser)

    def _connected(self, backend: Backend, place: Direct, tls: Tls | None) -> tuple[Link, Link | None]:
        """Return the link to a fixed address; see `_found`."""
        with self.lock:
            before = link = self._current
            if link is None or not link.is_fit or link.tls != tls:
                link = Link(place, self.connect(backend, place.address, tls), tls)
                self._replace(link)
            link.users += 1
            return link, before

    async def _chosen(self, backend: Backend, deadline: Deadline, chooser: Chooser) -> tuple[Link, Link | None]:
        """Return the link to a registry that answers; one call chooses, and the others wait for it. See `_found`."""
        while (link := self._taken(backend)) is None:
            with self.lock:
                choosing, before = self._choosing, self._current
                if choosing is None:
                    own = self._choosing = Future()
                    own.set_running_or_notify_cancel()  # who waits for it cannot cancel it
            if choosing is not None:
                await self._awaited(backend, deadline, choosing)
                continue
            failure: ModelRegistryError | None = None
            try:
                link = await chooser.choose(backend, deadline, before)
                return self._installed(link), before
            except ModelRegistryError as error:
                failure = error
                raise
            finally:
                with self.lock:
                    self._choosing = None
                own.set_result(failure)
        return link, None

    async def _awaited(
        self, backend: Backend, deadline: Deadline, choosing: "Future[ModelRegistryError | None]"
    ) -> None:
        """Wait until another call has chosen; raise what it raised, unless it only had less time."""
        try:
            failure = await backend.wait(choosing, deadline.left_seconds())
        except TimeoutError:
            raise TimedOutError(f"{self.location}: no registry answered in time") from None
        if failure is not None and not isinstance(failure, TimedOutError | ClosedError):
            raise failure.reworded(failure.message) from failure.__cause__

    def _installed(self, link: Link) -> Link:
        """Let calls go over a link from now on, and return it for one more user."""
        with self.lock:
            if self.is_closed:
                raise ClosedError
            before = self._current
            if link is before:
                link.renew()
            else:
                self._replace(link)
            link.users += 1
        if before is not None and before.place != link.place:
            for notify in list(self.on_moved):
                notify()
        return link

    def _replace(self, link: Link) -> None:
        """Let calls go over a new link; what is known of the server is asked again. Call this with the lock held."""
        self._current = link
        self.has_lifecycle = self.has_watch = True
        self.local = None

    def _note_failure(self, link: Link, error: ModelRegistryError, began: float) -> None:
        """Record that a call failed, and whether others should go elsewhere."""
        if isinstance(error, WrongServerError):
            link.is_doubted = self._chooser is not None
        elif self._chooser is None:
            link.note_failure(began, SILENCE_SECONDS)
        elif isinstance(error, TimedOutError):
            link.note_failure(began, SHORT_SILENCE_SECONDS)
            if link.is_silent:
                self._chooser.note_failure(link.place)
        elif is_of_request(error):
            link.note_answer()
        else:
            link.is_away = True
            self._chooser.note_failure(link.place)

    async def _disconnect_unused(self, backend: Backend, link: Link | None) -> None:
        with self.lock:
            is_over = link is not None and link is not self._current and not link.users
        if link is not None and is_over:
            await self.disconnect(backend, link.channel)
