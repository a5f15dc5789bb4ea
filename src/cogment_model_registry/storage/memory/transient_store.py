"""The transient store in this process's memory.

A version lies in whole slabs and one buffer of the exact size of the rest. Bytes are copied once, on the event loop
(a copy into recycled memory costs a fraction of handing it to a thread), and hashed behind it by a thread, from the
slabs, which do not change any more.

Bytes are counted when they are allocated: `bytes held` is what versions and uploads really have. What uploads have
declared but not yet sent is promised, so that an accepted upload is refused later only if readers have pinned the bytes
that it was to replace.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from concurrent.futures import Executor

from cogment_model_registry.errors import NotFoundError, TooLargeError, counted
from cogment_model_registry.records.payload import INLINE_HASH_MAX_BYTES, Bytes, PayloadHash
from cogment_model_registry.records.retention import NO_SHARE, TransientShare
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import (
    EvictionListener,
    Reader,
    TransientStore,
    TransientUsage,
    Upload,
    VersionStore,
)
from cogment_model_registry.storage.memory.evictions import Blob, Bound, Line, Lines
from cogment_model_registry.storage.memory.sealing import Sealing
from cogment_model_registry.storage.memory.slabs import SLAB_BYTES, SlabPool
from cogment_model_registry.system.sealed_memory import SealedMemory, UnsealedMemory
from cogment_model_registry.system.tasks import run_to_end


class MemoryTransientStore(TransientStore):
    """Transient versions in memory.

    Args:
        max_items: How many versions it keeps at most.
        max_bytes: How many bytes it holds at most.
        executor: Where to hash.
        elsewhere: The owner of the versions that this store does not have, if any.
    """

    def __init__(
        self, max_items: int, max_bytes: int, executor: Executor, elsewhere: VersionStore | None = None
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.executor = executor
        self._elsewhere = elsewhere
        self._listener: EvictionListener = _ignore
        self._slabs = SlabPool()
        self.sealing = Sealing(executor)
        self._lines = Lines()
        self._items = 0
        self._evictions = {"items": 0, "bytes": 0, "share": 0}
        self._held_bytes = 0
        self._pinned_bytes = 0  # of versions that are being read or held
        self._kept_bytes = 0  # of those that are held
        self._promised_bytes = 0
        self._uploaded_bytes = 0

    @property
    def usage(self) -> TransientUsage:
        """How full it is."""
        return TransientUsage(
            items=self._items,
            bytes=self._held_bytes,
            held_bytes=self._unevictable_bytes,
            max_items=self._max_items,
            max_bytes=self._max_bytes,
            evictions=dict(self._evictions),
        )

    @property
    def _unevictable_bytes(self) -> int:
        return self._pinned_bytes + self._uploaded_bytes + self._promised_bytes

    async def open_upload(self, model_id: str, size_bytes: int, *, is_copy: bool = False) -> "MemoryUpload":
        """Begin to receive a version; see `TransientStore`.

        Args:
            model_id: The model.
            size_bytes: The size of the version.
            is_copy: Whether another server has the version, too; then it is evicted before those of which it is not
                known, until `note_own`.
        """
        available = self._max_bytes - self._unevictable_bytes
        if size_bytes > available:
            message = (
                f"a transient version of {counted(size_bytes, 'byte')} does not fit the memory budget of "
                f"{counted(self._max_bytes, 'byte')}, "
                f"of which {max(available, 0)} are not taken by uploads and readers under way"
            )
            if self._kept_bytes:
                message += f", nor by versions that consumers hold ({self._kept_bytes})"
            message += "; raise cache_max_bytes, or store an archived version"
            raise TooLargeError(message, model_id=model_id)
        self._promised_bytes += size_bytes
        return MemoryUpload(self, model_id, size_bytes, is_copy=is_copy)

    async def open_version(self, info: VersionInfo) -> Reader:
        line, blob = self._find(info)
        if line is None or blob is None:
            if self._elsewhere is not None:
                return await self._elsewhere.open_version(info)
            raise NotFoundError.version(info.model_id, info.number)
        return self._reading(line, info.number, blob)

    async def open_own(self, model_id: str, number: int) -> tuple[VersionInfo, Reader]:
        line = self._lines.find(model_id)
        blob = line.blobs.get(number) if line else None
        if line is None or blob is None or blob.info is None:
            raise NotFoundError.version(model_id, number)
        return blob.info, self._reading(line, number, blob)

    def _reading(self, line: Line, number: int, blob: Blob) -> Reader:
        """Return a reader of a version, which counts as a use of it."""
        line.use(number)
        self._lines.use(blob)
        if not blob.readers and not blob.is_held:
            self._pinned_bytes += blob.size_bytes
        blob.readers += 1
        return _MemoryReader(self, line.model_id, blob)

    async def remove_version(self, info: VersionInfo) -> None:
        line, blob = self._find(info)
        if line is not None and blob is not None:
            self._take(line, info.number)

    def _find(self, info: VersionInfo) -> tuple[Line | None, Blob | None]:
        """Return the line and the bytes of a version; no bytes when a later model of the same id has its number now."""
        line = self._lines.find(info.model_id)
        blob = line.blobs.get(info.number) if line else None
        return line, blob if blob is not None and (blob.info is info or blob.info == info) else None

    @contextlib.contextmanager
    def holding(self, info: VersionInfo) -> Iterator[bool]:
        line, blob = self._find(info)
        if line is None or blob is None:
            yield False
            return
        self._hold(blob, 1)
        try:
            yield True
        finally:
            self._hold(blob, -1)
            if not blob.is_gone:
                self._lines.note(line)

    def _hold(self, blob: Blob, change: int) -> None:
        pinned_before, was_held = blob.pinned_bytes, blob.is_held
        blob.holds += change
        self._pinned_bytes += blob.pinned_bytes - pinned_before
        self._kept_bytes += (blob.is_held - was_held) * blob.size_bytes

    def note_own(self, info: VersionInfo) -> None:
        """Evict a version like those that were published here from now on, and not like a copy."""
        line, blob = self._find(info)
        if line is not None and blob is not None:
            line.own(info.number)

    def note_newest(self, model_id: str, number: int) -> None:
        # Whatever a model without a line gets later is newer still.
        line = self._lines.find(model_id)
        if line is not None and number > line.newest:
            line.newest = number
            self._lines.note(line)

    async def set_share(self, model_id: str, share: TransientShare) -> None:
        line = self._lines.get(model_id)
        line.share = share
        evicted: list[VersionInfo] = []
        self._enforce_share(line, evicted)
        self._lines.note(line)
        self._lines.tidy(line)
        if evicted:
            await self.report(evicted)

    def note_removed(self, model_id: str, number: int, newest: int) -> None:
        line = self._lines.find(model_id)
        if line is not None and line.newest <= max(number, newest):
            line.newest = newest
            self._lines.note(line)

    async def remove_model(self, model_id: str) -> None:
        line = self._lines.find(model_id)
        if line is not None:
            line.share = NO_SHARE
            line.newest = 0
            for number in [*line.blobs]:
                self._take(line, number)
            self._lines.tidy(line)

    def on_evicted(self, listener: EvictionListener) -> None:
        self._listener = listener

    def release_memory(self) -> None:
        self._slabs.trim(0)

    # Called by uploads and readers.

    async def report(self, evicted: list[VersionInfo]) -> None:
        """Report the versions in a list to the listener, and empty the list."""
        reported = [*evicted]
        evicted.clear()
        await run_to_end(self._listener(reported))

    def allocate(self, blob: Blob, size_bytes: int, model_id: str, evicted: list[VersionInfo]) -> None:
        """Move `size_bytes` promised bytes to those held for an upload's `blob`; add what is evicted to a list."""
        line = self._lines.get(model_id)
        line.upload_bytes += size_bytes
        self._lines.note(line)
        while self._held_bytes + size_bytes > self._max_bytes:
            if not self._evict_one("bytes", line, evicted, pinned_too=False):
                line.upload_bytes -= size_bytes
                self._lines.tidy(line)
                size = counted(size_bytes, "byte")
                taken = "read, uploaded or held by consumers" if self._kept_bytes else "read or uploaded"
                message = f"no space for {size}: all memory of the budget is being {taken}; try later"
                raise TooLargeError(message, model_id=model_id)
        self._promised_bytes -= size_bytes
        self._uploaded_bytes += size_bytes
        self._held_bytes += size_bytes
        blob.size_bytes += size_bytes

    def prepare(self, blob: Blob, size_bytes: int, model_id: str) -> None:
        """Choose the kind of memory for an upload's `blob` without bytes: the next versions are used like the last."""
        line = self._lines.find(model_id)
        last = line.last_used() if line else None
        if size_bytes >= SLAB_BYTES and last is not None and last.was_handed_over:
            self.sealing.prepare(blob, size_bytes)

    def take_slab(self) -> memoryview:
        """Return a slab for bytes that were allocated."""
        return self._slabs.take()

    def take_part(self, memory: UnsealedMemory, start: int, size_bytes: int) -> memoryview:
        """Return a part of memory that will be sealed, giving back slabs that would exceed the budget with it."""
        self._slabs.trim(self._max_bytes - self._held_bytes)
        return memory.view[start : start + size_bytes]

    def take_buffer(self, content: int | memoryview) -> bytearray:
        """Return a buffer for bytes that were allocated, giving back slabs that would exceed the budget with it.

        Args:
            content: How many zeros to fill it with, or the bytes to copy to it.
        """
        self._slabs.trim(self._max_bytes - self._held_bytes)
        return bytearray(content)

    def keep(self, info: VersionInfo, blob: Blob, evicted: list[VersionInfo]) -> None:
        """Make an uploaded version readable; add to a list the versions that are evicted for it."""
        blob.info = info
        self.sealing.finish(blob)
        line = self._lines.get(info.model_id)
        if info.number in line.blobs:
            self._take(line, info.number)
            line = self._lines.get(info.model_id)
        self._uploaded_bytes -= blob.size_bytes
        line.add(info.number, blob)
        self._items += 1
        self._lines.use(blob)
        blob.holds += 1  # it may not go for itself
        self._lines.note(line)
        if line.share is not NO_SHARE:
            self._enforce_share(line, evicted)
        while self._items > self._max_items and self._evict_one("items", line, evicted, pinned_too=True):
            pass
        blob.holds -= 1
        self._lines.note(line)

    def _enforce_share(self, line: Line, evicted: list[VersionInfo]) -> None:
        """Evict what exceeds the share of a model, the newest version excepted."""
        share = line.share
        while share.max_items and len(line.blobs) > share.max_items:
            number = line.oldest() or line.oldest(pinned_too=True)
            if number is None:
                break
            self._evict(line, number, "share", evicted)
        while share.max_bytes and line.version_bytes > share.max_bytes:
            number = line.oldest()
            if number is None:
                break
            self._evict(line, number, "share", evicted)

    def abandon(self, model_id: str, blob: Blob, declared_bytes: int) -> None:
        """Free what an upload that was not kept has, and what it was promised."""
        self._promised_bytes -= declared_bytes - blob.size_bytes
        self._uploaded_bytes -= blob.size_bytes
        line = self._lines.get(model_id)
        line.upload_bytes -= blob.size_bytes
        self._lines.tidy(line)
        self._free(blob)

    def unpin(self, model_id: str, blob: Blob) -> None:
        """End the claim of a reader."""
        blob.readers -= 1
        if not blob.readers:
            if not blob.is_held:
                self._pinned_bytes -= blob.size_bytes
            line = self._lines.find(model_id)
            if blob.is_gone:
                self._free(blob)
            elif line is not None:
                self._lines.note(line)

    def _evict_one(self, bound: Bound, taker: Line, evicted: list[VersionInfo], *, pinned_too: bool) -> bool:
        """Evict the version that goes first, and add it to a list; return whether one was evicted.

        Evicting a version that is being read makes room for another version, but not for its bytes.
        """
        victim = self._lines.victim(bound, taker, pinned_too=pinned_too)
        if victim is None:
            return False
        self._evict(*victim, bound, evicted)
        return True

    def _evict(self, line: Line, number: int, reason: str, evicted: list[VersionInfo]) -> None:
        blob = self._take(line, number)
        if blob.info is not None:
            evicted.append(blob.info)
        self._evictions[reason] += 1

    def _take(self, line: Line, number: int) -> Blob:
        """Take a version out, and free it when its last reader is done."""
        is_newest = number == line.newest
        blob = line.take(number)
        self._items -= 1
        if is_newest:
            self._lines.note(line)  # else it has only less than before
        if not line.blobs:
            self._lines.tidy(line)
        self._release(blob)
        return blob

    def _release(self, blob: Blob) -> None:
        """Free a version that is not kept any more, now or when its last reader is done."""
        if blob.is_held:
            self._kept_bytes -= blob.size_bytes
            if not blob.readers:
                self._pinned_bytes -= blob.size_bytes
        blob.is_gone = True
        if not blob.readers:
            self._free(blob)

    def _free(self, blob: Blob) -> None:
        self._held_bytes -= blob.size_bytes
        self.sealing.free(blob)
        if blob.slabs:
            for slab in blob.slabs:
                self._slabs.give_back(slab)
            blob.slabs.clear()
        blob.rest = bytearray()
        blob.size_bytes = 0
        self._slabs.trim(self._max_bytes - self._held_bytes)


async def _ignore(_evicted: Sequence[VersionInfo]) -> None:
    """Do nothing with evicted versions."""


_NO_SPACE = memoryview(b"")


class MemoryUpload(Upload):
    """Copies into slabs, or parts of memory that will be sealed, and hashes each as soon as it is full."""

    def __init__(self, store: MemoryTransientStore, model_id: str, size_bytes: int, *, is_copy: bool = False) -> None:
        self._store = store
        self._model_id = model_id
        self._declared_bytes = size_bytes
        self._blob: Blob | None = Blob(is_copy=is_copy)
        self._space = _NO_SPACE  # what is left of the last slab, or of the rest
        self._hash = PayloadHash()
        self._hashed_slabs = 0
        self._hashing: asyncio.Future[None] | None = None
        self._evicted: list[VersionInfo] = []
        self._known_hash = ""

    async def write(self, *parts: memoryview) -> None:
        try:
            for part in parts:
                self._copy(part)
        finally:
            if self._evicted:
                await self._store.report(self._evicted)

    async def adopt(self, memory: SealedMemory, data_hash: str) -> None:
        blob = self._open_blob()
        if not self._store.sealing.adopt(blob, memory):
            await super().adopt(memory, data_hash)
            return
        self._known_hash = data_hash
        try:
            self._store.allocate(blob, memory.size_bytes, self._model_id, self._evicted)
        finally:
            if self._evicted:
                await self._store.report(self._evicted)

    def _copy(self, data: memoryview) -> None:
        if 0 < len(data) == self._declared_bytes < SLAB_BYTES:
            self._allocate(data)
            return
        while data:
            space = self._space or self._allocate()
            part = data[: len(space)]
            self._fill(space[: len(part)], part)
            self._space, data = space[len(part) :] or _NO_SPACE, data[len(part) :]
            if self._hashed_slabs < len(self._open_blob().slabs):
                self._hash_full_slabs()

    def _fill(self, space: memoryview, data: memoryview) -> None:
        memory = self._open_blob().unsealed
        if memory is None:
            space[:] = data
            return
        try:
            memory.write([data])  # what it was given last ends where `space` begins
        except OSError:
            raise self._no_memory() from None

    def _no_memory(self) -> TooLargeError:
        return TooLargeError("the system has no memory left", model_id=self._model_id)

    def _allocate(self, data: memoryview | None = None) -> memoryview:
        """Return the space for the next bytes; none is left where `data` has all bytes, which are copied to it."""
        blob = self._open_blob()
        start = blob.size_bytes
        size_bytes = min(SLAB_BYTES, self._declared_bytes - start)
        if not size_bytes:
            raise RuntimeError("more bytes than the upload was opened for")
        if not start:
            self._store.prepare(blob, self._declared_bytes, self._model_id)
        self._store.allocate(blob, size_bytes, self._model_id, self._evicted)
        try:
            if blob.unsealed is not None:
                blob.slabs.append(self._store.take_part(blob.unsealed, start, size_bytes))
                return blob.slabs[-1]
            if size_bytes == SLAB_BYTES:
                blob.slabs.append(self._store.take_slab())
                return blob.slabs[-1]
            blob.rest = self._store.take_buffer(size_bytes if data is None else data)
            return memoryview(blob.rest) if data is None else _NO_SPACE
        except (OSError, MemoryError):
            raise self._no_memory() from None

    def _open_blob(self) -> Blob:
        if self._blob is None:
            raise RuntimeError("the upload is closed")
        return self._blob

    def _hash_full_slabs(self) -> None:
        """Let a thread hash the slabs that are full, unless it is still busy with those before."""
        blob = self._open_blob()
        full = len(blob.slabs) - (1 if len(self._space) and not blob.rest else 0)
        if full > self._hashed_slabs and (self._hashing is None or self._hashing.done()):
            slabs: list[Bytes] = [*blob.slabs[self._hashed_slabs : full]]
            self._hashed_slabs = full
            loop = asyncio.get_running_loop()
            self._hashing = loop.run_in_executor(self._store.executor, self._hash.update, slabs)

    def written(self, start: int, stop: int) -> list[memoryview]:
        """Return the views that make up a part of the bytes written so far; valid until the upload is closed."""
        blob = self._open_blob()
        first = start // SLAB_BYTES
        parts = [*blob.slabs[first : -(-stop // SLAB_BYTES)]]
        if stop > len(blob.slabs) * SLAB_BYTES:
            parts.append(memoryview(blob.rest))
        return [*_cut(parts, start - first * SLAB_BYTES, stop - start)]

    async def finish(self) -> str:
        if self._known_hash:
            return self._known_hash
        blob = self._open_blob()
        if self._hashing is not None:
            await self._settle()
        remaining: list[Bytes] = [*blob.slabs[self._hashed_slabs :], blob.rest]
        self._hashed_slabs = len(blob.slabs)
        if sum(map(len, remaining)) <= INLINE_HASH_MAX_BYTES:
            self._hash.update(remaining)
        else:
            loop = asyncio.get_running_loop()
            self._hashing = loop.run_in_executor(self._store.executor, self._hash.update, remaining)
            await self._settle()
        return self._hash.digest_text()

    async def _settle(self) -> None:
        """Wait until no thread reads the slabs."""
        if self._hashing is not None:
            # Not awaited itself, since a cancellation would then abandon a thread that is still reading.
            await asyncio.wait([self._hashing])
            self._hashing.result()

    async def commit(self, info: VersionInfo) -> None:
        self._space = _NO_SPACE
        self._store.keep(info, self._open_blob(), self._evicted)
        self._blob = None

    def take_evicted(self) -> list[VersionInfo]:
        evicted, self._evicted = self._evicted, []
        return evicted

    async def aclose(self) -> None:
        if self._blob is not None:
            await run_to_end(self._aclose())
        if self._evicted:
            await self._store.report(self._evicted)

    async def _aclose(self) -> None:
        await self._settle()
        if self._blob is not None:
            self._space = _NO_SPACE
            blob, self._blob = self._blob, None
            self._store.abandon(self._model_id, blob, self._declared_bytes)


class _MemoryReader(Reader):
    """Yields views of slabs."""

    def __init__(self, store: MemoryTransientStore, model_id: str, blob: Blob) -> None:
        self._store = store
        self._model_id = model_id
        self._blob: Blob | None = blob

    async def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        if self._blob is None:
            raise RuntimeError("the reader is closed")
        follow_bytes = self._blob.size_bytes - offset
        size_bytes = follow_bytes if limit is None else min(limit, follow_bytes)
        chunk: list[memoryview] = []
        space = max_bytes
        for part in _cut(self._blob.parts(), offset, size_bytes):
            rest = part
            while len(rest) >= space:
                chunk.append(rest[:space])
                rest = rest[space:]
                yield chunk
                chunk, space = [], max_bytes
            if len(rest):
                chunk.append(rest)
                space -= len(rest)
        if chunk or not size_bytes:
            yield chunk

    def in_memory(self, max_bytes: int) -> Sequence[memoryview] | None:
        if self._blob is None:
            raise RuntimeError("the reader is closed")
        return [*self._blob.parts()] if self._blob.size_bytes <= max_bytes else None

    async def hand_over(self) -> int | None:
        if self._blob is None:
            raise RuntimeError("the reader is closed")
        return await self._store.sealing.descriptor_of(self._blob)

    async def aclose(self) -> None:
        if self._blob is not None:
            blob, self._blob = self._blob, None
            self._store.unpin(self._model_id, blob)


def _cut(parts: Iterable[memoryview], offset: int, size_bytes: int) -> Iterator[memoryview]:
    """Yield the views of so many bytes from an offset on."""
    for part in parts:
        view = part[offset : offset + size_bytes]
        offset = max(offset - len(part), 0)
        size_bytes -= len(view)
        if view:
            yield view
