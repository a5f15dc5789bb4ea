"""The model registry as a server: composition root and life cycle.

    settings -> archive, transient store, catalog -> registry -> service -> gRPC -> Directory

Starting goes from left to right, so that nothing is served before all of it works; stopping goes back: deregistered,
no new calls, watchers notified, transfers given their grace, numbers persisted, the archive released.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
import structlog

from cogment_model_registry._version import __version__
from cogment_model_registry.registry.consumers import Consumers
from cogment_model_registry.registry.contracts import TransientStore
from cogment_model_registry.registry.journals import Journal, recording
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.resuming import RepeatableUploads
from cogment_model_registry.registry.retention import Retention
from cogment_model_registry.registry.watching import Watches
from cogment_model_registry.server import local_socket as local_sockets
from cogment_model_registry.server.audit import AuditGuard, AuditLog
from cogment_model_registry.server.audit_calls import AuditLogService
from cogment_model_registry.server.backends import Backends, OpenBackends, open_backends
from cogment_model_registry.server.consumer_calls import ConsumerCalls, log_change
from cogment_model_registry.server.forwarded_calls import ForwardedHandlers, own_handlers, socket_path
from cogment_model_registry.server.identities import Identities
from cogment_model_registry.server.issuer import issuer_of
from cogment_model_registry.server.local_calls import LocalCalls
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.server.model_calls import ModelCalls
from cogment_model_registry.server.model_lifecycle import ModelLifecycleService
from cogment_model_registry.server.model_registry import ModelRegistryService
from cogment_model_registry.server.monitoring import MonitoringServer
from cogment_model_registry.server.registration import Registration, State, peer_endpoint
from cogment_model_registry.server.retention import RetentionWork
from cogment_model_registry.server.sharing import Sharing
from cogment_model_registry.server.transfers import Transfers
from cogment_model_registry.server.watching import WatchCalls
from cogment_model_registry.server.web_process import Web
from cogment_model_registry.serving import grpc_workarounds, life_cycle
from cogment_model_registry.serving.caller_limits import CallerLimits, CallerRates
from cogment_model_registry.serving.calls import Guard, Handlers
from cogment_model_registry.serving.certificates import Certificates, certificate_names, kept_certificates
from cogment_model_registry.serving.health import Health
from cogment_model_registry.settings import Settings, is_local
from cogment_model_registry.system.machine import release_free_memory, tune_garbage_collection, tune_heap
from cogment_model_registry.system.signals import Signals
from cogment_model_registry.system.tasks import end, surviving
from cogment_model_registry.wire import audit as audit_messages
from cogment_model_registry.wire import lifecycle as lifecycle_messages
from cogment_model_registry.wire import messages

_log = structlog.stdlib.get_logger(__name__)

_Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Begins what is done in the background."""

_HEALTH_SECONDS = 1.0
"""How often the archive is checked, and health with it."""

_RELEASE_SECONDS = 0.1
_MANY_TRANSFERS = 8
"""After so many transfers at once, returning freed memory is worth the milliseconds that it takes."""

_IDLE_SECONDS = 10.0
"""How long after the last transfer memory is kept for the next one: trainers publish more often."""

_DEREGISTER_SECONDS = 1.5
"""The longest wait for the Directory when stopping: it should forget this server within two seconds."""


class Server:
    """A registry that serves. Made by `running`.

    Attributes:
        port: The TCP port that it serves on.
        metrics_port: The TCP port that its metrics and its health are served on over HTTP; None when they are not.
        http_port: The TCP port that the pages and /api/v1 are served on over HTTP; None when they are not.
        certificates: What it shows over TLS; None when it is not encrypted.
    """

    def __init__(
        self,
        port: int,
        metrics_port: int | None,
        http_port: int | None,
        *,
        backends: Backends,
        models: Models,
        certificates: Certificates | None = None,
    ) -> None:
        self.port = port
        self.http_port = http_port
        self.metrics_port = metrics_port
        self.certificates = certificates
        self._backends = backends
        self._models = models

    async def refresh(self) -> None:
        """Find what people changed in the archive by hand."""
        await self._backends.rescan()
        await self._models.apply_shares()

    def renew_certificates(self) -> None:
        """Read the files of the certificate soon, if there is one."""
        if self.certificates is not None:
            self.certificates.look_now()


@asynccontextmanager
async def running(settings: Settings, open_backends: OpenBackends = open_backends) -> AsyncIterator[Server]:
    """Run a server; a context manager that stops it.

    Args:
        settings: The settings of the server.
        open_backends: Opens its storage.

    Raises:
        StartError: The archive, a port or a certificate is not available, or the host to register with the Directory
            is unknown.
    """
    grpc_workarounds.install()
    async with AsyncExitStack() as stack:
        certificates = await stack.enter_async_context(kept_certificates(settings))
        metrics = Metrics()
        audit = _audit_log(stack, settings, metrics)
        with recording(_journal(audit, "recovery")):  # a start finishes what a crash interrupted
            backends = await stack.enter_async_context(open_backends(settings, metrics))
        archive, transient, catalog = backends.archive, backends.transient, backends.catalog
        registry = Registry(_limits(settings), catalog, archive, transient, settings.upload_resume_seconds)
        stack.push_async_callback(registry.parking.close)
        transfers = Transfers(settings)
        local_socket = stack.enter_context(local_sockets.opened(settings.local_socket))
        (identities, guard), limits = await _access(stack, settings, backends, audit), _caller_limits(settings, metrics)
        service = ModelRegistryService(
            registry,
            transfers,
            settings,
            observe=metrics.observe_call,
            guard=guard,
            limits=limits,
            local_socket=local_socket,
            audit=audit,
        )
        rules, models = Lifecycle(registry, catalog, archive, transient), Models(registry, catalog, transient)
        await models.apply_shares()
        retention = RetentionWork(
            Retention(registry, catalog, archive, transient, holds=rules.holds), models, metrics.observe_retention
        )
        consumers = _consumers(settings, registry, backends, rules, metrics)
        stack.enter_context(consumers.listening(log_change))
        sharing = _sharing(backends, registry, models, consumers, metrics)
        uploads = RepeatableUploads(registry, catalog, archive, transient)
        lifecycle = ModelLifecycleService(
            rules,
            uploads=uploads,
            models=ModelCalls(models, retention, settings.reply_max_bytes),
            consumers=ConsumerCalls(consumers, settings.reply_max_bytes),
            watches=WatchCalls(Watches(registry, catalog), registry, transfers, consumers),
            transfers=transfers,
            settings=settings,
            observe=metrics.observe_call,
            guard=guard,
            limits=limits,
        )
        history = AuditLogService(
            audit,
            registry.check_model_id,
            registry.has_model,
            settings.reply_max_bytes,
            observe=metrics.observe_call,
            guard=guard,
            limits=limits,
        )
        names = [*messages.SERVICE_NAMES, lifecycle_messages.SERVICE_NAME, audit_messages.SERVICE_NAME]
        health = Health(names)
        handlers = [*service.handlers(), lifecycle.handlers(), history.handlers()]
        grpc_server = _grpc_server(settings, handlers, names, health)
        port = life_cycle.listen(grpc_server, settings.host, settings.port, certificates)
        registration = Registration(settings, port) if settings.directory_endpoint else None
        metrics.watch(registry.status, lambda: registration.state if registration else State.OFF)
        metrics_port = _monitor(stack, settings, metrics, health, certificates)
        web = await _serve_http(
            stack,
            settings,
            port,
            [*handlers, own_handlers(Handlers(metrics.observe_call, guard, limits), guard, metrics.registry)],
            metrics=metrics,
            health=health,
            certificates=certificates,
        )
        if sharing is not None:
            await stack.enter_async_context(sharing.joined(peer_endpoint(settings, port)))
        await grpc_server.start()
        if local_socket is not None:
            local_socket.serve(LocalCalls(rules, uploads, metrics.observe_call, guard, limits))

        health.set_serving(not _failure(backends, audit))
        background = _begun(
            partial(_follow_health, health, backends, audit),
            partial(_release_memory, transfers, transient),
            consumers.run,
            identities.run,
            *_retaining(settings, retention, audit, sharing),
        )
        registering = asyncio.create_task(registration.run()) if registration else None

        async def stop_calls() -> None:
            await _hand_over(registry, sharing, settings.grace_seconds)
            catalog.stop_watching()
            async with asyncio.TaskGroup() as group:
                if registration and registering:
                    group.create_task(_deregister(registration, registering))
                group.create_task(_stop_all([grpc_server, web, local_socket], settings.grace_seconds))

        stack.push_async_callback(_stop_serving, background, health, stop_calls, (service, lifecycle, history))
        yield Server(
            port, metrics_port, web.port if web else None, backends=backends, models=models, certificates=certificates
        )


def _begun(*works: _Work) -> list[asyncio.Task[None]]:
    """Begin work whose end nobody waits for before the stop; an error that nobody expects is logged."""

    async def logged(work: _Work) -> None:
        with surviving(_log.exception, "server"):
            await work()  # a coroutine made before would be left unused by a stop that comes before the task begins

    return [asyncio.create_task(logged(work)) for work in works]


async def _stop_serving(
    background: Sequence[asyncio.Task[None]],
    health: Health,
    stop_calls: Callable[[], Awaitable[None]],
    services: Sequence[ModelRegistryService | ModelLifecycleService | AuditLogService],
) -> None:
    """Stop what serves: work in the background, and then watchers and calls, which get some grace."""
    for task in background:
        await end(task)
    health.stop()
    await stop_calls()
    for service in services:
        await service.drained()


class _Part(Protocol):
    """A part of the server that takes calls."""

    def stop(self, grace_seconds: float, /) -> Coroutine[Any, Any, None]:
        """Take no new calls, and give those under way some time."""


async def _stop_all(parts: Sequence[_Part | None], grace_seconds: float) -> None:
    """Stop all parts at the same time."""
    async with asyncio.TaskGroup() as group:
        for part in parts:
            if part is not None:
                group.create_task(part.stop(grace_seconds))


async def _hand_over(registry: Registry, sharing: Sharing | None, within_seconds: float) -> None:
    """Let the other servers take the transient versions of this one before it stops, if there are others."""
    if sharing is not None:
        registry.stop_uploads()
        await sharing.hand_over(within_seconds)


def _monitor(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics, health: Health, certificates: Certificates | None
) -> int | None:
    """Serve metrics and health over HTTP if that is asked for, and return the port."""
    if settings.metrics_port is None:
        return None
    if certificates is not None:
        metrics.watch_certificate(lambda: certificates.expires_at)
    monitoring = MonitoringServer(
        metrics.registry, lambda: health.is_serving, settings.host, settings.metrics_port, certificates
    )
    stack.push_async_callback(asyncio.to_thread, monitoring.close)
    return monitoring.port


async def _serve_http(
    stack: AsyncExitStack,
    settings: Settings,
    grpc_port: int,
    handlers: Sequence[grpc.GenericRpcHandler],
    *,
    metrics: Metrics,
    health: Health,
    certificates: Certificates | None,
) -> Web | None:
    """Begin to serve HTTP, if that is asked for."""
    if settings.http_port is None:
        return None
    path = stack.enter_context(socket_path())
    calls = _grpc_server(settings, [ForwardedHandlers(each) for each in handlers], [], health)
    web = Web(settings, path, grpc_port, calls, metrics.watch_http())
    stack.push_async_callback(web.close)
    if certificates is not None:
        certificates.on_renewed.add(web.renew)
    await web.start()
    return web


def _sharing(
    backends: Backends, registry: Registry, models: Models, consumers: Consumers, metrics: Metrics
) -> Sharing | None:
    """Return what joins this server to the others that share its catalog, if any do."""
    if backends.shared is None:
        return None
    metrics.watch_sharing(backends.shared)
    return Sharing(backends.shared, registry, models, consumers)


def _audit_log(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> AuditLog | None:
    """Open the audit log if one is to be kept."""
    if not settings.audit_log:
        return None
    audit = AuditLog(settings.audit_log)
    stack.push_async_callback(audit.close)
    metrics.watch_audit(audit)
    return audit


def _journal(audit: AuditLog | None, name: str) -> Journal | None:
    """Return the journal of something that the server does by itself, if an audit log is kept."""
    return audit.journal_of_server(name) if audit else None


async def _access(
    stack: AsyncExitStack, settings: Settings, backends: Backends, audit: AuditLog | None
) -> tuple[Identities, Guard]:
    """Return what finds out who calls, and what decides what they may do."""
    issuer = issuer_of(settings)
    identities = Identities(
        settings.anonymous,
        backends.read_grants,
        lambda call: certificate_names(call.context),
        issuer=issuer,
        on_grant=audit.note_grant if audit else lambda _grant, _is_new: None,
    )
    stack.push_async_callback(identities.close)
    if issuer is not None:
        stack.push_async_callback(issuer.close)
        await issuer.read()
    await identities.refresh()
    return identities, AuditGuard(identities, audit) if audit else identities


def _retaining(
    settings: Settings, retention: RetentionWork, audit: AuditLog | None, sharing: Sharing | None
) -> list[_Work]:
    """Return the work that applies the rules of retention, if it is asked for; of several servers, one does it."""

    async def retain() -> None:
        with recording(_journal(audit, "retention")):
            await retention.run(settings.retention_seconds, sharing.is_leader if sharing else lambda: True)

    return [retain] if settings.retention_seconds and not settings.read_only else []


def _caller_limits(settings: Settings, metrics: Metrics) -> CallerLimits | None:
    """Return what keeps callers within their limits; None where there are none."""
    rates = CallerRates(settings.caller_calls_per_second, settings.caller_bytes_per_second, settings.caller_uploads_max)
    limits = CallerLimits(rates)
    metrics.watch_limits(limits)
    return limits if rates.is_any_set else None


def _limits(settings: Settings) -> Limits:
    return Limits(
        settings.model_id_max_bytes,
        settings.user_data_max_bytes,
        settings.request_max_items,
        settings.model_aliases_max,
    )


def _consumers(
    settings: Settings, registry: Registry, backends: Backends, rules: Lifecycle, metrics: Metrics
) -> Consumers:
    consumers = Consumers(
        registry,
        backends.catalog,
        backends.transient,
        holds=rules.holds,
        consumers_max=settings.consumers_max,
        held_max_bytes=settings.consumers_held_max_bytes,
        find_elsewhere=backends.shared.find_consumers if backends.shared else None,
    )
    metrics.watch_consumers(consumers)
    return consumers


def _grpc_server(
    settings: Settings, handlers: Sequence[grpc.GenericRpcHandler], names: Sequence[str], health: Health
) -> grpc.aio.Server:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.request_max_bytes),
            ("grpc.max_send_message_length", -1),
            # Otherwise gRPC lets each client send some MiB ahead of what was asked for, where the network is fast.
            ("grpc.http2.bdp_probe", 0),
            *life_cycle.server_options(settings.keepalive_seconds, settings.keepalive_timeout_seconds),
            ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ]
    )
    server.add_generic_rpc_handlers(handlers)
    health.add_to(server)
    if settings.grpc_reflection:
        life_cycle.enable_reflection(server, [*names, *health.service_names])
    return server


def _failure(backends: Backends, audit: AuditLog | None) -> str:
    """Return why no change can be made; empty while changes can.

    An object store that several servers share fails for all of them: if none served, transient versions would be out of
    reach as well, which need no archive.
    """
    archive_failure = "" if backends.shared else backends.archive.failure
    return archive_failure or (audit.failure if audit else "")


async def _follow_health(health: Health, backends: Backends, audit: AuditLog | None) -> None:
    """Check the archive, and report that the server does not serve while it or the audit log takes no writes."""
    while True:
        await asyncio.sleep(_HEALTH_SECONDS)
        await backends.archive.check()
        health.set_serving(not _failure(backends, audit))


async def _release_memory(transfers: Transfers, transient: TransientStore) -> None:
    """Return the memory that is kept for the next transfer to the system when none comes for long.

    While many transfers are under way, and after they were, what the heap keeps is given back at once, since it piles
    up between the blocks in use.
    """
    now = asyncio.get_running_loop().time
    was_busy, begun, idle_since, is_released = False, 0, now(), True
    while True:
        await asyncio.sleep(_RELEASE_SECONDS)
        if transfers.count or transfers.begun > begun:
            begun, idle_since, is_released = transfers.begun, now(), False
        is_busy = transfers.count >= _MANY_TRANSFERS
        is_idle = not is_released and now() - idle_since >= _IDLE_SECONDS
        if is_idle:
            transient.release_memory()
            is_released = True
        if is_busy or was_busy or is_idle:
            await asyncio.to_thread(release_free_memory)
        was_busy = is_busy


async def _deregister(registration: Registration, registering: asyncio.Task[None]) -> None:
    await end(registering)
    await registration.end(_DEREGISTER_SECONDS)


async def serve(settings: Settings, signals: Signals) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    SIGHUP rescans the archive, and takes a renewed certificate.

    Args:
        settings: The settings of the server.
        signals: The signals of the process.

    Raises:
        StartError: The archive, a port or a certificate is not available, or the host to register with the Directory
            is unknown.
    """

    def announce(server: Server) -> None:
        tune_garbage_collection()
        _log.info(
            "serving",
            port=server.port,
            host=settings.host,
            **(
                {"archive_url": settings.archive_url} if settings.archive_url else {"archive_dir": settings.archive_dir}
            ),
            version=__version__,
            cache_max_items=settings.cache_max_items,
            cache_max_bytes=settings.cache_max_bytes,
            **({} if server.metrics_port is None else {"metrics_port": server.metrics_port}),
            **({} if server.http_port is None else {"http_port": server.http_port}),
            **life_cycle.check_encryption(settings.host, server.certificates),
        )
        if settings.anonymous == "everything" and not is_local(settings.host):
            _log.warning("callers on other machines may do everything without a token: set anonymous=read or nothing")

    tune_heap()
    await life_cycle.serve_until_signal(running(settings), signals, announce, Server.refresh, Server.renew_certificates)
