"""The commands that list versions with their metrics, and models with their aliases."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.wire import messages as m
from tests.in_process import run_in_process
from tests.processes import run_cogment
from tests.registry_client.scripted import Call, has_model, scripted, version_message
from tests.terminal import on_terminal

WORDS = ("client", "model_registry")


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    """A client of a server whose model "policy" has three versions, with tags, metrics and an alias."""
    with ModelRegistry(shared_endpoint) as client:
        for number in range(1, 4):
            upload = client.store if number == 2 else client.publish
            upload("policy", bytes(10 * number), user_data={"step": number})
        client.update_version("policy", 1, metrics={"return": 9.5, "a loss": 1e-9})
        client.update_version("policy", 2, metrics={"return": 487.5}, tags={"stage": "candidate"})
        client.set_alias("policy", "production", 2)
        yield client


def output(*arguments: str, endpoint: str) -> str:
    result = run_in_process(*WORDS, *arguments, f"--endpoint={endpoint}")
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def rows(*arguments: str, endpoint: str) -> list[list[str]]:
    """Return the rows of a table, without the times of creation."""
    lines = [line.split() for line in output(*arguments, endpoint=endpoint).splitlines()]
    position = lines[0].index("CREATED")
    return [words[:position] + words[position + 1 :] for words in lines]


def test_versions_are_listed_with_a_column_for_each_metric(shared_endpoint: str, registry: ModelRegistry) -> None:
    head = output("list_versions", "policy", endpoint=shared_endpoint).splitlines()[0]
    assert re.search(r'  ALIASES +"a loss"  return  TAGS +USER_DATA$', head)
    assert rows("list_versions", "policy", "--filter=metrics:return", endpoint=shared_endpoint)[1:] == [
        ["1", "transient", "10", "-", "1e-09", "9.5", "-", "step=1"],
        ["2", "archived", "20", "production", "-", "487.5", "stage=candidate", "step=2"],
    ]
    assert rows("list_versions", "policy", "--filter=version_number = 3", endpoint=shared_endpoint) == [
        ["VERSION", "KIND", "SIZE", "USER_DATA"],
        ["3", "transient", "30", "step=3"],
    ]


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        ([], "1 2 3"),
        (["--archived"], "2"),
        (["--filter=metrics.return < 10"], "1"),
        (["--filter=metrics.return < 10", "--archived"], ""),
        (["--filter=version_number = 1 OR version_number = 2", "--archived"], "2"),
        (["--filter=metrics:return", "--order_by=metrics.return desc"], "2 1"),
        (["--order_by=data_size desc", "--limit=2"], "3 2"),
    ],
)
def test_list_versions_and_find_versions_search_alike(
    shared_endpoint: str, registry: ModelRegistry, flags: list[str], numbers: str
) -> None:
    assert output("list_versions", "policy", *flags, "--quiet", endpoint=shared_endpoint).split() == numbers.split()
    listed = json.loads(output("list_versions", "policy", *flags, "--json", endpoint=shared_endpoint))
    assert [version["number"] for version in listed] == [int(number) for number in numbers.split()]
    if "--archived" not in flags:
        found = json.loads(output("find_versions", "policy", *flags, "--json", endpoint=shared_endpoint))
        assert found == listed
        everywhere = output("find_versions", *flags, "--quiet", endpoint=shared_endpoint).splitlines()
        assert everywhere == [f"policy {number}" for number in numbers.split()]


def test_the_position_of_an_error_in_a_filter_is_shown(shared_endpoint: str, registry: ModelRegistry) -> None:
    result = run_in_process(
        *WORDS, "list_versions", "policy", "--filter=metrics.return >", f"--endpoint={shared_endpoint}"
    )
    assert result.returncode == 1
    assert "at character 17" in result.stderr


def test_metrics_are_left_out_on_a_narrow_terminal(shared_endpoint: str, registry: ModelRegistry) -> None:
    registry.update_version("policy", 3, metrics={f"metric{number:02}": number for number in range(20)})
    for columns in (70, 120):
        words = (*WORDS, "list_versions", "policy", f"--endpoint={shared_endpoint}")
        with on_terminal(*words, columns=columns) as terminal:
            assert terminal.wait() == 0, terminal.text
        head, *lines = terminal.plain.splitlines()
        assert all(len(line) <= columns for line in (head, *lines))
        titles = head.split()
        assert titles[:2] == ["VERSION", "KIND"]
        assert "SIZE" in titles
        assert '"a' in titles
        assert "metric19" not in titles


def test_models_are_listed_with_their_aliases(shared_endpoint: str, registry: ModelRegistry) -> None:
    registry.create_model("empty")
    assert rows_of_models(shared_endpoint) == [
        ["empty", "-", "0", "0", "-", "-"],
        ["policy", "3", "3", "20", "*", "production=2"],
    ]


def rows_of_models(endpoint: str) -> list[list[str]]:
    lines = [line.split() for line in output("list_models", endpoint=endpoint).splitlines()[1:]]
    return [["*" if word.endswith("Z") else word for word in words] for words in lines]


async def test_the_lists_of_an_original_server_have_the_columns_that_it_knows() -> None:
    async def infos(call: Call) -> None:
        request = m.RetrieveVersionInfosRequest.FromString(await call.receive() or b"")
        versions = [version_message(number, size_bytes=10, archived=number == 1) for number in (1, 2)]
        if request.version_handle not in ("", "0"):
            versions = []
        await call.send(m.RetrieveVersionInfosReply(version_infos=versions, next_version_handle="3"))

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return run_cogment(*WORDS, *words, f"--endpoint=grpc://127.0.0.1:{server.port}")

    async with scripted(RetrieveVersionInfos=infos, RetrieveModels=has_model) as server:
        table = (await asyncio.to_thread(run, "list_versions", "policy")).stdout
        assert [line.split()[:2] for line in table.splitlines()] == [
            ["VERSION", "KIND"],
            ["1", "archived"],
            ["2", "transient"],
        ]
        assert (await asyncio.to_thread(run, "list_versions", "policy", "--archived", "--quiet")).stdout == "1\n"
        model = json.loads((await asyncio.to_thread(run, "show_model", "policy", "--json")).stdout)
        assert (model["versions"], model["archived_bytes"], model["latest_version"]["number"]) == (2, 10, 2)
        refused = await asyncio.to_thread(run, "list_versions", "policy", "--filter=tags:x")
        assert "it is the original one" in refused.stderr
