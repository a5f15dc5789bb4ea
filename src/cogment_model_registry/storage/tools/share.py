"""The archive of one server in an object store becomes one that several servers share, with a catalog in PostgreSQL."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.records.access import Grant
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import ModelContents
from cogment_model_registry.storage.binding import open_bound
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from cogment_model_registry.storage.catalog import grants as grant_tables
from cogment_model_registry.storage.catalog.note_tables import read_notes
from cogment_model_registry.storage.catalog.notes import ModelNotes, VersionNotes
from cogment_model_registry.storage.catalog.snapshot import opened_snapshot
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.storage.folder import FolderContents
from cogment_model_registry.storage.postgres.filling import Filling, WholeModel

_BATCH = 256


@dataclass(slots=True)
class Shared:
    """What was put into a catalog.

    Attributes:
        models: Models that were added.
        versions: Their versions.
        unchanged: Models that were there already.
        grants: Grants that were added.
        damaged: The errors of versions that are damaged, and were left out.
    """

    models: int = 0
    versions: int = 0
    unchanged: int = 0
    grants: int = 0
    damaged: tuple[DataLossError, ...] = ()


@contextlib.asynccontextmanager
async def opened_archive(
    objects: Objects, filling: Filling, *, replaces_catalog: bool
) -> AsyncIterator[SharedBucketArchive]:
    """Open an archive that no single server uses any more, as one that is shared; a context manager.

    Args:
        objects: The objects of the archive.
        filling: What fills its catalog.
        replaces_catalog: Whether that takes the place of another catalog to which the archive belongs.

    Raises:
        StartError: It cannot be used, or a server owns it, or one of them belongs to another one.
        UnavailableError: The object store or PostgreSQL does not answer.
    """

    async def writable() -> None:
        """Let everything be written."""

    archive = SharedBucketArchive(objects, writable, lambda: 0)
    try:
        await open_bound(archive, filling.binding, objects.url, replaces_catalog=replaces_catalog)
        yield archive
    finally:
        await archive.close()


@dataclass(frozen=True, slots=True)
class OldCatalog:
    """What a catalog of one server has besides its archive.

    Attributes:
        notes: What people have said, by model.
        grants: Who may do what.
    """

    notes: dict[str, ModelNotes]
    grants: list[Grant]


def read_catalog(folder: str) -> OldCatalog:
    """Return what the catalog in a directory has that no server uses; nothing if there is none.

    Raises:
        UnusableCatalogError: It cannot be read.
    """
    path = os.path.join(folder, CATALOG_NAME)
    if not os.path.exists(path):
        return OldCatalog({}, [])
    with opened_snapshot(path, lambda: False) as connection:
        if connection is None:
            return OldCatalog({}, [])
        return OldCatalog(read_notes(connection), grant_tables.read(connection))


async def share(archive: SharedBucketArchive, old: OldCatalog, filling: Filling) -> Shared:
    """Put the models of an archive into a catalog, with what an old catalog says of them.

    A model that is there already is left as it is, so an interrupted run goes on.

    Raises:
        ExistsError: A grant has the name of another one there.
        UnavailableError: The object store or PostgreSQL does not answer.
    """
    shared = Shared()
    damaged: list[DataLossError] = []
    known = await filling.known()
    for contents in await archive.scan():
        model_id = contents.info.model_id
        if model_id in known:
            shared.unchanged += 1
            continue
        infos = await _read(archive, contents, damaged)
        if await filling.add_model(_filled(contents, infos, old.notes.get(model_id, ModelNotes()))):
            shared.models += 1
            shared.versions += len(infos)
    shared.grants = await filling.add_grants(old.grants)
    shared.damaged = tuple(damaged)
    return shared


async def _read(
    archive: SharedBucketArchive, contents: ModelContents, damaged: list[DataLossError]
) -> list[VersionInfo]:
    infos: list[VersionInfo] = []
    model_id, numbers = contents.info.model_id, contents.version_numbers
    damaged += [DataLossError.version(model_id, number, reason) for number, reason in contents.damaged.items()]
    for start in range(0, len(numbers), _BATCH):
        for found in await archive.read_version_infos(model_id, numbers[start : start + _BATCH]):
            if isinstance(found, DataLossError):
                damaged.append(found)
            elif found is not None and found.archived:
                infos.append(found)
    return infos


def _is_of(notes: VersionNotes | None, info: VersionInfo) -> bool:
    """Return whether notes are on this version, and not on another one that had its number."""
    return notes is None or notes.may_be_of((info.created_ns, info.data_hash))


def _filled(contents: ModelContents, infos: list[VersionInfo], notes: ModelNotes) -> WholeModel:
    by_number = {info.number: info for info in infos}
    mark = contents.high_water_mark if isinstance(contents, FolderContents) else 0
    kept = notes.restricted(lambda number, each: number in by_number and _is_of(each, by_number[number]))
    return WholeModel(
        ModelInfo(contents.info.model_id, contents.info.user_data),
        max(contents.last_number, mark),
        infos,
        {number: each.annotations for number, each in kept.versions.items()},
        notes.model,
        notes.last_revision,
        kept.aliases,
    )
