"""The standard health service, called as orchestrators and load balancers call it."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, metrics_text, refused
from tests.processes import server_process
from tests.server.under_way import begin_to_stop, begin_upload
from tests.waiting import PATIENCE_SECONDS, eventually

NAMES = ["", *m.SERVICE_NAMES]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def check(client: Client, name: str = "") -> int:
    """Return the health of a service."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_SECONDS)
    return int(reply.status)


def watching(client: Client, name: str = "") -> Any:
    """Return a call that streams the health of a service."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_SECONDS)


async def next_health(watch: Any) -> int:
    """Return the next status of a watch."""
    reply = await watch.read()
    assert reply is not grpc.aio.EOF, await watch.code()
    return int(reply.status)


async def rest_of(watch: Any) -> set[int]:
    """Return all further statuses of a watch."""
    statuses = set()
    while (reply := await watch.read()) is not grpc.aio.EOF:
        statuses.add(int(reply.status))
    return statuses


@pytest.mark.parametrize("name", NAMES)
async def test_server_and_both_its_services_are_serving(client: Client, name: str) -> None:
    assert await check(client, name) == SERVING


@pytest.mark.parametrize("name", ["unknown", "cogmentAPI", "cogment.modelregistrysp", "grpc.health.v1.Health.", "\n"])
async def test_unknown_service_is_not_found(client: Client, name: str) -> None:
    with refused(grpc.StatusCode.NOT_FOUND):
        await check(client, name)


async def test_watch_of_an_unknown_service_reports_it_and_continues(client: Client) -> None:
    watch = watching(client, "unknown")
    assert await next_health(watch) == SERVICE_UNKNOWN
    assert await check(client) == SERVING
    assert not watch.done()
    watch.cancel()


async def test_watch_reports_the_health_at_once(client: Client) -> None:
    watches = [watching(client, name) for name in NAMES]
    assert [await next_health(watch) for watch in watches] == [SERVING] * len(NAMES)
    for watch in watches:
        watch.cancel()


async def test_watches_are_notified_of_a_stop_and_do_not_delay_it(tmp_path: Path) -> None:
    with server_process(tmp_path, "--grace_seconds=600") as server:
        async with connected(server.port) as client:
            watches = [watching(client, name) for name in NAMES * 3]
            unknown = watching(client, "unknown")
            assert [await next_health(watch) for watch in watches] == [SERVING] * len(watches)
            assert await next_health(unknown) == SERVICE_UNKNOWN
            server.signal(signal.SIGTERM)
            assert [await next_health(watch) for watch in watches] == [NOT_SERVING] * len(watches)
            assert await asyncio.to_thread(server.wait) == 0, "before the end of the grace"
            assert "Traceback" not in "\n".join(server.lines)


async def test_watches_are_notified_at_once_while_a_transfer_delays_the_stop(tmp_path: Path) -> None:
    with server_process(tmp_path, "--grace_seconds=600") as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            watch = watching(client)
            assert await next_health(watch) == SERVING
            call = await begin_upload(client, b"x", 2)
            await begin_to_stop(server)
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await next_health(watch) == NOT_SERVING
                assert await rest_of(watch) <= {NOT_SERVING}
            assert server.is_running
            call.cancel()
            assert await asyncio.to_thread(server.wait) == 0


class FailingFiles(Files):
    """Operations on real files, with a disk that fails one sync of a file on request."""

    fails = False

    def sync_file(self, file: int) -> None:
        if self.fails:
            self.fails = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_file(file)


async def test_server_whose_database_fails_reports_it_and_continues(tmp_path: Path) -> None:
    def fail(_connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    settings = Settings(metrics_port=0, grace_seconds=0)
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        await client.create_model("m")
        assert await client.status("catalog") == {"catalog": "ok"}
        with pytest.raises(UnavailableError):
            await server._backends.catalog._index._database.change(fail)  # type: ignore[attr-defined] # the local one
        assert await client.status("catalog") == {"catalog": "the catalog failed: disk I/O error"}
        text = await asyncio.to_thread(metrics_text, server.metrics_port or 0)
        assert "cogment_model_registry_catalog_usable 0.0" in text
        assert await check(client) == SERVING
        await client.publish("m", b"published")
        await client.store("m", b"stored")
        assert await client.data("m") == b"stored"


async def test_server_whose_archive_refuses_writes_is_not_serving(tmp_path: Path) -> None:
    files = FailingFiles()
    settings = Settings(metrics_port=0, grace_seconds=0)
    async with serving(tmp_path, settings, files) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.store("m", b"sound")
        watches = [watching(client, name) for name in NAMES]
        assert [await next_health(watch) for watch in watches] == [SERVING] * len(NAMES)
        assert await client.status("overall_load", "archive") == {"overall_load": "0", "archive": "ok"}

        files.fails = True
        with refused(grpc.StatusCode.UNAVAILABLE):
            await client.store("m", b"lost")

        status = await client.status("overall_load", "archive")
        assert status["overall_load"] == "255"
        assert os.strerror(errno.EIO) in status["archive"]
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [await next_health(watch) for watch in watches] == [NOT_SERVING] * len(NAMES)
        assert [await check(client, name) for name in NAMES] == [NOT_SERVING] * len(NAMES)

        # The disk works again, but what it lost is unknown: a restart is needed.
        with refused(grpc.StatusCode.UNAVAILABLE, "restart"):
            await client.store("m", b"refused")
        assert await client.data("m") == b"sound"
        assert await check(client) == NOT_SERVING
        for watch in watches:
            watch.cancel()
    async with serving(tmp_path) as server, connected(server.port) as client:
        assert await check(client) == SERVING
        assert await client.status("overall_load", "archive") == {"overall_load": "0", "archive": "ok"}
        assert (await client.store("m", b"stored")).version_number >= 2


async def test_health_is_answered_while_many_calls_are_in_progress(server: Server, client: Client) -> None:
    await client.create_model("m")
    calls = [client.watching("m") for _ in range(200)]

    async def all_watch() -> bool:
        return await client.status("watchers") == {"watchers": "200"}

    await eventually(all_watch)
    assert await check(client) == SERVING
    for call in calls:
        call.cancel()


@pytest.mark.skipif(
    not shutil.which("grpcurl", path=Path(sys.executable).parent), reason="grpcurl is not built for this machine"
)
@pytest.mark.parametrize("name", NAMES)
def test_grpcurl_calls_health_through_reflection(tmp_path: Path, name: str) -> None:
    with server_process(tmp_path, "--grpc_reflection") as server:
        program = str(Path(sys.executable).parent / "grpcurl")
        address = f"127.0.0.1:{server.port}"
        request = json.dumps({"service": name})
        command = [program, "-plaintext", "-d", request, address, "grpc.health.v1.Health/Check"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        assert json.loads(result.stdout) == {"status": "SERVING"}
