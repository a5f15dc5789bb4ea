"""`cogment client directory` and `cogment services directory` as a user runs them: arguments, exit codes, errors."""

import asyncio
import dataclasses
import json
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cogment_model_registry import __version__
from cogment_model_registry.discovery.client import connected
from cogment_model_registry.discovery.server import running
from cogment_model_registry.records.services import Details, Endpoint, Protocol, Service, ServiceType
from cogment_model_registry.settings import DirectorySettings, all_settings
from tests.directory.processes import directory_process
from tests.in_process import run_in_process
from tests.ports import free_port
from tests.processes import run_cogment
from tests.registry_client.network import Freezing, listening
from tests.waiting import until

SETTINGS = DirectorySettings(port=0, host="127.0.0.1", persistence_file="", check_seconds=0.1, grace_seconds=0)
NAMED = ["--protocol=cogment", "--host=somewhere", "--type=modelregistry"]
"""The flags of a service that is never checked."""


@asynccontextmanager
async def directory() -> AsyncIterator[str]:
    async with running(dataclasses.replace(SETTINGS)) as server:
        yield f"grpc://127.0.0.1:{server.port}"


@pytest.fixture
async def endpoint() -> AsyncIterator[str]:
    async with directory() as address:
        yield address


class Cogment:
    """Runs `cogment client directory ...` with a Directory that runs in this process."""

    def __init__(self, endpoint: str, token: str = "") -> None:
        self.environment = {"COGMENT_DIRECTORY_ENDPOINT": endpoint, "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN": token}

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment
        return await asyncio.to_thread(run_cogment, "client", "directory", *arguments, environment=environment)

    async def output(self, *arguments: str) -> str:
        """Return the output of a command, which must succeed with an empty standard error."""
        result = await self.run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    async def register(self, *arguments: str) -> tuple[int, str]:
        """Register with these arguments, and return the id and the secret."""
        output = await self.output("register", *arguments)
        match = re.fullmatch(r"Service ID \[(\d+)\]  Secret \[(\S+)\]\n", output)
        assert match, output
        return int(match[1]), match[2]


@pytest.fixture
def cogment(endpoint: str) -> Cogment:
    return Cogment(endpoint)


async def registered(endpoint: str, service_type: ServiceType = ServiceType.MODEL_REGISTRY) -> list[Service]:
    async with connected(endpoint) as client:
        return await client.inquire(Details(service_type))


async def add(endpoint: str, token: str = "", **properties: str) -> tuple[int, str]:
    """Register a service that is never checked, and return its id and secret."""
    details = Details(ServiceType.MODEL_REGISTRY, properties)
    async with connected(endpoint, token) as client:
        return await client.register(Endpoint(Protocol.COGMENT, "somewhere", 0), details)


def failed(result: subprocess.CompletedProcess[str], code: int, words: str = "") -> bool:
    """Return whether a command failed with an exit code and one line on standard error that contains these parts."""
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert words in result.stderr
    assert result.returncode == code
    return True


# register and deregister.


async def test_register_prints_the_id_and_secret_for_deregister(endpoint: str, cogment: Cogment) -> None:
    service_id, secret = await cogment.register(*NAMED, "--properties=Sim=20, hpp")
    [service] = await registered(endpoint)
    assert service == Service(
        service_id,
        Endpoint(Protocol.COGMENT, "somewhere", 0),
        Details(ServiceType.MODEL_REGISTRY, {"Sim": "20", "hpp": ""}),
    )
    assert await cogment.output("deregister", f"--service_id={service_id}", f"--secret={secret}") == ""
    assert await registered(endpoint) == []


async def test_register_and_deregister_print_json(endpoint: str, cogment: Cogment) -> None:
    reply = json.loads(await cogment.output("register", "--json", *NAMED))
    assert set(reply) == {"service_id", "secret"}
    [service] = await registered(endpoint)
    assert service.service_id == reply["service_id"]
    flags = [f"--service_id={reply['service_id']}", f"--secret={reply['secret']}"]
    assert json.loads(await cogment.output("deregister", "--json", *flags)) == {"service_id": reply["service_id"]}
    assert await registered(endpoint) == []


async def test_register_a_permanent_service_behind_encryption(endpoint: str, cogment: Cogment) -> None:
    flags = ["--host=example.org", "--port=9000", "--ssl_required=true", "--permanent=true", "--type=datastore"]
    service_id, _ = await cogment.register(*flags)
    [service] = await registered(endpoint, ServiceType.DATASTORE)
    assert service == Service(
        service_id, Endpoint(Protocol.GRPC_SSL, "example.org", 9000), Details(ServiceType.DATASTORE), permanent=True
    )


async def test_a_refusal_of_the_directory_exits_with_1_and_its_message(endpoint: str, cogment: Cogment) -> None:
    service_id, secret = await add(endpoint)
    wrong_secret, wrong_id, no_port = await asyncio.gather(
        cogment.run("deregister", f"--service_id={service_id}", "--secret=wrong"),
        cogment.run("deregister", f"--service_id={service_id + 1}", f"--secret={secret}"),
        cogment.run("register", "--host=localhost", "--type=modelregistry"),
    )
    assert failed(wrong_secret, 1, "secret")
    assert failed(wrong_id, 1, str(service_id + 1))
    assert failed(no_port, 1, "port")


# inquire.


async def test_inquire_shows_services_for_people(endpoint: str, cogment: Cogment) -> None:
    old_id, _ = await add(endpoint, b="2", a="")
    async with connected(endpoint) as client:
        encrypted = Endpoint(Protocol.GRPC_SSL, "example.org", 9000)
        new_id, _ = await client.register(encrypted, Details(ServiceType.MODEL_REGISTRY), permanent=True)
    assert await cogment.output("inquire", "--type=modelregistry") == (
        "[2] Services found\n"
        f"Service ID [{new_id}]\n"
        "        Endpoint [grpc://example.org:9000] SSL required [true]\n"
        "        Type [modelregistry]\n"
        "        Permanent\n"
        f"Service ID [{old_id}]\n"
        "        Endpoint [cogment://somewhere] SSL required [false]\n"
        "        Type [modelregistry]\n"
        "        [a] = []\n"
        "        [b] = [2]\n"
    )
    by_id, by_property, none = await asyncio.gather(
        cogment.output("inquire", f"--service_id={old_id}"),
        cogment.output("inquire", "--type=modelregistry", "--properties=b=2"),
        cogment.output("inquire", "--type=modelregistry", "--properties=b=3"),
    )
    assert by_id == by_property
    assert by_id.startswith(f"[1] Services found\nService ID [{old_id}]\n")
    assert none == "[0] Services found\n"


async def test_inquire_prints_json(endpoint: str, cogment: Cogment) -> None:
    service_id, _ = await add(endpoint, Sim="20")
    assert json.loads(await cogment.output("inquire", "--json", "--type=modelregistry")) == [
        {
            "service_id": service_id,
            "endpoint": "cogment://somewhere",
            "protocol": "cogment",
            "type": "modelregistry",
            "permanent": False,
            "properties": {"Sim": "20"},
        }
    ]
    assert json.loads(await cogment.output("inquire", "--json", "--type=actor")) == []


async def test_the_token_comes_from_a_flag_or_the_environment(endpoint: str, cogment: Cogment) -> None:
    token = "--directory_authentication_token=GH670ploT"
    await cogment.register(*NAMED, token)
    with_flag, with_variable, without = await asyncio.gather(
        cogment.output("inquire", "--type=modelregistry", token),
        Cogment(endpoint, "GH670ploT").output("inquire", "--type=modelregistry"),
        cogment.output("inquire", "--type=modelregistry"),
    )
    assert with_flag == with_variable
    assert with_flag.startswith("[1]")
    assert without == "[0] Services found\n"


async def test_a_flag_for_the_endpoint_overrides_the_environment(endpoint: str) -> None:
    elsewhere = Cogment(f"grpc://127.0.0.1:{free_port()}")
    flag = f"--directory_endpoint={endpoint}"
    assert await elsewhere.output("inquire", "--type=actor", flag) == "[0] Services found\n"


# wait_for_ready.


async def test_wait_for_ready_waits_for_a_healthy_service(endpoint: str, cogment: Cogment) -> None:
    waiting = asyncio.create_task(cogment.output("wait_for_ready", "--type=modelregistry", "--properties=a=1"))
    async with connected(endpoint) as client:
        for properties in ({}, {"a": "1"}):
            assert not waiting.done()
            details = Details(ServiceType.MODEL_REGISTRY, properties)
            await client.register(Endpoint(Protocol.COGMENT, "somewhere", 0), details)
        assert await waiting == "ready\n"


async def test_wait_for_ready_prints_the_services_as_json(endpoint: str, cogment: Cogment) -> None:
    service_id, _ = await add(endpoint)
    by_type, by_id = await asyncio.gather(
        cogment.output("wait_for_ready", "--json", "--type=modelregistry"),
        cogment.output("wait_for_ready", "--json", f"--service_id={service_id}"),
    )
    assert json.loads(by_type) == json.loads(by_id)
    assert [service["service_id"] for service in json.loads(by_type)] == [service_id]


async def test_wait_for_ready_without_a_service_waits_for_the_directory() -> None:
    port = free_port()
    waiting = asyncio.create_task(Cogment(f"grpc://127.0.0.1:{port}").output("wait_for_ready"))
    async with running(dataclasses.replace(SETTINGS, port=port)):
        assert await waiting == "ready\n"


async def test_wait_for_ready_reaches_the_replacement_of_a_frozen_directory(endpoint: str) -> None:
    relay = Freezing(int(endpoint.rpartition(":")[2]))
    async with listening(relay.relay) as port:
        cogment = Cogment(f"grpc://127.0.0.1:{port}")
        waiting = asyncio.create_task(cogment.output("wait_for_ready", "--type=modelregistry"))
        await until(lambda: relay.replies > 5)  # the Directory replied that there is none
        relay.freeze()
        await add(endpoint)
        assert await waiting == "ready\n"


async def test_wait_for_ready_gives_up_with_3_for_a_service_and_4_for_the_directory(cogment: Cogment) -> None:
    absent = Cogment(f"grpc://127.0.0.1:{free_port()}")
    no_service, no_id, no_directory = await asyncio.gather(
        cogment.run("wait_for_ready", "--type=modelregistry", "--timeout=1"),
        cogment.run("wait_for_ready", "--service_id=7", "--timeout=1"),
        absent.run("wait_for_ready", "--timeout=1"),
    )
    assert failed(no_service, 3, "1 second")
    assert failed(no_id, 3)
    assert failed(no_directory, 4)


# No Directory, and wrong arguments.


@pytest.mark.parametrize(
    "arguments",
    [
        ["inquire", "--type=modelregistry"],
        ["register", *NAMED],
        ["deregister", "--service_id=1", "--secret=s"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unavailable_directory_exits_with_4_and_one_line(arguments: list[str]) -> None:
    environment = {"COGMENT_DIRECTORY_ENDPOINT": f"grpc://127.0.0.1:{free_port()}"}
    assert failed(run_in_process("client", "directory", *arguments, environment=environment), 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["inquire", "--type=modelregistry"],
        ["wait_for_ready"],
        ["wait_for_ready", "--type=modelregistry"],
        ["register", *NAMED],
        ["deregister", "--service_id=1", "--secret=s"],
    ],
    ids=" ".join,
)
def test_a_directory_that_never_answers_exits_with_4_and_one_line_in_time(arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {"COGMENT_DIRECTORY_ENDPOINT": f"grpc://127.0.0.1:{silent.getsockname()[1]}"}
        result = run_in_process("client", "directory", *arguments, "--timeout=0.5", environment=environment)
    assert failed(result, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inquire"], "--service_id"),
        (["inquire", "--properties=a=1"], "--type"),
        (["inquire", "--service_id=1", "--type=actor"], "--service_id"),
        (["inquire", "--service_id=18446744073709551616"], "18446744073709551616"),
        (["inquire", "--type=nonsense"], "modelregistry"),
        (["inquire", "--type=actor", "--properties=a=b=c"], "a=b=c"),
        (["inquire", "--type=actor", "--nonsense"], "--nonsense"),
        (["inquire", "--type=actor", "--directory_endpoint=cogment://discover"], "grpc://host:port"),
        (["inquire", "--type=actor", "--directory_endpoint=grpc://localhost:65536"], "grpc://host:port"),
        (["wait_for_ready", "--properties=a=1", "--timeout=1"], "--type"),
        (["wait_for_ready", "--timeout=soon"], "soon"),
        (["inquire", "--type=actor", "--timeout=0"], "larger than 0"),
        (["register", "--type=actor"], "--host"),
        (["register", "--host=a", "--type=actor", "--port=65536"], "65536"),
        (["deregister", "--service_id=1"], "--secret"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_exit_with_2_and_one_line(arguments: list[str], words: str) -> None:
    assert failed(run_in_process("client", "directory", *arguments), 2, words)


def test_a_wrong_endpoint_in_the_environment_exits_with_2() -> None:
    environment = {"COGMENT_DIRECTORY_ENDPOINT": "nonsense"}
    result = run_in_process("client", "directory", "inquire", "--type=actor", environment=environment)
    assert failed(result, 2, "nonsense")


@pytest.mark.parametrize("token", ["tökén", "a\nb"])
def test_a_token_that_cannot_be_sent_exits_with_2(token: str) -> None:
    flag = f"--directory_authentication_token={token}"
    result = run_in_process("client", "directory", "inquire", "--type=actor", flag)
    assert failed(result, 2, "token")


# The Directory as a service.


def test_help_lists_every_setting_with_its_variable() -> None:
    result = run_in_process("services", "directory", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for setting in all_settings(DirectorySettings):
        assert f"--{setting.name}" in result.stdout
        assert setting.environment in result.stdout


def test_version_is_printed() -> None:
    result = run_in_process("services", "directory", "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert __version__ in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_directory_with_0(number: signal.Signals) -> None:
    with directory_process() as process:
        assert await registered(process.endpoint) == []
        process.signal(number)
        assert process.wait() == 0
        assert not any("Traceback" in line for line in process.lines)


def test_a_port_in_use_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_cogment("services", "directory", f"--port={port}", "--host=127.0.0.1", "--persistence_file=")
    assert failed(result, 3, str(port))


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "services").write_text("nonsense")
    environment = {"COGMENT_DIRECTORY_PERSISTENCE_FILE": str(tmp_path / "services"), "COGMENT_DIRECTORY_PORT": "0"}
    result = run_cogment("services", "directory", environment=environment)
    assert failed(result, 3, str(tmp_path / "services"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "65536"), ("registration_lag", "-1"), ("check_seconds", "0"), ("load_balancing", "maybe")],
)
def test_a_wrong_setting_stops_the_start_with_2(name: str, value: str) -> None:
    assert failed(run_in_process("services", "directory", f"--{name}={value}"), 2, name)
