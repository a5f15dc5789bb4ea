"""The contract of what exists: Catalog, with its changes."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, replace

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    Annotations,
    ModelSummary,
    Version,
)
from cogment_model_registry.records.retention import ModelChange
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.uploads import FinishedUpload, UploadRequest
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts.news import News, Watcher
from cogment_model_registry.registry.filters import Filter, Order, Position


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


@dataclass(frozen=True, slots=True)
class ModelState:
    """What a decision about the versions of a model depends on, to find out whether it still holds.

    Attributes:
        numbers: The numbers of its visible versions, ascending.
        changes: Grows with each change of tags, metrics, aliases and tiers of its versions, and of what people decide
            about the model; not with new versions, and not when versions disappear, which `numbers` shows.
    """

    numbers: Sequence[int]
    changes: int


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """The same without the numbers, of which a model may have very many.

    Attributes:
        changes: As above.
        versions: How many versions are visible, up to the number that was asked for.
        newest_number: The highest number of these; 0 for none.
    """

    changes: int
    versions: int
    newest_number: int


@dataclass(frozen=True, slots=True)
class Newer:
    """What of a model is newer than a version.

    Attributes:
        versions: How many visible versions have a higher number.
        since_ns: When the first version with a higher number became visible, in nanoseconds since the Unix epoch, even
            if it is gone by now; None if none ever did. It is the catalog's own time, whatever creation time a client
            gave. Of versions from before the catalog was opened, and of those that became visible very long ago, it is
            their creation time.
    """

    versions: int
    since_ns: int | None


class Slot(ABC):
    """The place of a version that is being published. Made by `Catalog.publishing`.

    Attributes:
        number: The number of the version: larger than all that the model has had, even after a crash.
    """

    number: int

    @abstractmethod
    async def annotate(self, info: VersionInfo, annotations: Annotations, request: UploadRequest | None = None) -> None:
        """Keep annotations for the version, before its store commits it; if it is archived, they are as durable as it.

        With a request, `Catalog.find_upload` finds the version once it is committed, even after a crash if it is
        archived; and the request's aliases point to it when the context is left, or after the crash.

        Raises:
            TooLargeError: No space is left.
        """

    @abstractmethod
    def show(self, info: VersionInfo) -> None:
        """Make `info` visible when the context is left. Its number is that of the slot."""

    def forget(self, evicted: Sequence[VersionInfo]) -> Sequence[VersionInfo]:
        """Make versions invisible that were evicted for this one, in the same change.

        Returns:
            Those for which `Catalog.forget` is to be called instead, when the context was left.
        """
        return evicted


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

    What changes is recorded with `journals`, where the current task has a journal: with what was before, with no other
    change in between, and in the order of the changes of a model. Evictions and damage are no changes.
    """

    @property
    def failure(self) -> str:
        """Why changes of aliases, tags, metrics and rules are refused, and searches fail; empty while they work."""
        return ""

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
    async def list_models_with_shares(self) -> list[str]:
        """Return the ids of the models that have a share of the memory of the transient store."""

    @abstractmethod
    async def summarize(self, models: Sequence[ModelInfo]) -> list[ModelSummary]:
        """Return models with what they have now, in the order given; those that do not exist any more are left out."""

    @abstractmethod
    def changing_model(self, ref: ModelRef, change: ModelChange) -> AbstractAsyncContextManager[ModelSummary]:
        """Return the change of what people decide about a model. A model that is deleted loses it.

        It is made, visible and durable when the context is entered, which yields the model as it is then; what else
        follows from it is done before the context is left. Revisions never repeat while the model exists.

        Raises:
            ConflictError: It has another revision than was expected. Raised on entering, as the others.
            NotFoundError: That life of the model is over.
            TooLargeError: No space is left.
        """

    @abstractmethod
    async def get_signers(self, ref: ModelRef) -> Sequence[PublicKey]:
        """Return the keys of which one must have signed each new version of a model; none if that is not required.

        Within a change of the model, such as `publishing`, they are those that hold until it is left.

        Raises:
            NotFoundError: That life of the model is over.
        """

    async def find_with_signers(self, model_id: str) -> tuple[ModelRef, Sequence[PublicKey]]:
        """Return a model and its signers, as `find` and `get_signers` do, for a version that is to be published.

        Raises:
            NotFoundError: There is no such model.
        """
        ref = await self.find(model_id)
        return ref, await self.get_signers(ref)

    @abstractmethod
    async def get_state(self, ref: ModelRef) -> ModelState:
        """Return what decisions about the versions of a model depend on.

        A change that was made while nobody was looking shows; one that is under way may show before it has been made.

        Raises:
            NotFoundError: That life of the model is over.
        """

    @abstractmethod
    async def get_outline(self, ref: ModelRef, last_number: int = VERSION_NUMBER_MAX) -> ModelOutline:
        """Return the outline of `get_state`, for versions up to a number: in a time that does not grow with them.

        Raises:
            NotFoundError: That life of the model is over.
        """

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
    def publishing(self, ref: ModelRef, *, archived: bool = False) -> AbstractAsyncContextManager[Slot]:
        """Return the change that makes a version visible under the next number, and wakes the watchers of its model.

        A number is used up even when the context is left with an error, or without `Slot.show`.

        Args:
            ref: The model.
            archived: Whether the version will be archived. Then the number is durably used up when the context is
                entered, and a catalog that several servers share remembers that the archive may get the version: if
                the context is not left, or with an error, what the archive has of it is to be removed.

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

    async def describe_visible(self, infos: list[VersionInfo]) -> list[Version]:
        """Return versions with what people may change about them, as all of them are at one moment.

        Raises:
            DataLossError: One has turned out to be damaged.
            NotFoundError: One is gone.
        """
        while True:
            versions = await self.describe(infos)
            # One that was removed or promoted in the meantime had lost its tags before they were read.
            now = [(await self.get_versions(info.model_id, [info.number]))[0] for info in infos]
            if now == infos:
                return versions
            for before, after in zip(infos, now, strict=True):
                if replace(after, archived=before.archived) != before:  # that of a model that was created again
                    raise NotFoundError.version(before.model_id, before.number)
            infos = now

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
    async def find_upload(self, request_id: str) -> FinishedUpload | None:
        """Return the upload with an id whose version was committed; None if none is known.

        Uploads are known for a day, but only some 50,000 of each tier; those of transient versions until a restart.

        Raises:
            TooLargeError: Its aliases could not be set before, and there is still no space left.
        """

    @abstractmethod
    async def find_copies(self, model_id: str, data_hash: str, size_bytes: int) -> list[VersionInfo]:
        """Return visible versions of a model that have a hash and a size: of each tier one at least, if it has any.

        Raises:
            NotFoundError: The model does not exist.
        """

    async def set_holds(self, ref: ModelRef, held: Mapping[int, str]) -> None:  # noqa: B027 # optional
        """Set which versions of a model consumers of this server hold, and why, for others that share the catalog.

        Does nothing where no other server does.

        Raises:
            NotFoundError: That life of the model is over, or a version was deleted; then nothing has changed.
        """

    async def held_elsewhere(self, ref: ModelRef) -> Mapping[int, str]:
        """Return which versions of a model consumers of other servers hold, and why, by number.

        Within `removing_version`, it stays so until that is left.
        """
        return {}

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

    async def find_version(self, model_id: str, number: int) -> tuple[ModelRef, VersionInfo]:
        """Return a version, as `get_versions` does, and a life of its model that had not ended before the call.

        Raises:
            DataLossError: It is damaged.
            NotFoundError: The model or the version does not exist.
        """
        ref = await self.find(model_id)
        [info] = await self.get_versions(model_id, [number])
        return ref, info

    @abstractmethod
    async def newer_than(self, model_id: str, number: int) -> Newer:
        """Return what is newer than a version, which need not exist. Takes no longer for models with many versions.

        Raises:
            NotFoundError: The model does not exist.
        """

    @abstractmethod
    async def settled(self, model_id: str) -> None:
        """Wait until the changes of a model that are under way are over."""

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
    def watching(self, model_ids: Collection[str] | None) -> AbstractContextManager[Watcher]:
        """Return the context manager in which models are watched, whether they exist or not; all of them for None."""

    @abstractmethod
    async def get_news(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        """Return what a model has that is newer than a position.

        Only some thousand versions that disappeared are known one by one; of those before, what is known is a range.

        Args:
            model_id: The model, which need not exist.
            number: The versions in `News.shown` have higher numbers.
            sequence: The versions in `News.lost` disappeared later; so did the life in `News.removed`.
            limit: How many versions `News.shown` has at most: the lowest numbers; 0 for the newest version alone.
        """

    @abstractmethod
    async def number_at(self, model_id: str, sequence: int) -> int | None:
        """Return the highest number that versions of the model had when a change was made.

        That is 0 if it did not exist, and None if it is not known any more. Of versions that were visible when the
        catalog was opened, none had been when that was not over.
        """

    @abstractmethod
    async def removed_since(self, sequence: int) -> Sequence[str] | None:
        """Return the models that existed at a change and were removed later; None if that is not known any more."""

    @abstractmethod
    async def count(self) -> CatalogCounts:
        """Return how much is visible."""
