"""Who may open an archive in a bucket: one server, or several that share a catalog; and which stores they refuse."""

import asyncio

import pytest
from obstore.store import MemoryStore, ObjectStore

from cogment_model_registry.errors import StartError, UnavailableError
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.bucket.objects import Objects, Written
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from cogment_model_registry.testing.bytes import describe, keep, read
from tests.storage.shared_servers import Server, opened

LARGE = bytes(range(256)) * (20 * MIB // 256)


async def test_an_archive_of_one_server_is_shared_once_it_has_stopped(bucket: ObjectStore) -> None:
    info = describe("m", 1, b"data", True)
    single = BucketArchive(Objects(bucket, "test://bucket"), lease_seconds=5.0)
    await single.open()
    await single.write_model(ModelInfo("m"))
    await keep(single, info, b"data")
    shared = Server(bucket, 1, lease_seconds=5.0)
    with pytest.raises(StartError, match=r"in use by process [0-9]+ on "):
        await shared.archive.open()
    await single.close()
    async with opened(bucket, 1) as first, opened(bucket, 2) as second:
        assert first.archive.id == second.archive.id == single.id
        assert await read(second.archive, info) == b"data"
    again = BucketArchive(Objects(bucket, "test://bucket"))
    with pytest.raises(StartError, match="in use by several servers that share a catalog"):
        await again.open()
    await again.close()
    to_read = BucketArchive(Objects(bucket, "test://bucket"), read_only=True)
    await to_read.open()
    assert await read(to_read, info) == b"data"
    await to_read.close()


async def test_an_owner_that_was_frozen_does_not_write_to_an_archive_that_is_shared_since(bucket: ObjectStore) -> None:
    single = BucketArchive(Objects(bucket, "test://bucket"), lease_seconds=0.5)
    await single.open()
    claim = single._claim
    assert claim is not None
    assert claim._task is not None
    claim._task.cancel()  # it gives no sign of life
    claim._valid_until = 0.0  # and it was frozen for longer than its lease
    async with opened(bucket, 1):
        with pytest.raises(UnavailableError, match="another server owns the archive now"):
            await single.write_model(ModelInfo("m"))
        claim._task = None
        await single.close()


async def test_servers_that_begin_to_share_an_archive_at_once_agree_on_it(bucket: ObjectStore) -> None:
    servers = [Server(bucket, number) for number in range(5)]
    await asyncio.gather(*[server.archive.open() for server in servers])
    assert len({server.archive.id for server in servers}) == 1
    for server in servers:
        await server.archive.close()


class Careless(Objects):
    """A store that replaces objects whatever they are: always, or if someone else replaces them at the same time."""

    def __init__(self, *, is_always: bool) -> None:
        super().__init__(MemoryStore(), "test://careless")
        self._is_always = is_always
        self._replacing: set[bytes] = set()

    async def replace(self, name: str, data: bytes, written: Written) -> None:
        is_race = written.data in self._replacing
        self._replacing.add(written.data)
        await asyncio.sleep(0)
        if self._is_always or is_race:
            await self.put(name, data)
        else:
            await super().replace(name, data, written)
        self._replacing.discard(written.data)


@pytest.mark.parametrize("is_always", [False, True])
async def test_a_store_that_does_not_compare_what_it_replaces_is_refused(is_always: bool) -> None:
    async def allow() -> None:
        """Let it write."""

    archive = SharedBucketArchive(Careless(is_always=is_always), allow, lambda: 1)
    with pytest.raises(StartError, match="If-Match"):
        await archive.open()
    await archive.close()
