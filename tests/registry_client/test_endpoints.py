"""How the client finds a registry: arguments, the environment, and discovery."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, aio, errors
from cogment_model_registry.client import choosing, endpoints, failures
from cogment_model_registry.client.endpoints import DEFAULT, ENDPOINT_VARIABLE, Direct, Discovered, locate
from cogment_model_registry.discovery.client import connected
from cogment_model_registry.records.services import Details, Endpoint, Protocol, ServiceType
from cogment_model_registry.settings import Settings
from tests.names import Names
from tests.ports import free_port
from tests.processes import ServerProcess, clean_environment, run, server_process
from tests.registry_client.conftest import Awaited
from tests.registry_client.network import listening, tcp_server
from tests.waiting import PATIENCE_SECONDS, wait_until

DIRECTORY = "grpc://directory:9005"


def registries(**properties: str) -> Details:
    return Details(ServiceType.MODEL_REGISTRY, properties)


@pytest.mark.parametrize(
    ("endpoint", "environment", "location"),
    [
        ("grpc://host:9000", {}, Direct("host:9000")),
        ("grpc://[::1]:9000", {}, Direct("[::1]:9000")),
        (None, {}, Direct("localhost:9002")),
        (None, {"COGMENT_MODEL_REGISTRY_ENDPOINT": "grpc://there:1"}, Direct("there:1")),
        ("grpc://here:2", {"COGMENT_MODEL_REGISTRY_ENDPOINT": "grpc://there:1"}, Direct("here:2")),
        (None, {"COGMENT_DIRECTORY_ENDPOINT": DIRECTORY}, Discovered("directory:9005", "", registries())),
        (
            "cogment://discover?a=1&b",
            {"COGMENT_DIRECTORY_ENDPOINT": DIRECTORY, "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN": "secret"},
            Discovered("directory:9005", "secret", registries(a="1", b="")),
        ),
        (
            "cogment://discover?__authentication-token=own",
            {"COGMENT_DIRECTORY_ENDPOINT": DIRECTORY, "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN": "secret"},
            Discovered("directory:9005", "own", registries()),
        ),
        (
            "cogment://discover/service?__id=17",
            {"COGMENT_DIRECTORY_ENDPOINT": DIRECTORY},
            Discovered("directory:9005", "", 17),
        ),
        (
            "grpc://host:9000",
            {"COGMENT_DIRECTORY_ENDPOINT": DIRECTORY},
            Direct("host:9000"),
        ),
    ],
)
def test_the_endpoint_comes_from_the_argument_or_the_environment(
    endpoint: str | None, environment: dict[str, str], location: Direct | Discovered
) -> None:
    assert locate(endpoint, environment=environment) == location


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "host:9000",
        "grpc://host",
        "http://host:9000",
        "grpc://host:9000/path",
        "cogment://elsewhere",
        "cogment://discover/other",
        "cogment://discover/service",
        "cogment://discover/service?__id=x",
        "cogment://discover/service?__id=0",
        "cogment://discover/service?__id=1&a=2",
    ],
)
def test_a_malformed_endpoint_is_refused_with_the_allowed_forms(endpoint: str) -> None:
    environment = {"COGMENT_DIRECTORY_ENDPOINT": DIRECTORY}
    if not endpoint:
        environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": "nonsense"}
    with pytest.raises(errors.SettingError, match="it must be"):
        locate(endpoint or None, environment=environment)


def test_discovery_requires_a_directory() -> None:
    with pytest.raises(errors.SettingError, match="COGMENT_DIRECTORY_ENDPOINT"):
        locate("cogment://discover", environment={})
    with pytest.raises(errors.SettingError, match="directory_endpoint"):
        locate("cogment://discover", "nonsense", environment={})
    with pytest.raises(errors.SettingError, match="printable ASCII"):
        locate("cogment://discover", DIRECTORY, "é", environment={})


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ServerProcess]:
    """A Directory."""
    with server_process(tmp_path, "--persistence_file=", service="directory") as process:
        yield process


def registered(directory: ServerProcess, archive: Path, port: int = 0) -> ServerProcess:
    """Return a registry that is registered and that the Directory has found ready."""
    where = f"grpc://127.0.0.1:{directory.port}"
    endpoint = f"--directory_endpoint={where}"
    flags = ["--directory_registration_host=127.0.0.1", "--directory_registration_properties=room=7"]
    process = ServerProcess(archive, f"--port={port}", endpoint, *flags)
    process.wait_for_line(r"registered")

    def is_returned() -> bool:
        with ModelRegistry("cogment://discover?room=7", directory_endpoint=where, retry_seconds=0) as registry:
            try:
                registry.status()
            except (errors.NotFoundError, errors.UnavailableError):
                return False
        return True

    wait_until(is_returned)
    return process


def test_a_discovered_registry_is_found_again_when_it_has_moved(directory: ServerProcess, tmp_path: Path) -> None:
    where = f"grpc://127.0.0.1:{directory.port}"
    first = registered(directory, tmp_path / "archive", free_port())
    second = None
    try:
        with ModelRegistry("cogment://discover?room=7", directory_endpoint=where, retry_seconds=30) as registry:
            registry.store("policy", b"1")
            first.stop()
            second = registered(directory, tmp_path / "archive", free_port())
            assert second.port != first.port
            assert registry.retrieve("policy") == b"1"
            # The channel is closed, so the port is free.
            with socket.create_server(("127.0.0.1", first.port)) as elsewhere:
                elsewhere.settimeout(3)  # gRPC would reconnect within two seconds
                assert registry.retrieve("policy") == b"1"
                with pytest.raises(TimeoutError):
                    elsewhere.accept()
    finally:
        first.kill()
        if second is not None:
            second.kill()


async def test_a_registry_that_the_directory_does_not_know_is_not_found(directory: ServerProcess) -> None:
    where = f"grpc://127.0.0.1:{directory.port}"
    async with aio.ModelRegistry("cogment://discover?room=8", directory_endpoint=where) as registry:
        with pytest.raises(errors.NotFoundError, match="knows no ready model registry that matches"):
            await registry.list_models()


def test_a_directory_that_is_down_is_unavailable() -> None:
    where = f"grpc://127.0.0.1:{free_port()}"
    with (
        ModelRegistry(directory_endpoint=where, retry_seconds=0.2) as registry,
        pytest.raises(errors.UnavailableError, match="asking the Directory"),
    ):
        registry.list_models()


def test_a_call_waits_for_a_registry_that_restarts(directory: ServerProcess, tmp_path: Path) -> None:
    """Even if the Directory no longer returns it."""
    port = free_port()
    where = f"grpc://127.0.0.1:{directory.port}"
    first = registered(directory, tmp_path / "archive", port)
    second = None
    try:
        with ModelRegistry(directory_endpoint=where, retry_seconds=30) as registry, ThreadPoolExecutor() as threads:
            registry.store("policy", b"1")
            first.stop()
            retrieving = threads.submit(registry.retrieve, "policy")
            second = registered(directory, tmp_path / "archive", port)
            assert retrieving.result(30) == b"1"
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_a_registry_that_is_slow_keeps_its_connection_and_needs_no_directory(
    directory: ServerProcess, tmp_path: Path
) -> None:
    where = f"grpc://127.0.0.1:{directory.port}"
    server = registered(directory, tmp_path / "archive")
    try:
        with ModelRegistry(directory_endpoint=where) as registry:
            registry.store("policy", b"1")
            open_files = len(os.listdir("/proc/self/fd"))
            for _ in range(10):
                server.signal(signal.SIGSTOP)
                with pytest.raises(errors.TimedOutError):
                    registry.list_models(timeout=0.05)
                server.signal(signal.SIGCONT)
                assert registry.retrieve("policy") == b"1"
            assert len(os.listdir("/proc/self/fd")) < open_files + 10
            server.signal(signal.SIGSTOP)
            with pytest.raises(errors.TimedOutError):
                registry.list_models(timeout=0.05)
            server.signal(signal.SIGCONT)
            directory.kill()
            assert registry.retrieve("policy") == b"1"
    finally:
        server.signal(signal.SIGCONT)
        server.kill()


async def test_closing_a_client_during_discovery_ends_its_calls(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_DIRECTORY_SECONDS", 3600.0)
    asked = asyncio.Event()

    async def handle(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with listening(handle) as port:
        client: Any = (ModelRegistry if flavour == "blocking" else aio.ModelRegistry)(
            directory_endpoint=f"grpc://127.0.0.1:{port}"
        )
        registry = Awaited(client) if flavour == "blocking" else client
        listing = asyncio.ensure_future(registry.list_models())
        await asked.wait()
        await registry.close()
        async with asyncio.timeout(PATIENCE_SECONDS):  # before the timeout of the Directory
            with pytest.raises(errors.ClosedError):
                await listing


async def test_a_directory_that_does_not_answer_leaves_time_for_the_registry(
    flavour: str, directory: ServerProcess, tmp_path: Path
) -> None:
    registered_server = registered(directory, tmp_path / "archive")
    cls = ModelRegistry if flavour == "blocking" else aio.ModelRegistry
    client: Any = cls(directory_endpoint=f"grpc://127.0.0.1:{directory.port}", timeout=2)
    registry = Awaited(client) if flavour == "blocking" else client
    try:
        await registry.store("policy", b"1")
        directory.signal(signal.SIGSTOP)
        for _ in range(3):
            registered_server.signal(signal.SIGSTOP)
            with pytest.raises(errors.TimedOutError):
                await registry.list_models(timeout=0.1)
            registered_server.signal(signal.SIGCONT)
            assert await registry.retrieve("policy") == b"1"
    finally:
        await registry.close()
        for process in (directory, registered_server):
            process.signal(signal.SIGCONT)
        registered_server.kill()


def test_an_error_at_the_default_address_says_how_to_start_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert f"localhost:{Settings().port}" == DEFAULT.address
    nobody = Direct(f"127.0.0.1:{free_port()}")
    for module in (failures, endpoints):
        monkeypatch.setattr(module, "DEFAULT", nobody)
    advice = f"start a server there with `cogment services model_registry`, or name its endpoint in {ENDPOINT_VARIABLE}"
    message = f"cannot connect to {nobody}: Connection refused; {advice}$"
    with ModelRegistry(retry_seconds=0.1) as registry, pytest.raises(errors.UnavailableError, match=message):
        registry.list_models()


async def test_an_unreachable_discovered_registry_is_named_and_discovered_again(
    directory: ServerProcess, tmp_path: Path
) -> None:
    """The Directory may know a new address by now, so a reply at the old one is not final."""
    where = f"grpc://127.0.0.1:{directory.port}"
    async with tcp_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        async with connected(where) as client:
            details = Details(ServiceType.MODEL_REGISTRY)
            service_id, secret = await client.register(
                Endpoint(Protocol.GRPC, "127.0.0.1", port), details, permanent=True
            )
        async with aio.ModelRegistry(directory_endpoint=where, retry_seconds=0.1) as registry:
            with pytest.raises(errors.UnavailableError, match=f"cannot connect to grpc://127.0.0.1:{port}: "):
                await registry.list_models()
            process = await asyncio.to_thread(registered, directory, tmp_path / "archive")
            try:
                async with connected(where) as client:
                    await client.deregister(service_id, secret)
                assert await registry.list_models() == []
            finally:
                await asyncio.to_thread(process.kill)


# Names with several or changing addresses, which the test sets.

CALLING_TWICE = """
import sys
from cogment_model_registry import ModelRegistry

with ModelRegistry(sys.argv[1], retry_seconds=20) as registry:
    registry.list_models()
    print("answered", flush=True)
    input()
    registry.list_models()
"""


def test_a_client_finds_a_server_that_moved_to_another_address_of_its_name(tmp_path: Path) -> None:
    names = Names(tmp_path)
    names.set("registry.example", "127.0.0.1")
    with server_process(tmp_path / "first") as first:
        endpoint = f"grpc://registry.example:{first.port}"
        client = subprocess.Popen(
            [*names.command, sys.executable, "-c", CALLING_TWICE, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        try:
            assert client.stdout
            assert client.stdout.readline() == "answered\n"
            first.kill()
            with server_process(tmp_path / "second", "--host=127.0.0.2", f"--port={first.port}"):
                names.set("registry.example", "127.0.0.2")
                client.communicate("\n", timeout=PATIENCE_SECONDS)
        finally:
            client.kill()
            client.communicate()
    assert client.returncode == 0


@pytest.mark.parametrize("addresses", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")], ids=["first", "last"])
async def test_another_server_at_one_of_the_addresses_of_a_name_is_found(
    tmp_path: Path, addresses: tuple[str, str]
) -> None:
    names = Names(tmp_path)
    names.set("server.example", *addresses)
    async with tcp_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:  # at 127.0.0.1; nothing listens at 127.0.0.2
        endpoint = f"grpc://server.example:{port}"
        command = ("client", "model_registry", "list_models", "--timeout=600", f"--endpoint={endpoint}")
        result = await asyncio.to_thread(run, *names.command, sys.executable, "-m", "cogment_model_registry", *command)
    message = f"listing the models: {endpoint} is not a model registry: an HTTP/1 server answers there"
    assert (result.returncode, result.stderr) == (1, f"error: {message}; check the host and the port\n")
