"""The local catalog over an archive in a bucket, which has its numbers and outlives its database."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from obstore.store import MemoryStore, ObjectStore

from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.registry.contracts import Catalog
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.testing.bytes import describe, keep
from cogment_model_registry.testing.catalog import publish
from tests.storage.local_catalog import LocalCatalogSuite


@asynccontextmanager
async def opened_at(store: ObjectStore, folder: Path) -> AsyncIterator[LocalCatalog]:
    """Open a catalog in a folder over the archive in a store."""
    archive = BucketArchive(Objects(store, "test://bucket"))
    await archive.open()
    os.makedirs(folder, exist_ok=True)
    catalog = LocalCatalog(archive, Database(str(folder / "catalog.db"), MIGRATIONS))
    await catalog.open()
    yield catalog
    await catalog.close()
    await archive.close()


class TestLocalCatalogOfABucket(LocalCatalogSuite):
    """In memory: `ArchiveSuite` shows that an archive on S3 does the same."""

    @pytest.fixture(autouse=True)
    def _stores(self, brief_probe: None) -> None:
        self.stores: dict[Path, MemoryStore] = {}

    @asynccontextmanager
    async def opened(self, place: Path) -> AsyncIterator[Catalog]:
        async with opened_at(self.stores.setdefault(place, MemoryStore()), place) as catalog:
            yield catalog


async def put_model(catalog: LocalCatalog, model_id: str) -> None:
    async with catalog.writing_model(ModelInfo(model_id)):
        await catalog._archive.write_model(ModelInfo(model_id))


async def store_version(catalog: LocalCatalog, model_id: str, data: bytes) -> int:
    async with catalog.publishing(await catalog.find(model_id)) as slot:
        info = describe(model_id, slot.number, data, True)
        await keep(catalog._archive, info, data)
        slot.show(info)
    return slot.number


async def test_a_lost_database_is_rebuilt_from_the_bucket_and_no_number_is_given_twice(tmp_path: Path) -> None:
    store = MemoryStore()
    async with opened_at(store, tmp_path / "1") as catalog:
        await put_model(catalog, "m")
        stored = [await store_version(catalog, "m", bytes(size)) for size in (1, 10, 100)]
        published = [(await publish(catalog, "m")).number for _ in range(3)]
    shutil.rmtree(tmp_path / "1")
    async with opened_at(store, tmp_path / "2") as catalog:
        infos = await catalog.list_versions("m", 1, 100)
        assert [info.number for info in infos] == stored
        assert [info.data_size_bytes for info in infos] == [1, 10, 100]
        assert (await catalog.count()).archived_bytes == 111
        assert (await publish(catalog, "m")).number > max(published)


async def test_a_start_with_the_database_reads_no_records(tmp_path: Path) -> None:
    store = MemoryStore()
    async with opened_at(store, tmp_path / "1") as catalog:
        await put_model(catalog, "m")
        for size in range(20):
            await store_version(catalog, "m", bytes(size))
    operations: list[str] = []
    async with opened_at(store, tmp_path / "1") as catalog:
        await catalog._index._following.wait()  # reads all of a model that was not compared before
    archive = BucketArchive(Objects(store, "test://bucket", lambda operation, _seconds: operations.append(operation)))
    await archive.open()
    operations.clear()
    catalog = LocalCatalog(archive, Database(str(tmp_path / "1/catalog.db"), MIGRATIONS))
    await catalog.open()
    await catalog._index._following.wait()
    await archive.swept()
    assert operations.count("get") == 0
    assert (await catalog.count()).archived_bytes == sum(range(20))
    await catalog.close()
    await archive.close()
