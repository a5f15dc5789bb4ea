"""Servers that share an archive in a bucket, without what a server has besides."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from obstore.store import ObjectStore

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.storage.bucket.shared import SharedBucketArchive
from tests.storage.faulty_objects import FaultyObjects


class Server:
    """One of the servers of an archive.

    Attributes:
        objects: How it reaches the store.
        number: Its number.
        may_write: Whether it may write.
        archive: Its archive.
    """

    def __init__(self, store: ObjectStore, number: int, lease_seconds: float = 0.5) -> None:
        self.objects = FaultyObjects(store)
        self.number = number
        self.may_write = True
        self.archive = SharedBucketArchive(self.objects, self._check, lambda: self.number, lease_seconds=lease_seconds)

    async def _check(self) -> None:
        if not self.may_write:
            raise UnavailableError("the test took the lease")

    def vanish(self) -> None:
        """Be gone: nothing more reaches the store, until `FaultyObjects.deliver`."""
        self.may_write = False
        self.objects.refused = lambda _operation, _name: True


@asynccontextmanager
async def opened(store: ObjectStore, number: int) -> AsyncIterator[Server]:
    """Open the archive of a server."""
    server = Server(store, number)
    await server.archive.open()
    yield server
    server.objects.recover()
    await server.archive.close()
