"""The standard health service, `grpc.health.v1`, for the server as a whole and for each of its services."""

from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Health:
    """Answers whether the services serve. They do not before `set_serving`.

    Args:
        services: Their full names.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = health.aio.HealthServicer()
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
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._servicer.set(name, status)

    async def stop(self) -> None:
        """Say that nothing serves any more, whatever comes."""
        await self._servicer.enter_graceful_shutdown()
