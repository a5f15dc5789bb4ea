"""Copies of transient versions on other servers, before their publish is acknowledged."""

import asyncio
import json
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

_KEEP = "keep"
_KEPT = "kept"

_Key = tuple[str, int]


class Replicas:
    """Lets other servers have the transient versions of this one, and has those of others.

    Args:
        shared: What the servers share.
    """

    def __init__(self, shared: "SharedStorage") -> None:
        self._shared = shared
        self._count = shared.replicas
        self._kept: dict[_Key, tuple[set[int], asyncio.Event]] = {}  # who has a version that is waited for
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
        holders, is_kept = self._kept[key] = set(), asyncio.Event()
        try:
            takers = sample(others, wanted)
            await self._shared.catalog.send([_text(_KEEP, taker, leases.server, key) for taker in takers])
            async with asyncio.timeout(_SECONDS):
                while len(holders) < wanted:
                    await is_kept.wait()
                    is_kept.clear()
        except TimeoutError:
            message = f"{what}, as transient_replicas demands: another one did not take it in time"
            raise UnavailableError(message, model_id=info.model_id, version_number=info.number) from None
        finally:
            del self._kept[key]

    def receive(self, text: str) -> bool:
        """Take what another server says; return whether it is about copies."""
        try:
            kind, receiver, sender, model_id, number = json.loads(text)
        except (ValueError, TypeError):
            return False
        if receiver == self._shared.catalog.leases.server:
            if kind == _KEEP:
                self._taking.begin(self._take((model_id, number), sender))
            elif kind == _KEPT and (waiting := self._kept.get((model_id, number))):
                waiting[0].add(sender)
                waiting[1].set()
        return True

    async def aclose(self) -> None:
        """Take nothing more."""
        await self._taking.cancel()

    async def _take(self, key: _Key, owner: int) -> None:
        """Have a version of another server, and say so."""
        model_id, number = key
        catalog = self._shared.catalog
        try:
            [info] = await catalog.get_versions(model_id, [number])
            if not info.archived:
                await self._shared.transient.fetch(info)
            await catalog.send([_text(_KEPT, owner, catalog.leases.server, key)])
        except ModelRegistryError as error:
            _log.warning("version of another server not kept", model_id=model_id, number=number, reason=error.message)


def _text(kind: str, receiver: int, sender: int, key: _Key) -> str:
    return json.dumps([kind, receiver, sender, *key])
