"""The page of a model: its consumers, versions, aliases, metrics and rules."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.web.pages import consumers, queries
from cogment_model_registry.web.pages.formats import count_text, path_of
from cogment_model_registry.web.pages.queries import VersionPage
from cogment_model_registry.web.pages.rights import read_rights
from cogment_model_registry.web.pages.unknown_names import unknown_names
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.state import registry_of, state_of

CONSUMER_ROWS = 80
"""How many consumers the page of a model shows, those that are furthest behind first."""

VERSION_ROWS = 50
"""How many versions a page of them has."""

NEWEST_FIRST = "version_number desc"
_METRICS_MAX = 24
"""Of how many metrics a page has curves and links."""

_PACE_VERSIONS = 10
"""Over how many of the newest versions the rate of publishing is calculated."""

_LEFT_OUT_MAX = 40
"""How many names of other metrics a page lists."""

_CURVE_VERSIONS = 2000
"""How many of the newest versions the curves show."""


async def show(request: Request) -> Response:
    """Answer with the page."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    accepted, order, token = (request.query_params.get(name, "").strip() for name in ("filter", "order", "page"))
    rights, model, found, reported = await asyncio.gather(
        read_rights(request),
        registry.describe_model(model_id),
        _versions(registry, model_id, accepted, order or NEWEST_FIRST, token),
        consumers.read_consumers(registry, model_id),
    )
    page, problem = found
    is_newest = not (accepted or token) and order in ("", NEWEST_FIRST)
    newest = await _newest(registry, model_id, page.versions, is_newest=is_newest)
    has_none = bool(accepted) and not (page.versions or problem or token)
    names = metric_names(page.versions)
    return state_of(request).templates.page(
        request,
        "model.html",
        HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK,
        rights=rights,
        model=model,
        pace=queries.pace_of(newest[:_PACE_VERSIONS]),
        overview=consumers.overview_of(reported),
        consumer_rows=CONSUMER_ROWS,
        page=page,
        metrics=names[:_METRICS_MAX],
        left_out=listed(names[_METRICS_MAX:]),
        accepted=accepted,
        unknown=await unknown_names(registry, model_id, accepted) if has_none else (),
        newest_metrics=listed(metric_names(newest)) if has_none else "",
        order=order or NEWEST_FIRST,
        problem=problem,
        is_newest=is_newest,
        is_first=not token,
        now_ns=time.time_ns(),
    )


async def _versions(
    registry: Registry, model_id: str, accepted: str, order: str, token: str
) -> tuple[VersionPage, str]:
    """Return a page of versions, and what is wrong with the filter, the order or the page; empty for nothing."""
    try:
        page = await queries.find_versions(
            registry, model_id, accepted=accepted, order_by=order, token=token, size=VERSION_ROWS
        )
    except InvalidError as error:
        return VersionPage((), ""), error.message
    return page, ""


async def _newest(
    registry: Registry, model_id: str, versions: Sequence[Version], *, is_newest: bool
) -> Sequence[Version]:
    """Return some of the newest versions: those of the page, if it shows the newest ones."""
    if is_newest:
        return versions
    return (await queries.find_versions(registry, model_id, order_by=NEWEST_FIRST, size=_PACE_VERSIONS)).versions


def metric_names(versions: Sequence[Version]) -> list[str]:
    """Return the names of the metrics of some versions, the most frequent first."""
    counts = Counter(name for version in versions for name in version.metrics)
    return sorted(counts, key=lambda name: (-counts[name], name))


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, which names a bounded number of them."""
    others = len(names) - _LEFT_OUT_MAX
    return ", ".join(names[:_LEFT_OUT_MAX]) + (f" and {count_text(others)} others" if others > 0 else "")


async def curves(request: Request) -> Response:
    """Answer with the metrics of the newest versions, oldest first, by name; null where a version has none.

    ``left_out`` lists those that are left out, since there are too many.
    """
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    versions = await registry.find_versions(model_id, order_by=NEWEST_FIRST, limit=_CURVE_VERSIONS)
    versions.reverse()
    all_names = metric_names(versions)
    names = all_names[:_METRICS_MAX]
    noted = [version for version in versions if any(name in version.metrics for name in names)]
    return JSONResponse(
        {
            "versions": [version.number for version in noted],
            "metrics": {name: [version.metrics.get(name) for version in noted] for name in names},
            "left_out": listed(all_names[_METRICS_MAX:]),
        }
    )


async def redirect(request: Request) -> Response:
    """Redirect from the address above those of the versions to their list."""
    return RedirectResponse(f"{path_of('models', request.path_params['model_id'])}#versions", HTTPStatus.SEE_OTHER)
