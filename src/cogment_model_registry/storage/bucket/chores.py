"""What is done later: deleting objects that nothing leads to any more, and settling records that may exist or not.

The bytes of a version that is removed stay while someone reads it. What cannot be deleted now is tried again; what is
left when the process ends is cleared away by the next start.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.system.tasks import TaskSet, end, wait_at_most

_log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 2.0
_LAST_SECONDS = 5.0
_BATCH = 500


class Chores:
    """The deletions of an archive.

    Args:
        objects: The objects of the archive.
        require_writable: Checks that this process owns the archive.
    """

    def __init__(self, objects: Objects, require_writable: Callable[[], Awaitable[None]]) -> None:
        self._objects = objects
        self._require_writable = require_writable
        self._names: list[str] = []
        self._settling: list[Callable[[], Awaitable[None]]] = []
        self._pins: Counter[str] = Counter()
        self._doomed: dict[str, Sequence[str]] = {}
        self._waiting = TaskSet()
        self._task: asyncio.Task[None] | None = None

    def pin(self, key: str) -> None:
        """Keep the bytes that have a key until `unpin` was called as often."""
        self._pins[key] += 1

    def unpin(self, key: str) -> None:
        """End one `pin`, and delete the bytes soon if they were to be deleted since."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]
            self.delete_soon(self._doomed.pop(key, ()))

    def delete_data_soon(self, key: str, names: Sequence[str]) -> None:
        """Delete the bytes that have a key, once nobody reads them."""
        if key in self._pins:
            self._doomed[key] = names
        else:
            self.delete_soon(names)

    def is_pinned(self, key: str) -> bool:
        """Return whether someone reads the bytes that have a key."""
        return key in self._pins

    def delete_soon(self, names: Sequence[str]) -> None:
        """Delete objects that nothing leads to."""
        if names:
            self._names += names
            self._begin()

    def delete_after(self, writes: Collection[asyncio.Task[None]], names: Sequence[str]) -> None:
        """Delete objects that nothing leads to, once the requests that may still write them have ended."""
        self._waiting.begin(self._delete_after(writes, names))

    async def _delete_after(self, writes: Collection[asyncio.Task[None]], names: Sequence[str]) -> None:
        if writes:
            await asyncio.wait(writes)
        for write in writes:
            if not write.cancelled():
                write.exception()  # retrieved, so that asyncio does not report it: nobody waits for it any more
        self.delete_soon(names)

    def settle_soon(self, settle: Callable[[], Awaitable[None]]) -> None:
        """Do what settles a record that may exist or not, until it succeeds."""
        self._settling.append(settle)
        self._begin()

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._names or self._settling:
                try:
                    await self._do_next()
                except ModelRegistryError as error:
                    _log.info("deletion postponed", reason=error.message)
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._task = None

    async def _do_next(self) -> None:
        await self._require_writable()
        while self._settling:
            await self._settling[0]()
            del self._settling[0]
        batch = self._names[:_BATCH]
        await self._objects.delete(batch)
        del self._names[: len(batch)]

    async def close(self) -> None:
        """Do what there is to do, if the store answers soon."""
        with contextlib.suppress(TimeoutError):
            await wait_at_most(_LAST_SECONDS, self._finish())
        await self._waiting.cancel()
        if self._task is not None:
            await end(self._task)

    async def _finish(self) -> None:
        await self._waiting.settled()
        if self._task is not None:
            await asyncio.wait([self._task])
