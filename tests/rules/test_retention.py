"""Deletions by rules of retention with concurrent changes; models with tags, rules and shares; in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from cogment_model_registry.errors import ConflictError, InvalidError, NotFoundError
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.records.retention import (
    ModelChange,
    RetentionRule,
    TransientShare,
)
from cogment_model_registry.records.versions import ModelInfo, VersionHeader
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import EVERYTHING, MODELS
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.retention import Retention
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables


@dataclass
class World:
    """A registry with the model ``m``, and its retention."""

    registry: Registry
    lifecycle: Lifecycle
    models: Models
    retention: Retention
    catalog: MemoryCatalog
    archive: MemoryArchive
    transient: MemoryTransientStore

    async def upload(self, *, archived: bool = False, **metrics: float) -> int:
        async with await self.registry.create_version(VersionHeader("m", archived, 4)) as upload:
            await upload.write(memoryview(b"data"))
            number = (await upload.commit()).number
        if metrics:
            await self.measure(number, **metrics)
        return number

    async def measure(self, number: int, **metrics: float) -> None:
        await self.lifecycle.update_version("m", number, AnnotationChange(set_metrics=metrics))

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.registry.list_versions("m", 0, 100)]

    async def set_rules(self, *rules: RetentionRule) -> None:
        await self.models.update("m", ModelChange(retention=rules))

    async def apply(self, after_each: Callable[[int], object] = lambda _: None) -> list[int]:
        """Apply the rules, and return the numbers that were deleted."""
        deleted = []
        application = await self.retention.plan("m")
        async with aclosing(application.delete()) as deletions:
            async for decision in deletions:
                deleted.append(decision.version.number)
                step = after_each(decision.version.number)
                if asyncio.iscoroutine(step):
                    await step
        assert application.deleted == len(deleted)
        assert application.freed_bytes == 4 * len(deleted)
        return deleted


@pytest.fixture
async def world(hashing: ThreadPoolExecutor) -> AsyncIterator[World]:
    catalog, archive = MemoryCatalog(Tables()), MemoryArchive({}, 1000)
    transient = MemoryTransientStore(20, 1000, hashing)
    registry = Registry(Limits(16, 100, 3), catalog, archive, transient)
    await registry.create_or_update_model(ModelInfo("m"))
    lifecycle = Lifecycle(registry, catalog, archive, transient)
    models = Models(registry, catalog, transient)
    retention = Retention(registry, catalog, archive, transient, holds=lifecycle.holds)
    yield World(registry, lifecycle, models, retention, catalog, archive, transient)
    await catalog.close()


async def test_versions_of_both_tiers_are_deleted_with_their_bytes(world: World) -> None:
    for position in range(8):
        await world.upload(archived=position % 2 == 0)
    await world.set_rules(RetentionRule(keep_last=3))
    assert await world.apply() == [1, 2, 3, 4, 5]
    assert await world.numbers() == [6, 7, 8]
    assert world.transient.usage.items == 2
    assert await world.apply() == []


async def test_only_versions_that_were_confirmed_are_deleted(world: World) -> None:
    for _ in range(6):
        await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=2))
    application = await world.retention.plan("m", only={2, 3, 6})
    assert [verdict.number for verdict in application.doomed] == [2, 3]
    await world.lifecycle.set_aliases("m", [AliasChange("production", 3)])
    async with aclosing(application.delete()) as deletions:
        assert [decision.version.number async for decision in deletions] == [2]
    assert await world.numbers() == [1, 3, 4, 5, 6]


async def test_rules_of_another_revision_are_not_applied(world: World) -> None:
    await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=2))
    application = await world.retention.plan("m")
    model = (await world.models.get(["m"]))[0]
    application.check_revision(0)
    application.check_revision(model.revision)
    with pytest.raises(ConflictError, match=f"has revision {model.revision}"):
        application.check_revision(model.revision + 1)


async def test_a_mark_shows_whether_rules_may_delete_something(world: World) -> None:
    for _ in range(3):
        await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=2))
    assert (await world.retention.plan("m")).mark is None
    await world.apply()
    mark = (await world.retention.plan("m")).mark
    assert mark is not None
    assert not await world.retention.has_changed(mark)
    await world.upload()
    assert await world.retention.has_changed(mark)
    await world.set_rules(RetentionRule(keep_seconds=10**9))
    assert (await world.retention.plan("m")).mark is None
    await world.set_rules(RetentionRule(keep_last=9))
    mark = (await world.retention.plan("m")).mark
    assert mark is not None
    await world.measure(2, value=1)
    assert await world.retention.has_changed(mark)
    await world.registry.delete_model("m")
    assert await world.retention.has_changed(mark)


async def test_a_dry_run_deletes_nothing_and_reports_what_a_real_run_deletes(world: World) -> None:
    for position in range(8):
        await world.upload(archived=position % 2 == 0)
    trial = [RetentionRule("archived", keep_last=2)]
    application = await world.retention.plan("m", trial)
    planned = [decision async for decision in application.decisions(application.doomed)]
    assert [decision.version.number for decision in planned] == [1, 3]
    assert [verdict.number for verdict in application.kept] == [2, 4, 5, 6, 7, 8]
    assert await world.numbers() == [1, 2, 3, 4, 5, 6, 7, 8]
    await world.set_rules(*trial)
    assert await world.apply() == [1, 3]


async def test_an_alias_that_is_set_in_the_meantime_keeps_its_version(world: World) -> None:
    for _ in range(5):
        await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=1))

    async def point(number: int) -> None:
        if number == 1:
            await world.lifecycle.set_aliases("m", [AliasChange("best", 3)])

    assert await world.apply(point) == [1, 2, 4]
    assert await world.numbers() == [3, 5]


async def test_a_metric_that_is_set_in_the_meantime_counts(world: World) -> None:
    for value in range(1, 6):
        await world.upload(archived=True, value=value)
    await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_best=1, metric="value"))

    async def measure(number: int) -> None:
        if number == 1:
            await world.measure(3, value=9)

    assert await world.apply(measure) == [1, 2, 4, 5]


async def test_rules_that_change_in_the_meantime_apply(world: World) -> None:
    for _ in range(6):
        await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=1))

    async def relax(number: int) -> None:
        if number == 1:
            await world.set_rules(RetentionRule(keep_last=4))

    assert await world.apply(relax) == [1, 2]


async def test_a_version_that_moves_up_after_an_eviction_is_kept(world: World) -> None:
    """The last three are kept; if one of them is evicted, the fourth becomes one of the last three."""
    for _ in range(6):
        await world.upload()
    await world.set_rules(RetentionRule(keep_last=3))
    [fifth] = await world.registry.get_versions("m", [5])

    async def evict(number: int) -> None:
        if number == 2:
            await world.catalog.forget(fifth)

    assert await world.apply(evict) == [1, 2]
    assert await world.numbers() == [3, 4, 6]


async def test_new_versions_in_the_meantime_do_not_change_the_decision(world: World) -> None:
    for _ in range(5):
        await world.upload()
    await world.set_rules(RetentionRule(keep_last=2))

    async def publish(_: int) -> None:
        await world.upload()

    assert await world.apply(publish) == [1, 2, 3]


async def test_a_version_that_is_being_promoted_is_kept(world: World) -> None:
    for _ in range(3):
        await world.upload()
    await world.set_rules(RetentionRule(keep_last=1))
    is_committing, may_go_on = asyncio.Event(), asyncio.Event()
    upload = world.archive.open_upload

    async def wait(model_id: str, size_bytes: int):  # type: ignore[no-untyped-def] # as `open_upload`
        is_committing.set()
        await may_go_on.wait()
        return await upload(model_id, size_bytes)

    world.archive.open_upload = wait  # type: ignore[method-assign]
    promoting = asyncio.create_task(world.lifecycle.promote_version("m", 1, ["best"]))
    await is_committing.wait()
    assert await world.apply() == [2]
    may_go_on.set()
    await promoting
    assert await world.apply() == []
    assert [info.archived for info in await world.registry.list_versions("m", 0, 10)] == [True, False]


async def test_a_reader_of_a_deleted_version_continues_to_its_end(world: World) -> None:
    for archived in (True, False, False):
        await world.upload(archived=archived)
    await world.set_rules(RetentionRule(keep_last=1))
    async with (
        await world.registry.open_version("m", 1) as archived_reader,
        await world.registry.open_version("m", 2) as transient_reader,
    ):
        assert await world.apply() == [1, 2]
        for reader in (archived_reader, transient_reader):
            assert b"".join([b"".join(chunk) async for chunk in reader.chunks(3, 100)]) == b"data"


async def test_a_model_that_keeps_changing_is_skipped_until_the_next_run(world: World) -> None:
    for _ in range(3):
        await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=1))
    application = await world.retention.plan("m")
    looked = world.catalog.describe

    async def change(infos):  # type: ignore[no-untyped-def] # as `describe`
        world.catalog._tables.models["m"].changes += 1
        return await looked(infos)

    world.catalog.describe = change  # type: ignore[method-assign]
    assert [decision async for decision in application.delete()] == []
    assert {verdict.reason for verdict in application.kept[:2]} == {
        "the model changed too often while it was decided; the next run looks again"
    }
    assert await world.numbers() == [1, 2, 3]


async def test_a_model_that_is_deleted_in_the_meantime_ends_the_run(world: World) -> None:
    for _ in range(3):
        await world.upload(archived=True)
    await world.set_rules(RetentionRule(keep_last=1))

    async def replace_model(_: int) -> None:
        await world.registry.delete_model("m")
        await world.registry.create_or_update_model(ModelInfo("m"))
        for _ in range(3):
            await world.upload(archived=True)

    with pytest.raises(NotFoundError):
        await world.apply(replace_model)
    assert await world.numbers() == [1, 2, 3]


async def test_models_are_found_by_filter_page_by_page(world: World) -> None:
    for position in range(600):
        info = ModelInfo(f"a{position:03}", {"parity": "even" if position % 2 == 0 else "odd"})
        await world.registry.create_or_update_model(info)
    await world.upload(archived=True)
    await world.lifecycle.set_aliases("m", [AliasChange("best", 1)])
    await world.models.update("m", ModelChange({"team": "robots"}))
    found: list[str] = []
    accepted = parse_filter("user_data.parity = odd", MODELS)
    while page := await world.models.find(accepted, found[-1] if found else "", 70):
        found += [model.model_id for model in page]
    assert found == [f"a{position:03}" for position in range(1, 600, 2)]
    for text in (
        "model_id = m",
        "tags.team = robots",
        "tags:team",
        "aliases:best",
        "latest_version_number = 1",
        "versions > 0 AND archived_bytes = 4",
        "NOT user_data:parity",
    ):
        models = await world.models.find(parse_filter(text, MODELS), "", 10)
        assert [model.model_id for model in models] == ["m"], text
    for text in ("metrics.return > 1", "archived = true", "metrics:return"):
        with pytest.raises(InvalidError, match=r"there is no field|asks what"):
            parse_filter(text, MODELS)
    assert len(await world.models.find(EVERYTHING, "", 1000)) == 601


async def test_tags_of_a_model_are_bounded(world: World) -> None:
    await world.models.update("m", ModelChange({"a": "x" * 60}))
    with pytest.raises(InvalidError, match="would have 122 bytes; at most 100"):
        await world.models.update("m", ModelChange({"b": "x" * 60}))
    assert (await world.models.update("m", ModelChange({"b": "x" * 60}, ["a"]))).tags == {"b": "x" * 60}


async def test_the_share_of_a_model_applies_at_once_and_after_a_restart(
    world: World, hashing: ThreadPoolExecutor
) -> None:
    for _ in range(5):
        await world.upload()
    await world.models.update("m", ModelChange(share=TransientShare(max_items=2)))
    assert await world.numbers() == [4, 5]
    transient = MemoryTransientStore(20, 1000, hashing)
    registry = Registry(world.registry.limits, world.catalog, world.archive, transient)
    await Models(registry, world.catalog, transient).apply_shares()
    for _ in range(4):
        async with await registry.create_version(VersionHeader("m", False, 4)) as upload:
            await upload.write(memoryview(b"data"))
            await upload.commit()
    assert transient.usage.items == 2
