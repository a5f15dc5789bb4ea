"""Models over HTTP."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry.records.documents import model_as_json
from cogment_model_registry.web.state import registry_of


async def find(request: Request) -> Response:
    """Answer with the models that a filter accepts."""
    models = await registry_of(request).find_models(request.query_params.get("filter", ""))
    return JSONResponse({"models": [model_as_json(model) for model in models]})
