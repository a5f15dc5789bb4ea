"""Interrupted uploads that wait to be resumed.

They hold what they received: room in the store of their tier. So the oldest ones go as soon as an upload finds no room,
and all go when their time or that of their model is over.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.registry.uploads import VersionUpload

PARKED_MAX = 64
"""Enough for the clients of a network that failed for a moment. In the archive, each holds two descriptors."""


@dataclass(eq=False, slots=True)
class _Parked:
    header: UploadHeader
    upload: VersionUpload
    timer: asyncio.TimerHandle


class Parking:
    """The interrupted uploads of a registry, oldest first.

    Args:
        seconds: How long an upload waits; 0 for not at all.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._parked: OrderedDict[str, _Parked] = OrderedDict()
        self._dropping: set[asyncio.Task[None]] = set()

    async def park(self, header: UploadHeader, upload: VersionUpload) -> None:
        """Keep an interrupted upload; one for which there is no place is dropped."""
        if self.seconds <= 0:
            await upload.aclose()
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.seconds, self._expire, header.request_id)
        self._parked[header.request_id] = _Parked(header, upload, timer)
        if len(self._parked) > PARKED_MAX:
            await self.drop_oldest()

    def header_of(self, request_id: str) -> UploadHeader | None:
        """Return the header of an interrupted upload, if it waits."""
        parked = self._parked.get(request_id)
        return parked.header if parked else None

    def take(self, request_id: str) -> VersionUpload | None:
        """Return an interrupted upload, which does not wait any more."""
        parked = self._parked.pop(request_id, None)
        if parked is None:
            return None
        parked.timer.cancel()
        return parked.upload

    async def drop_oldest(self) -> bool:
        """Drop the upload that waits longest; return False if none does."""
        if not self._parked:
            # One that is being dropped gives its room back in a moment.
            dropping = [*self._dropping]
            if dropping:
                await asyncio.wait(dropping)
            return bool(dropping)
        await self._drop(next(iter(self._parked)))
        return True

    async def drop_model(self, model_id: str) -> None:
        """Drop the uploads of a model."""
        await self._drop_where(lambda header: header.version.model_id == model_id)

    async def close(self) -> None:
        """Drop all, and let none wait from now on."""
        self.seconds = 0
        await self._drop_where(lambda _header: True)
        if self._dropping:
            await asyncio.wait(self._dropping)

    async def _drop_where(self, is_meant: Callable[[UploadHeader], bool]) -> None:
        for request_id in [request_id for request_id, parked in self._parked.items() if is_meant(parked.header)]:
            await self._drop(request_id)

    async def _drop(self, request_id: str) -> None:
        upload = self.take(request_id)
        if upload is not None:
            await upload.aclose()

    def _expire(self, request_id: str) -> None:
        task = asyncio.ensure_future(self._drop(request_id))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)
