"""Both flavours of the client, for tests of either: blocking calls run on a thread and are awaited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, aio
from cogment_model_registry.client import blocking_client
from cogment_model_registry.client.connection import Connection
from cogment_model_registry.server.composition import Server
from tests.waiting import eventually


class Awaited:
    """A blocking client whose calls are awaited."""

    def __init__(self, registry: ModelRegistry) -> None:
        self.registry = registry

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.registry, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(method, *arguments, **options)

        return call

    def watch(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        return _awaited(self.registry.watch(*arguments, **options))

    def mirror(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        return _awaited(self.registry.mirror(*arguments, **options))

    @asynccontextmanager
    async def track(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        latest = self.registry.track(*arguments, **options)
        await asyncio.to_thread(latest.__enter__)
        try:
            yield Tracked(latest)
        finally:
            await asyncio.to_thread(latest.__exit__, None, None, None)


async def _awaited(events: Generator[Any, None, None]) -> AsyncIterator[Any]:
    try:
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event
    finally:
        await asyncio.to_thread(events.close)


class Tracked:
    """A tracker of a blocking client."""

    def __init__(self, latest: Any) -> None:
        self.latest = latest

    def __getattr__(self, name: str) -> Any:
        return getattr(self.latest, name)

    async def wait_for(self, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(self.latest.wait_for, *arguments, **options)


@asynccontextmanager
async def opened(flavour: str, *ports: int, **options: Any) -> AsyncIterator[Any]:
    """Return a context manager for a client of one flavour, of a server on this machine, or of several equal ones."""
    endpoints = [f"grpc://127.0.0.1:{port}" for port in ports]
    async with opened_at(flavour, endpoints[0] if len(ports) == 1 else endpoints, **options) as registry:
        yield registry


@asynccontextmanager
async def opened_at(flavour: str, endpoint: str | Sequence[str] | None, **options: Any) -> AsyncIterator[Any]:
    """Return a context manager for a client of one flavour."""
    if flavour == "asyncio":
        async with aio.ModelRegistry(endpoint, **options) as registry:
            yield registry
    else:
        with ModelRegistry(endpoint, **options) as registry:
            yield Awaited(registry)


def connection_of(registry: Any) -> Connection:
    """Return the connection of a client of either flavour."""
    connection: Connection = getattr(registry, "registry", registry)._core.calls.connection
    return connection


def port_of(registry: Any) -> int:
    """Return the port of the server to which the calls of a client go now."""
    return int(connection_of(registry).peer.rpartition(":")[2])


async def counted(registry: Any, **counts: int) -> None:
    """Wait until the server of a client counts a number of uploads, retrievals or watchers."""

    async def has_count() -> bool:
        status = await registry.status()
        return all(status[name] == str(count) for name, count in counts.items())

    await eventually(has_count)


@pytest.fixture(params=["blocking", "asyncio"])
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flavours; the blocking one behaves as on the main thread, as in most programs."""
    monkeypatch.setattr(blocking_client, "_is_main_thread", lambda: True)
    return str(request.param)


@pytest.fixture
async def registry(server: Server, flavour: str) -> AsyncIterator[Any]:
    """A client of `server`."""
    async with opened(flavour, server.port) as client:
        yield client
