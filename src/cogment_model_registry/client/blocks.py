"""The interface of what is uploaded: bytes that can be read in blocks, from any position on, more than once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from cogment_model_registry.system.sealed_memory import SealedMemory


class Source(ABC):
    """Bytes to upload; to be closed.

    Attributes:
        size_bytes: How many.
        sealed: The sealed memory in which they are, if any.
        is_fixed: Whether nobody can change them.
        marks: What `user_data` says about what they are.
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
        """Close what was opened for it; the position of the caller's open file does not change."""
