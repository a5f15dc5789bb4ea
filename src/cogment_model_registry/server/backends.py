"""The choice of the backends that a server runs on, from its settings."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

from cogment_model_registry.errors import StartError
from cogment_model_registry.records.access import Grant
from cogment_model_registry.registry.contracts import Archive, Catalog, TransientStore
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.settings import Settings, check_archive
from cogment_model_registry.storage.catalog import grants
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.snapshot import UnusableCatalogError, copy_database
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.claim import is_held, opened_root
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.storage.folder import FolderArchive
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore

if TYPE_CHECKING:
    from cogment_model_registry.server.shared_backend import SharedStorage

_HASH_THREADS = max(2, os.cpu_count() or 2)


async def _nothing() -> None:
    """Do nothing."""


async def _no_grants() -> Sequence[Grant]:
    """Return nothing."""
    return ()


@dataclass(frozen=True, slots=True)
class Backends:
    """The open storage of a server.

    Attributes:
        archive: Where archived versions live.
        transient: Where transient versions live.
        catalog: What exists.
        read_grants: Returns who may do what.
        rescan: Finds what people changed in the files by hand; does nothing without files.
        shared: The same as it is shared with other servers; None if it is not.
    """

    archive: Archive
    transient: TransientStore
    catalog: Catalog
    read_grants: Callable[[], Awaitable[Sequence[Grant]]] = _no_grants
    rescan: Callable[[], Awaitable[None]] = _nothing
    shared: "SharedStorage | None" = None


OpenBackends: TypeAlias = Callable[[Settings, Metrics], AbstractAsyncContextManager[Backends]]
"""Opens the backends of a server, as a context manager that closes them."""


@asynccontextmanager
async def open_backends(settings: Settings, metrics: Metrics, files: Files | None = None) -> AsyncIterator[Backends]:
    """Open the backends that the settings ask for.

    Args:
        settings: The settings of the server.
        metrics: Receives the operations of the archive.
        files: The file operations of the archive; those on real files when None.

    Raises:
        StartError: The archive is not usable.
    """
    check_archive(settings)
    async with AsyncExitStack() as stack:
        hashing = stack.enter_context(ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash"))
        if settings.catalog_url:
            shared = await stack.enter_async_context(_opened_shared(settings, metrics, hashing))
            yield Backends(
                shared.archive,
                shared.transient,
                shared.catalog,
                read_grants=shared.catalog.grants.read,
                shared=shared,
            )
            return
        archive, folder = await stack.enter_async_context(_opened_archive(settings, metrics, files))
        # Some versions in an archive of the original are transient by their own metadata.
        transient = MemoryTransientStore(settings.cache_max_items, settings.cache_max_bytes, hashing, elsewhere=archive)
        if settings.read_only:
            # SQLite writes beside what it reads, and a start adds what is missing.
            copy = stack.enter_context(TemporaryDirectory(prefix="cogment-catalog-"))
            await asyncio.to_thread(_copy_database, folder, copy)
            folder = copy
        database = Database(os.path.join(folder, CATALOG_NAME), MIGRATIONS)
        catalog = LocalCatalog(archive, database)
        stack.push_async_callback(catalog.close)
        await catalog.open()
        yield Backends(
            archive,
            transient,
            catalog,
            read_grants=lambda: database.read(grants.read),
            rescan=lambda: catalog.refresh(transient.remove_model),
        )


def _opened_shared(
    settings: Settings, metrics: Metrics, hashing: Executor
) -> "AbstractAsyncContextManager[SharedStorage]":
    """Return the context manager of what several servers share."""
    try:
        # Not loaded, nor needed, for a catalog of one server.
        from cogment_model_registry.server.shared_backend import opened_shared  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _not_installed("catalog_url", error, "bucket,postgresql") from None
    return opened_shared(settings, metrics, hashing)


def _not_installed(setting: str, error: ModuleNotFoundError, extras: str) -> StartError:
    install = f"pip install 'cogment-model-registry[server,{extras}]'"
    return StartError(f"{setting} needs {error.name}, which is not installed: {install}")


@asynccontextmanager
async def _opened_archive(
    settings: Settings, metrics: Metrics, files: Files | None
) -> AsyncIterator[tuple[FolderArchive, str]]:
    """Open the archive; a context manager with it and with the directory of its catalog."""
    if settings.archive_url:
        try:
            # Not loaded, nor needed, for an archive in a directory.
            from cogment_model_registry.server.bucket_backend import opened_bucket  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise _not_installed("archive_url", error, "bucket") from None
        async with opened_bucket(settings, metrics) as opened:
            yield opened
        return
    archive = DirectoryArchive(
        settings.archive_dir,
        settings.model_id_max_bytes,
        files,
        metrics.observe_archive,
        metrics.observe_sync,
        read_only=settings.read_only,
    )
    try:
        await archive.open()
        yield archive, settings.archive_dir
    finally:
        await archive.close()


def _copy_database(source: str, folder: str) -> None:
    """Copy the database of a catalog that another server may be using, if there is one."""
    files = Files()
    database, copy = os.path.join(source, CATALOG_NAME), os.path.join(folder, CATALOG_NAME)
    if not os.path.isdir(source):
        return  # of an archive in a bucket that a server on another machine writes
    try:
        with opened_root(files, source) as root:
            copy_database(database, copy, lambda: is_held(files, root))
    except UnusableCatalogError as error:
        raise StartError(f"the catalog {database} is not usable: {error.message}") from None
