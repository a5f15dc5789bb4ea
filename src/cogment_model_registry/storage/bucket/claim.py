"""The ownership of an archive in a bucket: one server at a time, without a lock that a crash could leave.

Each owner creates a claim with the next epoch; the highest one owns the archive. While a server lives, it changes the
object `alive` of its claim, and after each change looks for a higher epoch. When it could not do that for most of the
lease, it writes nothing until it can: it may have been frozen, or cut off, and another server may own the archive now.
If it finds a higher epoch, it never writes again.

A server that starts takes the archive over

- at once, if the last owner has released it, or is known to be gone: it ran with the same directory of the catalog,
  whose lock the new one holds now;
- otherwise when `alive` has not changed for a whole lease, by its own clock. If it changed in the last moment, the new
  one waits for another lease, in which the old one finds the new claim.

No clock is compared with another one. What an old owner has sent and the network delivers later cannot do harm: a
record is created, never replaced, and its number is one that no later owner gives.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from cogment_model_registry.errors import ModelRegistryError, StartError, UnavailableError
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.translation import ObjectExists
from cogment_model_registry.system.tasks import end, surviving, wait_at_most

_log = structlog.stdlib.get_logger(__name__)

LEASE_SECONDS = 30.0
"""How long the claim of a server counts that gives no sign of life."""

_BEATS = 3
"""How often in a lease a server gives a sign of life."""

_VALID_SHARE = 0.8
"""For what share of the lease a server relies on its last sign of life."""

_LOOKS = 10
"""How often in a lease a server looks for signs of life of another one."""

_RETRY_SECONDS = 1.0
_RELEASE_SECONDS = 5.0
_LOST = "another server owns the archive now: restart this one"


def clock() -> float:
    """Return seconds that go on while the machine is suspended, where the system has such a clock."""
    number = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if number is None else time.clock_gettime(number)


@dataclass(frozen=True, slots=True)
class _Owner:
    """What a claim says of its server, and when it gave a sign of life."""

    epoch: int
    state: str
    process: str
    sign: bytes | None
    is_released: bool


class Claim:
    """The claim of this process on an archive.

    Args:
        objects: The objects of the archive.
        state: What identifies the directory of the catalog, which this process has locked; empty for none.
        lease_seconds: How long a claim counts without a sign of life. All servers of an archive must have the same.
        clock: Returns the time in seconds.

    Attributes:
        epoch: The epoch; 0 while nothing is claimed.
        failure: Why nothing may be written; empty while it may.
    """

    def __init__(
        self,
        objects: Objects,
        state: str = "",
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = clock,
    ) -> None:
        self._objects = objects
        self._state = state
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._valid_until = 0.0
        self._is_lost = False
        self._renewing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.epoch = 0
        self.failure = ""

    async def take(self) -> None:
        """Take the archive.

        Raises:
            StartError: A server that lives owns it.
            UnavailableError: The store failed.
        """
        epochs = await self._epochs()
        before = await self._wait_until_gone(epochs[-1]) if epochs else None
        epoch = (epochs[-1] if epochs else 0) + 1
        process = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            await self._objects.create(
                layout.claim_name(epoch), layout.build_object({"process": process, "state": self._state})
            )
        except ObjectExists:
            raise StartError(f"archive {self._objects.url} is in use by another server that starts") from None
        self.epoch = epoch
        if before is not None and not self._is_known_gone(before):
            now = await self._owner(before.epoch)
            if now.sign != before.sign:
                await asyncio.sleep(self._lease_seconds)
        await self.renew()
        old = [name for each in epochs for name in (layout.claim_name(each), layout.alive_name(each))]
        await self._objects.delete(old)
        self._task = asyncio.create_task(self._keep())

    async def release(self) -> None:
        """Give the archive up, so that the next server need not wait. Never fails."""
        if self._task is not None:
            await end(self._task)
            self._task = None
        if self.epoch and not self._is_lost:
            released = layout.build_object({"released": True})
            with contextlib.suppress(ModelRegistryError, TimeoutError):
                await wait_at_most(_RELEASE_SECONDS, self._objects.put(layout.alive_name(self.epoch), released))
        self.epoch = 0

    async def require(self) -> None:
        """Check that this process owns the archive, before and after it writes.

        Raises:
            UnavailableError: It does not, or that cannot be found out now.
        """
        if self._clock() < self._valid_until and not self._is_lost:
            return
        if self.failure:
            raise UnavailableError(f"the archive takes no writes: {self.failure}")
        await self.renew()

    async def renew(self) -> None:
        """Give a sign of life, and look for a newer owner.

        Raises:
            UnavailableError: There is one, or the store failed.
        """
        async with self._renewing:
            if self._is_lost:
                raise UnavailableError(f"the archive takes no writes: {_LOST}")
            began = self._clock()
            try:
                sign = layout.build_object({"sign": secrets.token_hex(16)})
                await self._objects.put(layout.alive_name(self.epoch), sign)
                self._is_lost = (await self._epochs())[-1:] != [self.epoch]
            except ModelRegistryError as error:
                self._note_failure(error.message)
                raise
            if self._is_lost:
                self._note_failure(_LOST)
                raise UnavailableError(f"the archive takes no writes: {_LOST}")
            self._valid_until = began + self._lease_seconds * _VALID_SHARE
            self._note_failure("")

    def _note_failure(self, failure: str) -> None:
        if failure and not self.failure:
            _log.error("archive stopped taking writes", archive_url=self._objects.url, reason=failure)
        elif self.failure and not failure:
            _log.info("archive takes writes again", archive_url=self._objects.url)
        self.failure = failure

    async def _keep(self) -> None:
        """Renew the claim until it is lost."""
        while not self._is_lost:
            is_failing = bool(self.failure or self._objects.failure)
            pause = self._lease_seconds / _BEATS
            await asyncio.sleep(min(_RETRY_SECONDS, pause) if is_failing else pause)
            with surviving(_log.exception, "claim of the archive"), contextlib.suppress(ModelRegistryError):
                await self.renew()

    async def _epochs(self) -> list[int]:
        """Return the epochs that were claimed, ascending."""
        names = await self._objects.all_names(layout.CLAIMS)
        return sorted(epoch for name in names if (epoch := layout.parse_claim_name(name)) is not None)

    async def _owner(self, epoch: int) -> _Owner:
        claim = await self._objects.find(layout.claim_name(epoch)) or b"{}"
        sign = await self._objects.find(layout.alive_name(epoch))
        try:
            fields = layout.parse_object(claim)
            is_released = sign is not None and layout.parse_object(sign).get("released") is True
        except layout.BadObject:
            fields, is_released = {}, False
        process = fields.get("process")
        return _Owner(
            epoch,
            state=str(fields.get("state", "")),
            process=process if isinstance(process, str) and process.isprintable() else "an unknown server",
            sign=sign,
            is_released=is_released,
        )

    def _is_known_gone(self, owner: _Owner) -> bool:
        return owner.is_released or bool(self._state and owner.state == self._state)

    async def _wait_until_gone(self, epoch: int) -> _Owner:
        """Return what is known of an owner once it is gone; wait for a lease to find out if need be.

        Raises:
            StartError: It lives.
        """
        first = owner = await self._owner(epoch)
        until = self._clock() + self._lease_seconds
        if not self._is_known_gone(owner):
            _log.warning("waiting for the lease of another server to end", holder=owner.process)
        while not self._is_known_gone(owner) and (left := until - self._clock()) > 0:
            await asyncio.sleep(min(self._lease_seconds / _LOOKS, left))
            owner = await self._owner(epoch)
            if owner.sign != first.sign and not owner.is_released:
                raise StartError(f"archive {self._objects.url} is in use by {owner.process}")
        return owner
