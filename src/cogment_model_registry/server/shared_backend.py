"""The storage of one of several servers: a catalog in PostgreSQL and a bucket that they share, and each one's memory.

Loaded only when it is asked for.
"""

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import sample

from cogment_model_registry.errors import StartError, UnavailableError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.consumers import FindElsewhere
from cogment_model_registry.server.membership import Membership
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.server.peer_consumers import PeerConsumers
from cogment_model_registry.server.peers import peers_of
from cogment_model_registry.server.relays import RelayingStore
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.binding import open_bound
from cogment_model_registry.storage.bucket.opening import open_objects
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.storage.postgres.translation import NoLeaseError


@dataclass(frozen=True, slots=True)
class SharedStorage:
    """What several servers share, as one of them has it open.

    Attributes:
        archive: Where archived versions live.
        transient: Where transient versions live.
        catalog: What exists.
        membership: The part of this server among the others; not joined yet.
        find_consumers: Finds the consumers that report to the others.
        replicas: How many servers are to have a transient version before its publish is acknowledged.
    """

    archive: SharedBucketArchive
    transient: RelayingStore
    catalog: PostgresCatalog
    membership: Membership
    find_consumers: FindElsewhere
    replicas: int


@asynccontextmanager
async def opened_shared(settings: Settings, metrics: Metrics, hashing: Executor) -> AsyncIterator[SharedStorage]:
    """Open what the settings name; a context manager.

    Args:
        settings: The settings, with a `catalog_url` and an `archive_url`.
        metrics: Receives the operations of the archive and the queries of the catalog.
        hashing: Where to hash.

    Raises:
        StartError: The catalog or the archive is not usable.
    """
    async with AsyncExitStack() as stack:
        peers = await stack.enter_async_context(peers_of(settings))
        catalog = PostgresCatalog(settings.catalog_url, observe=metrics.observe_query)
        stack.push_async_callback(catalog.close)
        await catalog.open()
        leases = catalog.leases

        async def require_lease() -> None:
            if not leases.server:
                raise NoLeaseError

        async def locate(info: VersionInfo) -> Sequence[str]:
            holders = await leases.locate(info)
            return [holder.endpoint for holder in sample(holders, len(holders))]  # those who ask spread over them

        objects = open_objects(settings.archive_url, metrics.observe_archive)
        archive = SharedBucketArchive(objects, require_lease, lambda: leases.server)
        stack.push_async_callback(archive.close)
        await _open_bound(settings, catalog, archive)
        local = MemoryTransientStore(settings.cache_max_items, settings.cache_max_bytes, hashing)
        transient = await stack.enter_async_context(
            RelayingStore(local, locate, peers.open_stream, leases.hold, metrics.relays)
        )
        membership = Membership(catalog, archive, transient)
        stack.push_async_callback(membership.leave)

        async def others() -> Sequence[str]:
            return [lease.endpoint for lease in await leases.servers() if lease.server != leases.server]

        consumers = PeerConsumers(peers, others)
        yield SharedStorage(archive, transient, catalog, membership, consumers.find, settings.transient_replicas)


async def _open_bound(settings: Settings, catalog: PostgresCatalog, archive: SharedBucketArchive) -> None:
    """Open the archive, unless it is not the one of the catalog, or the catalog knows nothing of it.

    Nothing is known of the archive of a single server, or if the catalog was lost.

    Raises:
        StartError: One of these, or one of them cannot be used.
    """

    async def check_known() -> None:
        if not await catalog.list_models(0, 1) and await archive.has_models():
            raise StartError(
                f"archive {settings.archive_url} has models, and the catalog has none: make it known by "
                f"cogment archive share {settings.archive_url} CATALOG_URL"
            )

    try:
        await open_bound(archive, catalog.binding, settings.archive_url, check_known)
    except UnavailableError as error:
        raise StartError(error.message) from error
