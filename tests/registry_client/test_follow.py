"""All news of models, resumed by tokens, in both flavours of the client."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import CaughtUp, Consumer, Gone, ModelSummary, Version, errors
from cogment_model_registry.server.composition import Server
from tests.processes import server_process
from tests.registry_client.conftest import opened
from tests.registry_client.network import Relay, listening


async def until(news: Any, wanted: Any) -> list[Any]:
    """Return the news up to the first that is wanted."""
    found = []
    async for each in news:
        found.append(each)
        if wanted(each.event):
            break
    return found


def is_caught_up(event: object) -> bool:
    return isinstance(event, CaughtUp)


@contextlib.asynccontextmanager
async def followed(registry: Any, *models: str, **options: Any) -> Any:
    """Return a context manager with the news of a client of either flavour."""
    if hasattr(registry, "registry"):
        from tests.registry_client.conftest import _awaited  # noqa: PLC0415

        news = _awaited(registry.registry.follow(*models, **options))
    else:
        news = registry.follow(*models, **options)
    async with contextlib.aclosing(news):  # type: ignore[type-var]
        yield news


async def test_what_exists_comes_first_then_news(registry: Any) -> None:
    await registry.publish("policy", b"1", tags={"stage": "x"})
    async with followed(registry) as news:
        before = [each.event for each in await until(news, is_caught_up)]
        assert [type(each) for each in before] == [ModelSummary, Version, CaughtUp]
        assert before[1].tags == {"stage": "x"}
        await registry.store("policy", b"2", alias="production")
        (moved,) = [
            each.event
            for each in await until(news, lambda event: isinstance(event, ModelSummary) and event.aliases)
            if isinstance(each.event, ModelSummary)
        ]
        assert [(each.name, each.version_number) for each in moved.aliases] == [("production", 2)]
        await registry.delete_version("policy", 1)
        gone = (await until(news, lambda event: isinstance(event, Gone)))[-1].event
        assert gone == Gone("policy", 1, "deleted")


async def test_it_goes_on_after_a_token(registry: Any) -> None:
    await registry.publish("policy", b"1")
    async with followed(registry, "policy") as news:
        token = (await until(news, is_caught_up))[-1].resume_token
    await registry.publish("policy", b"2")
    await registry.publish("other", b"1")
    async with followed(registry, "policy", resume_token=token) as news:
        found = [each.event for each in await until(news, lambda event: isinstance(event, Version))]
    assert [each.number for each in found if isinstance(each, Version)] == [2]
    with pytest.raises(errors.InvalidError):
        async with followed(registry, resume_token="no token") as news:
            await until(news, is_caught_up)


async def test_a_filter_and_consumers(registry: Any) -> None:
    await registry.publish("policy", b"1")
    await registry.store("policy", b"2")
    await registry.report_consumer("policy", "actor", version=1)
    async with followed(registry, filter="archived = true", consumers=True) as news:
        found = [each.event for each in await until(news, is_caught_up)]
        if not any(isinstance(each, Consumer) for each in found):
            found += [each.event for each in await until(news, lambda event: isinstance(event, Consumer))]
    assert [each.number for each in found if isinstance(each, Version)] == [2]
    assert [each.versions_behind for each in found if isinstance(each, Consumer)] == [1]


async def test_a_lost_connection_loses_nothing(flavour: str, server: Server) -> None:
    relay = Relay(server.port)
    async with (
        opened(flavour, server.port) as direct,
        listening(relay.relay) as port,
        opened(flavour, port) as registry,
        followed(registry, "policy") as news,
    ):
        await direct.publish("policy", b"1")
        found = await until(news, lambda event: isinstance(event, Version))
        relay.cut()
        await direct.publish("policy", b"2")
        found += await until(news, lambda event: isinstance(event, Version) and event.number == 2)
    assert [each.event.number for each in found if isinstance(each.event, Version)] == [1, 2]


async def test_a_registry_that_is_gone_for_too_long_ends_it(flavour: str, tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as process:
        async with (
            opened(flavour, process.port, retry_seconds=0) as registry,
            followed(registry, patience_seconds=0) as news,
        ):
            await until(news, is_caught_up)
            process.kill()
            with pytest.raises(errors.UnavailableError):
                await until(news, is_caught_up)
