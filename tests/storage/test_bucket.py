"""The archives in a bucket, of one server and of several, fulfil the contract on each kind of store."""

from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore, ObjectStore

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from cogment_model_registry.testing.archive import ArchiveSuite, remove
from cogment_model_registry.testing.bytes import describe, keep
from tests.object_store import S3Server

LEASE_SECONDS = 10.0


class Stores:
    """A kind of store."""

    @pytest.fixture(autouse=True)
    def _brief_probe(self, brief_probe: None) -> None:
        """Each test starts an archive once or more."""

    def store_at(self, place: Path) -> ObjectStore:
        """Return the store of a test."""
        raise NotImplementedError


class InMemory(Stores):
    @pytest.fixture(autouse=True)
    def _stores(self) -> None:
        self.stores: dict[Path, MemoryStore] = {}

    def store_at(self, place: Path) -> ObjectStore:
        return self.stores.setdefault(place, MemoryStore())


class OnALocalPath(Stores):
    def store_at(self, place: Path) -> ObjectStore:
        return LocalStore(place / "bucket", mkdir=True)


class OnS3(Stores):
    @pytest.fixture(autouse=True)
    def _server(self, object_store: S3Server) -> None:
        self.server = object_store

    def store_at(self, place: Path) -> ObjectStore:
        return self.server.store(str(place).strip("/"))


class BucketSuite(Stores, ArchiveSuite):
    """The archive of one server in a bucket: numbers have a mark, which counts."""

    def make(self, place: Path) -> BucketArchive:
        return BucketArchive(Objects(self.store_at(place), f"test://{place.name}"), lease_seconds=LEASE_SECONDS)

    async def test_numbers_in_use_and_the_high_water_mark_are_reported_separately(self, store: BucketArchive) -> None:
        await keep(store, describe("m", 5, b"data", True), b"data")
        await store.write_high_water_mark("m", 2)
        contents = await store.scan_model("m")
        assert contents is not None
        assert (contents.last_number, contents.high_water_mark) == (5, 2)
        assert await store.scan_model("other") is None

    async def test_the_high_water_mark_survives_a_restart_and_goes_with_its_model(
        self, store: BucketArchive, tmp_path: Path
    ) -> None:
        for mark in (128, 256, 200):
            await store.write_high_water_mark("m", mark)
        async with self.reopened(store, tmp_path) as again:
            assert isinstance(again, BucketArchive)
            [contents] = await again.scan()
            assert contents.high_water_mark == 200
            await remove(again, "m")
            await again.write_model(ModelInfo("m"))
            [contents] = await again.scan()
            assert contents.high_water_mark == 0

    async def test_an_unknown_model_cannot_get_a_high_water_mark(self, store: BucketArchive) -> None:
        with pytest.raises(NotFoundError):
            await store.write_high_water_mark("other", 1)


class TestBucketArchiveInMemory(InMemory, BucketSuite):
    pass


class TestBucketArchiveOnALocalPath(OnALocalPath, BucketSuite):
    pass


class TestBucketArchiveOnS3(OnS3, BucketSuite):
    pass


async def allow() -> None:
    """Let a server write."""


class SharedSuite(Stores, ArchiveSuite):
    """The archive of several servers in a bucket."""

    def make(self, place: Path) -> SharedBucketArchive:
        return SharedBucketArchive(Objects(self.store_at(place), f"test://{place.name}"), allow, lambda: 7)


class TestSharedBucketArchiveInMemory(InMemory, SharedSuite):
    pass


class TestSharedBucketArchiveOnALocalPath(OnALocalPath, SharedSuite):
    pass


class TestSharedBucketArchiveOnS3(OnS3, SharedSuite):
    pass
