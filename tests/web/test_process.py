"""The process that serves HTTP: it starts and ends with the server, and is started again when it dies."""

import asyncio
import contextlib
import http.client
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import psutil
import pytest
from structlog.testing import capture_logs

from cogment_model_registry.errors import StartError
from cogment_model_registry.server import web_process
from cogment_model_registry.server.forwarded_calls import socket_path
from cogment_model_registry.server.http_metrics import HttpMetrics
from cogment_model_registry.server.web_process import Web, WebProcess
from cogment_model_registry.settings import Settings
from tests import processes
from tests.ports import free_port
from tests.processes import run, server_process
from tests.waiting import PATIENCE_SECONDS, until, wait_until
from tests.web.http import http_server


def _child(pid: int) -> psutil.Process | None:
    children = psutil.Process(pid).children()
    return next((each for each in children if "cogment_model_registry.web" in each.cmdline()), None)


def test_http_is_off_by_default(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as server:
        assert not psutil.Process(server.pid).children()
        assert not any("http_port" in line for line in server.lines)


def test_it_serves_on_the_port_in_the_log_and_ends_with_the_server(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        assert server.http.get("/readyz").text == "ready\n"
        child = _child(server.process.pid)
        assert child is not None
        assert server.process.stop() == 0
        assert not child.is_running()
        assert not [line for line in server.process.lines if "error" in line or "warning" in line]


def test_it_is_started_again_when_it_dies_on_the_same_port(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        assert server.http.get("/healthz").status == 200
        first = _child(server.process.pid)
        assert first is not None
        first.kill()
        server.process.wait_for_line("HTTP ended unexpectedly; restarting it.*exit code -9")
        second = wait_until(lambda: _child(server.process.pid))
        assert second.pid != first.pid
        assert server.http.get("/healthz").status == 200  # connections wait until it serves


async def test_a_stop_does_not_wait_for_a_process_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_process, "_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with capture_logs() as lines:
        process = WebProcess(Settings(http_port=0, host="127.0.0.1"), "/nowhere", 9002, HttpMetrics("registry"))
        running = asyncio.create_task(process.run())
        await until(lambda: any("ended unexpectedly" in line["event"] for line in lines))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await process.stop(running, grace_seconds=3600)


async def test_it_ends_with_a_start_that_fails_after_its_own() -> None:
    settings = Settings(http_port=0, host="127.0.0.1")
    with socket_path() as path:
        async with AsyncExitStack() as stack:
            web = Web(settings, path, 9002, grpc.aio.server(), HttpMetrics("registry"))
            stack.push_async_callback(web.close)  # as the server does, before the rest of its start
            await web.start()
            child = await until(lambda: _child(os.getpid()))
        assert not child.is_running()


def test_it_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        assert server.http.get("/healthz").status == 200
        child = _child(server.process.pid)
        assert child is not None
        server.process.kill()
        child.wait(processes.START_SECONDS)


def test_it_ends_when_the_server_is_killed_although_a_client_takes_its_time(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server, contextlib.closing(server.http.connect()) as connection:
        assert server.http.ask("PUT", "/models/policy/versions?archived", bytes(64 * 1024 * 1024)).status == 201
        connection.request("GET", "/models/policy/versions/1/data")
        response = connection.getresponse()
        child = _child(server.process.pid)
        assert child is not None
        server.process.kill()

        def has_ended() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read(1)  # so that it never counts as one that takes nothing
            return not child.is_running()

        wait_until(has_ended)


def test_ctrl_c_is_for_the_server_which_ends_it(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        assert server.http.get("/healthz").status == 200
        child = _child(server.process.pid)
        assert child is not None
        assert os.getpgid(child.pid) != os.getpgid(server.process.pid)
        server.process.signal(signal.SIGINT)
        assert server.process.wait() == 0
        assert not child.is_running()


def test_a_port_in_use_fails_the_start_in_one_line(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
        flags = ["--host=127.0.0.1", f"--archive_dir={tmp_path / 'other'}", f"--http_port={server.http.port}"]
        result = run(*command, *flags)
        assert result.returncode == 3
        assert f"http_port: port {server.http.port} on 127.0.0.1 is not available" in result.stderr


def test_without_its_extra_a_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogment_model_registry.server.web_process.find_spec", lambda _name: None)
    with pytest.raises(StartError, match=r"uvicorn: pip install 'cogment-model-registry\[server,web\]'"):
        WebProcess(Settings(http_port=free_port(), host="127.0.0.1"), "/nowhere", 9002, HttpMetrics("registry"))


def test_the_port_of_each_address_of_a_host_is_the_same(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--http_host=localhost") as server:
        child = psutil.Process(server.process.pid)
        ports = {each.laddr.port for each in child.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
        assert server.http.port in ports
        assert server.http.get("/healthz").status == 200


@pytest.fixture
def runtime_directory() -> Iterator[Path]:
    """A directory for sockets, whose paths may have some 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="http-") as directory:
        yield Path(directory)


def test_a_socket_that_a_killed_server_left_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path, runtime_directory: Path
) -> None:
    environment = {"XDG_RUNTIME_DIR": str(runtime_directory)}
    directory = runtime_directory / "cogment-model-registry"

    def sockets() -> set[str]:
        return {each.name.partition("-")[0] for each in directory.glob("*.http")}

    with (
        http_server(tmp_path / "a", environment=environment) as killed,
        http_server(tmp_path / "b", environment=environment) as living,
    ):
        killed.process.kill()
        assert sockets() == {str(killed.process.pid), str(living.process.pid)}
        with http_server(tmp_path / "c", environment=environment) as third:
            assert sockets() == {str(living.process.pid), str(third.process.pid)}
            assert living.http.get("/readyz").status == 200


def _refused(tmp_path: Path, **environment: str) -> str:
    """Return why a server does not start with HTTP."""
    command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
    flags = ["--host=127.0.0.1", f"--archive_dir={tmp_path / 'archive'}", "--http_port=0", "--local_socket=off"]
    result = run(*command, *flags, environment=environment)
    assert result.returncode == 3, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_path_of_the_socket_that_is_too_long_fails_the_start_with_what_to_set(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    line = _refused(tmp_path, XDG_RUNTIME_DIR=str(deep))
    assert f"http_port needs a UNIX socket, and its path {deep}/" in line
    assert line.endswith("set the variable XDG_RUNTIME_DIR to a directory with a shorter path")
    line = _refused(tmp_path, XDG_RUNTIME_DIR=str(tmp_path / "absent"), TMPDIR=str(deep))
    assert line.endswith("set the variable TMPDIR to a directory with a shorter path")


def test_the_longest_path_of_the_socket_is_one_that_the_system_takes(runtime_directory: Path, tmp_path: Path) -> None:
    free = 107 - len(f"{runtime_directory}//cogment-model-registry/{os.getpid()}-12345678.http")
    place = runtime_directory / ("x" * free)
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place))
        with socket_path() as path, socket.socket(socket.AF_UNIX) as listener:
            assert len(path) == 107
            listener.bind(path)
        place.rename(runtime_directory / ("x" * (free + 1)))
        patch.setenv("XDG_RUNTIME_DIR", str(runtime_directory / ("x" * (free + 1))))
        with pytest.raises(StartError, match="108 bytes, more than the 107"), socket_path():
            pass


def test_a_directory_of_the_socket_that_cannot_be_made_fails_the_start_with_what_to_set(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    (runtime / "cogment-model-registry").write_text("in the way")
    line = _refused(tmp_path, XDG_RUNTIME_DIR=str(runtime))
    assert f"{runtime}/cogment-model-registry is not a directory that belongs to this user alone" in line
    assert line.endswith("set the variable XDG_RUNTIME_DIR to a directory in which this user may create one")


def test_a_directory_of_the_socket_that_cannot_be_written_fails_the_start_with_what_to_set(
    runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_directory))
    with socket_path() as path:
        directory = os.path.dirname(path)
    monkeypatch.setattr("os.access", lambda place, _mode: place != directory)  # as on a read-only file system
    with (
        pytest.raises(StartError, match=f"{directory} is not writable.*set the variable XDG_RUNTIME_DIR"),
        socket_path(),
    ):
        pass


def test_a_stop_that_ends_requests_in_progress_logs_no_error(tmp_path: Path) -> None:
    with (
        http_server(tmp_path / "archive", "--grace_seconds=1") as server,
        contextlib.closing(server.http.connect()) as connection,
    ):
        assert server.http.ask("PUT", "/models/policy/versions", bytes(64 * 1024 * 1024)).status == 201
        connection.request("GET", "/models/policy/versions/1/data")
        assert connection.getresponse().status == 200  # and nothing more is read
        assert server.process.stop() == 0
        assert not [line for line in server.process.lines if "error" in line or "Traceback" in line]
        assert [line for line in server.process.lines if "stopping ended requests in progress" in line]
