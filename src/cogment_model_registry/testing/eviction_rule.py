"""A slow and plain implementation of the eviction rule of `TransientStore`, and the steps of a comparison."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hypothesis import strategies as st

from cogment_model_registry.records.retention import NO_SHARE, TransientShare

Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Publish:
    """Publish a version of a model."""

    model_id: str
    size: int


@dataclass(frozen=True)
class Use:
    """Read one of the versions published so far."""

    position: int


@dataclass(frozen=True)
class Pin:
    """Open a reader for one of the versions published so far, and keep it open."""

    position: int


@dataclass(frozen=True)
class Unpin:
    """Close the reader that was opened first."""


@dataclass(frozen=True)
class Share:
    """Set the share of a model."""

    model_id: str
    share: TransientShare


Step: TypeAlias = Publish | Use | Pin | Unpin | Share

_MODELS = st.sampled_from("abc")
_SHARES = st.builds(
    TransientShare,
    max_items=st.sampled_from([0, 0, 1, 3]),
    max_bytes=st.sampled_from([0, 0, 40, 90]),
    reserved_items=st.sampled_from([0, 0, 1, 3]),
    reserved_bytes=st.sampled_from([0, 0, 40, 90]),
)

STEPS = st.lists(
    st.one_of(
        st.builds(Publish, _MODELS, st.integers(0, 70)),
        st.builds(Use, st.integers(0, 30)),
        st.builds(Pin, st.integers(0, 30)),
        st.builds(Unpin),
        st.builds(Share, _MODELS, _SHARES),
    ),
    max_size=40,
)


class EvictionRule:
    """The eviction rule.

    Args:
        max_items: The bound on versions.
        max_bytes: The bound on bytes.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.used: list[Key] = []  # least recently used first
        self.sizes: dict[Key, int] = {}
        self.pins: list[Key] = []
        self.lingering: dict[Key, int] = {}  # evicted while being read
        self.numbers: dict[str, int] = {}
        self.shares: dict[str, TransientShare] = {}
        self.uploads: dict[str, int] = {}
        self.coming: Key | None = None  # the version that is being published

    @property
    def held(self) -> int:
        """Bytes of versions, including evicted ones that are still being read."""
        return sum(self.sizes.values()) + sum(self.lingering.values())

    @property
    def pinned(self) -> int:
        """Bytes that no eviction frees."""
        return sum({**self.sizes, **self.lingering}[key] for key in set(self.pins))

    def _line(self, model_id: str) -> list[Key]:
        return [key for key in self.used if key[0] == model_id]

    def _oldest(self, model_id: str, *, pinned_too: bool = False) -> Key | None:
        line = self._line(model_id)
        newest = max(number for _, number in line) if line else 0
        older = (key for key in line if key[1] < newest and key != self.coming)
        return next((key for key in older if pinned_too or key not in self.pins), None)

    def _amount(self, model_id: str, bound: Literal["items", "bytes"]) -> int:
        line = self._line(model_id)
        if bound == "items":
            return len(line)
        return sum(self.sizes[key] for key in line) + self.uploads.get(model_id, 0)

    def _is_reserved(self, model_id: str) -> bool:
        share = self.shares.get(model_id, NO_SHARE)
        is_few = 0 < self._amount(model_id, "items") <= share.reserved_items
        return is_few or 0 < self._amount(model_id, "bytes") <= share.reserved_bytes

    def victim(self, bound: Literal["items", "bytes"], taker: str) -> Key | None:
        """Return the version that is evicted first to free space for a model."""
        models = {model_id for model_id, _ in self.used}
        older = [key for model_id in models if (key := self._oldest(model_id))]
        if older:
            ranks = {
                key: (self._is_reserved(key[0]), -self._amount(key[0], bound), self.used.index(key)) for key in older
            }
            first = min(older, key=ranks.__getitem__)
            return self._oldest(taker) or first if ranks[first][0] else first
        newest = [self._newest(model_id) for model_id in models]
        free = [key for key in newest if key not in self.pins and key != self.coming]
        return min(free, key=lambda key: (self._is_reserved(key[0]), self.used.index(key)), default=None)

    def _newest(self, model_id: str) -> Key:
        return max(self._line(model_id), key=lambda key: key[1])

    def _pinned_victim(self) -> Key | None:
        candidates = [key for key in self.used if key != self.coming]
        return min(candidates, key=lambda key: (key == self._newest(key[0]), self.used.index(key)), default=None)

    def _evict(self, key: Key) -> None:
        self.used.remove(key)
        size = self.sizes.pop(key)
        if key in self.pins:
            self.lingering[key] = size

    def publish(self, model_id: str, size: int) -> Key | None:
        """Return the version that a publish creates; None if it is refused."""
        if size > self.max_bytes - self.pinned:
            return None
        self.uploads = {model_id: size}
        while self.held + size > self.max_bytes:
            victim = self.victim("bytes", model_id)
            assert victim
            self._evict(victim)
        self.uploads = {}
        number = self.numbers[model_id] = self.numbers.get(model_id, 0) + 1
        key = self.coming = (model_id, number)
        self.used.append(key)
        self.sizes[key] = size
        self._enforce_share(model_id)
        while len(self.used) > self.max_items:
            victim = self.victim("items", model_id) or self._pinned_victim()
            if victim is None:
                break
            self._evict(victim)
        self.coming = None
        return key

    def set_share(self, model_id: str, share: TransientShare) -> None:
        """Set the share of a model."""
        self.shares[model_id] = share
        self._enforce_share(model_id)

    def _enforce_share(self, model_id: str) -> None:
        share = self.shares.get(model_id, NO_SHARE)
        while share.max_items and self._amount(model_id, "items") > share.max_items:
            victim = self._oldest(model_id) or self._oldest(model_id, pinned_too=True)
            if victim is None:
                break
            self._evict(victim)
        while share.max_bytes and self._amount(model_id, "bytes") > share.max_bytes:
            victim = self._oldest(model_id)
            if victim is None:
                break
            self._evict(victim)
