"""Exports and imports of a model with what people have said of it, which only the database has.

An import keeps that before the model gets its name. If the process ends in between, the next start forgets it, since
there is no such model; so the model is imported with all of it or not at all.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from sqlite3 import Connection
from typing import BinaryIO

from cogment_model_registry.errors import DataLossError, InvalidError, PreconditionError, counted, quoted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog import requests, tables
from cogment_model_registry.storage.catalog.connections import open_for_writing
from cogment_model_registry.storage.catalog.note_tables import put_notes, read_notes
from cogment_model_registry.storage.catalog.notes import ModelNotes, from_fields, to_fields
from cogment_model_registry.storage.catalog.snapshot import Flaw, UnusableCatalogError, opened_snapshot
from cogment_model_registry.storage.filesystem import (
    export_format,
    export_writer,
    import_reader,
    layout,
    model_export,
    model_import,
)
from cogment_model_registry.storage.filesystem.claim import Holder
from cogment_model_registry.storage.filesystem.export_writer import Exported, Identity
from cogment_model_registry.storage.filesystem.import_reader import Imported
from cogment_model_registry.storage.tools.place import ArchivePlace


def export_model(
    place: ArchivePlace,
    model_id: str,
    write: Callable[[bytes], object],
    *,
    skip_damaged: bool = False,
    annotations: bool = True,
    warn: Callable[[str], object],
    advance: Callable[[int], None],
) -> Exported:
    """Write a model as a tar file; see `storage.filesystem.model_export`.

    Args:
        place: The archive.
        model_id: The model; an id that obeys the rules.
        write: Takes the next bytes of the tar file.
        skip_damaged: Whether to leave out what is damaged.
        annotations: Whether to write its aliases, tags and metrics.
        warn: Called with a line for each thing that is left out.
        advance: Called with the bytes of versions that were written.
    """
    annotate = annotating(place, model_id, warn, skip_damaged=skip_damaged) if annotations else None
    return model_export.export_model(
        place.files,
        place.root,
        model_id,
        write,
        skip_damaged=skip_damaged,
        annotate=annotate or export_writer.no_annotations,
        warn=warn,
        advance=advance,
    )


def annotating(
    place: ArchivePlace, model_id: str, warn: Callable[[str], object], *, skip_damaged: bool
) -> export_writer.Annotate:
    """Read what the database has on a model, and return what annotates its export.

    Called before the versions are read: each one that the database speaks of is there then, or was deleted.

    Args:
        place: The directory of the database.
        model_id: The model.
        warn: Called with a line for each thing that is left out.
        skip_damaged: Whether to leave out what is damaged.
    """
    return annotating_with(_notes(place, model_id, warn if skip_damaged else None), warn)


def annotating_with(notes: ModelNotes, warn: Callable[[str], object]) -> export_writer.Annotate:
    """Return what annotates an export with notes.

    Args:
        notes: The notes on the model.
        warn: Called with a line for each thing that is left out.
    """

    def annotate(exported: Mapping[int, Identity]) -> export_format.Annotations | None:
        kept = notes.restricted(
            lambda number, version: number in exported and (version is None or version.may_be_of(exported[number]))
        )
        for alias in notes.aliases:
            if alias not in kept.aliases:
                warn(f"left out: alias {quoted(alias.name)}, whose version {alias.version_number} is not in the export")
        return to_fields(kept) if kept else None

    return annotate


def _notes(place: ArchivePlace, model_id: str, warn: Callable[[str], object] | None) -> ModelNotes:
    """Return what the database has on a model; a damaged one has nothing when `warn` is given."""
    try:
        with opened_snapshot(place.database, place.is_in_use) as copy:
            return read_notes(copy, model_id).get(model_id, ModelNotes()) if copy is not None else ModelNotes()
    except UnusableCatalogError as error:
        message = f"the aliases, tags and metrics of model {quoted(model_id)} cannot be read: {error.message}"
        if error.flaw is Flaw.UNREADABLE:  # it may be intact, so it is not left out as what is damaged is
            raise UnusableCatalogError(error.flaw, message) from None
        if warn is None:
            raise DataLossError(message, model_id=model_id) from None
        warn(f"left out: {message}")
        return ModelNotes()


def import_model(
    place: ArchivePlace,
    stream: BinaryIO,
    *,
    model_id: str = "",
    annotations: bool = True,
    holder: Holder | None,
    check_holder: Callable[[], object],
    advance: Callable[[int], None],
) -> Imported:
    """Make a model from a tar file; see `storage.filesystem.model_import`.

    Args:
        place: The archive.
        stream: The tar file.
        model_id: Its new name, an id that obeys the rules; empty for the one that it has.
        annotations: Whether to take its aliases, tags and metrics.
        holder: The process that owns the archive; None when this one does.
        check_holder: Raises an error when another process took the archive since the import began.
        advance: Called with the bytes that were read from the stream.

    Raises:
        PreconditionError: The file has aliases, tags or metrics, and a server uses the archive.
    """

    @contextlib.contextmanager
    def annotate(imported: Imported, read: Callable[[Iterable[int]], Iterable[VersionInfo]]) -> Iterator[None]:
        if holder is not None:
            notes = _checked(imported) if annotations else ModelNotes()
            if notes:
                raise PreconditionError(
                    f"the export has aliases, tags and metrics, and process {holder.process} uses their database: stop "
                    "it first, or import the model with --without_annotations",
                    model_id=imported.model_id,
                )
            yield
            return
        with keeping(place, annotations=annotations)(imported, read):
            yield

    return model_import.import_model(
        place.files,
        place.root,
        stream,
        model_id=model_id,
        annotate=annotate,
        check_holder=check_holder,
        advance=advance,
    )


def keeping(place: ArchivePlace, *, annotations: bool) -> import_reader.Annotate:
    """Return what keeps the annotations of an import in a database that this process owns.

    Args:
        place: The directory of the database.
        annotations: Whether to keep them; what a model of that name has left, which is gone, goes in any case.
    """

    def keep(
        imported: Imported, read: Callable[[Iterable[int]], Iterable[VersionInfo]]
    ) -> contextlib.AbstractContextManager[None]:
        return _kept(place, imported.model_id, _checked(imported) if annotations else ModelNotes(), read)

    return keep


def _checked(imported: Imported) -> ModelNotes:
    """Return the notes of an import, which come from anywhere."""
    if imported.annotations is None:
        return ModelNotes()
    try:
        notes = from_fields(dict(imported.annotations), imported.model_id)
    except InvalidError as error:
        raise InvalidError(f"this is not a complete export of a model: {error.message}") from None
    numbers = {alias.version_number for alias in notes.aliases}
    if not numbers <= notes.versions.keys() <= imported.numbers:
        raise InvalidError("this is not a complete export of a model: it annotates versions that it does not have")
    return notes


@contextlib.contextmanager
def _kept(
    place: ArchivePlace, model_id: str, notes: ModelNotes, read: Callable[[Iterable[int]], Iterable[VersionInfo]]
) -> Iterator[None]:
    """Keep notes on a model that gets its name in the body; take them back if that fails.

    What a model of that name, which is gone, has left in the database goes in any case.
    """
    if not notes and not os.path.lexists(place.database):
        yield
        return
    with contextlib.closing(open_for_writing(place.database, tables.MIGRATIONS)) as connection:
        place.files.give(place.root, layout.CATALOG_NAME)
        replace_notes(connection, model_id, notes, read(notes.versions))
        try:
            yield
        except BaseException:
            tables.remove_model(connection, model_id)
            raise


def replace_notes(connection: Connection, model_id: str, notes: ModelNotes, infos: Iterable[VersionInfo]) -> None:
    """Put notes on a model into a database, in place of all that it has on a model of that name.

    Args:
        connection: The database, with no transaction.
        model_id: The model.
        notes: The notes.
        infos: The versions that they are on.
    """
    connection.execute("BEGIN IMMEDIATE")
    tables.remove_model(connection, model_id)
    requests.mark_gone(connection, model_id)
    tables.put_versions(connection, infos)
    if notes:
        put_notes(connection, model_id, notes)
    connection.execute("COMMIT")


def summary(annotations: export_format.Annotations | None) -> str:
    """Return what annotations have, in a few words; empty for none."""
    if annotations is None:
        return ""
    notes = from_fields(dict(annotations), "")
    annotated = sum(bool(each.annotations.tags or each.annotations.metrics) for each in notes.versions.values())
    parts = [
        counted(len(notes.model.retention), "rule") if notes.model.retention else "",
        counted(len(notes.model.signers), "signer") if notes.model.signers else "",
        counted(len(notes.aliases), "alias", "aliases") if notes.aliases else "",
        f"tags and metrics of {counted(annotated, 'version')}" if annotated else "",
    ]
    return ", ".join(part for part in parts if part)
