"""The transient store of one of several servers: its own memory, and that of the others.

A version that is not in this memory is relayed from a server that holds it: once, however many read it here, and to
them while it arrives. Then it is in this memory too, and is evicted before the versions that this server holds. Such a
copy makes this server no holder: the catalog alone says who holds what, and nobody is notified when a copy is evicted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TypeAlias

from cogment_model_registry.errors import NotFoundError, TooLargeError
from cogment_model_registry.records.retention import TransientShare
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import (
    EvictionListener,
    Reader,
    TransientStore,
    TransientUsage,
    Upload,
)
from cogment_model_registry.server.relay_arrivals import Relay, RelayListener
from cogment_model_registry.server.relay_readers import RelayReader
from cogment_model_registry.server.relay_sources import Locate, OpenStream, RelayCounts, Source
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore

Announce: TypeAlias = Callable[[VersionInfo], Awaitable[None]]
"""Records in the catalog that this server holds a version. Raises `NotFoundError` if the version is gone."""

_Key: TypeAlias = tuple[str, int, int, str]


class RelayingStore(TransientStore, RelayListener):
    """Transient versions in the memory of this server, and of others.

    An asynchronous context manager, which ends its relays. Calls that read must have ended before.

    Args:
        local: The memory of this server.
        locate: Finds the servers that hold a version.
        open_stream: Asks one of them.
        announce: Records that this server holds a version.
        counts: Counts what relays do.
    """

    def __init__(
        self,
        local: MemoryTransientStore,
        locate: Locate,
        open_stream: OpenStream,
        announce: Announce,
        counts: RelayCounts,
    ) -> None:
        self._counts = counts
        self._local = local
        self._locate = locate
        self._open_stream = open_stream
        self._announce = announce
        self._relays: dict[_Key, Relay] = {}
        self._tasks: dict[Relay, asyncio.Task[None]] = {}
        self._copies: dict[tuple[str, int], VersionInfo] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What is relayed.

    async def open_version(self, info: VersionInfo) -> Reader:
        try:
            return await self._local.open_version(info)
        except NotFoundError:
            reader = self._reader(info)
        try:
            await reader.begin()
        except BaseException:
            await reader.aclose()
            raise
        return reader

    def _reader(self, info: VersionInfo) -> RelayReader:
        """Return a reader of the one relay of a version, which begins if it is not under way."""
        key = _key(info)
        relay = self._relays.get(key)
        if relay is None:
            relay = Relay(info, self._local, self._new_source(info), self._counts, self)
            self._counts.begun += 1
            self._relays[key] = relay
            self._tasks[relay] = task = asyncio.create_task(relay.run())
            task.add_done_callback(lambda _: self._tasks.pop(relay, None))
        else:
            self._counts.joined += 1
        return RelayReader(relay, lambda: self._new_source(info))

    def _new_source(self, info: VersionInfo) -> Source:
        return Source(info, self._locate, self._open_stream, self._counts)

    def begin_to_keep(self, relay: Relay) -> None:
        self._copies[relay.info.model_id, relay.info.number] = relay.info
        self._take_out(relay)

    def end(self, relay: Relay) -> None:
        self._take_out(relay)
        task = self._tasks.get(relay)
        if task is not None and not relay.is_over:
            task.cancel()

    def _take_out(self, relay: Relay) -> None:
        key = _key(relay.info)
        if self._relays.get(key) is relay:
            del self._relays[key]

    async def fetch(self, info: VersionInfo) -> None:
        async with await self.open_version(info) as reader:
            is_relayed = isinstance(reader, RelayReader)
            if isinstance(reader, RelayReader):
                await reader.settled()
            with self._local.holding(info) as is_here:
                if is_here:
                    await self._announce_copy(info)
                elif is_relayed:
                    message = "no space is left for a version that another server has"
                    raise TooLargeError(message, model_id=info.model_id, version_number=info.number)

    async def _announce_copy(self, info: VersionInfo) -> None:
        """Become a holder of a version, which the caller keeps from eviction, unless this server is one."""
        key = info.model_id, info.number
        if self._copies.get(key) != info:
            return
        del self._copies[key]
        try:
            await self._announce(info)
        except BaseException:
            self._copies[key] = info
            raise
        self._local.note_own(info)

    # What concerns copies, and relays under way.

    def on_evicted(self, listener: EvictionListener) -> None:
        async def report(evicted: Sequence[VersionInfo]) -> None:
            own = [info for info in evicted if self._copies.pop((info.model_id, info.number), None) != info]
            if own:
                await listener(own)

        self._local.on_evicted(report)

    async def remove_version(self, info: VersionInfo) -> None:
        relay = self._relays.get(_key(info))
        if relay is not None:
            self._forget(relay)
        if self._copies.get((info.model_id, info.number)) == info:
            del self._copies[info.model_id, info.number]
        await self._local.remove_version(info)

    async def remove_model(self, model_id: str) -> None:
        for relay in [relay for relay in self._relays.values() if relay.info.model_id == model_id]:
            self._forget(relay)
        for key in [key for key in self._copies if key[0] == model_id]:
            del self._copies[key]
        await self._local.remove_model(model_id)

    def _forget(self, relay: Relay) -> None:
        """Keep a version that was removed from being kept or joined; those who read it go on."""
        relay.forget()
        self._take_out(relay)

    # What concerns this memory alone.

    async def open_upload(self, model_id: str, size_bytes: int) -> Upload:
        return await self._local.open_upload(model_id, size_bytes)

    async def open_own(self, model_id: str, number: int) -> tuple[VersionInfo, Reader]:
        return await self._local.open_own(model_id, number)

    def holding(self, info: VersionInfo) -> AbstractContextManager[bool]:
        return self._local.holding(info)

    def note_newest(self, model_id: str, number: int) -> None:
        self._local.note_newest(model_id, number)

    def note_removed(self, model_id: str, number: int, newest: int) -> None:
        self._local.note_removed(model_id, number, newest)

    async def set_share(self, model_id: str, share: TransientShare) -> None:
        await self._local.set_share(model_id, share)

    def release_memory(self) -> None:
        self._local.release_memory()

    @property
    def usage(self) -> TransientUsage:
        return self._local.usage


def _key(info: VersionInfo) -> _Key:
    return info.model_id, info.number, info.created_ns, info.data_hash
