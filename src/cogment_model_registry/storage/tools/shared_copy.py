"""Copies an archive that several servers share, for one server: the archive, and its catalog from PostgreSQL.

Each model is read from the catalog at one moment, right before its versions are copied. Only the versions in the
catalog are copied: other records in the object store belong to no version.
"""

import contextlib
import os
from collections.abc import Callable
from sqlite3 import Connection

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.access import missing_grants
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog import grants as grant_tables
from cogment_model_registry.storage.catalog import tables
from cogment_model_registry.storage.catalog.connections import open_for_writing
from cogment_model_registry.storage.catalog.notes import ModelNotes, VersionNotes
from cogment_model_registry.storage.filesystem.claim import OwnedFiles, opened_root
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.storage.folder import FolderArchive, FolderContents
from cogment_model_registry.storage.postgres import extraction
from cogment_model_registry.storage.postgres.extraction import Extraction
from cogment_model_registry.storage.postgres.filling import WholeModel
from cogment_model_registry.storage.tools.archive_copy import Copied, check_is_copy, copy_model
from cogment_model_registry.storage.tools.model_transfer import replace_notes


def contents_of(model: WholeModel) -> FolderContents:
    """Return the part of a model in the catalog that belongs in an archive."""
    return extraction.contents_of(model.info, [info.number for info in model.versions], model.last_number)


def notes_of(model: WholeModel) -> ModelNotes:
    """Return the annotations of a model: aliases, tags, metrics and rules."""
    identities = {info.number: (info.created_ns, info.data_hash) for info in model.versions}
    notes = {number: VersionNotes(each, identities[number]) for number, each in model.annotations.items()}
    for alias in model.aliases:
        number = alias.version_number
        notes.setdefault(number, VersionNotes(identity=identities[number]))
    return ModelNotes(model.last_revision, model.decided, [*model.aliases], notes)


async def copy_shared(
    source: FolderArchive, catalog: Extraction, target: FolderArchive, folder: str, advance: Callable[[int], None]
) -> Copied:
    """Copy an archive that several servers share, and their catalog; they may be running.

    Args:
        source: The archive, opened to be read.
        catalog: The reader of the catalog.
        target: The copy, which this process owns.
        folder: The directory of the catalog of the copy, which this process owns.
        advance: Called with the number of bytes of each version that was copied or did not need to be.

    Raises:
        ExistsError: The copy has a token with the name of another one.
        InvalidError: The copy has a model or a version that the archive does not have.
        NotFoundError: The catalog has no models.
        StartError: The catalog of the copy cannot be written.
        UnavailableError: PostgreSQL or an object store does not answer.
    """
    models = await catalog.listing()
    if not models:
        raise NotFoundError("the catalog has no model, so nothing was copied")
    present = {contents.info.model_id: contents for contents in await target.scan()}
    check_is_copy(models, present)
    copied = Copied()
    files = OwnedFiles(folder)
    with (
        opened_root(files, folder) as root,
        contextlib.closing(open_for_writing(os.path.join(folder, CATALOG_NAME), tables.MIGRATIONS)) as connection,
    ):
        files.give(root, CATALOG_NAME)
        for listed in models:
            model_id = listed.info.model_id
            model = await catalog.read_model(model_id)
            if model is None:
                continue  # deleted in the meantime
            contents = contents_of(model)
            await copy_model(source, target, contents, present.get(model_id), copied=copied, advance=advance)
            await _keep(connection, target, model)
            copied.models += 1
        grants = missing_grants(await catalog.read_grants(), grant_tables.read(connection))
        grant_tables.restore(connection, grants)
    return copied


async def _keep(connection: Connection, target: FolderArchive, model: WholeModel) -> None:
    """Write the annotations of a copied model, for the versions that the copy has."""
    notes = notes_of(model)
    model_id, numbers = model.info.model_id, [*notes.versions]
    infos: dict[int, VersionInfo] = {}
    for info in await target.read_version_infos(model_id, numbers):
        if isinstance(info, VersionInfo) and notes.versions[info.number].may_be_of((info.created_ns, info.data_hash)):
            infos[info.number] = info
    replace_notes(connection, model_id, notes.restricted(lambda number, _notes: number in infos), infos.values())
