"""A blocking client for the tests of the frameworks; its calls run on a thread, as the server has this one."""

from collections.abc import Iterator

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.server import Server


@pytest.fixture
def registry(server: Server) -> Iterator[ModelRegistry]:
    """A client of `server`."""
    with ModelRegistry(f"grpc://127.0.0.1:{server.port}", progress=False) as client:
        yield client
