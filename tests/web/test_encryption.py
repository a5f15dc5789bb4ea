"""HTTPS: the certificate of the server, also a renewed one, and certificates of clients."""

import asyncio
import contextlib
import socket
import ssl
from http import HTTPStatus
from pathlib import Path

import pytest
from starlette.applications import Starlette

from cogment_model_registry import ModelRegistry
from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web.serving import Encryption, new_server
from tests.certificates import Authority, Issued
from tests.waiting import wait_until
from tests.web.http import http_server

DATA = bytes(range(256)) * 8 * 1024  # 2 MiB


def trusting(authority: Authority, client: Issued | None = None) -> ssl.SSLContext:
    """Return a context that trusts an authority, and shows a certificate."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


def test_https_shows_the_certificate_of_the_server_and_a_renewed_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue()
    with http_server(tmp_path / "archive", *issued.flags, context=trusting(authority)) as server:
        answer = server.http.ask("PUT", "/api/v1/models/policy/versions", DATA)
        assert answer.status == HTTPStatus.CREATED
        assert "strict-transport-security" not in answer.headers  # it would concern all ports of the host
        path = "/models/policy/versions/1/data"
        assert server.http.get(path).body == DATA
        assert server.http.get(path, {"Range": "bytes=1-1048577"}).body == DATA[1:1048578]
        # The certificate says who may use a name, so any name will do.
        answer = server.http.get("/api/v1/models", {"Host": "models.example"})
        assert (answer.status, "strict-transport-security" in answer.headers) == (HTTPStatus.OK, True)
        form = {"Origin": f"https://127.0.0.1:{server.http.port}"}
        assert server.http.form("/login", "token=x", form).status == HTTPStatus.FORBIDDEN
        assert "another site" in server.http.form("/login", "token=x").text  # from a page that is not encrypted
        with ModelRegistry(f"grpcs://127.0.0.1:{server.process.port}", tls_ca=authority.certificate) as registry:
            assert registry.retrieve("policy") == DATA
        first = _serial(server.http.port, trusting(authority))
        issued.replace_by(authority.issue("renewed"))
        wait_until(lambda: _serial(server.http.port, trusting(authority)) != first)
        assert server.http.get(path).body == DATA


def test_a_session_over_tls_has_a_cookie_for_this_host_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue()
    with http_server(tmp_path / "archive", *issued.flags, context=trusting(authority)) as server:
        origin = {"Origin": f"https://127.0.0.1:{server.http.port}"}
        answer = server.http.form("/logout", "", origin)
        assert answer.headers["set-cookie"].startswith(f"__Host-registry-session-{server.http.port}=")
        assert "Secure" in answer.headers["set-cookie"]


async def test_a_client_that_never_says_hello_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogment_model_registry.web.serving.HEAD_SECONDS", 0.2)
    issued = Authority(tmp_path).issue()
    options = WebOptions(
        socket_path="", descriptors=(), grpc_port=9002, tls_certificate=str(issued.certificate), tls_key=str(issued.key)
    )
    server = new_server(Starlette(), Encryption(options), 1.0)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    async with asyncio.timeout(50):  # less than the minute that asyncio gives by itself
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    server.should_exit = True
    await serving


def test_clients_show_a_certificate_where_that_is_demanded(tmp_path: Path) -> None:
    authority, clients = Authority(tmp_path), Authority(tmp_path, "clients")
    issued, client = authority.issue(), clients.issue("client")
    flag = f"--tls_client_ca={clients.certificate}"
    with http_server(tmp_path / "archive", *issued.flags, flag, context=trusting(authority, client)) as server:
        assert server.http.get("/api/v1/models").status == HTTPStatus.OK
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _serial(server.http.port, trusting(authority))


def _serial(port: int, context: ssl.SSLContext) -> object:
    """Return the serial number of the certificate that a server shows."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not connection.recv(1):
            raise ConnectionError("the server has refused the connection")
        certificate = connection.getpeercert()
        assert certificate
        return certificate["serialNumber"]
