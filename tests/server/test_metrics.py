"""The metrics of the server: a real scrape over HTTP, read by the parser of Prometheus."""

import asyncio
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

import cogment_model_registry
from cogment_model_registry.server.composition import Server
from cogment_model_registry.server.registration import State
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header, metrics_text, next_version, refused
from tests.processes import run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, eventually

BUDGET_BYTES = 8 * MIB
MAX_ITEMS = 4
PROCESS = {
    "process_cpu_seconds",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}


class Scrape:
    """The result of one scrape; a missing series counts as 0."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples: list[Sample] = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of the single series with a name and labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"cogment_model_registry_{name}" and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{name} {labels} names {len(found)} series"
        return found[0] if found else 0

    def by(self, label: str, name: str) -> Mapping[str, float]:
        """Return the values of the series with a name, by one of their labels."""
        full_name = f"cogment_model_registry_{name}"
        return {sample.labels[label]: sample.value for sample in self.samples if sample.name == full_name}


class MeteredServer:
    """A server with metrics, and a client of it."""

    def __init__(self, server: Server, client: Client) -> None:
        assert server.metrics_port
        self.port = server.port
        self.client = client
        self._metrics_port = server.metrics_port

    async def scrape(self) -> Scrape:
        return Scrape(await asyncio.to_thread(metrics_text, self._metrics_port))

    async def reaches(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has a value."""

        async def has_value() -> bool:
            return (await self.scrape())(name, **labels) == value

        await eventually(has_value)


@pytest.fixture
async def metered(tmp_path: Path) -> AsyncIterator[MeteredServer]:
    """A server with metrics, and a transient store of four versions and 8 MiB."""
    settings = Settings(metrics_port=0, cache_max_bytes=BUDGET_BYTES, cache_max_items=MAX_ITEMS, grace_seconds=0)
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        yield MeteredServer(server, client)


@asynccontextmanager
async def counting(metered: MeteredServer, name: str, expected: float, **labels: str) -> AsyncIterator[None]:
    """Return a context manager that expects a counter to rise by an amount."""
    before = (await metered.scrape())(name, **labels)
    yield
    await metered.reaches(name, before + expected, **labels)


# Reported metrics.


async def test_every_family_has_our_prefix_a_type_and_a_help_text(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    await metered.client.store("m", b"data")
    families = (await metered.scrape()).families
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.name.startswith(("cogment_model_registry_", "process_"))
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.documentation, family.name
        assert "_created" not in {sample.name.removeprefix(family.name) for sample in family.samples}


async def test_every_metric_is_served(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    await metered.client.store("m", b"data")
    names = {family.name.removeprefix("cogment_model_registry_") for family in (await metered.scrape()).families}
    of_the_process = {name for name in names if name.startswith("process_")}
    assert of_the_process == (PROCESS if sys.platform == "linux" else set())
    assert names - of_the_process == {
        "archive_operation_seconds",
        "archive_usable",
        "budget_bytes",
        "budget_items",
        "call_seconds",
        "calls",
        "catalog_usable",
        "consumer_seconds_behind",
        "consumer_versions_behind",
        "consumers",
        "consumers_held_bytes",
        "evictions",
        "held_bytes",
        "info",
        "limited_callers",
        "limited_calls",
        "load",
        "models",
        "readers",
        "received_bytes",
        "received_messages",
        "registration",
        "relayed_bytes",
        "relays_begun",
        "relays_failed",
        "relays_joined",
        "relays_unkept",
        "retention_deletions",
        "sent_bytes",
        "sent_messages",
        "slowed_seconds",
        "sync_seconds",
        "uploads",
        "version_bytes",
        "versions",
        "watchers",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the library reads them from /proc")
async def test_metrics_of_the_process_are_those_of_this_process(metered: MeteredServer) -> None:
    values = {sample.name: sample.value for sample in (await metered.scrape()).samples}
    process = psutil.Process()
    assert values["process_open_fds"] > 3
    assert values["process_max_fds"] == process.rlimit(psutil.RLIMIT_NOFILE)[0]
    assert values["process_start_time_seconds"] == pytest.approx(process.create_time(), abs=60)
    assert values["process_resident_memory_bytes"] == pytest.approx(process.memory_info().rss, rel=0.5)
    assert 0 < values["process_cpu_seconds_total"] <= sum(process.cpu_times()[:2])


async def test_idle_server_reports_its_limits_and_no_load(metered: MeteredServer) -> None:
    scrape = await metered.scrape()
    assert scrape("info", version=cogment_model_registry.__version__) == 1
    assert (scrape("budget_bytes"), scrape("budget_items")) == (BUDGET_BYTES, MAX_ITEMS)
    assert scrape("archive_usable") == scrape("catalog_usable") == 1
    for name in ("load", "held_bytes", "models", "uploads", "readers", "watchers"):
        assert scrape(name) == 0, name
    for name in ("versions", "version_bytes"):
        assert scrape.by("tier", name) == {"transient": 0, "archived": 0}
    assert scrape.by("reason", "evictions_total") == {"items": 0, "bytes": 0, "share": 0}


async def test_server_without_a_directory_reports_that_it_is_not_registered(metered: MeteredServer) -> None:
    states = (await metered.scrape()).by("state", "registration")
    assert states == {state.value: int(state is State.OFF) for state in State}


# Calls.


async def test_calls_are_counted_by_method_and_status(metered: MeteredServer) -> None:
    client = metered.client
    await client.create_model("m")
    await client.create_model("m")
    await client.store("m", b"")
    await client.publish("m", b"")
    await client.infos("m")
    await client.models()
    await client.data("m")
    await client.status("*")
    await client.version()
    with refused(grpc.StatusCode.NOT_FOUND):
        await client.data("m", 7)
    with refused(grpc.StatusCode.NOT_FOUND):
        await client.infos("missing")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await client.create_version([])
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await client.publish("m", bytes(BUDGET_BYTES + 1))
    await client.delete_model("m")
    await metered.reaches("calls_total", 1, method="DeleteModel", status="OK")
    scrape = await metered.scrape()
    counts = {
        (sample.labels["method"], sample.labels["status"]): sample.value
        for sample in scrape.samples
        if sample.name == "cogment_model_registry_calls_total"
    }
    assert counts == {
        ("CreateOrUpdateModel", "OK"): 2,
        ("CreateVersion", "OK"): 2,
        ("CreateVersion", "INVALID_ARGUMENT"): 1,
        ("CreateVersion", "RESOURCE_EXHAUSTED"): 1,
        ("RetrieveVersionInfos", "OK"): 1,
        ("RetrieveVersionInfos", "NOT_FOUND"): 1,
        ("RetrieveModels", "OK"): 1,
        ("RetrieveVersionData", "OK"): 1,
        ("RetrieveVersionData", "NOT_FOUND"): 1,
        ("Status", "OK"): 1,
        ("Version", "OK"): 1,
        ("DeleteModel", "OK"): 1,
    }
    for method, _ in counts:
        of_method = sum(count for key, count in counts.items() if key[0] == method)
        assert scrape("call_seconds_count", method=method) == of_method
        assert scrape("call_seconds_bucket", method=method, le="+Inf") == of_method
        assert scrape("call_seconds_sum", method=method) > 0


async def test_cancelled_call_is_counted_as_cancelled(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    call = metered.client.uploading()
    await call.write(header("m", 10).SerializeToString())
    await metered.reaches("uploads", 1)
    call.cancel()
    await metered.reaches("calls_total", 1, method="CreateVersion", status="CANCELLED")
    await metered.reaches("uploads", 0)


async def test_duration_of_a_call_is_that_of_its_stream(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    loop = asyncio.get_running_loop()
    call = metered.client.uploading()
    await call.write(header("m", 0).SerializeToString())
    await metered.reaches("uploads", 1)
    seen = loop.time()
    await metered.reaches("uploads", 1)
    open_seconds = loop.time() - seen
    await call.done_writing()
    await call
    await metered.reaches("call_seconds_count", 1, method="CreateVersion")
    assert (await metered.scrape())("call_seconds_sum", method="CreateVersion") >= open_seconds


async def test_bytes_and_messages_of_both_directions_are_counted(metered: MeteredServer) -> None:
    client = metered.client
    await client.create_model("m")
    chunks = [header("m", 3 * MIB), *(body(bytes(MIB)) for _ in range(3))]
    async with counting(metered, "received_messages_total", 4, method="CreateVersion"):
        size = sum(chunk.ByteSize() for chunk in chunks)
        async with counting(metered, "received_bytes_total", size, method="CreateVersion"):
            info = await client.create_version(chunks)
    await metered.reaches("sent_messages_total", 1, method="CreateVersion")
    reply = m.CreateVersionReply(version_info=info)
    await metered.reaches("sent_bytes_total", reply.ByteSize(), method="CreateVersion")

    replies = [m.RetrieveVersionDataReplyChunk(data_chunk=chunk) for chunk in await client.chunks("m", 1)]
    assert len(replies) == 2
    await metered.reaches("sent_messages_total", 2, method="RetrieveVersionData")
    scrape = await metered.scrape()
    assert scrape("sent_bytes_total", method="RetrieveVersionData") == sum(reply.ByteSize() for reply in replies)
    request = m.RetrieveVersionDataRequest(model_id="m", version_number=1)
    assert scrape("received_bytes_total", method="RetrieveVersionData") == request.ByteSize()
    assert scrape("received_messages_total", method="RetrieveVersionData") == 1


async def test_messages_of_a_part_of_a_version_are_counted(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    await metered.client.store("m", bytes(5 * MIB))
    request = lifecycle.read_request("m", -1, MIB, 3 * MIB, "")
    call = Client(metered.client.channel, lifecycle.SERVICE_NAME).streamed("ReadVersion", request)
    replies = [message async for message in call]
    assert len(replies) == 1 + 2  # the record, and chunks of up to 2 MiB
    await metered.reaches("sent_messages_total", 3, method="ReadVersion")
    scrape = await metered.scrape()
    assert scrape("sent_bytes_total", method="ReadVersion") == sum(map(len, replies))
    assert scrape("calls_total", method="ReadVersion", status="OK") == 1


# Existing models and versions.


async def test_versions_and_their_bytes_are_reported_by_tier(metered: MeteredServer) -> None:
    client = metered.client

    async def scraped() -> tuple[float, Mapping[str, float], Mapping[str, float]]:
        scrape = await metered.scrape()
        return scrape("models"), scrape.by("tier", "versions"), scrape.by("tier", "version_bytes")

    await client.create_model("m")
    await client.create_model("n")
    assert await scraped() == (2, {"transient": 0, "archived": 0}, {"transient": 0, "archived": 0})
    await client.publish("m", bytes(1000))
    await client.publish("m", bytes(200))
    assert await scraped() == (2, {"transient": 2, "archived": 0}, {"transient": 1200, "archived": 0})
    await client.store("m", bytes(30))
    await client.store("n", bytes(4))
    assert await scraped() == (2, {"transient": 2, "archived": 2}, {"transient": 1200, "archived": 34})
    for _ in range(MAX_ITEMS):
        await client.publish("n", bytes(5))
    # Versions of "n" evicted each other: "m" has its fair share.
    assert await scraped() == (2, {"transient": 4, "archived": 2}, {"transient": 1210, "archived": 34})
    await client.delete_model("m")
    assert await scraped() == (1, {"transient": 2, "archived": 1}, {"transient": 10, "archived": 4})
    await client.delete_model("n")
    assert await scraped() == (0, {"transient": 0, "archived": 0}, {"transient": 0, "archived": 0})


async def test_archived_versions_of_an_earlier_run_are_reported(tmp_path: Path) -> None:
    settings = Settings(metrics_port=0, grace_seconds=0)
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.store("m", b"12345")
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        metered = MeteredServer(server, client)
        scrape = await metered.scrape()
        assert (scrape("models"), scrape("versions", tier="archived")) == (1, 1)
        assert scrape("version_bytes", tier="archived") == 5


async def test_evictions_are_counted_by_the_bound_that_was_reached(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    for _ in range(MAX_ITEMS + 2):
        await metered.client.publish("m", b"small")
    assert (await metered.scrape()).by("reason", "evictions_total") == {"items": 2, "bytes": 0, "share": 0}
    await metered.client.publish("m", bytes(BUDGET_BYTES - 11))  # leaves space for two small ones
    assert (await metered.scrape()).by("reason", "evictions_total") == {"items": 2, "bytes": 2, "share": 0}


# Active calls.


async def test_active_watchers_are_reported(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    await metered.client.publish("m", b"")
    watches = [metered.client.watching("m") for _ in range(3)]
    for watch in watches:
        await next_version(watch)
    assert (await metered.scrape())("watchers") == 3
    for watch in watches:
        watch.cancel()
    await metered.reaches("watchers", 0)


async def test_active_uploads_hold_bytes_and_raise_the_load(metered: MeteredServer) -> None:
    await metered.client.create_model("m")
    call = metered.client.uploading()
    await call.write(header("m", BUDGET_BYTES // 2).SerializeToString())
    await metered.reaches("uploads", 1)
    scrape = await metered.scrape()
    assert scrape("held_bytes") == BUDGET_BYTES // 2
    assert scrape("load") == 127
    assert scrape("versions", tier="transient") == 0
    await call.write(body(bytes(MIB)).SerializeToString())
    await metered.reaches("version_bytes", MIB, tier="transient")
    assert (await metered.scrape())("held_bytes") == BUDGET_BYTES // 2
    call.cancel()
    for name in ("uploads", "held_bytes", "load"):
        await metered.reaches(name, 0)
    await metered.reaches("version_bytes", 0, tier="transient")


async def test_active_readers_hold_the_bytes_of_their_versions(tmp_path: Path) -> None:
    size = 32 * MIB  # more than all buffers on the path hold
    settings = Settings(metrics_port=0, cache_max_bytes=2 * size, grace_seconds=0)
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        metered = MeteredServer(server, client)
        await client.create_model("m")
        await client.publish("m", bytes(size))
        assert (await metered.scrape())("held_bytes") == 0
        request = m.RetrieveVersionDataRequest(model_id="m", version_number=1)
        call = client.streamed("RetrieveVersionData", request)
        await call.read()
        scrape = await metered.scrape()
        assert (scrape("readers"), scrape("held_bytes"), scrape("load")) == (1, size, 127)
        call.cancel()
        for name in ("readers", "held_bytes", "load"):
            await metered.reaches(name, 0)


# The archive.


async def test_store_syncs_files_and_directories_and_a_publish_syncs_nothing(metered: MeteredServer) -> None:
    client = metered.client
    await client.create_model("m")
    await client.publish("m", b"")  # with the first number, a block of numbers is persisted
    created = await metered.scrape()
    for _ in range(3):
        await client.publish("m", b"transient")
    published = await metered.scrape()
    for kind in ("file", "directory"):
        assert published("sync_seconds_count", kind=kind) == created("sync_seconds_count", kind=kind)
    await client.store("m", b"archived")
    stored = await metered.scrape()
    assert stored("sync_seconds_count", kind="file") - published("sync_seconds_count", kind="file") == 2
    assert stored("sync_seconds_count", kind="directory") - published("sync_seconds_count", kind="directory") >= 1
    for kind in ("file", "directory"):
        assert stored("sync_seconds_sum", kind=kind) > published("sync_seconds_sum", kind=kind)


async def test_operations_on_the_archive_are_timed(metered: MeteredServer) -> None:
    client = metered.client
    await client.create_model("m")
    await client.publish("m", b"")
    before = await metered.scrape()
    await client.publish("m", b"transient")
    assert (await metered.scrape()).by("operation", "archive_operation_seconds_count") == before.by(
        "operation", "archive_operation_seconds_count"
    )
    await client.store("m", b"archived")
    await client.data("m")
    await client.delete_model("m")
    after = await metered.scrape()
    counts = after.by("operation", "archive_operation_seconds_count")
    seconds = after.by("operation", "archive_operation_seconds_sum")
    assert counts.keys() >= {"create_upload", "write", "sync_file", "commit", "open_data", "read", "begin_removal"}
    for operation in counts:
        assert counts[operation] >= before("archive_operation_seconds_count", operation=operation)
        assert seconds[operation] > 0, operation
    assert (counts["commit"], counts["finish_removal"], counts["write_model"]) == (1, 1, 1)
    assert "other" not in counts


# The port.


async def test_metrics_are_not_served_unless_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert server.metrics_port is None


def test_process_without_metrics_listens_on_one_port(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        assert not [line for line in server.lines if "metrics_port" in line]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "*"])
def test_metrics_are_served_on_the_same_host_and_their_port_is_logged(tmp_path: Path, host: str) -> None:
    with server_process(tmp_path, "--metrics_port=0", f"--host={host}") as server:
        port = int(server.wait_for_line(r"metrics_port=(\d+)")[1])
        assert port != server.port
        assert Scrape(metrics_text(port))("info") == 1
        assert server.stop() == 0
        with pytest.raises(urllib.error.URLError):
            metrics_text(port)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_metrics_are_served_on_ipv6(tmp_path: Path) -> None:
    with server_process(tmp_path, "--metrics_port=0", "--host=::1") as server:
        port = int(server.wait_for_line(r"metrics_port=(\d+)")[1])
        with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=PATIENCE_SECONDS) as reply:
            assert Scrape(reply.read().decode())("info") == 1


async def test_port_is_closed_when_the_server_has_stopped(tmp_path: Path) -> None:
    async with serving(tmp_path, Settings(metrics_port=0, grace_seconds=0)) as server:
        port = server.metrics_port
        assert port
        assert "cogment_model_registry_info" in await asyncio.to_thread(metrics_text, port)
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(metrics_text, port)


def test_idle_connection_to_the_metrics_port_does_not_delay_a_stop(tmp_path: Path) -> None:
    with server_process(tmp_path, "--metrics_port=0") as server:
        port = int(server.wait_for_line(r"metrics_port=(\d+)")[1])
        with socket.create_connection(("127.0.0.1", port)):
            metrics_text(port)  # made after that connection, so the server has accepted that one too
            assert server.stop() == 0


def test_metrics_port_in_use_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_cogment(
            *("services", "model_registry", "--port=0", "--host=127.0.0.1"),
            *(f"--metrics_port={port}", f"--archive_dir={tmp_path}"),
        )
    assert (result.returncode, result.stdout) == (3, "")
    [line] = result.stderr.splitlines()
    assert f"metrics_port {port}" in line


def test_metrics_cannot_use_the_port_of_the_calls(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run_cogment(
        *("services", "model_registry", f"--port={port}", "--host=127.0.0.1"),
        *(f"--metrics_port={port}", f"--archive_dir={tmp_path}"),
    )
    assert (result.returncode, result.stdout) == (3, "")
    [line] = result.stderr.splitlines()
    assert str(port) in line
