"""A blocking client for the tests of the frameworks; its calls run on a thread, as the server has this one."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.server.composition import Server


@pytest.fixture
def registry(server: Server) -> Iterator[ModelRegistry]:
    """A client of `server`."""
    with ModelRegistry(f"grpc://127.0.0.1:{server.port}", progress=False) as client:
        yield client


async def on_thread(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Await a call that blocks."""
    return await asyncio.to_thread(call, *arguments, **options)
