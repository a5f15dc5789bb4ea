"""The bytes of versions as messages that all watchers share: framed once, however many send them.

Messages are made for the first watcher that wants them, and live while any watcher is sending them. The newest ones
stay for those that come later. What is alive is bounded: a watcher that finds no room reads its version by itself.
"""

import asyncio
import weakref
from collections import OrderedDict
from collections.abc import Sequence

from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.wire.frames import build_watch_data

_ALIVE_MAX_BYTES = 64 * MIB
"""The memory for shared messages: a thousand watchers that are stuck in different versions keep no more alive."""

_KEPT_MAX_BYTES = 16 * MIB
"""How much of it is kept while nobody sends it."""


class SharedMessages:
    """The messages with the bytes of one version.

    Attributes:
        messages: The messages.
    """

    __slots__ = ("__weakref__", "messages")

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.messages = messages


class SharedBytes:
    """Makes the messages of versions.

    Args:
        registry: Where their bytes come from.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._alive: weakref.WeakValueDictionary[_Key, SharedMessages] = weakref.WeakValueDictionary()
        self._alive_bytes = 0
        self._kept: OrderedDict[_Key, tuple[SharedMessages, int]] = OrderedDict()
        self._making: dict[_Key, asyncio.Task[SharedMessages]] = {}

    async def get(self, info: VersionInfo, chunk_bytes: int) -> SharedMessages | None:
        """Return the messages of a version; None if there is no room for them.

        Raises:
            DataLossError: It is damaged.
            NotFoundError: It does not exist any more.
        """
        key = info.model_id, info.number, info.data_hash, chunk_bytes
        found = self._alive.get(key)
        if found is not None:
            return found
        making = self._making.get(key)
        if making is None:
            if info.data_size_bytes > _KEPT_MAX_BYTES or not self._has_room(info.data_size_bytes):
                return None
            self._alive_bytes += info.data_size_bytes
            making = self._making[key] = asyncio.ensure_future(self._make(info, key, chunk_bytes))
            making.add_done_callback(lambda task: self._note_made(task, key, info.data_size_bytes))
        return await asyncio.shield(making)

    def _has_room(self, size_bytes: int) -> bool:
        while self._kept and self._alive_bytes + size_bytes > _ALIVE_MAX_BYTES:
            self._kept.popitem(last=False)
        return self._alive_bytes + size_bytes <= _ALIVE_MAX_BYTES

    async def _make(self, info: VersionInfo, key: "_Key", chunk_bytes: int) -> SharedMessages:
        messages, missing_bytes = [], info.data_size_bytes
        async with await self._registry.open_same_version(info) as reader:
            async for parts in reader.chunks(chunk_bytes, 2 * chunk_bytes):
                missing_bytes -= sum(map(len, parts))
                messages.append(build_watch_data(parts, is_last=not missing_bytes))
        return SharedMessages(messages)

    def _note_made(self, making: "asyncio.Task[SharedMessages]", key: "_Key", size_bytes: int) -> None:
        del self._making[key]
        if making.cancelled() or making.exception():
            self._alive_bytes -= size_bytes
            return
        made = making.result()
        weakref.finalize(made, self._note_dead, size_bytes).atexit = False
        self._alive[key] = made
        self._kept[key] = (made, size_bytes)
        while sum(size for _, size in self._kept.values()) > _KEPT_MAX_BYTES:
            self._kept.popitem(last=False)

    def _note_dead(self, size_bytes: int) -> None:
        self._alive_bytes -= size_bytes


_Key = tuple[str, int, str, int]
