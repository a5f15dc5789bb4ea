"""Health checks of registered services, as the original Directory makes them.

A service is asked for its `overall_load`, with a longer timeout each time, then for its `Version`, for services that do
not know `Status`. For a service of no known type, a TCP connection is enough. One that requires TLS is asked where the
operator says which authorities to trust; else it is enough that it answers as servers with TLS do.
"""

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
import structlog

from cogment_model_registry.records.services import LOAD_UNSERVICEABLE, Endpoint, Protocol, Service
from cogment_model_registry.serving.certificates import pair_files
from cogment_model_registry.settings import DirectorySettings
from cogment_model_registry.system.certificates import CertificateError, PemFile
from cogment_model_registry.wire import channels, messages
from cogment_model_registry.wire.directory import STATUS_SERVICES
from cogment_model_registry.wire.tls import TLS_RECORDS, Tls, TlsFiles, client_hello

_log = structlog.stdlib.get_logger(__name__)

STATUS_TIMEOUTS_SECONDS = (2.0, 4.0, 8.0)
_LOAD = "overall_load"
_CONNECT_TIMEOUT_SECONDS = 5.0


async def check(service: Service, files: TlsFiles | None = None) -> int | None:
    """Return the load of a service, from 0 to 255; None when it does not answer.

    Args:
        service: The service.
        files: What to trust and show over TLS; None to ask no service that requires it.
    """
    name = STATUS_SERVICES.get(service.details.type)
    is_secure = service.endpoint.protocol is Protocol.GRPC_SSL
    if name is None or (is_secure and files is None):
        return await _connect(service.endpoint, speaks_tls=is_secure)
    try:
        tls = await asyncio.to_thread(files.read) if is_secure and files is not None else None
    except CertificateError as error:
        _log.warning("services with TLS cannot be checked", reason=str(error))
        return await _connect(service.endpoint, speaks_tls=True)
    async with _channel(service.endpoint.address, tls) as channel:
        for timeout_seconds in STATUS_TIMEOUTS_SECONDS:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await _ask_load(channel, name, timeout_seconds)
        with contextlib.suppress(grpc.aio.AioRpcError):
            ask: Any = channel.unary_unary(f"/{name}/Version")
            await ask(messages.VersionRequest().SerializeToString(), timeout=STATUS_TIMEOUTS_SECONDS[0])
            return 0
    return None


def check_files(settings: DirectorySettings) -> TlsFiles | None:
    """Return what a Directory trusts and shows where it checks services that require TLS; None to ask none of them."""
    if not settings.check_tls_ca:
        return None
    return TlsFiles(PemFile("check_tls_ca", settings.check_tls_ca), pair_files(settings))


def _channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=channels.OPTIONS)
    return grpc.aio.secure_channel(address, tls.credentials(), options=channels.OPTIONS)


async def _ask_load(channel: grpc.aio.Channel, name: str, timeout_seconds: float) -> int:
    ask: Any = channel.unary_unary(f"/{name}/Status")
    request = messages.StatusRequest(names=[_LOAD]).SerializeToString()
    reply = messages.StatusReply.FromString(await ask(request, timeout=timeout_seconds, wait_for_ready=True))
    text = reply.statuses.get(_LOAD, "")
    if not text:
        return 0  # it answers, but reports no load
    return min(int(text), LOAD_UNSERVICEABLE) if text.isascii() and text.isdigit() else LOAD_UNSERVICEABLE


async def _connect(endpoint: Endpoint, *, speaks_tls: bool) -> int | None:
    """Return 0 if something listens at an endpoint, and begins to answer a handshake if it should."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            try:
                if speaks_tls:
                    writer.write(client_hello())
                    if await reader.read(1) not in TLS_RECORDS:
                        return None
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except OSError:
        return None
    return 0
