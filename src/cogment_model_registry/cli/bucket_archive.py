"""`cogment archive` on archives in object stores: `copy`, `share`, and what `verify` does with an address."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from cogment_model_registry.cli.coroutines import run_coroutine, running_coroutines
from cogment_model_registry.cli.running import PathType
from cogment_model_registry.errors import InvalidError, NotFoundError, shown
from cogment_model_registry.settings.kinds import ARCHIVE_URL, CATALOG_URL

if TYPE_CHECKING:
    from cogment_model_registry.storage.bucket.archive import BucketArchive
    from cogment_model_registry.storage.filesystem.export_writer import Annotate, Exported
    from cogment_model_registry.storage.filesystem.import_reader import Imported
    from cogment_model_registry.storage.filesystem.repair import Outcome
    from cogment_model_registry.storage.filesystem.verification import Report
    from cogment_model_registry.storage.folder import FolderArchive, FolderContents
    from cogment_model_registry.storage.postgres.filling import WholeModel
    from cogment_model_registry.storage.tools.archive_copy import Copied
    from cogment_model_registry.storage.tools.bucket_transfer import Run
    from cogment_model_registry.storage.tools.share import Shared


REMEDY = "copy the archive back from a copy that `cogment archive copy` has made, or delete the version"
"""What to do about damage."""


class PlaceType(PathType):
    """An archive directory, or the address of an archive in an object store."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path or the address that a word is."""
        if not is_url(value):
            return super().convert(value, param, ctx)
        try:
            return ARCHIVE_URL.parse(value)
        except ValueError:
            self.fail(f"the address is not allowed; it must be {ARCHIVE_URL.allowed}", param, ctx)


def is_url(place: str) -> bool:
    """Return whether a place is an address and no path."""
    return "://" in place


def check_bucket_extra() -> None:
    """Refuse an address if the library of object stores is not installed.

    Raises:
        click.UsageError: It is not.
    """
    try:
        import obstore  # noqa: F401, PLC0415 # not needed for directories
    except ModuleNotFoundError:
        install = "pip install 'cogment-model-registry[server,bucket]'"
        raise click.UsageError(f"archives in object stores need obstore, which is not installed: {install}") from None


def check_postgresql_extra() -> None:
    """Refuse a catalog in PostgreSQL if the library for it is not installed.

    Raises:
        click.UsageError: It is not.
    """
    try:
        import asyncpg  # noqa: F401, PLC0415 # not needed elsewhere
    except ModuleNotFoundError:
        install = "pip install 'cogment-model-registry[server,postgresql]'"
        raise click.UsageError(f"catalogs in PostgreSQL need asyncpg, which is not installed: {install}") from None


class CatalogUrlType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # before click 8.4 it takes no type
    """The address of a catalog in PostgreSQL."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address that a word is."""
        try:
            return str(CATALOG_URL.parse(str(value)))
        except ValueError:
            self.fail(f"the address is not allowed; it must be {CATALOG_URL.allowed}", param, ctx)


def verify(url: str, advance: Callable[[int], None]) -> "Report":
    """Verify the archive at an address.

    Raises:
        StartError: It is not an archive, or cannot be read.
        UnavailableError: The store failed.
    """
    check_bucket_extra()
    from cogment_model_registry.storage.tools import bucket_check  # noqa: PLC0415 # not needed for directories

    async def run() -> "Report":
        async with _opened_to_read(url) as (archive, _):
            return await bucket_check.verify(archive, advance)  # type: ignore[arg-type] # an address has no other kind

    return run_coroutine(run())


def repair(url: str, advance: Callable[[int], None]) -> "tuple[Report, list[Outcome]]":
    """Verify and repair the archive at an address, which no server may use.

    Raises:
        StartError: It is not an archive, or cannot be used, or a server uses it.
        UnavailableError: The store failed.
    """
    check_bucket_extra()
    from cogment_model_registry.storage.bucket.archive import BucketArchive  # noqa: PLC0415
    from cogment_model_registry.storage.bucket.opening import open_objects  # noqa: PLC0415
    from cogment_model_registry.storage.tools import bucket_repair  # noqa: PLC0415

    async def run() -> "tuple[Report, list[Outcome]]":
        async with _opened_to_read(url):
            pass  # what is opened to be written may be new, and there would be nothing to repair
        archive = BucketArchive(open_objects(url), is_sweeping=False)
        try:
            await archive.open()
            return await bucket_repair.repair(archive, advance)
        finally:
            await archive.close()

    return run_coroutine(run())


def copy(
    source: str,
    target: str,
    source_catalog: str,
    target_catalog: str,
    *,
    warn: Callable[[str], object],
    advance: Callable[[int], None],
) -> "tuple[Copied, bool]":
    """Copy an archive without a catalog in PostgreSQL; return what was copied, and whether it had another catalog.

    It warns if several servers share the archive: a catalog on this machine may be one from before it was shared.
    """
    from cogment_model_registry.storage.tools import archive_copy  # noqa: PLC0415 # not needed for --help

    if is_url(source) or is_url(target):
        check_bucket_extra()
    if not is_url(source) and not is_url(target) and os.path.realpath(source) == os.path.realpath(target):
        raise InvalidError("an archive cannot be copied to itself")

    async def run() -> "tuple[Copied, bool]":
        async with (
            _opened_to_read(source, source_catalog) as (archive, folder),
            _opened_to_write(target, target_catalog) as (other, other_folder),
        ):
            is_shared = is_url(source) and await archive.is_shared()  # type: ignore[attr-defined] # an address has it
            if is_shared:
                found = "the servers of this archive share a catalog in PostgreSQL: give its address as"
                warn(f"left out: aliases, tags, metrics, rules and tokens: {found} from_catalog_url")
            copied = await archive_copy.copy_archive(archive, other, advance)
            if is_shared:
                return copied, False
            return copied, await asyncio.to_thread(archive_copy.copy_catalog, folder, other_folder)

    return run_coroutine(run())


def copy_shared(
    url: str, catalog_url: str, target: str, target_catalog: str, advance: Callable[[int], None]
) -> "Copied":
    """Copy the archive at an address that several servers share, with their catalog, for one server.

    Raises:
        StartError: One of them cannot be used.
    """
    check_bucket_extra()
    check_postgresql_extra()
    from cogment_model_registry.storage.postgres.extraction import opened_extraction  # noqa: PLC0415 # not for --help
    from cogment_model_registry.storage.tools import shared_copy  # noqa: PLC0415

    async def run() -> "Copied":
        async with (
            opened_extraction(catalog_url) as extraction,
            _opened_bucket(url, "", read_only=True) as (archive, _),
        ):
            await extraction.check_bound(archive.id, url)
            async with _opened_to_write(target, target_catalog) as (other, folder):
                return await shared_copy.copy_shared(archive, extraction, other, folder, advance)

    return run_coroutine(run())


def share(url: str, catalog_url: str, catalog_dir: str, *, replaces_catalog: bool) -> "Shared":
    """Make the archive at an address one that several servers share; return what their catalog was given."""
    check_bucket_extra()
    check_postgresql_extra()
    from cogment_model_registry.server.bucket_backend import default_catalog_dir  # noqa: PLC0415 # not for --help
    from cogment_model_registry.storage.bucket.opening import open_objects  # noqa: PLC0415
    from cogment_model_registry.storage.postgres.filling import opened_filling  # noqa: PLC0415
    from cogment_model_registry.storage.tools import share as tool  # noqa: PLC0415

    async def run() -> "Shared":
        async with (
            opened_filling(catalog_url) as filling,
            tool.opened_archive(open_objects(url), filling, replaces_catalog=replaces_catalog) as archive,
        ):
            old = await asyncio.to_thread(tool.read_catalog, catalog_dir or default_catalog_dir(url))
            return await tool.share(archive, old, filling)

    return run_coroutine(run())


@contextlib.contextmanager
def opened_for_export(url: str, catalog_dir: str, catalog_url: str | None) -> "Iterator[Callable[..., Exported]]":
    """Open the archive at an address; a context manager with what exports a model, as `model_transfer.export_model`.

    Args:
        url: The address.
        catalog_dir: The directory of its catalog; empty for that of its server.
        catalog_url: The address of its catalog, if several servers share it.

    Raises:
        StartError: It is not an archive, or cannot be read.
    """
    check_bucket_extra()
    from cogment_model_registry.storage.filesystem.claim import OwnedFiles, opened_root  # noqa: PLC0415
    from cogment_model_registry.storage.filesystem.export_writer import no_annotations  # noqa: PLC0415
    from cogment_model_registry.storage.tools import bucket_transfer, model_transfer  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    if catalog_url:
        check_postgresql_extra()
        from cogment_model_registry.storage.tools import shared_copy  # noqa: PLC0415
    with _running_bucket(url, catalog_dir, read_only=True) as (run, archive, folder):

        def export(
            model_id: str,
            write: Callable[[bytes], object],
            *,
            skip_damaged: bool,
            annotations: bool,
            warn: Callable[[str], object],
            advance: Callable[[int], None],
        ) -> "Exported":
            annotate: Annotate = no_annotations
            contents: FolderContents | None = None
            if catalog_url:
                model = run(_read_shared_model(catalog_url, archive.id, url, model_id))
                contents = shared_copy.contents_of(model)
                if annotations:
                    annotate = model_transfer.annotating_with(shared_copy.notes_of(model), warn)
            elif annotations and run(archive.is_shared()):  # a catalog here may be one from before it was shared
                found = "the servers of this archive share a catalog in PostgreSQL: give its address as catalog_url"
                warn(f"left out: aliases, tags and metrics: {found}")
            elif annotations and not os.path.isdir(folder):
                warn(f"left out: aliases, tags and metrics: there is no catalog in {shown(folder)}")
            elif annotations:
                files = OwnedFiles(folder)
                with opened_root(files, folder) as root:
                    place = ArchivePlace(files, root, folder)
                    annotate = model_transfer.annotating(place, model_id, warn, skip_damaged=skip_damaged)
            return bucket_transfer.export_model(
                run,
                archive,
                contents,
                model_id,
                write,
                skip_damaged=skip_damaged,
                annotate=annotate,
                warn=warn,
                advance=advance,
            )

        yield export


async def _read_shared_model(catalog_url: str, archive_id: str, url: str, model_id: str) -> "WholeModel":
    from cogment_model_registry.storage.postgres.extraction import opened_extraction  # noqa: PLC0415

    async with opened_extraction(catalog_url) as extraction:
        await extraction.check_bound(archive_id, url)
        model = await extraction.read_model(model_id)
    if model is None:
        raise NotFoundError.model(model_id)
    return model


def import_model(
    url: str, stream: BinaryIO, model_id: str, *, annotations: bool, catalog_dir: str, advance: Callable[[int], None]
) -> "Imported":
    """Make a model in the archive at an address from a tar file; see `model_transfer.import_model`.

    Raises:
        StartError: The archive cannot be used, or a server uses it.
    """
    check_bucket_extra()
    from cogment_model_registry.storage.filesystem.claim import OwnedFiles, opened_root  # noqa: PLC0415
    from cogment_model_registry.storage.tools import bucket_transfer, model_transfer  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    with _running_bucket(url, catalog_dir, read_only=False) as (run, archive, folder):
        files = OwnedFiles(folder)
        with opened_root(files, folder) as root:
            annotate = model_transfer.keeping(ArchivePlace(files, root, folder), annotations=annotations)
            return bucket_transfer.import_model(
                run, archive, stream, model_id=model_id, annotate=annotate, advance=advance
            )


@contextlib.contextmanager
def _running_bucket(url: str, catalog_dir: str, *, read_only: bool) -> "Iterator[tuple[Run, BucketArchive, str]]":
    """Open an archive for a caller that is not asynchronous; a context manager.

    It has what runs the event loop until a coroutine is done, the archive, and the directory of its catalog.
    """
    with running_coroutines() as run:
        stack = contextlib.AsyncExitStack()
        opening = stack.enter_async_context(_opened_bucket(url, catalog_dir, read_only=read_only))
        try:
            archive, folder = run(opening)
            yield run, archive, folder
        finally:
            run(stack.aclose())


@asynccontextmanager
async def _opened_to_read(place: str, catalog_dir: str = "") -> "AsyncIterator[tuple[FolderArchive, str]]":
    """Open an archive that a server may be using; a context manager with it and the directory of its catalog."""
    if is_url(place):
        async with _opened_bucket(place, catalog_dir, read_only=True) as opened:
            yield opened
        return
    async with _opened_directory(place, read_only=True) as archive:
        yield archive, place


@asynccontextmanager
async def _opened_to_write(place: str, catalog_dir: str) -> "AsyncIterator[tuple[FolderArchive, str]]":
    """Open an archive that no server uses; a context manager with it and the directory of its catalog."""
    if is_url(place):
        async with _opened_bucket(place, catalog_dir, read_only=False) as opened:
            yield opened
        return
    from cogment_model_registry.storage.filesystem import claim, recognition  # noqa: PLC0415

    os.makedirs(place, 0o750, exist_ok=True)
    files = claim.OwnedFiles(place)
    with claim.opened_root(files, place) as root:
        if not recognition.is_archive(files, root) and not recognition.is_unused(files, root):
            raise InvalidError(f"{shown(place)} is neither an archive nor empty: give an empty or a new directory")
    async with _opened_directory(place, read_only=False) as archive:
        yield archive, place


@asynccontextmanager
async def _opened_bucket(url: str, catalog_dir: str, *, read_only: bool) -> "AsyncIterator[tuple[BucketArchive, str]]":
    from cogment_model_registry.server.bucket_backend import opened_bucket  # noqa: PLC0415
    from cogment_model_registry.server.metrics import Metrics  # noqa: PLC0415
    from cogment_model_registry.settings import Settings  # noqa: PLC0415

    settings = Settings(archive_url=url, catalog_dir=catalog_dir, read_only=read_only)
    async with opened_bucket(settings, Metrics()) as opened:
        yield opened


@asynccontextmanager
async def _opened_directory(path: str, *, read_only: bool) -> "AsyncIterator[FolderArchive]":
    from cogment_model_registry.storage.filesystem.archive import DirectoryArchive  # noqa: PLC0415
    from cogment_model_registry.storage.filesystem.model_files import MODEL_ID_MAX_BYTES  # noqa: PLC0415

    archive = DirectoryArchive(path, MODEL_ID_MAX_BYTES, read_only=read_only)
    try:
        await archive.open()
        yield archive
    finally:
        await archive.close()
