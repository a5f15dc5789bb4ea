"""The bytes of versions as messages that all watchers share: framed once, however many send them.

Messages are made for the first watcher that wants them, and live while any watcher is sending them. The newest ones
stay for those that come later. What is alive is bounded: a watcher that finds no room reads its version by itself.
"""

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.system.tasks import SharedWork
from cogment_model_registry.wire.frames import build_version_data, build_watch_data

_ALIVE_MAX_BYTES = 64 * MIB
"""The memory for shared messages: a thousand watchers that are stuck in different versions keep no more alive."""

_KEPT_MAX_BYTES = 16 * MIB
"""How much of it is kept while nobody sends it."""

_OVERHEAD_BYTES = 1024
"""What the messages of a version take besides its bytes."""

_Key: TypeAlias = tuple[str, int, str, int, bytes]


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
        self._kept_bytes = 0
        self._making: SharedWork[_Key, SharedMessages] = SharedWork()

    async def get(self, info: VersionInfo, chunk_bytes: int, ending: bytes = b"") -> SharedMessages | None:
        """Return the messages of a version; None if there is no room for them.

        Args:
            info: The version.
            chunk_bytes: How many of its bytes a message has.
            ending: The rest of the one message that has all bytes; empty for messages with nothing but bytes.

        Raises:
            DataLossError: It is damaged.
            NotFoundError: It does not exist any more.
        """
        key = info.model_id, info.number, info.data_hash, chunk_bytes, ending
        found = self._alive.get(key)
        if found is not None:
            return found
        size_bytes = info.data_size_bytes + _OVERHEAD_BYTES
        if not self._making.is_under_way(key) and (size_bytes > _KEPT_MAX_BYTES or not self._has_room(size_bytes)):
            return None
        return await self._making.result(key, lambda: self._make(info, key, size_bytes))

    def _has_room(self, size_bytes: int) -> bool:
        while self._kept and self._alive_bytes + size_bytes > _ALIVE_MAX_BYTES:
            self._drop_oldest()
        return self._alive_bytes + size_bytes <= _ALIVE_MAX_BYTES

    async def _make(self, info: VersionInfo, key: _Key, size_bytes: int) -> SharedMessages:
        self._alive_bytes += size_bytes
        try:
            made = SharedMessages(await self._read(info, *key[-2:]))
        except BaseException:
            self._alive_bytes -= size_bytes
            raise
        weakref.finalize(made, self._note_dead, size_bytes).atexit = False
        self._alive[key] = made
        self._kept[key] = (made, size_bytes)
        self._kept_bytes += size_bytes
        while self._kept_bytes > _KEPT_MAX_BYTES:
            self._drop_oldest()
        return made

    async def _read(self, info: VersionInfo, chunk_bytes: int, ending: bytes) -> list[bytes]:
        messages, missing_bytes = [], info.data_size_bytes
        async with await self._registry.open_same_version(info) as reader:
            async for parts in reader.chunks(chunk_bytes, 2 * chunk_bytes):
                missing_bytes -= sum(map(len, parts))
                is_last = not missing_bytes
                messages.append(
                    build_version_data(parts, ending) if ending else build_watch_data(parts, is_last=is_last)
                )
        return messages

    def _drop_oldest(self) -> None:
        _, (_, size_bytes) = self._kept.popitem(last=False)
        self._kept_bytes -= size_bytes

    def _note_dead(self, size_bytes: int) -> None:
        self._alive_bytes -= size_bytes
