"""The archives in a bucket on Azure Blob Storage, as azurite emulates it, where that is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import ObjectStore

from tests.azure_store import AzureServer, azure_server
from tests.storage.test_bucket import BucketSuite, SharedSuite, Stores


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """The emulation."""
    with azure_server(tmp_path_factory.mktemp("azure")) as running:
        yield running


class OnAzure(Stores):
    @pytest.fixture(autouse=True)
    def _server(self, azure: AzureServer) -> None:
        self.server = azure

    def store_at(self, place: Path) -> ObjectStore:
        return self.server.store(str(place).strip("/"))


class TestBucketArchiveOnAzure(OnAzure, BucketSuite):
    pass


class TestSharedBucketArchiveOnAzure(OnAzure, SharedSuite):
    pass
