"""Which data files were checked against their hash, and did not change since."""

import asyncio
from dataclasses import replace
from weakref import WeakValueDictionary

from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.filesystem.reading import Fingerprint
from cogment_model_registry.storage.filesystem.touches import OwnTouches


class CheckedData:
    """The versions of an archive whose bytes were checked.

    Args:
        touches: What the archive itself did with the names of files.
    """

    def __init__(self, touches: OwnTouches) -> None:
        self._touches = touches
        self._checked: dict[tuple[str, int], tuple[str, Fingerprint]] = {}
        self._turns: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    def turn(self, info: VersionInfo) -> asyncio.Lock:
        """Return the lock of a version, for those who would otherwise check its bytes at the same time."""
        return self._turns.setdefault((info.model_id, info.number), asyncio.Lock())

    def has(self, info: VersionInfo, found: Fingerprint) -> bool:
        """Return whether the bytes in the file with this fingerprint were already checked against their hash."""
        data_hash, checked = self._checked.get((info.model_id, info.number), ("", None))
        return checked is not None and data_hash == info.data_hash and self.is_unchanged(checked, found)

    def add(self, info: VersionInfo, found: Fingerprint) -> None:
        """Record that the bytes in the file with this fingerprint match the hash."""
        self._checked[info.model_id, info.number] = (info.data_hash, found)

    def is_unchanged(self, before: Fingerprint, after: Fingerprint) -> bool:
        """Return whether a file is as before: nothing changed, or only names that the archive itself gave or took."""
        if replace(before, changed_ns=after.changed_ns) != after:
            return False
        return self._touches.explain(after.inode, before.changed_ns, after.changed_ns)

    def forget(self, model_id: str, number: int | None = None) -> None:
        """Forget a version, or all of a model."""
        if number is not None:
            self._checked.pop((model_id, number), None)
            return
        for key in [key for key in self._checked if key[0] == model_id]:
            del self._checked[key]
