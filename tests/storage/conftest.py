"""Stores, and servers that share an archive in one."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore, ObjectStore

from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.bucket import probe
from tests.object_store import S3Server
from tests.storage.shared_servers import Server, opened


@pytest.fixture
def brief_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try a store once at each start, not three times: that would be most of what a test asks of it."""
    monkeypatch.setattr(probe, "_RACES", 1)


@pytest.fixture(params=["memory", "local path", "S3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, brief_probe: None) -> Iterator[ObjectStore]:
    """An empty store."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "local path":
        yield LocalStore(tmp_path / "bucket", mkdir=True)
    else:
        server = request.getfixturevalue("object_store")
        assert isinstance(server, S3Server)
        yield server.store(str(tmp_path).strip("/"))


@pytest.fixture
async def pair(bucket: ObjectStore) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers, and the model ``m``."""
    async with opened(bucket, 1) as first, opened(bucket, 2) as second:
        await first.archive.write_model(ModelInfo("m"))
        yield first, second
