"""The channels of a client, which are open as long as it is, and where none can be used."""

import os
import sys
import threading
from abc import ABC, abstractmethod
from functools import partial

from cogment_model_registry.client.backends import Backend, Channel
from cogment_model_registry.client.credentials import Credentials
from cogment_model_registry.client.encryption import Encryption
from cogment_model_registry.client.endpoints import Direct
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.threads import can_start, submit
from cogment_model_registry.errors import ClosedError, UnavailableError, WrongServerError
from cogment_model_registry.wire import channels
from cogment_model_registry.wire.tls import Tls


class OpenChannels(ABC):
    """The channels of a client.

    Args:
        encryption: What they trust and show over TLS.
        credentials: The token of the calls on them.

    Attributes:
        encryption: As above.
        credentials: As above.
        is_closed: Whether the client is closed, so that calls are refused.
        lock: Held while what is shared by threads changes. A finalizer may end a call in the middle of another one.
    """

    def __init__(self, encryption: Encryption, credentials: Credentials) -> None:
        self.encryption = encryption
        self.credentials = credentials
        self.is_closed = False
        self.lock = threading.RLock()
        self._process_id: int | None = None  # from the first call on
        self._channels: list[Channel] = []

    @property
    @abstractmethod
    def peer(self) -> str:
        """The endpoint that calls go to now, for messages."""

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

    async def tls(self, backend: Backend, *, is_secure: bool) -> Tls | None:
        """Return what a channel trusts and shows, from files that may have been renewed; None for one without TLS."""
        return await backend.wait(submit(self.encryption.current)) if is_secure else None

    def connect(
        self,
        backend: Backend,
        address: str,
        tls: Tls | None,
        *,
        window_bytes: int = 0,
        is_pinged: bool = False,
        credentials: Credentials | None = None,
    ) -> Channel:
        """Return a new channel.

        Args:
            backend: Makes it.
            address: Host and port.
            tls: What it trusts and shows; None without TLS.
            window_bytes: How much the server may send ahead; 0 to leave that to gRPC.
            is_pinged: Whether it pings the server during calls.
            credentials: The token of its calls; that of the client by default.

        Raises:
            ClosedError: The client is closed.
        """
        with self.lock:
            self.check_open(backend)
            channel = backend.connect(
                address,
                tls=tls,
                window_bytes=window_bytes,
                is_pinged=is_pinged,
                credentials=credentials or self.credentials,
            )
            self._channels.append(channel)
            return channel

    async def disconnect(self, backend: Backend, channel: Channel) -> None:
        """Close a channel, unless it was closed with the client."""
        with self.lock:
            is_open = channel in self._channels
            if is_open:
                self._channels.remove(channel)
        if is_open:
            await backend.disconnect(channel)

    async def disconnect_all(self, backend: Backend) -> None:
        """Close all channels; calls under way end."""
        while self._channels:
            await self.disconnect(backend, self._channels[-1])

    async def check_stranger_at(
        self, backend: Backend, subject: Subject, error: UnavailableError, place: Direct, kind: str
    ) -> None:
        """Check what answers at an address to which gRPC could not connect.

        Args:
            backend: How to wait.
            subject: What the call was about.
            error: How it failed.
            place: The address.
            kind: What should be there: `channels.REGISTRY` or `channels.DIRECTORY`.

        Raises:
            WrongServerError: It is another server.
            UnavailableError: The two sides do not agree on TLS.
        """
        cause = error.__cause__
        if channels.was_sent(cause):
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
                subject.message(stranger.message), model_id=subject.model_id, version_number=subject.version_number
            ) from cause
