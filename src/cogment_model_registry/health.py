"""The standard health service, `grpc.health.v1`, for the server as a whole and for each of its services."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVING = health_pb2.HealthCheckResponse.SERVING


class _EndingServicer(health.aio.HealthServicer):
    """The library's servicer, whose watchers would hold up a stop for all of its grace."""

    def __init__(self) -> None:
        super().__init__()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Let all watchers end."""
        self._ending.set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 # the method's name on the wire
        """Tell the status of a service and its changes, until the server stops."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait([watching, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, ending):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        if self._ending.is_set():
            await context.write(health_pb2.HealthCheckResponse(status=_NOT_SERVING))


class Health:
    """Answers whether the services serve. They do not before `set_serving`.

    Args:
        services: Their full names.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = _EndingServicer()
        self._names = ["", *services]  # the empty name is the server as a whole
        self._serving: bool | None = None

    @property
    def service_names(self) -> list[str]:
        """Names of the gRPC services that this adds to a server."""
        return [health.SERVICE_NAME]

    def add_to(self, server: grpc.aio.Server) -> None:
        """Let a server answer."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_serving(self, serving: bool) -> None:
        """Say whether the services serve; watchers are told when that changes."""
        if serving is self._serving:
            return
        self._serving = serving
        for name in self._names:
            await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)

    async def stop(self) -> None:
        """Say that nothing serves any more, whatever comes, and end the watchers."""
        await self._servicer.enter_graceful_shutdown()
        self._servicer.end()
