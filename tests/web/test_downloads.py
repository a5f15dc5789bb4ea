"""Downloads: whole and in part, for browsers, curl and wget; cut connections and slow readers."""

import base64
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry import ModelRegistry
from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.web.downloads import disposition_of
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.ranges import Wanted, wanted_of
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import Answer, Http, HttpServer, http_server

SMALL = b"0123456789"
LARGE = bytes(range(256)) * 16 * 1024  # 4 MiB: handed over by a descriptor
SIZES = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])


def _create(registry: ModelRegistry, data: bytes, *, archived: bool = False) -> str:
    """Create a version, and return the path of its bytes."""
    version = registry.store("policy", data) if archived else registry.publish("policy", data)
    return f"/models/policy/versions/{version.number}/data"


@SIZES
@ARCHIVED
def test_a_version_is_downloaded_with_what_clients_need(
    http: Http, registry: ModelRegistry, data: bytes, archived: bool
) -> None:
    answer = http.get(_create(registry, data, archived=archived))
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert (answer.status, answer.body == data) == (HTTPStatus.OK, True)
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["etag"] == f'"{digest}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["version-number"] == "1"
    assert answer.headers["content-disposition"].startswith('attachment; filename="policy-1.bin"')
    assert answer.headers["content-security-policy"].startswith("sandbox;")


@SIZES
@ARCHIVED
def test_a_range_gets_those_bytes(http: Http, registry: ModelRegistry, data: bytes, archived: bool) -> None:
    path, all_bytes = _create(registry, data, archived=archived), range(len(data))
    for text in ("2-5", "0-", "7-", "-3", "-100000000", "0-0", "9-9999999999999"):
        answer = http.get(path, {"Range": f"bytes={text}"})
        first, _, last = text.partition("-")
        part = all_bytes[int(first) : int(last) + 1 if last else None] if first else all_bytes[-int(last) :]
        assert answer.status == HTTPStatus.PARTIAL_CONTENT, text
        assert answer.body == data[part.start : part.stop], text
        assert answer.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/{len(data)}"
        assert answer.headers["content-length"] == str(len(part)), text


def test_a_range_past_the_end_is_refused_with_the_size(http: Http, registry: ModelRegistry) -> None:
    path = _create(registry, SMALL)
    for text in ("bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"):
        answer = http.get(path, {"Range": text})
        assert answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, text
        assert answer.headers["content-range"] == "bytes */10", text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "lines=1-2",
        "bytes=0-1,3-4",
        "bytes=--1",
        "b\xffs=1",
        "bytes=1-2-3",
        "bytes=1e1-",
        "bytes=٣-",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_malformed_and_several_ranges_get_all_bytes(http: Http, registry: ModelRegistry, text: str) -> None:
    answer = http.get(_create(registry, SMALL), {"Range": text.encode().decode("latin-1")})
    assert (answer.status, answer.body) == (HTTPStatus.OK, SMALL)


def test_conditions_are_about_the_hash(http: Http, registry: ModelRegistry) -> None:
    path = _create(registry, SMALL)
    tag = http.get(path).headers["etag"]
    modified = http.get(path).headers["last-modified"]

    def asked(**headers: str) -> Answer:
        return http.get(path, {name.replace("_", "-"): value for name, value in headers.items()})

    assert asked(if_none_match=tag).status == HTTPStatus.NOT_MODIFIED
    assert asked(if_none_match=tag).headers["etag"] == tag
    assert asked(if_none_match=f'"x", W/{tag}').status == HTTPStatus.NOT_MODIFIED
    assert asked(if_none_match='"x"', if_modified_since=modified).status == HTTPStatus.OK
    assert asked(if_modified_since=modified).status == HTTPStatus.NOT_MODIFIED
    assert asked(if_modified_since="Thu, 01 Jan 1970 00:00:00 GMT").status == HTTPStatus.OK
    assert asked(if_modified_since="yesterday").status == HTTPStatus.OK
    assert asked(if_match=tag).status == HTTPStatus.OK
    assert asked(if_match='"x"').status == HTTPStatus.PRECONDITION_FAILED
    assert asked(range="bytes=1-2", if_range=tag).status == HTTPStatus.PARTIAL_CONTENT
    assert asked(range="bytes=1-2", if_range='"x"').body == SMALL


def test_head_has_the_headers_and_no_bytes(http: Http, registry: ModelRegistry) -> None:
    path = _create(registry, LARGE)
    head, whole = http.ask("HEAD", path), http.get(path)
    assert head.body == b""
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}


def test_an_empty_version_is_downloaded(http: Http, registry: ModelRegistry) -> None:
    path = _create(registry, b"")
    assert (http.get(path).status, http.get(path).body) == (HTTPStatus.OK, b"")
    assert http.get(path, {"Range": "bytes=0-"}).status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def test_a_version_is_named_by_its_number_from_the_end_and_by_an_alias(http: Http, registry: ModelRegistry) -> None:
    registry.publish("policy", b"one")
    registry.store("policy", b"two", alias="production")
    registry.publish("policy", b"three")
    bodies = {
        name: http.get(f"/models/policy/{name}/data").body
        for name in ("versions/1", "versions/-1", "versions/-2", "versions/latest", "versions/production")
    }
    assert [*bodies.values()] == [b"one", b"three", b"two", b"three", b"two"]
    assert http.get("/api/v1/models/policy/aliases/production/data").body == b"two"
    assert http.get("/models/policy/aliases/production/data").body == b"two"
    for name in ("versions/4", "versions/-4", "versions/0", "versions/other", "aliases/other", "aliases/1"):
        assert http.get(f"/models/policy/{name}/data").status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)


@pytest.mark.parametrize("model_id", ["modèle 1", "a+b", "x(a)~b@c,d=e:f", "模型"])
def test_ids_are_percent_encoded(http: Http, registry: ModelRegistry, model_id: str) -> None:
    registry.publish(model_id, SMALL)
    encoded = "".join(f"%{byte:02X}" for byte in model_id.encode())
    answer = http.get(f"/models/{encoded}/versions/1/data")
    assert answer.body == SMALL
    assert http.get(f"/api/v1/models/{encoded}").document["model_id"] == model_id


@pytest.mark.parametrize(
    "path",
    [
        "/models/../versions/1/data",
        "/models/%2e%2e/versions/1/data",
        "/models/..%2f..%2fetc/versions/1/data",
        "/models/%00/versions/1/data",
        "/models//versions/1/data",
        "/models/%ff/versions/1/data",
        "/models/policy/versions/1/data/",
        "/models/policy/versions/%2d/data",
        "/models/policy/versions/99999999999/data",
        "/models/policy/versions/1/../../data",
        "/models/" + "a" * 10_000 + "/versions/1/data",
    ],
)
def test_tricks_in_paths_lead_nowhere(shared_http: HttpServer, http: Http, registry: ModelRegistry, path: str) -> None:
    _create(registry, SMALL)
    assert http.get(path).status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)
    assert not [line for line in shared_http.process.lines if "Traceback" in line or "unexpectedly" in line]


def test_a_file_name_is_one_for_every_browser() -> None:
    info = VersionInfo("modèle (x)", 7, 0, archived=True, data_hash="", data_size_bytes=1)
    assert disposition_of(info) == (
        "attachment; filename=\"modele (x)-7.bin\"; filename*=UTF-8''mod%C3%A8le%20%28x%29-7.bin"
    )


@given(st.integers(0, 50), st.text("bytes=-0123456789, ", max_size=20), st.booleans())
def test_every_range_is_within_the_version(size: int, text: str, has_unit: bool) -> None:
    info = VersionInfo("m", 1, 0, archived=True, data_hash="hash", data_size_bytes=size)
    headers: Mapping[str, str] = {"range": f"bytes={text}" if has_unit else text}
    try:
        wanted = wanted_of(headers, info)
    except RefusedError as error:
        wanted = Wanted(error.status, range(0))
        is_whole = error.headers["Content-Range"] == f"bytes */{size}"
    else:
        is_whole = wanted.part == range(size)
    assert 0 <= wanted.part.start <= wanted.part.stop <= size
    assert wanted.status == HTTPStatus.PARTIAL_CONTENT or is_whole


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_saves_a_version_and_continues_one(http: Http, registry: ModelRegistry, tmp_path: Path) -> None:
    path = _create(registry, LARGE, archived=True)

    def curl(*words: str) -> None:
        subprocess.run(["curl", "-fsS", *words], cwd=tmp_path, check=True, timeout=PATIENCE_SECONDS)

    url = f"http://localhost:{http.port}{path}"
    curl("-O", url)
    assert (tmp_path / "data").read_bytes() == LARGE
    curl("-OJ", url)
    assert (tmp_path / "policy-1.bin").read_bytes() == LARGE
    (tmp_path / "part").write_bytes(LARGE[:1_000_000])
    curl("-C", "-", "-o", "part", url)
    assert (tmp_path / "part").read_bytes() == LARGE


@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed")
def test_wget_continues_a_download(http: Http, registry: ModelRegistry, tmp_path: Path) -> None:
    url = f"http://localhost:{http.port}{_create(registry, LARGE)}"
    (tmp_path / "data").write_bytes(LARGE[:1_000_000])
    subprocess.run(["wget", "-q", "-c", url], cwd=tmp_path, check=True, timeout=PATIENCE_SECONDS)
    assert (tmp_path / "data").read_bytes() == LARGE


def _web_process(server: HttpServer) -> psutil.Process:
    (child,) = psutil.Process(server.process.pid).children()
    return child


def test_cut_connections_leave_nothing_open(shared_http: HttpServer, http: Http, registry: ModelRegistry) -> None:
    path = _create(registry, LARGE * 4, archived=True)
    http.get(path)
    child = _web_process(shared_http)
    before = child.num_fds()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    wait_until(lambda: child.num_fds() <= before + 1, child.num_fds)
    assert not [line for line in shared_http.process.lines if "Traceback" in line]


def test_a_reader_that_takes_nothing_is_cut_off_and_holds_up_nobody(tmp_path: Path) -> None:
    with (
        http_server(tmp_path / "archive", "--retrieval_idle_seconds=1") as server,
        ModelRegistry(server.endpoint) as registry,
    ):
        path = _create(registry, LARGE * 8, archived=True)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.http.port))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            child = _web_process(server)
            wait_until(lambda: os.path.exists(f"/proc/{child.pid}") and len(child.net_connections("tcp")) >= 2)
            assert server.http.get(path).body == LARGE * 8
            assert registry.retrieve("policy") == LARGE * 8
            # It is cut off although it never closes.
            wait_until(
                lambda: not [each for each in child.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED]
            )


@pytest.mark.parametrize("socket_flag", ["--local_socket=auto", "--local_socket=off"])
def test_bytes_come_with_and_without_descriptors(tmp_path: Path, socket_flag: str) -> None:
    with http_server(tmp_path / "archive", socket_flag) as server, ModelRegistry(server.endpoint) as registry:
        for archived in (False, True):
            path = _create(registry, LARGE, archived=archived)
            assert server.http.get(path).body == LARGE
            assert server.http.get(path, {"Range": "bytes=1048576-3145727"}).body == LARGE[1048576:3145728]


def test_damage_is_an_error_and_not_other_bytes(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server, ModelRegistry(server.endpoint) as registry:
        path = _create(registry, LARGE, archived=True)
        (file,) = (tmp_path / "archive").rglob("*.data")
        file.write_bytes(LARGE[:-1] + b"x")
        answer = server.http.get(path)
        assert (answer.status, answer.document["error"]) == (500, "DataLossError")
        assert not issubclass(ModelRegistryError, OSError)
