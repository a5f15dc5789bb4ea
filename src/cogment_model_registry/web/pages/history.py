"""The changes of a model, from the audit log of the server."""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.web.pages.aliases import read_history
from cogment_model_registry.web.pages.rights import read_rights
from cogment_model_registry.web.state import registry_of, state_of

_VALUE_MAX_CHARACTERS = 120
_NAMES = {"version_number": "version", "data_size_bytes": "bytes", "user_data": "user data"}
_LEFT_OUT = frozenset({"created", "data_hash", "revision"})
"""Fields that the page of a version has, and that would only lengthen this list."""


async def show(request: Request) -> Response:
    """Answer with the page."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    rights, _ = await asyncio.gather(read_rights(request), registry.describe_model(model_id))
    history = await read_history(registry, rights, model_id)
    rows = [
        (entry, state_text(entry.before, entry.after), state_text(entry.after, entry.before))
        for entry in history.entries
    ]
    values: dict[str, Any] = {"rows": rows, "history": history, "now_ns": time.time_ns()}
    return state_of(request).templates.page(request, "history.html", rights=rights, model_id=model_id, **values)


def state_text(state: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Return the entries of one state that differ from the other."""
    if state is None:
        return ""
    differing = {
        name: value
        for name, value in state.items()
        if name not in _LEFT_OUT and (other is None or other.get(name, ...) != value) and value not in ({}, [], "")
    }
    texts = (
        f"{_NAMES.get(name, name)} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in differing.items()
    )
    return ", ".join(_cut(text) for text in texts)


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_MAX_CHARACTERS else f"{text[:_VALUE_MAX_CHARACTERS]}…"
