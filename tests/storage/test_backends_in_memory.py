"""The backends in memory, which the tests of the rules use, pass the conformance suites."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cogment_model_registry.registry.contracts import Archive, Catalog
from cogment_model_registry.testing.archive import ArchiveSuite
from cogment_model_registry.testing.catalog import CatalogSuite
from cogment_model_registry.testing.memory_archive import MemoryArchive, StoredModel
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables


class TestMemoryArchive(ArchiveSuite):
    @pytest.fixture(autouse=True)
    def shelves(self) -> None:
        self._shelves: defaultdict[Path, dict[str, StoredModel]] = defaultdict(dict)

    def make(self, place: Path) -> Archive:
        return MemoryArchive(self._shelves[place])


class TestMemoryCatalog(CatalogSuite):
    @pytest.fixture(autouse=True)
    def databases(self) -> None:
        self._tables: defaultdict[Path, Tables] = defaultdict(Tables)

    @asynccontextmanager
    async def opened(self, place: Path) -> AsyncIterator[Catalog]:
        catalog = MemoryCatalog(self._tables[place])
        await catalog.open()
        yield catalog
        await catalog.close()
