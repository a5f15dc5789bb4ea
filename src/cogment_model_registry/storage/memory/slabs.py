"""Recycled buffers for the bytes of transient versions.

Touching fresh memory for the first time costs several times more than copying into memory that is already there: the
kernel must find and clear each page. A trainer publishes versions of one size over and over, so the memory of evicted
ones is kept and filled again. Slabs have one size, so that any slab serves any version, and come from `mmap`, so that
those given back really return to the system instead of staying in the heap's free lists.
"""

import mmap

SLAB_BYTES = 1024 * 1024
"""Large enough that a copy or a hash of one is worth a call, small enough that few bytes of the last one lie idle."""


class SlabPool:
    """Hands out slabs, and keeps those that come back."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    @property
    def free_bytes(self) -> int:
        """Bytes of the slabs that wait for their next use."""
        return len(self._free) * SLAB_BYTES

    def take(self) -> memoryview:
        """Return a slab of `SLAB_BYTES` bytes, with its old content."""
        if self._free:
            return self._free.pop()
        # Private, so that neighbours merge into one mapping: the system allows a process some 65,000 of them.
        return memoryview(mmap.mmap(-1, SLAB_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give_back(self, slab: memoryview) -> None:
        """Take back a slab that nothing reads or writes any more; a view of sealed memory is none."""
        if not slab.readonly:
            self._free.append(slab)

    def trim(self, max_free_bytes: int) -> None:
        """Return free slabs to the system until at most `max_free_bytes` are kept."""
        if self._free:
            del self._free[max(max_free_bytes, 0) // SLAB_BYTES :]
