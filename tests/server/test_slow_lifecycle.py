"""A promotion or a deletion on a slow disk delays no other call."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected, next_version
from tests.server.test_model_lifecycle import Lifecycle
from tests.waiting import PATIENCE_SECONDS, until


class SlowFiles(Files):
    """Real files, whose syncs block between `hold` and `release`."""

    def __init__(self) -> None:
        self.waiting = 0
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        """Block each sync from now on."""
        self._free.clear()

    def release(self) -> None:
        """Let all syncs continue."""
        self._free.set()

    def _wait(self) -> None:
        self.waiting += 1
        assert self._free.wait(PATIENCE_SECONDS)
        self.waiting -= 1

    def sync_file(self, file: int) -> None:
        self._wait()

    def sync_directory(self, directory: int) -> None:
        self._wait()


@asynccontextmanager
async def slow_server(place: Path) -> AsyncIterator[tuple[SlowFiles, Client]]:
    files = SlowFiles()
    async with serving(place, files=files) as server, connected(server.port) as client:
        try:
            yield files, client
        finally:
            files.release()


async def publish_and_watch(client: Client, model_id: str, watch: Any) -> None:
    """Publish some versions, and wait until a watcher has received each of them."""
    for number in range(20):
        info = await client.publish(model_id, b"%d" % number)
        assert await next_version(watch) == info
        assert await client.data(model_id) == b"%d" % number


@pytest.mark.parametrize("model_id", ["m", "other"])
async def test_publishes_and_watches_continue_while_a_promotion_waits_for_the_disk(
    tmp_path: Path, model_id: str
) -> None:
    async with slow_server(tmp_path) as (files, client):
        for each in ("m", "other"):
            await client.create_model(each)
        first = await client.publish("m", b"x" * 1000)
        await client.publish("other", b"x")
        watch = client.watching(model_id)
        await next_version(watch)
        files.hold()
        promoting = asyncio.create_task(Lifecycle(client).promote(1))
        await until(lambda: files.waiting == 1)
        await publish_and_watch(client, model_id, watch)
        assert (await client.infos("m", 1)).version_infos[0] == first
        assert await client.data("m", 1) == b"x" * 1000
        assert not promoting.done()
        files.release()
        assert (await promoting).info.archived


async def test_publishes_and_watches_continue_while_a_deletion_waits_for_the_disk(tmp_path: Path) -> None:
    async with slow_server(tmp_path) as (files, client):
        for model_id in ("m", "other"):
            await client.create_model(model_id)
            await client.store(model_id, b"x")
        watch = client.watching("other")
        await next_version(watch)
        files.hold()
        deleting = asyncio.create_task(Lifecycle(client).delete(1))
        await until(lambda: files.waiting == 1)
        await publish_and_watch(client, "other", watch)
        assert not deleting.done()
        files.release()
        await deleting
