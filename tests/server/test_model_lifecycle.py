"""The calls of ModelLifecycle, over a real channel."""

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from cogment_model_registry.records.lifecycle import Alias, AliasChange, AnnotationChange, Objections, Version
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import convert, messages
from cogment_model_registry.wire import lifecycle as m
from cogment_model_registry.wire import models as wire_models
from tests.client import Client, connected, next_version, refused, status_of

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
ABORTED, PRECONDITION = grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION


class Lifecycle:
    """The calls, without retries or checks."""

    def __init__(self, client: Client) -> None:
        self._client = Client(client.channel, m.SERVICE_NAME)

    async def find(self, **fields: Any) -> m.ListVersionsReply:
        request = m.ListVersionsRequest(**fields)
        reply: m.ListVersionsReply = await self._client.unary("ListVersions", request, m.ListVersionsReply)
        return reply

    async def get(self, *keys: int | str, model_id: str = "m") -> list[Version]:
        request = m.ListVersionsRequest(versions=[m.version_ref(model_id, key) for key in keys])
        reply = await self._client.unary("ListVersions", request, m.ListVersionsReply)
        return [m.version_from_message(each) for each in reply.versions]

    async def update(self, key: int | str, change: AnnotationChange, model_id: str = "m") -> Version:
        request = m.update_request(model_id, key, change)
        return m.version_from_message(await self._client.unary("UpdateVersion", request, m.VersionMessage))

    async def promote(self, key: int | str, *aliases: str, model_id: str = "m") -> Version:
        request = m.PromoteVersionRequest(version=m.version_ref(model_id, key), aliases=aliases)
        return m.version_from_message(await self._client.unary("PromoteVersion", request, m.VersionMessage))

    async def delete(self, key: int | str, *, force: bool = False, model_id: str = "m") -> None:
        request = m.DeleteVersionRequest(version=m.version_ref(model_id, key), force=force)
        await self._client.unary("DeleteVersion", request, m.DeleteVersionReply)

    async def objections(self, key: int | str, *, model_id: str = "m") -> Objections:
        request = m.DeleteVersionRequest(tried=m.version_ref(model_id, key))
        return m.objections_from_reply(await self._client.unary("DeleteVersion", request, m.DeleteVersionReply))

    async def set_aliases(self, *changes: AliasChange, model_id: str = "m") -> list[Alias]:
        request = m.set_aliases_request(model_id, changes)
        return m.aliases_from_messages((await self._client.unary("SetAliases", request, m.SetAliasesReply)).aliases)

    async def models(self, *model_ids: str, **page: Any) -> wire_models.ListModelsReply:
        request = wire_models.ListModelsRequest(model_ids=model_ids, **page)
        reply: wire_models.ListModelsReply = await self._client.unary(
            "ListModels", request, wire_models.ListModelsReply
        )
        return reply


@pytest.fixture
async def lifecycle(client: Client) -> Lifecycle:
    """The calls on a server with the model ``m``."""
    await client.create_model("m")
    return Lifecycle(client)


async def test_a_tried_deletion_deletes_nothing_and_says_what_stands_against_it(
    client: Client, lifecycle: Lifecycle
) -> None:
    await client.publish("m", b"weights")
    await lifecycle.set_aliases(AliasChange("production", 1))
    objections = await lifecycle.objections("production")
    assert objections == Objections(("production",))
    assert [version.number for version in await lifecycle.get(1)] == [1]
    await lifecycle.set_aliases(AliasChange("canary", 1))
    request = m.DeleteVersionRequest(version=m.version_ref("m", 1), force=True, expected_state=objections.state)
    with refused(ABORTED, "canary"):
        await Client(client.channel, m.SERVICE_NAME).unary("DeleteVersion", request, m.DeleteVersionReply)
    assert [version.number for version in await lifecycle.get(1)] == [1]


async def test_a_promoted_version_is_archived_in_place(client: Client, lifecycle: Lifecycle, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    before = await client.publish("m", data, user_data={"seed": "12"})
    await client.publish("m", b"newer")
    promoted = await lifecycle.promote(1, "production")
    [after] = (await client.infos("m", 1)).version_infos
    assert after.archived
    after.archived = False
    assert after == before
    assert (promoted.info.archived, promoted.aliases) == (True, ("production",))
    assert await client.data("m", 1) == data
    assert (tmp_path / "archive/m/m-v000001.data").read_bytes() == data
    assert (await client.status("*"))["transient_versions"] == "1"


async def test_watchers_are_not_notified_of_a_promotion(client: Client, lifecycle: Lifecycle) -> None:
    await client.publish("m", b"1")
    watch = client.watching("m")
    assert (await next_version(watch)).version_number == 1
    await lifecycle.promote(1)
    await client.publish("m", b"2")
    assert (await next_version(watch)).version_number == 2
    watch.cancel()


async def test_aliases_tags_and_metrics_survive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.store("m", b"data")
        await client.publish("m", b"transient")
        lifecycle = Lifecycle(client)
        change = AnnotationChange(set_tags={"stage": "candidate"}, set_metrics={"return": 487.5})
        version = await lifecycle.update(1, change)
        aliases = await lifecycle.set_aliases(AliasChange("production", 1))
    async with serving(tmp_path) as server, connected(server.port) as client:
        lifecycle = Lifecycle(client)
        [again] = await lifecycle.get("production")
        assert again.annotations == version.annotations
        assert again.aliases == ("production",)
        assert await lifecycle.set_aliases() == aliases


async def test_a_lost_database_loses_no_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.port) as client:
        await client.create_model("m")
        for number in range(5):
            await client.store("m", b"data", user_data={"number": str(number)})
        await Lifecycle(client).set_aliases(AliasChange("production", 1))
    (tmp_path / ".catalog.sqlite3").unlink()
    async with serving(tmp_path) as server, connected(server.port) as client:
        found = await Lifecycle(client).find(
            model_id="m", filter="user_data.number >= 3", order_by="version_number desc"
        )
        assert [version.version_info.version_number for version in found.versions] == [5, 4]
        assert await Lifecycle(client).set_aliases() == []


async def test_an_alias_moves_by_compare_and_set(client: Client, lifecycle: Lifecycle) -> None:
    for data in (b"1", b"2"):
        await client.store("m", data)
    [first] = await lifecycle.set_aliases(AliasChange("production", 1, 0))
    with refused(ABORTED, f"points to version 1 with revision {first.revision}"):
        await lifecycle.set_aliases(AliasChange("production", 2, 0))
    [second] = await lifecycle.set_aliases(AliasChange("production", -1, first.revision))
    assert second.version_number == 2
    with refused(NOT_FOUND, 'no alias "canary"'):
        await lifecycle.set_aliases(AliasChange("canary", None))
    assert await lifecycle.set_aliases(AliasChange("production", None, second.revision)) == []


async def test_no_move_of_an_alias_by_many_writers_is_lost(client: Client, lifecycle: Lifecycle) -> None:
    await client.store("m", b"1")
    won: list[int] = []

    async def move(times: int) -> None:
        for _ in range(times):
            while True:
                aliases = await lifecycle.set_aliases()
                expected = aliases[0].revision if aliases else 0
                moving = lifecycle.set_aliases(AliasChange("production", 1, expected))
                if await status_of(moving) == grpc.StatusCode.OK:
                    won.append(expected)
                    break

    await asyncio.gather(*(move(5) for _ in range(8)))
    assert len(won) == len(set(won)) == 40, "one winner for each revision"
    [alias] = await lifecycle.set_aliases()
    assert alias.revision > max(won)


async def test_a_deleted_version_is_gone_from_either_service(
    client: Client, lifecycle: Lifecycle, tmp_path: Path
) -> None:
    await client.store("m", b"1")
    await client.publish("m", b"2")
    await client.store("m", b"3")
    await lifecycle.set_aliases(AliasChange("production", 1))
    with refused(PRECONDITION, '"production"'):
        await lifecycle.delete(1)
    await lifecycle.delete(1, force=True)
    await lifecycle.delete(-1)
    with refused(NOT_FOUND):
        await lifecycle.delete(3)
    assert await client.numbers("m") == [2]
    files = {name for name in os.listdir(tmp_path / "archive/m") if "-v" in name or "~" in name}
    assert files == set()
    assert (await client.publish("m", b"4")).version_number == 4


async def test_a_reader_continues_when_its_version_is_deleted(client: Client, lifecycle: Lifecycle) -> None:
    data = os.urandom(20_000_000)
    await client.store("m", data)
    replies = client.streamed(
        "RetrieveVersionData", messages.RetrieveVersionDataRequest(model_id="m", version_number=1)
    )
    chunks = [convert.decode_data_chunk(await anext(replies := aiter(replies)))]
    await lifecycle.delete(1)
    chunks += [convert.decode_data_chunk(message) async for message in replies]
    assert b"".join(chunks) == data


async def test_a_search_continues_page_by_page(client: Client, lifecycle: Lifecycle) -> None:
    for number in range(1, 8):
        await (client.store if number % 2 else client.publish)("m", bytes([number]))
        await lifecycle.update(number, AnnotationChange(set_metrics={"return": number * 10}))
    search = {"model_id": "m", "filter": "metrics.return > 20", "order_by": "metrics.return desc"}
    numbers: list[int] = []
    token = first_token = ""
    while True:
        reply = await lifecycle.find(**search, page_size=2, page_token=token)
        numbers += [version.version_info.version_number for version in reply.versions]
        token = reply.next_page_token
        first_token = first_token or token
        if not token:
            break
    assert numbers == [7, 6, 5, 4, 3]
    with refused(INVALID, "page_token"):
        await lifecycle.find(**{**search, "filter": "metrics.return > 21"}, page_token=first_token)


async def test_named_versions_are_split_over_several_replies(tmp_path: Path) -> None:
    settings = Settings(reply_max_bytes=1024, grace_seconds=0)
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        lifecycle = Lifecycle(client)
        for model_id in ("m", "n"):
            await client.create_model(model_id)
            for number in range(3):
                await client.store(model_id, bytes([number]), user_data={"note": "x" * 300})
        await lifecycle.set_aliases(AliasChange("production", 2), model_id="n")
        keys: list[tuple[str, int | str]] = [("n", "production"), ("m", -1), ("m", 1), ("n", 3), ("n", 3)]
        refs = [m.version_ref(model_id, key) for model_id, key in keys]
        found, token, replies = [], "", 0
        while token or not replies:
            reply = await lifecycle.find(versions=refs, page_token=token)
            found += [(each.version_info.model_id, each.version_info.version_number) for each in reply.versions]
            token, replies = reply.next_page_token, replies + 1
            assert reply.ByteSize() < 1500
        assert found == [("n", 2), ("m", 3), ("m", 1), ("n", 3), ("n", 3)]
        assert replies > 1
        with refused(INVALID, "page_token"):
            await lifecycle.find(versions=refs[1:], page_token=(await lifecycle.find(versions=refs)).next_page_token)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"filter": "metrics.return >"}, "at character 17"),
        ({"order_by": "colour"}, "names no field"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": "W10="}, "page_token"),
        ({"page_token": "é"}, "page_token"),
        ({"model_id": "a/b"}, "model_id"),
        ({"versions": [m.VersionRef(model_id="m")]}, "by version_number or by alias"),
        ({"versions": [m.VersionRef(model_id="m", version_number=0)]}, "from 1"),
        ({"versions": [m.VersionRef(model_id="m", version_number=2**40)]}, "from 1"),
        ({"versions": [m.VersionRef(model_id="m", version_number=1)], "filter": "tags:x"}, "not both"),
    ],
)
async def test_a_malformed_search_is_refused(lifecycle: Lifecycle, fields: dict[str, object], words: str) -> None:
    with refused(INVALID, words):
        await lifecycle.find(**fields)


@pytest.mark.parametrize(
    ("order", "value", "number"),
    [
        ("version_number", "7", 1),
        ("version_number", True, 1),
        ("version_number", 2**64, 1),
        ("creation_timestamp", -1, 1),
        ("creation_timestamp", 2**64, 1),
        ("data_hash", 1, 1),
        ("metrics.return", "high", 1),
        ("tags.stage", "\ud800", 1),
        ("tags.stage", None, 2**64),
        ("tags.stage", None, False),
    ],
)
async def test_a_forged_page_token_is_refused(
    client: Client, lifecycle: Lifecycle, order: str, value: str | int | None, number: int
) -> None:
    await client.create_model("m")
    await client.store("m", b"x")
    await client.publish("m", b"x")
    token = m.build_token(("m", "", order), (value, "m", number))
    with refused(INVALID, "page_token"):
        await lifecycle.find(model_id="m", order_by=order, page_token=token)


async def test_a_reply_has_a_bounded_size_whatever_is_listed(tmp_path: Path) -> None:
    settings = Settings(cache_max_bytes=MIB, grace_seconds=0, reply_max_bytes=2000)
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        lifecycle = Lifecycle(client)
        for number in range(5):
            await client.create_model(f"m{number}", text="x" * 1000)
            await client.publish("m0", b"x", user_data={"text": "x" * 1000})
        found: list[str] = []
        reply = await lifecycle.models()
        while reply.models:
            assert reply.ByteSize() < 2500
            found += [model.model_info.model_id for model in reply.models]
            if not reply.next_page_token:
                break
            reply = await lifecycle.models(page_token=reply.next_page_token)
        assert found == ["m0", "m1", "m2", "m3", "m4"]
        assert len((await lifecycle.find(model_id="m0")).versions) == 1


async def test_models_are_listed_with_their_versions_and_aliases(client: Client, lifecycle: Lifecycle) -> None:
    await client.create_model("n", note="yes")
    await client.store("m", b"1234")
    await client.publish("m", b"2")
    await lifecycle.set_aliases(AliasChange("production", 1))
    first = await lifecycle.models(page_size=1)
    [model] = first.models
    assert (model.latest_version_number, model.versions, model.archived_bytes) == (2, 2, 4)
    assert [alias.alias for alias in model.aliases] == ["production"]
    second = await lifecycle.models(page_size=1, page_token=first.next_page_token)
    assert [each.model_info.model_id for each in second.models] == ["n"]
    assert [each.model_info.model_id for each in (await lifecycle.models("n", "m")).models] == ["n", "m"]
    with refused(NOT_FOUND):
        await lifecycle.models("none")


async def test_annotations_change_by_compare_and_set(client: Client, lifecycle: Lifecycle) -> None:
    await client.publish("m", b"1")
    [version] = await lifecycle.get(-1)
    change = AnnotationChange({"a": "1", "b": "2"}, (), {"return": 5}, (), version.annotations.revision)
    first = await lifecycle.update(1, change)
    with refused(ABORTED, f"has revision {first.annotations.revision}"):
        await lifecycle.update(1, change)
    second = await lifecycle.update(1, AnnotationChange({}, ("a",), {}, ("return",)))
    assert (second.annotations.tags, second.annotations.metrics) == ({"b": "2"}, {})
    with refused(INVALID, "finite"):
        await lifecycle.update(1, AnnotationChange(set_metrics={"return": float("nan")}))


async def test_the_service_is_healthy_and_reflected(client: Client, server: Server) -> None:
    request = health_pb2.HealthCheckRequest(service=m.SERVICE_NAME)
    health = Client(client.channel, "grpc.health.v1.Health")
    reply = await health.unary("Check", request, health_pb2.HealthCheckResponse)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
