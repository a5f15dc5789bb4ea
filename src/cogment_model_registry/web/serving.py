"""HTTP/1.1 on sockets that listen already: uvicorn, with bounds that it does not have itself.

A connection gets some time for the head of each request, and there are places for so many connections, so that
connections that send nothing, or a byte a minute, cannot take them all for long.
"""

import asyncio
import resource
import ssl

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

HEAD_SECONDS = 10.0
"""How long a connection may take for the head of a request, and be idle between two."""

_HEAD_MAX_BYTES = 32 * 1024
_CONNECTIONS_MAX = 4096
_OTHER_DESCRIPTORS = 64
"""Descriptors that are needed for other things."""


class BoundedProtocol(H11Protocol):
    """A connection, whose requests have to come in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin, if there is a place."""
        super().connection_made(transport)
        if len(self.connections) > connections_max():
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of requests."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request, which uvicorn's type hides
        if cycle is not None and not cycle.response_complete:
            self._expect_nothing()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was refused."""
        super().on_response_complete()
        if self.cycle.response_complete:  # otherwise another request has come already
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is none, or whose head is too large."""
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
    """Return how many connections there may be, as far as the system gives descriptors."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_CONNECTIONS_MAX, max((allowed - _OTHER_DESCRIPTORS) // 2, 1))  # each may have a file open


def allow_descriptors() -> None:
    """Let the process have as many descriptors as it may need, if the system allows so many."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _CONNECTIONS_MAX + _OTHER_DESCRIPTORS
    if allowed < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most)
        )


class Encryption:
    """The certificate over TLS, renewed while the process runs.

    Args:
        options: Has the files.

    Attributes:
        context: What the sockets use. Each connection asks it for the newest certificate.

    Raises:
        CertificateError: A file cannot be used.
    """

    def __init__(self, options: WebOptions) -> None:
        self._options = options
        self.context = self._newest = self._read()
        self.context.sni_callback = self._choose

    def renew(self) -> None:
        """Take what the files have now; blocks.

        Raises:
            CertificateError: A file cannot be used; the certificate stays.
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


def new_server(app: ASGIApp, encryption: Encryption | None) -> uvicorn.Server:
    """Return a server, to be given its sockets.

    Args:
        app: What answers.
        encryption: The certificate; None for no encryption.
    """
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
        h11_max_incomplete_event_size=_HEAD_MAX_BYTES,
    )
    config.load()
    config.ssl = encryption.context if encryption else None
    return uvicorn.Server(config)
