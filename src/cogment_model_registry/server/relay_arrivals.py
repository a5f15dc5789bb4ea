"""One version on its way from another server into the memory of this one, for all who read it here.

    holder -> messages -> an upload of the local store (one copy) -> views of it, to any number of readers
                                                                  -> hash right: committed, readers go on in the store

Readers follow at their own pace and hold up nobody. The last byte is theirs only when the hash of all was right.
"""

import asyncio
from typing import Protocol

import structlog

from cogment_model_registry.errors import ModelRegistryError, StoppingError, TooLargeError, UnavailableError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Reader
from cogment_model_registry.server.relay_sources import RelayCounts, Source
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore, MemoryUpload

_log = structlog.stdlib.get_logger(__name__)


class Arrival:
    """The bytes that have arrived so far. Made by a `Relay`; they are freed when the last user has left.

    Args:
        upload: Where they go.
        size_bytes: How many they will be.

    Attributes:
        is_checked: Whether all are there, and right.
        is_wrong: Whether all are there, and wrong.
    """

    def __init__(self, upload: MemoryUpload, size_bytes: int) -> None:
        self.is_checked = False
        self.is_wrong = False
        self._upload = upload
        self._size_bytes = size_bytes
        self._received_bytes = 0
        self._users = 1

    def join(self) -> None:
        """Become a user of the bytes; the relay is the first one."""
        self._users += 1

    async def leave(self) -> None:
        """Need the bytes no longer."""
        self._users -= 1
        if not self._users:
            await self._upload.aclose()

    def has(self, stop: int) -> bool:
        """Return whether the bytes up to a position are there; the last ones only when all were checked."""
        return self.is_checked or (stop <= self._received_bytes and stop < self._size_bytes)

    def parts(self, start: int, stop: int) -> list[memoryview]:
        """Return the views that make up some of the bytes; valid until the caller leaves."""
        return self._upload.written(start, stop)

    async def write(self, view: memoryview) -> None:
        """Add bytes.

        Raises:
            TooLargeError: No space is left.
        """
        await self._upload.write(view)
        self._received_bytes += len(view)

    async def check(self, data_hash: str) -> bool:
        """Return whether the bytes have a hash, now that all are there."""
        self.is_checked = await self._upload.finish() == data_hash
        self.is_wrong = not self.is_checked
        return self.is_checked

    async def commit(self, info: VersionInfo) -> None:
        """Keep the bytes as a version of the store; from now on, it alone has them."""
        await self._upload.commit(info)

    async def report_evictions(self) -> None:
        """Report what was evicted for the version that was kept."""
        await self._upload.aclose()


class RelayUser:
    """Reads a version that is being relayed.

    Attributes:
        arrivals: Its bytes, as far as they are here. If the first ones turned out to be wrong, others follow.
        kept: Reads it from the store, as soon as that has all of it.
    """

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.kept: Reader | None = None

    def attach(self, arrival: Arrival) -> None:
        """Become a user of bytes, to leave them when they are not needed any more."""
        arrival.join()
        self.arrivals.append(arrival)


class RelayListener(Protocol):
    """Is notified of what becomes of relays, on the event loop."""

    def begin_to_keep(self, relay: "Relay") -> None:
        """Note that a version is kept now: who asks next finds it in the store."""

    def end(self, relay: "Relay") -> None:
        """Note that a relay is over, or that nobody wants it any more."""


class Relay:
    """A relay under way.

    Args:
        info: The version.
        local: Where it is kept.
        source: Where it comes from; the relay closes it.
        counts: What is counted.
        listener: Who is notified.

    Attributes:
        info: The version.
        counts: What is counted.
        has_begun: Whether a server sends it.
        has_no_room: Whether the store has no room for it, so that each reader has to receive it alone.
        is_over: Whether nothing changes any more.
        error: Why nobody sends it; None while somebody may.
    """

    def __init__(
        self,
        info: VersionInfo,
        local: MemoryTransientStore,
        source: Source,
        counts: RelayCounts,
        listener: RelayListener,
    ) -> None:
        self.info = info
        self.has_begun = False
        self.has_no_room = False
        self.is_over = False
        self.error: ModelRegistryError | None = None
        self._local = local
        self._source = source
        self.counts = counts
        self._listener = listener
        self._arrival: Arrival | None = None
        self._readers: set[RelayUser] = set()
        self._is_to_be_kept = True
        self._news = asyncio.Event()

    def join(self, reader: "RelayUser") -> None:
        """Add a reader."""
        self._readers.add(reader)
        if self._arrival is not None and not self._arrival.is_wrong:
            reader.attach(self._arrival)

    def leave(self, reader: "RelayUser") -> None:
        """Remove a reader; without any, the relay is not wanted any more."""
        self._readers.discard(reader)
        if not self._readers and not self.is_over:
            self._listener.end(self)

    def forget(self) -> None:
        """Do not keep the version, since it was removed; those who read it go on."""
        self._is_to_be_kept = False

    async def changed(self) -> None:
        """Wait until something has changed."""
        await self._news.wait()

    def _notify(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Receive the version, and keep it."""
        try:
            async with self._source:
                try:
                    await self._receive()
                except TooLargeError:
                    self.has_no_room = True
                self._end()
                if not self.has_no_room:
                    await self._source.finish()
        except ModelRegistryError as failure:
            self.counts.failed += 1
            self._end(failure)
        except Exception:
            _log.exception("a relay failed unexpectedly", model_id=self.info.model_id, number=self.info.number)
            self.counts.failed += 1
            self._end(UnavailableError("the server failed; its log says why"))
        finally:
            self._end(StoppingError())

    def _end(self, error: ModelRegistryError | None = None) -> None:
        """Note the end, and why it came too early if it did; only the first one counts."""
        if not self.is_over:
            self.error = error
            self.is_over = True
            self._listener.end(self)
            self._notify()

    async def _receive(self) -> None:
        """Receive the version, again while servers are left when bytes turn out to be wrong."""
        while True:
            upload = await self._local.open_upload(self.info.model_id, self.info.data_size_bytes, is_copy=True)
            self._arrival = arrival = Arrival(upload, self.info.data_size_bytes)
            for reader in self._readers:
                reader.attach(arrival)
            try:
                await self._source.begin()
                self.has_begun = True
                self._notify()
                while (view := await self._source.next()) is not None:
                    await arrival.write(view)
                    del view  # with its message, before the next one comes
                    self._notify()
                if await arrival.check(self.info.data_hash):
                    await self._keep(arrival)
                    return
                self._source.reject()
                self._notify()
            finally:
                await arrival.leave()

    async def _keep(self, arrival: Arrival) -> None:
        """Keep the version unless it was removed in the meantime, and let its readers go on."""
        if self._is_to_be_kept:
            self._listener.begin_to_keep(self)
            # Nothing waits from here until each reader has the version, so that none can be evicted from under it.
            await arrival.commit(self.info)
            for reader in self._readers:
                reader.kept = await self._local.open_version(self.info)
        self._notify()
        if self._is_to_be_kept:
            await arrival.report_evictions()
