"""Consumers over HTTP, and the state of the server."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry.client.lifecycle_calls import Page
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.consumers import TTL_DEFAULT_SECONDS, Consumer
from cogment_model_registry.records.documents import consumer_as_json
from cogment_model_registry.web.api.bodies import NUMBERS, read_fields, texts
from cogment_model_registry.web.api.listing import page_of
from cogment_model_registry.web.parameters import parameters
from cogment_model_registry.web.state import registry_of


async def find(request: Request) -> Response:
    """Answer with the consumers that match a filter, of a model or of all."""

    async def page(query: Mapping[str, str], size: int, token: str) -> Page[Consumer]:
        model_id = request.path_params.get("model", "")
        return await registry_of(request).pages.consumers_page(model_id, query.get("filter", ""), size, token)

    return await page_of(request, "consumers", page, consumer_as_json)


async def report(request: Request) -> Response:
    """Record the report of a consumer, and answer with its lag."""
    parameters(request, ())
    fields = await read_fields(
        request, version_number=NUMBERS, state=str, error=str, labels=dict, ttl_seconds=NUMBERS, held_versions=list
    )
    if not all(type(number) is int and number in NUMBERS for number in fields.get("held_versions", ())):
        raise InvalidError("held_versions must be a list of numbers of versions")
    consumer = await registry_of(request).report_consumer(
        request.path_params["model"],
        request.path_params["consumer"],
        version=fields.get("version_number"),
        state=fields.get("state", "active"),
        error=fields.get("error", ""),
        labels=texts(fields, "labels"),
        ttl_seconds=fields.get("ttl_seconds", TTL_DEFAULT_SECONDS),
        held_versions=fields.get("held_versions", ()),
    )
    return JSONResponse(consumer_as_json(consumer))


async def status(request: Request) -> Response:
    """Answer with the state and the version of the server."""
    parameters(request, ())
    registry = registry_of(request)
    return JSONResponse({"status": await registry.status(), "versions": await registry.server_versions()})
