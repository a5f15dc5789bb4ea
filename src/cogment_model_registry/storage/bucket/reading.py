"""Reading versions from a bucket: ranges of their parts, some at once, and hashed on a thread as they arrive.

A version that matched its hash is not hashed again while the store says that its parts are the same objects. So wrong
bytes are found as in a directory: when they are read first, and after each change.

The bytes of a version do not change, so ranges that are read at different times fit. They stay while a reader is open,
since the archive deletes none that are pinned; where another server owns it, a deletion ends a reader with NOT_FOUND.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from cogment_model_registry.errors import DataLossError, ModelRegistryError, NotFoundError, UnavailableError
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Reader
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import Record
from cogment_model_registry.storage.bucket.translation import ObjectMissing
from cogment_model_registry.system.tasks import run_to_end

_BLOCK_BYTES = 4 * 1024 * 1024
"""The largest range that is read at once."""

_LEAST_BLOCK_BYTES = 64 * 1024
"""The smallest range, unless less is left: a request takes as long as reading some of these."""

_AT_ONCE = 8
"""How many ranges are read at once at most."""


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of a part."""

    part: int
    start: int
    size_bytes: int


class BucketReader(Reader):
    """Reads ranges ahead of what is sent, and hashes them if all of the version is read.

    Args:
        home: What the archive has.
        life: The life of the model.
        record: The record of the version, whose bytes are pinned; this unpins them.
        is_checked: Whether all of a version is checked against its hash, unless it was before.
    """

    def __init__(self, home: Holdings, life: str, record: Record, *, is_checked: bool = True) -> None:
        self._home = home
        self._is_checked = is_checked
        self._life = life
        self._record = record
        self._ends = list(accumulate(record.parts))
        self._hash: PayloadHash | None = None
        self._hashing: asyncio.Future[None] | None = None
        self._tags: list[str] = []
        self._is_changed = False
        self._reading: deque[asyncio.Task[list[memoryview]]] = deque()
        self._ahead_bytes = 0
        self._sent_bytes = 0
        self._open = True

    async def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        size_bytes = self._record.info.data_size_bytes
        end = size_bytes if limit is None else min(size_bytes, offset + limit)
        is_whole = end - offset == size_bytes
        is_checked = is_whole and self._is_checked
        self._tags = [*self._home.checked_tags(self._record)] if is_checked else []
        is_known = bool(self._tags)
        self._hash = PayloadHash() if is_checked and not is_known else None
        if end == offset:
            await self._check()
            yield [memoryview(b"")]
            return
        self._ahead_bytes = self._home.take_ahead(end - offset - buffer_bytes)
        buffer_bytes += self._ahead_bytes
        block_bytes = max_bytes * max(min(_BLOCK_BYTES, max(buffer_bytes // 4, _LEAST_BLOCK_BYTES)) // max_bytes, 1)
        at_once = min(max(buffer_bytes // block_bytes, 2), _AT_ONCE)
        blocks = [(start, min(start + block_bytes, end)) for start in range(offset, end, block_bytes)]
        blocks.reverse()
        self._read_ahead(blocks, at_once - 1)
        is_first = True
        while self._reading:
            block = await self._next_block()
            self._read_ahead(blocks, at_once - 1)
            if is_known and self._is_changed:
                self._hash = self._begin_again(is_first=is_first)
                is_known = False
            is_first = False
            await self._settle_hash()
            if self._hash is not None:
                self._hashing = self._home.start_hash(self._hash, block)
            if not self._reading:
                await self._check()
            self._sent_bytes += sum(map(len, block))
            for chunk in _cut(block, max_bytes):
                yield chunk
            del block

    def _read_ahead(self, blocks: list[tuple[int, int]], at_once: int) -> None:
        """Begin to read blocks, the last of a list first, until so many are being read."""
        while blocks and len(self._reading) < at_once:
            self._reading.append(asyncio.create_task(self._read(*blocks.pop())))

    async def _next_block(self) -> list[memoryview]:
        """Return the block that was asked for first."""
        # Not awaited itself, since a cancellation would then be one of the read.
        await asyncio.wait([self._reading[0]])
        return self._reading.popleft().result()

    async def _read(self, start: int, end: int) -> list[memoryview]:
        """Return the bytes of a range of the version, whole."""
        return [await self._read_range(each) for each in self._ranges(start, end)]

    def _ranges(self, start: int, end: int) -> Iterator[_Range]:
        """Yield the ranges of parts that make up a range of the version."""
        for part, (part_bytes, part_end) in enumerate(zip(self._record.parts, self._ends, strict=True)):
            part_start = part_end - part_bytes
            first, last = max(start, part_start), min(end, part_end)
            if first < last:
                yield _Range(part, first - part_start, last - first)

    async def _read_range(self, wanted: _Range) -> memoryview:
        name = layout.data_name(self._life, self._record.key, wanted.part)
        try:
            piece = await self._home.objects.get_range(name, wanted.start, wanted.size_bytes)
        except ObjectMissing:
            raise await missing(self._home, self._life, self._record.info) from None
        if len(piece.data) != wanted.size_bytes:
            raise self._damage("its data is truncated")
        self._note_tag(wanted.part, piece.tag)
        return piece.data

    def _note_tag(self, part: int, tag: str) -> None:
        """Note the tag of a part, which another range or an earlier reader may have seen with another one."""
        if not self._tags:
            self._tags = [""] * len(self._record.parts)
        if not tag or self._tags[part] not in ("", tag):
            self._is_changed = True
        self._tags[part] = tag

    def _begin_again(self, *, is_first: bool) -> PayloadHash:
        """Return the hash of a version that was checked before and has other objects now.

        Raises:
            UnavailableError: It is too late to hash all of it.
        """
        self._home.forget_checked(self._record)
        if not is_first:
            raise UnavailableError("the data was modified while it was read; retrieve the version again")
        return PayloadHash()

    async def _settle_hash(self) -> None:
        if self._hashing is not None:
            await asyncio.wait([self._hashing])

    async def _check(self) -> None:
        """Compare what was read with what was stored, if that was all."""
        await self._settle_hash()
        if self._hash is None:
            return
        if self._hash.digest_text() != self._record.info.data_hash:
            raise self._damage("its bytes do not match their hash")
        if self._tags and not self._is_changed:
            self._home.keep_checked(self._record, self._tags)

    def _damage(self, reason: str) -> DataLossError:
        return DataLossError.version(self._record.info.model_id, self._record.info.number, reason)

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await run_to_end(self._aclose())

    async def _aclose(self) -> None:
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading)
        for task in self._reading:
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()  # retrieved, so that asyncio does not report it
        self._reading.clear()
        await self._settle_hash()
        self._home.give_ahead_back(self._ahead_bytes)
        self._home.chores.unpin(self._record.key)
        await self._home.end_transfer(self._sent_bytes)


async def missing(home: Holdings, life: str, info: VersionInfo) -> ModelRegistryError:
    """Return the error of a version of which a part is missing: it is damaged, unless it was removed.

    Raises:
        UnavailableError: The store failed.
    """
    with contextlib.suppress(DataLossError):  # damaged it is
        if await home.read_record(info.model_id, life, info.number, is_fresh=True) is None:
            return NotFoundError.version(info.model_id, info.number)
    return DataLossError.version(info.model_id, info.number, "its data is missing")


def _cut(block: Sequence[memoryview], max_bytes: int) -> Iterator[list[memoryview]]:
    """Yield a block in chunks of `max_bytes`; the last one has what remains."""
    chunk: list[memoryview] = []
    missing_bytes = max_bytes
    for view in block:
        rest = view
        while len(rest):
            taken = rest[:missing_bytes]
            rest = rest[len(taken) :]
            chunk.append(taken)
            missing_bytes -= len(taken)
            if not missing_bytes:
                yield chunk
                chunk, missing_bytes = [], max_bytes
    if chunk:
        yield chunk
