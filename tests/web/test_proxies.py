"""Servers behind proxies: which headers count, and what they change."""

import socket
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from cogment_model_registry.web.logins import TRIES
from cogment_model_registry.web.proxies import TrustedProxies
from tests.certificates import Authority
from tests.processes import run_cogment
from tests.waiting import PATIENCE_SECONDS
from tests.web.http import Http, HttpServer, http_server
from tests.web.test_encryption import trusting

NETWORKS = ("10.0.0.0/8", "127.0.0.1/32", "::1/128", "fd00::/8")

# The address of the peer, the lines of the header, and the address and the port of the client.
CHAINS: Sequence[tuple[str, tuple[str, ...], tuple[str, int]]] = [
    ("10.0.0.1", (), ("10.0.0.1", 7)),
    ("10.0.0.1", ("192.0.2.1",), ("192.0.2.1", 0)),
    ("10.0.0.1", ("192.0.2.1:80",), ("192.0.2.1", 80)),
    ("10.0.0.1", ("2001:db8::1",), ("2001:db8::1", 0)),
    ("10.0.0.1", ("[2001:DB8:0::1]",), ("2001:db8::1", 0)),
    ("10.0.0.1", ("[2001:db8::1]:443",), ("2001:db8::1", 443)),
    ("fd00::1", ("192.0.2.1",), ("192.0.2.1", 0)),
    # What the client itself has sent is further to the left.
    ("10.0.0.1", ("198.51.100.1, 192.0.2.1",), ("192.0.2.1", 0)),
    ("10.0.0.1", ("198.51.100.1,192.0.2.1\t, 10.0.0.2",), ("192.0.2.1", 0)),
    ("10.0.0.1", ("198.51.100.1", "192.0.2.1", "10.0.0.2, fd00::2"), ("192.0.2.1", 0)),
    # All of them are trusted.
    ("10.0.0.1", ("10.0.0.3:5, 10.0.0.2",), ("10.0.0.3", 5)),
    # Addresses of IPv4 that are mapped to IPv6.
    ("::ffff:10.0.0.1", ("::ffff:192.0.2.1",), ("192.0.2.1", 0)),
    ("10.0.0.1", ("192.0.2.1, [::ffff:10.0.0.2]:1",), ("192.0.2.1", 0)),
    # A proxy on another host means itself by an address of loopback.
    ("127.0.0.1", ("127.0.0.1",), ("127.0.0.1", 0)),
    ("::1", ("10.0.0.2, 127.0.0.1",), ("10.0.0.2", 0)),
    ("10.0.0.1", ("127.0.0.1",), ("10.0.0.1", 7)),
    ("10.0.0.1", ("::1, 10.0.0.2",), ("10.0.0.2", 0)),
    ("10.0.0.1", ("::ffff:127.0.0.1",), ("10.0.0.1", 7)),
    # Those are not trusted.
    ("192.0.2.9", ("192.0.2.1",), ("192.0.2.9", 7)),
    ("192.0.2.9", ("10.0.0.1",), ("192.0.2.9", 7)),
    ("::ffff:192.0.2.9", ("10.0.0.1",), ("::ffff:192.0.2.9", 7)),
]

MALFORMED = [
    *("", " ", ",", "unknown", "_hidden", "unix:", "registry.example", "*", "0", "1", "192.0.2", "192.0.2.1.1"),
    *("192.0.2.256", "192.0.2.01", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:65536", "192.0.2.1:-1", "192.0.2.1/32"),
    *("[192.0.2.1]", "[2001:db8::1", "2001:db8::1]", "[2001:db8::1]443", "[2001:db8::1]:x", "[]", "[]:1", "::1::"),
    *("fe80::1%eth0", "[fe80::1%eth0]:1", "192.0.2.1\0", "192.0.2.1 192.0.2.2", '"192.0.2.1"', "for=192.0.2.1"),
    *("\xb9\xb2.0.2.1", "\u0661".encode().decode("latin-1"), "1" * 30_000, "[" * 30_000, ":" * 30_000),
]


async def client_of(peer: str, lines: Sequence[str], *more: tuple[bytes, bytes]) -> Scope:
    """Return the scope that the application gets."""
    got: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        got.append(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(_message: Message) -> None:
        raise AssertionError

    headers = [*((b"x-forwarded-for", line.encode("latin-1")) for line in lines), *more]
    scope = {"type": "http", "scheme": "http", "client": (peer, 7), "headers": headers}
    await TrustedProxies(app, NETWORKS)(scope, receive, send)
    return got[0]


@pytest.mark.parametrize(("peer", "lines", "client"), CHAINS)
async def test_the_client_is_the_last_address_that_is_not_trusted(
    peer: str, lines: tuple[str, ...], client: tuple[str, int]
) -> None:
    assert (await client_of(peer, lines))["client"] == client


@pytest.mark.parametrize("entry", MALFORMED, ids=lambda entry: repr(entry[:20]))
async def test_a_malformed_entry_ends_the_search_at_the_proxy_that_reports_it(entry: str) -> None:
    assert (await client_of("10.0.0.1", [entry]))["client"] == ("10.0.0.1", 7)
    assert (await client_of("10.0.0.1", ["192.0.2.1", entry]))["client"] == ("10.0.0.1", 7)
    assert (await client_of("10.0.0.1", [f"192.0.2.1, {entry}, 10.0.0.2"]))["client"] == ("10.0.0.2", 0)


async def test_a_header_of_thousands_of_entries_is_read_from_its_end_and_not_far() -> None:
    assert (await client_of("10.0.0.1", ["6.6.6.6," * 4000 + "192.0.2.1"]))["client"] == ("192.0.2.1", 0)
    assert (await client_of("10.0.0.1", ["6.6.6.6"] * 4000 + ["192.0.2.1"]))["client"] == ("192.0.2.1", 0)
    assert (await client_of("10.0.0.1", ["192.0.2.1" + ",10.0.0.2" * 4000]))["client"] == ("10.0.0.2", 0)


async def test_a_connection_without_an_address_stays_without() -> None:
    got: list[object] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        got.append(scope["client"])

    async def receive() -> Message:
        raise AssertionError

    async def send(_message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "client": None, "headers": [(b"x-forwarded-for", b"192.0.2.1")]}
    await TrustedProxies(app, NETWORKS)(scope, receive, send)
    assert got == [None]


@pytest.mark.parametrize(
    ("peer", "values", "scheme"),
    [
        ("10.0.0.1", ["https"], "https"),
        ("10.0.0.1", ["HTTPS "], "https"),
        ("10.0.0.1", ["http", "http, https"], "https"),
        ("10.0.0.1", ["https, http"], "http"),
        ("10.0.0.1", ["wss"], "http"),
        ("10.0.0.1", [""], "http"),
        ("192.0.2.9", ["https"], "http"),
    ],
)
async def test_the_last_proxy_says_whether_the_client_uses_tls(peer: str, values: list[str], scheme: str) -> None:
    scope = await client_of(peer, [], *((b"x-forwarded-proto", value.encode()) for value in values))
    assert scope["scheme"] == scheme


def _peer(server: HttpServer, headers: dict[str, str]) -> str:
    """Return the address, without its port, that the history of a model has for a request that creates it."""
    assert server.http.ask("PUT", "/api/v1/models/policy", None, headers).status == HTTPStatus.OK
    changes = server.http.get("/api/v1/models/policy/history").document["changes"]
    (peer,) = (str(change["peer"]) for change in changes if change["change"] == "model created")
    return peer.rpartition(":")[0]


def test_the_audit_log_has_the_address_of_the_client(tmp_path: Path) -> None:
    flags = (
        "--anonymous=everything",
        f"--audit_log={tmp_path / 'audit'}",
        "--http_trusted_proxies=127.0.0.1,10.0.0.0/8",
    )
    with http_server(tmp_path / "archive", *flags) as server:
        assert _peer(server, {"X-Forwarded-For": "6.6.6.6, 192.0.2.1, 10.0.0.1"}) == "ipv4:192.0.2.1"
        # Hostile headers are answered as any others.
        for value in ("\0", "\xff" * 1000, "," * 20_000, "x" * 20_000, "6.6.6.6," * 3000 + "192.0.2.2"):
            assert _answered(server.http, value) in (b"200", b"400"), value[:20]
        assert server.http.get("/healthz").status == HTTPStatus.OK


def _answered(http: Http, value: str) -> bytes:
    """Send a header as it is, which clients do not; return the status."""
    with socket.create_connection(("127.0.0.1", http.port), timeout=PATIENCE_SECONDS) as connection:
        head = f"GET /login HTTP/1.1\r\nHost: a.localhost\r\nX-Forwarded-For: {value}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        with connection.makefile("rb") as answer:
            return answer.readline().split()[1]


def test_without_trusted_proxies_the_headers_are_ignored(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", f"--audit_log={tmp_path / 'audit'}") as server:
        http, forwarded = server.http, {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
        assert _peer(server, forwarded) == "ipv4:127.0.0.1"
        answer = http.get("/login", {**forwarded, "Host": "localhost"})
        assert "strict-transport-security" not in answer.headers


def test_nobody_gets_the_rights_of_this_host_from_a_header(tmp_path: Path) -> None:
    # Without tokens, who is on this host may do everything, and others may read.
    with http_server(tmp_path / "archive", "--http_trusted_proxies=127.0.0.1,10.0.0.0/8") as server:
        for value in ("192.0.2.1", "127.0.0.1, 192.0.2.1", "127.0.0.1, 10.0.0.1", "::1,10.0.0.1"):
            answer = server.http.ask("PUT", "/api/v1/models/policy", None, {"X-Forwarded-For": value})
            assert answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN), value
            assert server.http.get("/api/v1/models", {"X-Forwarded-For": value}).status == HTTPStatus.OK
        local = {"X-Forwarded-For": "127.0.0.1"}
        assert server.http.ask("PUT", "/api/v1/models/policy", None, local).status == HTTPStatus.OK


def test_each_client_behind_a_proxy_has_its_own_limits(tmp_path: Path) -> None:
    flags = ("--http_trusted_proxies=::1,127.0.0.1", "--anonymous=read", "--caller_calls_per_second=0.001")
    with http_server(tmp_path / "archive", *flags) as server:
        http, one, other = server.http, {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        assert http.get("/api/v1/models", one).status == HTTPStatus.OK
        assert http.get("/api/v1/models", one).status == HTTPStatus.TOO_MANY_REQUESTS
        assert http.get("/api/v1/models", other).status == HTTPStatus.OK


def test_each_client_behind_a_proxy_has_its_own_attempts_to_log_in(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", "--http_trusted_proxies=127.0.0.1") as server:
        http, one = server.http, {"X-Forwarded-For": "192.0.2.1"}
        statuses = {http.form("/login", f"token={index:043}", one).status for index in range(TRIES)}
        assert statuses == {HTTPStatus.FORBIDDEN}
        assert http.form("/login", f"token={'x' * 43}", one).status == HTTPStatus.TOO_MANY_REQUESTS
        assert http.form("/login", f"token={'x' * 43}", {"X-Forwarded-For": "192.0.2.2"}).status == HTTPStatus.FORBIDDEN


def test_tls_that_ends_at_a_trusted_proxy_is_tls(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    flags = ("--anonymous=nothing", "--http_hosts=registry.example", "--http_trusted_proxies=127.0.0.1")
    with http_server(archive, *flags) as server:
        http = server.http
        host = {"Host": "registry.example", "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
        secret = run_cogment("token", "create", f"--archive_dir={archive}", "--name=a", "--scope=read").stdout.strip()
        page = http.get("/login", host)
        assert page.headers["strict-transport-security"] == "max-age=31536000"
        assert "strict-transport-security" not in http.get("/login", {**host, "Host": "registry.example:8443"}).headers
        assert "strict-transport-security" not in http.get("/login", {**host, "X-Forwarded-Proto": "http"}).headers
        origin = {"Origin": "https://registry.example"}
        # A page that is not encrypted is another site.
        foreign = http.form("/login", f"token={secret}", {**host, "Origin": "http://registry.example"})
        assert foreign.status == HTTPStatus.FORBIDDEN
        answer = http.form("/login", f"token={secret}", {**host, **origin})
        assert answer.status == HTTPStatus.SEE_OTHER
        assert answer.headers["set-cookie"].startswith("__Host-registry-session=")
        assert "secure" in answer.headers["set-cookie"].lower()
        (cookie,) = answer.cookies.values()
        assert http.get("/api/v1/models", {**host, "Cookie": cookie}).status == HTTPStatus.OK
        plain = cookie.removeprefix("__Host-")
        assert http.get("/api/v1/models", {**host, "Cookie": plain}).status == HTTPStatus.UNAUTHORIZED
        # The header says nothing about the name: a page with a rebound name can send it too.
        answer = http.get("/login", {**host, "Host": "evil.example"})
        assert answer.status == HTTPStatus.MISDIRECTED_REQUEST


def test_a_proxy_may_speak_tls_to_the_server_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    flags = (*authority.issue().flags, "--http_trusted_proxies=127.0.0.1", f"--audit_log={tmp_path / 'audit'}")
    with http_server(tmp_path / "archive", *flags, "--anonymous=everything", context=trusting(authority)) as server:
        assert _peer(server, {"X-Forwarded-For": "2001:db8::1"}) == "ipv6:%5B2001:db8::1%5D"
        answer = server.http.get("/login", {"Host": "any.example", "X-Forwarded-Proto": "http"})
        assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize("value", ["10.0.0.1/8", "*", "proxy.example", "10.0.0.0/33", "127.0.0.1,,::1", "fe80::1%lo"])
def test_a_wrong_network_fails_the_start_in_one_line(value: str, tmp_path: Path) -> None:
    flag = f"--http_trusted_proxies={value}"
    result = run_cogment("services", "model_registry", f"--archive_dir={tmp_path}", flag)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "http_trusted_proxies" in line
    assert "10.0.0.0/8,127.0.0.1,::1" in line
