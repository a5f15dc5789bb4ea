"""Shared fixtures: a server in the process of the test with a client, and the check that nothing is left behind."""

import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import structlog
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from cogment_model_registry import ModelRegistry
from cogment_model_registry.server.composition import Server
from cogment_model_registry.storage.postgres import connections
from cogment_model_registry.testing.server import serving
from tests.certificates import Authority
from tests.client import Client, connected
from tests.object_store import S3Server, object_server
from tests.postgres import PostgresServer, emptied_database, postgres_server
from tests.processes import ServerProcess, end_preloaded, server_process
from tests.waiting import PATIENCE_SECONDS

set_hypothesis_home_dir(".cache/hypothesis")
settings.register_profile("no deadline", deadline=None)  # the machine may be busy
settings.load_profile("no deadline")

# A shell starts background processes with SIGINT ignored, and nohup starts them with SIGHUP ignored; the processes of
# the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail if the tests of this process leave a process, a thread of the package, or a file descriptor behind."""
    yield
    gc.collect()
    end_preloaded()
    children = psutil.Process().children(recursive=True)
    assert not children, f"processes left behind: {children}"
    for thread in threading.enumerate():
        if thread.name.startswith(("archive", "catalog", "hash", "log", "server", "model registry client", "tracking")):
            thread.join(PATIENCE_SECONDS)  # an ending thread may need a moment
            assert not thread.is_alive(), f"thread left behind: {thread.name}"
    files = [file.path for file in psutil.Process().open_files() if "/.cache/tests/" in file.path]
    assert not files, f"files left open: {files}"


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Keep the logs of servers in this process out of the output of tests."""
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs], logger_factory=structlog.stdlib.LoggerFactory()
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings in a developer's environment."""
    for name in list(os.environ):
        if name.startswith("COGMENT_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def patient_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PostgreSQL take its time to accept a connection on a busy machine; when it is away, it refuses at once."""
    monkeypatch.setattr(connections, "_CONNECT_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server in this process, over a real socket."""
    async with serving(tmp_path / "archive") as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of `server`."""
    async with connected(server.port) as connection:
        yield connection


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority for certificates of the tests of a module."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server for all tests that need one; each uses a prefix of its own."""
    with object_server(tmp_path_factory.mktemp("object_store")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL for all tests that need one and leave it running; each has a database of its own."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The address of a database without models."""
    return emptied_database(postgres)


@pytest.fixture(scope="session")
def shared_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server process for all tests that leave it unchanged."""
    with server_process(tmp_path_factory.mktemp("shared") / "archive") as running:
        yield running


@pytest.fixture
def shared_endpoint(shared_process: ServerProcess) -> Iterator[str]:
    """The endpoint of `shared_process`, which has no models before and after a test."""
    endpoint = f"grpc://127.0.0.1:{shared_process.port}"
    yield endpoint
    with ModelRegistry(endpoint) as registry:
        for model in registry.list_models():
            registry.delete_model(model.model_id)
