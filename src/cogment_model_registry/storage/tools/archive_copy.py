"""A copy of an archive in another place, by the contract of archives alone: from a directory to a bucket, and back.

What the copy has already is not copied again, so an interrupted copy goes on. Data is checked against its hash. Nothing
leaves the copy: if it has what the archive does not have, it is no copy of it, and is refused before anything is
written. The database of the catalog comes last, so each of its aliases points to a version that was copied.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from cogment_model_registry.errors import DataLossError, InvalidError, NotFoundError, quoted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog.snapshot import check_integrity, copy_database, opened_copy, translated
from cogment_model_registry.storage.filesystem.claim import OwnedFiles, is_held, opened_root
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME, CATALOG_NAMES
from cogment_model_registry.storage.folder import FolderArchive, FolderContents

_BATCH = 256
_CHUNK_BYTES = 1024 * 1024
_BUFFER_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Copied:
    """What a copy did.

    Attributes:
        models: The number of models.
        versions: How many versions were copied.
        unchanged: How many were there already.
        data_bytes: The bytes of those that were copied.
        damaged: The errors of versions that are damaged, and were not copied.
    """

    models: int = 0
    versions: int = 0
    unchanged: int = 0
    data_bytes: int = 0
    damaged: list[DataLossError] = field(default_factory=list)


async def copy_archive(source: FolderArchive, target: FolderArchive, advance: Callable[[int], None]) -> Copied:
    """Copy what an archive has to another one.

    Args:
        source: The archive; a server may be using it.
        target: The copy, which this process owns.
        advance: Called with the bytes of versions that were copied, or need not be.

    Raises:
        InvalidError: The copy has what the archive does not have.
        NotFoundError: The archive has no model.
        UnavailableError: One of them failed.
    """
    models = await source.scan()
    present = {contents.info.model_id: contents for contents in await target.scan()}
    if not models:
        raise NotFoundError("the archive has no model, so nothing was copied")
    check_is_copy(models, present)
    copied = Copied()
    for contents in models:
        await copy_model(source, target, contents, present.get(contents.info.model_id), copied=copied, advance=advance)
        copied.models += 1
    return copied


def check_is_copy(models: Sequence[FolderContents], present: Mapping[str, FolderContents]) -> None:
    """Refuse a place that is no copy of an archive.

    Args:
        models: What the archive has.
        present: What the place has, by model.

    Raises:
        InvalidError: It has what the archive does not have.
    """
    by_id = {contents.info.model_id: contents for contents in models}
    for model_id, found in present.items():
        expected = by_id.get(model_id)
        if expected is None:
            raise InvalidError(f"the copy has model {quoted(model_id)}, and the archive has not: copy to a new place")
        more = {*found.version_numbers} - {*expected.version_numbers} - expected.damaged.keys()
        if more:
            message = f"the copy has version {min(more)} of model {quoted(model_id)}, and the archive has not"
            raise InvalidError(f"{message}: copy to a new place")


async def copy_model(
    source: FolderArchive,
    target: FolderArchive,
    contents: FolderContents,
    present: FolderContents | None,
    *,
    copied: Copied,
    advance: Callable[[int], None],
) -> None:
    """Copy a model.

    Args:
        source: The archive.
        target: The copy.
        contents: What of the model is copied.
        present: What the copy has of it; None for nothing.
        copied: Where to add what was done.
        advance: Called with the bytes of versions that were copied, or need not be.

    Raises:
        InvalidError: The copy has another version with the number of one.
        UnavailableError: One of them failed.
    """
    model_id = contents.info.model_id
    if present is None or present.info != contents.info:
        await target.write_model(contents.info)
    # Before the versions: an interrupted copy must not give a number again that the archive has given.
    mark = max(contents.high_water_mark, contents.last_number)
    if mark > (present.high_water_mark if present else 0):
        await target.write_high_water_mark(model_id, mark)
    copied.damaged += [
        DataLossError.version(model_id, number, reason) for number, reason in sorted(contents.damaged.items())
    ]
    numbers = contents.version_numbers
    for start in range(0, len(numbers), _BATCH):
        batch = numbers[start : start + _BATCH]
        found = await source.read_version_infos(model_id, batch)
        there = await target.read_version_infos(model_id, batch)
        for info, other in zip(found, there, strict=True):
            if isinstance(info, DataLossError):
                copied.damaged.append(info)
            elif info is not None and info.archived:  # others are transient, or were deleted in the meantime
                await _copy_version(source, target, info, other, copied)
                advance(info.data_size_bytes)


async def _copy_version(
    source: FolderArchive,
    target: FolderArchive,
    info: VersionInfo,
    other: VersionInfo | DataLossError | None,
    copied: Copied,
) -> None:
    if isinstance(other, VersionInfo) and other == info and other.signature == info.signature:
        copied.unchanged += 1
        return
    if isinstance(other, VersionInfo):
        message = f"the copy has another version {info.number} of model {quoted(info.model_id)}"
        raise InvalidError(f"{message}: copy to a new place")
    if other is not None:
        await target.remove_version(info)
    try:
        await _copy_bytes(source, target, info)
    except DataLossError as error:
        copied.damaged.append(error)
    except NotFoundError:
        pass  # deleted in the meantime
    else:
        copied.versions += 1
        copied.data_bytes += info.data_size_bytes


async def _copy_bytes(source: FolderArchive, target: FolderArchive, info: VersionInfo) -> None:
    async with (
        await source.open_version(info) as reader,
        await target.open_upload(info.model_id, info.data_size_bytes) as upload,
    ):
        async with aclosing(reader.chunks(_CHUNK_BYTES, _BUFFER_BYTES)) as chunks:
            async for parts in chunks:
                for part in parts:
                    await upload.write(memoryview(bytes(part)))  # the reader fills its buffer again
        if await upload.finish() != info.data_hash:
            raise DataLossError.version(info.model_id, info.number, "its bytes do not match their hash")
        await upload.commit(info)


def copy_catalog(source: str, target: str) -> bool:
    """Replace the database in a directory by a copy of the one in another directory; return whether there is one.

    Args:
        source: The directory of a catalog; a server may be using it.
        target: A directory that this process owns.

    Raises:
        UnusableCatalogError: The database cannot be read.
        OSError: A directory is not available.
    """
    if not os.path.isdir(source):
        return False
    files = OwnedFiles(target)
    with (
        opened_root(files, source) as source_root,
        opened_root(files, target) as root,
        tempfile.TemporaryDirectory(prefix=".~", dir=target) as folder,
    ):
        path = os.path.join(folder, CATALOG_NAME)
        if not copy_database(os.path.join(source, CATALOG_NAME), path, lambda: is_held(files, source_root)):
            return False
        with translated(), contextlib.closing(opened_copy(path)) as connection:
            check_integrity(connection)
            connection.execute("PRAGMA journal_mode = DELETE")  # merges the log, so that there is one file
        os.chmod(path, 0o640)
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            files.sync_file(file)
        finally:
            os.close(file)
        # The log of the database before must not be taken for the log of this one.
        for name in CATALOG_NAMES - {CATALOG_NAME}:
            files.remove(root, name)
        os.rename(path, os.path.join(target, CATALOG_NAME))
        files.give(root, CATALOG_NAME)
        files.sync_directory(root)
    return True
