"""The conformance suite of `Catalog`, on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cogment_model_registry.registry.contracts import Catalog
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.testing.catalog import CatalogSuite


class TestPostgresCatalog(CatalogSuite):
    watches = 200

    @pytest.fixture(autouse=True)
    def _database(self, database: str) -> None:
        self.database = database

    @asynccontextmanager
    async def opened(self, place: Path) -> AsyncIterator[Catalog]:
        catalog = PostgresCatalog(self.database)
        await catalog.open()
        try:
            await catalog.leases.take("grpc://test")
            yield catalog
        finally:
            await catalog.close()
