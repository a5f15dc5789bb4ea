"""The rules of repeatable uploads, on backends in memory."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cogment_model_registry.errors import (
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    TimedOutError,
    TooLargeError,
)
from cogment_model_registry.records.lifecycle import AliasChange, Version
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.parking import PARKED_MAX
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.resuming import RepeatableUploads
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables
from tests.waiting import until

DATA = bytes(range(100))
MAX_ITEMS, MAX_BYTES = 4, 1000


@dataclass
class World:
    """A registry, and the backends below it."""

    registry: Registry
    uploads: RepeatableUploads
    lifecycle: Lifecycle
    catalog: MemoryCatalog
    archive: MemoryArchive
    transient: MemoryTransientStore

    async def upload(self, header: UploadHeader, data: bytes = DATA) -> tuple[Version, int]:
        """Make a complete upload; return its version, and the number of bytes that the registry wanted."""
        async with self.uploads.begin(header) as upload:
            wanted = len(data) - upload.next_offset
            if not upload.is_complete:
                await upload.write(memoryview(data)[upload.next_offset :])
            return await upload.commit(), wanted

    async def interrupt(self, header: UploadHeader, size: int, data: bytes = DATA) -> None:
        """Make an upload that is interrupted after a number of bytes, as if its client vanished."""
        written = asyncio.Event()

        async def begin() -> None:
            async with self.uploads.begin(header) as upload:
                await upload.write(memoryview(data)[upload.next_offset : size])
                written.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(begin())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

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
    registry = Registry(Limits(16, 100, 3), catalog, archive, transient, resume_seconds=600)
    await registry.create_or_update_model(ModelInfo("m", {"a": "b"}))
    uploads = RepeatableUploads(registry, catalog, archive, transient)
    yield World(registry, uploads, Lifecycle(registry, catalog, archive, transient), catalog, archive, transient)
    await registry.parking.close()
    await catalog.close()
    assert transient.usage.held_bytes == 0


def header_of(data: bytes = DATA, request_id: str = "id", *, archived: bool = False, **fields: Any) -> UploadHeader:
    version = VersionHeader(fields.pop("model_id", "m"), archived, len(data), hash_of(data))
    return UploadHeader(version, request_id=request_id, **fields)


def without_hash(header: UploadHeader) -> UploadHeader:
    return replace(header, version=replace(header.version, data_hash=""))


BOTH_TIERS = pytest.mark.parametrize("archived", [False, True])


@BOTH_TIERS
async def test_a_version_becomes_visible_with_its_tags_metrics_and_aliases(world: World, archived: bool) -> None:
    aliases = ("best", "production") if archived else ()
    header = header_of(archived=archived, tags={"stage": "new"}, metrics={"return": 480.5}, aliases=aliases)
    version, wanted = await world.upload(header)
    assert (version.info.archived, version.number, wanted) == (archived, 1, len(DATA))
    assert (version.tags, version.metrics, version.aliases) == ({"stage": "new"}, {"return": 480.5}, aliases)
    assert await world.lifecycle.get_version("m", 1) == version
    assert await world.retrieve(1) == DATA


async def test_a_version_with_an_alias_is_archived(world: World) -> None:
    version, _ = await world.upload(header_of(request_id="", aliases=("production",)))
    assert version.info.archived
    assert await world.lifecycle.get_version("m", "production") == version


async def test_a_missing_model_is_created_only_on_request(world: World) -> None:
    with pytest.raises(NotFoundError):
        await world.upload(header_of(model_id="new"))
    await world.upload(header_of(model_id="new", create_model=True))
    await world.upload(header_of(request_id="2", create_model=True))
    assert await world.registry.get_models(["new", "m"]) == [ModelInfo("new"), ModelInfo("m", {"a": "b"})]


async def test_clients_that_create_a_model_at_once_share_it(world: World) -> None:
    headers = [header_of(request_id=str(number), model_id="new", create_model=True) for number in range(3)]
    versions = await asyncio.gather(*map(world.upload, headers))
    assert sorted(version.number for version, _ in versions) == [1, 2, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"request_id": "x" * 65},
        {"request_id": "two words"},
        {"request_id": "é"},
        {"metrics": {"return": float("nan")}},
        {"tags": {"note": "x" * 100}},
        {"aliases": ("latest",)},
        {"aliases": ("a", "b", "c", "d")},
        {"model_id": "a/b", "create_model": True},
    ],
)
async def test_a_header_that_breaks_a_rule_is_refused(world: World, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        await world.upload(header_of(**fields))
    assert await world.numbers() == []


# Repeated.


@BOTH_TIERS
async def test_a_finished_upload_answers_with_its_version(world: World, archived: bool) -> None:
    header = without_hash(header_of(archived=archived, metrics={"return": 1.0}))
    first, _ = await world.upload(header)
    assert await world.upload(header) == (first, 0)
    assert await world.numbers() == [1]


@BOTH_TIERS
async def test_a_repeated_upload_does_not_recreate_a_deleted_version(world: World, archived: bool) -> None:
    header = header_of(archived=archived)
    await world.upload(header)
    await world.lifecycle.delete_version("m", 1)
    with pytest.raises(NotFoundError, match=r"version 1 that this upload made of model \"m\" was evicted or deleted"):
        await world.upload(header)
    await world.registry.delete_model("m")
    await world.registry.create_or_update_model(ModelInfo("m"))
    with pytest.raises(NotFoundError, match="the version that this upload made"):
        await world.upload(header)
    assert await world.numbers() == []


@pytest.mark.parametrize(
    "other",
    [
        header_of(archived=True),
        header_of(bytes(100)),
        header_of(model_id="n"),
        header_of(tags={"a": "1"}),
        header_of(metrics={"a": 1.0}),
        header_of(aliases=("a",)),
        header_of(create_model=True),
    ],
)
@pytest.mark.parametrize("state", ["under way", "interrupted", "finished"])
async def test_an_id_of_another_upload_is_refused(world: World, other: UploadHeader, state: str) -> None:
    if state == "finished":
        await world.upload(header_of())
    elif state == "interrupted":
        await world.interrupt(header_of(), 10)
    async with world.uploads.begin(header_of()) as upload:
        with pytest.raises(ExistsError, match="request_id"):
            await world.upload(other)
        if not upload.is_complete:
            await upload.write(memoryview(DATA)[upload.next_offset :])
        await upload.commit()
    assert await world.numbers() == [1]


async def test_an_upload_without_an_id_is_never_a_repetition(world: World) -> None:
    for _ in range(2):
        await world.upload(without_hash(header_of(request_id="")))
    assert await world.numbers() == [1, 2]


# Resumed.


@BOTH_TIERS
async def test_an_interrupted_upload_resumes_where_it_stopped(world: World, archived: bool) -> None:
    header = header_of(archived=archived)
    await world.interrupt(header, 30)
    await world.interrupt(header, 60)
    assert await world.registry.status() == replace(await world.registry.status(), uploads=0)
    version, wanted = await world.upload(header)
    assert (version.number, wanted) == (1, 40)
    assert await world.retrieve(1) == DATA


async def test_an_upload_that_sent_nothing_for_too_long_can_be_resumed(world: World) -> None:
    async def stall() -> None:
        async with world.uploads.begin(header_of()) as upload:
            await upload.write(memoryview(DATA)[:30])
            raise TimedOutError("for the test")

    with pytest.raises(TimedOutError):
        await stall()
    assert (await world.upload(header_of()))[1] == 70


async def test_an_upload_that_ends_too_early_can_be_resumed(world: World) -> None:
    """gRPC may report a lost client as the end of its stream."""
    with pytest.raises(InvalidError, match="but 30 were received"):
        await world.upload(header_of(), DATA[:30])
    assert (await world.upload(header_of()))[1] == 70


async def test_an_upload_without_a_hash_starts_over(world: World) -> None:
    await world.interrupt(without_hash(header_of()), 30)
    assert world.transient.usage.held_bytes == 0
    assert (await world.upload(without_hash(header_of())))[1] == 100


async def test_bytes_that_do_not_match_the_hash_are_not_kept(world: World) -> None:
    await world.interrupt(header_of(), 30, bytes(100))
    with pytest.raises(InvalidError, match="data_hash"):
        await world.upload(header_of())
    assert (await world.upload(header_of()))[1] == 100


async def test_a_call_takes_over_from_one_whose_client_vanished(world: World) -> None:
    written = asyncio.Event()

    async def begin() -> None:
        async with world.uploads.begin(header_of()) as upload:
            await upload.write(memoryview(DATA)[:30])
            written.set()
            await asyncio.Event().wait()

    first = asyncio.create_task(begin())
    await written.wait()
    assert (await world.upload(header_of()))[1] == 70
    with pytest.raises(ConflictError, match="another call continues"):
        await first
    assert not first.cancelling()


async def test_calls_during_the_commit_return_its_version(world: World) -> None:
    is_committing, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_info: VersionInfo) -> None:
        is_committing.set()
        await go_on.wait()

    world.catalog.before_visible = pause
    first = asyncio.create_task(world.upload(header_of(archived=True)))
    await is_committing.wait()
    others = [asyncio.create_task(world.upload(header_of(archived=True))) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    done = await asyncio.gather(first, *others, return_exceptions=True)
    versions = [each[0] for each in done if isinstance(each, tuple)]
    assert versions
    assert all(version == versions[0] for version in versions)
    assert all(isinstance(each, tuple | ConflictError) for each in done)
    assert await world.numbers() == [1]


async def test_interrupted_uploads_make_room_for_others(world: World) -> None:
    for number in range(4):
        data = bytes([number]) * 200
        await world.interrupt(header_of(data, f"id{number}"), 100, data)
    async with await world.registry.create_version(VersionHeader("m", False, 500)) as upload:
        await upload.write(memoryview(bytes(500)))
        await upload.commit()
    assert (await world.upload(header_of(bytes([3]) * 200, "id3"), bytes([3]) * 200))[1] == 100
    with pytest.raises(TooLargeError):
        await world.registry.create_version(VersionHeader("m", False, MAX_BYTES + 1))


async def test_the_number_of_interrupted_uploads_is_bounded(world: World) -> None:
    for number in range(PARKED_MAX + 1):
        await world.interrupt(header_of(bytes([number]), f"id{number}", archived=True), 1, bytes([number]))
    assert world.registry.parking.header_of("id0") is None
    assert world.registry.parking.header_of("id1") is not None


async def test_an_interrupted_upload_is_kept_for_a_limited_time(world: World) -> None:
    world.registry.parking.seconds = 0.05
    await world.interrupt(header_of(), 30)
    await until(lambda: world.transient.usage.held_bytes == 0)
    assert (await world.upload(header_of()))[1] == 100


async def test_interrupted_uploads_are_dropped_with_their_model(world: World) -> None:
    await world.interrupt(header_of(), 30)
    await world.registry.delete_model("m")
    assert world.transient.usage.held_bytes == 0


# Bytes that the model has.


@pytest.mark.parametrize("source", [False, True])
@BOTH_TIERS
async def test_bytes_that_a_version_of_the_model_has_are_not_sent(world: World, archived: bool, source: bool) -> None:
    await world.upload(header_of(request_id="1", archived=source))
    version, wanted = await world.upload(header_of(request_id="2", archived=archived, tags={"a": "1"}))
    assert (version.number, version.info.archived, version.tags, wanted) == (2, archived, {"a": "1"}, 0)
    await world.lifecycle.delete_version("m", 1)
    assert await world.retrieve(2) == DATA


async def test_bytes_of_another_model_are_sent(world: World) -> None:
    await world.registry.create_or_update_model(ModelInfo("n"))
    await world.upload(header_of(request_id="1", model_id="n"))
    assert (await world.upload(header_of(request_id="2")))[1] == 100


async def test_bytes_of_a_damaged_version_are_sent(world: World) -> None:
    version, _ = await world.upload(header_of(request_id="1", archived=True))
    world.archive.shelf["m"].versions[1] = (version.info, bytes(100))
    assert (await world.upload(header_of(request_id="2", archived=True)))[1] == 100
    assert await world.numbers() == [2]


async def test_a_copy_that_does_not_fit_is_refused(world: World) -> None:
    data = bytes(600)
    await world.upload(header_of(data, "1", archived=True), data)
    async with await world.registry.create_version(VersionHeader("m", False, 500)):
        with pytest.raises(TooLargeError):
            await world.upload(header_of(data, "2"), data)
    assert (await world.upload(header_of(data, "2"), data))[1] == 0


async def test_a_moved_alias_gets_a_new_revision(world: World) -> None:
    await world.upload(header_of(request_id="1", aliases=("production",)))
    [before] = await world.lifecycle.get_aliases("m")
    await world.upload(header_of(request_id="2", aliases=("production",)))
    [after] = await world.lifecycle.get_aliases("m")
    assert (after.version_number, after.revision > before.revision) == (2, True)
    with pytest.raises(ConflictError):
        await world.lifecycle.set_aliases("m", [AliasChange("production", 1, before.revision)])
