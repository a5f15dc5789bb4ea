"""Downloads that resume an interrupted one, also in another process."""

import asyncio
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import Progress, errors
from cogment_model_registry.client import downloads, fetching, partial_files
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB
from cogment_model_registry.system.file_locks import lock_soon
from cogment_model_registry.wire import messages as m
from tests.locales import utf_8
from tests.processes import started
from tests.registry_client.conftest import opened
from tests.registry_client.network import Relay, listening
from tests.registry_client.scripted import DATA, Call, infos, scripted
from tests.waiting import PATIENCE_SECONDS

LARGE = os.urandom(12 * MIB + 12_345)

KIB = 1024


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Update the journal after every few bytes."""
    monkeypatch.setattr(partial_files, "_SYNC_BYTES", 64 * KIB)
    monkeypatch.setattr(partial_files, "_UNSYNCED_BYTES", 64 * KIB)


@pytest.fixture(params=["one connection", "two connections"])
def connections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client treat a version of some MiB like one of some GiB, and the path as fast or slow."""
    is_slow = request.param == "two connections"
    monkeypatch.setattr(fetching, "_LARGE_BYTES", 4 * MIB)
    monkeypatch.setattr(downloads, "_PART_BYTES", MIB)
    monkeypatch.setattr(fetching, "_FAST_BYTES_PER_SECOND", float("inf") if is_slow else 0.0)


class Interruption(Exception):
    """Raised by the progress callback of a download, to end it."""


def after(size_bytes: int) -> Callable[[Progress], None]:
    """Return a callback that interrupts a download after a number of bytes."""

    def interrupt(progress: Progress) -> None:
        if progress.done_bytes >= size_bytes:
            raise Interruption

    return interrupt


async def interrupted(registry: Any, path: Path, at_bytes: int = 6 * MIB, **options: Any) -> None:
    """Begin a download, and interrupt it."""
    with pytest.raises(Interruption):
        await registry.download("policy", path, resume=True, progress=after(at_bytes), **options)


def files(directory: Path) -> list[str]:
    """Return the names of the files of a directory, without the archive of the server."""
    return sorted(set(os.listdir(directory)) - {"archive"})


PARTIAL = ["file.cogment-partial", "file.cogment-partial.journal"]


@pytest.mark.parametrize("tier", ["publish", "store"])
async def test_an_interrupted_download_resumes_where_it_was(
    flavour: str, server: Server, tmp_path: Path, connections: None, tier: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    relay = Relay(server.port)
    async with listening(relay.relay) as port, opened(flavour, port) as registry:
        version = await getattr(registry, tier)("policy", LARGE)
        await interrupted(registry, path)
        assert files(tmp_path) == ["file", *PARTIAL]
        assert path.read_bytes() == b"old"
        before, reports = relay.replied_bytes, list[int]()
        note = lambda progress: reports.append(progress.done_bytes)  # noqa: E731
        assert await registry.download("policy", path, resume=True, progress=note) == version
    assert reports[0] > 3 * MIB
    assert relay.replied_bytes - before < len(LARGE) - 3 * MIB
    assert path.read_bytes() == LARGE
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert files(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from cogment_model_registry import ModelRegistry
from cogment_model_registry.client import partial_files

partial_files._SYNC_BYTES = partial_files._UNSYNCED_BYTES = 64 * 1024

def die(progress):
    if progress.done_bytes >= 6 * 2**20:
        os.kill(os.getpid(), signal.SIGKILL)

ModelRegistry(sys.argv[1]).download("policy", sys.argv[2], resume=True, progress=die)
"""


async def test_another_process_resumes_after_one_was_killed(registry: Any, server: Server, tmp_path: Path) -> None:
    await registry.store("policy", LARGE)
    path = tmp_path / utf_8("weights \N{SNAKE}.bin")
    process = started(KILLED, f"grpc://127.0.0.1:{server.port}", str(path))
    _, text = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    assert process.returncode == -9, text
    reports: list[int] = []
    await registry.download("policy", path, resume=True, progress=lambda each: reports.append(each.done_bytes))
    assert reports[0] > 5 * MIB
    assert path.read_bytes() == LARGE


async def test_a_complete_partial_file_is_not_fetched_again(registry: Any, tmp_path: Path) -> None:
    await registry.store("policy", LARGE)
    await interrupted(registry, tmp_path / "file", at_bytes=len(LARGE))
    journal = tmp_path / PARTIAL[1]
    with journal.open("ab") as file:
        file.write(b"[0, %d]\n" % len(LARGE))
    reports: list[Progress] = []
    await registry.download("policy", tmp_path / "file", resume=True, progress=reports.append)
    assert [each.done_bytes for each in reports] == [len(LARGE)]
    assert (tmp_path / "file").read_bytes() == LARGE


async def test_a_download_starts_over_if_its_name_refers_to_another_version(
    registry: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = os.urandom(3 * MIB)
    await registry.store("policy", LARGE, alias="production")
    await interrupted(registry, tmp_path / "file")
    await registry.store("policy", newer)
    reports: list[int] = []
    with caplog.at_level(logging.WARNING):
        version = await registry.download(
            "policy", tmp_path / "file", resume=True, progress=lambda each: reports.append(each.done_bytes)
        )
    assert version.number == 2
    assert reports[0] <= 2 * MIB
    assert (tmp_path / "file").read_bytes() == newer
    (record,) = caplog.records
    assert record.getMessage() == (
        'the partial download is of version 1 of model "policy", and version 2 of model "policy" is downloaded '
        "from its beginning"
    )


async def test_a_download_by_an_alias_that_was_not_moved_resumes(
    registry: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await registry.store("policy", LARGE, alias="production")
    await interrupted(registry, tmp_path / "file", version="production")
    await registry.publish("policy", b"newer")
    reports: list[int] = []
    note = lambda progress: reports.append(progress.done_bytes)  # noqa: E731
    await registry.download("policy", tmp_path / "file", version="production", resume=True, progress=note)
    assert reports[0] > 5 * MIB
    assert caplog.records == []


async def test_a_download_starts_over_if_the_version_was_created_again_with_other_bytes(
    registry: Any, tmp_path: Path
) -> None:
    await registry.store("policy", LARGE)
    await interrupted(registry, tmp_path / "file")
    await registry.delete_model("policy")
    other = os.urandom(len(LARGE))
    await registry.store("policy", other)
    await registry.download("policy", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == other


async def test_two_downloads_never_write_to_one_file(registry: Any, tmp_path: Path) -> None:
    await registry.store("policy", LARGE)
    await interrupted(registry, tmp_path / "file")
    with (tmp_path / PARTIAL[1]).open("ab") as journal:
        assert lock_soon(journal.fileno(), 1, 0)  # as another process would
        with pytest.raises(BlockingIOError, match="another download to this file is under way"):
            await registry.download("policy", tmp_path / "file", resume=True)
    assert files(tmp_path) == PARTIAL
    await registry.download("policy", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == LARGE


@pytest.mark.parametrize(
    "damage",
    [
        lambda journal: journal[:-3],
        lambda journal: journal + b"[1, 2",
        lambda journal: journal + b"[5, 4]\n[0, 99999999999]\nx\n",
        lambda journal: re.sub(rb"\n\[.*", b"\n" + bytes(100), journal, flags=re.DOTALL),
        lambda journal: bytes(len(journal)),
        lambda _journal: b"",
        lambda journal: b"[]\n" + journal,
        lambda journal: journal.replace(b'"number": 1', b'"number": true'),
    ],
)
async def test_a_truncated_journal_costs_only_some_bytes(
    registry: Any, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    await registry.store("policy", LARGE)
    await interrupted(registry, tmp_path / "file")
    journal = tmp_path / PARTIAL[1]
    journal.write_bytes(damage(journal.read_bytes()))
    await interrupted(registry, tmp_path / "file", at_bytes=8 * MIB)  # added bytes are read again, too
    await registry.download("policy", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == LARGE
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize("damage", ["changed", "cut off", "removed"])
async def test_bytes_that_were_damaged_are_received_again(registry: Any, tmp_path: Path, damage: str) -> None:
    await registry.store("policy", LARGE)
    await interrupted(registry, tmp_path / "file")
    data = tmp_path / PARTIAL[0]
    if damage == "changed":
        data.write_bytes(bytes(1000) + data.read_bytes()[1000:])
    elif damage == "cut off":
        os.truncate(data, MIB)
    else:
        data.unlink()
    await registry.download("policy", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == LARGE
    assert files(tmp_path) == ["file"]


async def test_a_download_that_received_nothing_leaves_nothing(registry: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError):
        await registry.download("policy", tmp_path / "file", resume=True)
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        await registry.download("policy", tmp_path / "directory", resume=True, unpack=False)
    with pytest.raises(FileNotFoundError):
        await registry.download("policy", tmp_path / "nowhere" / "file", resume=True)
    assert files(tmp_path) == ["directory"]


async def test_an_unavailable_registry_loses_no_received_bytes(flavour: str, server: Server, tmp_path: Path) -> None:
    relay = Relay(server.port)
    async with listening(relay.relay) as port, opened(flavour, port, retry_seconds=0) as registry:
        await registry.store("policy", LARGE)
        await interrupted(registry, tmp_path / "file")
    async with opened(flavour, port, retry_seconds=0) as registry:
        with pytest.raises(errors.UnavailableError):
            await registry.download("policy", tmp_path / "file", resume=True)
    reports: list[int] = []
    async with opened(flavour, server.port) as registry:
        note = lambda progress: reports.append(progress.done_bytes)  # noqa: E731
        await registry.download("policy", tmp_path / "file", resume=True, progress=note)
    assert reports[0] > 5 * MIB


async def test_a_cancelled_download_can_be_resumed_at_once(server: Server, tmp_path: Path) -> None:
    begun = asyncio.Event()
    async with opened("asyncio", server.port) as registry:
        await registry.store("policy", LARGE)
        note = lambda progress: begun.set() if progress.done_bytes > 4 * MIB else None  # noqa: E731
        task = asyncio.ensure_future(registry.download("policy", tmp_path / "file", resume=True, progress=note))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await registry.download("policy", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == LARGE


async def test_the_cache_serves_and_keeps_the_bytes(flavour: str, server: Server, tmp_path: Path) -> None:
    relay = Relay(server.port)
    async with listening(relay.relay) as port, opened(flavour, port, cache_dir=tmp_path / "cache") as registry:
        await registry.store("policy", LARGE)
        await interrupted(registry, tmp_path / "file")
        await registry.download("policy", tmp_path / "file", resume=True)
        before = relay.replied_bytes
        await registry.download("policy", tmp_path / "again", resume=True)
        assert relay.replied_bytes - before < MIB
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes() == LARGE


async def test_nothing_is_kept_if_the_server_sends_no_parts(flavour: str, tmp_path: Path) -> None:
    async def half(call: Call) -> None:
        if call.number == 1:
            await call.send(m.RetrieveVersionDataReplyChunk(data_chunk=DATA[: 3 * MIB]))
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        await call.send(m.RetrieveVersionDataReplyChunk(data_chunk=DATA))

    async with (
        scripted(RetrieveVersionInfos=infos, RetrieveVersionData=half) as server,
        opened(flavour, server.port, retry_seconds=0) as registry,
    ):
        with pytest.raises(errors.UnavailableError):
            await registry.download("policy", tmp_path / "file", resume=True)
        assert files(tmp_path) == []
        await registry.download("policy", tmp_path / "file", resume=True)
    assert (tmp_path / "file").read_bytes() == DATA
    assert files(tmp_path) == ["file"]
