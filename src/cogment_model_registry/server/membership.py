"""This server among those that share a catalog: its lease, and what it does when it or another one is gone.

Every second, a server gives a sign of life and looks at those of the others. One whose sign has not changed for some
time is gone: its lease is removed, and what it left half done is undone. No clock is compared with another one, and
time in which the database did not answer does not count, so an outage of the database ends no lease.

A server whose own lease was removed, because it was frozen or cut off, gives up the transient versions that it had,
since others say that they are gone, and takes a new lease.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

import structlog

from cogment_model_registry.errors import ModelRegistryError, UnavailableError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import TransientStore
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.storage.postgres.leases import Lease
from cogment_model_registry.storage.postgres.pending import Pending
from cogment_model_registry.system.tasks import TaskSet, end, surviving

_log = structlog.stdlib.get_logger(__name__)

BEAT_SECONDS = 1.0
"""How often a server gives a sign of life."""

LEASE_SECONDS = 10.0
"""How long the lease of a server counts that gives none."""

_PRUNE_SECONDS = 600.0
"""How often what is too old is removed from the catalog."""


def _ignore() -> None:
    """Do nothing about a new lease."""


class Membership:
    """The part of this server among the others.

    Args:
        catalog: The catalog that they share; open.
        archive: The archive that they share; open.
        transient: The transient versions of this server.
        lease_seconds: How long the lease of a server counts that gives no sign of life.
        beat_seconds: How often they give one.

    Attributes:
        others: The other servers, as they were seen last.
        leases_lost: How many leases of this server others have removed.
        leases_removed: How many of others this server has removed.
        on_new_lease: Called after a lease was lost and a new one was taken.
    """

    def __init__(
        self,
        catalog: PostgresCatalog,
        archive: SharedBucketArchive,
        transient: TransientStore,
        *,
        lease_seconds: float = LEASE_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self.others: Sequence[Lease] = ()
        self.leases_lost = 0
        self.leases_removed = 0
        self.on_new_lease: Callable[[], None] = _ignore
        self._catalog = catalog
        self._leases = catalog.leases
        self._archive = archive
        self._transient = transient
        self._lease_seconds = lease_seconds
        self._beat_seconds = beat_seconds
        self._endpoint = ""
        self._signs: dict[int, tuple[int, float]] = {}  # the last beat of each other server, and since when it is that
        self._looked_at = 0.0
        self._prune_at = 0.0
        self._uncleared: set[int] = set()  # servers that are gone, and whose bytes in the archive are not deleted yet
        self._dropping = TaskSet()
        self._tasks: list[asyncio.Task[None]] = []
        catalog.on_dropped(self._drop)
        catalog.on_shown(transient.note_newest)  # its own versions are older then

    @property
    def servers(self) -> int:
        """How many servers there are, as far as this one knows."""
        return len(self.others) + (self._leases.server != 0)

    @property
    def is_leader(self) -> bool:
        """Whether this server does what one of them does: it has the oldest lease, as far as it knows."""
        own = self._leases.server
        return own != 0 and all(own < other.server for other in self.others)

    async def join(self, endpoint: str) -> None:
        """Take a lease, and keep it.

        Args:
            endpoint: Where the other servers reach this one.

        Raises:
            UnavailableError: The catalog does not answer.
        """
        self._endpoint = endpoint
        number = await self._leases.take(endpoint)
        _log.info("lease taken", server=number, endpoint=endpoint)
        self._tasks = [asyncio.create_task(self._repeat(work)) for work in (self._look, self._clear)]

    async def leave(self) -> None:
        """Give the lease up, with the transient versions that no other server has. Leaving twice does nothing."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        for task in tasks:
            await end(task)
        await self._dropping.settled()
        try:
            await self._leases.remove(self._leases.server)
        except ModelRegistryError as error:
            _log.warning("lease not given up; the other servers will notice", reason=error.message)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do some work again and again; what fails is done the next time."""
        while True:
            with surviving(_log.exception, "lease"), contextlib.suppress(ModelRegistryError):
                await work()
            await asyncio.sleep(self._beat_seconds)

    async def _look(self) -> None:
        """Give a sign of life, and look for servers that give none."""
        leases = await self._leases.beat()
        if leases is None:
            await self._begin_again()
            leases = await self._leases.servers()
        now = monotonic()
        if now - self._looked_at > self._lease_seconds / 2:
            self._signs.clear()  # this server was frozen, or the database was away: all others get their time again
        self._looked_at = now
        self.others = [lease for lease in leases if lease.server != self._leases.server]
        before, self._signs = self._signs, {}
        for other in self.others:
            beat, since = before.get(other.server, (-1, now))
            self._signs[other.server] = (other.beat, since if beat == other.beat else now)
        for other in self.others:
            silent_seconds = now - self._signs[other.server][1]
            if silent_seconds > self._lease_seconds:
                await self._leases.remove(other.server)
                self._uncleared.add(other.server)
                self.leases_removed += 1
                _log.warning("server gone", server=other.server, endpoint=other.endpoint, silent_seconds=silent_seconds)

    async def _begin_again(self) -> None:
        """Give up what the lost lease had, and take a new one."""
        lost = self._leases.server
        self.leases_lost += 1
        for info in self._leases.give_up_held():
            await self._transient.remove_version(info)
        number = await self._leases.take(self._endpoint)
        _log.warning("lease lost; another one taken", server=number, lost=lost)
        self.on_new_lease()

    def _drop(self, infos: Sequence[VersionInfo]) -> None:
        """Free versions that another server removed or promoted."""

        async def drop() -> None:
            for info in infos:
                await self._transient.remove_version(info)

        self._dropping.begin(drop())

    # What was left half done.

    async def _clear(self) -> None:
        """Undo or finish what was left half done by servers that are gone, or by this one."""
        for pending in await self._leases.unresolved():
            try:
                await self._resolve(pending)
            except UnavailableError as error:
                _log.info("interrupted change not resolved yet", model_id=pending.ref.model_id, reason=error.message)
        for server in sorted(self._uncleared):
            await self._archive.clear_leftovers(server)
            self._uncleared.discard(server)
        if self.is_leader and monotonic() >= self._prune_at:
            self._prune_at = monotonic() + _PRUNE_SECONDS
            await self._leases.prune()

    async def _resolve(self, pending: Pending) -> None:
        model_id, number = pending.ref.model_id, pending.number
        async with self._leases.resolving(pending) as resolution:
            if resolution is None:
                return
            if pending.kind in ("store", "promote"):
                await self._archive.remove_leftover(model_id, number, resolution.check)
            elif pending.kind == "remove":
                [found] = await self._archive.read_version_infos(model_id, [number])
                if found is None:  # the record goes first
                    await self._archive.remove_leftover(model_id, number, resolution.check)
                    resolution.finish()
            elif not await self._archive.has_model(model_id):
                await self._archive.finish_removal(model_id)
                resolution.finish()
        _log.info("interrupted change resolved", kind=pending.kind, model_id=model_id, number=number)
