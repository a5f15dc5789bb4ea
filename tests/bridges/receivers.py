"""An HTTP server that receives posts: it answers as a test says, and can be killed.

As a program, it writes each post that it has confirmed as a line to a file, and then answers.
"""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import PATIENCE_SECONDS


@dataclass
class Received:
    """A post."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """A server in this process.

    Attributes:
        port: Its port.
        posts: What it has received, also what it refused.
        answer: Returns the status of the answer to a post, and further headers; None for no answer, until the end.
    """

    port: int = 0
    posts: list[Received] = field(default_factory=list)
    answer: Callable[[Received], tuple[int, dict[str, str]] | None] = lambda _post: (204, {})
    news: threading.Condition = field(default_factory=threading.Condition)
    ends: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, count: int) -> list[Received]:
        """Wait for a number of posts, and return them."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.posts) >= count, PATIENCE_SECONDS), self.posts
            return self.posts[:count]

    def take(self, post: Received) -> tuple[int, dict[str, str]] | None:
        with self.news:
            self.posts.append(post)
            self.news.notify_all()
        return self.answer(post)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Return a context manager with a receiver."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.take(Received(self.path, headers, body))
            if answer is None:
                self.trickle()
                return
            status, more = answer
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            receiver.take(Received(self.path, {"webhook-id": "a GET"}, b"{}"))
            self.send_response(200)
            self.end_headers()

        def trickle(self) -> None:
            """Send a byte now and then, so that no time between two bytes is long."""
            try:
                self.connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not receiver.ends.wait(0.05):
                    self.connection.sendall(b"X: y\r\n"[:2])
            except OSError:
                return

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        block_on_close = True

    server = Server(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ends.set()
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Receive on a port, and write confirmed ids and events to a file."""
    port, path = int(sys.argv[1]), sys.argv[2]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps([self.headers["webhook-id"], json.loads(body)]) + "\n")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        allow_reuse_address = True

    server = Server(("127.0.0.1", port), Handler)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    print("ready", flush=True)  # noqa: T201 # for the test that started it
    server.serve_forever()


if __name__ == "__main__":
    main()
