"""The rules of the registry, on backends in memory: no files, no network, milliseconds."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import pytest

from cogment_model_registry.errors import (
    DataLossError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
    UnavailableError,
)
from cogment_model_registry.records.versions import ModelInfo, VersionHeader, VersionInfo
from cogment_model_registry.registry.contracts import Reader
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.registry import LOAD_MAX, Limits, Registry
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables

MAX_ITEMS = 4
MAX_BYTES = 1000


def header_of(size_bytes: int, model_id: str = "m", *, archived: bool = False, data_hash: str = "") -> VersionHeader:
    """Return the header of an upload."""
    return VersionHeader(
        model_id=model_id,
        archived=archived,
        data_size_bytes=size_bytes,
        data_hash=data_hash,
        created_ns=0,
        user_data={},
    )


@dataclass
class World:
    """A registry, and the backends below it."""

    registry: Registry
    catalog: MemoryCatalog
    archive: MemoryArchive
    transient: MemoryTransientStore

    async def upload(
        self, data: bytes = b"data", model_id: str = "m", *, archived: bool = False, data_hash: str = ""
    ) -> VersionInfo:
        header = header_of(len(data), model_id, archived=archived, data_hash=data_hash)
        async with await self.registry.create_version(header) as upload:
            await upload.write(memoryview(data))
            return await upload.commit()

    async def numbers(self, model_id: str = "m") -> list[int]:
        return [info.number for info in await self.registry.list_versions(model_id, 0, 100)]

    async def retrieve(self, number: int, model_id: str = "m") -> bytes:
        async with await self.registry.open_version(model_id, number) as reader:
            return b"".join([b"".join(chunk) async for chunk in reader.chunks(7, 100)])


@pytest.fixture
async def world(hashing: ThreadPoolExecutor) -> AsyncIterator[World]:
    """A registry with the model ``m``."""
    catalog, archive = MemoryCatalog(Tables()), MemoryArchive({}, MAX_BYTES)
    transient = MemoryTransientStore(MAX_ITEMS, MAX_BYTES, hashing)
    registry = Registry(Limits(16, 100, 3), catalog, archive, transient)
    await registry.create_or_update_model(ModelInfo("m"))
    yield World(registry, catalog, archive, transient)
    await catalog.close()


@pytest.mark.parametrize("archived", [False, True])
async def test_a_version_of_either_tier_comes_back_under_its_number(world: World, archived: bool) -> None:
    info = await world.upload(b"0123456789", archived=archived)
    assert (info.number, info.archived, info.data_hash) == (1, archived, hash_of(b"0123456789"))
    assert await world.registry.get_versions("m", [1, -1]) == [info, info]
    assert await world.retrieve(-1) == b"0123456789"


async def test_a_read_only_registry_refuses_writes_and_assigns_no_number(world: World) -> None:
    await world.upload(b"first", archived=True)
    archive = MemoryArchive(world.archive.shelf, MAX_BYTES, read_only=True)
    registry = Registry(Limits(16, 100, 3), world.catalog, archive, world.transient)
    reading = World(registry, world.catalog, archive, world.transient)
    for model_id in ("m", "unknown"):
        for call in (
            registry.create_or_update_model(ModelInfo(model_id)),
            registry.delete_model(model_id),
            reading.upload(b"data", model_id),
            reading.upload(b"data", model_id, archived=True),
        ):
            with pytest.raises(PreconditionError, match="read-only"):
                await call
    assert await reading.retrieve(-1) == b"first"
    assert (await registry.status()).is_read_only
    assert (await world.upload(b"second")).number == 2


async def test_versions_created_at_the_same_time_get_different_numbers(world: World) -> None:
    infos = await asyncio.gather(*(world.upload(archived=bool(index % 2)) for index in range(8)))
    assert sorted(info.number for info in infos) == list(range(1, 9))


async def test_evicted_versions_leave_the_listing(world: World) -> None:
    for _ in range(MAX_ITEMS + 2):
        await world.upload()
    assert await world.numbers() == [3, 4, 5, 6]
    with pytest.raises(NotFoundError):
        await world.registry.get_versions("m", [2])


async def test_arriving_bytes_of_an_upload_evict_older_versions(world: World) -> None:
    await world.upload(bytes(600))
    await world.upload(bytes(300))
    header = header_of(500)
    async with await world.registry.create_version(header) as upload:
        await upload.write(memoryview(bytes(100)))
        assert await world.numbers() == [2]


async def test_the_listing_is_never_empty_while_the_only_version_is_replaced(world: World) -> None:
    transient = MemoryTransientStore(1, MAX_BYTES, world.transient.executor)
    registry = Registry(Limits(16, 100, 3), world.catalog, world.archive, transient)
    one_item = World(registry, world.catalog, world.archive, transient)
    await one_item.upload()
    uploading = asyncio.create_task(one_item.upload())
    while not uploading.done():
        assert await one_item.numbers() in ([1], [1, 2], [2])
    assert await one_item.numbers() == [2]


async def test_a_version_evicted_before_it_is_visible_is_never_listed(world: World) -> None:
    """With a slow database, time passes between the commit of a version and its visibility."""
    is_committed, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait(info: VersionInfo) -> None:
        if info.model_id == "m":
            is_committed.set()
            await may_go_on.wait()

    world.catalog.before_visible = wait
    uploading = asyncio.create_task(world.upload())
    await is_committed.wait()
    await world.registry.create_or_update_model(ModelInfo("other"))
    # A reader for each version of the other model leaves the new one as the only victim.
    async with AsyncExitStack() as stack:
        for _ in range(MAX_ITEMS):
            info = await world.upload(model_id="other")
            await stack.enter_async_context(await world.registry.open_version("other", info.number))
    may_go_on.set()
    await uploading
    assert await world.numbers() == []
    assert await world.numbers("other") == [1, 2, 3, 4]


async def test_a_newer_archived_version_ends_the_protection_of_the_newest_transient_one(world: World) -> None:
    await world.registry.create_or_update_model(ModelInfo("other"))
    await world.upload(model_id="other")
    await world.upload()
    await world.upload(archived=True)
    for position in range(MAX_ITEMS - 1):
        await world.registry.create_or_update_model(ModelInfo(f"new {position}"))
        await world.upload(model_id=f"new {position}")
    assert await world.numbers() == [2]
    assert await world.numbers("other") == [1]


async def test_a_deleted_model_is_gone_from_all_backends_and_its_readers_continue(world: World) -> None:
    await world.upload(b"transient")
    await world.upload(b"archived", archived=True)
    async with (
        await world.registry.open_version("m", 1) as transient,
        await world.registry.open_version("m", 2) as archived,
    ):
        await world.registry.delete_model("m")
        for reader, data in ((transient, b"transient"), (archived, b"archived")):
            assert b"".join([b"".join(chunk) async for chunk in reader.chunks(100, 100)]) == data
    assert (world.transient.usage.items, world.archive.shelf) == (0, {})
    with pytest.raises(NotFoundError):
        await world.registry.get_models(["m"])
    await world.registry.create_or_update_model(ModelInfo("m"))
    assert (await world.upload()).number == 1


async def test_a_model_whose_files_were_removed_by_hand_can_be_deleted(world: World) -> None:
    await world.upload()
    world.archive.shelf.clear()
    await world.registry.delete_model("m")
    assert world.transient.usage.items == 0


async def test_an_upload_to_a_deleted_model_is_not_found_even_if_a_new_model_has_its_name(world: World) -> None:
    for archived in (False, True):
        header = header_of(1, archived=archived)
        async with await world.registry.create_version(header) as upload:
            await upload.write(memoryview(b"x"))
            await world.registry.delete_model("m")
            await world.registry.create_or_update_model(ModelInfo("m"))
            with pytest.raises(NotFoundError):
                await upload.commit()
    assert await world.numbers() == []


@pytest.mark.parametrize(
    ("received", "declared", "data_hash"), [(b"12", 3, ""), (b"1234", 3, ""), (b"123", 3, hash_of(b"other"))]
)
async def test_bytes_that_differ_from_the_header_create_nothing(
    world: World, received: bytes, declared: int, data_hash: str
) -> None:
    header = header_of(declared, archived=True, data_hash=data_hash)

    async def upload() -> None:
        async with await world.registry.create_version(header) as upload:
            await upload.write(memoryview(received))
            await upload.commit()

    with pytest.raises(InvalidError):
        await upload()
    assert await world.numbers() == []
    assert (await world.upload()).number == 1


async def test_a_commit_completes_when_its_caller_is_cancelled(world: World) -> None:
    header = header_of(1, archived=True)
    async with await world.registry.create_version(header) as upload:
        await upload.write(memoryview(b"x"))
        committing = asyncio.create_task(upload.commit())
        while not world.archive.shelf["m"].versions:  # noqa: ASYNC110 # each step of the commit is one turn of the loop
            await asyncio.sleep(0)
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
    assert await world.retrieve(1) == b"x"


@pytest.mark.parametrize("number", [1, -1])
async def test_a_version_that_is_promoted_while_it_is_opened_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    info = await world.upload()
    lifecycle = Lifecycle(world.registry, world.catalog, world.archive, world.transient)
    open_version = world.transient.open_version

    async def promote_first(info: VersionInfo) -> Reader:
        monkeypatch.undo()
        await lifecycle.promote_version("m", info.number)
        return await open_version(info)

    monkeypatch.setattr(world.transient, "open_version", promote_first)
    assert await world.retrieve(number) == b"data"
    [promoted] = await world.registry.get_versions("m", [info.number])
    assert promoted.archived


async def test_damage_found_by_a_reader_removes_the_version_from_the_listing(world: World) -> None:
    info = await world.upload(b"data", archived=True)
    await world.upload(b"sound", archived=True)
    world.archive.shelf["m"].versions[1] = (info, b"dada")
    for _ in range(2):
        with pytest.raises(DataLossError):
            await world.retrieve(1)
    assert await world.numbers() == [2]


@pytest.mark.parametrize("model_id", ["", "..", "a/b", "x" * 17])
async def test_ids_that_break_a_rule_are_refused_by_every_call(world: World, model_id: str) -> None:
    registry = world.registry
    for call in (
        registry.create_or_update_model(ModelInfo(model_id)),
        registry.delete_model(model_id),
        registry.get_models([model_id]),
        registry.list_versions(model_id, 0, 1),
        registry.get_versions(model_id, [1]),
        registry.open_version(model_id, 1),
        anext(registry.watch(model_id)),
        world.upload(model_id=model_id),
    ):
        with pytest.raises(InvalidError):
            await call


async def test_requests_above_the_limits_are_refused(world: World) -> None:
    refused: Sequence[tuple[object, type[ModelRegistryError]]] = [
        (world.registry.get_models(["m"] * 4), InvalidError),
        (world.registry.get_versions("m", [1] * 4), InvalidError),
        (world.registry.create_or_update_model(ModelInfo("m", {"key": "x" * 98})), InvalidError),
        (world.upload(bytes(MAX_BYTES + 1)), TooLargeError),
        (world.upload(bytes(MAX_BYTES + 1), archived=True), TooLargeError),
    ]
    for call, kind in refused:
        with pytest.raises(kind):
            await call  # type: ignore[misc] # coroutines of different results
    await world.registry.create_or_update_model(ModelInfo("m", {"key": "x" * 97}))


async def test_a_watch_is_counted_while_it_lasts_and_ends_with_the_catalog(world: World) -> None:
    async with aclosing(world.registry.watch("m")) as watch:
        await world.upload()
        assert (await anext(watch)).number == 1
        assert (await world.registry.status()).watchers == 1
        world.catalog.stop_watching()
        with pytest.raises(UnavailableError):
            await anext(watch)
    assert (await world.registry.status()).watchers == 0


async def test_the_status_counts_visible_versions_and_active_calls(world: World) -> None:
    await world.upload(bytes(500))
    await world.upload(bytes(100), archived=True)
    async with await world.registry.open_version("m", 1):
        status = await world.registry.status()
    assert (status.models, status.versions, status.archived_bytes, status.readers) == (1, 2, 100, 1)
    assert status.load == round(0.5 * LOAD_MAX)  # half of the memory is pinned by the reader
    assert (await world.registry.status()).load == 0
