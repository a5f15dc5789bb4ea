"""HTTP/1.1 on listening sockets: uvicorn, with additional limits.

The head of each request must arrive in time, and the number of connections is limited, so connections that send
nothing, or a byte a minute, cannot use up all places for long.
"""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Callable

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.system.certificates import (
    PemFile,
    new_context,
    read_authorities,
    read_pair,
)
from cogment_model_registry.web.sending import sending_descriptors, sent_file

HEAD_SECONDS = 10.0
"""How long the head of a request may take, and how long a connection may be idle between two requests."""

_GRACE_SECONDS = 5.0
"""How long answers under way may take at the end, if the server was killed and could not say."""

_HEAD_MAX_BYTES = 32 * 1024
_CONNECTIONS_MAX = 4096
_OTHER_DESCRIPTORS = 64
"""Descriptors that are kept for other uses."""


class _Placeholder:
    """Stands for bytes that h11 counts and does not see."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes


class BoundedProtocol(H11Protocol):
    """A connection whose requests have to arrive in time."""

    idle_seconds = 60.0
    """How long a client may receive none of the bytes that wait for it."""

    _timer: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Accept the connection, unless there are too many."""
        super().connection_made(transport)
        if not transport.get_extra_info("ssl_object"):
            self.app = sending_descriptors(self.app, self.send_descriptor)
        if len(self.connections) > connections_max():
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._expect_nothing()
        self._stop_looking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process bytes of requests."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request, which uvicorn's type hides
        if cycle is not None and not cycle.response_complete:
            self._expect_nothing()

    async def send_descriptor(
        self, descriptor: int, part: range, count: Callable[[int], object], *, may_wait: bool
    ) -> None:
        """Send bytes of a file as a part of the body of the answer under way, without copying them here.

        Args:
            descriptor: The file.
            part: The positions of the bytes.
            count: Called with the number of bytes that were sent each time.
            may_wait: Whether reading may block on a disk.

        Raises:
            ConnectionError: The client is gone, or received nothing for too long.
        """
        self.conn.send_with_data_passthrough(h11.Data(data=_Placeholder(len(part))))  # type: ignore[arg-type] # as h11 says
        self.transport.set_write_buffer_limits(high=0)
        try:
            if self.transport.get_write_buffer_size():  # the head, which comes first
                self.pause_writing()
                await self.flow.drain()
            connection = os.dup(self.transport.get_extra_info("socket").fileno())  # which the transport may close
            try:
                await sent_file(connection, descriptor, part, self.idle_seconds, count, may_wait=may_wait)
            finally:
                os.close(connection)
        except OSError:
            self.transport.abort()
            raise ConnectionAbortedError("the client is gone") from None
        finally:
            if not self.transport.is_closing():
                self.transport.set_write_buffer_limits()

    def pause_writing(self) -> None:
        """Wait until the client has received the waiting bytes, while it makes progress."""
        super().pause_writing()
        self._look_after(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Resume sending."""
        self._stop_looking()
        super().resume_writing()

    def _look_after(self, waiting_bytes: int) -> None:
        def look() -> None:
            now_waiting_bytes = self.transport.get_write_buffer_size()
            if now_waiting_bytes >= waiting_bytes:
                self.transport.abort()
            else:
                self._look_after(now_waiting_bytes)

        self._stop_looking()
        self._looking = self.loop.call_later(self.idle_seconds, look)

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was refused."""
        super().on_response_complete()
        if self.cycle.response_complete:  # otherwise another request has arrived already
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is malformed, or whose head is too large."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer to an earlier request is under way
            return
        super().send_400_response(msg)

    def _expect_head(self) -> None:
        self._expect_nothing()
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connections_max() -> int:
    """Return how many connections are allowed, given the limit on descriptors."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_CONNECTIONS_MAX, max((allowed - _OTHER_DESCRIPTORS) // 2, 1))  # each may have a file open


def allow_descriptors() -> None:
    """Raise the limit on descriptors to what the process may need, as far as the system allows."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _CONNECTIONS_MAX + _OTHER_DESCRIPTORS
    if allowed < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most)
        )


class Encryption:
    """The TLS certificate, which can be renewed while the process runs.

    Args:
        options: The options with the files.

    Attributes:
        context: The TLS context of the sockets. Each new connection uses the newest certificate.

    Raises:
        CertificateError: A file cannot be used.
    """

    def __init__(self, options: WebOptions) -> None:
        self._options = options
        self.context = self._newest = self._read()
        self.context.sni_callback = self._choose

    def renew(self) -> None:
        """Load the certificate from the files again; blocks.

        Raises:
            CertificateError: A file cannot be used; the previous certificate stays in use.
        """
        self._newest = self._read()

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        options = self._options
        context = new_context(ssl.PROTOCOL_TLS_SERVER)
        read_pair(PemFile("tls_certificate", options.tls_certificate), PemFile("tls_key", options.tls_key), context)
        if options.tls_client_ca:
            authorities = read_authorities(PemFile("tls_client_ca", options.tls_client_ca))
            context.load_verify_locations(cadata=authorities.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _Server(uvicorn.Server):
    """A server whose clients have to finish the handshake of TLS in time: before that they are no connections yet."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, as uvicorn does, which gives a handshake a minute."""
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                lambda: BoundedProtocol(config, self.server_state, self.lifespan.state),
                sock=each,
                ssl=config.ssl,
                ssl_handshake_timeout=HEAD_SECONDS if config.ssl else None,
                backlog=config.backlog,
            )
            for each in sockets or ()
        ]
        self.started = True


def new_server(app: ASGIApp, encryption: Encryption | None, idle_seconds: float) -> uvicorn.Server:
    """Return a server, without its sockets.

    Args:
        app: The application that answers.
        encryption: The certificate; None for no encryption.
        idle_seconds: How long a client may receive none of the bytes that wait for it.
    """
    BoundedProtocol.idle_seconds = idle_seconds
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(HEAD_SECONDS),
        timeout_graceful_shutdown=int(_GRACE_SECONDS),
        h11_max_incomplete_event_size=_HEAD_MAX_BYTES,
    )
    config.load()
    config.ssl = encryption.context if encryption else None
    return _Server(config)
