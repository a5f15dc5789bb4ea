"""HTTP of servers that share a catalog: each shows and serves what all of them have."""

import contextlib
import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry
from tests.processes import ServerProcess
from tests.several import endpoint, several_processes
from tests.waiting import wait_until
from tests.web.http import Answer, Http, HttpServer

DATA = os.urandom(3 << 20)
PAGE = {"Accept": "text/html"}


@pytest.fixture
def processes(database: str, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    """Two servers with HTTP."""
    with several_processes(database, tmp_path / "shared", "--http_port=0") as running:
        yield running


@pytest.fixture
def https(processes: list[ServerProcess]) -> list[Http]:
    """A client of HTTP for each server."""
    return [HttpServer(process).http for process in processes]


def test_a_version_in_the_memory_of_one_server_is_downloaded_from_another(https: list[Http]) -> None:
    one, other = https
    assert one.ask("PUT", "/models/policy/versions", DATA).status == HTTPStatus.CREATED
    path = "/models/policy/versions/1/data"

    def part() -> Answer:
        return other.get(path, {"Range": "bytes=1048576-2097151"})

    assert (part().status, part().body) == (HTTPStatus.PARTIAL_CONTENT, DATA[1 << 20 : 2 << 20])
    answer = other.get(path)
    assert (answer.status, answer.body) == (HTTPStatus.OK, DATA)
    assert answer.headers["etag"] == one.get(path).headers["etag"]
    assert other.get("/models/policy/versions/latest/data").body == DATA


def test_pages_of_one_server_show_the_consumers_of_all(processes: list[ServerProcess], https: list[Http]) -> None:
    one, other = https
    for _ in range(3):
        assert one.ask("PUT", "/models/policy/versions", DATA).status == HTTPStatus.CREATED
    reported = []
    for index, process in enumerate(processes):
        with ModelRegistry(endpoint(process)) as registry:
            reported.append(f"actor-{index}")
            registry.report_consumer("policy", reported[-1], version=1)
    for http in (one, other):
        document = http.get("/api/v1/models/policy/consumers").document
        assert sorted(each["consumer_id"] for each in document["consumers"]) == reported
        for path in ("/", "/models/policy"):
            text = http.get(path, PAGE).text
            assert [name for name in reported if name in text] == reported, path


def test_a_change_at_one_server_is_on_the_pages_of_another(https: list[Http]) -> None:
    one, other = https
    assert one.ask("PUT", "/models/policy/versions", DATA).status == HTTPStatus.CREATED
    promoted = other.ask("POST", "/api/v1/models/policy/versions/1/promote", {"alias": "production"})
    assert promoted.status == HTTPStatus.OK
    assert one.get("/models/policy/aliases/production/data").body == DATA
    record = one.get("/api/v1/models/policy/versions/1").document
    assert (record["archived"], record["aliases"]) == (True, ["production"])
    assert "production" in one.get("/models/policy", PAGE).text


def test_an_open_page_and_a_watch_follow_what_is_published_at_another_server(https: list[Http]) -> None:
    one, other = https
    assert one.ask("PUT", "/models/policy/versions", DATA).status == HTTPStatus.CREATED
    for path, news in (
        ("/models/policy/live", b"/models/policy/versions/{number}"),
        ("/api/v1/models/policy/events", b'"number":{number},'),
    ):
        with contextlib.closing(other.connect()) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.readline()  # it is open
            number = one.ask("PUT", "/models/policy/versions", DATA).document["number"]
            wanted = news.replace(b"{number}", str(number).encode())
            wait_until(lambda answer=answer, wanted=wanted: wanted in answer.readline())  # type: ignore[misc] # lambdas have no types
