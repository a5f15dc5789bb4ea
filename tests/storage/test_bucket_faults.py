"""The archive in a bucket when the store fails: nothing is torn, and nothing acknowledged is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore, ObjectStore

from cogment_model_registry.errors import DataLossError, NotFoundError, StartError, UnavailableError
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Upload
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.bucket.claim import LEASE_SECONDS, Claim
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.opening import open_objects
from cogment_model_registry.storage.bucket.probe import probe
from cogment_model_registry.storage.bucket.translation import ObjectExists
from cogment_model_registry.storage.bucket.uploads import PART_BYTES, BucketUpload
from cogment_model_registry.testing.archive import remove
from cogment_model_registry.testing.bytes import describe, keep, read, read_chunks
from tests.failing import failing_twice
from tests.object_proxy import Mode, object_proxy
from tests.object_store import BUCKET, S3Server, store_at
from tests.storage.faulty_objects import FaultyObjects, gone, is_record, names_below, once
from tests.waiting import eventually, until


@asynccontextmanager
async def opened(objects: Objects, lease_seconds: float = LEASE_SECONDS) -> AsyncIterator[BucketArchive]:
    """Open an archive with the model ``m``."""
    archive = BucketArchive(objects, lease_seconds=lease_seconds)
    await archive.open()
    if not await archive.scan():
        await archive.write_model(ModelInfo("m"))
    yield archive
    await archive.close()


async def test_a_record_whose_confirmation_was_lost_is_a_commit() -> None:
    objects = FaultyObjects(MemoryStore())
    info = describe("m", 1, b"data", True)
    async with opened(objects) as archive:
        objects.unanswered = once(is_record)
        await keep(archive, info, b"data")
        assert await archive.read_version_infos("m", [1]) == [info]
        assert await read(archive, info) == b"data"


class _SlowCopies(Objects):
    """Objects whose copies are made only when the store is allowed to."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), "test://bucket")
        self.copying = asyncio.Event()
        self.allowed = asyncio.Event()

    async def copy(self, source: str, name: str) -> None:
        await self._ask(self._copy(source, name))

    async def _copy(self, source: str, name: str) -> None:
        self.copying.set()
        await self.allowed.wait()
        await super().copy(source, name)


async def test_a_copy_that_is_cancelled_leaves_no_bytes() -> None:
    objects = _SlowCopies()
    info = describe("m", 1, b"data", True)
    async with opened(objects) as archive:
        await keep(archive, info, b"data")
        copy = await archive.open_copy(info)
        finishing = asyncio.create_task(copy.finish())
        await objects.copying.wait()
        finishing.cancel()
        await asyncio.wait([finishing])
        await copy.aclose()
        objects.allowed.set()
    assert len(await objects.all_names(layout.DATA)) == 1


async def test_a_version_whose_record_did_not_get_there_never_appears() -> None:
    objects = FaultyObjects(MemoryStore())
    info = describe("m", 1, b"data", True)
    async with opened(objects) as archive:
        objects.refused = once(is_record)
        with pytest.raises(UnavailableError):
            await keep(archive, info, b"data")
        assert await archive.read_version_infos("m", [1]) == [None]
        # What the network still has comes too late.
        [name] = await objects.all_names(layout.VERSIONS)
        with pytest.raises(ObjectExists):
            await objects.create(name, b"late")
        await eventually(lambda: gone(objects, layout.DATA))
        await keep(archive, describe("m", 2, b"data", True), b"data")
    async with opened(objects) as archive:
        [contents] = await archive.scan()
        assert (list(contents.version_numbers), contents.damaged, contents.last_number) == ([2], {}, 2)


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_version_that_was_refused_in_doubt_is_gone_when_the_store_is_back(is_there: bool) -> None:
    objects = FaultyObjects(MemoryStore())
    info = describe("m", 1, b"data", True)
    async with opened(objects) as archive:
        objects.fail_from(is_record, is_there=is_there)
        with pytest.raises(UnavailableError):
            await keep(archive, info, b"data")
        assert archive.failure
        objects.recover()
        assert await archive.read_version_infos("m", [1]) == [None]
        await eventually(lambda: gone(objects, layout.DATA))
        await until(lambda: not archive.failure)
        [contents] = await archive.scan()
        assert (list(contents.version_numbers), contents.damaged) == ([], {})
        await keep(archive, describe("m", 2, b"data", True), b"data")


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_crash_in_doubt_leaves_the_version_whole_or_not_at_all(is_there: bool) -> None:
    store = MemoryStore()
    objects = FaultyObjects(store)
    info = describe("m", 1, b"data", True)
    archive = BucketArchive(objects)
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    objects.fail_from(is_record, is_there=is_there)
    with pytest.raises(UnavailableError):
        await keep(archive, info, b"data")
    await archive.close()  # nothing of it reaches the store
    async with opened(Objects(store, "test://bucket"), lease_seconds=0.5) as again:
        [contents] = await again.scan()
        assert (list(contents.version_numbers), contents.damaged) == ([1] if is_there else [], {})
        if is_there:
            assert await read(again, info) == b"data"
        await again.swept()
        assert len(await objects_of(again).all_names(layout.DATA)) == is_there


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("writes", range(4))
async def test_a_crash_while_a_version_is_settled_leaves_it_whole_or_not_at_all(is_there: bool, writes: int) -> None:
    store = MemoryStore()
    objects = FaultyObjects(store)
    info = describe("m", 1, b"data", True)
    archive = BucketArchive(objects)
    await archive.open()
    await archive.write_model(ModelInfo("m"))
    is_first = once(is_record)
    done: list[str] = []

    def begins(operation: str, name: str) -> bool:
        """Return whether this is the write of the record, which fails, and from which on writes count."""
        if not is_first(operation, name):
            return False
        done.append("record")
        return True

    def is_down(operation: str, name: str) -> bool:
        """Return whether so many writes were done since."""
        if done and operation != "get":
            done.append(name)
        return len(done) > 1 + writes

    objects.refused = lambda operation, name: (not is_there and begins(operation, name)) or is_down(operation, name)
    objects.unanswered = lambda operation, name: is_there and begins(operation, name)
    with contextlib.suppress(UnavailableError):
        await keep(archive, info, b"data")
    objects.refused = lambda _operation, _name: True
    await archive.close()
    async with opened(Objects(store, "test://bucket"), lease_seconds=0.5) as again:
        [contents] = await again.scan()
        await again.swept()
        assert (list(contents.version_numbers), contents.damaged) == ([1] if is_there else [], {})
        if is_there:
            assert await read(again, info) == b"data"


def objects_of(archive: BucketArchive) -> Objects:
    return archive._objects


async def test_what_a_crash_left_is_cleared_away_and_nothing_else() -> None:
    store = MemoryStore()
    objects = Objects(store, "test://bucket")
    info = describe("m", 1, b"data", True)
    async with opened(objects) as archive:
        await keep(archive, info, b"data")
        life = archive._home.models["m"].life
        # An upload that a crash interrupted, with a hint; a hint that is missing; a model of which its object is gone.
        record = layout.Record(describe("m", 2, b"left", True), layout.new_key(0), (4,))
        await objects.put(layout.data_name(life, record.key, 0), b"left")
        await objects.put(layout.hint_name(life, 2, record), b"")
        [hint] = [name for name in await objects.all_names(layout.HINTS) if "/0000000001-" in name]
        await objects.delete([hint])
        await archive.write_model(ModelInfo("gone"))
        await keep(archive, describe("gone", 1, b"data", True), b"data")
        await archive.write_high_water_mark("gone", 5)
        await objects.delete([layout.model_name("gone")])
        await objects.put("notes.txt", b"of someone else")
        await objects.put(f"data/{life}/notes.txt", b"of someone else")
    async with opened(objects) as archive:
        assert [contents.info.model_id for contents in await archive.scan()] == ["m"]
        await archive.swept()
        left = await names_below(objects, "versions", "hints", "marks", "data")
        assert len(left) == 3  # record, data, the foreign object
        assert all(life in name for name in left)
        assert await read(archive, info) == b"data"
        assert await objects.get("notes.txt") == b"of someone else"


async def test_bytes_stay_while_they_are_read_and_go_then() -> None:
    objects = Objects(MemoryStore(), "test://bucket")
    info = describe("m", 1, bytes(100_000), True)
    async with opened(objects) as archive:
        await keep(archive, info, bytes(100_000))
        async with await archive.open_version(info) as first, await archive.open_version(info):
            await archive.remove_version(info)
            assert b"".join(await read_chunks(first)) == bytes(100_000)
            assert await objects.all_names(layout.DATA)
        await eventually(lambda: gone(objects, layout.DATA, layout.HINTS, layout.VERSIONS))


async def test_damage_is_told_from_a_store_that_fails() -> None:
    objects = FaultyObjects(MemoryStore())
    infos = [describe("m", number, b"data", True) for number in (1, 2, 3)]
    async with opened(objects) as archive:
        for info in infos:
            await keep(archive, info, b"data")
        names = await objects.all_names(layout.DATA)
        await objects.put(names[0], b"dat")
        await objects.put(names[1], b"Data")
        await objects.delete([names[2]])
        for info in infos:
            with pytest.raises(DataLossError):
                await read(archive, info)
        life = archive._home.models["m"].life
        await objects.put(layout.version_name(life, 1), b"{}")
        archive._home.forget_records()
        objects.refused = lambda _operation, name: name.endswith("0000000002.json")
        [damaged] = await archive.read_version_infos("m", [1])
        assert isinstance(damaged, DataLossError)
        with pytest.raises(UnavailableError):
            await archive.read_version_infos("m", [2])


async def test_bytes_that_matched_their_hash_are_hashed_again_only_after_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = FaultyObjects(MemoryStore())
    data = bytes(PART_BYTES) + b"the second part"
    info = describe("m", 1, data, True)
    async with opened(objects) as archive:
        await keep(archive, info, data)
        assert await read(archive, info) == data
        first, _ = await objects.all_names(layout.DATA)
        hashed = list[int]()
        start_hash = archive._home.start_hash

        def count_hashed(digest: PayloadHash, parts: Sequence[bytes | memoryview]) -> "asyncio.Future[None]":
            hashed.extend(map(len, parts))
            return start_hash(digest, parts)

        monkeypatch.setattr(archive._home, "start_hash", count_hashed)
        assert await read(archive, info) == data
        assert hashed == []
        await objects.put(first, b"wrong" + data[5:PART_BYTES])
        for _ in range(2):
            with pytest.raises(DataLossError):
                await read(archive, info)
        await objects.put(first, data[:PART_BYTES])
        hashed.clear()
        assert await read(archive, info) == data
        assert sum(hashed) == len(data)


async def test_an_object_that_is_replaced_while_it_is_read_ends_the_retrieval() -> None:
    objects = FaultyObjects(MemoryStore())
    data = bytes(PART_BYTES)
    info = describe("m", 1, data, True)
    async with opened(objects) as archive:
        await keep(archive, info, data)
        assert await read(archive, info) == data
        [name] = await objects.all_names(layout.DATA)
        archive._home._ahead_bytes = 0  # so that little is read ahead
        async with (
            await archive.open_version(info) as reader,
            aclosing(reader.chunks(100_000, 200_000)) as chunks,
        ):
            await anext(chunks)
            await objects.put(name, b"wrong" + data[5:])
            with pytest.raises(UnavailableError):
                async for _ in chunks:
                    pass
        with pytest.raises(DataLossError):
            await read(archive, info)


async def test_what_is_gone_does_not_keep_the_rest_from_being_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = obstore.delete_async

    async def delete_what_is_there(store: ObjectStore, names: str | Sequence[str]) -> None:
        """Delete as Azure and Google Cloud Storage do, which refuse what is not there."""
        for name in [names] if isinstance(names, str) else names:
            await obstore.head_async(store, name)
            await delete(store, name)

    monkeypatch.setattr(obstore, "delete_async", delete_what_is_there)
    objects = Objects(MemoryStore(), "test://bucket")
    for name in ("data/a", "data/c"):
        await objects.put(name, b"")
    await objects.delete(["data/a", "data/b", "data/c"])
    await objects.delete(["data/a"])
    assert await gone(objects, "data")
    assert objects.failure == ""


class SlowObjects(Objects):
    """Objects whose bytes take until `go` is set to be written, also when nobody waits for that any more."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), "test://slow")
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.written = asyncio.Event()

    async def put(self, name: str, data: bytes) -> None:
        if name.startswith(layout.DATA):
            await asyncio.shield(asyncio.ensure_future(self._put_later(name, data)))
        else:
            await super().put(name, data)

    async def _put_later(self, name: str, data: bytes) -> None:
        self.begun.set()
        await self.go.wait()
        await super().put(name, data)
        self.written.set()


async def test_bytes_that_are_sent_when_an_upload_is_given_up_are_deleted() -> None:
    objects = SlowObjects()
    async with opened(objects) as archive:
        async with await archive.open_upload("m", 9 * MIB) as upload:
            await upload.write(memoryview(bytes(9 * MIB)))
            await objects.begun.wait()
        objects.go.set()
        await objects.written.wait()
    assert await gone(objects, layout.DATA)


class Careless(Objects):
    """A store that creates objects that exist: always, or if someone else creates them at the same time."""

    def __init__(self, *, is_always: bool) -> None:
        super().__init__(MemoryStore(), "test://careless")
        self._is_always = is_always
        self._creating: set[str] = set()

    async def create(self, name: str, data: bytes) -> None:
        is_race = name in self._creating
        self._creating.add(name)
        await asyncio.sleep(0)
        if self._is_always or is_race:
            await self.put(name, data)
        else:
            await super().create(name, data)
        self._creating.discard(name)


@pytest.mark.parametrize("is_always", [False, True])
async def test_a_store_that_does_not_keep_conditions_is_refused(is_always: bool) -> None:
    archive = BucketArchive(Careless(is_always=is_always))
    with pytest.raises(StartError, match="does not keep what an archive needs"):
        await archive.open()
    await archive.close()


async def test_the_stores_of_the_tests_keep_conditions(object_store: S3Server, tmp_path: Path) -> None:
    await probe(Objects(object_store.store(str(tmp_path).strip("/")), "s3://archives"))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_server_that_was_frozen_writes_nothing_after_another_one_took_over() -> None:
    store = MemoryStore()
    clock = Clock()
    frozen = Claim(Objects(store, "test://bucket"), lease_seconds=0.2, clock=clock)
    await frozen.take()
    assert frozen._task is not None
    frozen._task.cancel()  # it gives no sign of life
    owner = BucketArchive(Objects(store, "test://bucket"), lease_seconds=0.2)
    await owner.open()
    clock.seconds = 0.1
    await frozen.require()  # by its clock it owns the archive: no time went by
    clock.seconds = 1000.0
    for _ in range(2):
        with pytest.raises(UnavailableError, match="another server owns the archive now"):
            await frozen.require()
    assert frozen.failure
    frozen._task = None
    await frozen.release()
    await owner.write_model(ModelInfo("m"))  # the release of the frozen one changes nothing
    assert owner.failure == ""
    await owner.close()


async def test_of_servers_that_start_at_once_one_owns_the_archive() -> None:
    store = MemoryStore()
    claims = [Claim(Objects(store, "test://bucket"), lease_seconds=1.0) for _ in range(5)]
    results = await asyncio.gather(*[claim.take() for claim in claims], return_exceptions=True)
    assert sorted(result is None for result in results) == [False] * 4 + [True]
    assert all(result is None or isinstance(result, StartError) for result in results)
    for claim in claims:
        await claim.release()
    await claims[0].take()
    await claims[0].release()


async def test_a_small_request_is_tried_again_before_a_large_one_would_be(
    object_store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    async with object_proxy(object_store.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        objects = open_objects(f"s3://{BUCKET}/{tmp_path.name}", small_seconds=0.5)
        await objects.put("name", b"data")
        await proxy.set_mode(Mode.STALL)
        reading = asyncio.create_task(objects.get("name"))
        await until(lambda: proxy.requests > 1)
        await proxy.set_mode(Mode.PASS)
        assert await reading == b"data"


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.BUSY, Mode.STALL, Mode.LOSE_REPLIES, Mode.CUT])
async def test_a_store_over_a_broken_network_is_never_torn(object_store: S3Server, tmp_path: Path, mode: Mode) -> None:
    prefix = str(tmp_path).strip("/")
    large = bytes(range(256)) * (20 * MIB // 256)
    kept = describe("m", 1, large, True)
    async with object_proxy(object_store.port) as proxy:
        patient = store_at(proxy.endpoint, prefix, timeout_seconds=60)
        hasty = store_at(proxy.endpoint, prefix, retries=1, timeout_seconds=2)  # on a slow machine, too much so
        objects = Objects(patient, "s3://archives")
        archive = BucketArchive(objects, lease_seconds=5.0)
        await archive.open()
        await archive.scan()
        await archive.write_model(ModelInfo("m"))
        await keep(archive, kept, large)
        info = describe("m", 2, large, True)
        async with await archive.open_upload("m", len(large)) as upload:
            await upload.write(memoryview(large)[: 10 * MIB])
            assert isinstance(upload, BucketUpload)
            sending = upload._sending
            if mode is Mode.STALL:  # what the patient store has begun to send would stall for all of its time
                await until(lambda: not sending)
            await proxy.set_mode(mode)
            objects._store = objects._small = hasty
            with pytest.raises(UnavailableError):
                await end(upload, memoryview(large)[10 * MIB :], info)
        if mode is not Mode.CUT:  # which lets small requests through
            with pytest.raises(UnavailableError):
                await archive.write_model(ModelInfo("other"))
            with pytest.raises(UnavailableError):
                await read(archive, kept)
            await until(lambda: archive.failure)
        await proxy.set_mode(Mode.PASS)
        objects._store = objects._small = patient
        await until(lambda: not archive.failure)
        assert await read(archive, kept) == large
        assert await archive.read_version_infos("m", [1, 2]) == [kept, None]
        next_one = describe("m", 3, b"next", True)
        await keep(archive, next_one, b"next")
        await archive.close()
    again = BucketArchive(Objects(object_store.store(prefix), "s3://archives"), lease_seconds=5.0)
    await again.open()
    [contents] = [each for each in await again.scan() if each.info.model_id == "m"]
    assert (list(contents.version_numbers), contents.damaged) == ([1, 3], {})
    assert await read(again, next_one) == b"next"
    await again.swept()
    await eventually(lambda: only_data_of(again, 4))
    await remove(again, "m")
    with pytest.raises(NotFoundError):
        await again.open_version(kept)
    await again.close()


async def end(upload: Upload, rest: memoryview, info: VersionInfo) -> None:
    await upload.write(rest)
    await upload.finish()
    await upload.commit(info)


async def only_data_of(archive: BucketArchive, parts: int) -> bool:
    """Return whether there is no data but that of versions: three parts of one, and one of another."""
    return len(await archive._objects.all_names(layout.DATA)) == parts


async def test_a_claim_survives_an_error_that_nobody_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim(Objects(MemoryStore(), "test://bucket"), lease_seconds=0.2)
    await claim.take()
    renewed = asyncio.Event()

    async def record() -> None:
        renewed.set()

    monkeypatch.setattr(claim, "renew", failing_twice(record))
    await until(renewed.is_set)
    await claim.release()
