"""What a database knows of the versions in a folder: an index for searches, and what people change about them.

The files are what counts. A start compares the index with them: versions that are new in the folder are read and added
in the background, and searches wait for that; those that are gone leave the index, with their aliases. So the database
may be lost, and then nothing is lost but aliases, tags and metrics.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from sqlite3 import Connection

import structlog

from cogment_model_registry.errors import ModelRegistryError, TooLargeError
from cogment_model_registry.records.lifecycle import Alias, AliasChange, AnnotationChange, Annotations, Version
from cogment_model_registry.records.retention import NO_SHARE, ModelAnnotations, ModelChange
from cogment_model_registry.records.uploads import UploadRequest
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Search
from cogment_model_registry.registry.journals import record_aliases
from cogment_model_registry.storage.catalog import model_tables, requests, tables
from cogment_model_registry.storage.catalog.database import Database, Operation
from cogment_model_registry.storage.catalog.following import Following
from cogment_model_registry.storage.catalog.searches import find_versions
from cogment_model_registry.storage.folder import FolderArchive, FolderContents, KnownFolder

_log = structlog.stdlib.get_logger(__name__)

_UNDECIDED = ModelAnnotations()


class VersionIndex:
    """The index of a folder.

    Args:
        database: Where it is kept.
        archive: The folder.
        on_aliases_changed: Called with a model whose aliases were changed.
    """

    def __init__(
        self, database: Database, archive: FolderArchive, on_aliases_changed: Callable[[str], object] = lambda _: None
    ) -> None:
        self._database = database
        self._archive = archive
        self._aliases: dict[str, dict[str, Alias]] = {}
        self._models: dict[str, ModelAnnotations] = {}  # those of which people decided anything
        self._stale: set[str] = set()  # models whose removal failed
        self._stale_versions: dict[str, set[int]] = {}
        self._on_aliases_changed = on_aliases_changed
        self._following = Following(database, archive, self._take_aliases)

    @property
    def failure(self) -> str:
        """Why the database takes no more changes; empty while it does."""
        return self._database.failure

    async def open(self) -> dict[str, KnownFolder]:
        """Open the database; return what is known of the folders.

        Raises:
            StartError: The database is not usable.
        """
        await self._database.open()
        return await self._following.known()

    async def compare_all(self, contents: Sequence[FolderContents], known: Mapping[str, KnownFolder]) -> None:
        """Compare what the index has with what the folder has; see `following`."""
        for model_id in known.keys() - {each.info.model_id for each in contents}:
            await self.remove_model(model_id)
        self._aliases = await self._database.read(tables.all_aliases)
        for each in contents:
            model_id = each.info.model_id
            await self._compare(each, known.get(model_id, KnownFolder()))
        self._aliases = await self._database.read(tables.all_aliases)
        self._models = await self._database.read(model_tables.all_model_annotations)

    async def known_of(self, model_id: str) -> KnownFolder:
        """Return what is known of the folder of a model."""
        return await self._following.known_of(model_id)

    async def compare(self, contents: FolderContents, known: KnownFolder) -> None:
        """Compare what the index has of a model with what its folder has now."""
        model_id = contents.info.model_id
        await self._load_aliases(model_id)
        await self._compare(contents, known)
        await self._load_aliases(model_id)
        self._models[model_id] = await self._database.read(
            lambda connection: model_tables.annotations_of_model(connection, model_id)
        )

    async def _compare(self, contents: FolderContents, known: KnownFolder) -> None:
        aliases = self._aliases.get(contents.info.model_id, {}).values()
        await self._following.compare(contents, known.size_bytes.keys(), {alias.version_number for alias in aliases})

    async def close(self) -> None:
        """Commit what waits, and close the database. Closing twice does nothing."""
        await self._following.close()
        await self._database.close()

    # Versions.

    def add(self, info: VersionInfo) -> None:
        """Add an archived version that has become visible; a start makes up for it if the process ends before."""

        def add(connection: Connection) -> None:
            tables.put_versions(connection, [info])

        with contextlib.suppress(ModelRegistryError):  # a failed index fails searches and no publish
            self._database.change_later(add)

    async def annotate(
        self,
        info: VersionInfo,
        annotations: Annotations,
        request: UploadRequest | None = None,
        forgotten: Sequence[str] = (),
    ) -> None:
        """Keep annotations of an archived version, durably, whether it is visible or not.

        Args:
            info: The version.
            annotations: Its annotations.
            request: The upload that makes it, if it can be repeated.
            forgotten: The ids of earlier uploads that are too old.
        """

        def annotate(connection: Connection) -> None:
            tables.put_versions(connection, [info])
            tables.put_annotations(connection, info.model_id, info.number, annotations)
            if request is not None:
                requests.put(connection, info, request, forgotten)

        await self._database.change(annotate)

    async def remove_version(self, info: VersionInfo) -> None:
        """Remove a version with its aliases and annotations, after its files.

        Never fails: a full disk must not keep people from deleting. The next change of aliases removes what stays now,
        or the next start.
        """
        aliases = self._aliases.get(info.model_id, {})
        kept = {name: alias for name, alias in aliases.items() if alias.version_number != info.number}
        self._aliases[info.model_id] = kept
        record_aliases(info.model_id, aliases, kept)

        if not await self._remove(lambda connection: _remove_versions(connection, info.model_id, [info.number])):
            self._stale_versions.setdefault(info.model_id, set()).add(info.number)

    async def remove_model(self, model_id: str) -> None:
        """Remove a model with everything that belongs to it, after its files; never fails, see `remove_version`."""
        self._following.forget(model_id)
        self._aliases.pop(model_id, None)
        self._models.pop(model_id, None)
        self._stale_versions.pop(model_id, None)
        if not await self._remove(lambda connection: _remove_model(connection, model_id)):
            self._stale.add(model_id)

    async def begin_lives(self, model_ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of the lives of models, of which some may be new."""
        lives = await self._database.read(tables.lives)
        new = [model_id for model_id in model_ids if model_id not in lives]
        return {**lives, **(await self._begin(new) if new else {})}

    async def begin_life(self, model_id: str) -> int:
        """Remove what is left of a deleted model, before another one could inherit it; return the number of its life.

        Raises:
            TooLargeError: No space is left.
        """
        if model_id in self._stale:
            await self._database.change(lambda connection: _remove_model(connection, model_id))
            self._stale.discard(model_id)
        return (await self._begin([model_id]))[model_id]

    async def _begin(self, model_ids: Sequence[str]) -> dict[str, int]:
        try:
            return await self._database.change(lambda connection: tables.begin_lives(connection, model_ids))
        except ModelRegistryError as error:
            # No reason to refuse a model: its watchers will take it for another one after a restart.
            _log.warning("life of a model not recorded", models=len(model_ids), reason=error.message)
            return {model_id: tables.new_life() for model_id in model_ids}

    async def _remove(self, operation: Operation[None]) -> bool:
        try:
            await self._database.change(operation)
        except ModelRegistryError as error:
            _log.warning("removal from the catalog postponed", reason=error.message)
            return False
        return True

    async def annotations_of(self, infos: Sequence[VersionInfo]) -> list[Annotations]:
        """Return the annotations of archived versions, in the order given."""
        return await self._database.read(lambda connection: [tables.annotations_of(connection, info) for info in infos])

    async def change_annotations(self, info: VersionInfo, change: AnnotationChange) -> tuple[Annotations, Annotations]:
        """Change the annotations of an archived version, and return them as they were and as they are.

        See `Catalog.change_annotations`.
        """

        def change_annotations(connection: Connection) -> tuple[Annotations, Annotations]:
            tables.put_versions(connection, [info])
            return tables.annotations_of(connection, info), tables.change_annotations(connection, info, change)

        return await self._database.change(change_annotations)

    async def next_revision(self, model_id: str) -> int:
        """Return a revision that no change of the model had before."""
        return await self._database.change(lambda connection: tables.next_revision(connection, model_id))

    async def find(self, search: Search) -> list[Version]:
        """Return archived versions that a search accepts, visible or not."""
        await self._following.wait()
        return await self._database.search(lambda connection: find_versions(connection, search))

    # Models.

    def annotations_of_model(self, model_id: str) -> ModelAnnotations:
        """Return what people decided about a model."""
        return self._models.get(model_id) or _UNDECIDED

    def models_with_shares(self) -> list[str]:
        """Return the models that have a share."""
        return [model_id for model_id, decided in self._models.items() if decided.share != NO_SHARE]

    async def change_model(self, model_id: str, change: ModelChange) -> tuple[ModelAnnotations, ModelAnnotations]:
        """Change what people decided about a model, and return that as it was and as it is.

        See `Catalog.changing_model`.
        """
        before = self.annotations_of_model(model_id)
        after = self._models[model_id] = await self._database.change(
            lambda connection: model_tables.change_model(connection, model_id, change)
        )
        return before, after

    async def find_copies(self, model_id: str, data_hash: str) -> list[int]:
        """Return the numbers of the newest archived versions of a model with a hash, visible or not, newest first."""
        return await self._database.read(lambda connection: tables.find_copies(connection, model_id, data_hash))

    # Uploads.

    async def finished_uploads(self) -> list[tuple[str, requests.Entry]]:
        """Return the uploads of archived versions that exist with their ids, oldest first; called once, at the start.

        Aliases that a crash kept from being set are set, and what it left of other uploads is removed. Where no space
        is left for that, a start needs none: the next one does it, or the repeated upload.
        """
        found = await self._database.read(requests.finished)
        try:
            await self._database.change(requests.drop_unfinished)
            for request_id, entry in found:
                if entry.pending:
                    await self.finish_upload(request_id, entry, time.time_ns())
        except TooLargeError as error:
            _log.warning("uploads that a crash interrupted not completed", reason=error.message)
        return found

    async def finish_upload(self, request_id: str, entry: requests.Entry, now_ns: int) -> None:
        """Set the aliases of an upload whose version is committed, durably.

        Raises:
            TooLargeError: No space is left; it can be tried again.
        """
        changes = [AliasChange(name, entry.number) for name in entry.pending]

        def finish(connection: Connection) -> list[Alias]:
            requests.clear_pending(connection, request_id)
            return tables.set_aliases(connection, entry.model_id, changes, now_ns)

        aliases = await self._database.change(finish)
        entry.pending = ()
        self._take_aliases(entry.model_id, aliases)

    # Aliases.

    def aliases_of(self, model_id: str) -> Mapping[str, Alias]:
        """Return the aliases of a model by name, in the order of their names."""
        return self._aliases.get(model_id, {})

    def names_of(self, info: VersionInfo) -> tuple[str, ...]:
        """Return the aliases that point to a version, in order."""
        aliases = self._aliases.get(info.model_id, {})
        return tuple(name for name, alias in aliases.items() if alias.version_number == info.number)

    async def set_aliases(
        self, model_id: str, changes: Sequence[AliasChange], targets: Sequence[VersionInfo], now_ns: int
    ) -> list[Alias]:
        """Change aliases of a model; see `Catalog.set_aliases`.

        Args:
            model_id: The model.
            changes: The changes.
            targets: The archived versions that aliases will point to.
            now_ns: The time, in nanoseconds since the Unix epoch.
        """
        stale = {*self._stale_versions.get(model_id, ())}

        def set_aliases(connection: Connection) -> list[Alias]:
            _remove_versions(connection, model_id, stale)
            tables.put_versions(connection, targets)
            return tables.set_aliases(connection, model_id, changes, now_ns)

        aliases = await self._database.change(set_aliases)
        self._stale_versions.get(model_id, set()).difference_update(stale)
        self._take_aliases(model_id, aliases)
        return aliases

    async def _load_aliases(self, model_id: str) -> None:
        self._take_aliases(
            model_id, await self._database.read(lambda connection: tables.aliases_of(connection, model_id))
        )

    def _take_aliases(self, model_id: str, aliases: Sequence[Alias]) -> None:
        before, after = self._aliases.get(model_id, {}), {alias.name: alias for alias in aliases}
        self._aliases[model_id] = after
        if after != before:
            record_aliases(model_id, before, after)
            self._on_aliases_changed(model_id)


def _remove_versions(connection: Connection, model_id: str, numbers: Collection[int]) -> None:
    tables.remove_versions(connection, model_id, numbers)
    for number in numbers:
        requests.mark_gone(connection, model_id, number)


def _remove_model(connection: Connection, model_id: str) -> None:
    tables.remove_model(connection, model_id)
    requests.mark_gone(connection, model_id)
