"""The pages, rendered on the server. They work without JavaScript; one small script keeps them current."""

import time
from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from cogment_model_registry.web.pages import (
    aliases,
    compare,
    formats,
    history,
    live,
    model,
    models,
    retention,
    version,
    version_changes,
)
from cogment_model_registry.web.pages.changes import DIGEST_FIELD, Doer, Planner, doing, showing
from cogment_model_registry.web.pages.tensors import SHOWN_MAX
from cogment_model_registry.web.state import State

_ENTRIES_MAX = 100
"""How many tags, metrics, aliases or entries of ``user_data`` a page shows; each may be thousands."""


def install(state: State) -> live.Feeds:
    """Add the filters to the templates, and return the feeds that keep pages current."""
    environment = state.templates.environment
    environment.filters.update(formats.FILTERS)
    environment.globals.update(
        path_of=formats.path_of,
        with_query=formats.with_query,
        ago_text=formats.ago_text,
        time_ns=time.time_ns,
        tensors_max=SHOWN_MAX,
        decisions_max=retention.SHOWN_MAX,
        digest_field=DIGEST_FIELD,
        entries_max=_ENTRIES_MAX,
    )
    return live.Feeds(state)


def routes() -> Sequence[BaseRoute]:
    """Return the routes."""
    version_path = "/models/{model_id}/versions/{version}"
    alias_path = "/models/{model_id}/aliases/{alias}"
    return [
        Route("/", models.show),
        Route("/live", live.answer),
        Route("/models", models.redirect),
        Route("/models/{model_id}", model.show),
        Route("/models/{model_id}/versions", model.redirect, methods=["GET"]),
        Route("/models/{model_id}/live", live.answer),
        Route("/models/{model_id}/curves", model.curves),
        Route("/models/{model_id}/compare", compare.show),
        Route("/models/{model_id}/history", history.show),
        Route("/models/{model_id}/retention", retention.show),
        Route("/models/{model_id}/aliases", aliases.create, methods=["GET"]),
        *_change("/models/{model_id}/retention/rules", retention.plan_rules, retention.save_rules),
        *_change("/models/{model_id}/retention/apply", retention.plan_application, retention.apply),
        Route(alias_path, aliases.show),
        *_change(f"{alias_path}/move", aliases.plan_move, aliases.move),
        *_change(f"{alias_path}/remove", aliases.plan_removal, aliases.remove),
        Route(version_path, version.show),
        *_change(f"{version_path}/promote", version_changes.plan_promotion, version_changes.promote),
        *_change(f"{version_path}/delete", version_changes.plan_deletion, version_changes.delete),
        *_change(f"{version_path}/notes", version_changes.plan_notes, version_changes.save_notes),
    ]


def _change(path: str, plan: Planner, do: Doer) -> Sequence[BaseRoute]:
    """Return the routes of a change: its page, and what its form is sent to."""
    return [Route(path, showing(plan), methods=["GET"]), Route(path, doing(plan, do), methods=["POST"])]
