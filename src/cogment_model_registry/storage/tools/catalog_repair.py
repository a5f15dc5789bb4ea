"""Repair of the database of an archive directory, which loses nothing that can be read.

A database that can be read is brought in line with the files in one transaction. One that cannot is built again from
the files and from what can be read of aliases, tags and metrics; the old one is moved aside under another name, and
never removed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from sqlite3 import Connection, Error

from cogment_model_registry.errors import ModelRegistryError, counted, quoted
from cogment_model_registry.records.access import Grant
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog import grants, requests, tables
from cogment_model_registry.storage.catalog.connections import open_for_writing
from cogment_model_registry.storage.catalog.note_tables import put_notes, read_notes
from cogment_model_registry.storage.catalog.notes import ModelNotes, VersionNotes
from cogment_model_registry.storage.catalog.snapshot import UnusableCatalogError, opened_snapshot
from cogment_model_registry.storage.filesystem import layout, model_files
from cogment_model_registry.storage.filesystem.findings import Finding, Kind
from cogment_model_registry.storage.filesystem.model_files import Fault
from cogment_model_registry.storage.filesystem.repair import Outcome
from cogment_model_registry.storage.tools.place import ArchivePlace

_OUT_OF_LINE = {
    Kind.CATALOG_VERSION_DIFFERS,
    Kind.ALIAS_WITHOUT_VERSION,
    Kind.CATALOG_VERSION_GONE,
    Kind.CATALOG_LACKS_VERSIONS,
}
_UNUSABLE = {
    Kind.CATALOG_DAMAGED,
    Kind.CATALOG_NOT_A_FILE,
    Kind.CATALOG_OF_ANOTHER_PROGRAM,
    Kind.CATALOG_LOG_ALONE,
}
_FILES = ("", "-journal", "-wal")


def repair(place: ArchivePlace, findings: Sequence[Finding]) -> Iterator[Outcome]:
    """Repair the database of an archive, and yield the result for each finding that was tried.

    Args:
        place: The archive, which this process owns since before the verification.
        findings: The findings of the verification, of which some are about the database.

    Raises:
        OSError: A directory cannot be read any more.
    """
    repair = _CatalogRepair(place)
    out_of_line = [finding for finding in findings if finding.kind in _OUT_OF_LINE]
    if out_of_line:
        problem = _problem(partial(repair.bring_in_line, out_of_line))
        for finding in out_of_line:
            yield Outcome(finding, is_repaired=not problem, message=problem or _DONE[finding.kind])
    for finding in findings:
        if finding.kind in _UNUSABLE:
            problem = _problem(repair.rebuild)
            yield Outcome(finding, is_repaired=not problem, message=problem or repair.summary)


_DONE = {
    Kind.CATALOG_VERSION_DIFFERS: "replaced by the version in the files",
    Kind.ALIAS_WITHOUT_VERSION: "removed, with the version",
    Kind.CATALOG_VERSION_GONE: "removed",
    Kind.CATALOG_LACKS_VERSIONS: "added",
}


def _problem(action: Callable[[], object]) -> str:
    """Run an action, and return why it failed; empty if it did not."""
    try:
        action()
    except OSError as error:
        return f"it failed: {error.strerror}"
    except Error as error:
        return f"it failed: {error}"
    except ModelRegistryError as error:
        return error.message
    return ""


class _CatalogRepair:
    """One repair.

    Attributes:
        summary: What became of the database, once it was built again.
    """

    def __init__(self, place: ArchivePlace) -> None:
        self._database = place.database
        self._files = place.files
        self._root = place.root
        self._lost: list[str] = []
        self._uploads: list[tuple[str, requests.Entry]] = []
        self._grants: list[Grant] = []
        self.summary = ""

    def bring_in_line(self, findings: Sequence[Finding]) -> None:
        """Let the database have the versions of the files, in one transaction."""
        gone = [each for each in findings if each.kind in (Kind.ALIAS_WITHOUT_VERSION, Kind.CATALOG_VERSION_GONE)]
        with contextlib.closing(self._open(self._database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for finding in gone:
                tables.remove_versions(connection, finding.model_id, [finding.number])
                requests.mark_gone(connection, finding.model_id, finding.number)
            for model_id in sorted({finding.model_id for finding in findings}):
                for number in tables.put_versions(connection, self._versions(model_id)):
                    requests.mark_gone(connection, model_id, number)
            connection.execute("COMMIT")

    def rebuild(self) -> None:
        """Build a database from the files, and from what can be read of the old one."""
        notes = self._saved_notes()
        temporary = layout.temporary_name()  # a directory, so that the next start removes what a crash leaves
        self._files.make_directory(self._root, temporary)
        try:
            with contextlib.closing(
                self._open(os.path.join(os.path.dirname(self._database), temporary, layout.CATALOG_NAME))
            ) as new:
                new.execute("BEGIN IMMEDIATE")
                kept = self._fill(new, notes)
                new.execute("COMMIT")
            aside = self._move_aside()
            os.rename(os.path.join(os.path.dirname(self._database), temporary, layout.CATALOG_NAME), self._database)
            self._files.give(self._root, layout.CATALOG_NAME)
            self._files.sync_directory(self._root)
        finally:
            self._files.remove_tree(self._root, temporary, lambda _error: None)
        lost = f"; lost: {'; '.join(self._lost)}" if self._lost else ""
        self.summary = f"built again from the files; kept {kept}{lost}; the old file is {quoted(aside)}"

    def _open(self, path: str) -> Connection:
        return open_for_writing(path, tables.MIGRATIONS)

    def _saved_notes(self) -> dict[str, ModelNotes]:
        """Return what can be read of the old database."""
        damaged: set[str] = set()
        try:
            with opened_snapshot(self._database, lambda: False, is_salvage=True) as old:
                notes = read_notes(old, on_loss=damaged.add) if old is not None else {}
                try:
                    self._uploads = requests.uploads(old) if old is not None else []
                except Error:
                    damaged.add("requests")
                try:
                    self._grants = grants.read(old) if old is not None else []
                except Error:
                    damaged.add("grants")
        except UnusableCatalogError as error:
            self._lost.append(f"all aliases, tags, metrics, tokens and ids of uploads, because {error.message}")
            return {}
        self._lost += [f"a part of the table {table}" for table in sorted(damaged)]
        return notes

    def _fill(self, new: Connection, saved: dict[str, ModelNotes]) -> str:
        """Fill a database, and return what it has of the old one."""
        aliases = annotated = 0
        for model_id in self._model_ids():
            infos = {info.number: info for info in self._versions(model_id)}
            tables.put_versions(new, infos.values())
            notes = saved.pop(model_id, ModelNotes())
            kept = notes.restricted(lambda number, version, infos=infos: _is_of(infos.get(number), version))  # type: ignore[misc]
            if kept:
                put_notes(new, model_id, kept)
            self._note_lost(model_id, notes, kept)
            aliases += len(kept.aliases)
            annotated += sum(bool(each.annotations.tags or each.annotations.metrics) for each in kept.versions.values())
        for model_id, notes in saved.items():
            self._note_lost(model_id, notes, ModelNotes())
        requests.restore(new, self._uploads)
        grants.restore(new, self._grants)
        return f"{counted(aliases, 'alias', 'aliases')}, and tags and metrics of {counted(annotated, 'version')}"

    def _note_lost(self, model_id: str, notes: ModelNotes, kept: ModelNotes) -> None:
        names = {alias.name for alias in kept.aliases}
        self._lost += [
            f"alias {quoted(alias.name)} of model {quoted(model_id)}, whose version {alias.version_number} has no files"
            for alias in notes.aliases
            if alias.name not in names
        ]

    def _model_ids(self) -> list[str]:
        return sorted(entry.name for entry in self._files.list_directory(self._root) if entry.is_directory)

    def _versions(self, model_id: str) -> list[VersionInfo]:
        """Return the archived versions of a model whose metadata is sound."""
        if not model_files.is_model_id(model_id):
            return []
        try:
            directory = self._files.open_directory(self._root, model_id)
        except OSError:
            return []
        try:
            found = model_files.list_model(self._files, directory, model_id)
            infos = []
            for number in sorted(found.metadata) if found.is_model else []:
                with contextlib.suppress(Fault):
                    infos.append(model_files.read_version(self._files, directory, model_id, number)[0])
            return [info for info in infos if info.archived]
        finally:
            self._files.close(directory)

    def _move_aside(self) -> str:
        """Give the old database another name, with its log; return the name."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = f"{layout.CATALOG_NAME}.damaged-{stamp}"
        for ending in _FILES:
            with contextlib.suppress(FileNotFoundError):
                self._files.rename(self._root, layout.CATALOG_NAME + ending, aside + ending)
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(self._root, f"{layout.CATALOG_NAME}-shm")
        self._files.sync_directory(self._root)
        return aside


def _is_of(info: VersionInfo | None, notes: VersionNotes | None) -> bool:
    """Return whether notes are about a version of the files, as far as is known."""
    if info is None:
        return False
    return notes is None or notes.may_be_of((info.created_ns, info.data_hash))
