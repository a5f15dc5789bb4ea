"""A backup of an archive directory that servers may be using: another archive directory, made or brought up to date.

The files come first, then the database as it is at one moment. What that speaks of and is not in the backup yet is
copied next; if a version with an alias is gone by then, the database is copied again. So each alias of the backup
points to a version in it. At the end, what the archive no longer has leaves the backup.

Nothing is written to the archive and its lock is not held, so the backup disturbs no server and keeps none from
starting.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from sqlite3 import Connection

from cogment_model_registry.errors import InvalidError, NotFoundError, UnavailableError, shown
from cogment_model_registry.storage.catalog import tables
from cogment_model_registry.storage.catalog.snapshot import (
    UnusableCatalogError,
    check_integrity,
    copy_database,
    opened_copy,
    translated,
)
from cogment_model_registry.storage.filesystem import claim, layout, model_files, recognition
from cogment_model_registry.storage.filesystem.claim import OwnedFiles
from cogment_model_registry.storage.filesystem.model_copy import Copied, ModelCopy, Outcome
from cogment_model_registry.storage.tools.catalog_check import finding_of
from cogment_model_registry.storage.tools.place import ArchivePlace

_SNAPSHOTS = 50
"""How often to copy the database before giving up: each time, a version with an alias was deleted right after it."""

_MARK = b"written by `cogment archive backup`\n"


@contextlib.contextmanager
def opened_target(path: str, source: str) -> Iterator[ArchivePlace]:
    """Return a context manager that owns a backup; the directory is made if it does not exist.

    Args:
        path: The directory.
        source: The archive directory.

    Raises:
        InvalidError: It is neither a backup nor empty, or it is in the archive.
        StartError: A server, or another backup, uses it.
        OSError: It cannot be written.
    """
    if os.path.realpath(path) == os.path.realpath(source) or os.path.realpath(path).startswith(
        os.path.join(os.path.realpath(source), "")
    ):
        raise InvalidError(f"{shown(path)} is in the archive: give a directory outside of it")
    os.makedirs(path, 0o750, exist_ok=True)
    files = OwnedFiles(path)
    with claim.opened_root(files, path) as root:
        if not _is_backup(files, root):
            if not recognition.is_unused(files, root):
                raise InvalidError(
                    f"{shown(path)} is neither a backup nor empty: give an empty or a new directory, or one that this "
                    "command has written and that no server has used since"
                )
            _put_mark(files, root)
        with claim.claimed(path, files, root):
            yield ArchivePlace(files, root, path)


def _is_backup(files: OwnedFiles, root: int) -> bool:
    try:
        files.status_of(root, layout.BACKUP_NAME)
    except FileNotFoundError:
        return False
    return True


def _put_mark(files: OwnedFiles, root: int) -> None:
    file = files.create(root, layout.BACKUP_NAME)
    try:
        files.write(file, [_MARK])
        files.sync_file(file)
    finally:
        files.close(file)
    files.sync_directory(root)


def back_up(source: ArchivePlace, target: ArchivePlace, advance: Callable[[int], None]) -> Copied:
    """Bring a backup up to date.

    Args:
        source: The archive.
        target: The backup, which this process owns.
        advance: Called with the bytes of versions that were read, or need not be.

    Raises:
        NotFoundError: The archive has no model, which is more probably a mistake than the wish to empty the backup.
        UnavailableError: Versions with aliases are deleted faster than they can be copied.
        OSError: The archive cannot be listed, or the backup not be written.
    """
    copy = ModelCopy((source.files, source.root), (target.files, target.root), advance)
    _remove_leftovers(target)
    _copy_format(source, target)
    for model_id in copy.model_ids():
        copy.copy(model_id)
    if not copy.copied.models:
        raise NotFoundError(f"archive {shown(source.path)} has no model, so nothing was backed up")
    aliased = _copy_database(source, target, copy)
    copy.remove_what_is_gone(aliased)
    return copy.copied


def _remove_leftovers(target: ArchivePlace) -> None:
    """Remove what an interrupted backup left."""
    for entry in target.files.list_directory(target.root):
        if layout.is_temporary(entry.name) and entry.is_directory:
            target.files.remove_tree(target.root, entry.name, lambda _error: None)


def _copy_format(source: ArchivePlace, target: ArchivePlace) -> None:
    with contextlib.suppress(FileNotFoundError):
        text = model_files.read_metadata(source.files, source.root, layout.FORMAT_NAME)
        with contextlib.suppress(FileNotFoundError):
            target.files.remove(target.root, layout.FORMAT_NAME)
        file = target.files.create(target.root, layout.FORMAT_NAME)
        try:
            target.files.write(file, [text])
            target.files.sync_file(file)
        finally:
            target.files.close(file)


Versions = set[tuple[str, int]]
"""Versions, as models and numbers."""


def _copy_database(source: ArchivePlace, target: ArchivePlace, copy: ModelCopy) -> Versions:
    """Copy the database, and what it speaks of; return the versions that must stay in the backup.

    A database that is damaged or missing replaces nothing, and then no version leaves the backup.
    """
    folder = layout.temporary_name()
    target.files.make_directory(target.root, folder)
    path = os.path.join(target.path, folder, layout.CATALOG_NAME)
    try:
        for _ in range(_SNAPSHOTS):
            if not copy_database(source.database, path, source.is_in_use):
                return _present(target) if os.path.lexists(target.database) else set()
            recorded, aliased = _examined(path)
            outcomes = {
                (model_id, number): outcome
                for model_id, numbers in _by_model(recorded - _present(target)).items()
                for number, outcome in copy.copy(model_id, numbers).items()
            }
            if all(outcomes.get(version) is not Outcome.GONE for version in aliased):
                _install(target, folder)
                return aliased
    except UnusableCatalogError as error:
        copy.copied.findings.append(finding_of(error))
        return _present(target)
    finally:
        target.files.remove_tree(target.root, folder, lambda _error: None)
    raise UnavailableError("versions with aliases are deleted faster than they can be copied: try again")


def _examined(path: str) -> tuple[Versions, Versions]:
    """Make one file of the copy of a database; return the versions in it, and those that have aliases."""
    with translated(), contextlib.closing(opened_copy(path)) as connection:
        check_integrity(connection)
        connection.execute("PRAGMA journal_mode = DELETE")  # merges the log, so that there is one file
        return _recorded(connection), _aliased(connection)


def _recorded(connection: Connection) -> Versions:
    return {(model_id, number) for model_id, numbers in tables.numbers(connection).items() for number in numbers}


def _aliased(connection: Connection) -> Versions:
    return {
        (model_id, alias.version_number)
        for model_id, aliases in tables.all_aliases(connection).items()
        for alias in aliases.values()
    }


def _present(target: ArchivePlace) -> Versions:
    """Return the versions in a backup."""
    found = set()
    for entry in target.files.list_directory(target.root):
        if entry.is_directory and model_files.is_model_id(entry.name):
            directory = target.files.open_directory(target.root, entry.name)
            try:
                listed = model_files.list_model(target.files, directory, entry.name)
            finally:
                target.files.close(directory)
            found |= {(entry.name, number) for number in listed.metadata}
    return found


def _by_model(versions: Versions) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for model_id, number in sorted(versions):
        found.setdefault(model_id, []).append(number)
    return found


def _install(target: ArchivePlace, folder: str) -> None:
    """Give the copy of a database its name, durably; the log of the one before must not be taken for its own."""
    directory = target.files.open_directory(target.root, folder)
    try:
        target.files.give(directory, layout.CATALOG_NAME)
        file = target.files.open_to_read(directory, layout.CATALOG_NAME)
        try:
            os.fchmod(file, 0o640)
            target.files.sync_file(file)
        finally:
            target.files.close(file)
    finally:
        target.files.close(directory)
    for name in layout.CATALOG_NAMES - {layout.CATALOG_NAME}:
        target.files.remove(target.root, name)
    os.rename(os.path.join(target.path, folder, layout.CATALOG_NAME), target.database)
    target.files.sync_directory(target.root)
