"""Monitoring over HTTP: whether the processes run, whether the server serves, and metrics."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.web.state import registry_of

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format, as the server writes it."""


async def alive(request: Request) -> Response:
    """Answer whether the event loops of both processes run; if one does not, a restart may help."""
    try:
        await registry_of(request).is_serving()
    except ModelRegistryError as error:
        return PlainTextResponse(f"{error.message}\n", 503)
    return PlainTextResponse("alive\n")


async def ready(request: Request) -> Response:
    """Answer whether the server serves: the status of the whole server in `grpc.health.v1`."""
    try:
        is_serving = await registry_of(request).is_serving()
    except ModelRegistryError as error:
        return PlainTextResponse(f"{error.message}\n", 503)
    return PlainTextResponse("ready\n") if is_serving else PlainTextResponse("not ready\n", 503)


async def metrics(request: Request) -> Response:
    """Answer with the metrics of the server, for callers that may read all models."""
    return Response(await registry_of(request).read_metrics(), media_type=_METRICS_TYPE)
