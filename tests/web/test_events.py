"""Server-sent events of a watch: what comes, resuming, and clients that are slow or gone."""

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cogment_model_registry import ModelRegistry
from tests.processes import run_cogment
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import Http, HttpServer, http_server


class Events:
    """The events of a stream, one after the other."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.headers = response.headers

    def next(self) -> tuple[str, str, Any]:
        """Return the next event: its kind, its id, and what it says."""
        fields: dict[str, str] = {}
        while True:
            line = self._response.readline().decode()
            assert line, "the stream has ended"
            if line == "\n" and fields:
                return fields["event"], fields.get("id", ""), json.loads(fields["data"])
            name, _, value = line.rstrip("\n").partition(": ")
            if name.strip(":"):
                fields[name] = value

    def until(self, kind: str) -> list[tuple[str, str, Any]]:
        """Return the events up to the first one of a kind."""
        found = [self.next()]
        while found[-1][0] != kind:
            found.append(self.next())
        return found


@contextmanager
def events(client: Http, path: str, **headers: str) -> Iterator[Events]:
    """Return a context manager for a stream."""
    connection = client.connect()
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    assert response.status == HTTPStatus.OK, response.read()
    try:
        yield Events(response)
    finally:
        response.close()
        connection.close()


def test_the_latest_version_comes_first_and_then_the_news(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1")
    registry.publish("policy", b"2", tags={"a": "b"})
    with events(http, "/api/v1/models/policy/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        model, version, _ = stream.until("caught_up")
        assert (model[0], model[2]["model_id"]) == ("model", "policy")
        assert (version[0], version[2]["number"], version[2]["tags"]) == ("version", 2, {"a": "b"})
        registry.publish("policy", b"3")
        assert stream.until("version")[-1][2]["number"] == 3
        registry.delete_version("policy", 3)
        assert stream.until("gone")[-1][2] == {"model_id": "policy", "version_number": 3, "reason": "deleted"}


def test_a_stream_goes_on_after_the_last_event_that_a_browser_had(http: Http, registry: ModelRegistry) -> None:
    for number in range(1, 4):
        registry.publish("policy", str(number).encode())
    with events(http, "/api/v1/models/policy/events?mode=all") as stream:
        versions = [each for each in stream.until("caught_up") if each[0] == "version"]
    assert [each[2]["number"] for each in versions] == [1, 2, 3]
    registry.publish("policy", b"4")
    for resumed in (
        {"path": "/api/v1/models/policy/events?mode=all", "Last_Event_ID": versions[1][1]},
        {"path": f"/api/v1/models/policy/events?mode=all&resume_token={versions[1][1]}"},
    ):
        path = resumed.pop("path")
        with events(http, path, **resumed) as stream:
            numbers = [each[2]["number"] for each in stream.until("caught_up") if each[0] == "version"]
        assert numbers == [3, 4]


def test_consumers_and_several_models_are_watched_if_that_is_wanted(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1")
    registry.publish("other", b"1")
    registry.publish("third", b"1")
    with events(http, "/api/v1/events?model=policy&model=other&consumers") as stream:
        found = stream.until("caught_up")
        assert {each[2]["model_id"] for each in found if each[0] == "version"} == {"policy", "other"}
        registry.report_consumer("policy", "actor-1", version=1)
        assert stream.until("consumer")[-1][2]["consumer_id"] == "actor-1"


def test_filters_and_malformed_wishes(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"1", metrics={"return": 1.0})
    registry.publish("policy", b"2", metrics={"return": 2.0})
    with events(http, "/api/v1/models/policy/events?mode=all&filter=metrics.return%3E1") as stream:
        assert [each[2]["number"] for each in stream.until("caught_up") if each[0] == "version"] == [2]
    for query in ("mode=some", "filter=(", "resume_token=x", "unknown=1", "consumers=perhaps"):
        assert http.get(f"/api/v1/models/policy/events?{query}").status == HTTPStatus.BAD_REQUEST


def test_who_may_not_read_gets_no_stream(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--anonymous=nothing") as server:
        assert server.http.get("/api/v1/events").status == HTTPStatus.UNAUTHORIZED


def test_a_stream_ends_with_an_event_when_the_server_stops(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        with events(server.http, "/api/v1/events") as stream:
            stream.until("caught_up")
            server.process.signal(signal.SIGTERM)
            assert stream.until("error")[-1][2]["status"] == HTTPStatus.SERVICE_UNAVAILABLE
        assert server.process.wait() == 0


def test_streams_whose_client_is_gone_end_on_the_server_too(
    shared_http: HttpServer, http: Http, registry: ModelRegistry
) -> None:
    registry.publish("policy", b"1")
    connections = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS)
        connection.sendall(b"GET /api/v1/models/policy/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        connections.append(connection)
    wait_until(lambda: registry.status()["watchers"] == "20", registry.status)
    for connection in connections:
        connection.close()
    wait_until(lambda: registry.status()["watchers"] == "0", registry.status)
    assert not [line for line in shared_http.process.lines if "Traceback" in line]


def test_a_stream_ends_with_the_session_that_opened_it(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing") as server:
        made = run_cogment("token", "create", "--name=reader", "--scope=read", f"--archive_dir={archive}")
        answer = server.http.form("/login", f"token={made.stdout.strip()}&next=/")
        (cookie,) = answer.cookies.values()
        with events(server.http, "/api/v1/events", Cookie=cookie) as stream:
            stream.until("caught_up")
            assert server.http.form("/logout", "", {"Cookie": cookie}).status == HTTPStatus.SEE_OTHER
            kind, _, document = stream.next()
            assert (kind, document["status"], document["error"]) == ("error", 401, "UnauthenticatedError")
        assert server.http.get("/live?session=yes").text == "event: ended\ndata:\n\n"
