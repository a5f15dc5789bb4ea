"""A server whose object store goes away under load, and comes back."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cogment_model_registry.testing.bytes import hash_of
from tests.client import Client, connected, status_of, upload
from tests.object_store import BUCKET, object_server
from tests.processes import server_process
from tests.server.test_health import NOT_SERVING, SERVING, check
from tests.torture.oracle import going_on, payload
from tests.waiting import eventually

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SIZES = (1, 70_000, 3_000_000, 17_000_000)


class Storer:
    """Stores versions into a model of its own, until it is told to stop.

    Attributes:
        acknowledged: The hashes of the versions that were acknowledged, by number.
        failed: How many were not.
    """

    def __init__(self, client: Client, model_id: str, size_bytes: int) -> None:
        self._client = client
        self._size_bytes = size_bytes
        self._is_stopped = False
        self.model_id = model_id
        self.acknowledged: dict[int, str] = {}
        self.failed = 0

    def stop(self) -> None:
        self._is_stopped = True

    async def store(self) -> None:
        await self._client.create_model(self.model_id)
        while not self._is_stopped:
            data = payload(f"{self.model_id}{len(self.acknowledged) + self.failed}", self._size_bytes)
            try:
                info = await self._client.create_version_to_the_end(upload(self.model_id, data, archived=True))
            except grpc.RpcError as error:
                if error.code() is not UNAVAILABLE:
                    raise
                self.failed += 1
            else:
                assert info.version_number not in self.acknowledged
                self.acknowledged[info.version_number] = hash_of(data)

    async def check(self, client: Client) -> None:
        """Check that the server has what was acknowledged, and nothing else but what may have been done."""
        numbers = await client.numbers(self.model_id)
        assert self.acknowledged.keys() <= {*numbers}
        assert len(numbers) <= len(self.acknowledged) + self.failed
        for number in numbers:
            data = await client.data(self.model_id, number)
            assert hash_of(data) == self.acknowledged.get(number, hash_of(data))
            assert len(data) == self._size_bytes


async def progressed(storers: list[Storer], before: list[int]) -> bool:
    """Return whether each has stored something since."""
    return all(len(storer.acknowledged) > count for storer, count in zip(storers, before, strict=True))


async def has_failed(storers: list[Storer], before: int) -> bool:
    """Return whether any was refused since."""
    return sum(storer.failed for storer in storers) > before


async def has_health(client: Client, health: int) -> bool:
    """Return whether the server has this health."""
    return await check(client) == health


async def through_an_outage(
    client: Client, storers: list[Storer], end: Callable[[], None], start: Callable[[], None]
) -> None:
    """End the store under load, look at what goes on without it, and start it again."""
    counts = [len(storer.acknowledged) for storer in storers]
    await eventually(lambda: progressed(storers, counts))
    failed = sum(storer.failed for storer in storers)
    await asyncio.to_thread(end)
    await client.publish("transient", b"published during the outage")
    assert await client.data("transient") == b"published during the outage"
    assert (
        await status_of(client.create_version_to_the_end(upload("transient", b"stored", archived=True))) is UNAVAILABLE
    )
    await eventually(lambda: has_failed(storers, failed))
    await eventually(lambda: has_health(client, NOT_SERVING))
    assert await client.data("transient") == b"published during the outage"
    await asyncio.to_thread(start)
    await eventually(lambda: has_health(client, SERVING))
    counts = [len(storer.acknowledged) for storer in storers]
    await eventually(lambda: progressed(storers, counts))


@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_lost_when_the_store_goes_away_under_load(tmp_path: Path) -> None:
    flags = [f"--archive_url=s3://{BUCKET}/models"]
    with object_server(tmp_path / "store") as store:
        with server_process(tmp_path / "catalog", *flags, environment=store.environment) as process:
            async with connected(process.port) as client:
                await client.create_model("transient")
                storers = [Storer(client, f"m{size}", size) for size in SIZES]
                async with going_on(*[storer.store() for storer in storers]):
                    await through_an_outage(client, storers, store.kill, store.start)
                    for storer in storers:
                        storer.stop()
                for storer in storers:
                    await storer.check(client)
            assert process.stop() == 0
        with server_process(tmp_path / "catalog", *flags, environment=store.environment) as process:
            async with connected(process.port) as client:
                for storer in storers:
                    await storer.check(client)
