"""The rules of the life of versions, on backends in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from cogment_model_registry.errors import (
    ConflictError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
)
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange, Version
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import BY_NUMBER, EVERYTHING
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables

MAX_ITEMS = 4
MAX_BYTES = 1000
ALIASES_MAX = 3


@dataclass
class World:
    """A registry, and the backends below it."""

    registry: Registry
    lifecycle: Lifecycle
    archive: MemoryArchive
    transient: MemoryTransientStore

    async def upload(self, data: bytes = b"data", *, archived: bool = False) -> VersionInfo:
        async with await self.registry.create_version(VersionHeader("m", archived, len(data))) as upload:
            await upload.write(memoryview(data))
            return await upload.commit()

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.registry.list_versions("m", 0, 100)]

    async def retrieve(self, number: int) -> bytes:
        async with await self.registry.open_version("m", number) as reader:
            return b"".join([b"".join(chunk) async for chunk in reader.chunks(7, 100)])


@pytest.fixture
async def world(hashing: ThreadPoolExecutor) -> AsyncIterator[World]:
    """A registry with the model ``m``."""
    catalog, archive = MemoryCatalog(Tables()), MemoryArchive({}, MAX_BYTES)
    transient = MemoryTransientStore(MAX_ITEMS, MAX_BYTES, hashing)
    registry = Registry(Limits(16, 100, 3, ALIASES_MAX), catalog, archive, transient)
    await registry.create_or_update_model(ModelInfo("m"))
    yield World(registry, Lifecycle(registry, catalog, archive, transient), archive, transient)
    await catalog.close()


async def test_a_version_that_changes_while_it_is_described_is_shown_in_its_new_state(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.upload()
    await world.lifecycle.update_version("m", 1, AnnotationChange({"stage": "new"}))
    describe = MemoryCatalog.describe
    changes: list[Callable[[str, int], Awaitable[object]]]
    changes = [world.lifecycle.promote_version, world.lifecycle.delete_version]

    async def described_late(catalog: MemoryCatalog, infos: Sequence[VersionInfo]) -> list[Version]:
        monkeypatch.setattr(MemoryCatalog, "describe", describe)
        await changes.pop(0)("m", 1)
        return await describe(catalog, infos)

    monkeypatch.setattr(MemoryCatalog, "describe", described_late)
    version = await world.lifecycle.get_version("m", 1)
    assert (version.archived, version.tags) == (True, {"stage": "new"})
    monkeypatch.setattr(MemoryCatalog, "describe", described_late)
    with pytest.raises(NotFoundError):
        await world.lifecycle.promote_version("m", 1)


async def test_a_promoted_version_keeps_its_number_its_bytes_and_its_time(world: World) -> None:
    info = await world.upload(b"0123456789")
    await world.upload()
    promoted = (await world.lifecycle.promote_version("m", 1)).info
    assert promoted == replace(info, archived=True)
    assert await world.retrieve(1) == b"0123456789"
    assert await world.numbers() == [1, 2]
    assert world.transient.usage.items == 1
    assert await world.lifecycle.promote_version("m", 1) == await world.lifecycle.get_version("m", 1)


async def test_tags_and_metrics_of_a_version_do_not_grow_beyond_the_limit(world: World) -> None:
    for archived in (False, True):
        number = (await world.upload(archived=archived)).number
        await world.lifecycle.update_version("m", number, AnnotationChange({"a": "x" * 90}))
        with pytest.raises(InvalidError, match="would have 104 bytes; at most 100 are allowed"):
            await world.lifecycle.update_version("m", number, AnnotationChange({"b": "y" * 12}))
        with pytest.raises(InvalidError, match="would have 108 bytes"):
            await world.lifecycle.update_version("m", number, AnnotationChange(set_metrics={"r": 1.0, "": 2.0}))
        changed = await world.lifecycle.update_version("m", number, AnnotationChange({"b": "y" * 99}, ["a"]))
        assert changed.tags == {"b": "y" * 99}


async def test_the_number_of_aliases_of_a_model_is_bounded(world: World) -> None:
    await world.upload(archived=True)
    names = [f"alias{index}" for index in range(ALIASES_MAX)]
    await world.lifecycle.set_aliases("m", [AliasChange(name, 1) for name in names])
    with pytest.raises(TooLargeError, match=f"has {ALIASES_MAX} aliases; at most {ALIASES_MAX} are allowed"):
        await world.lifecycle.promote_version("m", 1, ["another"])
    await world.lifecycle.set_aliases("m", [AliasChange(names[0], 1)])
    await world.lifecycle.set_aliases("m", [AliasChange(names[0], None)])
    aliases = await world.lifecycle.set_aliases("m", [AliasChange("another", 1)])
    assert {alias.name for alias in aliases} == {"another", *names[1:]}


async def test_a_promoted_version_carries_its_annotations_along(world: World) -> None:
    await world.upload()
    before = await world.lifecycle.update_version("m", 1, AnnotationChange({"stage": "new"}, (), {"return": 487.5}))
    after = await world.lifecycle.promote_version("m", 1, ["production"])
    assert after.annotations.tags == {"stage": "new"}
    assert after.annotations.metrics == {"return": 487.5}
    assert after.annotations.revision > before.annotations.revision
    assert after.aliases == ("production",)


async def test_a_version_is_visible_at_every_moment_of_its_promotion(world: World) -> None:
    await world.upload(bytes(600))
    promoting = asyncio.create_task(world.lifecycle.promote_version("m", 1))
    while not promoting.done():
        assert await world.numbers() == [1]
        assert await world.retrieve(1) == bytes(600)
    assert (await promoting).info.archived


async def test_publishes_evict_no_version_that_is_being_promoted(world: World) -> None:
    await world.upload()
    promoting = asyncio.create_task(world.lifecycle.promote_version("m", 1))
    await asyncio.sleep(0)
    for _ in range(2 * MAX_ITEMS):
        await world.upload()
    assert (await promoting).info.number == 1
    assert await world.retrieve(1) == b"data"


async def test_an_evicted_version_cannot_be_promoted(world: World) -> None:
    for _ in range(MAX_ITEMS + 1):
        await world.upload()
    with pytest.raises(NotFoundError):
        await world.lifecycle.promote_version("m", 1)


async def test_a_promotion_without_space_changes_nothing(world: World) -> None:
    info = await world.upload(bytes(600))
    world.archive.max_bytes = 100
    with pytest.raises(TooLargeError):
        await world.lifecycle.promote_version("m", 1)
    assert await world.registry.get_versions("m", [1]) == [info]
    assert await world.retrieve(1) == bytes(600)


async def test_a_version_promoted_by_two_calls_is_promoted_once(world: World) -> None:
    await world.upload()
    both = await asyncio.gather(*(world.lifecycle.promote_version("m", 1) for _ in range(2)))
    assert both[0] == both[1]


@pytest.mark.parametrize("archived", [False, True])
async def test_deleting_the_newest_version_never_reuses_its_number(world: World, archived: bool) -> None:
    for _ in range(2):
        await world.upload(archived=archived)
    await world.lifecycle.delete_version("m", -1)
    assert await world.numbers() == [1]
    with pytest.raises(NotFoundError):
        await world.lifecycle.delete_version("m", 2)
    assert (await world.upload(archived=archived)).number == 3


async def test_a_version_with_an_alias_is_deleted_only_by_force(world: World) -> None:
    await world.upload(archived=True)
    await world.lifecycle.set_aliases("m", [AliasChange("production", 1), AliasChange("best", 1)])
    with pytest.raises(PreconditionError, match='has the alias "best", "production"'):
        await world.lifecycle.delete_version("m", 1)
    await world.lifecycle.delete_version("m", "production", force=True)
    assert await world.lifecycle.get_aliases("m") == []
    assert await world.numbers() == []


async def test_a_deletion_that_expects_certain_objections_accepts_no_others(world: World) -> None:
    await world.upload(archived=True)
    nothing = await world.lifecycle.objections("m", 1)
    assert (nothing.aliases, nothing.held) == ((), "")
    await world.lifecycle.set_aliases("m", [AliasChange("production", 1)])
    one = await world.lifecycle.objections("m", "production")
    assert one.aliases == ("production",)
    for force in (False, True):
        with pytest.raises(ConflictError, match='pointed to by the alias "production" now'):
            await world.lifecycle.delete_version("m", 1, force=force, expected_state=nothing.state)
    await world.lifecycle.set_aliases("m", [AliasChange("canary", 1)])
    with pytest.raises(ConflictError, match='"canary", "production"'):
        await world.lifecycle.delete_version("m", 1, force=True, expected_state=one.state)
    assert await world.numbers() == [1]
    two = await world.lifecycle.objections("m", 1)
    with pytest.raises(PreconditionError):
        await world.lifecycle.delete_version("m", 1, expected_state=two.state)
    await world.lifecycle.delete_version("m", 1, force=True, expected_state=two.state)
    assert await world.numbers() == []


async def test_an_alias_is_accepted_wherever_a_version_is(world: World) -> None:
    for _ in range(3):
        await world.upload(archived=True)
    await world.lifecycle.set_aliases("m", [AliasChange("production", 2)])
    versions = await world.lifecycle.get_versions([("m", "production"), ("m", -1), ("m", 1)])
    assert [version.info.number for version in versions] == [2, 3, 1]
    assert versions[0].aliases == ("production",)
    with pytest.raises(NotFoundError, match='no alias "canary"'):
        await world.lifecycle.get_version("m", "canary")


async def test_an_alias_of_a_transient_version_promotes_it(world: World) -> None:
    await world.upload()
    [alias] = await world.lifecycle.set_aliases("m", [AliasChange("production", -1, 0)])
    assert alias.version_number == 1
    assert (await world.lifecycle.get_version("m", 1)).info.archived


async def test_aliases_change_all_or_none(world: World) -> None:
    await world.upload(archived=True)
    with pytest.raises(ConflictError, match="does not exist"):
        await world.lifecycle.set_aliases("m", [AliasChange("best", 1), AliasChange("production", 1, 7)])
    assert await world.lifecycle.get_aliases("m") == []


@pytest.mark.parametrize(
    "refused",
    [AliasChange("best", 1, 7), AliasChange("best", 2), AliasChange("best", None)],
    ids=["another revision", "no such version", "no such alias"],
)
async def test_a_refused_change_of_aliases_promotes_nothing(world: World, refused: AliasChange) -> None:
    info = await world.upload()
    with pytest.raises((ConflictError, NotFoundError)):
        await world.lifecycle.set_aliases("m", [AliasChange("production", 1), refused])
    assert await world.registry.get_versions("m", [1]) == [info]


@pytest.mark.parametrize("alias", ["latest", "7", "-1", "", "a/b", ".hidden", "x" * 17])
async def test_an_invalid_alias_is_refused(world: World, alias: str) -> None:
    await world.upload(archived=True)
    with pytest.raises(InvalidError, match="alias"):
        await world.lifecycle.set_aliases("m", [AliasChange(alias, 1)])


async def test_annotations_obey_the_limits(world: World) -> None:
    await world.upload()
    for change in (
        AnnotationChange(set_metrics={"return": float("nan")}),
        AnnotationChange(set_metrics={"return": float("inf")}),
        AnnotationChange(set_tags={"note": "x" * 100}),
    ):
        with pytest.raises(InvalidError):
            await world.lifecycle.update_version("m", 1, change)
    assert (await world.lifecycle.get_version("m", 1)).annotations.metrics == {}


@pytest.mark.parametrize("archived", [False, True])
async def test_tags_and_metrics_of_a_version_are_bounded_whatever_the_number_of_changes(
    world: World, archived: bool
) -> None:
    await world.upload(archived=archived)
    await world.lifecycle.update_version("m", 1, AnnotationChange({"a": "x" * 49}, (), {"b": 1.0}))
    with pytest.raises(InvalidError, match="would have 110 bytes; at most 100 are allowed"):
        await world.lifecycle.update_version("m", 1, AnnotationChange({"c": "x" * 50}))
    version = await world.lifecycle.update_version("m", 1, AnnotationChange({"c": "x" * 50}, ("a",)))
    assert version.tags == {"c": "x" * 50}


async def test_a_search_finds_versions_of_either_tier(world: World) -> None:
    for archived in (False, True, False):
        info = await world.upload(archived=archived)
        change = AnnotationChange(set_metrics={"return": 10 * info.number})
        await world.lifecycle.update_version("m", info.number, change)
    found = await world.lifecycle.search("m", parse_filter("metrics.return >= 20"), BY_NUMBER, None, 10)
    assert [(version.info.number, version.info.archived) for version in found] == [(2, True), (3, False)]
    with pytest.raises(NotFoundError):
        await world.lifecycle.search("none", EVERYTHING, BY_NUMBER, None, 10)


@pytest.mark.parametrize("model_id", ["", "a/b", "none"])
async def test_every_call_refuses_an_invalid_model_id(world: World, model_id: str) -> None:
    lifecycle = world.lifecycle
    for call in (
        lifecycle.get_version(model_id, 1),
        lifecycle.promote_version(model_id, 1),
        lifecycle.delete_version(model_id, 1),
        lifecycle.update_version(model_id, 1, AnnotationChange()),
        lifecycle.get_aliases(model_id),
        lifecycle.set_aliases(model_id, []),
    ):
        with pytest.raises(ModelRegistryError) as refusal:
            await call
        assert isinstance(refusal.value, NotFoundError if model_id == "none" else InvalidError)
