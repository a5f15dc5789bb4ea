"""The archive and the catalog of several servers belong to each other, from the first time that they are used together.

The catalog has the id of its archive, and the archive the id of its catalog, in an object that is created once. An
archive without that object belongs to no catalog yet: it is new, or only earlier releases have used it.

All that can be refused is refused before anything is written, so an address with a wrong prefix leaves nothing there.
Servers with different databases that begin to use one archive at the same time compete for its object: the catalog of
the others stays unbound. Servers with one database and different archives take turns.
"""

from collections.abc import Awaitable, Callable

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from cogment_model_registry.storage.postgres.binding import Binding, refusal


async def _accept() -> None:
    """Refuse nothing."""


async def open_bound(
    archive: SharedBucketArchive,
    binding: Binding,
    url: str,
    check: Callable[[], Awaitable[None]] = _accept,
    *,
    replaces_catalog: bool = False,
) -> None:
    """Open an archive with its catalog.

    Args:
        archive: The archive; not open yet.
        binding: The binding of the catalog.
        url: The address of the archive, for messages.
        check: Refuses the archive for other reasons; awaited before anything is written.
        replaces_catalog: Whether the catalog takes the place of another one to which the archive belongs.

    Raises:
        StartError: One of them belongs to another one, or the archive cannot be used.
        UnavailableError: The object store or PostgreSQL does not answer.
    """
    async with binding.deciding() as bound:
        archive_id = await archive.find_id()
        if bound.archive_id and archive_id != bound.archive_id:
            found = f"id {archive_id}" if archive_id else "which no server has used"
            raise refusal(bound.archive_id, f"archive {url} ({found})")
        catalog_id = await archive.find_catalog()
        if catalog_id and catalog_id != bound.catalog_id and not replaces_catalog:
            raise _belongs(url, catalog_id, bound.catalog_id)
        await check()
        await archive.open()
        catalog_id = await archive.bind_catalog(bound.catalog_id, replaces=replaces_catalog)
        if catalog_id != bound.catalog_id:
            raise _belongs(url, catalog_id, bound.catalog_id)
        await binding.bind(archive.id, url)


def _belongs(url: str, catalog_id: str, other_id: str) -> StartError:
    return StartError(
        f"archive {url} belongs to another catalog (id {catalog_id}) than this one (id {other_id}): use the address of "
        "that database; if it is lost, stop all servers, and fill this one by "
        f"cogment archive share --replace_catalog {url} CATALOG_URL"
    )
