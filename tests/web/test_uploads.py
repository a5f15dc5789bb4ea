"""Uploads: streamed, repeated, refused early, cut and slow."""

import base64
import hashlib
import shutil
import socket
import subprocess
from contextlib import ExitStack, closing
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest

from cogment_model_registry import ModelRegistry
from tests.processes import run_cogment
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import Http, HttpServer, http_server

LARGE = bytes(range(256)) * 32 * 1024  # 8 MiB: several chunks
VERSIONS = "/api/v1/models/policy/versions"


@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_body_becomes_a_version(http: Http, registry: ModelRegistry, data: bytes, method: str) -> None:
    answer = http.ask(method, VERSIONS, data)
    assert (answer.status, answer.document["number"], answer.document["archived"]) == (201, 1, False)
    assert answer.headers["location"] == f"{VERSIONS}/1"
    assert answer.headers["etag"] == f'"{answer.document["data_hash"]}"'
    assert registry.retrieve("policy", 1) == data


def test_everything_that_belongs_to_a_version_is_in_the_address(http: Http, registry: ModelRegistry) -> None:
    query = "archived&tag=stage=trial&tag=a=b=c&metric=return=-1.5e2&user_data=k=v%20w&alias=best&alias=new"
    document = http.ask("PUT", f"/models/policy/versions?{query}", b"data").document
    assert document["tags"] == {"stage": "trial", "a": "b=c"}
    assert document["metrics"] == {"return": -150.0}
    assert document["user_data"] == {"k": "v w"}
    assert (document["archived"], document["aliases"]) == (True, ["best", "new"])
    version = registry.describe_version("policy", "best")
    assert (version.tags, version.archived) == ({"stage": "trial", "a": "b=c"}, True)


@pytest.mark.parametrize(
    "query",
    [
        "tag=a",
        "tag==b",
        "tag=a=1&tag=a=2",
        "metric=a=b",
        "metric=a=nan",
        "metric=a=inf",
        "archived=perhaps",
        "tags=a=b",
        "alias=latest",
        "alias=1",
        "user_data=a",
    ],
)
def test_malformed_parameters_are_refused(http: Http, registry: ModelRegistry, query: str) -> None:
    answer = http.ask("PUT", f"{VERSIONS}?{query}", b"data")
    assert answer.status == HTTPStatus.BAD_REQUEST, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_repeated_upload_is_one_version(http: Http, registry: ModelRegistry) -> None:
    key = {"Idempotency-Key": "trial-1"}
    first = http.ask("PUT", VERSIONS, LARGE, key).document
    assert http.ask("PUT", VERSIONS, LARGE, key).document == first
    assert http.ask("PUT", f"{VERSIONS}?tag=a=b", LARGE, key).status == HTTPStatus.CONFLICT
    assert len(registry.list_versions("policy")) == 1


def test_a_cut_upload_goes_on_where_it_stopped(shared_http: HttpServer, http: Http, registry: ModelRegistry) -> None:
    head = f"PUT {VERSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE)}\r\nIdempotency-Key: k\r\n\r\n"
    with socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode() + LARGE[: len(LARGE) // 2])
        wait_until(lambda: registry.status()["uploads"] == "1" and int(registry.status()["transient_bytes"]) > 0)
    wait_until(lambda: registry.status()["uploads"] == "0")
    answer = http.ask("PUT", VERSIONS, LARGE, {"Idempotency-Key": "k"})
    assert answer.status == HTTPStatus.CREATED
    assert registry.retrieve("policy") == LARGE
    assert not [line for line in shared_http.process.lines if "Traceback" in line]


def test_the_hash_is_checked_if_it_is_given(http: Http, registry: ModelRegistry) -> None:
    digest = base64.b64encode(hashlib.sha256(LARGE).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    assert http.ask("PUT", VERSIONS, LARGE, {"Repr-Digest": f"md5=:eA==:, sha-256=:{digest}:"}).status == 201
    assert http.ask("PUT", VERSIONS, LARGE, {"Content-Digest": f"sha-256=:{wrong}:"}).status == 400
    assert http.ask("PUT", VERSIONS, LARGE, {"Repr-Digest": "sha-256=:=:"}).status == 400
    assert len(registry.list_versions("policy")) == 1


def test_a_body_without_a_size_and_a_packed_one_are_refused(http: Http, registry: ModelRegistry) -> None:
    with closing(http.connect()) as connection:
        connection.putrequest("PUT", VERSIONS)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()  # it is refused before the body comes
        response = connection.getresponse()
        assert (response.status, b"Content-Length" in response.read()) == (HTTPStatus.LENGTH_REQUIRED, True)
    packed = http.ask("PUT", VERSIONS, b"a", {"Content-Encoding": "gzip"})
    assert packed.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    huge = http.ask("PUT", VERSIONS, b"", {"Content-Length": "99999999999999999999"})
    assert huge.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.BAD_REQUEST)
    assert not registry.list_models()


def test_a_model_is_not_created_if_that_is_not_wanted(http: Http, registry: ModelRegistry) -> None:
    assert http.ask("PUT", f"{VERSIONS}?create_model=false", b"a").status == HTTPStatus.NOT_FOUND
    assert http.ask("PUT", "/api/v1/models/a%00b/versions", b"a").status == HTTPStatus.BAD_REQUEST
    assert not registry.list_models()


def test_who_may_not_is_refused_before_the_bytes_are_sent(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing") as server:
        head = f"PUT {VERSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE)}\r\n"
        head += "Expect: 100-continue\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.http.port), PATIENCE_SECONDS) as connection:
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
        words = (
            "token",
            "create",
            f"--archive_dir={archive}",
            "--name=t",
            "--scope=publish:policy",
            "--scope=read:other",
        )
        trainer = server.http.with_token(run_cogment(*words).stdout.strip())
        assert trainer.ask("PUT", VERSIONS, LARGE).document["number"] == 1  # though it may not read it
        assert trainer.ask("PUT", "/api/v1/models/other/versions", b"").status == HTTPStatus.FORBIDDEN
        assert trainer.ask("PUT", f"{VERSIONS}?archived", b"").status == HTTPStatus.FORBIDDEN


def test_an_uploader_that_sends_nothing_is_answered_and_leaves_nothing(tmp_path: Path) -> None:
    flags = ("--retrieval_idle_seconds=1", "--upload_idle_seconds=1", "--upload_resume_seconds=0")
    with http_server(tmp_path / "archive", *flags) as server, ModelRegistry(server.endpoint) as registry:
        registry.create_model("policy")
        head = f"PUT {VERSIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        child = psutil.Process(server.process.pid).children()[0]
        connections = [socket.create_connection(("127.0.0.1", server.http.port), PATIENCE_SECONDS) for _ in range(8)]
        for connection in connections:
            connection.sendall(head.encode() + b"x" * 3_000_000)
        assert registry.retrieve(registry.publish("policy", b"y")) == b"y"  # nobody is held up
        for connection in connections:
            assert connection.recv(12) in (b"HTTP/1.1 408", b"HTTP/1.1 504")
            connection.close()
        wait_until(lambda: registry.status()["uploads"] == "0")
        threads = child.num_threads()
        for _ in range(5):
            assert server.http.ask("PUT", VERSIONS, LARGE).status == HTTPStatus.CREATED
        wait_until(lambda: child.num_threads() <= threads + 4, child.num_threads)


def _sent_whole(http: Http, body: bytes, header: str) -> bytes:
    """Return the status line of an answer that is read only after the whole body was sent, as many clients do."""
    with socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS) as connection:
        connection.sendall(f"PUT {VERSIONS} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode() + body)
        return connection.recv(12)


def test_a_refused_upload_is_answered_although_its_body_is_sent(http: Http, registry: ModelRegistry) -> None:
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE)
    assert _sent_whole(http, chunked, "Transfer-Encoding: chunked") == b"HTTP/1.1 411"
    size = f"Content-Length: {len(LARGE)}"
    assert _sent_whole(http, LARGE, f"{size}\r\nOrigin: http://evil.example") == b"HTTP/1.1 403"
    with ExitStack() as stack:
        for _ in range(64):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS))
            waiting.sendall(f"PUT {VERSIONS} HTTP/1.1\r\nHost: localhost\r\n{size}\r\n\r\nx".encode())
        wait_until(lambda: registry.status()["uploads"] == "64")
        assert _sent_whole(http, LARGE, size) == b"HTTP/1.1 503"
    wait_until(lambda: registry.status()["uploads"] == "0")


def test_a_version_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--cache_max_bytes=1MiB") as server:
        answer = server.http.ask("PUT", VERSIONS, LARGE)
        assert (answer.status, answer.document["error"]) == (413, "TooLargeError")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_a_file(http: Http, registry: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(LARGE)
    url = f"http://localhost:{http.port}/models/policy/versions?archived"
    result = subprocess.run(
        ["curl", "-fsS", "-T", str(tmp_path / "weights"), url],
        check=True,
        timeout=PATIENCE_SECONDS,
        capture_output=True,
    )
    assert b'"number":1' in result.stdout
    assert registry.retrieve("policy", archived=True) == LARGE
