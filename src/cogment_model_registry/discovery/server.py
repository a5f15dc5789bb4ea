"""The Directory as a server: composition and life cycle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import structlog

from cogment_model_registry._version import __version__
from cogment_model_registry.discovery.roster import Roster
from cogment_model_registry.discovery.service import DirectoryService
from cogment_model_registry.serving import grpc_workarounds, life_cycle
from cogment_model_registry.serving.certificates import Certificates, kept_certificates
from cogment_model_registry.serving.health import Health
from cogment_model_registry.settings import DirectorySettings
from cogment_model_registry.system.signals import Signals
from cogment_model_registry.wire.directory import SERVICE_NAME

_log = structlog.stdlib.get_logger(__name__)


# Peers that vanished are noticed within half a minute, as the registry does by default.
_KEEPALIVE_SECONDS = 20.0
_KEEPALIVE_TIMEOUT_SECONDS = 10.0


class DirectoryServer:
    """A Directory that serves. Made by `running`.

    Attributes:
        port: The TCP port that it serves on.
        certificates: What it shows over TLS; None when it is not encrypted.
    """

    def __init__(self, port: int, certificates: Certificates | None = None) -> None:
        self.port = port
        self.certificates = certificates

    def renew_certificates(self) -> None:
        """Read the files of the certificate soon, if there is one."""
        if self.certificates is not None:
            self.certificates.look_now()


@asynccontextmanager
async def running(settings: DirectorySettings) -> AsyncIterator[DirectoryServer]:
    """Return a context manager that runs a Directory.

    Raises:
        StartError: The persistence file, the port or a certificate is not available.
    """
    grpc_workarounds.install()
    async with AsyncExitStack() as stack:
        certificates = await stack.enter_async_context(kept_certificates(settings))
        roster = Roster(load_balancing=settings.load_balancing, file=settings.persistence_file)
        await asyncio.to_thread(roster.load)
        service = DirectoryService(roster, settings, observe=lambda _call, _status, _seconds: None)
        health = Health([SERVICE_NAME])
        server = grpc.aio.server(options=life_cycle.server_options(_KEEPALIVE_SECONDS, _KEEPALIVE_TIMEOUT_SECONDS))
        server.add_generic_rpc_handlers(service.handlers())
        health.add_to(server)
        if settings.grpc_reflection:
            life_cycle.enable_reflection(server, [SERVICE_NAME, *health.service_names])
        port = life_cycle.listen(server, settings.host, settings.port, certificates)
        await server.start()

        async def stop() -> None:
            health.stop()
            await service.stop()
            await server.stop(settings.grace_seconds)
            await service.drained()

        stack.push_async_callback(stop)
        service.start()
        health.set_serving(True)
        yield DirectoryServer(port, certificates)


async def serve(settings: DirectorySettings, signals: Signals) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once. SIGHUP takes a renewed certificate.

    Args:
        settings: The settings of the server.
        signals: The signals of the process.

    Raises:
        StartError: The persistence file, the port or a certificate is not available.
    """

    def announce(server: DirectoryServer) -> None:
        encryption = life_cycle.check_encryption(settings.host, server.certificates)
        _log.info("serving", port=server.port, host=settings.host, version=__version__, **encryption)

    await life_cycle.serve_until_signal(running(settings), signals, announce, renew=DirectoryServer.renew_certificates)
