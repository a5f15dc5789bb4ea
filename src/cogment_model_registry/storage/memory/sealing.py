"""Versions in sealed memory, which processes of the same host share with the store.

A version is published into slabs, which are recycled, and moves to sealed memory when it is first handed over: its
bytes are copied slab by slab, and each slab is freed as soon as its bytes are elsewhere, so that a version is never in
memory twice. Those who read it in the meantime keep the slabs that they have views of.
Where the version of a model that was used last was handed over, the next one comes into such memory at once.
"""

import asyncio
import contextlib
from concurrent.futures import Executor

from cogment_model_registry.storage.memory.evictions import Blob
from cogment_model_registry.system.sealed_memory import SealedMemory, UnsealedMemory
from cogment_model_registry.system.tasks import run_to_end

_STEP_SLABS = 8
"""How many slabs a thread copies at once: handing it fewer would cost a noticeable part of the time."""

_DESCRIPTORS_SHARE = 8
_DESCRIPTORS_EACH = 2
"""Sealed memory takes two descriptors, its own and that of its mapping; all of them an eighth of what the process may
have, so that there are enough for connections and files."""


class Sealing:
    """Moves versions to sealed memory, as long as there are descriptors.

    Args:
        executor: Where to copy.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sealed_max = _descriptors_max() // _DESCRIPTORS_SHARE // _DESCRIPTORS_EACH
        self._sealed = 0
        self._moving: dict[Blob, asyncio.Future[None]] = {}

    async def descriptor_of(self, blob: Blob) -> int | None:
        """Return a descriptor of the bytes of a version that a reader pins; None if they cannot be in such memory."""
        if blob.sealed is None:
            await run_to_end(self._sealed_once(blob))  # the reader must not leave while its slabs are copied
        with contextlib.suppress(OSError):
            if blob.sealed is not None:
                blob.was_handed_over = True
                return blob.sealed.descriptor()
        return None

    async def _sealed_once(self, blob: Blob) -> None:
        moving = self._moving.get(blob)
        if moving is None:
            moving = self._moving[blob] = asyncio.ensure_future(self._seal(blob))
            moving.add_done_callback(lambda _: self._moving.pop(blob))
        await asyncio.wait([moving])  # not itself: several readers await it, each in the first step of `run_to_end`
        moving.result()

    async def _seal(self, blob: Blob) -> None:
        if self._sealed >= self._sealed_max:
            return
        self._sealed += 1
        try:
            blob.sealed = await self._moved(blob)
        except OSError:  # no memory, or no descriptor
            self._sealed -= 1

    async def _moved(self, blob: Blob) -> SealedMemory:
        """Copy all bytes to new memory, and free the slabs on the way."""
        loop = asyncio.get_running_loop()
        memory = UnsealedMemory(blob.size_bytes)
        try:
            moved_bytes = 0
            for start in range(0, len(blob.slabs), _STEP_SLABS):
                stop = min(start + _STEP_SLABS, len(blob.slabs))
                await loop.run_in_executor(self._executor, memory.write, blob.slabs[start:stop])
                for index in range(start, stop):
                    end_bytes = moved_bytes + len(blob.slabs[index])
                    # Not recycled: a reader may have a view of it, with which it lives on.
                    blob.slabs[index] = memory.view[moved_bytes:end_bytes]
                    moved_bytes = end_bytes
            memory.write([blob.rest])
            # At once, so that a reader on its way gets either.
            blob.slabs.append(memory.view[moved_bytes:])
            blob.rest = bytearray()
            return memory.seal()
        except BaseException:
            memory.close()
            raise

    def prepare(self, blob: Blob, size_bytes: int) -> None:
        """Let a version without bytes come into memory that will be sealed, if there is some."""
        if self._sealed < self._sealed_max:
            with contextlib.suppress(OSError):
                blob.unsealed = UnsealedMemory(size_bytes)
                self._sealed += 1

    def finish(self, blob: Blob) -> None:
        """Seal the memory into which all bytes of a version came, if they came that way."""
        memory, blob.unsealed = blob.unsealed, None
        if memory is not None:
            try:
                blob.sealed = memory.seal()
            except OSError:  # its views stay valid, and it is copied when it is handed over
                memory.close()
                self._sealed -= 1

    def adopt(self, blob: Blob, memory: SealedMemory) -> bool:
        """Let a version without bytes lie in memory that came sealed, and return whether it does."""
        if self._sealed < self._sealed_max:
            with contextlib.suppress(OSError):
                blob.sealed = memory.shared()
                blob.slabs.append(memory.view)
                self._sealed += 1
        return blob.sealed is not None

    def free(self, blob: Blob) -> None:
        """Free the memory of a version, as soon as nobody has a view of it."""
        for memory in (blob.sealed, blob.unsealed):
            if memory is not None:
                self._sealed -= 1
                memory.close()
        blob.sealed = blob.unsealed = None


def _descriptors_max() -> int:
    """Return how many descriptors the process may have."""
    try:
        import resource  # noqa: PLC0415 # not on Windows
    except ImportError:
        return 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
