"""The page of an alias: where it points, where it pointed before, and changes of it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.lifecycle import Alias, ModelSummary, Version
from cogment_model_registry.web.pages import queries
from cogment_model_registry.web.pages.changes import Outcome, Plan, named_version, whole_number
from cogment_model_registry.web.pages.consumers import CONSUMERS_MAX
from cogment_model_registry.web.pages.formats import path_of, sentence, with_query
from cogment_model_registry.web.pages.history import read_history
from cogment_model_registry.web.pages.rights import Rights, read_rights
from cogment_model_registry.web.state import registry_of, state_of

_CANDIDATES_MAX = 12
"""How many versions that had an alias, and how many other archived ones, its page offers to move it to."""


async def show(request: Request) -> Response:
    """Answer with the page of an alias."""
    model_id, name = request.path_params["model_id"], request.path_params["alias"]
    registry = registry_of(request)
    rights, model = await asyncio.gather(read_rights(request), registry.describe_model(model_id))
    alias = alias_of(model, name)
    older = f" AND version_number < {alias.version_number}" if alias else ""
    history, archived = await asyncio.gather(
        read_history(registry, rights, model_id, name),
        registry.find_versions(
            model_id, f"archived = true{older}", order_by="version_number desc", limit=_CANDIDATES_MAX
        ),
    )
    earlier = earlier_targets(alias, history.entries)
    refs = [(model_id, number) for number in [*earlier][:_CANDIDATES_MAX]]
    had_it = [
        version
        for version in await queries.existing_versions(registry, refs)
        if version.archived and version.created_ns <= earlier[version.number]
    ]
    return state_of(request).templates.page(
        request,
        "alias.html",
        rights=rights,
        model=model,
        alias_name=name,
        alias=alias,
        history=history,
        candidates=candidates(alias, had_it, archived),
        now_ns=time.time_ns(),
    )


def alias_of(model: ModelSummary, name: str) -> Alias | None:
    """Return an alias of a model; None if it does not exist."""
    return next((alias for alias in model.aliases if alias.name == name), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that an alias may be pointed to instead.

    Attributes:
        version: The version.
        was_there: Whether the alias pointed to it before, according to the audit log.
    """

    version: Version
    was_there: bool


def earlier_targets(alias: Alias | None, entries: Sequence[HistoryEntry]) -> dict[int, int]:
    """Return the numbers of the other versions that an alias pointed to, the last one first, and until when.

    A version that was created after that is another one, of a model that was created again.
    """
    targets: dict[int, int] = {}
    for entry in entries:
        number = _target(entry.before)
        if number and number != (alias.version_number if alias else 0):
            targets.setdefault(number, entry.time_ns)
    return targets


def candidates(alias: Alias | None, had_it: Sequence[Version], archived: Sequence[Version]) -> list[Candidate]:
    """Return the versions to move an alias to: those that had it, and then other older ones.

    Args:
        alias: The alias; None if it does not exist.
        had_it: Those that had it, the last one first.
        archived: Archived versions, older ones than that to which it points.
    """
    known = {alias.version_number if alias else 0, *(version.number for version in had_it)}
    others = [version for version in archived if version.number not in known]
    return [
        *(Candidate(each, was_there=True) for each in had_it),
        *(Candidate(each, was_there=False) for each in others),
    ]


def _target(state: Mapping[str, object] | None) -> int:
    """Return where an alias pointed according to an entry of the audit log; 0 if it did not exist."""
    number = (state or {}).get("version_number", 0)
    return number if isinstance(number, int) else 0


# Moving one.


async def plan_move(request: Request, rights: Rights, fields: Mapping[str, str]) -> Plan:
    """Return what moving an alias will do."""
    model_id, name = request.path_params["model_id"], request.path_params["alias"]
    registry = registry_of(request)
    model = await registry.describe_model(model_id)
    alias = alias_of(model, name)
    revision = str(alias.revision if alias else 0)
    back = path_of("models", model_id, "aliases", name)
    refusal = "" if rights.may("alias", model_id, name) else f"You need the scope alias for {name}."
    text, problems = fields.get("version", "").strip(), dict[str, str]()
    try:
        version = await named_version(registry, model_id, text, "the version")
    except InvalidError as error:
        problems = {"version": sentence(error.message)} if "version" in fields else {}
        return Plan(
            f"Point {name} to a version",
            [_now(name, alias)],
            "Continue",
            back if alias else path_of("models", model_id),
            inputs="version",
            values={"version": text},
            is_question=True,
            problems=problems,
            refusal=refusal,
        )
    running = [each for each in await registry.consumers(model_id, limit=CONSUMERS_MAX) if each.is_live]
    effects = [_move(name, alias, version.number)]
    if alias is None or alias.version_number != version.number:
        effects.append("Clients that use this alias get that version from now on.")
    if not version.archived:
        effects.append(f"Version {version.number} is transient: it is promoted first.")
    already = sum(each.version_number == version.number for each in running)
    return Plan(
        f"Move {name} to version {version.number}" if alias else f"Create the alias {name}",
        effects,
        f"Move {name} to {version.number}" if alias else f"Create {name}",
        back if alias else path_of("models", model_id),
        {"revision": revision, "version": str(version.number)},
        outlook=[f"{already} of {len(running)} consumers of the model run that version already."] if already else (),
        refusal=refusal,
        values={"from": alias.version_number if alias else None, "to": version.number},
    )


def _now(name: str, alias: Alias | None) -> str:
    return f"{name} points to version {alias.version_number} now." if alias else f"{name} does not exist yet."


def _move(name: str, alias: Alias | None, number: int) -> str:
    if alias is None:
        return f"{name} does not exist yet; it will point to version {number}."
    if alias.version_number == number:
        return f"{name} points to version {number} already; its revision will change."
    return f"{name} points to version {alias.version_number} now; it will point to version {number}."


async def move(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Move an alias, if nobody has changed it since the page was shown."""
    model_id, name = request.path_params["model_id"], request.path_params["alias"]
    number = whole_number(fields.get("version", ""), "the version")
    revision = whole_number(fields.get("revision", ""), "the revision", least=0)
    registry = registry_of(request)
    before = alias_of(await registry.describe_model(model_id), name)
    alias = await registry.set_alias(model_id, name, number, expected=revision)
    page = path_of("models", model_id, "aliases", name)
    links = {name: page, "Back to the model": path_of("models", model_id)}
    details = ["The change is durable, and all watchers of the model are notified."]
    if before and before.version_number != number:
        details.insert(0, f"It pointed to version {before.version_number} before.")
        undo = with_query(path_of("models", model_id, "aliases", name, "move"), version=before.version_number)
        links = {f"Undo: move it back to {before.version_number}": undo, **links}
    return Outcome(f"{name} points to version {alias.version_number}", details, links)


# Removing one.


async def plan_removal(request: Request, rights: Rights, _fields: Mapping[str, str]) -> Plan:
    """Return what removing an alias will do."""
    model_id, name = request.path_params["model_id"], request.path_params["alias"]
    alias = alias_of(await registry_of(request).describe_model(model_id), name)
    refusal = "" if rights.may("alias", model_id, name) else f"You need the scope alias for {name}."
    return Plan(
        f"Remove the alias {name}",
        [
            f"{name} points to version {alias.version_number} now; the alias is removed, and the version is kept."
            if alias
            else f"{name} does not exist.",
            "Clients that use this alias get an error until it exists again.",
        ],
        f"Remove {name}",
        path_of("models", model_id, "aliases", name) if alias else path_of("models", model_id),
        {"revision": str(alias.revision if alias else 0)},
        is_dangerous=True,
        refusal=refusal if alias else "There is nothing to remove.",
    )


async def remove(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Remove an alias, if nobody has changed it since the page was shown."""
    model_id, name = request.path_params["model_id"], request.path_params["alias"]
    revision = whole_number(fields.get("revision", ""), "the revision")
    registry = registry_of(request)
    before = alias_of(await registry.describe_model(model_id), name)
    await registry.remove_alias(model_id, name, expected=revision)
    links = {"Back to the model": path_of("models", model_id)}
    if before:
        undo = with_query(path_of("models", model_id, "aliases", name, "move"), version=before.version_number)
        links = {f"Undo: point it to {before.version_number} again": undo, **links}
    return Outcome(f"The alias {name} is removed", (), links)


async def create(request: Request) -> Response:
    """Redirect to the page that moves the alias which a form names."""
    model_id = request.path_params["model_id"]
    name, version = (request.query_params.get(field, "").strip() for field in ("name", "version"))
    if not name or "/" in name:
        return RedirectResponse(path_of("models", model_id), HTTPStatus.SEE_OTHER)
    address = with_query(path_of("models", model_id, "aliases", name, "move"), version=version)
    return RedirectResponse(address, HTTPStatus.SEE_OTHER)
