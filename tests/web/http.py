"""A server that serves HTTP, in a process as users have it, and a client that shows what comes back as it is."""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

from tests.processes import ServerProcess, server_process
from tests.waiting import PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its headers by names in small letters, and its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies that it sets, as `name=value` by name."""
        jar: SimpleCookie = SimpleCookie(self.headers.get("set-cookie", ""))
        return {name: f"{name}={morsel.value}" for name, morsel in jar.items()}


class Http:
    """A client of one server; each request has a connection of its own."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, token: str = "") -> None:
        self.port = port
        self._context = context
        self._token = token

    def with_token(self, token: str) -> "Http":
        """Return a client that shows a token."""
        return Http(self.port, self._context, token)

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection; close it."""
        if self._context is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS, context=self._context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request, and return the answer; a body that is no bytes is sent as JSON."""
        sent = {} if not self._token else {"Authorization": f"Bearer {self._token}"}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = self.connect()
        try:
            with suppress(BrokenPipeError):  # it was refused before all of it was sent
                connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            given = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, given, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a GET."""
        return self.ask("GET", path, None, headers)

    def form(self, path: str, fields: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a form, as a page of the server does."""
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{self.port}"}
        return self.ask("POST", path, fields.encode(), {**form, **(headers or {})})


class HttpServer:
    """A server process that serves HTTP.

    Attributes:
        process: The server.
        http: A client without a token.
    """

    def __init__(self, process: ServerProcess, context: ssl.SSLContext | None = None) -> None:
        self.process = process
        self.http = Http(int(process.wait_for_line(r"\bhttp_port[\"=: ]+(\d+)")[1]), context)

    @property
    def endpoint(self) -> str:
        """The endpoint of gRPC."""
        return f"grpc://127.0.0.1:{self.process.port}"


@contextmanager
def http_server(
    archive_dir: Path,
    *flags: str,
    environment: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[HttpServer]:
    """Return a context manager for a server process that serves HTTP on a free port."""
    with server_process(archive_dir, "--http_port=0", *flags, environment=environment) as process:
        yield HttpServer(process, context)
