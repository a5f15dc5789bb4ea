"""What monitoring asks over HTTP on `metrics_port`: metrics, whether the process works, and whether it serves."""

import asyncio
import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from cogment_model_registry.errors import StartError
from cogment_model_registry.serving.certificates import Certificates
from cogment_model_registry.settings import ALL_INTERFACES

_log = structlog.stdlib.get_logger(__name__)

METRICS = "/metrics"
ALIVE = "/healthz"
"""Whether the event loop runs; if it does not, a restart of the process helps."""

READY = "/readyz"
"""Whether the server serves, as `grpc.health.v1` says for the server as a whole."""

_SHOWN = "model_registry.certificate_shown"
"""The part of the environment of a request that says whether the client showed a certificate, which was verified."""

LOOP_SECONDS = 5.0
"""How long a probe waits for the event loop, as a scrape does."""


class MonitoringServer:
    """Serves metrics and health over HTTP, from a thread of its own; made on the event loop of the server.

    Args:
        metrics: The metrics.
        is_serving: Returns whether the server serves; called on the event loop.
        host: The interface, or `ALL_INTERFACES`.
        port: The port; 0 for a free one.
        certificates: What it shows over TLS; None to serve without encryption. If clients of the registry must show a
            certificate, so must those that ask for metrics; whoever asks for health need not, since a kubelet has none.

    Raises:
        StartError: The port is not available.
    """

    def __init__(
        self,
        metrics: CollectorRegistry,
        is_serving: Callable[[], bool],
        host: str,
        port: int,
        certificates: Certificates | None = None,
    ) -> None:
        if host == ALL_INTERFACES:
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 # what the operator asked for
        application = _application(make_wsgi_app(metrics), is_serving, asyncio.get_running_loop())
        if certificates is not None and certificates.requires_clients:
            application = _with_certificates(application)
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            parts = {"address_family": family, "certificates": certificates}
            server_class = type("_Server", (_EncryptedServer if certificates else ThreadingWSGIServer,), parts)
            self._server: WSGIServer = make_server(str(address[0]), port, application, server_class, _QuietHandler)
        except OSError as error:
            raise StartError(f"metrics_port {port} is not available: {error.strerror}; choose another port") from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="server monitoring", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _EncryptedServer(ThreadingWSGIServer):
    """Encrypts each connection with the certificate of that moment."""

    certificates: Certificates

    def get_request(self) -> tuple[socket.socket, Any]:
        """Return the next connection, whose handshake its own thread makes when it reads."""
        connection, address = super().get_request()
        context = self.certificates.context()
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Say that no more bytes follow, and close the connection."""
        if isinstance(request, ssl.SSLSocket):
            request.setblocking(False)  # what the other side says to that is of no interest
            with contextlib.suppress(OSError, ValueError):
                request.unwrap()
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log that a connection failed, such as that of a client that trusts another authority."""
        error = sys.exc_info()[1]
        _log.debug("connection for metrics failed", peer=str(client_address), reason=str(error))


class _QuietHandler(WSGIRequestHandler):
    """Logs no requests."""

    def get_environ(self) -> WSGIEnvironment:
        """Return what the application gets: also whether the client showed a certificate."""
        environ = super().get_environ()
        if isinstance(self.connection, ssl.SSLSocket):
            environ[_SHOWN] = bool(self.connection.getpeercert())
        return environ

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the name is the library's
        """Log nothing."""


def _with_certificates(application: WSGIApplication) -> WSGIApplication:
    """Refuse metrics to clients without a certificate."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == METRICS and not environ[_SHOWN]:
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"forbidden: metrics need a client certificate of an authority of tls_client_ca\n"]
        return application(environ, start_response)

    return checked


def _application(
    metrics: WSGIApplication, is_serving: Callable[[], bool], loop: asyncio.AbstractEventLoop
) -> WSGIApplication:
    """Answer a request; called on a thread of its own for each."""

    async def state() -> bool:
        return is_serving()

    def health(path: str) -> tuple[str, str]:
        try:
            serves = asyncio.run_coroutine_threadsafe(state(), loop).result(LOOP_SECONDS)
        except TimeoutError:
            return "503 Service Unavailable", f"the server did not answer within {LOOP_SECONDS:g} seconds"
        if path == READY and not serves:
            why = "it starts or stops, or its archive or its audit log failed"
            return "503 Service Unavailable", f"the server does not serve: {why}"
        return "200 OK", "ok"

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == METRICS:
            return metrics(environ, start_response)
        if path in (ALIVE, READY):
            status, text = health(path)
        else:
            status, text = "404 Not Found", f"not found: this port has {METRICS}, {ALIVE} and {READY}"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    return application
