"""The metrics of the process that serves HTTP, as the server shows them."""

import contextlib
import http.client
import json
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from cogment_model_registry.server.http_metrics import HttpMetrics
from cogment_model_registry.web.tally import Tally
from cogment_model_registry.wire.http_reports import KEY, Counts, Report, State
from tests.waiting import wait_until
from tests.web.http import Http, HttpServer, http_server

MIB = 1024 * 1024
PREFIX = "cogment_model_registry_http_"
UPLOAD, DOWNLOAD = "PUT /models/{model}/versions", "GET /models/{model}/versions/{version}/data"

Samples = Mapping[tuple[str, ...], float]


def samples(http: Http) -> Samples:
    """Return the metrics of HTTP by name and values of labels, in the order of the names of the labels."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (sample.name.removeprefix(PREFIX), *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }


def has_sample(http: Http, *key: str) -> Samples | None:
    """Return the metrics if one of them is not 0."""
    found = samples(http)
    return found if found.get(key) else None


def has_streams(http: Http, count: int) -> Samples | None:
    """Return the metrics if so many streams are open."""
    found = samples(http)
    return found if found["streams",] == count else None


def test_requests_are_counted_with_their_bytes_and_seconds(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        http = server.http
        for _ in range(2):
            assert http.ask("PUT", "/models/policy/versions", bytes(3 * MIB)).status == HTTPStatus.CREATED
        assert http.get("/models/policy/versions/1/data").status == HTTPStatus.OK  # from a descriptor
        assert http.get("/models/policy/versions/1/data", {"Range": "bytes=0-9"}).status == HTTPStatus.PARTIAL_CONTENT
        assert http.ask("HEAD", "/models/policy/versions/1/data").status == HTTPStatus.OK
        assert http.get("/models/policy/versions/9/data").status == HTTPStatus.NOT_FOUND
        assert http.get("/nowhere").status == HTTPStatus.NOT_FOUND
        assert http.get("/healthz", {"Host": "evil.example"}).status == HTTPStatus.MISDIRECTED_REQUEST
        assert http.ask("DELETE", "/healthz").status == HTTPStatus.METHOD_NOT_ALLOWED
        found = wait_until(lambda: has_sample(http, "requests_total", "other", "405"))
        assert found["requests_total", UPLOAD, "201"] == 2
        assert found["requests_total", DOWNLOAD, "200"] == 1
        assert found["requests_total", DOWNLOAD, "206"] == 1
        assert found["requests_total", DOWNLOAD, "404"] == 1
        assert found["requests_total", DOWNLOAD.replace("GET", "HEAD"), "200"] == 1
        assert found["requests_total", "other", "404"] == 1
        assert found["requests_total", "other", "421"] == 1
        assert found["received_bytes_total", UPLOAD] == 6 * MIB
        assert 3 * MIB + 10 < found["sent_bytes_total", DOWNLOAD] < 3 * MIB + 1000  # with the body of an error
        assert found["request_seconds_count", UPLOAD] == 2
        assert found["request_seconds_bucket", "+Inf", DOWNLOAD] == 3
        assert found["request_seconds_sum", UPLOAD] > 0
        assert found["restarts_total",] == 0


def test_a_download_over_a_connection_that_cannot_take_descriptors_is_counted_too(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--local_socket=off") as server:
        assert server.http.ask("PUT", "/models/policy/versions", bytes(3 * MIB)).status == HTTPStatus.CREATED
        assert server.http.get("/models/policy/versions/1/data").status == HTTPStatus.OK
        found = wait_until(lambda: has_sample(server.http, "requests_total", DOWNLOAD, "200"))
        assert found["sent_bytes_total", DOWNLOAD] == 3 * MIB


def test_streams_requests_connections_and_sessions_are_shown_while_they_last(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive) as server:
        http = server.http
        assert http.ask("PUT", "/models/policy/versions", b"data").status == HTTPStatus.CREATED
        with contextlib.ExitStack() as stack:
            for path in ("/api/v1/models/policy/events", "/models/policy/live", "/live"):
                connection = stack.enter_context(contextlib.closing(http.connect()))
                connection.request("GET", path)
                assert connection.getresponse().status == HTTPStatus.OK
            found = wait_until(lambda: has_streams(http, 3))
            assert found["requests_in_progress",] >= 3
            assert found["connections",] >= 3
            assert found["sent_bytes_total", "GET /live"] > 0  # before the stream ends
            assert ("requests_total", "GET /live", "200") not in found
        wait_until(lambda: has_streams(http, 0))
        assert http.form("/login", f"token={'x' * 43}").status == HTTPStatus.FORBIDDEN
        found = wait_until(lambda: has_sample(http, "logins_total", "refused"))
        assert (found["logins_total", "accepted"], found["sessions",]) == (0, 0)


def test_totals_go_on_when_the_process_is_started_again(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        http = server.http
        assert http.get("/api/v1/models").status == HTTPStatus.OK
        before = wait_until(lambda: has_sample(http, "requests_total", "GET /api/v1/models", "200"))
        kill_process(server)
        server.process.wait_for_line("HTTP ended unexpectedly; restarting it")
        assert http.get("/api/v1/models").status == HTTPStatus.OK
        key = ("requests_total", "GET /api/v1/models", "200")
        assert before[key] == 1
        wait_until(lambda: samples(http)[key] == 2)
        assert samples(http)["restarts_total",] == 1


def kill_process(server: HttpServer) -> None:
    """Kill the process that serves HTTP."""
    (child,) = psutil.Process(server.process.pid).children()
    child.kill()


def test_a_download_that_the_client_leaves_counts_the_bytes_that_were_sent(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        size = 64 * MIB
        assert server.http.ask("PUT", "/models/policy/versions", bytes(size)).status == HTTPStatus.CREATED
        connection = server.http.connect()
        connection.request("GET", "/models/policy/versions/1/data")
        response = connection.getresponse()
        assert len(response.read(MIB)) == MIB
        connection.close()
        with contextlib.suppress(OSError, http.client.HTTPException):
            response.close()
        found = wait_until(lambda: has_sample(server.http, "requests_total", DOWNLOAD, "200"))
        assert MIB <= found["sent_bytes_total", DOWNLOAD] < size


def test_a_report_is_what_was_added_since_the_one_before() -> None:
    tally = Tally()
    assert tally.report(connections=0, sessions=0) is None
    tally.counts_of("GET /").by_status["200"] = 1
    tally.count_login("accepted")
    report = tally.report(connections=1, sessions=2)
    assert report is not None
    assert report.state == State(connections=1, sessions=2)
    assert report.logins == {"accepted": 1}
    assert tally.report(connections=1, sessions=2) is None
    following = tally.report(connections=0, sessions=2)
    assert following is not None
    assert (following.operations, following.logins) == ({}, {})


def test_reports_of_one_process_after_another_are_added_up() -> None:
    metrics = HttpMetrics("registry")

    def add(count: int) -> None:
        counts = Counts({"200": count}, seconds=1.0, received_bytes=2, sent_bytes=3)
        counts.in_bucket[-1] = count
        line = Report({"GET /": counts}, {"accepted": count}, State(1, 2, 3, 4)).encoded()
        metrics.add(Report.decoded(json.loads(line)[KEY]))

    add(5)
    add(7)
    values = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
    assert values["registry_http_requests_total"] == 12
    assert values["registry_http_received_bytes_total"] == 4
    assert values["registry_http_sent_bytes_total"] == 6
    assert values["registry_http_request_seconds_count"] == 12
    assert values["registry_http_sessions"] == 4
    metrics.note_restart()
    values = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
    assert (values["registry_http_sessions"], values["registry_http_restarts_total"]) == (0, 1)
    assert values["registry_http_requests_total"] == 12
