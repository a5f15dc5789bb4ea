"""/api/v1: what the command line of the client can do, in JSON."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from cogment_model_registry.web.api import models


def routes() -> Sequence[BaseRoute]:
    """Return the routes."""
    return [Route("/api/v1/models", models.find)]
