"""The table of /api/v1: each operation with its path, parameters and documents. Routes and OpenAPI derive from it."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.web import downloads, events, uploads
from cogment_model_registry.web.api import consumers, models, versions

PREFIX = "/api/v1"

Schema: TypeAlias = Mapping[str, object]
"""A JSON schema, in the format of OpenAPI 3.1."""

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
SWITCH: Schema = {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the address or in a header.

    Attributes:
        name: Its name.
        text: What it does.
        schema: Its values.
        place: ``query`` or ``header``.
    """

    name: str
    text: str
    schema: Schema = field(default_factory=lambda: TEXT)
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation.

    Attributes:
        method: The method.
        path: The path below `PREFIX`.
        handler: The function that answers it.
        summary: What it does, in one line.
        parameters: Its parameters, without those of the path.
        body: The fields of its JSON body, with their schemas; None if it has no such body.
        required: The fields that it must have.
        reply: The name of the schema of its JSON answer; another media type; empty for no content.
        status: The status of success.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    parameters: Sequence[Parameter] = ()
    body: Mapping[str, Schema] | None = None
    required: Sequence[str] = ()
    reply: str = ""
    status: int = 200

    @property
    def id(self) -> str:
        """A unique name."""
        return "_".join([self.method.lower(), *re.findall(r"\w+", self.path)])


_FILTER = Parameter("filter", 'The filter, such as: metrics.return > 100 AND tags.stage = "trial".')
_ORDER = Parameter("order_by", "The order, such as: metrics.return desc.")
_PAGE = (
    Parameter(
        "page_size",
        "The number of entries in a page, at most.",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    ),
    Parameter("page_token", "The next_page_token of the page before."),
)
_EXPECTED: Schema = {
    "type": "integer",
    "description": "The revision that it must have now; 0 if the alias must not exist.",
}
_TAGS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "null"]},
    "description": "Strings to set by name; null to remove one.",
}
_METRICS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["number", "null"]},
    "description": "Numbers to set by name; null to remove one.",
}
_USER_DATA: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_RULES: Schema = {"type": "array", "items": {"$ref": "#/components/schemas/Rule"}}
_UPLOAD = (
    Parameter(
        "archived", "Whether to store it as an archived version: durable before the answer, and never evicted.", SWITCH
    ),
    Parameter("tag", "A tag, NAME=TEXT; can be given several times."),
    Parameter("metric", "A metric, NAME=NUMBER; can be given several times."),
    Parameter("user_data", "An entry of user_data, KEY=TEXT; can be given several times."),
    Parameter("alias", "An alias to point to it, which makes it archived; can be given several times."),
    Parameter("create_model", "Whether to create the model if it does not exist; on by default.", SWITCH),
    Parameter("Idempotency-Key", "A repeated request with the same key returns the same version.", TEXT, "header"),
    Parameter("Repr-Digest", "The hash with which the bytes are checked, sha-256=:BASE64:.", TEXT, "header"),
)
_DOWNLOAD = (
    Parameter("Range", "A part, bytes=FIRST-LAST.", TEXT, "header"),
    Parameter("If-Range", "The entity tag that the part must be of.", TEXT, "header"),
    Parameter("If-None-Match", "The entity tags that the client has.", TEXT, "header"),
)
_EVENTS = (
    Parameter("mode", "latest: the newest version of each model; all: every version.", {"enum": ["latest", "all"]}),
    _FILTER,
    Parameter("consumers", "Whether to send the reports of consumers.", SWITCH),
    Parameter("resume_token", "The id of the last event; the header Last-Event-ID takes precedence."),
    Parameter("Last-Event-ID", "The id of the last event; browsers send it by themselves.", TEXT, "header"),
)
_BYTES, _EVENT_STREAM = "application/octet-stream", "text/event-stream"
_MODEL, _VERSION, _ALIAS = "/models/{model}", "/models/{model}/versions/{version}", "/models/{model}/aliases/{alias}"

OPERATIONS: Sequence[Operation] = (
    Operation("GET", "/status", consumers.status, "The state and the version of the server.", reply="Status"),
    Operation("GET", "/models", models.find, "Find models.", (_FILTER, *_PAGE), reply="ModelPage"),
    Operation("GET", _MODEL, models.get, "Look up a model.", reply="Model"),
    Operation(
        "PUT",
        _MODEL,
        models.put,
        "Create a model, or replace its user_data.",
        [Parameter("replace", "Whether to replace the user_data of an existing model; on by default.", SWITCH)],
        body={"user_data": _USER_DATA},
        reply="ModelInfo",
    ),
    Operation(
        "PATCH",
        _MODEL,
        models.patch,
        "Change tags of a model.",
        body={"tags": _TAGS, "expected": _EXPECTED},
        reply="Model",
    ),
    Operation("DELETE", _MODEL, models.delete, "Delete a model with all its versions.", status=204),
    Operation(
        "GET",
        _MODEL + "/versions",
        versions.find,
        "Find versions of a model.",
        (_FILTER, _ORDER, *_PAGE),
        reply="VersionPage",
    ),
    Operation(
        "GET",
        "/versions",
        versions.find,
        "Find versions of all models.",
        (_FILTER, _ORDER, *_PAGE),
        reply="VersionPage",
    ),
    Operation(
        "PUT",
        _MODEL + "/versions",
        uploads.create,
        "Create a version from the body.",
        _UPLOAD,
        reply="Version",
        status=201,
    ),
    Operation(
        "POST",
        _MODEL + "/versions",
        uploads.create,
        "Create a version from the body.",
        _UPLOAD,
        reply="Version",
        status=201,
    ),
    Operation("GET", _VERSION, versions.get, "Look up a version: by number, -n, latest, or an alias.", reply="Version"),
    Operation(
        "PATCH",
        _VERSION,
        versions.patch,
        "Change tags and metrics of a version.",
        body={"tags": _TAGS, "metrics": _METRICS, "expected": _EXPECTED},
        reply="Version",
    ),
    Operation(
        "DELETE",
        _VERSION,
        versions.delete,
        "Delete a version.",
        [Parameter("force", "Whether to remove the aliases that point to it, too.", SWITCH)],
        status=204,
    ),
    Operation("GET", _VERSION + "/data", downloads.by_version, "Download a version.", _DOWNLOAD, reply=_BYTES),
    Operation(
        "POST",
        _VERSION + "/promote",
        versions.promote,
        "Promote a transient version, which makes it archived.",
        body={"alias": TEXT},
        reply="Version",
    ),
    Operation("GET", _MODEL + "/aliases", versions.find_aliases, "List the aliases of a model.", reply="Aliases"),
    Operation("GET", _ALIAS, versions.get_alias, "Look up an alias.", reply="Alias"),
    Operation(
        "PUT",
        _ALIAS,
        versions.put_alias,
        "Point an alias to a version; a transient one is promoted first.",
        body={"version": {"type": ["integer", "string"]}, "expected": _EXPECTED},
        required=["version"],
        reply="Alias",
    ),
    Operation(
        "DELETE",
        _ALIAS,
        versions.delete_alias,
        "Remove an alias.",
        [Parameter("expected", "The revision that it must have now.", WHOLE)],
        status=204,
    ),
    Operation(
        "GET", _ALIAS + "/data", downloads.by_alias, "Download the version of an alias.", _DOWNLOAD, reply=_BYTES
    ),
    Operation(
        "PUT",
        _MODEL + "/retention",
        models.put_retention,
        "Replace the rules of a model.",
        body={"rules": _RULES, "expected": _EXPECTED},
        required=["rules"],
        reply="Model",
    ),
    Operation(
        "POST",
        _MODEL + "/retention/apply",
        models.apply_retention,
        "Apply the rules of a model, or return what they would delete.",
        body={"dry_run": SWITCH, "rules": _RULES},
        required=["dry_run"],
        reply="RetentionReport",
    ),
    Operation(
        "POST",
        "/retention/apply",
        models.apply_all_retention,
        "Apply the rules of all models, or return what they would delete.",
        body={"dry_run": SWITCH, "rules": _RULES},
        required=["dry_run"],
        reply="RetentionReport",
    ),
    Operation(
        "PUT",
        _MODEL + "/share",
        models.put_share,
        "Replace the share that a model has of the memory for transient versions.",
        body={
            "max_items": WHOLE,
            "max_bytes": WHOLE,
            "reserved_items": WHOLE,
            "reserved_bytes": WHOLE,
            "expected": _EXPECTED,
        },
        reply="Model",
    ),
    Operation(
        "PUT",
        _MODEL + "/signers",
        models.put_signers,
        "Replace the public keys; one of them must have signed each new version.",
        body={"keys": {"type": "array", "items": TEXT}, "expected": _EXPECTED},
        required=["keys"],
        reply="Model",
    ),
    Operation(
        "GET",
        _MODEL + "/history",
        models.history,
        "List the changes of a model, newest first.",
        (
            Parameter("alias", "Only changes of an alias."),
            Parameter("since", "Only changes since a time, in the format of RFC 3339."),
            *_PAGE,
        ),
        reply="ChangePage",
    ),
    Operation(
        "GET", "/consumers", consumers.find, "Find consumers of all models.", (_FILTER, *_PAGE), reply="ConsumerPage"
    ),
    Operation(
        "GET",
        _MODEL + "/consumers",
        consumers.find,
        "Find consumers of a model.",
        (_FILTER, *_PAGE),
        reply="ConsumerPage",
    ),
    Operation(
        "PUT",
        _MODEL + "/consumers/{consumer}",
        consumers.report,
        "Report which version a consumer runs.",
        body={
            "version_number": WHOLE,
            "state": {"enum": ["unknown", "loading", "active", "failed", "gone"]},
            "error": TEXT,
            "labels": _USER_DATA,
            "ttl_seconds": WHOLE,
            "held_versions": {"type": "array", "items": WHOLE},
        },
        reply="Consumer",
    ),
    Operation(
        "GET",
        "/events",
        events.of_models,
        "Watch some models, or all.",
        (Parameter("model", "A model; can be given several times."), *_EVENTS),
        reply=_EVENT_STREAM,
    ),
    Operation("GET", _MODEL + "/events", events.of_model, "Watch a model.", _EVENTS, reply=_EVENT_STREAM),
)
"""All operations."""
