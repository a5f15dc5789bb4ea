"""Models over HTTP, with their retention, share of memory, signers and history."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry.client.lifecycle_calls import Page
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.documents import (
    entry_as_json,
    model_as_json,
    model_info_as_json,
    report_as_json,
    rules_from_json,
)
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.lifecycle import ModelSummary
from cogment_model_registry.records.retention import TransientShare
from cogment_model_registry.records.signatures import PublicKey, parse_public_keys
from cogment_model_registry.records.timestamps import parse_timestamp
from cogment_model_registry.web.api.bodies import LONG, REVISIONS, read_fields, texts
from cogment_model_registry.web.api.listing import page_of
from cogment_model_registry.web.parameters import flag, parameters
from cogment_model_registry.web.state import registry_of


def _model_of(request: Request) -> str:
    model_id: str = request.path_params["model"]
    return model_id


async def find(request: Request) -> Response:
    """Answer with the models that match a filter."""

    async def page(query: Mapping[str, str], size: int, token: str) -> Page[ModelSummary]:
        return await registry_of(request).pages.models_page(query.get("filter", ""), size, token)

    return await page_of(request, "models", page, model_as_json)


async def get(request: Request) -> Response:
    """Answer with a model."""
    parameters(request, ())
    return JSONResponse(model_as_json(await registry_of(request).describe_model(_model_of(request))))


async def put(request: Request) -> Response:
    """Create a model, or replace the `user_data` of an existing one."""
    query = parameters(request, {"replace"})
    fields = await read_fields(request, user_data=dict)
    model = await registry_of(request).create_model(
        _model_of(request), user_data=texts(fields, "user_data"), replace=flag(query, "replace", default=True)
    )
    return JSONResponse(model_info_as_json(model))


async def patch(request: Request) -> Response:
    """Change tags of a model."""
    parameters(request, ())
    fields = await read_json_tags(request)
    model = await registry_of(request).update_model(
        _model_of(request), tags=fields.get("tags", {}), expected=fields.get("expected")
    )
    return JSONResponse(model_as_json(model))


async def read_json_tags(request: Request) -> Mapping[str, Any]:
    """Return the fields of a change of tags."""
    return await read_fields(request, tags=dict, expected=REVISIONS)


async def delete(request: Request) -> Response:
    """Delete a model with all its versions."""
    parameters(request, ())
    await registry_of(request).delete_model(_model_of(request))
    return Response(None, HTTPStatus.NO_CONTENT)


async def put_retention(request: Request) -> Response:
    """Replace the rules of a model."""
    parameters(request, ())
    fields = await read_fields(request, rules=list, expected=REVISIONS)
    rules = rules_from_json(_required(fields, "rules"), "rules")
    model = await registry_of(request).set_retention(_model_of(request), rules, expected=fields.get("expected"))
    return JSONResponse(model_as_json(model))


async def apply_retention(request: Request) -> Response:
    """Apply the rules of a model, or answer with what they would delete."""
    return await _apply(request, _model_of(request))


async def apply_all_retention(request: Request) -> Response:
    """The same for all models."""
    return await _apply(request, None)


async def _apply(request: Request, model_id: str | None) -> Response:
    parameters(request, ())
    fields = await read_fields(request, rules=list, dry_run=bool)
    rules = rules_from_json(fields["rules"], "rules") if "rules" in fields else None
    is_dry_run = _required(fields, "dry_run")  # so that nothing is deleted because a field was forgotten
    report = await registry_of(request).apply_retention(model_id, rules=rules, dry_run=is_dry_run)
    return JSONResponse(report_as_json(report))


async def put_share(request: Request) -> Response:
    """Replace the share that a model has of the memory for transient versions."""
    parameters(request, ())
    names = ("max_items", "max_bytes", "reserved_items", "reserved_bytes")
    fields = await read_fields(request, **dict.fromkeys(names, LONG), expected=REVISIONS)
    share = TransientShare(*(fields.get(name, 0) for name in names))
    model = await registry_of(request).set_share(_model_of(request), share, expected=fields.get("expected"))
    return JSONResponse(model_as_json(model))


async def put_signers(request: Request) -> Response:
    """Replace the keys of which one must have signed each new version of a model."""
    parameters(request, ())
    fields = await read_fields(request, keys=list, expected=REVISIONS)
    keys = _keys_of(_required(fields, "keys"))
    model = await registry_of(request).set_signers(_model_of(request), keys, expected=fields.get("expected"))
    return JSONResponse(model_as_json(model))


def _keys_of(texts_of_keys: list[object]) -> list[PublicKey]:
    if not all(isinstance(text, str) for text in texts_of_keys):
        raise InvalidError("each of keys must be a string, a public key in PEM")
    return parse_public_keys("\n".join(map(str, texts_of_keys)).encode(errors="replace")) if texts_of_keys else []


async def history(request: Request) -> Response:
    """Answer with the changes of a model, newest first."""

    async def page(query: Mapping[str, str], size: int, token: str) -> Page[HistoryEntry]:
        since_ns = _moment(query["since"]) if "since" in query else 0
        return await registry_of(request).pages.changes_page(
            _model_of(request), query.get("alias", ""), since_ns, size, token
        )

    return await page_of(request, "changes", page, entry_as_json, ("alias", "since"))


def _moment(text: str) -> int:
    try:
        return parse_timestamp(text)
    except ValueError:
        raise InvalidError("since must be a time in the format of RFC 3339, such as 2026-01-31T12:00:00Z") from None


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise InvalidError(f"the body must have the field {name}")
    return fields[name]
