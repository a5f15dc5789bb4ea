"""Promotion, aliases, tags, metrics, search and deletion by the client, in both flavours, with a real server."""

import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogment_model_registry import Alias, Version, errors
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import created, scripted

LARGE = os.urandom(3_000_000)


async def test_a_published_version_is_promoted_without_its_bytes_moving(registry: Any) -> None:
    data = os.urandom(5_000_000)
    published = await registry.publish("policy", data)
    await registry.publish("policy", b"newer")
    version = await registry.promote("policy", published.number, alias="production")
    assert (version.number, version.info.archived, version.aliases) == (1, True, ("production",))
    assert version.info.data_hash == published.data_hash
    assert await registry.retrieve("policy", "production") == data
    assert await registry.promote("policy", "production") == version


async def test_an_alias_is_accepted_wherever_a_version_is(registry: Any, tmp_path: Path) -> None:
    for data in (b"1", b"2", b"3"):
        await registry.store("policy", data)
    await registry.set_alias("policy", "production", 2)
    assert (await registry.get_version("policy", "production")).number == 2
    assert await registry.retrieve("policy", "production") == b"2"
    await registry.download("policy", tmp_path / "weights", version="production")
    assert (tmp_path / "weights").read_bytes() == b"2"
    version = await registry.describe_version("policy", "production")
    assert await registry.retrieve(version) == b"2"
    with pytest.raises(errors.NotFoundError, match='no alias "canary"'):
        await registry.retrieve("policy", "canary")


async def test_an_alias_moves_by_compare_and_set(registry: Any) -> None:
    for data in (b"1", b"2"):
        await registry.store("policy", data)
    first = await registry.set_alias("policy", "production", 1, expected=0)
    assert isinstance(first, Alias)
    with pytest.raises(errors.ConflictError, match=f"revision {first.revision}"):
        await registry.set_alias("policy", "production", 2, expected=0)
    second = await registry.set_alias("policy", "production", -1, expected=first.revision)
    third = await registry.set_alias("policy", "canary", "production")
    assert await registry.aliases("policy") == {"canary": third, "production": second}
    assert (second.version_number, third.version_number) == (2, 2)
    with pytest.raises(errors.ConflictError):
        await registry.remove_alias("policy", "production", expected=first.revision)
    await registry.remove_alias("policy", "production", expected=second.revision)
    with pytest.raises(errors.NotFoundError):
        await registry.remove_alias("policy", "production")
    assert list(await registry.aliases("policy")) == ["canary"]


async def test_tags_and_metrics_are_set_and_removed(registry: Any) -> None:
    await registry.publish("policy", b"1")
    first = await registry.update_version("policy", -1, tags={"stage": "new", "by": "me"}, metrics={"return": 5})
    assert isinstance(first, Version)
    assert (first.tags, first.metrics) == ({"stage": "new", "by": "me"}, {"return": 5.0})
    metrics = {"return": None, "loss": np.float32(0.5)}
    second = await registry.update_version("policy", 1, tags={"by": None}, metrics=metrics, expected=first.revision)
    assert (second.tags, second.metrics) == ({"stage": "new"}, {"loss": 0.5})
    assert await registry.describe_version("policy") == second
    with pytest.raises(errors.ConflictError):
        await registry.update_version("policy", 1, tags={"by": "you"}, expected=first.revision)


async def test_versions_are_found_by_filter_and_order(registry: Any) -> None:
    for number in range(1, 6):
        await (registry.store if number % 2 else registry.publish)("policy", bytes([number]))
        await registry.update_version("policy", number, metrics={"return": number * 100})
    found = await registry.find_versions("policy", "metrics.return > 200", order_by="metrics.return desc", limit=2)
    assert [version.number for version in found] == [5, 4]
    assert [version.number for version in await registry.find_versions("policy")] == [1, 2, 3, 4, 5]
    everywhere = await registry.find_versions(filter="archived = true AND metrics.return < 400")
    assert [version.number for version in everywhere] == [1, 3]
    with pytest.raises(errors.InvalidError, match="at character 17"):
        await registry.find_versions("policy", "metrics.return >")


async def test_a_deleted_version_is_gone(registry: Any) -> None:
    for data in (b"1", b"2"):
        await registry.store("policy", data)
    await registry.set_alias("policy", "production", 1)
    with pytest.raises(errors.PreconditionError, match="production"):
        await registry.delete_version("policy", 1)
    await registry.delete_version("policy", "production", force=True)
    assert [version.number for version in await registry.list_versions("policy")] == [2]
    with pytest.raises(errors.NotFoundError):
        await registry.delete_version("policy", 1)


async def test_a_watch_continues_when_the_newest_archived_version_is_deleted(registry: Any) -> None:
    await registry.store("policy", b"1")
    await registry.store("policy", b"2")
    async with aclosing(registry.watch("policy")) as versions:
        assert (await anext(versions)).number == 2
        await registry.delete_version("policy", 2)
        await registry.publish("policy", b"3")
        assert (await anext(versions)).number == 3


@pytest.mark.parametrize("call", ["publish", "store"])
@pytest.mark.parametrize("data", [b"weights", LARGE], ids=["small", "large"])
async def test_a_version_has_its_tags_and_metrics_when_it_becomes_visible(
    registry: Any, call: str, data: bytes
) -> None:
    belongings = {"tags": {"stage": "new"}, "metrics": {"return": np.float32(480.5)}, "user_data": {"step": 1000}}
    info = await getattr(registry, call)("policy", data, **belongings)
    assert (info.archived, info.user_data) == (call == "store", {"step": "1000"})
    version = await registry.describe_version("policy")
    assert (version.info, version.tags, version.metrics) == (info, {"stage": "new"}, {"return": 480.5})
    assert await registry.retrieve(info) == data


async def test_an_alias_is_set_with_the_version_that_it_archives(registry: Any) -> None:
    for number in (1, 2):
        info = await registry.publish("policy", bytes([number]), alias="production")
        assert (info.number, info.archived) == (number, True)
        assert (await registry.aliases("policy"))["production"].version_number == number
    assert await registry.retrieve("policy", "production") == b"\2"


async def test_tags_metrics_and_aliases_are_refused_for_the_original(flavour: str) -> None:
    async with scripted(CreateVersion=created) as server, opened(flavour, server.port) as registry:
        for created_before in (0, 1):
            for belongings in ({"tags": {"a": "1"}}, {"metrics": {"a": 1}}, {"alias": "a"}):
                with pytest.raises(
                    errors.ModelRegistryError,
                    match=r"the server takes no tags, metrics, aliases and signatures.*the original one",
                ):
                    await registry.publish("policy", b"weights", **belongings)
            assert server.calls["CreateVersion"] == created_before
            assert (await registry.publish("policy", b"weights")).number == 1


async def test_the_error_says_that_a_server_lacks_the_service(flavour: str) -> None:
    async with scripted() as server, opened(flavour, server.port, retry_seconds=0) as registry:
        with pytest.raises(
            errors.ModelRegistryError, match=r"promoting version 1 of .*the server has no .*ModelLifecycle"
        ):
            await registry.promote("policy", 1)
        with pytest.raises(errors.ModelRegistryError, match=r"looking up version \"production\" .*the original one"):
            await registry.retrieve("policy", "production")


@pytest.mark.parametrize(
    ("call", "arguments", "options"),
    [
        ("update_version", ("policy", 1), {"tags": {"a": 1}}),
        ("update_version", ("policy", 1), {"tags": ["a"]}),
        ("update_version", ("policy", 1), {"metrics": {"return": "high"}}),
        ("update_version", ("policy", 1), {"metrics": {"return": float("nan")}}),
        ("update_version", ("policy", 1), {"metrics": {"return": np.zeros(2)}}),
        ("update_version", ("policy", 1.5), {}),
        ("publish", ("policy", b""), {"tags": {"a": None}}),
        ("publish", ("policy", b""), {"metrics": {"a": float("inf")}}),
        ("store", ("policy", b""), {"alias": 5}),
        ("store", ("policy", b""), {"alias": "latest"}),
        ("find_versions", ("policy", 5), {}),
        ("find_versions", ("policy",), {"limit": "all"}),
        ("set_alias", ("policy", "latest", 1), {}),
        ("set_alias", ("policy", 5, 1), {}),
        ("promote", ("policy", "\udcff"), {}),
    ],
)
async def test_a_wrong_argument_is_refused(
    registry: Any, call: str, arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    await registry.publish("policy", b"1")
    with pytest.raises(errors.InvalidError):
        await getattr(registry, call)(*arguments, **options)
