"""Health checks of registered services, as the original Directory makes them.

A service is asked for its `overall_load`, with a longer timeout each time, then for its `Version`, for services that do
not know `Status`. For a service that cannot be asked (encrypted, or of no known type), a TCP connection is enough.
"""

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.records.services import LOAD_UNSERVICEABLE, Endpoint, Protocol, Service
from cogment_model_registry.wire import channels, messages
from cogment_model_registry.wire.directory import STATUS_SERVICES

STATUS_TIMEOUTS_SECONDS = (2.0, 4.0, 8.0)
_LOAD = "overall_load"
_CONNECT_TIMEOUT_SECONDS = 5.0


async def check(service: Service) -> int | None:
    """Return the load of a service, from 0 to 255; None when it does not answer."""
    name = STATUS_SERVICES.get(service.details.type)
    if name is None or service.endpoint.protocol is Protocol.GRPC_SSL:
        return await _connect(service.endpoint)
    async with grpc.aio.insecure_channel(service.endpoint.address, options=channels.OPTIONS) as channel:
        for timeout_seconds in STATUS_TIMEOUTS_SECONDS:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await _ask_load(channel, name, timeout_seconds)
        with contextlib.suppress(grpc.aio.AioRpcError):
            ask: Any = channel.unary_unary(f"/{name}/Version")
            await ask(messages.VersionRequest().SerializeToString(), timeout=STATUS_TIMEOUTS_SECONDS[0])
            return 0
    return None


async def _ask_load(channel: grpc.aio.Channel, name: str, timeout_seconds: float) -> int:
    ask: Any = channel.unary_unary(f"/{name}/Status")
    request = messages.StatusRequest(names=[_LOAD]).SerializeToString()
    reply = messages.StatusReply.FromString(await ask(request, timeout=timeout_seconds, wait_for_ready=True))
    text = reply.statuses.get(_LOAD, "")
    if not text:
        return 0  # it answers, but reports no load
    return min(int(text), LOAD_UNSERVICEABLE) if text.isascii() and text.isdigit() else LOAD_UNSERVICEABLE


async def _connect(endpoint: Endpoint) -> int | None:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return 0
