"""The rules of the life of versions: promotion, aliases, tags, metrics, search and deletion.

A promotion copies the bytes from one store to the other while the model goes on, and takes the model's turn only to
commit:

    hold the transient version  ->  bytes  ->  finish (durable)  ->  turn of the model: annotations, commit, visible

A version keeps its number, its hash and its time, and is visible at every moment.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from time import time_ns
from typing import TypeAlias, TypeVar

from cogment_model_registry.errors import (
    ConflictError,
    DataLossError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    counted,
    quoted,
)
from cogment_model_registry.records.lifecycle import (
    Alias,
    AliasChange,
    AnnotationChange,
    Objections,
    Version,
    check_alias,
    check_alias_revision,
    check_metrics,
)
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Archive, Catalog, ModelRef, Search, TransientStore
from cogment_model_registry.registry.copying import copy_bytes
from cogment_model_registry.registry.filters import Filter, Order, Position
from cogment_model_registry.registry.holds import Holds
from cogment_model_registry.registry.registry import Registry, VersionReader
from cogment_model_registry.registry.signing_rules import check_signature
from cogment_model_registry.system.tasks import run_to_end

_T = TypeVar("_T")

VersionKey: TypeAlias = int | str
"""A version number from 1, or -n for the n-th from the last; or an alias."""


class Lifecycle:
    """What people do with versions that exist.

    Args:
        registry: The registry, whose limits hold.
        catalog: What exists.
        archive: Where archived versions live.
        transient: Where transient versions live.

    Attributes:
        holds: The versions that calls under way need: retention keeps them.
    """

    def __init__(self, registry: Registry, catalog: Catalog, archive: Archive, transient: TransientStore) -> None:
        self._registry = registry
        self._catalog = catalog
        self._archive = archive
        self._transient = transient
        self.holds = Holds()

    async def get_version(self, model_id: str, key: VersionKey) -> Version:
        """Return a version.

        Raises:
            DataLossError: It is damaged.
            InvalidError: The id or the alias breaks a rule.
            NotFoundError: The model, the version or the alias does not exist.
        """
        [version] = await self.get_versions([(model_id, key)])
        return version

    async def get_versions(self, refs: Sequence[tuple[str, VersionKey]]) -> list[Version]:
        """Return versions of any models in the order given, as they are at one moment; see `get_version`."""
        return await self._catalog.describe_visible([await self._find(model_id, key) for model_id, key in refs])

    async def _find(self, model_id: str, key: VersionKey) -> VersionInfo:
        async def find(number: int) -> VersionInfo:
            [info] = await self._registry.get_versions(model_id, [number])
            return info

        return await self._with_number(model_id, key, find)

    async def _with_number(self, model_id: str, key: VersionKey, act: Callable[[int], Awaitable[_T]]) -> _T:
        """Act on the number of a version; again if its alias was moved, and the version deleted, in the meantime."""
        number = await self._number_of(model_id, key)
        while True:
            try:
                return await act(number)
            except NotFoundError:
                again = await self._number_of(model_id, key)
                if again == number:
                    raise
                number = again

    @asynccontextmanager
    async def reading(
        self, model_id: str, key: VersionKey, offset: int = 0, expected_hash: str = ""
    ) -> AsyncIterator[tuple[Version, VersionReader]]:
        """Return a context manager with a version and the reader of its bytes.

        Args:
            model_id: The model.
            key: The version.
            offset: Where the caller will begin to read.
            expected_hash: The hash that the version must have; empty for any.

        Raises:
            DataLossError: It is damaged.
            InvalidError: The id or the alias breaks a rule.
            NotFoundError: The model, the version or the alias does not exist.
            OutOfRangeError: The offset is past its end.
            PreconditionError: It has another hash than was expected.
        """

        async def open_version(number: int) -> VersionReader:
            return await self._registry.open_version(model_id, number)

        async with await self._with_number(model_id, key, open_version) as reader:
            _check_part(reader.info, offset, expected_hash)
            [version] = await self._catalog.describe([reader.info])
            yield version, reader

    @asynccontextmanager
    async def reading_own(
        self, model_id: str, key: VersionKey, offset: int = 0, expected_hash: str = ""
    ) -> AsyncIterator[tuple[Version, VersionReader]]:
        """Return the same for another server, of a transient version whose bytes this process has.

        Neither the catalog nor a further server is asked, so it takes no time, works while the catalog does not, and
        never goes round in circles. The version comes without tags, metrics and aliases.

        Raises:
            InvalidError: The id breaks a rule, or the key is not the number of a version.
            NotFoundError: The process does not have the bytes.
            OutOfRangeError: The offset is past the end.
            PreconditionError: The version has another hash than was expected.
        """
        if not isinstance(key, int) or key < 1:
            raise InvalidError("a server must ask another one for a version by its number", model_id=model_id)
        async with await self._registry.open_own_version(model_id, key) as reader:
            _check_part(reader.info, offset, expected_hash)
            yield Version.of(reader.info), reader

    async def search(
        self, model_id: str | None, accepted: Filter, order: Order, after: Position | None, limit: int
    ) -> list[Version]:
        """Return up to `limit` versions of a model, or of all for None, that a filter accepts, in order.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: The model does not exist.
        """
        if model_id is not None:
            self._registry.check_model_id(model_id)
        return await self._catalog.search(Search(model_id, accepted, order, after, limit))

    async def update_version(self, model_id: str, key: VersionKey, change: AnnotationChange) -> Version:
        """Change tags and metrics of a version; durable on return if it is archived.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: The change breaks a rule.
            NotFoundError: The model or the version does not exist.
            TooLargeError: No space is left.
        """
        self._require_writable(model_id)
        check_metrics(change.set_metrics, model_id)
        ref = await self._catalog.find(model_id)
        number = (await self.get_version(model_id, key)).info.number
        change = replace(change, max_bytes=self._registry.limits.user_data_max_bytes)
        return await run_to_end(self._catalog.change_annotations(ref, number, change))

    async def promote_version(self, model_id: str, key: VersionKey, aliases: Sequence[str] = ()) -> Version:
        """Make a transient version archived, durably on return; does nothing with an archived one.

        Args:
            model_id: The model.
            key: The version.
            aliases: Aliases to point to it afterwards.

        Raises:
            DataLossError: Its bytes are damaged.
            InvalidError: The id or an alias breaks a rule.
            NotFoundError: The model or the version does not exist, or it was evicted.
            TooLargeError: No space is left.
        """
        self._require_writable(model_id)
        self._check_aliases(model_id, aliases)
        ref = await self._catalog.find(model_id)
        info = (await self.get_version(model_id, key)).info
        changes = [AliasChange(alias, info.number) for alias in aliases]
        await self._registry.check_alias_count(model_id, aliases)
        with self.holds.holding(ref, info.number, "it is being promoted"):
            info = await self._promote(ref, info)
            if changes:
                await self._set_aliases(ref, changes)
        [version] = await self._catalog.describe_visible([info])
        return version

    async def _promote(self, ref: ModelRef, info: VersionInfo) -> VersionInfo:
        if info.archived:
            return info
        promoted = replace(info, archived=True)
        check_signature(await self._catalog.get_signers(ref), info, info.signature)
        with self._transient.holding(info):
            async with (
                await self._transient.open_version(info) as reader,
                await self._registry.open_upload(self._archive, info.model_id, info.data_size_bytes) as upload,
            ):
                await copy_bytes(reader, upload)
                if await upload.finish() != info.data_hash:
                    raise DataLossError.version(info.model_id, info.number, "its bytes do not match their hash")

                async def commit() -> VersionInfo:
                    async with self._catalog.promoting(ref, info.number) as promotion:
                        if promotion.info.archived:
                            return promotion.info
                        check_signature(await self._catalog.get_signers(ref), info, info.signature)
                        await promotion.annotate(promoted)
                        await upload.commit(promoted)
                        promotion.show(promoted)
                    # Before anything else is awaited, so that a call that is cancelled leaves no bytes in memory.
                    await self._transient.remove_version(info)
                    self._transient.note_newest(info.model_id, info.number)
                    return promoted

                return await run_to_end(commit())

    async def objections(self, model_id: str, key: VersionKey) -> Objections:
        """Return what stands against the deletion of a version now.

        Raises:
            InvalidError: The id or the alias breaks a rule.
            NotFoundError: The model or the version does not exist.
        """
        version = await self.get_version(model_id, key)
        return await self._objections(await self._catalog.find(model_id), version)

    async def _objections(self, ref: ModelRef, version: Version) -> Objections:
        elsewhere = (await self._catalog.held_elsewhere(ref)).get(version.number, "")
        # Nothing is awaited from here on, so that what holds it here is what holds it when this returns.
        here = self.holds.objection(ref, version.number)
        return Objections(version.aliases, "; ".join(filter(None, (here, elsewhere))))

    async def delete_version(
        self, model_id: str, key: VersionKey, *, force: bool = False, expected_state: str = ""
    ) -> None:
        """Delete a version of either tier, durably. Its number is never given again; readers under way go on.

        Args:
            model_id: The model.
            key: The version.
            force: Whether to delete it even if aliases point to it, which are removed, or consumers hold it.
            expected_state: The state of the objections that are expected; empty for any.

        Raises:
            ConflictError: There are other objections than expected.
            InvalidError: The id or the alias breaks a rule.
            NotFoundError: The model or the version does not exist.
            PreconditionError: An alias points to it or a consumer holds it, and `force` was not given; or the registry
                is read-only.
        """
        self._require_writable(model_id)
        ref = await self._catalog.find(model_id)
        number = (await self.get_version(model_id, key)).info.number

        async def delete() -> None:
            # The mark of the removal ends after the version is invisible.
            with ExitStack() as removal:
                async with self._catalog.removing_version(ref, number) as info:
                    [version] = await self._catalog.describe([info])
                    if not force or expected_state:
                        _check_objections(
                            version, await self._objections(ref, version), expected_state, is_forced=force
                        )
                    removal.enter_context(self.holds.removing(ref, number))
                    await (self._archive if info.archived else self._transient).remove_version(info)
            with suppress(NotFoundError):  # the model was deleted at once
                outline = await self._catalog.get_outline(ref)
                self._transient.note_removed(model_id, number, outline.newest_number)

        await run_to_end(delete())

    async def get_aliases(self, model_id: str) -> list[Alias]:
        """Return the aliases of a model, ordered by name.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: The model does not exist.
        """
        self._registry.check_model_id(model_id)
        return await self._catalog.get_aliases(model_id)

    async def set_aliases(self, model_id: str, changes: Sequence[AliasChange]) -> list[Alias]:
        """Set, move and remove aliases of a model, all or none; durable on return.

        A transient version that an alias will point to is promoted first. Numbers below 0 count from the last.

        Returns:
            All aliases of the model afterwards, ordered by name.

        Raises:
            ConflictError: An alias has another revision than was expected.
            InvalidError: The id or an alias breaks a rule.
            NotFoundError: The model, a version, or an alias to be removed does not exist.
            TooLargeError: No space is left.
        """
        self._require_writable(model_id)
        self._check_aliases(model_id, [change.name for change in changes])
        ref = await self._catalog.find(model_id)
        numbers = [change.version_number for change in changes if change.version_number is not None]
        targets = iter(await self._catalog.get_versions(model_id, numbers))
        resolved = [(change, None if change.version_number is None else next(targets)) for change in changes]
        # What will be refused must not promote anything.
        now = {alias.name: alias for alias in await self._catalog.get_aliases(model_id)}
        for change, _ in resolved:
            check_alias_revision(model_id, now.get(change.name), change)
        names = [change.name for change in changes if change.version_number is not None]
        await self._registry.check_alias_count(model_id, names)
        with ExitStack() as held:
            for index, (change, info) in enumerate(resolved):
                if info is not None:
                    held.enter_context(self.holds.holding(ref, info.number, "it is getting an alias"))
                    promoted = await self._promote(ref, info)
                    resolved[index] = (replace(change, version_number=promoted.number), promoted)
            return await self._set_aliases(ref, [change for change, _ in resolved])

    async def _set_aliases(self, ref: ModelRef, changes: Sequence[AliasChange]) -> list[Alias]:
        return await run_to_end(self._catalog.set_aliases(ref, changes, time_ns()))

    def _require_writable(self, model_id: str) -> None:
        self._registry.check_model_id(model_id)
        self._registry.require_writable(model_id)

    def _check_aliases(self, model_id: str, aliases: Sequence[str]) -> None:
        self._registry.check_model_id(model_id)
        self._registry.check_count("aliases", len(aliases))
        for alias in aliases:
            check_alias(alias, model_id, self._registry.limits.model_id_max_bytes)

    async def _number_of(self, model_id: str, key: VersionKey) -> int:
        """Return the number of a version, or -n as it is."""
        if isinstance(key, int):
            return key
        self._check_aliases(model_id, [key])
        for alias in await self._catalog.get_aliases(model_id):
            if alias.name == key:
                return alias.version_number
        raise NotFoundError(f"model {quoted(model_id)} has no alias {quoted(key)}", model_id=model_id)


def _check_objections(version: Version, objections: Objections, expected_state: str, *, is_forced: bool) -> None:
    """Refuse to delete a version that is needed, unless by force, or to which something else happened than expected."""
    what = f"version {version.number} of model {quoted(version.model_id)}"
    kind: type[ModelRegistryError] = PreconditionError
    if expected_state not in ("", objections.state):
        kind, message = ConflictError, f"{what} is {objections} now, which was not expected"
    elif is_forced:
        return
    elif objections.aliases:
        message = f"{what} has the alias {', '.join(map(quoted, objections.aliases))}: remove it first, or use force"
    elif objections.held:
        message = f"{what} is {objections.held}: wait until it is released, or use force"
    else:
        return
    raise kind(message, model_id=version.model_id, version_number=version.number)


def _check_part(info: VersionInfo, offset: int, expected_hash: str) -> None:
    what = f"version {info.number} of model {quoted(info.model_id)}"
    if expected_hash not in ("", info.data_hash):
        message = f"{what} has data_hash {info.data_hash}; {quoted(expected_hash)} was expected"
        raise PreconditionError(message, model_id=info.model_id, version_number=info.number)
    if offset > info.data_size_bytes:
        message = f"offset {offset} is past the end of {what}, which has {counted(info.data_size_bytes, 'byte')}"
        raise OutOfRangeError(message, model_id=info.model_id, version_number=info.number)
