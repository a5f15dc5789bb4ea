"""The standard health service, `grpc.health.v1`, for the server as a whole and for each of its services.

The library's own servicer holds a lock while it writes to a watcher, so one watcher that does not read would block all
others, and its watchers delay a stop for the whole grace. So only its messages are used here; the two calls are
answered from the present state.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVING = health_pb2.HealthCheckResponse.SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Answers whether the services serve; until `set_serving`, they do not.

    Args:
        services: Their full names.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._names = frozenset(["", *services])  # the empty name is the server as a whole
        self._serving = False
        self._stopping = False
        self._changed = asyncio.Event()

    @property
    def service_names(self) -> list[str]:
        """Names of the gRPC services that this adds to a server."""
        return [health.SERVICE_NAME]

    def add_to(self, server: grpc.aio.Server) -> None:
        """Let a server answer."""
        health_pb2_grpc.add_HealthServicer_to_server(_Servicer(self), server)

    def set_serving(self, serving: bool) -> None:
        """Set whether the services serve; watchers are notified when that changes."""
        if serving != self._serving and not self._stopping:
            self._serving = serving
            self._notify()

    def stop(self) -> None:
        """Stop serving, whatever `set_serving` says later, and end the watchers."""
        self._serving = False
        self._stopping = True
        self._notify()

    def _notify(self) -> None:
        """Wake the watchers; those that wait from now on wait for the next change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def status(self, service: str) -> Any:
        """Return the status of a service, as the protocol has it."""
        if service not in self._names:
            return _SERVICE_UNKNOWN
        return _SERVING if self._serving else _NOT_SERVING

    @property
    def is_serving(self) -> bool:
        """Whether the services serve."""
        return self._serving

    @property
    def next_change(self) -> asyncio.Event | None:
        """The event that the next change sets; None when no change will come."""
        return None if self._stopping else self._changed


class _Servicer(health_pb2_grpc.HealthServicer):
    """The two calls of the health service."""

    def __init__(self, health_of_server: Health) -> None:
        self._health = health_of_server

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 # the method's name on the wire
        status = self._health.status(request.service)
        if status == _SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this server has no service of this name")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 # the method's name on the wire
        sent = None
        while True:
            change = self._health.next_change
            status = self._health.status(request.service)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            if change is None:
                return
            await change.wait()
