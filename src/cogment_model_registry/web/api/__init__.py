"""/api/v1: the operations of the command line as JSON; and the short addresses of the bytes of versions."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Route

from cogment_model_registry.web import downloads, uploads
from cogment_model_registry.web.api import openapi
from cogment_model_registry.web.api.operations import OPERATIONS, PREFIX


def routes() -> Sequence[BaseRoute]:
    """Return the routes."""
    return [
        *(Route(PREFIX + each.path, each.handler, methods=[each.method]) for each in OPERATIONS),
        Route(f"{PREFIX}/openapi.json", openapi.show),
        Route("/models/{model}/versions/{version}/data", downloads.by_version),
        Route("/models/{model}/aliases/{alias}/data", downloads.by_alias),
        Route("/models/{model}/versions", uploads.create, methods=["PUT"]),
    ]
