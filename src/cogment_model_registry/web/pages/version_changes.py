"""Changes of a version: promotion, deletion, and its tags and metrics."""

from collections.abc import Mapping

from starlette.requests import Request

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.web.pages.changes import FieldError, Outcome, Plan, finite_number, whole_number
from cogment_model_registry.web.pages.consumers import CONSUMERS_MAX
from cogment_model_registry.web.pages.formats import path_of
from cogment_model_registry.web.pages.queries import delete_version, read_objections
from cogment_model_registry.web.pages.rights import Rights
from cogment_model_registry.web.pages.version import number_of
from cogment_model_registry.web.state import registry_of

_NEW_FIELDS = 3
"""How many tags and how many metrics can be added at a time."""


async def _version(request: Request) -> Version:
    number = number_of(request.path_params["version"])
    return await registry_of(request).describe_version(request.path_params["model_id"], number)


def _page(version: Version) -> str:
    return path_of("models", version.model_id, "versions", version.number)


# Promotion.


async def plan_promotion(request: Request, rights: Rights, _fields: Mapping[str, str]) -> Plan:
    """Return what a promotion will do."""
    version = await _version(request)
    refusal = "" if rights.may("store", version.model_id) else "You need the scope store."
    if version.archived:
        refusal = f"Version {version.number} is archived already."
    size = size_text(version.data_size_bytes)
    return Plan(
        f"Promote version {version.number}",
        [
            f"It becomes archived: its {size} are copied from the memory of the server to its archive.",
            "Then it is never evicted; its number, hash, time, tags and metrics stay the same.",
        ],
        f"Promote version {version.number}",
        _page(version),
        refusal=refusal,
    )


async def promote(request: Request, _fields: Mapping[str, str]) -> Outcome:
    """Promote a version."""
    model_id, number = request.path_params["model_id"], number_of(request.path_params["version"])
    version = await registry_of(request).promote(model_id, number)
    links = {f"Version {number}": _page(version), "Back to the model": path_of("models", model_id)}
    return Outcome(f"Version {number} is archived", ["It is durable, and is never evicted."], links)


# Deletion.


async def plan_deletion(request: Request, rights: Rights, fields: Mapping[str, str]) -> Plan:
    """Return what a deletion will do, and what else would be lost."""
    registry, version = registry_of(request), await _version(request)
    model_id, number = version.model_id, version.number
    objections = await read_objections(registry, model_id, number)
    running = await registry.consumers(model_id, f"version_number = {number}", limit=CONSUMERS_MAX)
    runners = sum(each.is_live for each in running)
    warnings = []
    if objections.aliases:
        is_one = len(objections.aliases) == 1
        named = ", ".join(objections.aliases)
        warnings.append(
            f"The alias {named} points to it, and would be removed."
            if is_one
            else f"The aliases {named} point to it, and would be removed."
        )
    if objections.held:
        warnings.append(f"It is {objections.held}, and would be deleted anyway.")
    if not version.archived:
        warnings.append("It is only in memory: the archive has no copy of it.")
    effects = [f"Version {number}, with {size_text(version.data_size_bytes)}, is deleted permanently."]
    effects.append("Its number is never reused. Downloads that have begun continue to their end.")
    refusal = "" if rights.may("delete", model_id) else "You need the scope delete."
    is_forced = bool(objections.aliases or objections.held)
    if not refusal and is_forced and not rights.may_force(model_id):
        refusal = "You also need the scope alias for every alias of the model."
    noun = "1 consumer runs it now; it keeps" if runners == 1 else f"{runners} consumers run it now; they keep"
    return Plan(
        f"Delete version {number}",
        effects,
        f"Delete version {number}",
        _page(version),
        {"state": objections.state},
        "force" if is_forced else "",
        {"is_forced": fields.get("force") == "yes"},
        warnings=warnings,
        outlook=[f"{noun} the copy in memory."] if runners else (),
        is_dangerous=True,
        refusal=refusal,
    )


async def delete(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Delete a version, if nothing stands against it but what the page named."""
    model_id, number = request.path_params["model_id"], number_of(request.path_params["version"])
    is_forced = fields.get("force") == "yes"
    await delete_version(registry_of(request), model_id, number, fields.get("state", ""), force=is_forced)
    return Outcome(
        f"Version {number} is deleted",
        ["Its number is never reused."],
        {"Back to the model": path_of("models", model_id)},
    )


# Tags and metrics.


async def plan_notes(request: Request, rights: Rights, fields: Mapping[str, str]) -> Plan:
    """Return the form with the tags and metrics of a version."""
    version = await _version(request)
    may = rights.may_change(version.model_id)
    where = (
        "They are stored durably when they are saved."
        if version.archived
        else "They are in memory, like the version, and are lost with it."
    )
    return Plan(
        f"Tags and metrics of version {version.number}",
        [f"{where} Clear a value to remove it. Metrics are finite numbers."],
        "Save",
        _page(version),
        {"revision": str(version.revision)},
        "notes",
        {"version": version, "fields": fields, "new": range(_NEW_FIELDS)},
        refusal="" if may else "You need the scope publish or store.",
    )


async def save_notes(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Save tags and metrics, if nobody has changed them since the page was shown."""
    model_id, number = request.path_params["model_id"], number_of(request.path_params["version"])
    tags, metrics = changed_notes(fields)
    revision = whole_number(fields.get("revision", ""), "the revision")
    version = await registry_of(request).update_version(model_id, number, tags=tags, metrics=metrics, expected=revision)
    return Outcome(
        f"The tags and metrics of version {number} are saved",
        [f"Revision {version.revision}."],
        {f"Version {number}": _page(version), "Back to the model": path_of("models", model_id)},
    )


def changed_notes(fields: Mapping[str, str]) -> tuple[dict[str, str | None], dict[str, float | None]]:
    """Return the tags and metrics of a form; None for those that are removed.

    Args:
        fields: ``tag:NAME`` and ``metric:NAME`` have the values of those that exist; ``tag-name-N`` and ``tag-value-N``
            a new tag, and ``metric-name-N`` and ``metric-value-N`` a new metric.

    Raises:
        FieldError: A metric is no finite number, or a value has no name.
    """
    tags: dict[str, str | None] = {}
    metrics: dict[str, float | None] = {}
    named = {name.partition(":")[::2]: value for name, value in fields.items() if name.startswith(("tag:", "metric:"))}
    fields_of = {key: ":".join(key) for key in named}
    for position in range(_NEW_FIELDS):
        for kind in ("tag", "metric"):
            name, value = (fields.get(f"{kind}-{part}-{position}", "").strip() for part in ("name", "value"))
            if value and not name:
                raise FieldError(f"{kind}-name-{position}", f"the new {kind} {value!r} needs a name")
            if name:
                named[kind, name] = value
                fields_of[kind, name] = f"{kind}-value-{position}"
    for (kind, name), value in named.items():
        if kind == "tag":
            tags[name] = value or None
        else:
            metrics[name] = _metric(fields_of[kind, name], name, value) if value.strip() else None
    return tags, metrics


def _metric(field: str, name: str, text: str) -> float:
    try:
        return finite_number(text, f"the metric {name!r}")
    except InvalidError as error:
        raise FieldError(field, error.message) from None
