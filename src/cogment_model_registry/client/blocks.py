"""The interface of bytes to upload: they can be read in blocks, from any position, and repeatedly."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from cogment_model_registry.system.sealed_memory import SealedMemory


class Source(ABC):
    """Bytes to upload; to be closed.

    Attributes:
        size_bytes: The number of bytes.
        sealed: The sealed memory that has them, or None.
        is_fixed: Whether they cannot change.
        marks: The entries that are added to `user_data`, such as the format.
    """

    size_bytes: int
    sealed: SealedMemory | None = None
    is_fixed: bool = False
    marks: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def blocks(self, size_bytes: int, start: int = 0) -> Iterator[memoryview | bytes]:
        """Yield all bytes from a position on, in blocks of at most a size. May be called again."""

    @abstractmethod
    def finish(self) -> None:
        """Move the position of the caller's open file to the end of what was read."""

    @abstractmethod
    def close(self) -> None:
        """Close the files that were opened; the position of the caller's open file does not change."""
