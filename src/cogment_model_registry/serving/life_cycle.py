"""The life cycle of a server process: it serves until a signal, drains, and ends; a second signal ends it at once."""

import asyncio
import errno
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import grpc.aio
import structlog
import uvloop

from cogment_model_registry.errors import ModelRegistryError, StartError
from cogment_model_registry.serving import logs
from cogment_model_registry.serving.certificates import Certificates
from cogment_model_registry.settings import ALL_INTERFACES, is_local
from cogment_model_registry.system.signals import Signals
from cogment_model_registry.system.tasks import end
from cogment_model_registry.wire import pings

_log = structlog.stdlib.get_logger(__name__)

_T = TypeVar("_T")


def run(serving: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end, on the event loop of uvloop, which handles small calls faster than asyncio's own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


async def serve_until_signal(
    running: AbstractAsyncContextManager[_T],
    signals: Signals,
    announce: Callable[[_T], None],
    refresh: Callable[[_T], Awaitable[None]] | None = None,
    renew: Callable[[_T], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which also end a start.

    Args:
        running: The context manager that runs the server; leaving it stops the server.
        signals: The signals of the process, also those that came already.
        announce: Called when it serves.
        refresh: The action on SIGHUP, if any. It runs once for all signals that come before it begins, and the stop
            cancels it.
        renew: What else each SIGHUP begins, if anything.

    Raises:
        StartError: The server cannot start.
    """
    stop, hangup = asyncio.Event(), asyncio.Event()
    starting = asyncio.current_task()
    served: list[_T] = []

    def on_signal(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            logs.reopen()
            hangup.set()
            if renew is not None and served:
                renew(served[0])
            return
        _log.info("stopping", signal=number.name)
        stop.set()
        if starting is not None:
            starting.cancel()

    with signals.passed_to(asyncio.get_running_loop(), on_signal):
        try:
            async with running as server:
                starting = None
                served.append(server)
                announce(server)
                async with _refreshing(hangup, server, refresh):
                    await stop.wait()
        except asyncio.CancelledError:
            if starting is None or not stop.is_set():
                raise
            starting.uncancel()
    _log.info("stopped")


@asynccontextmanager
async def _refreshing(
    hangup: asyncio.Event, server: _T, refresh: Callable[[_T], Awaitable[None]] | None
) -> AsyncIterator[None]:
    """Return a context manager in which SIGHUP refreshes a server."""
    if refresh is None:
        yield
        return
    task = asyncio.create_task(_refresh_on(hangup, server, refresh))
    try:
        yield
    finally:
        await end(task)


async def _refresh_on(hangup: asyncio.Event, server: _T, refresh: Callable[[_T], Awaitable[None]]) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await refresh(server)
            _log.info("rescanned the archive")
        except ModelRegistryError as error:
            _log.error("rescan of the archive failed", reason=error.message)
        except Exception:
            _log.exception("rescan of the archive failed unexpectedly")


def server_options(keepalive_seconds: float, keepalive_timeout_seconds: float) -> list[tuple[str, int]]:
    """Return the options of all gRPC servers of this package.

    Args:
        keepalive_seconds: How long a connection may be silent before the peer is pinged.
        keepalive_timeout_seconds: How long to wait for its answer.
    """
    timeout_ms = int(keepalive_timeout_seconds * 1000)
    return [
        # Without this, a second server could share the port without an error.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", int(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        # gRPC waits this long for the answer to a ping where the kernel of a frozen peer still acknowledges bytes.
        ("grpc.http2.ping_timeout_ms", timeout_ms),
        # Clients may ping too, also while idle; gRPC would otherwise close their connections.
        ("grpc.http2.min_ping_interval_without_data_ms", int(pings.MIN_SECONDS * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def listen(server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None = None) -> int:
    """Let a gRPC server listen, and return its port.

    Args:
        server: The server, not started yet.
        host: Name or address of an interface, or `ALL_INTERFACES`.
        port: The port; 0 for a free one.
        certificates: What it shows over TLS; None to serve without encryption.

    Raises:
        StartError: The port is not available.
    """
    address = "::" if host == ALL_INTERFACES else host  # gRPC makes "::" both families, or IPv4 without IPv6
    name = f"[{address}]" if ":" in address else address
    try:
        if certificates is not None:
            return server.add_secure_port(f"{name}:{port}", certificates.credentials())
        return server.add_insecure_port(f"{name}:{port}")
    except RuntimeError:
        raise StartError(refusal(host, port)) from None


def check_encryption(host: str, certificates: Certificates | None) -> dict[str, str]:
    """Return the fields about encryption for the log of a server that serves; warn if others can read along.

    Args:
        host: Where it serves.
        certificates: What it uses for TLS.
    """
    if certificates is not None:
        return {"tls": "client certificates required" if certificates.requires_clients else "on"}
    if not is_local(host):
        _log.warning(
            "serving without encryption, also to other machines: set tls_certificate and tls_key, or host=127.0.0.1"
        )
    return {}


def refusal(host: str, port: int) -> str:
    """Return why no server can listen at a port of a host: gRPC does not say it, so the system is asked again."""
    try:
        addresses = socket.getaddrinfo(None if host == ALL_INTERFACES else host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"host {host} is not available: {error.strerror}; choose a name or an address of this machine"
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    return f"host {host} is not available: {error.strerror}; choose an address of this machine"
                return f"port {port} on {host} is not available: {error.strerror}; choose another port"
    return f"port {port} on {host} is not available; try again, or choose another port"


def enable_reflection(server: grpc.aio.Server, service_names: list[str]) -> None:
    """Let a gRPC server answer reflection for its services."""
    # Imported late: it takes a fifth of the time of a start, and is off by default.
    from cogment_model_registry.wire import reflection  # noqa: PLC0415

    server.add_generic_rpc_handlers(reflection.handlers(service_names))
