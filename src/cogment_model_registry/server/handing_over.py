"""The transient versions of a server that stops, which the others take, so that a restart loses none that fit.

A server that stops takes no more versions, and says so to the others. Each of them takes a part of what it alone has:
the newest version of each model, and others as far as there is room for them. Then it says that it is done.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING
from zlib import crc32

import structlog

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.tasks import TaskSet

if TYPE_CHECKING:
    from cogment_model_registry.server.shared_backend import SharedStorage

_log = structlog.stdlib.get_logger(__name__)

_LEAVING = "leaving"
_DONE = "done"

_AT_ONCE = 4
"""How many versions a server takes at once."""


class HandingOver:
    """Hands versions over to other servers, and takes those that they hand over.

    Args:
        shared: What the servers share.
    """

    def __init__(self, shared: "SharedStorage") -> None:
        self._shared = shared
        self._leases = shared.catalog.leases
        self._awaited: set[int] = set()
        self._is_done = asyncio.Event()
        self._taking = TaskSet()

    async def hand_over(self, within_seconds: float) -> None:
        """Let the other servers take what this one alone has; what they have not taken in time is lost."""
        try:
            held = await self._leases.count_sole(self._leases.server)
            if held and await self._ask(within_seconds):
                left = await self._leases.count_sole(self._leases.server)
                _log.info("transient versions handed over", handed_over=held - left, lost=left)
        except ModelRegistryError as error:
            _log.warning("transient versions not handed over", reason=error.message)

    async def _ask(self, within_seconds: float) -> bool:
        """Ask the other servers, and wait until they are done or the time is over; return whether there are any."""
        own = self._leases.server
        self._awaited = {lease.server for lease in await self._leases.servers()} - {own}
        if not self._awaited:
            return False
        await self._shared.catalog.send([f"{_LEAVING}:{own}"])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._is_done.wait()
        return True

    def receive(self, text: str) -> bool:
        """Take what another server says; return whether it is about handing over."""
        kind, _, rest = text.partition(":")
        if kind == _LEAVING and rest.isdecimal():
            self._taking.begin(self._take_from(int(rest)))
        elif kind == _DONE and rest.replace(":", "").isdecimal():
            leaving, _, taker = rest.partition(":")
            if int(leaving) == self._leases.server:
                self._awaited.discard(int(taker))
                if not self._awaited:
                    self._is_done.set()
        else:
            return False
        return True

    async def aclose(self) -> None:
        """Take nothing more."""
        await self._taking.cancel()

    async def _take_from(self, leaving: int) -> None:
        """Take this server's part of what a server alone has that stops."""
        own = self._leases.server
        try:
            takers = sorted({lease.server for lease in await self._leases.servers()} - {leaving})
            if own in takers:
                mine = [
                    (info, is_newest)
                    for info, is_newest in await self._leases.sole_versions(leaving)
                    if _share_of(info, len(takers)) == takers.index(own)
                ]
                for start in range(0, len(mine), _AT_ONCE):
                    await asyncio.gather(*(self._take(*each) for each in mine[start : start + _AT_ONCE]))
            await self._shared.catalog.send([f"{_DONE}:{leaving}:{own}"])
        except ModelRegistryError as error:
            _log.warning("versions of a server that stops were not taken", server=leaving, reason=error.message)

    async def _take(self, info: VersionInfo, is_newest: bool) -> None:
        usage = self._shared.transient.usage
        has_room = usage.items < usage.max_items and usage.bytes + info.data_size_bytes <= usage.max_bytes
        if not has_room and not is_newest:
            return
        try:
            await self._shared.transient.fetch(info)
        except ModelRegistryError as error:
            _log.info(
                "version of a server that stops not taken",
                model_id=info.model_id,
                number=info.number,
                reason=error.message,
            )


def _share_of(info: VersionInfo, takers: int) -> int:
    """Return which of some servers takes a version, whichever others have been taken by then: from 0."""
    return (crc32(info.model_id.encode()) + info.number) % takers
