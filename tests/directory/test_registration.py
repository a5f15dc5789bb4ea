"""The registration of a registry with a Directory and its renewal: real processes, with restarts and crashes."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
import structlog.testing

from cogment_model_registry import __version__
from cogment_model_registry.discovery.client import connected as connected_to_directory
from cogment_model_registry.discovery.server import running as running_directory
from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.services import Details, Service, ServiceType
from cogment_model_registry.server.registration import Pace, Registration, State
from cogment_model_registry.settings import DirectorySettings, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import directory as wire
from tests.client import Client, connected, header
from tests.directory.processes import DirectoryProcess, directory_process
from tests.names import Names
from tests.ports import free_port
from tests.processes import START_SECONDS, ServerProcess, run, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, eventually, until

STOPPED_SECONDS = 4.0
"""How long a registry may take to end if only an absent Directory can delay it: 1.5 s, and the time that a busy machine
needs to end a process."""


async def found(
    port: int, token: str = "", service_type: ServiceType = ServiceType.MODEL_REGISTRY, host: str = "127.0.0.1"
) -> list[Service]:
    """Return the services of a type that the Directory on a port returns; none while it does not answer."""
    try:
        async with connected_to_directory(f"grpc://{host}:{port}", token) as client:
            return await client.inquire(Details(service_type), timeout_seconds=5)
    except ModelRegistryError:
        return []


async def registered(port: int, registry: ServerProcess, token: str = "") -> Service:
    """Wait until the Directory returns a registry, and return its service."""
    services: list[Service] = []

    async def is_there() -> bool:
        services[:] = [each for each in await found(port, token) if each.endpoint.port == registry.port]
        return bool(services)

    await eventually(is_there, within_seconds=START_SECONDS)
    assert len(services) == 1
    return services[0]


def events(process: ServerProcess) -> list[tuple[str, str]]:
    """Return the level and the event of the lines about the Directory in a JSON log."""
    entries = [json.loads(line) for line in process.lines]
    return relevant((entry["level"], entry["event"]) for entry in entries)


def relevant(events: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the events about the Directory, with their levels."""
    return [(level, event) for level, event in events if "Directory" in event or "registration" in event]


def seconds_to_stop(process: ServerProcess) -> float:
    """Stop a process, which must exit with 0, and return how long it took."""
    started = time.monotonic()
    assert process.stop() == 0, process.lines
    return time.monotonic() - started


# The order of the starts.


async def test_registers_with_a_running_directory(tmp_path: Path) -> None:
    with (
        directory_process() as directory,
        server_process(tmp_path / "archive", f"--directory_endpoint={directory.endpoint}") as registry,
    ):
        service = await registered(directory.port, registry)
        assert service.details.type is ServiceType.MODEL_REGISTRY
        assert str(service.endpoint) == f"grpc://127.0.0.1:{registry.port}"  # not 0, the value of the setting
        assert not service.permanent
        async with connected(service.endpoint.port) as client:
            await client.create_model("m")


async def test_a_registry_without_anonymous_access_is_found_too(tmp_path: Path) -> None:
    """The Directory requests its load without a token."""
    flags = ("--anonymous=nothing", "--log_format=json")
    with (
        directory_process() as directory,
        server_process(tmp_path / "archive", f"--directory_endpoint={directory.endpoint}", *flags) as registry,
    ):
        await registered(directory.port, registry)
        assert not [line for line in registry.lines if "UNAUTHENTICATED" in line]


async def test_registers_when_the_directory_starts(tmp_path: Path) -> None:
    port = free_port()
    flag = f"--directory_endpoint=grpc://127.0.0.1:{port}"
    with server_process(tmp_path / "archive", flag, "--log_format=json") as registry:
        await asyncio.to_thread(registry.wait_for_line, "Directory unreachable")
        with directory_process(port=port):
            await registered(port, registry)
            assert events(registry) == [
                ("warning", "Directory unreachable; trying again"),
                ("info", "registered with the Directory"),
            ]


async def test_endpoint_token_and_properties_come_from_the_environment_too(tmp_path: Path) -> None:
    with directory_process() as directory:
        environment = {
            "COGMENT_DIRECTORY_ENDPOINT": directory.endpoint,
            "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN": "GH670ploT",
            "COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_HOST": "localhost",
            "COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_PROPERTIES": "Sim=20,hpp",
        }
        with server_process(tmp_path / "archive", environment=environment) as registry:
            service = await registered(directory.port, registry, "GH670ploT")
            assert service.endpoint.host == "localhost"
            assert service.details.properties["Sim"] == "20"
            assert service.details.properties["hpp"] == ""


# What is registered.


async def test_registers_the_given_properties_the_source_of_the_host_and_the_version(tmp_path: Path) -> None:
    with (
        directory_process() as directory,
        server_process(
            tmp_path / "archive",
            f"--directory_endpoint={directory.endpoint}",
            "--directory_registration_properties= Sim = 20 ,hpp,, mem=HIGH",
        ) as registry,
    ):
        service = await registered(directory.port, registry)
        assert service.details.properties == {
            "Sim": "20",
            "hpp": "",
            "mem": "HIGH",
            "__registration_source": "Self-Implicit",
            "__version": __version__,
        }


async def test_given_host_is_registered(tmp_path: Path) -> None:
    flags = ["--directory_registration_host=localhost", "--directory_registration_properties=__version=9"]
    with (
        directory_process() as directory,
        server_process(tmp_path / "archive", f"--directory_endpoint={directory.endpoint}", *flags) as registry,
    ):
        service = await registered(directory.port, registry)
        assert service.endpoint.host == "localhost"
        assert service.details.properties == {
            "__registration_source": "Self-Command_Line",
            "__version": __version__,  # a reserved name, which the user cannot set
        }


IPV6 = ("::", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0")
ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def own_addresses() -> set[str]:
    """Return the IPv4 addresses of this machine that other machines may reach."""
    every = [address for addresses in psutil.net_if_addrs().values() for address in addresses]
    ipv4 = {address.address for address in every if address.family == socket.AF_INET}
    return {address for address in ipv4 if not address.startswith("127.")}


@pytest.mark.skipif(not own_addresses(), reason="this machine has no address but loopback ones")
@pytest.mark.parametrize("host", ["*", "0.0.0.0", "00.0.0.0", *(pytest.param(host, marks=ipv6) for host in IPV6)])
async def test_an_address_of_the_machine_is_registered_when_all_interfaces_are_served(
    tmp_path: Path, host: str
) -> None:
    with directory_process() as directory:
        flags = [f"--directory_endpoint={directory.endpoint}", f"--host={host}"]
        with server_process(tmp_path / "archive", *flags) as registry:
            service = await registered(directory.port, registry)
            assert service.endpoint.host in own_addresses()
            assert service.details.properties["__registration_source"] == "Self-Implicit"


def without_network(*command: str) -> list[str]:
    """Return the prefix of a command that runs in a separate network with only a loopback interface."""
    return ["unshare", "--map-root-user", "--net", *command]


def test_start_fails_without_a_host_to_register_and_names_the_setting(tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(without_network("true"), capture_output=True, check=False).stderr:
        pytest.skip("no network namespace can be created here: unshare is missing or not permitted")
    registry = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
    flags = [f"--archive_dir={tmp_path}", "--directory_endpoint=grpc://127.0.0.1:9005"]
    result = run(*without_network(*registry, *flags))
    assert result.returncode == 3, result
    assert len(result.stderr.splitlines()) == 1
    assert "directory_registration_host" in result.stderr


@pytest.mark.parametrize("endpoint", ["cogment://discover", "grpc://localhost", "localhost:9005", "grpc://a b:9005"])
def test_malformed_endpoint_stops_the_start(tmp_path: Path, endpoint: str) -> None:
    flags = ["--port=0", f"--archive_dir={tmp_path / 'archive'}", f"--directory_endpoint={endpoint}"]
    result = run_cogment("services", "model_registry", *flags)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "directory_endpoint" in result.stderr
    assert endpoint in result.stderr
    assert not (tmp_path / "archive").exists()


async def test_only_a_client_with_the_token_finds_the_registry(tmp_path: Path) -> None:
    flags = ["--directory_authentication_token=GH670ploT"]
    with (
        directory_process() as directory,
        server_process(tmp_path / "archive", f"--directory_endpoint={directory.endpoint}", *flags) as registry,
    ):
        service = await registered(directory.port, registry, "GH670ploT")
        assert await found(directory.port) == []
        assert await found(directory.port, "gh670plot") == []
        async with connected_to_directory(directory.endpoint, "another") as client:
            assert await client.inquire(service.service_id) == []
        assert "GH670ploT" not in "".join(registry.lines + directory.lines)


# Directories that disappear and return.


def new_registry(archive_dir: Path, directory: DirectoryProcess, stack: ExitStack) -> ServerProcess:
    flags = [f"--directory_endpoint={directory.endpoint}", "--log_format=json"]
    return stack.enter_context(server_process(archive_dir, *flags))


QUICK = Pace(
    look_seconds=0.02,
    second_look_seconds=0.01,
    first_check_seconds=0.1,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.1,
)
"""Intervals of milliseconds instead of the default seconds."""


@asynccontextmanager
async def local_directory(port: int = 0, file: Path | str = "") -> AsyncIterator[int]:
    """Return a context manager for a Directory in this process; it returns the port."""
    settings = DirectorySettings(host="127.0.0.1", port=port, persistence_file=str(file), grace_seconds=0)
    async with running_directory(settings) as directory:
        yield directory.port


@asynccontextmanager
async def local_registration(archive_dir: Path, directory_port: int, pace: Pace) -> AsyncIterator[Registration]:
    """Return a context manager for the registration of a server in this process, maintained at these intervals."""
    async with serving(archive_dir) as server:
        settings = Settings(host="127.0.0.1", directory_endpoint=f"grpc://127.0.0.1:{directory_port}")
        registration = Registration(settings, server.port, pace)
        maintaining = asyncio.create_task(registration.run())
        try:
            yield registration
        finally:
            maintaining.cancel()
            with suppress(asyncio.CancelledError):
                await maintaining
            await registration.end(1)


async def only_registry(port: int, other_than: int = 0) -> Service:
    """Wait until a Directory returns one registry, with another id, and return it."""

    async def find() -> Service | None:
        services = await found(port)
        return services[0] if len(services) == 1 and services[0].service_id != other_than else None

    return await eventually(find)


async def test_the_registry_registers_again_with_a_directory_that_lost_its_services(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as log:
        async with AsyncExitStack() as directories:
            port = await directories.enter_async_context(local_directory())
            async with local_registration(tmp_path / "archive", port, QUICK):
                before = await only_registry(port)
                await directories.aclose()
                await directories.enter_async_context(local_directory(port))
                after = await only_registry(port, other_than=before.service_id)
                assert after.details == before.details
    # The log has the new id, so that an operator finds it.
    registrations = [entry["service_id"] for entry in log if entry["event"] == "registered with the Directory"]
    assert after.service_id in registrations


async def test_the_registry_keeps_its_id_in_a_directory_that_kept_its_file(tmp_path: Path) -> None:
    file = tmp_path / "services"
    patient = replace(QUICK, first_check_seconds=Pace().first_check_seconds)
    with structlog.testing.capture_logs() as log:
        async with AsyncExitStack() as directories:
            port = await directories.enter_async_context(local_directory(file=file))
            async with local_registration(tmp_path / "archive", port, patient) as registration:
                before = await only_registry(port)
                await directories.aclose()
                await until(lambda: registration.state is State.WAITING)
                await directories.enter_async_context(local_directory(port, file))
                await until(lambda: registration.state is State.REGISTERED)
                assert await only_registry(port) == before
    assert not any(entry["event"].startswith("registering again") for entry in log)


async def test_the_registry_gets_a_new_id_if_the_directory_assigned_its_id_to_another_service(tmp_path: Path) -> None:
    file = tmp_path / "services"
    async with AsyncExitStack() as directories:
        port = await directories.enter_async_context(local_directory(file=file))
        async with local_registration(tmp_path / "archive", port, QUICK):
            before = await only_registry(port)
            await directories.aclose()
            with socket.create_server(("127.0.0.1", 0)) as other:
                state = json.loads(file.read_text())
                changed = {"type": "other", "port": other.getsockname()[1], "secret": "another", "properties": {}}
                state["services"][0] |= changed
                file.write_text(json.dumps(state))
                await directories.enter_async_context(local_directory(port, file))
                after = await only_registry(port)
                assert after.service_id != before.service_id
                [kept] = await found(port, service_type=ServiceType.OTHER)
                assert kept.service_id == before.service_id


async def moved(directory: Path, stack: ExitStack, end: Callable[[ServerProcess], None]) -> None:
    """Move the name of a registry's Directory to another Directory, and wait until the registry finds it."""
    names = Names(directory)
    names.set("directory.example", "127.0.0.1")
    old = stack.enter_context(directory_process())
    flag = f"--directory_endpoint=grpc://directory.example:{old.port}"
    registry = stack.enter_context(server_process(directory, flag, before=names.command))
    await registered(old.port, registry)
    end(old)
    stack.enter_context(directory_process("--host=127.0.0.2", port=old.port))
    names.set("directory.example", "127.0.0.2")
    await eventually(lambda: found(old.port, host="127.0.0.2"))


async def test_a_directory_that_moved_gets_the_registry_within_30_seconds_even_if_the_old_one_is_frozen(
    tmp_path: Path,
) -> None:
    """The registry has its own host names, which change as in a cluster that moves a service."""
    places = [tmp_path / "killed", tmp_path / "frozen"]
    for place in places:
        place.mkdir()
    with ExitStack() as stack:
        ends: list[Callable[[ServerProcess], None]] = [lambda old: old.kill(), lambda old: old.signal(signal.SIGSTOP)]
        await asyncio.gather(*(moved(place, stack, end) for place, end in zip(places, ends, strict=True)))


def test_a_lost_registration_is_repeated_within_30_seconds_by_default() -> None:
    pace = Pace()
    longest_pause = max(pace.look_seconds, pace.longest_pause_seconds)
    assert longest_pause + pace.second_look_seconds + pace.first_check_seconds <= 30


# Directories that refuse or do not answer.


class ScriptedDirectory:
    """A Directory in this process with scripted replies to `Register`, which accepts all later calls.

    Attributes:
        registrations: The number of calls of `Register`.
    """

    def __init__(self, *answers: wire.RegisterReply | grpc.StatusCode | bytes) -> None:
        self._answers = list(answers)
        self.registrations = 0

    async def _register(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            self.registrations += 1
            answer = self._answers.pop(0) if self._answers else wire.register_reply(service_id=7, secret="s")
            if isinstance(answer, grpc.StatusCode):
                await context.abort(answer, "not now")
            else:
                yield answer if isinstance(answer, bytes) else answer.SerializeToString()

    async def _deregister(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield wire.deregister_reply().SerializeToString()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Return a context manager in which it serves; it returns the endpoint."""
        methods: dict[str, Any] = {
            "Register": grpc.stream_stream_rpc_method_handler(self._register),
            "Deregister": grpc.stream_stream_rpc_method_handler(self._deregister),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(wire.SERVICE_NAME, methods)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            await server.stop(None)


async def test_each_change_of_the_registration_logs_one_line_and_refusals_are_errors(tmp_path: Path) -> None:
    refusal = wire.register_reply(error="no room for registries")
    away = grpc.StatusCode.UNAVAILABLE
    directory = ScriptedDirectory(refusal, refusal, away, away)
    once = replace(QUICK, look_seconds=PATIENCE_SECONDS)  # this Directory does not answer later inquiries
    with structlog.testing.capture_logs() as log:
        async with (
            directory.serving() as endpoint,
            local_registration(tmp_path / "archive", int(endpoint.rpartition(":")[2]), once) as registration,
        ):
            await until(lambda: registration.state is State.REGISTERED)
            assert directory.registrations == 5
    assert relevant((entry["log_level"], entry["event"]) for entry in log) == [
        ("error", "registration refused; trying again"),
        ("warning", "Directory unreachable; trying again"),
        ("info", "registered with the Directory"),
        ("info", "deregistered from the Directory"),
    ]
    [refused] = [entry for entry in log if "refused" in entry["event"]]
    assert "no room for registries" in refused["reason"]


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED])
async def test_a_malformed_answer_is_retried(tmp_path: Path, answer: bytes | grpc.StatusCode) -> None:
    directory = ScriptedDirectory(answer)
    async with directory.serving() as endpoint:
        with server_process(tmp_path / "archive", f"--directory_endpoint={endpoint}") as registry:
            try:
                await eventually(lambda: is_true(directory.registrations == 2))
            finally:
                code = await asyncio.to_thread(registry.stop)
            assert code == 0
            assert not any("Traceback" in line for line in registry.lines)


async def is_true(value: bool) -> bool:
    return value


@contextmanager
def silent_listener() -> Iterator[int]:
    """Return a context manager for a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def nobody() -> Iterator[int]:
    """Return a context manager for a free port."""
    yield free_port()


@pytest.mark.parametrize("absent", [silent_listener, nobody])
async def test_an_absent_directory_delays_neither_service_nor_stop(tmp_path: Path, absent: Callable[[], Any]) -> None:
    with (
        absent() as port,
        server_process(tmp_path / "archive", f"--directory_endpoint=grpc://127.0.0.1:{port}") as registry,
    ):
        async with connected(registry.port) as client:
            await client.create_model("m")
            await client.publish("m", b"bytes")
            assert await client.data("m") == b"bytes"
        assert await asyncio.to_thread(seconds_to_stop, registry) < STOPPED_SECONDS


async def test_a_vanished_directory_does_not_delay_the_stop(tmp_path: Path) -> None:
    with directory_process() as directory, ExitStack() as stack:
        registry = new_registry(tmp_path / "archive", directory, stack)
        await registered(directory.port, registry)
        directory.signal(signal.SIGSTOP)  # connections stay open without replies
        try:
            assert await asyncio.to_thread(seconds_to_stop, registry) < STOPPED_SECONDS
        finally:
            directory.signal(signal.SIGCONT)
        assert events(registry)[-1] == ("warning", "deregistration from the Directory failed")


# Load, and the end.


async def promise(client: Client, size: int) -> Any:
    """Return an active upload that has reserved an amount of memory."""
    await client.create_model("m")
    call = client.uploading()
    await call.write(header("m", size).SerializeToString())
    return call


async def test_the_registry_with_the_lower_load_is_returned(tmp_path: Path) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(directory_process("--load_balancing", "--check_seconds=0.2"))
        flags = [f"--directory_endpoint={directory.endpoint}", f"--cache_max_bytes={64 * 2**20}"]
        idle, loaded = (stack.enter_context(server_process(tmp_path / name, *flags)) for name in ("idle", "loaded"))

        async def handed_out(*registries: ServerProcess) -> bool:
            services = await found(directory.port)
            return {each.endpoint.port for each in services} == {each.port for each in registries}

        await eventually(lambda: handed_out(idle, loaded))
        async with connected(loaded.port) as client:
            upload = await promise(client, 32 * 2**20)
            await eventually(lambda: is_loaded(client))
            await eventually(lambda: handed_out(idle))
            upload.cancel()
            await eventually(lambda: handed_out(idle, loaded))


async def is_loaded(client: Client) -> bool:
    return int((await client.status("overall_load"))["overall_load"]) > 100


async def test_a_stopping_registry_is_not_returned_while_it_drains(tmp_path: Path) -> None:
    with directory_process() as directory, ExitStack() as stack:
        registry = new_registry(tmp_path / "archive", directory, stack)
        await registered(directory.port, registry)
        async with connected(registry.port) as client:
            upload = await promise(client, 1000)
            await eventually(lambda: has_upload(client))
            registry.signal(signal.SIGTERM)
            await eventually(lambda: is_gone(directory.port))
            assert registry.is_running
            upload.cancel()
        assert await asyncio.to_thread(registry.wait) == 0
        assert events(registry)[-1] == ("info", "deregistered from the Directory")


async def has_upload(client: Client) -> bool:
    return (await client.status("uploads"))["uploads"] == "1"


async def is_gone(port: int) -> bool:
    async with connected_to_directory(f"grpc://127.0.0.1:{port}") as client:
        return not await client.inquire(Details(ServiceType.MODEL_REGISTRY))
