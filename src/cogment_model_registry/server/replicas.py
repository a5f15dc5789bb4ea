"""Copies of transient versions on other servers, before their publish is acknowledged."""

import asyncio
import json
from dataclasses import dataclass, field
from random import sample
from typing import TYPE_CHECKING

import structlog

from cogment_model_registry.errors import ModelRegistryError, UnavailableError, counted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.tasks import TaskSet

if TYPE_CHECKING:
    from cogment_model_registry.server.shared_backend import SharedStorage

_log = structlog.stdlib.get_logger(__name__)

_SECONDS = 10.0
"""How long other servers may take: after so long without a sign of life, they are gone."""

_SILENT_SECONDS = 1.0
"""How long a server may be silent that was asked to have a version, before another one is asked, too."""

_KEEP = "keep"
_KEEPING = "keeping"
_KEPT = "kept"
_REFUSED = "refused"

_Key = tuple[str, int]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A version that others are to have: which servers have it, and which are expected to."""

    kept: set[int] = field(default_factory=set)
    keeping: set[int] = field(default_factory=set)
    expected: set[int] = field(default_factory=set)
    has_news: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, kind: str, sender: int) -> None:
        """Record what a server says."""
        if kind == _KEPT:
            self.kept.add(sender)
        elif kind == _KEEPING:
            self.keeping.add(sender)
        elif kind == _REFUSED:
            self.expected.discard(sender)
        self.has_news.set()

    async def wait(self) -> None:
        """Wait for news; expect nothing more of servers that stay silent."""
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                await self.has_news.wait()
        except TimeoutError:
            self.expected &= self.keeping | self.kept
        self.has_news.clear()


class Replicas:
    """Lets other servers have the transient versions of this one, and has those of others.

    Args:
        shared: What the servers share.
    """

    def __init__(self, shared: "SharedStorage") -> None:
        self._shared = shared
        self._count = shared.replicas
        self._waiting: dict[_Key, _Waiting] = {}
        self._taking = TaskSet()

    async def keep(self, info: VersionInfo) -> None:
        """Let other servers have a version.

        Raises:
            UnavailableError: There are too few, or they did not take it in time.
        """
        await self._shared.transient.fetch(info)
        leases = self._shared.catalog.leases
        have = {holder.server for holder in await leases.locate(info)}
        wanted = self._count - 1 - len(have)
        if wanted <= 0:
            return
        servers = {lease.server for lease in await leases.servers()}
        others = sorted(servers - have - {leases.server})
        what = f"version {info.number} is published, but not on {counted(self._count, 'server')}"
        if len(others) < wanted:
            raise UnavailableError(
                f"{what}, as transient_replicas demands: there are {len(servers)}",
                model_id=info.model_id,
                version_number=info.number,
            )
        key = info.model_id, info.number
        waiting = self._waiting[key] = _Waiting()
        unasked = sample(others, len(others))
        try:
            async with asyncio.timeout(_SECONDS):
                while len(waiting.kept) < wanted:
                    missing = max(0, wanted - len(waiting.kept | waiting.expected))
                    takers, unasked = unasked[:missing], unasked[missing:]
                    waiting.expected.update(takers)
                    if takers:
                        await self._shared.catalog.send([_text(_KEEP, taker, leases.server, key) for taker in takers])
                    await waiting.wait()
        except TimeoutError:
            message = f"{what}, as transient_replicas demands: another one did not take it in time"
            raise UnavailableError(message, model_id=info.model_id, version_number=info.number) from None
        finally:
            del self._waiting[key]

    def receive(self, text: str) -> bool:
        """Take what another server says; return whether it is about copies."""
        try:
            kind, receiver, sender, model_id, number = json.loads(text)
        except (ValueError, TypeError):
            return False
        if receiver == self._shared.catalog.leases.server:
            if kind == _KEEP:
                self._taking.begin(self._take((model_id, number), sender))
            elif waiting := self._waiting.get((model_id, number)):
                waiting.note(kind, sender)
        return True

    async def aclose(self) -> None:
        """Take nothing more."""
        await self._taking.cancel()

    async def _take(self, key: _Key, owner: int) -> None:
        """Have a version of another server, and say so, or that it is not possible."""
        model_id, number = key
        try:
            await self._say(_KEEPING, owner, key)
            try:
                await self._fetch(key)
            except ModelRegistryError:
                await self._say(_REFUSED, owner, key)
                raise
            await self._say(_KEPT, owner, key)
        except ModelRegistryError as error:
            _log.warning("version of another server not kept", model_id=model_id, number=number, reason=error.message)

    async def _fetch(self, key: _Key) -> None:
        model_id, number = key
        [info] = await self._shared.catalog.get_versions(model_id, [number])
        if not info.archived:
            await self._shared.transient.fetch(info)

    async def _say(self, kind: str, receiver: int, key: _Key) -> None:
        catalog = self._shared.catalog
        await catalog.send([_text(kind, receiver, catalog.leases.server, key)])


def _text(kind: str, receiver: int, sender: int, key: _Key) -> str:
    return json.dumps([kind, receiver, sender, *key])
