"""Versions and aliases over HTTP."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry.client.lifecycle_calls import Page
from cogment_model_registry.errors import InvalidError, NotFoundError, quoted
from cogment_model_registry.records.documents import alias_as_json, version_as_json
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.web.api.bodies import NUMBERS, REVISIONS, read_fields
from cogment_model_registry.web.api.listing import page_of
from cogment_model_registry.web.keys import key_of
from cogment_model_registry.web.parameters import flag, parameters, whole_number
from cogment_model_registry.web.state import registry_of

_REVISION_MAX = 2**63 - 1


def _named(request: Request) -> tuple[str, int | str]:
    """Return the model and the version in a path."""
    return request.path_params["model"], key_of(request.path_params["version"])


async def find(request: Request) -> Response:
    """Answer with the versions that match a filter, of a model or of all."""

    async def page(query: Mapping[str, str], size: int, token: str) -> Page[Version]:
        model_id = request.path_params.get("model")
        accepted, order_by = query.get("filter", ""), query.get("order_by", "")
        return await registry_of(request).pages.versions_page(model_id, accepted, order_by, size, token)

    return await page_of(request, "versions", page, version_as_json, ("filter", "order_by"))


async def get(request: Request) -> Response:
    """Answer with a version."""
    parameters(request, ())
    return JSONResponse(version_as_json(await registry_of(request).describe_version(*_named(request))))


async def patch(request: Request) -> Response:
    """Change tags and metrics of a version."""
    parameters(request, ())
    fields = await read_fields(request, tags=dict, metrics=dict, expected=REVISIONS)
    for name, value in fields.get("metrics", {}).items():
        if isinstance(value, bool):  # which Python takes for a number
            raise InvalidError(f"metrics.{name} is {quoted(str(value))}; it must be a number, or null to remove it")
    version = await registry_of(request).update_version(
        *_named(request),
        tags=fields.get("tags"),
        metrics=fields.get("metrics"),
        expected=fields.get("expected"),
    )
    return JSONResponse(version_as_json(version))


async def delete(request: Request) -> Response:
    """Delete a version."""
    query = parameters(request, {"force"})
    await registry_of(request).delete_version(*_named(request), force=flag(query, "force"))
    return Response(None, HTTPStatus.NO_CONTENT)


async def promote(request: Request) -> Response:
    """Promote a transient version."""
    parameters(request, ())
    fields = await read_fields(request, alias=str)
    version = await registry_of(request).promote(*_named(request), alias=fields.get("alias"))
    return JSONResponse(version_as_json(version))


async def find_aliases(request: Request) -> Response:
    """Answer with the aliases of a model."""
    parameters(request, ())
    aliases = await registry_of(request).aliases(request.path_params["model"])
    return JSONResponse({"aliases": [alias_as_json(alias) for alias in aliases.values()]})


async def get_alias(request: Request) -> Response:
    """Answer with an alias."""
    parameters(request, ())
    model_id, name = request.path_params["model"], request.path_params["alias"]
    aliases = await registry_of(request).aliases(model_id)
    if name not in aliases:
        raise NotFoundError(f"model {quoted(model_id)} has no alias {quoted(name)}", model_id=model_id)
    return JSONResponse(alias_as_json(aliases[name]))


async def put_alias(request: Request) -> Response:
    """Point an alias to a version."""
    parameters(request, ())
    fields = await read_fields(request, version=object, expected=REVISIONS)
    alias = await registry_of(request).set_alias(
        request.path_params["model"],
        request.path_params["alias"],
        _target_of(fields.get("version")),
        expected=fields.get("expected"),
    )
    return JSONResponse(alias_as_json(alias))


def _target_of(version: object) -> int | str:
    """Return the version in a body."""
    if isinstance(version, str):
        return key_of(version)
    if isinstance(version, int) and abs(version) in NUMBERS:
        return version
    if version is None:
        raise InvalidError("the body must have the field version: a number, latest, or an alias")
    raise InvalidError(f"version is {quoted(str(version))}; it must be the number of a version, latest, or an alias")


async def delete_alias(request: Request) -> Response:
    """Remove an alias."""
    query = parameters(request, {"expected"})
    expected = whole_number(query, "expected", 0, _REVISION_MAX, 0) if "expected" in query else None
    await registry_of(request).remove_alias(
        request.path_params["model"], request.path_params["alias"], expected=expected
    )
    return Response(None, HTTPStatus.NO_CONTENT)
