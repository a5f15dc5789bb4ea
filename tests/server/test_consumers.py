"""ReportConsumer and ListConsumers, over a real channel."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import consumers as m
from cogment_model_registry.wire import lifecycle as wire
from tests.client import Client, connected, refused
from tests.processes import server_process
from tests.waiting import PATIENCE_SECONDS, eventually

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED, PRECONDITION = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION


class Consumers:
    """The calls for consumers, without retries or checks."""

    def __init__(self, client: Client) -> None:
        self._client = Client(client.channel, wire.SERVICE_NAME)

    async def report(self, consumer_id: str, number: int = 1, state: Any = "active", **fields: Any) -> Consumer:
        consumer = Consumer(fields.pop("model_id", "m"), consumer_id, number, state, **fields)
        request = m.ReportConsumerRequest(consumer=m.consumer_message(consumer))
        return m.consumer_from_message((await self.send(request)).consumer)

    async def send(self, request: m.ReportConsumerRequest) -> m.ReportConsumerReply:
        reply: m.ReportConsumerReply = await self._client.unary("ReportConsumer", request, m.ReportConsumerReply)
        return reply

    async def list(self, model_id: str = "m", **fields: Any) -> m.ListConsumersReply:
        request = m.ListConsumersRequest(model_id=model_id, **fields)
        reply: m.ListConsumersReply = await self._client.unary("ListConsumers", request, m.ListConsumersReply)
        return reply

    async def states(self) -> dict[str, str]:
        listed = (await self.list()).consumers
        return {each.consumer_id: m.consumer_from_message(each).state for each in listed}

    async def delete(self, number: int) -> None:
        request = wire.DeleteVersionRequest(version=wire.version_ref("m", number))
        await self._client.unary("DeleteVersion", request, wire.DeleteVersionReply)


@pytest.fixture
async def consumers(client: Client) -> Consumers:
    """The calls on a server with the model ``m``."""
    await client.create_model("m")
    return Consumers(client)


async def test_a_report_is_listed_with_the_lag_that_the_registry_knows(client: Client, consumers: Consumers) -> None:
    for data in (b"1", b"2", b"3"):
        await client.publish("m", data)
    labels = {"host": "node-1", "role": "actor"}
    reported = await consumers.report("actor-7", 1, labels=labels, held_versions=(1,), versions_behind=99)
    assert (reported.versions_behind, reported.ttl_seconds, reported.held_versions) == (2, 30, (1,))
    assert reported.labels == labels
    assert 0 < reported.seconds_behind < PATIENCE_SECONDS
    assert reported.reported_ns > 0
    [listed] = (await consumers.list()).consumers
    again = m.consumer_from_message(listed)
    assert again.seconds_behind >= reported.seconds_behind
    assert again.reported_ns == reported.reported_ns
    failed = await consumers.report("actor-7", 1, "failed", error="no memory")
    assert (failed.state, failed.error, failed.held_versions) == ("failed", "no memory", ())


async def test_consumers_are_listed_by_filter_in_pages(client: Client, consumers: Consumers) -> None:
    await client.publish("m", b"1")
    for position in range(5):
        await consumers.report(f"actor-{position}", 1, labels={"even": str(position % 2 == 0)})
    pages, token = [], ""
    while True:
        reply = await consumers.list(page_size=2, page_token=token, filter="labels.even = True")
        pages.append([each.consumer_id for each in reply.consumers])
        token = reply.next_page_token
        if not token:
            break
    assert pages == [["actor-0", "actor-2"], ["actor-4"]]
    assert [each.consumer_id for each in (await consumers.list("", page_size=1)).consumers] == ["actor-0"]
    token = (await consumers.list(page_size=1)).next_page_token
    for wrong in ({"page_token": "x"}, {"page_token": token, "filter": "state = active"}, {"filter": "nothing = 1"}):
        with refused(INVALID):
            await consumers.list(**wrong)


async def test_malformed_reports_and_filters_are_refused(client: Client, consumers: Consumers) -> None:
    await client.publish("m", b"1")
    with refused(INVALID, "runs no version"):
        await consumers.report("a", 0)
    with refused(INVALID, 'consumer_id "a/b"'):
        await consumers.report("a/b")
    with refused(NOT_FOUND):
        await consumers.report("a", model_id="none")
    with refused(NOT_FOUND):
        await consumers.list("none")
    with refused(NOT_FOUND, "no version 9"):
        await consumers.report("a", held_versions=(9,))
    unknown = m.ReportConsumerRequest()
    unknown.consumer.MergeFromString(b"\x0a\x01a\x12\x01m\x20\x07")  # state 7
    with refused(INVALID, "state 7 is unknown"):
        await consumers.send(unknown)
    assert not (await consumers.list()).consumers


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[tuple[Client, Consumers]]:
    """A server with low limits for consumers and for what they hold."""
    settings = Settings(
        cache_max_bytes=100_000,
        cache_max_items=3,
        consumers_max=2,
        consumers_held_max_bytes=60_000,
        grace_seconds=0,
        retention_seconds=0,
    )
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        await client.create_model("m")
        yield client, Consumers(client)


async def test_consumers_and_their_holds_are_bounded(small: tuple[Client, Consumers]) -> None:
    client, consumers = small
    await client.publish("m", bytes(50_000))
    await consumers.report("a", 1, held_versions=(1,))
    with refused(EXHAUSTED, "nor by versions that consumers hold (50000)"):
        await client.publish("m", bytes(60_000))
    for _ in range(5):
        await client.publish("m", bytes(20_000))
    assert await client.numbers("m") == [1, 5, 6]
    with refused(EXHAUSTED, "consumers hold 50000 of the 60000 bytes that consumers_held_max_bytes allows"):
        await consumers.report("a", 5, held_versions=(1, 5))
    [listed] = (await consumers.list()).consumers
    assert (listed.version_number, [*listed.held_versions]) == (1, [1])
    await consumers.report("b", 6)
    with refused(EXHAUSTED, "consumers_max"):
        await consumers.report("c", 6)
    with refused(PRECONDITION, 'held by consumer "a"'):
        await consumers.delete(1)


async def test_a_consumer_that_stops_reporting_is_gone_and_its_hold_ends(client: Client, consumers: Consumers) -> None:
    await client.store("m", b"1")
    await client.store("m", b"2")
    await consumers.report("a", 1, ttl_seconds=1, held_versions=(1,))

    async def is_gone() -> bool:
        return await consumers.states() == {"a": "gone"}

    await eventually(is_gone)
    await consumers.delete(1)
    assert (await consumers.report("a", 2)).state == "active"
    assert (await consumers.report("a", 2, "gone")).state == "gone"


async def test_metrics_count_consumers_and_show_the_largest_lag(tmp_path: Path) -> None:
    settings = Settings(metrics_port=0, cache_max_bytes=MIB, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        consumers = Consumers(client)
        for model_id in ("m", "without consumers"):
            await client.create_model(model_id)
            for data in (b"1", b"2", b"3"):
                await client.publish(model_id, data)
        await consumers.report("a", 1, held_versions=(1,))
        await consumers.report("b", 2)
        await consumers.report("c", 0, "loading")

        def scrape() -> str:
            url = f"http://127.0.0.1:{server.metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as reply:
                return str(reply.read().decode())

        text = await asyncio.to_thread(scrape)
    lines = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    name = "cogment_model_registry_consumer"
    counts = {key: value for key, value in lines.items() if key.startswith(f"{name}s{{")}
    states = {"unknown": 0.0, "loading": 1.0, "active": 2.0, "failed": 0.0, "gone": 0.0}
    assert counts == {f'{name}s{{model_id="m",state="{state}"}}': count for state, count in states.items()}
    assert lines[f'{name}_versions_behind{{model_id="m"}}'] == 2.0
    assert lines[f'{name}_seconds_behind{{model_id="m"}}'] > 0
    assert lines[f"{name}s_held_bytes"] == 1.0


async def test_failed_and_gone_consumers_are_logged(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive", "--log_format=json") as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            await client.publish("m", b"1")
            consumers = Consumers(client)
            await consumers.report("a", 1, "failed", error="no\nmemory")
            await consumers.report("a", 1, "failed", error="no\nmemory")
            await consumers.report("a", 1, "gone")
        server.stop()
        events = [line for line in server.lines if '"consumer ' in line]
    assert len(events) == 2
    assert '"consumer failed"' in events[0]
    assert '"consumer gone"' in events[1]
