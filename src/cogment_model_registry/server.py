"""The server: composition root and life cycle.

    settings -> archive, transient store, catalog -> registry -> service -> gRPC

Starting goes from left to right, so that nothing is served before all of it works; stopping goes back: no new calls,
watchers told, transfers given their grace, numbers persisted, the archive released.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import structlog
from grpc_reflection.v1alpha import reflection

from cogment_model_registry._version import __version__
from cogment_model_registry.errors import ModelRegistryError, StartError
from cogment_model_registry.registry import Registry
from cogment_model_registry.service import ModelRegistryService
from cogment_model_registry.settings import ALL_INTERFACES, Settings
from cogment_model_registry.storage.filesystem import DirectoryArchive
from cogment_model_registry.storage.local_catalog import LocalCatalog
from cogment_model_registry.storage.memory import MemoryTransientStore
from cogment_model_registry.wire import messages
from cogment_model_registry.wire.reflection import pool_with_json_names

_log = structlog.stdlib.get_logger(__name__)

_HASH_THREADS = max(2, os.cpu_count() or 2)


class Server:
    """A registry that serves. Made by `running`.

    Attributes:
        port: The TCP port that it serves on.
    """

    def __init__(
        self, grpc_server: grpc.aio.Server, service: ModelRegistryService, catalog: LocalCatalog, registry: Registry
    ) -> None:
        self._grpc_server = grpc_server
        self._service = service
        self._catalog = catalog
        self._registry = registry
        self.port = 0

    async def start(self, settings: Settings) -> None:
        """Begin to serve.

        Raises:
            StartError: The port cannot be had.
        """
        address = _address(settings)
        try:
            self.port = self._grpc_server.add_insecure_port(address)
        except RuntimeError:
            raise StartError(
                f"port {settings.port} on {settings.host} cannot be had: it is in use, or not allowed"
            ) from None
        await self._grpc_server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new calls, end the watchers, and give transfers under way their grace."""
        self._catalog.stop_watching()
        await self._grpc_server.stop(grace_seconds)
        await self._service.drained()

    async def refresh(self) -> None:
        """Take note of what changed in the archive from outside."""
        await self._registry.refresh()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Server]:
    """Open a context in which a server serves.

    Args:
        settings: What it is told.

    Raises:
        StartError: The archive or the port cannot be had.
    """
    async with AsyncExitStack() as stack:
        hashing = stack.enter_context(ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash"))
        archive = DirectoryArchive(settings.archive_dir, settings.model_id_max_bytes)
        stack.push_async_callback(archive.close)
        await archive.open()
        transient = MemoryTransientStore(settings.cache_max_items, settings.cache_max_bytes, hashing)
        catalog = LocalCatalog(archive)
        await catalog.open()
        stack.push_async_callback(catalog.close)
        registry = Registry(settings, catalog, archive, transient)
        service = ModelRegistryService(registry, settings)
        server = Server(_grpc_server(settings, service), service, catalog, registry)
        await server.start(settings)
        stack.push_async_callback(server.stop, settings.grace_seconds)
        yield server


def _grpc_server(settings: Settings, service: ModelRegistryService) -> grpc.aio.Server:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.request_max_bytes),
            ("grpc.max_send_message_length", -1),
            # Without this, a second server would share the port in silence.
            ("grpc.so_reuseport", 0),
        ]
    )
    server.add_generic_rpc_handlers(service.handlers())
    if settings.grpc_reflection:
        names = [*messages.SERVICE_NAMES, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server, pool=pool_with_json_names(names))
    return server


def _address(settings: Settings) -> str:
    if settings.host == ALL_INTERFACES:
        return f"[::]:{settings.port}"  # gRPC makes this both families, or IPv4 where there is no IPv6
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once. SIGHUP looks at the archive anew.

    Raises:
        StartError: The archive or the port cannot be had.
    """
    async with running(settings) as server, asyncio.TaskGroup() as tasks:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_stop(number: signal.Signals) -> None:
            if stop.is_set():
                os._exit(128 + number)
            _log.info("stopping", signal=number.name, grace_seconds=settings.grace_seconds)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(_refresh(server)))
        _log.info(
            "serving",
            port=server.port,
            host=settings.host,
            archive_dir=settings.archive_dir,
            version=__version__,
            cache_max_items=settings.cache_max_items,
            cache_max_bytes=settings.cache_max_bytes,
        )
        await stop.wait()
    _log.info("stopped")


async def _refresh(server: Server) -> None:
    try:
        await server.refresh()
        _log.info("looked at the archive anew")
    except ModelRegistryError as error:
        _log.error("could not look at the archive anew", reason=error.message)
