"""The three contracts of storage: Archive, TransientStore and Catalog.

The registry is written against these alone, so another backend (an object store, a database) is one more class, and
several servers can share models and versions. `cogment_model_registry.testing` has a conformance suite for each
contract, and backends in memory that pass it.

A version goes through the same steps in either store: an `Upload` takes its bytes, `finish` returns their hash (and
makes them durable, in an archive), and `commit` binds them to a number. Only the catalog makes a version visible: an
upload that ends in any other way leaves nothing.

All methods run on one event loop, may be called concurrently, and never block it. Whatever a database may answer is
awaited. Errors are those of `cogment_model_registry.errors`; a method raises `UnavailableError` when its backend fails,
in addition to the errors that it states.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    ModelSummary,
    Version,
)
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.filters import Filter, Order, Position


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
    async def write(self, data: memoryview) -> None:
        """Take the next bytes.

        The bytes under `data` must not change until the upload is closed, since they may be processed while the caller
        receives the next ones. One call at a time.

        Raises:
            TooLargeError: No space is left for them.
        """

    @abstractmethod
    async def finish(self) -> str:
        """End the bytes, and make them as durable as the store is.

        Returns:
            Their SHA-256 in standard base64 with padding.

        Raises:
            TooLargeError: No space is left for them.
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
                least two chunks are allowed.
            offset: Where to begin; at most the size of the version.
            limit: How many bytes to yield, unless the version ends before; None for all that follow.

        Raises:
            DataLossError: The bytes are not those of the version's hash. Raised before the last chunk is yielded.
        """


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
        version_numbers: The numbers of its versions, ascending, as far as names tell: one of them may still turn out
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
        held_bytes: Those of them that cannot be evicted now: being read, or promised to uploads.
        max_items: The bound on items.
        max_bytes: The bound on bytes.
        evictions: How many versions were evicted so far, by the bound that was reached: ``items`` or ``bytes``.
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

    To make room, versions are evicted least recently used first; opening a version is a use. The newest version of a
    model goes only when nothing else is left that is not being read and would help. A version being read keeps its
    bytes until the last reader is closed, and they count.
    """

    @abstractmethod
    def on_evicted(self, listener: EvictionListener) -> None:
        """Set who receives the evictions.

        The upload that needs the room awaits `listener` with the versions that it evicted: during `Upload.write` for
        its bytes; no later than when it is closed for its commit, so that a version that replaces another is visible
        first. Versions that are removed with their model are not evicted.
        """

    @abstractmethod
    def holding(self, info: VersionInfo) -> AbstractContextManager[None]:
        """Return the context manager in which a version is not evicted, if it is there when it is entered."""

    @abstractmethod
    def note_newest(self, model_id: str, number: int) -> None:
        """Record that another store has a version of the model with this number: older ones are not the newest."""

    @abstractmethod
    async def remove_model(self, model_id: str) -> None:
        """Remove all versions of a model; readers under way go on. Does nothing if it has none."""

    def release_memory(self) -> None:
        """Return memory that is kept for the next versions to the system. Does nothing where none is kept."""

    @property
    @abstractmethod
    def usage(self) -> TransientUsage:
        """How full it is. May be read from any thread."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One life of a model: a model that is deleted and created again is another one.

    Attributes:
        model_id: The model's id.
        life: Differs between two models that had the same id.
    """

    model_id: str
    life: int


@dataclass(frozen=True, slots=True)
class CatalogCounts:
    """How much a catalog has.

    Attributes:
        models: Models.
        versions: Versions of both tiers.
        archived_bytes: Bytes of archived versions.
    """

    models: int
    versions: int
    archived_bytes: int


class Slot(ABC):
    """The place of a version that is being published. Made by `Catalog.publishing`.

    Attributes:
        number: The number of the version: larger than all that the model has had, even after a crash.
    """

    number: int

    @abstractmethod
    async def annotate(self, info: VersionInfo, annotations: Annotations) -> None:
        """Keep annotations for the version, before its store commits it; durable on return if it is archived.

        Raises:
            TooLargeError: No space is left.
        """

    @abstractmethod
    def show(self, info: VersionInfo) -> None:
        """Make `info` visible when the context is left. Its number is that of the slot."""


class Promotion(ABC):
    """A transient version that is being archived. Made by `Catalog.promoting`.

    Attributes:
        info: The version as it is now; archived already if nothing is to be done.
    """

    info: VersionInfo

    @abstractmethod
    async def annotate(self, info: VersionInfo) -> None:
        """Keep the annotations that the version has for `info`, its archived record, before the archive commits it."""

    @abstractmethod
    def show(self, info: VersionInfo) -> None:
        """Put `info` in the place of the transient version when the context is left. Its number stays."""


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for.

    Attributes:
        model_id: The model; None for all of them.
        accepted: Which versions.
        order: In which order.
        after: Where the last page ended; None for the first one.
        limit: The most versions to return.
    """

    model_id: str | None
    accepted: Filter
    order: Order
    after: Position | None
    limit: int


class Catalog(ABC):
    """What exists: models, versions, their numbers and order, and who watches them.

    Visibility is atomic: a call sees a version or does not, and all calls that begin after its `publishing` was left
    see it. The versions of a model become visible in the order of their numbers.

    A change of a model is a context manager: while one is entered, nobody else changes the model, on this server or
    another one. Left without an error, the change is visible, in one step; left with an error, nothing has changed.
    """

    @abstractmethod
    async def open(self) -> None:
        """Load what exists."""

    @abstractmethod
    async def close(self) -> None:
        """Persist which numbers were given. Watchers that are left end with `UnavailableError`."""

    @abstractmethod
    def stop_watching(self) -> None:
        """End all watchers, and later ones, with `UnavailableError`."""

    @abstractmethod
    async def find(self, model_id: str) -> ModelRef:
        """Return the life of the model that exists now.

        Raises:
            NotFoundError: It does not exist.
        """

    @abstractmethod
    async def get_model(self, model_id: str) -> ModelInfo:
        """Return a model.

        Raises:
            NotFoundError: It does not exist.
        """

    @abstractmethod
    async def list_models(self, offset: int, limit: int) -> list[ModelInfo]:
        """Return up to `limit` models, ordered by id, without the first `offset` ones."""

    @abstractmethod
    async def list_models_after(self, model_id: str, limit: int) -> list[ModelInfo]:
        """Return up to `limit` models, ordered by id, whose ids come after `model_id`."""

    @abstractmethod
    async def summarize(self, models: Sequence[ModelInfo]) -> list[ModelSummary]:
        """Return models with what they have now, in the order given; those that do not exist any more are left out."""

    @abstractmethod
    def writing_model(self, info: ModelInfo) -> AbstractAsyncContextManager[None]:
        """Return the change that creates the model, or replaces its `user_data`."""

    @abstractmethod
    def removing_model(self, model_id: str) -> AbstractAsyncContextManager[None]:
        """Return the change that removes the model with its versions; its watchers end with `NotFoundError`.

        Raises:
            NotFoundError: It does not exist. Raised on entering.
        """

    @abstractmethod
    def publishing(self, ref: ModelRef) -> AbstractAsyncContextManager[Slot]:
        """Return the change that makes a version visible under the next number, and wakes the watchers of its model.

        A number is used up even when the context is left with an error, or without `Slot.show`.

        Raises:
            NotFoundError: That life of the model is over. Raised on entering.
            TooLargeError: The numbers are used up, or no space is left to persist them. Raised on entering.
        """

    @abstractmethod
    def promoting(self, ref: ModelRef, number: int) -> AbstractAsyncContextManager[Promotion]:
        """Return the change that makes a transient version archived. Watchers are not notified.

        Raises:
            NotFoundError: That life of the model is over, or it has no such version. Raised on entering.
        """

    @abstractmethod
    def removing_version(self, ref: ModelRef, number: int) -> AbstractAsyncContextManager[VersionInfo]:
        """Return the change that removes a version, with its annotations and the aliases that point to it.

        Its number is durably used up when the context is entered, and never given again.

        Raises:
            NotFoundError: That life of the model is over, or it has no such version. Raised on entering.
        """

    @abstractmethod
    async def describe(self, infos: Sequence[VersionInfo]) -> list[Version]:
        """Return versions with what people may change about them, in the order given."""

    @abstractmethod
    async def change_annotations(self, ref: ModelRef, number: int, change: AnnotationChange) -> Version:
        """Change tags and metrics of a version; durable on return if it is archived.

        Raises:
            ConflictError: It has another revision than was expected.
            NotFoundError: That life of the model is over, or it has no such version.
            TooLargeError: No space is left.
        """

    @abstractmethod
    async def get_aliases(self, model_id: str) -> list[Alias]:
        """Return the aliases of a model, ordered by name.

        Raises:
            NotFoundError: The model does not exist.
        """

    @abstractmethod
    async def set_aliases(self, ref: ModelRef, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
        """Make changes of the aliases of a model, all or none; durable on return.

        Revisions of aliases never repeat while the model exists.

        Args:
            ref: The model.
            changes: The changes, to archived versions.
            now_ns: The time of the change, in nanoseconds since the Unix epoch.

        Returns:
            All aliases of the model afterwards, ordered by name.

        Raises:
            ConflictError: An alias has another revision than was expected.
            NotFoundError: That life of the model is over, a version does not exist or is not archived, or an alias to
                be removed does not exist.
            TooLargeError: No space is left.
        """

    @abstractmethod
    async def search(self, search: Search) -> list[Version]:
        """Return visible versions that a filter accepts, in order; fewer than the limit only at the end.

        Versions that come or go between two pages appear or not; all others appear exactly once.
        """

    @abstractmethod
    async def forget(self, info: VersionInfo) -> None:
        """Make a version invisible that was evicted. Does nothing when exactly this version is not visible."""

    @abstractmethod
    async def mark_damaged(self, ref: ModelRef, error: DataLossError) -> None:
        """Take a version of that life of its model out of the listing; `get_versions` raises `error` from then on."""

    @abstractmethod
    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        """Return versions by their numbers, or by -n for the n-th from the last, in the order given.

        Raises:
            DataLossError: One is damaged.
            NotFoundError: The model or one of the versions does not exist.
        """

    @abstractmethod
    async def list_versions(self, model_id: str, first_number: int, limit: int) -> list[VersionInfo]:
        """Return up to `limit` versions, ordered by number, from `first_number` on.

        Raises:
            NotFoundError: The model does not exist.
        """

    @abstractmethod
    def watch(self, model_id: str) -> AsyncGenerator[VersionInfo, None]:
        """Yield the latest version of the model if it has any, then newer ones as they become visible.

        Numbers strictly increase. A slow watcher gets the latest and not those between; the latest always arrives.
        To be closed with `contextlib.aclosing`.

        Raises:
            NotFoundError: The model does not exist, or was removed.
            UnavailableError: The catalog stops.
        """

    @abstractmethod
    async def count(self) -> CatalogCounts:
        """Return how much is visible."""
