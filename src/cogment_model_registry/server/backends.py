"""The choice of the backends that a server runs on, from its settings."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TypeAlias

from cogment_model_registry.errors import StartError
from cogment_model_registry.records.access import Grant
from cogment_model_registry.registry.contracts import Archive, Catalog, TransientStore
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.catalog import grants
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.snapshot import UnusableCatalogError, copy_database
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.claim import is_held, opened_root
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore

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
    """

    archive: Archive
    transient: TransientStore
    catalog: Catalog
    read_grants: Callable[[], Awaitable[Sequence[Grant]]] = _no_grants
    rescan: Callable[[], Awaitable[None]] = _nothing


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
    async with AsyncExitStack() as stack:
        hashing = stack.enter_context(ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash"))
        archive = DirectoryArchive(
            settings.archive_dir,
            settings.model_id_max_bytes,
            files,
            metrics.observe_archive,
            metrics.observe_sync,
            read_only=settings.read_only,
        )
        stack.push_async_callback(archive.close)
        await archive.open()
        # Some versions in an archive of the original are transient by their own metadata.
        transient = MemoryTransientStore(settings.cache_max_items, settings.cache_max_bytes, hashing, elsewhere=archive)
        folder = settings.archive_dir
        if settings.read_only:
            # SQLite writes beside what it reads, and a start adds what is missing.
            folder = stack.enter_context(TemporaryDirectory(prefix="cogment-catalog-"))
            await asyncio.to_thread(_copy_database, settings.archive_dir, folder)
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


def _copy_database(archive_dir: str, folder: str) -> None:
    """Copy the database of an archive that another server may be using, if there is one."""
    files = Files()
    try:
        with opened_root(files, archive_dir) as root:
            database, copy = os.path.join(archive_dir, CATALOG_NAME), os.path.join(folder, CATALOG_NAME)
            copy_database(database, copy, lambda: is_held(files, root))
    except UnusableCatalogError as error:
        raise StartError(f"the catalog {database} is not usable: {error.message}") from None
