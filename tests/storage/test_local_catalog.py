"""The local catalog passes the conformance suite; how it persists numbers and reads metadata is tested below."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from sqlite3 import Connection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogment_model_registry.errors import DataLossError, NotFoundError, TooLargeError, UnavailableError
from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo
from cogment_model_registry.registry.contracts import Catalog
from cogment_model_registry.storage.catalog import requests
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.testing.archive import remove
from cogment_model_registry.testing.bytes import describe, keep, read
from cogment_model_registry.testing.catalog import counted, publish
from tests.storage.local_catalog import LocalCatalogSuite
from tests.torture import full_disk


def database_at(place: Path) -> Database:
    return Database(str(place / "catalog.db"), MIGRATIONS)


def archive_at(place: Path) -> DirectoryArchive:
    return DirectoryArchive(str(place / "archive"), model_id_max_bytes=128)


class TestLocalCatalog(LocalCatalogSuite):
    @asynccontextmanager
    async def opened(self, place: Path) -> AsyncIterator[Catalog]:
        archive = archive_at(place)
        await archive.open()
        catalog = LocalCatalog(archive, database_at(place))
        await catalog.open()
        yield catalog
        await catalog.close()
        await archive.close()


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_crash_leaves_an_upload_complete_or_absent(tmp_path: Path, is_committed: bool) -> None:
    """The crash is after the upload was recorded: before its version exists, or before its aliases are set."""
    request = UploadRequest("id", "digest", ("best", "last"))
    archive, database = archive_at(tmp_path), database_at(tmp_path)
    await archive.open()
    catalog = LocalCatalog(archive, database)
    await catalog.open()
    async with catalog.writing_model(ModelInfo("m")):
        await archive.write_model(ModelInfo("m"))
    slot = await catalog.publishing(await catalog.find("m")).__aenter__()
    info = describe("m", slot.number, b"data", True)
    await slot.annotate(info, Annotations(), request)
    if is_committed:
        await keep(archive, info, b"data")
    await catalog._index.close()  # a crash persists no numbers
    await archive.close()

    for _ in range(2):
        again = archive_at(tmp_path)
        await again.open()
        catalog = LocalCatalog(again, database_at(tmp_path))
        await catalog.open()
        aliases = [(alias.name, alias.version_number) for alias in await catalog.get_aliases("m")]
        assert aliases == ([("best", 1), ("last", 1)] if is_committed else [])
        assert await catalog.find_upload("id") == (FinishedUpload("digest", "m", 1) if is_committed else None)
        await catalog.close()
        await again.close()


@pytest.mark.skipif(bool(full_disk.missing()), reason="only root may mount a file system")
async def test_a_start_after_a_crash_needs_no_space(tmp_path: Path) -> None:
    suite = TestLocalCatalog()
    with full_disk.mounted(tmp_path / "disk", "size=4m") as disk:
        async with suite.opened(disk) as catalog:
            await suite.put_model(catalog, "m")
            info = await suite.publish_archived(catalog, Annotations(), UploadRequest("id", "digest"))
        database = database_at(disk)
        await database.open()

        def crash(connection: Connection) -> None:
            requests.put(connection, info, UploadRequest("id", "digest", ("best",)), ())
            requests.put(connection, replace(info, number=9), UploadRequest("unfinished", "digest"), ())

        await database.change(crash)
        await database.close()
        ballast = full_disk.Ballast(disk)
        ballast.leave(10)  # for the file of SQLite that readers share
        async with suite.opened(disk) as catalog:
            ballast.leave_nothing()
            assert await catalog.find_upload("unfinished") is None
            with pytest.raises(TooLargeError):
                await catalog.find_upload("id")
            ballast.give_back()
            assert await catalog.find_upload("id") == FinishedUpload("digest", "m", info.number)
            assert [alias.name for alias in await catalog.get_aliases("m")] == ["best"]


async def test_the_upload_of_a_deleted_version_is_known_after_a_restart(tmp_path: Path) -> None:
    suite = TestLocalCatalog()
    async with suite.opened(tmp_path) as catalog:
        await suite.put_model(catalog, "m")
        info = await suite.publish_archived(catalog, Annotations(), UploadRequest("id", "digest"))
        assert isinstance(catalog, LocalCatalog)
        async with catalog.removing_version(await catalog.find("m"), info.number):
            await catalog._archive.remove_version(info)
    async with suite.opened(tmp_path) as catalog:
        assert await catalog.find_upload("id") == FinishedUpload("digest", "m", 0)


async def test_old_uploads_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_KEPT_MAX", 2)
    suite = TestLocalCatalog()
    ids = [str(number) for number in range(5)]
    async with suite.opened(tmp_path) as catalog:
        await suite.put_model(catalog, "m")
        for request_id in ids:
            await suite.publish_archived(catalog, Annotations(), UploadRequest(request_id, "digest"))
        known = [request_id for request_id in ids if await catalog.find_upload(request_id)]
    async with suite.opened(tmp_path) as catalog:
        assert [request_id for request_id in ids if await catalog.find_upload(request_id)] == known
    assert known == ids[2:]


async def crash_and_count(place: Path, publishes: list[int], block: int) -> list[int]:
    """Publish a number of versions in each run of a catalog, end each run by a crash, and return all numbers."""
    numbers = []
    for count in publishes:
        archive = archive_at(place)
        await archive.open()
        database = database_at(place)
        catalog = LocalCatalog(archive, database, number_block=block)
        await catalog.open()
        if not await catalog.list_models(0, 1):
            async with catalog.writing_model(ModelInfo("m")):
                await archive.write_model(ModelInfo("m"))
        numbers += [(await publish(catalog, "m")).number for _ in range(count)]
        # A crash: no `catalog.close()`, and a mark that was being persisted may be lost or not.
        persisting = catalog._models.by_id["m"].persisting
        if persisting is not None:
            await asyncio.wait([persisting])
        await database.close()
        await archive.close()
    return numbers


@settings(max_examples=25, deadline=None)
@given(publishes=st.lists(st.integers(0, 12), min_size=1, max_size=5), block=st.integers(1, 8))
def test_numbers_increase_across_crashes(
    tmp_path_factory: pytest.TempPathFactory, publishes: list[int], block: int
) -> None:
    numbers = asyncio.run(crash_and_count(tmp_path_factory.mktemp("crash"), publishes, block))
    assert numbers == sorted(set(numbers))
    # A crash skips the rest of a block at most.
    assert not numbers or numbers[-1] <= sum(publishes) + block * len(publishes)


async def test_publishing_writes_one_mark_per_block(tmp_path: Path) -> None:
    archive = archive_at(tmp_path)
    await archive.open()
    marks: list[int] = []
    write = archive.write_high_water_mark

    async def recorded(model_id: str, number: int) -> None:
        marks.append(number)
        await write(model_id, number)

    archive.write_high_water_mark = recorded  # type: ignore[method-assign] # looked at, not replaced
    catalog = LocalCatalog(archive, database_at(tmp_path), number_block=10)
    await catalog.open()
    async with catalog.writing_model(ModelInfo("m")):
        await archive.write_model(ModelInfo("m"))
    for _ in range(100):
        await publish(catalog, "m")
    assert len(marks) <= 21
    await catalog.close()
    assert marks[-1] == 100
    await archive.close()


@asynccontextmanager
async def catalog_over(archive: DirectoryArchive) -> AsyncIterator[LocalCatalog]:
    catalog = LocalCatalog(archive, database_at(Path(archive.directory._path)))
    await catalog.open()
    yield catalog
    await catalog.close()


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[DirectoryArchive]:
    """An archive with the model ``m`` and its versions 1 to 5."""
    archive = archive_at(tmp_path)
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    for number in range(1, 6):
        await keep(archive, describe("m", number, b"data", True), b"data")
    yield archive
    await archive.close()


def metadata_file(archive: DirectoryArchive, number: int) -> Path:
    return Path(archive.directory._path, "m", f"m-v{number:06d}.yaml")


def damage(archive: DirectoryArchive, number: int) -> None:
    metadata_file(archive, number).write_text("")


async def test_a_version_found_damaged_is_not_counted_from_the_last(archive: DirectoryArchive) -> None:
    async with catalog_over(archive) as catalog:
        damage(archive, 4)
        assert [info.number for info in await catalog.get_versions("m", [-3, -1, -2])] == [2, 5, 3]
        with pytest.raises(DataLossError):
            await catalog.get_versions("m", [4])
        with pytest.raises(NotFoundError):
            await catalog.get_versions("m", [-5])


async def test_a_listing_is_not_shorter_for_a_version_found_damaged(archive: DirectoryArchive) -> None:
    async with catalog_over(archive) as catalog:
        damage(archive, 2)
        assert [info.number for info in await catalog.list_versions("m", 0, 3)] == [1, 3, 4]


async def test_metadata_that_the_cache_dropped_is_read_again(archive: DirectoryArchive) -> None:
    async with catalog_over(archive) as catalog:
        before = await catalog.list_versions("m", 0, 10)
        catalog._models._infos.clear()
        assert await catalog.list_versions("m", 0, 10) == before
        catalog._models._infos.clear()
        assert await catalog.get_versions("m", [3, -1]) == [before[2], before[4]]


async def test_a_refresh_finds_added_removed_and_repaired_versions(archive: DirectoryArchive) -> None:
    gone: list[str] = []

    async def removed(model_id: str) -> None:
        gone.append(model_id)

    async with catalog_over(archive) as catalog:
        damage(archive, 2)
        assert len(await catalog.list_versions("m", 0, 10)) == 4
        await publish(catalog, "m")
        for name in ("m-v000002.yaml", "m-v000002.data"):
            os.unlink(os.path.join(archive.directory._path, "m", name))
        await keep(archive, describe("m", 2, b"mended", True), b"mended")
        await keep(archive, describe("m", 9, b"new", True), b"new")
        os.unlink(metadata_file(archive, 1))
        await archive.write_model(ModelInfo("other"))
        await catalog.refresh(removed)
        assert [info.number for info in await catalog.list_versions("m", 0, 10)] == [2, 3, 4, 5, 6, 9]
        assert [info.model_id for info in await catalog.list_models(0, 10)] == ["m", "other"]
        assert await counted(catalog) == (2, 6)
        assert (await publish(catalog, "m")).number == 10
        await remove(archive, "other")
        await catalog.refresh(removed)
        assert await counted(catalog) == (1, 7)
        assert gone == ["other"]


async def test_a_model_added_by_hand_keeps_its_versions_when_it_is_created(tmp_path: Path) -> None:
    archive = archive_at(tmp_path)
    await archive.open()
    async with catalog_over(archive) as catalog:
        await archive.write_model(ModelInfo("m"))
        await keep(archive, describe("m", 1, b"outside", True), b"outside")
        async with catalog.writing_model(ModelInfo("m", {"a": "b"})):
            await archive.write_model(ModelInfo("m", {"a": "b"}))
        assert await catalog.get_model("m") == ModelInfo("m", {"a": "b"})
        assert (await publish(catalog, "m")).number == 2
        assert [info.number for info in await catalog.list_versions("m", 0, 10)] == [1, 2]
    await archive.close()


async def test_the_highest_numbers_are_used_once_and_survive_a_restart(tmp_path: Path) -> None:
    archive = archive_at(tmp_path)
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    await archive.write_high_water_mark("m", VERSION_NUMBER_MAX - 3)
    numbers = []
    for _ in range(2):
        async with catalog_over(archive) as catalog:
            numbers += [(await publish(catalog, "m")).number]
    async with catalog_over(archive) as catalog:
        numbers += [(await publish(catalog, "m")).number]
        with pytest.raises(TooLargeError):
            await publish(catalog, "m")
    assert numbers == [VERSION_NUMBER_MAX - 2, VERSION_NUMBER_MAX - 1, VERSION_NUMBER_MAX]
    await archive.close()


async def test_a_version_never_replaces_one_added_by_hand(archive: DirectoryArchive) -> None:
    info = describe("m", 5, b"data", True)
    with pytest.raises(UnavailableError):
        await keep(archive, describe("m", 5, b"other", True), b"other")
    assert await read(archive, info) == b"data"
