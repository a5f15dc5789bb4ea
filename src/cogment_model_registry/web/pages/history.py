"""The changes of a model or of an alias, from the audit log of the server."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.errors import ModelRegistryError, PreconditionError
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.web.pages.formats import metric_text, sentence
from cogment_model_registry.web.pages.rights import Rights, read_rights
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.state import registry_of, state_of

_ENTRIES_MAX = 200
"""How many changes a page shows."""

_SEARCH_SECONDS = 2.0
"""How long a page searches: an alias may have few changes among the millions of new versions of a long training."""

_VALUE_MAX_CHARACTERS = 120
_NAMES = {"version_number": "version", "data_size_bytes": "size", "user_data": "user data"}
_LEFT_OUT = frozenset({"created", "data_hash", "revision"})
"""Fields that the page of a version has, and that would only lengthen this list."""


@dataclass(frozen=True, slots=True)
class History:
    """Changes that the audit log has.

    Attributes:
        entries: Changes, newest first.
        next_token: Names the next page, of older ones; empty at the end.
        problem: Why there are none to read; empty otherwise.
        is_kept: Whether the server keeps an audit log, as far as the caller may know.
    """

    entries: Sequence[HistoryEntry] = ()
    next_token: str = ""
    problem: str = ""
    is_kept: bool = True


async def read_history(registry: Registry, rights: Rights, model_id: str, alias: str = "", token: str = "") -> History:
    """Return a page of the changes of a model or an alias, if the server keeps them and the caller may read them.

    Args:
        registry: The registry.
        rights: The rights of the caller.
        model_id: The model.
        alias: The alias; empty for all changes of the model.
        token: Names the page; empty for the newest changes.
    """
    if not rights.may("admin", model_id):
        return History(problem="You need the scope admin to read the history.")
    entries: list[HistoryEntry] = []
    until = time.monotonic() + _SEARCH_SECONDS
    try:
        while True:
            some, token = await registry.pages.changes_page(model_id, alias, 0, _ENTRIES_MAX - len(entries), token)
            entries += some
            if not token or len(entries) >= _ENTRIES_MAX or time.monotonic() >= until:
                return History(entries, token)
    except PreconditionError:
        return History(problem="This server keeps no history, because its setting audit_log is not set.", is_kept=False)
    except ModelRegistryError as error:
        return History(problem=f"The history is not available. {sentence(error.message)}")


async def show(request: Request) -> Response:
    """Answer with the page."""
    model_id = request.path_params["model_id"]
    alias, token = (request.query_params.get(name, "").strip() for name in ("alias", "page"))
    registry = registry_of(request)
    rights, model = await asyncio.gather(read_rights(request), registry.describe_model(model_id))
    history = await read_history(registry, rights, model_id, alias, token)
    rows = [
        (entry, state_text(entry.before, entry.after), state_text(entry.after, entry.before))
        for entry in history.entries
    ]
    values: dict[str, Any] = {"rows": rows, "history": history, "now_ns": time.time_ns()}
    values |= {"alias_name": alias, "is_first": not token}
    return state_of(request).templates.page(request, "history.html", rights=rights, model=model, **values)


def state_text(state: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Return the entries of one state that differ from the other, in words."""
    texts = []
    for name, value in _differing(state or {}, other or {}).items():
        if name in _LEFT_OUT:
            continue
        theirs = (other or {}).get(name)
        if isinstance(value, Mapping) and isinstance(theirs, Mapping):
            value = _differing(value, theirs)  # noqa: PLW2901
        text = _value_text(name, value)
        if text:
            texts.append(_cut(f"{_NAMES.get(name, name)} {text}"))
    return "; ".join(texts)


def _differing(state: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in state.items() if other.get(name, ...) != value}


def _value_text(name: str, value: object) -> str:
    """Return a value of the audit log in words; empty for one that is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_value_text('', each)}" for key, each in sorted(value.items()))
    if isinstance(value, list):
        return "; ".join(_value_text("", each) for each in value)
    if name == "data_size_bytes" and isinstance(value, int):
        return size_text(value)
    if isinstance(value, int | float):
        return metric_text(value) if math.isfinite(value) else str(value)
    return "" if value is None else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_MAX_CHARACTERS else f"{text[:_VALUE_MAX_CHARACTERS]}…"
