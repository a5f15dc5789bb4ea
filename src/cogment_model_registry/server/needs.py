"""What each call needs: the one table by which access is decided.

The request is the message; of an upload it is the header, as a record.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from cogment_model_registry.records.access import ANY, Action, Need

Needs: TypeAlias = tuple[Need, ...]

READ: tuple[Action, ...] = ("read",)
CREATE: tuple[Action, ...] = ("publish", "store")
"""For models, tags and metrics: whoever creates versions of one kind or the other may set them."""

OPEN = frozenset({"Version", "Status"})
"""Calls that everybody may make: a Directory makes them, without a token, to check whether a service works and how much
it has to do. What `Status` says of models is for those who may read all of them."""

LISTING = Need(READ, None)
"""For what is about no model in particular: the reply has what the caller may read."""


def _of_model(*actions: Action) -> Callable[[Any], Needs]:
    """Return the needs of a call whose request has the id of a model."""
    return lambda request: (Need(actions, request.model_id),)


def _of_version(*actions: Action) -> Callable[[Any], Needs]:
    """Return the needs of a call whose request names a version."""
    return lambda request: (Need(actions, request.version.model_id),)


def _listing(model_ids: Iterable[str]) -> Needs:
    """Return the needs of a listing of these models; of those that may be read if none are named."""
    return tuple(Need(READ, model_id) for model_id in dict.fromkeys(model_ids)) or (LISTING,)


def _aliases(model_id: str, names: Iterable[str]) -> Needs:
    return tuple(Need(("alias",), model_id, name) for name in names)


def _creation(header: Any) -> Needs:
    return (Need(("store",) if header.archived else ("publish",), header.model_id),)


def _upload_version(header: Any) -> Needs:
    """With an alias, the version is archived."""
    is_archived = header.archived or header.aliases
    creation = Need(("store",) if is_archived else ("publish",), header.model_id)
    return (creation, *_aliases(header.model_id, header.aliases))


def _list_versions(request: Any) -> Needs:
    named = [ref.model_id or request.model_id for ref in request.versions]
    return _listing([*named, request.model_id] if request.model_id else named)


def _update_model(request: Any) -> Needs:
    """Rules, shares and signers decide what is deleted, evicted and refused, so they need more than tags."""
    is_rule = any(request.HasField(name) for name in ("retention", "transient_share", "signers"))
    return (Need(("admin",) if is_rule else CREATE, request.model_id),)


def _apply_retention(request: Any) -> Needs:
    if request.validate_only:
        return (Need(READ, request.model_id or ANY),)
    return (Need(("delete",), request.model_id or ANY),)


def _delete_version(request: Any) -> Needs:
    if request.HasField("tried"):
        return (Need(READ, request.tried.model_id),)
    model_id = request.version.model_id
    return (Need(("delete",), model_id), *(_aliases(model_id, [ANY]) if request.force else ()))


def _set_aliases(request: Any) -> Needs:
    # An empty request changes nothing, but returns the existing aliases.
    return _aliases(request.model_id, (change.alias for change in request.changes)) or (Need(READ, request.model_id),)


_CALLS: Mapping[str, Callable[[Any], Needs]] = {
    "CreateOrUpdateModel": lambda request: (Need(CREATE, request.model_info.model_id),),
    "DeleteModel": lambda request: (Need(("delete",), request.model_id), *_aliases(request.model_id, [ANY])),
    "RetrieveModels": lambda request: _listing(request.model_ids),
    "CreateVersion": _creation,
    "RetrieveVersionInfos": _of_model("read"),
    "RetrieveVersionData": _of_model("read"),
    "VersionUpdate": _of_model("read"),
    "Version": lambda _: (),  # as `OPEN` says
    "Status": lambda _: (),
    "UploadVersion": _upload_version,
    "ReadVersion": _of_version("read"),
    "ListVersions": _list_versions,
    "UpdateVersion": _of_version(*CREATE),
    "PromoteVersion": lambda request: (
        Need(("store",), request.version.model_id),
        *_aliases(request.version.model_id, request.aliases),
    ),
    "DeleteVersion": _delete_version,
    "SetAliases": _set_aliases,
    "ListModels": lambda request: _listing(request.model_ids),
    "UpdateModel": _update_model,
    "ApplyRetention": _apply_retention,
    "Watch": lambda request: _listing(request.model_ids),
    "ReportConsumer": lambda request: (Need(READ, request.consumer.model_id),),
    "ListConsumers": lambda request: _listing([request.model_id] if request.model_id else []),
    "ListChanges": _of_model("admin"),
    "LocalReadMetrics": lambda _: (Need(READ, ANY),),  # which show the ids of models
    "LocalDescribeCaller": lambda _: (),  # whoever calls knows it
}

NEEDS = {**_CALLS, "LocalReadVersion": _CALLS["ReadVersion"], "LocalUploadVersion": _CALLS["UploadVersion"]}
"""By the name of the call, what it needs: all of it."""

CHANGES = frozenset(
    {
        "CreateOrUpdateModel",
        "DeleteModel",
        "CreateVersion",
        "UploadVersion",
        "UpdateVersion",
        "PromoteVersion",
        "DeleteVersion",
        "SetAliases",
        "UpdateModel",
        "ApplyRetention",
        "LocalUploadVersion",
    }
)
"""The calls that change models and versions. What consumers report is no change: it is gone after a restart."""


def is_change(method: str, request: Any) -> bool:
    """Return whether a call changes something."""
    return method in CHANGES and not (method == "ApplyRetention" and request.validate_only)
