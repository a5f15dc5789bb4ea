"""UpdateModel, ListModels with a filter, ApplyRetention, and retention in the background, over a real channel."""

import asyncio
import json
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry.records.lifecycle import AliasChange, ModelSummary, RetentionReport
from cogment_model_registry.records.retention import ModelChange, RetentionRule, TransientShare
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle as wire
from cogment_model_registry.wire import models as m
from tests.client import Client, connected, refused
from tests.processes import server_process
from tests.waiting import eventually

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
ABORTED, PRECONDITION = grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION

KEEP_TWO = RetentionRule("archived", keep_last=2)


class Models:
    """The calls for models, without retries or checks."""

    def __init__(self, client: Client) -> None:
        self._client = Client(client.channel, wire.SERVICE_NAME)

    async def update(self, change: ModelChange, model_id: str = "m") -> ModelSummary:
        request = m.update_model_request(model_id, change)
        return m.model_from_message(await self._client.unary("UpdateModel", request, m.ModelMessage))

    async def set_rules(self, *rules: RetentionRule, model_id: str = "m") -> ModelSummary:
        return await self.update(ModelChange(retention=rules), model_id)

    async def list(self, *model_ids: str, **page: Any) -> m.ListModelsReply:
        request = m.ListModelsRequest(model_ids=model_ids, **page)
        reply: m.ListModelsReply = await self._client.unary("ListModels", request, m.ListModelsReply)
        return reply

    async def apply(
        self, model_id: str = "m", rules: Sequence[RetentionRule] | None = None, *, dry_run: bool = False
    ) -> RetentionReport:
        request = m.apply_retention_request(model_id, rules, is_dry_run=dry_run)
        return m.report_from_message(await self._client.unary("ApplyRetention", request, m.ApplyRetentionReply))

    async def set_alias(self, name: str, number: int) -> None:
        request = wire.set_aliases_request("m", [AliasChange(name, number)])
        await self._client.unary("SetAliases", request, wire.SetAliasesReply)


@pytest.fixture
async def models(client: Client) -> Models:
    """The calls on a server with the model ``m``."""
    await client.create_model("m")
    return Models(client)


async def numbers(client: Client, model_id: str = "m") -> list[int]:
    return [info.version_number for info in (await client.infos(model_id)).version_infos]


async def have(client: Client, expected: list[int]) -> None:
    """Wait until the model has exactly these versions."""

    async def check() -> bool:
        return await numbers(client) == expected

    await eventually(check)


def files_of(place: Path) -> set[str]:
    return {name for name in os.listdir(place / "archive" / "m") if not name.startswith(".")}


async def test_a_model_changes_from_the_expected_revision_and_over_a_restart(tmp_path: Path) -> None:
    share = TransientShare(max_items=1, reserved_bytes=5)
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        models = Models(client)
        await client.create_model("m")
        first = await models.update(ModelChange({"team": "robots"}, retention=(KEEP_TWO,), share=share))
        with refused(ABORTED, f"revision {first.revision}"):
            await models.update(ModelChange({"team": "cars"}, expected_revision=first.revision + 1))
        second = await models.update(ModelChange({}, ["team"], expected_revision=first.revision))
        assert (second.tags, second.retention, second.share) == ({}, (KEEP_TWO,), share)
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        models = Models(client)
        assert m.model_from_message((await models.list("m")).models[0]) == second
        for _ in range(3):
            await client.publish("m", b"x")
        assert await numbers(client) == [3]
        await client.delete_model("m")
        await client.create_model("m")
        [again] = (await models.list("m")).models
        assert not again.retention
        assert not again.HasField("transient_share")


async def test_models_are_found_by_filter_in_stable_pages(client: Client, models: Models) -> None:
    for name in "dbac":
        await client.create_model(name)
        await models.update(ModelChange({"first": name}), name)
    page = await models.list(filter="tags:first", page_size=2)
    assert [model.model_info.model_id for model in page.models] == ["a", "b"]
    await client.create_model("aa")
    await models.update(ModelChange({"first": "no"}), "aa")
    await client.delete_model("b")
    page = await models.list(filter="tags:first", page_size=2, page_token=page.next_page_token)
    assert [model.model_info.model_id for model in page.models] == ["c", "d"]
    with refused(INVALID, "page_token"):
        await models.list(filter="tags:other", page_token=page.next_page_token)
    with refused(INVALID, "malformed at character 1"):
        await models.list(filter="metrics.a > 1")
    with refused(INVALID, "and not both"):
        await models.list("a", filter="tags:first")


async def test_a_page_of_large_models_ends_at_the_size_of_a_reply(tmp_path: Path) -> None:
    settings = Settings(reply_max_bytes=10_000, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        models = Models(client)
        for name in "abcde":
            await client.create_model(name, text="x" * 4000)
        found: list[str] = []
        token = None
        while token != "":
            page = await models.list(page_token=token or "")
            assert len(page.models) <= 2
            found += [model.model_info.model_id for model in page.models]
            token = page.next_page_token
        assert found == ["a", "b", "c", "d", "e"]
        first = await models.list(*"edcba")
        assert [model.model_info.model_id for model in first.models] == ["e", "d"]
        second = await models.list(*"edcba", page_token=first.next_page_token)
        assert [model.model_info.model_id for model in second.models] == ["c", "b"]
        with refused(INVALID, "page_token"):
            await models.list(*"abcde", page_token=first.next_page_token)


async def test_a_dry_run_deletes_nothing_and_a_real_run_deletes_what_it_reported(
    client: Client, models: Models, tmp_path: Path
) -> None:
    for position in range(6):
        await (client.store if position % 2 == 0 else client.publish)("m", b"12345")
    await models.set_alias("best", 1)
    await models.set_rules(KEEP_TWO, RetentionRule("transient", keep_every=4))
    before = files_of(tmp_path)
    planned = await models.apply(dry_run=True)
    assert [(each.version.number, each.deleted) for each in planned.decisions] == [
        (2, True),
        (1, False),
        (3, False),
        (4, False),
        (5, False),
        (6, False),
    ]
    assert files_of(tmp_path) == before
    assert await models.apply() == planned
    assert await numbers(client) == [1, 3, 4, 5, 6]
    await client.store("m", b"12345")
    await models.apply()
    assert await numbers(client) == [1, 4, 5, 7]
    assert files_of(tmp_path) == {
        "m.yaml",
        *(f"m-v00000{number}.{end}" for number in (1, 5, 7) for end in ("yaml", "data")),
    }


async def test_rules_in_a_request_need_a_dry_run(client: Client, models: Models) -> None:
    for _ in range(3):
        await client.store("m", b"x")
    assert (await models.apply(rules=[KEEP_TWO], dry_run=True)).deleted_versions == 1
    assert (await models.apply("", [KEEP_TWO], dry_run=True)).deleted_versions == 1
    with refused(INVALID, "with validate_only"):
        await models.apply(rules=[KEEP_TWO])
    with refused(INVALID, "retention rule 1: keep_best 2 needs the metric"):
        await models.apply(rules=[RetentionRule(keep_best=2)], dry_run=True)
    with refused(INVALID, "retention rule 2: filter"):
        await models.set_rules(KEEP_TWO, RetentionRule(filter="(", keep_last=1))
    with refused(NOT_FOUND):
        await models.apply("none")
    with refused(NOT_FOUND):
        await models.set_rules(KEEP_TWO, model_id="none")
    assert await numbers(client) == [1, 2, 3]


async def test_an_unknown_tier_is_refused(client: Client, models: Models) -> None:
    request = m.update_model_request("m", ModelChange(retention=(KEEP_TWO,)))
    data = request.SerializeToString().replace(b"\x08\x02\x18\x02", b"\x08\x07\x18\x02")
    request = m.UpdateModelRequest.FromString(data)
    with refused(INVALID, "retention rule 1: tier 7 is unknown"):
        await Client(client.channel, wire.SERVICE_NAME).unary("UpdateModel", request, m.ModelMessage)


async def test_all_models_with_rules_are_applied_at_once(client: Client, models: Models) -> None:
    for name in "abc":
        await client.create_model(name)
        for _ in range(3):
            await client.store(name, b"x")
    for name in "ac":
        await models.set_rules(RetentionRule(keep_last=1), model_id=name)
    report = await models.apply("")
    assert (report.deleted_versions, report.kept_versions, report.freed_bytes) == (4, 2, 4)
    assert [(each.version.info.model_id, each.deleted) for each in report.decisions] == [
        *[("a", True)] * 2,
        *[("c", True)] * 2,
        ("a", False),
        ("c", False),
    ]
    assert await numbers(client, "b") == [1, 2, 3]


async def test_a_reply_about_many_versions_stays_within_its_size(tmp_path: Path) -> None:
    settings = Settings(reply_max_bytes=10_000, cache_max_items=1000, retention_seconds=0, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        models = Models(client)
        await client.create_model("m")
        for _ in range(300):
            await client.publish("m", b"12")
        for dry_run, left in ((True, 300), (False, 50)):
            report = await models.apply(rules=[RetentionRule(keep_last=50)] if dry_run else None, dry_run=dry_run)
            assert 20 < len(report.decisions) < 250
            assert all(each.deleted for each in report.decisions)
            assert (report.deleted_versions, report.kept_versions, report.freed_bytes) == (250, 50, 500)
            assert (await models.list("m")).models[0].versions == left
            await models.set_rules(RetentionRule(keep_last=50))


async def test_the_server_applies_rules_in_the_background(tmp_path: Path) -> None:
    settings = Settings(retention_seconds=0.01, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        models = Models(client)
        for name in ("m", "other"):
            await client.create_model(name)
            for _ in range(4):
                await client.store(name, b"x")
        await models.set_rules(KEEP_TWO)
        await have(client, [3, 4])
        assert len(files_of(tmp_path)) == 5
        assert await numbers(client, "other") == [1, 2, 3, 4]
        for _ in range(3):
            await client.store("m", b"x")
        await have(client, [6, 7])


async def test_each_deletion_is_logged_with_its_rule_and_counted(tmp_path: Path) -> None:
    flags = ("--log_format=json", "--retention_seconds=0.05", "--metrics_port=0")
    with server_process(tmp_path / "archive", *flags) as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            for _ in range(3):
                await client.store("m", b"x")
            await Models(client).set_rules(KEEP_TWO)
            await have(client, [2, 3])
            await Models(client).set_rules(RetentionRule(keep_last=1))
            await Models(client).apply()
        port = json.loads(server.lines[0])["metrics_port"]
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics")
        assert b'retention_deletions_total{tier="archived"} 2.0' in page.read()
        page.close()
        assert await asyncio.to_thread(server.stop) == 0
    lines = [json.loads(line) for line in server.lines]
    rules = next(line["rules"] for line in lines if line["event"] == "retention set")
    assert rules == ["of archived versions, keep the last 2"]
    deleted = [line for line in lines if line["event"] == "version deleted by retention"]
    assert [(line["model_id"], line["number"], line["level"]) for line in deleted] == [
        ("m", 1, "info"),
        ("m", 2, "info"),
    ]
    assert deleted[0]["reason"] == "rule 1 keeps the last 2, and this is number 3"
    assert deleted[0]["archived"] is True


async def test_a_read_only_server_deletes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        await client.create_model("m")
        for _ in range(4):
            await client.store("m", b"x")
        await Models(client).set_rules(KEEP_TWO)
    before = files_of(tmp_path)
    settings = Settings(read_only=True, retention_seconds=0.01, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        models = Models(client)
        assert (await models.apply(dry_run=True)).deleted_versions == 2
        for call in (models.apply(), models.apply(""), models.set_rules()):
            with refused(PRECONDITION, "read-only"):
                await call
        for _ in range(20):
            await client.infos("m")
        assert files_of(tmp_path) == before


async def test_a_stop_ends_a_run_between_two_deletions(tmp_path: Path) -> None:
    flags = ("--retention_seconds=0.01", "--grace_seconds=0")
    with server_process(tmp_path / "archive", *flags) as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            for _ in range(60):
                await client.store("m", b"x")
            await Models(client).set_rules(RetentionRule(keep_last=1))

            async def has_begun() -> bool:
                return len(await numbers(client)) <= 50

            await eventually(has_begun)
        assert await asyncio.to_thread(server.stop) == 0
    left = files_of(tmp_path)
    assert {name.removesuffix(".data") for name in left if name.endswith(".data")} == {
        name.removesuffix(".yaml") for name in left if "-v" in name and name.endswith(".yaml")
    }
