"""The audit log when its disk fails: no change goes unnoticed, and what was cut does not spoil what follows."""

import asyncio
import datetime
import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cogment_model_registry import ModelRegistry, aio, errors
from cogment_model_registry.records.retention import RetentionRule
from cogment_model_registry.serving import daily_lines
from cogment_model_registry.serving.daily_lines import DailyLines
from tests.client import connected, metrics_text
from tests.mounts import mounted
from tests.processes import server_process
from tests.server.test_audit_log import MODEL, audited, settings_of
from tests.waiting import eventually, until


class Disk:
    """What the system does with writes.

    Attributes:
        room_bytes: How many bytes it takes before it is full; None for any number.
        is_broken: Whether syncs fail.
        works: Until when writes hang; None if they do not.
    """

    def __init__(self) -> None:
        self.room_bytes: int | None = None
        self.is_broken = False
        self.works: threading.Event | None = None

    def write(self, file: int, data: bytes) -> int:
        if self.works is not None:
            self.works.wait()
        if self.room_bytes is None:
            return os.write(file, data)
        if not self.room_bytes:
            raise OSError(28, "No space left on device")
        written = os.write(file, data[: self.room_bytes])
        self.room_bytes -= written
        return written

    def sync(self, file: int) -> None:
        if self.is_broken:
            raise OSError(5, "Input/output error")
        os.fsync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk of the audit log alone."""
    disk = Disk()
    real = mock.Mock(wraps=os)
    real.write, real.path = disk.write, os.path
    for name in ("O_RDWR", "O_APPEND", "O_CREAT", "O_CLOEXEC", "O_RDONLY", "O_DIRECTORY"):
        setattr(real, name, getattr(os, name))
    monkeypatch.setattr(daily_lines, "os", real)
    monkeypatch.setattr(daily_lines, "_synced", disk.sync)
    return disk


def lines_of(directory: Path) -> list[str]:
    """Return all lines of all files, in the order of days."""
    files = sorted(directory.glob("*.jsonl"))
    return [line for file in files for line in file.read_text().split("\n")]


async def test_changes_are_refused_while_the_log_cannot_be_written_and_not_after_that(
    tmp_path: Path, disk: Disk
) -> None:
    settings = settings_of(tmp_path, metrics_port=0)
    async with audited(tmp_path, settings) as of, connected(of.server.port) as client:
        await of.registry.create_model(MODEL)
        disk.room_bytes = 20
        async with aio.ModelRegistry(f"grpc://127.0.0.1:{of.server.port}", retry_seconds=0) as registry:
            with pytest.raises(errors.UnavailableError, match="the change was made, but the audit log cannot be"):
                await registry.publish(MODEL, b"1")
            for change in (
                registry.publish(MODEL, b"2"),
                registry.set_alias(MODEL, "a", 1),
                registry.delete_model(MODEL),
            ):
                with pytest.raises(errors.UnavailableError, match=r"cannot be written \(No space left on device\)"):
                    await change
            assert await registry.retrieve(MODEL, 1) == b"1", "reading goes on"
            assert await client.status("audit_log") == {"audit_log": "No space left on device"}
            await eventually(lambda: unhealthy(client.channel))
            assert of.server.metrics_port is not None
            text = await asyncio.to_thread(metrics_text, of.server.metrics_port)
            assert "cogment_model_registry_audit_usable 0.0" in text
            assert "cogment_model_registry_audit_failures_total 1.0" in text
            assert len(lines_of(tmp_path / "audit")) == 2, "what was cut was removed"
            disk.room_bytes = None
            await registry_works_again(registry)
        changes = [(line["change"], line.get("version_number")) for line in of.lines()]
        assert changes[:3] == [("model created", None), ("version created", 1), ("version created", 2)]
        assert await client.status("audit_log") == {"audit_log": "ok"}


async def unhealthy(channel: grpc.aio.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest())
    return bool(reply.status == health_pb2.HealthCheckResponse.NOT_SERVING)


async def registry_works_again(registry: aio.ModelRegistry) -> None:
    """Publish as soon as that is not refused."""

    async def is_published() -> bool:
        try:
            await registry.publish(MODEL, b"2")
        except errors.UnavailableError:
            return False
        return True

    await eventually(is_published)


async def test_a_change_whose_line_does_not_reach_the_disk_is_not_acknowledged(tmp_path: Path, disk: Disk) -> None:
    async with audited(tmp_path) as of:
        await of.registry.store(MODEL, b"1")
        disk.is_broken = True
        async with aio.ModelRegistry(f"grpc://127.0.0.1:{of.server.port}", retry_seconds=0) as registry:
            with pytest.raises(errors.UnavailableError, match="Input/output error"):
                await registry.store(MODEL, b"2")
            disk.is_broken = False
            await registry_works_again(registry)
        stored = [line["version_number"] for line in of.lines() if line["change"] == "version created"]
        assert stored == [1, 2, 3], "each line is there once"


async def test_only_durable_changes_wait_for_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(daily_lines, "_SYNC_SECONDS", 1e9)
    monkeypatch.setattr(daily_lines, "_synced", synced.append)
    async with audited(tmp_path) as of:
        await of.registry.create_model(MODEL)
        for change, syncs in (
            (of.registry.publish(MODEL, b"1"), 0),
            (of.registry.publish(MODEL, b"2"), 0),
            (of.registry.update_version(MODEL, 1, tags={"a": "b"}), 0),
            (of.registry.delete_version(MODEL, 1), 0),
            (of.registry.store(MODEL, b"3"), 1),
            (of.registry.promote(MODEL, 2), 1),
            (of.registry.set_alias(MODEL, "a", 2), 1),
            (of.registry.delete_version(MODEL, 3), 1),
            (of.registry.update_model(MODEL, tags={"a": "b"}), 1),
            (of.registry.delete_model(MODEL), 1),
        ):
            before = len(synced)
            await change
            assert len(synced) - before == syncs, of.lines()[-1]


async def test_retention_stops_while_the_log_cannot_be_written(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with audited(tmp_path, settings_of(tmp_path, retention_seconds=0.05)) as of:
        for data in (b"1", b"2", b"3", b"4"):
            await of.registry.publish(MODEL, data)
        await of.registry.set_retention(MODEL, [RetentionRule(keep_seconds=2)])
        disk.room_bytes = 0
        await until(lambda: [each.msg for each in caplog.records].count("retention failed") >= 3)
        assert [version.number for version in await of.registry.list_versions(MODEL)] == [2, 3, 4]
        disk.room_bytes = None
        await until(lambda: len([line for line in of.lines() if line["change"] == "version deleted"]) == 3)
        assert [version.number for version in await of.registry.list_versions(MODEL)] == [4]


async def test_a_disk_that_hangs_is_a_failure_until_it_works_again(tmp_path: Path, disk: Disk) -> None:
    works = disk.works = threading.Event()
    with mock.patch.object(daily_lines, "_SLOW_SECONDS", 0.05):
        lines = DailyLines(str(tmp_path / "x"), "audit", "audit_log")
        line = lines.append(b"line", is_durable=False)
        try:
            await until(lambda: lines.failure == "writing takes more than 0.05 seconds", lambda: lines.failure)
            assert not line.done()
        finally:
            works.set()
        assert not await line
        await until(lambda: not lines.failure)
        await lines.close()
    assert (lines.written, lines.failed) == (1, 0)


async def test_lines_that_are_left_are_written_at_the_end(tmp_path: Path, disk: Disk) -> None:
    lines = DailyLines(str(tmp_path / "x"), "audit", "audit_log")
    disk.room_bytes = 5
    assert await lines.append(b"first line", is_durable=False) == "No space left on device"
    assert await lines.append(b"second line", is_durable=True) == "No space left on device"
    assert lines.failure
    disk.room_bytes = None
    await lines.close()
    assert lines_of(tmp_path / "x") == ["first line", "second line", ""]
    assert (lines.written, lines.failed) == (2, 2)


async def test_a_cut_line_does_not_join_with_the_next_one(tmp_path: Path) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / f"audit_{today}.jsonl").write_bytes(b'{"whole": 1}\n{"cut": ')
    lines = DailyLines(str(tmp_path / "x"), "audit", "audit_log")
    assert not await lines.append(b'{"next": 1}', is_durable=False)
    await lines.close()
    assert lines_of(tmp_path / "x") == ['{"whole": 1}', '{"cut": ', '{"next": 1}', ""]


async def test_each_day_has_a_file_and_a_clock_that_is_set_back_changes_no_past_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime.datetime):
        now_is = datetime.datetime(2026, 11, 22, 23, 59, 59, tzinfo=datetime.UTC)

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls.fromtimestamp(cls.now_is.timestamp(), tz)

    monkeypatch.setattr("cogment_model_registry.serving.daily_lines.datetime.datetime", Clock)
    monkeypatch.setattr(daily_lines, "_LOOK_SECONDS", 0)
    lines = DailyLines(str(tmp_path / "x"), "audit", "audit_log")
    for second in (0, 1, -1):
        Clock.now_is += datetime.timedelta(seconds=second)
        assert not await lines.append(f"{second}".encode(), is_durable=True)
    await lines.close()
    files = {file.name: file.read_text() for file in (tmp_path / "x").glob("*.jsonl")}
    assert files == {"audit_2026-11-22.jsonl": "0\n", "audit_2026-11-23.jsonl": "1\n-1\n"}


async def test_a_file_that_was_moved_away_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daily_lines, "_LOOK_SECONDS", 0)
    lines = DailyLines(str(tmp_path / "x"), "audit", "audit_log")
    assert not await lines.append(b"1", is_durable=False)
    [file] = (tmp_path / "x").glob("*.jsonl")
    file.rename(tmp_path / "old")
    assert not await lines.append(b"2", is_durable=False)
    await lines.close()
    assert ((tmp_path / "old").read_text(), file.read_text()) == ("1\n", "2\n")


async def test_lines_nobody_waits_for_reach_the_disk_soon(tmp_path: Path, disk: Disk) -> None:
    synced: list[int] = []
    with mock.patch.object(daily_lines, "_synced", synced.append):
        lines = DailyLines(str(tmp_path / "x"), "audit", "audit_log")
        assert not await lines.append(b"1", is_durable=False)
        await until(lambda: synced)
        await lines.close()


def publish_forever(registry: ModelRegistry) -> None:
    """Publish until that fails."""
    while True:
        registry.publish(MODEL, b"1")


def test_a_full_disk_is_a_failure_of_a_real_server(tmp_path: Path) -> None:
    place = tmp_path / "audit"
    place.mkdir()
    before = mounted(f"mount -t tmpfs -o size=8k none {place}")
    with server_process(tmp_path / "archive", f"--audit_log={place}", before=before) as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}", retry_seconds=0) as registry:
            registry.publish(MODEL, b"1")
            with pytest.raises(errors.UnavailableError, match=r"cannot be written \(No space left on device\)"):
                publish_forever(registry)
            with pytest.raises(errors.UnavailableError, match="changes are refused until it can"):
                registry.delete_model(MODEL)
            server.wait_for_line("lines cannot be written.*No space left on device")
            found = registry.history(MODEL, limit=None)
        assert server.stop() == 0
    assert [entry.version_number for entry in reversed(found)] == [*range(len(found))]
    assert len(found) > 2
    assert sum("line lost" in line for line in server.lines) == 1
