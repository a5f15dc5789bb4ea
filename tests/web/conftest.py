"""A server with HTTP for all tests that leave it as they found it, and a client of the registry."""

from collections.abc import Iterator

import pytest

from cogment_model_registry import ModelRegistry
from tests.web.http import Http, HttpServer, http_server


@pytest.fixture(scope="session")
def shared_http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A server for all tests that do not change how it runs."""
    with http_server(tmp_path_factory.mktemp("http") / "archive") as running:
        yield running


@pytest.fixture
def registry(shared_http: HttpServer) -> Iterator[ModelRegistry]:
    """A client of `shared_http`, which has no models before and after a test."""
    with ModelRegistry(shared_http.endpoint) as client:
        yield client
        for model in client.list_models():
            client.delete_model(model.model_id)


@pytest.fixture
def http(shared_http: HttpServer, registry: ModelRegistry) -> Http:
    """A client of `shared_http` over HTTP, without models as `registry`."""
    assert not registry.list_models()
    return shared_http.http
