"""What every request passes: hosts, origins, tokens, sessions, headers and bounds."""

import asyncio
import contextlib
import http.client
import socket
import stat
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from starlette.types import Message, Receive, Scope, Send

from cogment_model_registry.client.calls import method_path
from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.web.login import local_path
from cogment_model_registry.web.logins import RETRY_SECONDS, TRIES, Logins
from cogment_model_registry.web.registries import Caller, Registry, current
from cogment_model_registry.web.security import Security, is_own_host, session_id_of
from cogment_model_registry.web.serving import HEAD_SECONDS
from cogment_model_registry.web.sessions import IDLE_SECONDS, LONGEST_SECONDS, OWN_SESSIONS_MAX, Sessions
from cogment_model_registry.wire import forwarding, messages
from tests.processes import run_cogment
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import Http, HttpServer, http_server

EVERYWHERE = ("/healthz", "/api/v1/models", "/login", "/static/style.css", "/nowhere")


@pytest.mark.parametrize("path", EVERYWHERE)
def test_every_answer_has_the_headers_of_security(http: Http, path: str) -> None:
    headers = http.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers
    assert ("no-store" in headers["cache-control"]) == (not path.startswith("/static"))


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:80", "127.0.0.1.evil.example"]
)
def test_a_foreign_host_is_refused_so_that_no_page_can_rebind_its_name(http: Http, host: str) -> None:
    answer = http.get("/api/v1/models", {"Host": host})
    assert answer.status == HTTPStatus.MISDIRECTED_REQUEST
    assert "http_hosts" in answer.document["detail"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:9080", "10.1.2.3", "a.localhost"])
def test_addresses_and_localhost_are_accepted(http: Http, host: str) -> None:
    assert http.get("/api/v1/models", {"Host": host}).status == HTTPStatus.OK


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_body_whose_length_has_two_meanings_is_refused_and_nothing_after_it_is_read(http: Http, method: str) -> None:
    hidden = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"{method} /api/v1/models/policy/versions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS) as connection:
        connection.sendall(f"{head}Content-Length: {len(hidden)}\r\n\r\n".encode() + hidden)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("host", ["", " ", "a b", "[::1", "localhost:x", "@", "localhost:80:80"])
def test_a_malformed_host_is_refused(http: Http, host: str) -> None:
    assert http.get("/api/v1/models", {"Host": host}).status in (HTTPStatus.BAD_REQUEST, HTTPStatus.MISDIRECTED_REQUEST)


def test_configured_names_are_accepted(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--http_hosts=Registry.example,models") as server:
        assert server.http.get("/healthz", {"Host": "registry.example:1"}).status == HTTPStatus.OK
        assert server.http.get("/healthz", {"Host": "models."}).status == HTTPStatus.OK
        assert server.http.get("/healthz", {"Host": "other"}).status == HTTPStatus.MISDIRECTED_REQUEST
    assert is_own_host("anything", None)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_change_from_a_page_of_another_site_is_refused(http: Http, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=http.port) for name, value in headers.items()}
    answer = http.ask("POST", "/login", b"token=x", {"Content-Type": "application/x-www-form-urlencoded", **sent})
    assert (answer.status, answer.document["detail"]) == (403, "the request comes from a page of another site")


def test_a_token_is_passed_through_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing") as server:
        secret = _token(archive, "reader", "read")
        assert server.http.get("/api/v1/models").status == HTTPStatus.UNAUTHORIZED
        assert server.http.get("/api/v1/models").headers["www-authenticate"].startswith("Bearer")
        assert server.http.with_token(secret).get("/api/v1/models").document["models"] == []
        assert server.http.with_token("x" * 43).get("/api/v1/models").status == HTTPStatus.UNAUTHORIZED
        assert server.http.get("/api/v1/models", {"Authorization": "Basic eA=="}).status == HTTPStatus.UNAUTHORIZED
        assert server.http.get("/api/v1/models", {"Authorization": "Bearer a b"}).status == HTTPStatus.UNAUTHORIZED
        assert server.http.get("/healthz").status == HTTPStatus.OK
        assert server.http.get("/metrics").status == HTTPStatus.UNAUTHORIZED
        assert b"cogment_model_registry" in server.http.with_token(secret).get("/metrics").body
        narrow = _token(archive, "narrow", "read:policy-*")
        assert server.http.with_token(narrow).get("/metrics").status == HTTPStatus.FORBIDDEN


def _token(archive: Path, name: str, scope: str) -> str:
    return run_cogment(
        "token", "create", f"--archive_dir={archive}", f"--name={name}", f"--scope={scope}"
    ).stdout.strip()


def test_a_browser_logs_in_and_out_with_a_cookie_that_scripts_cannot_read(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing") as server:
        http, page = server.http, {"Accept": "text/html"}
        answer = http.get("/api/v1/models", page)
        assert answer.status == HTTPStatus.UNAUTHORIZED  # data are data, whoever asks
        answer = http.get("/nowhere", page)
        assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
        secret = _token(archive, "reader", "read")
        wrong = http.form("/login", f"token={'x' * 43}&next=/")
        assert (wrong.status, "does not know this token" in wrong.text) == (403, True)
        assert "set-cookie" not in wrong.headers
        answer = http.form("/login", f"token={secret}&next=/models/policy%3Fa=1")
        assert (answer.status, answer.headers["location"]) == (303, "/models/policy?a=1")
        cookie_text = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=lax", "Path=/"} <= {each.strip() for each in cookie_text.split(";")}
        assert secret not in cookie_text
        (cookie,) = answer.cookies.values()
        assert http.get("/api/v1/models", {"Cookie": cookie}).status == HTTPStatus.OK
        without_origin = http.ask("POST", "/logout", b"", {"Cookie": cookie})
        assert without_origin.status == HTTPStatus.FORBIDDEN  # browsers say where a form comes from
        assert http.form("/logout", "", {"Cookie": cookie}).headers["location"] == "/login?ended=yes"
        assert http.get("/api/v1/models", {"Cookie": cookie}).status == HTTPStatus.UNAUTHORIZED
        assert http.get("/api/v1/models", {"Cookie": "; ;=;a"}).status == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/models/a?x=1", "/models/a?x=1"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("", "/"),
    ],
)
def test_a_log_in_leads_to_a_path_of_this_server(text: str, path: str) -> None:
    assert local_path(text) == path


def test_a_form_of_an_encrypted_page_of_the_same_host_is_accepted_since_a_proxy_may_have_sent_it(http: Http) -> None:
    origin = {"Host": "localhost", "Origin": "https://localhost"}
    assert http.form("/logout", "", origin).status == HTTPStatus.SEE_OTHER
    assert http.form("/logout", "", {**origin, "Host": "localhost:1"}).status == HTTPStatus.FORBIDDEN


def test_a_login_through_a_proxy_that_ends_the_encryption_has_a_cookie_for_encrypted_pages(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing", "--http_hosts=registry.example") as server:
        http, host = server.http, {"Host": "registry.example"}
        secret = _token(archive, "reader", "read")
        answer = http.form("/login", f"token={secret}", {**host, "Origin": "https://registry.example"})
        assert answer.headers["set-cookie"].startswith("__Host-registry-session=")
        assert "Secure" in answer.headers["set-cookie"]
        (cookie,) = answer.cookies.values()
        assert http.get("/api/v1/models", {**host, "Cookie": cookie}).status == HTTPStatus.OK
        origin = {"Origin": "https://registry.example", "Cookie": cookie}
        assert "__Host-registry-session=" in http.form("/logout", "", {**host, **origin}).headers["set-cookie"]
        assert http.get("/api/v1/models", {**host, "Cookie": cookie}).status == HTTPStatus.UNAUTHORIZED


def test_two_registries_on_a_host_have_cookies_of_their_own(tmp_path: Path) -> None:
    archives = tmp_path / "a", tmp_path / "b"
    with http_server(archives[0], "--anonymous=nothing") as one, http_server(archives[1], "--anonymous=nothing") as two:
        jar: dict[str, str] = {}
        for server, archive in ((one, archives[0]), (two, archives[1])):
            answer = server.http.form("/login", f"token={_token(archive, 'reader', 'read')}")
            jar |= answer.cookies
        cookies = "; ".join(jar.values())  # browsers send the cookies of a host to all its ports
        for server in (one, two):
            assert server.http.get("/api/v1/models", {"Cookie": cookies}).status == HTTPStatus.OK


def test_the_cookie_has_the_port_to_which_the_browser_connects(http: Http) -> None:
    for host, name in (
        ("localhost:8123", "registry-session-8123"),
        ("[::1]:8123", "registry-session-8123"),
        ("[::1]", "registry-session"),
        ("localhost", "registry-session"),
    ):
        answer = http.form("/logout", "", {"Host": host, "Origin": f"http://{host}"})
        assert answer.headers["set-cookie"].partition("=")[0] == name, host


def test_over_tls_only_a_cookie_counts_that_was_set_over_tls() -> None:
    def found(scheme: str, cookie: str) -> str:
        headers = [(b"host", b"registry.example"), (b"cookie", cookie.encode())]
        return session_id_of({"type": "http", "scheme": scheme, "headers": headers})

    plain, bound = "registry-session=plain", "__Host-registry-session=bound"
    assert [found("https", plain), found("https", bound), found("https", f"{plain}; {bound}")] == ["", "bound", "bound"]
    assert [found("http", plain), found("http", bound), found("http", f"{plain}; {bound}")] == [
        "plain",
        "bound",
        "bound",
    ]


def test_a_session_that_ends_ends_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogment_model_registry.web.sessions.SESSIONS_MAX", 2)
    now = 0.0
    sessions = Sessions(lambda: now)
    first, second = sessions.begin("a", "token:a"), sessions.begin("b", "token:b")
    ended = [asyncio.Event() for _ in range(5)]
    with (
        sessions.streaming(first, ended[0]),
        sessions.streaming(first, ended[1]),
        sessions.streaming(second, ended[2]),
        sessions.streaming("", ended[3]),
        sessions.streaming("it has ended already", ended[4]),
    ):
        assert [event.is_set() for event in ended] == [False, False, False, False, True]
        sessions.end(first)
        assert [event.is_set() for event in ended] == [True, True, False, False, True]
        assert not sessions.is_live(first)
        sessions.begin("c", "token:c")
        sessions.begin("d", "token:d")  # for which the least recently used one ends
        assert ended[2].is_set()
    third = sessions.begin("e", "token:e")
    now = IDLE_SECONDS * 0.9
    assert sessions.is_live(third)
    now = IDLE_SECONDS * 1.1
    assert not sessions.is_live(third)  # to look is no use


def test_sessions_end_when_idle_and_when_old() -> None:
    now = 0.0
    sessions = Sessions(lambda: now)
    first, second = sessions.begin("a", "token:a"), sessions.begin("b", "token:b")
    assert (sessions.token_of(first), sessions.token_of(second), sessions.token_of("x")) == ("a", "b", None)
    while now < LONGEST_SECONDS:
        assert sessions.token_of(first) == "a"
        now += IDLE_SECONDS
    assert sessions.token_of(first) is None  # it was used all the time
    assert sessions.token_of(second) is None
    assert len(sessions) == 0
    sessions.begin("c", "token:c")
    now += IDLE_SECONDS + 1
    assert len(sessions) == 0  # although nobody has asked for it


def test_sessions_of_one_identity_end_before_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogment_model_registry.web.sessions.OWN_SESSIONS_MAX", 3)
    monkeypatch.setattr("cogment_model_registry.web.sessions.SESSIONS_MAX", 5)
    sessions = Sessions()
    other = sessions.begin("other", "token:other")
    own = [sessions.begin("own", "token:own") for _ in range(3)]
    assert sessions.token_of(own[0]) == "own"  # so it is not the least recently used one
    own += [sessions.begin("own", "token:own") for _ in range(10)]
    assert sessions.token_of(other) == "other"
    assert [sessions.token_of(each) for each in own[-3:]] == ["own"] * 3
    assert [each for each in own[:-3] if sessions.token_of(each)] == []
    assert len(sessions) == 4
    third = sessions.begin("third", "token:third")
    newest = sessions.begin("fourth", "token:fourth")  # there are too many of all: whoever has the most loses one
    assert [sessions.token_of(each) for each in (other, third, newest)] == ["other", "third", "fourth"]
    assert sessions.token_of(own[-3]) is None
    assert len(sessions) == 5


def test_attempts_to_log_in_come_back_with_time_and_each_host_has_its_own() -> None:
    now = 0.0
    logins = Logins(lambda: now)
    assert [logins.take("10.0.0.1") for _ in range(TRIES + 1)] == [True] * TRIES + [False]
    assert logins.wait_seconds("10.0.0.1") == pytest.approx(RETRY_SECONDS)
    assert logins.take("10.0.0.2")
    logins.give_back("10.0.0.2")
    assert logins.wait_seconds("10.0.0.2") == 0.0
    assert len(logins) == 1  # a host whose tokens are valid takes no memory
    now += RETRY_SECONDS
    assert [logins.take("10.0.0.1"), logins.take("10.0.0.1")] == [True, False]
    assert all(logins.take(f"2001:db8::{index:x}") for index in range(TRIES))
    assert not logins.take("2001:db8::ffff")  # within a /64 network, a host chooses its address
    assert logins.take("2001:db8:0:1::1")


def test_memory_for_hosts_that_try_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogment_model_registry.web.logins._HOSTS_MAX", 3)
    logins = Logins()
    for index in range(10):
        assert logins.take(f"10.0.0.{index}")
    assert len(logins) == 3


def test_a_host_that_tries_tokens_has_to_wait_and_locks_nobody_out(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing") as server:
        http = server.http
        secret = _token(archive, "reader", "read")
        (before,) = http.form("/login", f"token={secret}").cookies.values()
        statuses = [http.form("/login", f"token={index:043}").status for index in range(TRIES)]
        assert statuses == [HTTPStatus.FORBIDDEN] * TRIES
        limited = http.form("/login", f"token={'x' * 43}")
        assert limited.status == HTTPStatus.TOO_MANY_REQUESTS
        assert "try again in" in limited.text
        assert 1 <= int(limited.headers["retry-after"]) <= RETRY_SECONDS
        # Others have the same address, behind a proxy or a router.
        again = http.form("/login", f"token={secret}")
        assert again.status == HTTPStatus.SEE_OTHER
        assert http.get("/api/v1/models", {"Cookie": before}).status == HTTPStatus.OK
        assert http.with_token(secret).get("/api/v1/models").status == HTTPStatus.OK
        # A new token is known as soon as anybody has used it.
        new = _token(archive, "new", "read")
        wait_until(lambda: http.form("/login", f"token={new}").status == HTTPStatus.SEE_OTHER)


def test_somebody_who_logs_in_again_and_again_ends_only_own_sessions(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, "--anonymous=nothing") as server:
        tokens = [_token(archive, name, "read") for name in ("patient", "busy")]
        (patient,) = server.http.form("/login", f"token={tokens[0]}").cookies.values()
        busy = [
            next(iter(server.http.form("/login", f"token={tokens[1]}").cookies.values()))
            for _ in range(OWN_SESSIONS_MAX + 1)
        ]
        statuses = [server.http.get("/api/v1/models", {"Cookie": each}).status for each in (patient, *busy[:2])]
        assert statuses == [HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.OK]


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_malformed_and_giant_heads_are_refused(shared_http: HttpServer, http: Http, request_head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS) as connection:
        received = b""
        try:
            connection.sendall(request_head)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass  # it does not read on
    assert received == b"" or received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert http.get("/healthz").status == HTTPStatus.OK
    assert not [line for line in shared_http.process.lines if "Traceback" in line]


def test_a_connection_that_sends_no_whole_head_is_closed(http: Http) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", http.port), PATIENCE_SECONDS) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert time.monotonic() - began >= HEAD_SECONDS - 1


def test_large_bodies_have_few_places_and_small_ones_are_taken_nevertheless(http: Http) -> None:
    def ask(size: int) -> int:
        return http.ask("PATCH", "/api/v1/models/absent", {"tags": {"a": "x" * size}}).status

    assert ask(100_000) == HTTPStatus.NOT_FOUND
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            connection = stack.enter_context(contextlib.closing(http.connect()))
            connection.putrequest("PATCH", "/api/v1/models/absent")
            connection.putheader("Content-Length", "1000000")
            connection.endheaders(b" " * 100_000)
        wait_until(lambda: ask(100_000) == HTTPStatus.SERVICE_UNAVAILABLE)
        assert ask(10) == HTTPStatus.NOT_FOUND
    wait_until(lambda: ask(100_000) == HTTPStatus.NOT_FOUND)


def test_static_files_are_kept_by_their_hash_and_nothing_else_is_served(http: Http) -> None:
    answer = http.get("/static/style.css")
    tag = answer.headers["etag"].strip('"')
    assert "no-cache" in answer.headers["cache-control"]
    named = http.get(f"/static/{tag}/style.css")
    assert "immutable" in named.headers["cache-control"]
    assert named.body == answer.body
    assert http.get("/static/style.css", {"If-None-Match": f'"{tag}"'}).status == HTTPStatus.NOT_MODIFIED
    assert http.get(f"/static/{'0' * 16}/style.css").status == HTTPStatus.NOT_FOUND
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/",
        "/static//etc/passwd",
    ):
        assert http.get(path).status == HTTPStatus.NOT_FOUND


def _address_elsewhere() -> str:
    """Return an address of this machine that others could have: calls to it come from it."""
    addresses = [
        each.address
        for interface in psutil.net_if_addrs().values()
        for each in interface
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this machine has no other interface than the loopback one")
    return addresses[0]


def test_callers_from_elsewhere_have_the_rights_of_callers_from_elsewhere(tmp_path: Path) -> None:
    host = _address_elsewhere()
    with http_server(tmp_path / "archive", "--http_host=*") as server:
        assert server.http.ask("PUT", "/api/v1/models/policy").status == HTTPStatus.OK
        connection = http.client.HTTPConnection(host, server.http.port, timeout=PATIENCE_SECONDS)
        forged = {
            "Cogment-Forwarded-Peer": "ipv4:127.0.0.1:1",
            "X-Forwarded-For": "127.0.0.1",
            "Forwarded": "for=[::1]",
        }
        for method, path, status in (
            ("GET", "/api/v1/models", HTTPStatus.OK),
            ("DELETE", "/api/v1/models/policy", HTTPStatus.FORBIDDEN),
            ("PUT", "/api/v1/models/policy/versions", HTTPStatus.FORBIDDEN),
        ):
            connection.request(method, path, headers=forged)
            response = connection.getresponse()
            response.read()
            assert response.status == status, (method, path)
        connection.close()
        server.process.wait_for_line(rf"DeleteModel PERMISSION_DENIED .*peer=ipv4:{host}:")


async def test_nobody_can_claim_to_call_for_somebody_else_over_the_network(tmp_path: Path) -> None:
    host = _address_elsewhere()
    with http_server(tmp_path / "archive", f"--host={host}", "--http_host=127.0.0.1") as server:
        request = messages.DeleteModelRequest(model_id="policy").SerializeToString()
        async with grpc.aio.insecure_channel(f"{host}:{server.process.port}") as channel:
            call: Any = channel.unary_unary(method_path("DeleteModel"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, metadata=((forwarding.PEER_KEY, "ipv4:127.0.0.1:1"),), timeout=PATIENCE_SECONDS)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_client_that_has_reset_its_connection_is_nobody_from_this_host() -> None:
    # The system has no address then of a connection that waited to be accepted, and still has its request.
    async def refuse(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the request was let in")

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    statuses: list[int] = []

    async def send(message: Message) -> None:
        statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

    scope = {"type": "http", "method": "DELETE", "scheme": "http", "headers": [(b"host", b"127.0.0.1")], "client": None}
    await Security(refuse, Sessions(), None)(scope, receive, send)
    assert statuses == [HTTPStatus.BAD_REQUEST]


async def test_a_call_for_others_without_their_address_is_none_from_this_host(shared_http: HttpServer) -> None:
    paths = {str(each.laddr) for each in psutil.Process(shared_http.process.pid).net_connections("unix")}
    (path,) = [each for each in paths if each.endswith(".http")]
    request = messages.DeleteModelRequest(model_id="policy").SerializeToString()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.unary_unary(method_path("DeleteModel"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_errors_do_not_name_the_socket_of_the_process(tmp_path: Path) -> None:
    current.set(Caller("ipv4:127.0.0.1:1"))
    async with Registry(str(tmp_path / "absent.http")) as registry:
        with pytest.raises(UnavailableError) as caught:
            await registry.list_models()
    assert "cannot connect to the server" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_the_socket_of_the_process_is_for_this_user_alone(shared_http: HttpServer, http: Http) -> None:
    child = psutil.Process(shared_http.process.pid).children()[0]
    paths = {str(each.laddr) for each in psutil.Process(shared_http.process.pid).net_connections("unix")}
    (path,) = [each for each in paths if each.endswith(".http")]
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert not [word for word in child.cmdline() if path in word]
    assert http.get("/healthz").status == HTTPStatus.OK
