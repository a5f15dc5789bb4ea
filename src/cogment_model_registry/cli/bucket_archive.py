"""`cogment archive` on archives in object stores: `copy`, `share`, and what `verify` does with an address."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from cogment_model_registry.cli.running import PathType
from cogment_model_registry.errors import InvalidError, shown
from cogment_model_registry.settings.kinds import ARCHIVE_URL, CATALOG_URL

if TYPE_CHECKING:
    from cogment_model_registry.storage.filesystem.verification import Report
    from cogment_model_registry.storage.folder import FolderArchive
    from cogment_model_registry.storage.tools.archive_copy import Copied
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

    return asyncio.run(run())


def copy(
    source: str, target: str, source_catalog: str, target_catalog: str, advance: Callable[[int], None]
) -> "tuple[Copied, bool]":
    """Copy an archive; return what was copied, and whether there was a catalog."""
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
            copied = await archive_copy.copy_archive(archive, other, advance)
            return copied, await asyncio.to_thread(archive_copy.copy_catalog, folder, other_folder)

    return asyncio.run(run())


def share(url: str, catalog_url: str, catalog_dir: str) -> "Shared":
    """Make the archive at an address one that several servers share; return what their catalog was given."""
    check_bucket_extra()
    check_postgresql_extra()
    from cogment_model_registry.server.bucket_backend import default_catalog_dir  # noqa: PLC0415 # not for --help
    from cogment_model_registry.storage.bucket.objects import Objects  # noqa: PLC0415
    from cogment_model_registry.storage.bucket.opening import open_store  # noqa: PLC0415
    from cogment_model_registry.storage.postgres.filling import opened_filling  # noqa: PLC0415
    from cogment_model_registry.storage.tools import share as tool  # noqa: PLC0415

    async def run() -> "Shared":
        async with (
            opened_filling(catalog_url) as filling,
            tool.opened_archive(Objects(open_store(url), url)) as archive,
        ):
            old = await asyncio.to_thread(tool.read_catalog, catalog_dir or default_catalog_dir(url))
            return await tool.share(archive, old, filling)

    return asyncio.run(run())


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
async def _opened_bucket(url: str, catalog_dir: str, *, read_only: bool) -> "AsyncIterator[tuple[FolderArchive, str]]":
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
