"""Signals before a server serves, while it rescans its archive, and after it stopped serving."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest

from cogment_model_registry.serving import life_cycle
from cogment_model_registry.system.signals import Signals
from tests.processes import clean_environment, server_process
from tests.waiting import PATIENCE_SECONDS, until, wait_until

SERVICES = pytest.mark.parametrize("service", ["model_registry", "directory"])


@contextmanager
def starting(tmp_path: Path, service: str, *wrapper: str) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """Return a context manager for a command that starts a service, and the service after it has loaded gRPC, early."""
    command = [*wrapper, sys.executable, "-m", "cogment_model_registry", "services", service]
    command += ["--port=0", "--host=127.0.0.1"]
    command += [f"--archive_dir={tmp_path}" if service == "model_registry" else f"--persistence_file={tmp_path}/file"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment()
    ) as process:
        try:
            yield process, wait_until(lambda: _with_grpc(process.pid))
        finally:
            process.kill()


def _with_grpc(pid: int) -> psutil.Process | None:
    """Return a process, or its child, that has loaded gRPC."""
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            if "cygrpc" in Path(f"/proc/{process.pid}/maps").read_text():
                return process
        except OSError:
            continue
    return None


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for the end of a command, and return its exit code and its output."""
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output


@SERVICES
def test_stop_during_a_start_ends_it_cleanly(tmp_path: Path, service: str) -> None:
    with starting(tmp_path, service) as (process, server):
        server.send_signal(signal.SIGTERM)
        code, output = ended(process)
    assert code == 0, output
    assert [line for line in output.splitlines() if "Traceback" in line or "[error" in line] == []
    assert re.search(r"stopping +signal=SIGTERM", output)
    assert output.splitlines()[-1].endswith("stopped")


def test_stop_during_a_start_as_the_first_process_of_a_container_is_not_lost(tmp_path: Path) -> None:
    wrapper = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let this user make a namespace of processes")
    with starting(tmp_path, "model_registry", *wrapper) as (process, server):
        server.send_signal(signal.SIGTERM)
        code, output = ended(process)
    assert code == 0, output
    assert output.splitlines()[-1].endswith("stopped")


@SERVICES
def test_hangup_during_a_start_and_while_serving_does_not_end_a_service(tmp_path: Path, service: str) -> None:
    with starting(tmp_path, service) as (process, server):
        server.send_signal(signal.SIGHUP)
        assert process.stdout
        assert any("serving" in line for line in iter(process.stdout.readline, ""))
        server.send_signal(signal.SIGHUP)
        server.send_signal(signal.SIGTERM)
        code, output = ended(process)
    assert code == 0, output


def test_hangup_during_a_start_lets_the_registry_rescan_when_it_serves(tmp_path: Path) -> None:
    with starting(tmp_path, "model_registry") as (process, server):
        server.send_signal(signal.SIGHUP)
        assert process.stdout
        assert any("rescanned the archive" in line for line in iter(process.stdout.readline, ""))
        server.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_hangup_after_the_stop_does_not_change_the_exit_code(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        server.signal(signal.SIGTERM)
        server.wait_for_line("stopped")
        server.signal(signal.SIGHUP)
        assert server.wait() == 0


# Rescans.


class Rescans:
    """A server whose rescans end when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.finished = 0
        self.allowed = asyncio.Event()
        self.is_running = False

    async def rescan(self) -> None:
        assert not self.is_running
        self.is_running = True
        self.begun += 1
        try:
            await self.allowed.wait()
            self.finished += 1
        finally:
            self.is_running = False


@asynccontextmanager
async def _running(server: Rescans) -> AsyncIterator[Rescans]:
    yield server


@pytest.fixture
def signals() -> Iterator[Signals]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@asynccontextmanager
async def serving(signals: Signals, server: Rescans) -> AsyncIterator["asyncio.Task[None]"]:
    """Run a server in a context manager, which stops it."""
    served = asyncio.Event()
    task = asyncio.create_task(
        life_cycle.serve_until_signal(_running(server), signals, lambda _: served.set(), Rescans.rescan)
    )
    await served.wait()
    yield task
    if not task.done():
        os.kill(os.getpid(), signal.SIGTERM)
    await task


async def test_hangups_during_a_rescan_lead_to_one_more(signals: Signals) -> None:
    server = Rescans()
    async with serving(signals, server):
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: server.begun == 1)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        server.allowed.set()
        await until(lambda: server.finished == 2)
    assert (server.begun, server.finished) == (2, 2)


async def test_stop_ends_a_rescan(signals: Signals) -> None:
    server = Rescans()
    async with serving(signals, server):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: server.begun == 1)
    assert (server.begun, server.finished, server.is_running) == (1, 0, False)


async def test_rescan_that_fails_unexpectedly_does_not_prevent_the_next_one(signals: Signals) -> None:
    class Failing(Rescans):
        async def rescan(self) -> None:
            await super().rescan()
            if self.begun == 1:
                raise RuntimeError("unexpected")

    server = Failing()
    server.allowed.set()
    served = asyncio.Event()
    task = asyncio.create_task(
        life_cycle.serve_until_signal(_running(server), signals, lambda _: served.set(), lambda each: each.rescan())
    )
    await served.wait()
    for number in (1, 2):
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda number=number: server.finished == number)  # type: ignore[misc]
    os.kill(os.getpid(), signal.SIGTERM)
    await task
