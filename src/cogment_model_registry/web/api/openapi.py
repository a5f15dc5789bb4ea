"""The OpenAPI document of /api/v1, made from the table of its operations."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry._version import __version__
from cogment_model_registry.web.api.operations import OPERATIONS, PREFIX, SWITCH, TEXT, WHOLE, Operation, Parameter

_TEXTS = {"type": "object", "additionalProperties": TEXT}
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_TIME = {"type": "string", "format": "date-time"}
_NS = {"type": "integer", "description": "Nanoseconds since the Unix epoch."}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _object(optional: tuple[str, ...] = (), **properties: Mapping[str, Any]) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _page(name: str, of: str) -> dict[str, Any]:
    properties: dict[str, Any] = {name: _list(_ref(of)), "next_page_token": TEXT}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


_VERSION = {
    "model_id": TEXT,
    "number": WHOLE,
    "created_ns": _NS,
    "created": _TIME,
    "archived": SWITCH,
    "data_hash": {"type": "string", "description": "SHA-256 of the bytes, in base64."},
    "data_size_bytes": WHOLE,
    "user_data": _TEXTS,
    "tags": _TEXTS,
    "metrics": _NUMBERS,
    "aliases": _list(TEXT),
    "revision": WHOLE,
    "signature": _object(key_id=TEXT, value=TEXT),
}
_ANNOTATIONS = ("tags", "metrics", "aliases", "revision", "signature")

SCHEMAS: Mapping[str, Any] = {
    "Status": _object(status=_TEXTS, versions=_TEXTS),
    "ModelInfo": _object(model_id=TEXT, user_data=_TEXTS),
    "Model": _object(
        model_id=TEXT,
        user_data=_TEXTS,
        tags=_TEXTS,
        aliases=_list(_ref("Alias")),
        retention=_list(_ref("Rule")),
        share=_object(max_items=WHOLE, max_bytes=WHOLE, reserved_items=WHOLE, reserved_bytes=WHOLE),
        signers=_list(_object(key_id=TEXT, public_key=TEXT)),
        revision=WHOLE,
        latest_number=WHOLE,
        versions=WHOLE,
        archived_bytes=WHOLE,
    ),
    "ModelPage": _page("models", "Model"),
    "Version": _object(_ANNOTATIONS, **_VERSION),
    "VersionPage": _page("versions", "Version"),
    "Alias": _object(alias=TEXT, version_number=WHOLE, revision=WHOLE, set_ns=_NS, set=_TIME),
    "Aliases": _object(aliases=_list(_ref("Alias"))),
    "Rule": _object(
        ("tier", "filter", "keep_last", "keep_best", "metric", "lower_is_better", "keep_seconds", "keep_every"),
        tier={"enum": ["any", "transient", "archived"]},
        filter=TEXT,
        keep_last=WHOLE,
        keep_best=WHOLE,
        metric=TEXT,
        lower_is_better=SWITCH,
        keep_seconds=WHOLE,
        keep_every=WHOLE,
    ),
    "RetentionReport": _object(
        decisions=_list(_object(_ANNOTATIONS, **_VERSION, deleted=SWITCH, reason=TEXT)),
        deleted_versions=WHOLE,
        kept_versions=WHOLE,
        freed_bytes=WHOLE,
    ),
    "Change": _object(
        time_ns=_NS,
        time=_TIME,
        change=TEXT,
        model_id=TEXT,
        version_number={"type": ["integer", "null"]},
        alias=TEXT,
        before={},
        after={},
        call=TEXT,
        caller=TEXT,
        caller_kind=TEXT,
        peer=TEXT,
        reason=TEXT,
    ),
    "ChangePage": _page("changes", "Change"),
    "Consumer": _object(
        model_id=TEXT,
        consumer_id=TEXT,
        version_number=WHOLE,
        state=TEXT,
        error=TEXT,
        labels=_TEXTS,
        ttl_seconds=WHOLE,
        held_versions=_list(WHOLE),
        versions_behind=WHOLE,
        seconds_behind={"type": "number"},
        reported_ns=_NS,
    ),
    "ConsumerPage": _page("consumers", "Consumer"),
    "Problem": {
        "type": "object",
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": WHOLE,
            "detail": TEXT,
            "error": {"type": "string", "description": "The class of the error in the Python client."},
            "model_id": TEXT,
            "version_number": WHOLE,
        },
        "required": ["type", "title", "status", "detail"],
    },
}
"""The documents by name."""

_PATH_TEXTS = {
    "model": "The id of a model, percent-encoded.",
    "version": "A number, -n for the n-th from the last, latest, or an alias.",
    "alias": "The name of an alias, percent-encoded.",
    "consumer": "The id of a consumer, percent-encoded.",
}


def document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Model registry", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "An error: nothing was done.",
                    "content": {"application/problem+json": {"schema": _ref("Problem")}},
                }
            },
        },
        "security": [{"token": []}, {}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    """Return an operation in the format of the document."""
    success: dict[str, Any] = {"description": "Done."}
    if "/" in operation.reply:
        success["content"] = {operation.reply: {"schema": TEXT}}
    elif operation.reply:
        success["content"] = {"application/json": {"schema": _ref(operation.reply)}}
    responses = {str(operation.status): success}
    if any(each.name == "Range" for each in operation.parameters):
        responses["206"] = {**success, "description": "The part that the client asked for."}
        responses["304"] = {"description": "The client has these bytes."}
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": TEXT, "description": _PATH_TEXTS[name]}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [*in_path, *map(_parameter, operation.parameters)],
        "responses": {**responses, "default": {"$ref": "#/components/responses/Problem"}},
    }
    if operation.status == 201:
        described["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    elif operation.body is not None:
        schema = {"type": "object", "properties": operation.body, "additionalProperties": False}
        if operation.required:
            schema["required"] = [*operation.required]
        described["requestBody"] = {
            "required": bool(operation.required),
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.text,
        "schema": parameter.schema,
    }


async def show(_request: Request) -> Response:
    """Answer with the document."""
    return JSONResponse(document())
