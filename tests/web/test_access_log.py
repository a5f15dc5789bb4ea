"""The access log of HTTP: what a line has, and what it never has."""

import asyncio
import json
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Scope

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.web import access_log
from cogment_model_registry.web.access_log import NAME_SECONDS, AccessLog
from cogment_model_registry.web.registries import Caller, Registry, current
from tests.processes import run_cogment
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import HttpServer, http_server

SECRET = "not-to-be-logged"  # no password
EVENT = "HTTP request"


def _entries(server: HttpServer, *, path: str) -> list[dict[str, Any]]:
    """Return the entries of the requests for a path, which are in the log soon after their answers."""

    def found() -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in server.process.lines if EVENT in line]
        return [entry for entry in entries if entry["path"] == path]

    wait_until(found)
    return found()


def test_each_request_is_logged_with_who_asked_for_what_and_what_was_answered(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    flags = ("--http_access_log=on", "--log_format=json", "--anonymous=read", "--http_trusted_proxies=127.0.0.1")
    with http_server(archive, *flags) as server:
        http = server.http
        token = run_cogment(
            "token", "create", f"--archive_dir={archive}", "--name=trainer", "--scope=publish"
        ).stdout.strip()
        headers = {"X-Forwarded-For": "192.0.2.1", "Authorization": f"Bearer {token}"}
        path, data = "/api/v1/models/policy/versions", b"1" * (2 * 1024 * 1024)
        wait_until(lambda: http.ask("PUT", "/api/v1/models/policy", None, headers).status == HTTPStatus.OK)
        created = http.ask("PUT", path, data, headers)
        assert created.status == HTTPStatus.CREATED
        (entry,) = _entries(server, path=path)
        assert entry.pop("seconds") > 0
        assert entry.pop("timestamp")
        assert entry == {
            "level": "info",
            "event": EVENT,
            "client": "192.0.2.1",
            "caller": "trainer",
            "method": "PUT",
            "path": path,
            "status": HTTPStatus.CREATED,
            "bytes": len(created.body),
        }
        # The bytes of a file go from the system to the network, and count.
        download = "/models/policy/versions/1/data"
        assert http.get(f"{download}?secret={SECRET}").body == data
        assert http.ask("HEAD", download).status == HTTPStatus.OK
        wait_until(lambda: len(_entries(server, path=download)) == 2)
        assert [(each["method"], each["bytes"], each["caller"]) for each in _entries(server, path=download)] == [
            ("GET", len(data), ""),
            ("HEAD", 0, ""),
        ]
        # Refused requests are logged too, and a path says nothing that is not in it.
        assert http.with_token(SECRET * 3).get("/api/v1/models/refused").status == HTTPStatus.UNAUTHORIZED
        (entry,) = _entries(server, path="/api/v1/models/refused")
        assert (entry["status"], entry["caller"], entry["client"]) == (HTTPStatus.UNAUTHORIZED, "", "127.0.0.1")
        http.get("/foreign", {"Host": "evil.example"})
        assert _entries(server, path="/foreign")[0]["status"] == HTTPStatus.MISDIRECTED_REQUEST
        http.get("/%0a%22%e2%82%ac%00")
        assert _entries(server, path="/%0a%22%e2%82%ac%00")[0]["status"] == HTTPStatus.NOT_FOUND
        http.get(f"http://user:{SECRET}@localhost/")
        assert _entries(server, path="")[0]["client"] == "127.0.0.1"
        http.get("/" + "x" * 20_000)
        assert _entries(server, path="/" + "x" * 1023 + "...")
        http.form("/login", f"token={token}")
        assert _entries(server, path="/login")[0]["status"] == HTTPStatus.SEE_OTHER
        assert not [line for line in server.process.lines if token in line or SECRET in line]


def test_a_session_has_the_name_of_its_token_and_a_stream_is_logged_at_its_end(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--http_access_log=on", "--log_format=json", "--anonymous=nothing") as server:
        http = server.http
        token = run_cogment(
            "token", "create", f"--archive_dir={archive}", "--name=reader", "--scope=read"
        ).stdout.strip()
        (cookie,) = http.form("/login", f"token={token}").cookies.values()
        with socket.create_connection(("127.0.0.1", http.port), timeout=PATIENCE_SECONDS) as connection:
            head = f"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1:{http.port}\r\nCookie: {cookie}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
            assert not [line for line in server.process.lines if "/api/v1/events" in line]
        (entry,) = _entries(server, path="/api/v1/events")
        assert (entry["caller"], entry["status"]) == ("reader", HTTPStatus.OK)


def test_the_log_as_text_has_the_same_fields(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--http_access_log=on") as server:
        assert server.http.get("/healthz").status == HTTPStatus.OK
        line = server.process.wait_for_line(EVENT)
        for field in ("client=127.0.0.1", "method=GET", "path=/healthz", "status=200", "bytes=", "seconds=", "caller="):
            assert field in line.string


def test_what_was_answered_before_a_stop_is_logged(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--http_access_log=on", "--log_format=json") as server:
        for index in range(50):
            server.http.get(f"/static/{index}")
        assert server.process.stop() == 0
        assert sum(EVENT in line for line in server.process.lines) == 50


def test_it_is_off_by_default(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--log_level=debug") as server:
        assert server.http.get("/healthz").status == HTTPStatus.OK
        assert server.process.stop() == 0
        assert not [line for line in server.process.lines if EVENT in line]


class _Names:
    """A registry that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    async def caller_name(self) -> str:
        self.asked.append(current.get().token)
        if self.fails:
            raise UnavailableError("gone")
        return "" if current.get().token.startswith("bad") else f"holder of {current.get().token}"


def _scope(token: str) -> Scope:
    caller = Caller("ipv4:192.0.2.1:1", token)
    return {"client": ("192.0.2.1", 1), "caller": caller, "method": "GET", "raw_path": b"/models"}


async def test_names_are_kept_for_a_while_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "_NAMES_MAX", 2)
    names, now, written = _Names(), 0.0, list[str]()
    log = AccessLog(cast(Registry, names), written.append, lambda: now)
    async with log.writing():
        for token in ("a", "a", "bad", "bad", "b", "c", "c"):
            await log.log(_scope(token), 200, 0, 0.0)
        assert names.asked == ["a", "bad", "bad", "b", "c"]
        now = NAME_SECONDS
        await log.log(_scope("c"), 200, 0, 0.0)
        names.fails = True
        await log.log(_scope("d"), 200, 0, 0.0)
        assert names.asked[-2:] == ["c", "d"]
    entries = [json.loads(line) for lines in written for line in lines.splitlines()]
    callers = [f"holder of {name}" for name in ("a", "a", "b", "c", "c", "c")]
    assert [entry["caller"] for entry in entries if entry["caller"]] == callers
    assert len(entries) == 9


async def test_lines_that_find_no_room_are_counted_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "QUEUE_MAX_LINES", 3)
    written: list[str] = []
    log = AccessLog(cast(Registry, _Names()), written.append)
    for _ in range(10):
        await log.log(_scope(""), 200, 0, 0.0)
    async with log.writing():
        await asyncio.sleep(0)
    entries = [json.loads(line) for lines in written for line in lines.splitlines()]
    assert [entry["event"] for entry in entries] == [EVENT] * 3 + ["lines of HTTP requests dropped"]
    assert entries[-1]["lines"] == 7


async def test_a_server_that_is_gone_ends_no_request() -> None:
    def write(_lines: str) -> None:
        raise BrokenPipeError

    log = AccessLog(cast(Registry, _Names()), write)
    async with log.writing():
        await log.log(_scope(""), 200, 0, 0.0)
