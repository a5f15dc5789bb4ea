"""What consumers hold: versions that are neither evicted nor deleted because of them, within a bound on their bytes.

A version counts once, however many consumers hold it. What a consumer holds changes as a whole: if one of the versions
is gone, or the bound does not allow it, what it held before stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from cogment_model_registry.errors import TooLargeError, counted, quoted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import ModelRef, TransientStore
from cogment_model_registry.registry.holds import Hold, Holds

_NAMED_MAX = 3
"""How many consumers a message names."""


@dataclass(eq=False, kw_only=True)
class _HeldVersion(Hold):
    """A version that consumers hold.

    Attributes:
        info: The version as it was when the first of them began to hold it.
        consumer_ids: Those that hold it.
        in_store: Its hold in the transient store.
    """

    info: VersionInfo
    consumer_ids: set[str] = field(default_factory=set)
    in_store: ExitStack = field(default_factory=ExitStack)

    def note_consumers(self) -> None:
        """Update the reason."""
        self.reason = f"held by {_consumers_text(sorted(self.consumer_ids))}"


class ConsumerHolds:
    """Which consumers hold which versions.

    Args:
        transient: The store that must not evict them.
        holds: Keeps them from deletion.
        max_bytes: How many bytes the held versions may have together.

    Attributes:
        held_bytes: How many they have.
    """

    def __init__(self, transient: TransientStore, holds: Holds, max_bytes: int) -> None:
        self._transient = transient
        self._holds = holds
        self._max_bytes = max_bytes
        self._versions: dict[tuple[ModelRef, int], _HeldVersion] = {}
        self.held_bytes = 0

    def is_in_memory(self, info: VersionInfo) -> bool:
        """Return whether the transient store has a version now."""
        with self._transient.holding(info) as is_there:
            return is_there

    def of(self, ref: ModelRef) -> Mapping[int, str]:
        """Return the numbers of the versions of a model that consumers hold, and why."""
        return {number: version.reason for (each, number), version in self._versions.items() if each == ref}

    def consumers_of(self, ref: ModelRef, number: int) -> Sequence[str]:
        """Return the ids of the consumers that hold a version."""
        version = self._versions.get((ref, number))
        return sorted(version.consumer_ids) if version else ()

    def change(
        self, ref: ModelRef, consumer_id: str, before: Sequence[int], after: Mapping[int, VersionInfo | None]
    ) -> bool:
        """Change what a consumer holds, all or nothing.

        Args:
            ref: The model.
            consumer_id: The consumer.
            before: The numbers of the versions that it holds.
            after: Those that it will hold, with the versions as they were found; None for one that it holds already.

        Returns:
            False if a version is being removed or evicted: it must be looked up again.

        Raises:
            TooLargeError: They are too many, or have too many bytes.
        """
        if not before and not after:
            return True
        released = [number for number in before if number not in after]
        wanted = [info for number, info in after.items() if info is not None]
        if any(self._holds.is_being_removed(ref, info.number) for info in wanted):
            return False
        new = [info for info in wanted if (ref, info.number) not in self._versions]
        self._check_room(ref, consumer_id, new, released)
        with ExitStack() as taken:
            versions = []
            for info in new:
                in_store = taken.enter_context(ExitStack())
                if not info.archived and not in_store.enter_context(self._transient.holding(info)):
                    return False
                versions.append(_HeldVersion(ref, info.number, "", refuses_deletion=True, info=info, in_store=in_store))
            for version in versions:
                version.in_store = version.in_store.pop_all()
                self._begin(version)
        for info in wanted:
            version = self._versions[ref, info.number]
            version.consumer_ids.add(consumer_id)
            version.note_consumers()
        self.release(ref, consumer_id, released)
        return True

    def _check_room(self, ref: ModelRef, consumer_id: str, new: Sequence[VersionInfo], released: Iterable[int]) -> None:
        """Refuse new holds for which there is no room, even without those that the consumer releases."""
        if not new:
            return
        leaving = [
            version
            for number in released
            if (version := self._versions.get((ref, number))) and version.consumer_ids == {consumer_id}
        ]
        size_bytes = sum(info.data_size_bytes for info in new)
        held_bytes = self.held_bytes - sum(version.info.data_size_bytes for version in leaving)
        numbers = ", ".join(str(info.number) for info in new)
        what = f"consumer {quoted(consumer_id)} cannot hold version {numbers} of model {quoted(ref.model_id)}"
        if held_bytes + size_bytes > self._max_bytes:
            message = (
                f"{what}, which takes {counted(size_bytes, 'byte')}: consumers hold {held_bytes} of the "
                f"{self._max_bytes} bytes that consumers_held_max_bytes allows"
            )
            raise TooLargeError(message, model_id=ref.model_id)
        # One place of the transient store is left, so that versions can still be published.
        places = max(self._transient.usage.max_items - 1, 1)
        in_memory = sum(not version.info.archived for version in self._versions.values() if version not in leaving)
        if in_memory + sum(not info.archived for info in new) > places:
            message = f"{what}: consumers may hold {counted(places, 'transient version')}; cache_max_items says so"
            raise TooLargeError(message, model_id=ref.model_id)

    def _begin(self, version: _HeldVersion) -> None:
        self._versions[version.ref, version.number] = version
        self.held_bytes += version.info.data_size_bytes
        self._holds.add(version)

    def release(self, ref: ModelRef, consumer_id: str, numbers: Iterable[int]) -> None:
        """End the holds of a consumer on versions."""
        for number in numbers:
            version = self._versions.get((ref, number))
            if version is None:
                continue
            version.consumer_ids.discard(consumer_id)
            if version.consumer_ids:
                version.note_consumers()
            else:
                self.end(ref, number)

    def end(self, ref: ModelRef, number: int) -> None:
        """End all holds on a version, if there are any."""
        version = self._versions.pop((ref, number), None)
        if version is not None:
            self.held_bytes -= version.info.data_size_bytes
            self._holds.remove(version)
            version.in_store.close()


def _consumers_text(consumer_ids: Sequence[str]) -> str:
    """Return the names of consumers for a message: the first ones, and how many others there are."""
    named = ", ".join(quoted(each) for each in consumer_ids[:_NAMED_MAX])
    others = len(consumer_ids) - _NAMED_MAX
    noun = "consumer" if len(consumer_ids) == 1 else "consumers"
    return f"{noun} {named}" + (f" and {counted(others, 'other')}" if others > 0 else "")
