"""Uploads to a bucket: parts of the bytes are sent while more is received, then the record is created.

An upload collects pieces until they make up a part; a thread hashes a part while it is sent. What is collected by all
uploads together is bounded: beyond that, smaller parts are sent. So is what is being sent.
"""

import asyncio
from collections.abc import Awaitable, Callable

from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Upload
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.commitment import Commitment
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import Record
from cogment_model_registry.storage.bucket.reading import missing
from cogment_model_registry.storage.bucket.translation import ObjectMissing
from cogment_model_registry.system.tasks import run_to_end

PART_BYTES = 8 * 1024 * 1024
"""The size of a part: large enough that a request is a small share of its time, small enough that a few fit memory."""

PARTS_MAX = 1_000_000
"""As many as names have digits for."""

_LEAST_PART_BYTES = 256 * 1024


class BucketUpload(Upload):
    """Sends parts of a version. Made by `BucketArchive.open_upload`."""

    def __init__(self, home: Holdings, life: str, key: str) -> None:
        self._home = home
        self._life = life
        self._key = key
        self._hash = PayloadHash()
        self._hashing: asyncio.Future[None] | None = None
        self._collected: list[memoryview] = []
        self._collected_bytes = 0
        self._parts: list[int] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._commitment = Commitment(home, life)
        self._open = True

    async def write(self, *parts: memoryview) -> None:
        for part in parts:
            rest = part.cast("B") if part.format != "B" or part.ndim != 1 else part
            while len(rest):
                taken = rest[: PART_BYTES - self._collected_bytes]
                rest = rest[len(taken) :]
                self._collected.append(taken)
                self._note_collected(len(taken))
                if self._is_enough():
                    await self._send()

    def _note_collected(self, size_bytes: int) -> None:
        self._collected_bytes += size_bytes
        self._home.collected_bytes += size_bytes

    def _is_enough(self) -> bool:
        least = _LEAST_PART_BYTES if self._home.is_crowded else PART_BYTES
        return self._collected_bytes >= least

    async def _send(self) -> None:
        """Send what was collected as one part, while more is received."""
        if self._failure is not None:
            raise self._failure
        size_bytes = self._collected_bytes
        taken_bytes = await self._home.sending.take(size_bytes)
        data = b"".join(self._collected)
        self._collected.clear()
        self._note_collected(-size_bytes)
        name = layout.data_name(self._life, self._key, len(self._parts))
        self._parts.append(size_bytes)
        task = asyncio.create_task(self._put(name, data, taken_bytes))
        self._sending.add(task)
        task.add_done_callback(self._note_sent)
        if self._hashing is not None:
            await asyncio.wait([self._hashing])
        self._hashing = self._home.start_hash(self._hash, [data])

    async def _put(self, name: str, data: bytes, taken_bytes: int) -> None:
        try:
            await self._home.objects.put(name, data)
        finally:
            self._home.sending.give_back(taken_bytes)

    def _note_sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    async def finish(self) -> str:
        if self._collected_bytes:
            await self._send()
        if self._sending:
            await asyncio.wait(self._sending)
        if self._failure is not None:
            raise self._failure
        if self._hashing is not None:
            await asyncio.wait([self._hashing])
        return self._hash.digest_text()

    async def commit(self, info: VersionInfo) -> None:
        await run_to_end(self._commitment.make(Record(info, self._key, tuple(self._parts))))

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await run_to_end(self._aclose())

    async def _aclose(self) -> None:
        self._note_collected(-self._collected_bytes)
        self._collected.clear()
        if self._hashing is not None:
            await asyncio.wait([self._hashing])
        if self._parts and not self._commitment.keeps_data:
            names = [layout.data_name(self._life, self._key, part) for part in range(len(self._parts))]
            # What is being sent goes on, and would be written after it was deleted.
            self._home.chores.delete_after([*self._sending], names)
        await self._home.end_transfer(sum(self._parts))


class BucketCopy(Upload):
    """A copy of a version whose bytes the store copies itself. They are read all the same, to be hashed.

    Args:
        home: What the archive has.
        life: The life of the model.
        source: The version, whose bytes are pinned; this unpins them.
        key: The key of the copy.
        read_hash: Reads the bytes that a record leads to, and returns their hash.
    """

    def __init__(
        self, home: Holdings, life: str, source: Record, key: str, read_hash: Callable[[str, Record], Awaitable[str]]
    ) -> None:
        self._home = home
        self._life = life
        self._source = source
        self._key = key
        self._read_hash = read_hash
        self._copying: asyncio.Task[None] | None = None
        self._commitment = Commitment(home, life)
        self._open = True

    async def write(self, *parts: memoryview) -> None:
        raise RuntimeError("the upload has all its bytes")

    async def finish(self) -> str:
        info = self._source.info
        for part, name in enumerate(layout.data_names(self._life, self._source)):
            copy = self._home.objects.copy(name, layout.data_name(self._life, self._key, part))
            self._copying = asyncio.create_task(copy)
            # Not awaited itself: the store goes on with it when this is cancelled.
            await asyncio.wait([self._copying])
            try:
                self._copying.result()
            except ObjectMissing:
                raise await missing(self._home, self._life, info) from None
        return await self._read_hash(self._life, self._copy_of(info))

    def _copy_of(self, info: VersionInfo) -> Record:
        return Record(info, self._key, self._source.parts)

    async def commit(self, info: VersionInfo) -> None:
        await run_to_end(self._commitment.make(self._copy_of(info)))

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._home.chores.unpin(self._source.key)
            if not self._commitment.keeps_data:
                # A part that is being copied would appear after it was deleted.
                writes = [] if self._copying is None else [self._copying]
                names = layout.data_names(self._life, self._copy_of(self._source.info))
                self._home.chores.delete_after(writes, names)
