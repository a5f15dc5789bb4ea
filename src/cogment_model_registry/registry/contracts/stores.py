"""The contracts of what holds bytes: Archive and TransientStore, with their uploads and readers."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.records.retention import TransientShare
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.system.sealed_memory import SealedMemory

_ADOPTED_BYTES = 4 * 1024 * 1024
"""How much of sealed memory is written at once where a store copies it."""


class _Closable(ABC):
    """Something that holds resources: an asynchronous context manager that always releases them."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release everything held. Closing twice does nothing. Runs to its end even when cancelled."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Upload(_Closable):
    """A version being written. Closed before `commit` has returned, it leaves nothing behind."""

    @abstractmethod
    async def write(self, *parts: memoryview) -> None:
        """Take the next bytes.

        The bytes under `parts` must not change until the upload is closed, since they may be processed while the caller
        receives the next ones. One call at a time.

        Raises:
            TooLargeError: No space is left for them.
        """

    async def adopt(self, memory: SealedMemory, data_hash: str) -> None:
        """Take all bytes at once, in place of `write`, from memory that nobody can change; it stays the caller's.

        A store in memory may keep this memory instead of a copy, with a descriptor of its own.

        Args:
            memory: The bytes.
            data_hash: Their hash, as `finish` returns it. It was computed by this process, so it is right.

        Raises:
            TooLargeError: No space is left for them.
        """
        for start in range(0, memory.size_bytes, _ADOPTED_BYTES):
            await self.write(memory.view[start : start + _ADOPTED_BYTES])

    @abstractmethod
    async def finish(self) -> str:
        """End the bytes, and make them as durable as the store is.

        Returns:
            Their SHA-256 in standard base64 with padding.

        Raises:
            TooLargeError: No space is left for them.
        """

    async def prepare(self, info: VersionInfo) -> None:
        """Do what `commit` can do for `info` before the version exists. Optional, once, after `finish`.

        Raises:
            NotFoundError: The model was removed in the meantime.
            TooLargeError: No space is left.
        """

    @abstractmethod
    async def commit(self, info: VersionInfo) -> None:
        """Bind the bytes to `info`, so that `VersionStore.open_version` finds them. Once, after `finish`.

        In an archive, all of the version is durable before this returns. Atomic: when it raises, or when the process
        ends during it, the version exists whole or not at all.

        Raises:
            NotFoundError: The model was removed in the meantime.
            TooLargeError: No space is left.
        """

    def take_evicted(self) -> list[VersionInfo]:
        """Return the versions that `commit` has evicted, for the caller to make invisible; they are not reported."""
        return []


class Reader(_Closable):
    """A version being read. What it reads stays readable until it is closed, even when the version is removed."""

    @abstractmethod
    def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        """Yield the bytes in order, or a part of them, in chunks of `max_bytes` bytes; the last one has what remains.

        Each chunk comes as the views that make it up, to be joined or written one after the other; they are valid until
        the next chunk is asked for. No bytes are one chunk without bytes. Once per reader.

        All of a version is checked against its hash. For a part, nothing else is read, so only what needs no bytes is
        checked, such as the size of a file.

        Args:
            max_bytes: The size of a chunk.
            buffer_bytes: How many bytes may be in buffers that were made for this reader, the chunk's own included; at
                least two chunks are allowed, and 128 KiB where bytes come from a network. An archive there
                may have more, within a bound for all its readers together.
            offset: Where to begin; at most the size of the version.
            limit: How many bytes to yield, unless the version ends before; None for all that follow.

        Raises:
            DataLossError: The bytes are not those of the version's hash. Raised before the last chunk is yielded.
        """

    def in_memory(self, max_bytes: int) -> Sequence[memoryview] | None:
        """Return the views that make up all bytes if they are in memory and not more than `max_bytes`.

        They are what `chunks` would yield as its only chunk, in one step, and are valid until the reader is closed.
        None where they are not: then there is `chunks`.
        """
        return None

    async def hand_over(self) -> int | None:
        """Return a new descriptor of a file or of memory that has the bytes and nothing else, for the caller to close.

        The bytes were checked against their hash. The descriptor can only be read from, and shares its position with no
        other one.

        Returns:
            The descriptor; None where the store has none to give, now or ever: then there is `chunks`.

        Raises:
            DataLossError: The bytes are not those of the version's hash.
        """
        return None


class VersionStore(ABC):
    """What both tiers do: take the bytes of versions and give them back."""

    @abstractmethod
    async def open_upload(self, model_id: str, size_bytes: int) -> Upload:
        """Begin to write a version of `size_bytes` bytes.

        Raises:
            NotFoundError: The store keeps models, and this one does not exist.
            TooLargeError: It cannot fit, whatever happens next.
        """

    @abstractmethod
    async def open_version(self, info: VersionInfo) -> Reader:
        """Begin to read a version.

        Raises:
            DataLossError: Its bytes are missing or damaged.
            NotFoundError: The store does not have it, or no longer.
        """

    @abstractmethod
    async def remove_version(self, info: VersionInfo) -> None:
        """Remove a version, in an archive durably; readers under way go on. Does nothing when it is not there.

        In an archive, the caller runs it as it runs `Upload.commit`: one at a time for a model.
        """


@dataclass(frozen=True, slots=True)
class ModelContents:
    """What an archive has of a model.

    Attributes:
        info: The model.
        version_numbers: The numbers of its versions, ascending, as far as names say: one of them may still turn out
            to be damaged when its metadata is read.
        size_bytes: The bytes of each of these versions, by number.
        damaged: What is wrong with versions that are known to be damaged, by number.
        last_number: The highest number in use, by a sound version, a damaged one, or what is left of one; 0 for none.
    """

    info: ModelInfo
    version_numbers: Sequence[int] = ()
    size_bytes: dict[int, int] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    last_number: int = 0


class Removal(ABC):
    """A model that is out of the archive, durably, and whose bytes are still to be freed."""

    @abstractmethod
    async def finish(self) -> None:
        """Free the bytes. What is not freed now is freed by a later `Archive.open`.

        Raises:
            UnavailableError: The model may be back after a crash, since the removal may not be durable.
        """


class Archive(VersionStore):
    """Where archived versions and the metadata of models live, durably.

    What a method wrote is durable before it returns, and written whole or not at all. For one model, the caller runs
    one at a time of `write_model`, `begin_removal` and `Upload.commit`.
    """

    @property
    @abstractmethod
    def is_exclusive(self) -> bool:
        """Whether one process at a time can have the archive open."""

    @property
    def is_read_only(self) -> bool:
        """Whether it takes no writes: all of them raise `PreconditionError`."""
        return False

    @abstractmethod
    async def open(self) -> None:
        """Open the archive, and clear away what interrupted writes left.

        Raises:
            StartError: It is not usable, or it is exclusive and another process has it open.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release the archive. Uploads and readers must be closed before. Closing twice does nothing."""

    @abstractmethod
    async def scan(self) -> Sequence[ModelContents]:
        """Return all models, ordered by id, whatever else lies in the archive."""

    @abstractmethod
    async def write_model(self, info: ModelInfo) -> None:
        """Create the model, or replace its `user_data`.

        Raises:
            TooLargeError: No space is left.
        """

    @abstractmethod
    async def begin_removal(self, model_id: str) -> Removal:
        """Take the model with all its versions out of the archive, at once; uploads under way fail, readers go on.

        When it raises, the model is as before. On return the model can be created again.

        Raises:
            NotFoundError: It does not exist.
        """

    @abstractmethod
    async def read_version_infos(
        self, model_id: str, numbers: Sequence[int]
    ) -> list[VersionInfo | DataLossError | None]:
        """Read the metadata of versions.

        Returns:
            For each number, in order: the version, or its error if it is damaged, or None if it does not exist.
        """

    @abstractmethod
    async def open_copy(self, info: VersionInfo) -> Upload:
        """Begin to write another version of the same model with the bytes of `info`, of which none are to be written.

        The bytes are shared where that is possible; either version keeps them when the other one is removed. `finish`
        returns the hash of the bytes that there are, which the caller compares: the version may be damaged.

        Raises:
            DataLossError: The bytes of the version are missing or damaged.
            NotFoundError: The archive does not have the version.
            TooLargeError: No space is left.
        """

    @property
    @abstractmethod
    def failure(self) -> str:
        """Why the archive takes no more writes, or none for now; empty while it takes them, and where it never does."""

    async def check(self) -> None:
        """Look for changes from outside that make writes impossible, or possible again; `failure` has the result.

        Called about once a second. Does nothing where there are none.
        """


@dataclass(frozen=True, slots=True)
class TransientUsage:
    """How full a transient store is.

    Attributes:
        items: Versions that can be read.
        bytes: Bytes held: of versions, of those removed that are still being read, and of uploads.
        held_bytes: Those of them that cannot be evicted now: being read, held, or promised to uploads.
        max_items: The bound on items.
        max_bytes: The bound on bytes.
        evictions: How many versions were evicted so far, by the bound that was reached: ``items``, ``bytes``,
            or the ``share`` of the model.
    """

    items: int
    bytes: int
    held_bytes: int
    max_items: int
    max_bytes: int
    evictions: Mapping[str, int]


EvictionListener: TypeAlias = Callable[[Sequence[VersionInfo]], Coroutine[Any, Any, None]]
"""Receives evicted versions."""


class TransientStore(VersionStore):
    """Where transient versions live, within a bound on their count and one on their bytes.

    To make room, a version goes of the model that has most of what is scarce, items or bytes; its uploads count, and of
    models that have the same, the one whose version was used least recently. Of a model, the least recently used
    version goes first; opening a version is a use. So what many models publish approaches fair shares, and what one
    publishes is evicted as it is used.

    A model within its reserve gives up versions only to models that have no older version of their own, when no model
    beyond its reserve has any. The newest version of a model goes only when nothing else is left that is not being read
    and would help. A version being read keeps its bytes until the last reader is closed, and they count.
    """

    @abstractmethod
    def on_evicted(self, listener: EvictionListener) -> None:
        """Set who receives the evictions.

        The upload that needs the room awaits `listener` with the versions that it evicted: during `Upload.write` for
        its bytes; no later than when it is closed for its commit, so that a version that replaces another is visible
        first. Versions that are removed with their model are not evicted.
        """

    async def fetch(self, info: VersionInfo) -> None:
        """Bring a version into this memory that another server has, and keep it visible as long as it is here.

        Does nothing where no other server has it.

        Raises:
            NotFoundError: It is gone.
            TooLargeError: No space is left.
            UnavailableError: The server that has it does not answer.
        """

    @abstractmethod
    async def open_own(self, model_id: str, number: int) -> tuple[VersionInfo, Reader]:
        """Begin to read the version with a number if this process has its bytes; nobody else is asked for them.

        Returns:
            The version, and its reader.

        Raises:
            NotFoundError: The process does not have them.
        """

    @abstractmethod
    def holding(self, info: VersionInfo) -> AbstractContextManager[bool]:
        """Return the context manager in which a version is not evicted; it yields whether the store has the version.

        A version that is held counts in both bounds, as ever. It can be removed, and then the hold has no effect.
        A commit that finds all others held goes beyond the bound on items, and a later one evicts what is too much; the
        bound on bytes is never exceeded.
        """

    @abstractmethod
    def note_newest(self, model_id: str, number: int) -> None:
        """Record that another store has a version of the model with this number: older ones are not the newest."""

    @abstractmethod
    def note_removed(self, model_id: str, number: int, newest: int) -> None:
        """Record that a version was removed, from whatever store, and which one of the model is the newest then.

        Does nothing when a newer version than both came in the meantime.
        """

    @abstractmethod
    async def set_share(self, model_id: str, share: TransientShare) -> None:
        """Bound what a model may have, and what is reserved for it, until the model is removed.

        Its own bounds evict its least recently used versions, never the newest one: now, and with each commit.
        """

    @abstractmethod
    async def remove_model(self, model_id: str) -> None:
        """Remove all versions of a model and its share; readers under way go on. Does nothing if it has none."""

    def release_memory(self) -> None:
        """Return memory that is kept for the next versions to the system. Does nothing where none is kept."""

    @property
    @abstractmethod
    def usage(self) -> TransientUsage:
        """How full it is. May be read from any thread."""
