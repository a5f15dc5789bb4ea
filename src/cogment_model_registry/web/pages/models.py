"""The first page: the consumers that are furthest behind, and the models."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import ModelSummary
from cogment_model_registry.web.pages import consumers, queries
from cogment_model_registry.web.pages.formats import with_query
from cogment_model_registry.web.pages.queries import Pace
from cogment_model_registry.web.pages.rights import read_rights
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.state import registry_of, state_of

LAGGING_ROWS = 8
"""How many consumers the first page shows that are behind."""

_PAGE_MODELS = 50
_SCANNED_MAX = 20_000
"""How many models a search looks at."""

_FILTER_SIGNS = frozenset('=<>:"')
"""Characters that show that a text is a filter and not a part of an id."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model, as a row shows it.

    Attributes:
        model: The model.
        pace: How often it gets versions.
        consumers: How many live consumers it has.
        greatest_lag: The most versions that one of them is behind.
    """

    model: ModelSummary
    pace: Pace
    consumers: int
    greatest_lag: int


@dataclass(frozen=True, slots=True)
class Found:
    """The models that a search found.

    Attributes:
        models: The models.
        next_token: Names the next page; empty at the end.
        problem: What is wrong with the search; empty for nothing.
    """

    models: Sequence[ModelSummary]
    next_token: str = ""
    problem: str = ""


async def search(registry: Registry, text: str, token: str) -> Found:
    """Return a page of the models that a text finds: a filter, or a part of their ids.

    Args:
        registry: The registry.
        text: The text; empty for all models.
        token: Names the page; empty for the first one.
    """
    if not text or _FILTER_SIGNS & {*text}:
        try:
            return Found(*await queries.find_models(registry, text, token, _PAGE_MODELS))
        except InvalidError as error:
            return Found((), problem=error.message)
    wanted, found, scanned = text.casefold(), list[ModelSummary](), 0
    while scanned < _SCANNED_MAX and len(found) < _PAGE_MODELS:
        models, token = await queries.find_models(registry, "", token, 1000)
        found += [model for model in models if wanted in model.model_id.casefold()]
        scanned += len(models)
        if not token:
            break
    return Found(found, token)


async def show(request: Request) -> Response:
    """Answer with the page."""
    registry, now_ns = registry_of(request), time.time_ns()
    text, token = request.query_params.get("q", "").strip(), request.query_params.get("page", "")
    rights, found, every = await asyncio.gather(
        read_rights(request), search(registry, text, token), consumers.read_consumers(registry, None)
    )
    paces = await queries.paces(registry, found.models, now_ns)
    return state_of(request).templates.page(
        request,
        "models.html",
        rights=rights,
        overview=consumers.overview_of(every),
        lagging_rows=LAGGING_ROWS,
        rows=rows_of(found.models, paces, consumers.by_model(every)),
        found=found,
        text=text,
        is_first=not token,
        live=with_query("/live", q=text, page=token),
        now_ns=now_ns,
    )


def rows_of(
    models: Sequence[ModelSummary], paces: dict[str, Pace], counts: dict[str, tuple[int, int]]
) -> list[ModelRow]:
    """Return the rows of models."""
    return [ModelRow(model, paces.get(model.model_id, Pace()), *counts.get(model.model_id, (0, 0))) for model in models]


async def redirect(_request: Request) -> Response:
    """Redirect from the address above those of the models."""
    return RedirectResponse("/", HTTPStatus.SEE_OTHER)
