"""Serve the version of a policy that an alias points to over HTTP, and switch when the alias moves.

    python examples/deploy.py --endpoint grpc://localhost:9002 --model cartpole --port 8080
    curl localhost:8080
    curl localhost:8080 -d '[0.0, 0.1, 0.02, -0.1]'

It needs NumPy and the client of the registry, and nothing of what trained the policy: the policies of `cartpole/` are
a hidden layer and an output layer, by these names. The weights lie in a file, which is replaced whole or not at all, so
whatever else reads it sees a version, and never half of one.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cogment_model_registry import ModelRegistry, VersionInfo, numpy
from cogment_model_registry.errors import InvalidError, ModelRegistryError

LOOK_SECONDS = 1.0
"""How often to look where the alias points to."""

REQUEST_SECONDS = 10.0
REQUEST_MAX_BYTES = 64 * 1024


class Policy(NamedTuple):
    """A version that is served, with its weights: always replaced together."""

    version: VersionInfo
    weights: dict[str, Any]

    def act(self, observation: object) -> int:
        """Return the most probable action.

        Raises:
            ValueError: The observation is not as many numbers as the policy takes.
        """
        size = self.weights["hidden.weight"].shape[1]
        array = np.asarray(observation, np.float32)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise ValueError(f"an observation is a list of {size} numbers")
        hidden = np.tanh(self.weights["hidden.weight"] @ array + self.weights["hidden.bias"])
        return int(np.argmax(self.weights["output.weight"] @ hidden + self.weights["output.bias"]))


class Service(ThreadingHTTPServer):
    """Answers requests, each on a thread, with the policy that is there when it begins.

    Attributes:
        policy: What is served; None until the alias points to a version.
    """

    daemon_threads = False  # closing it waits for the answers that are under way

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Requests)
        self.policy: Policy | None = None


class Requests(BaseHTTPRequestHandler):
    """GET tells the version; POST with an observation tells the action."""

    server: Service
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:  # the base class calls it
        """Tell which version is served."""
        policy = self.server.policy
        if policy is None:
            self._reply(503, {"error": "there is no policy yet"})
            return
        version = policy.version
        self._reply(200, {"model": version.model_id, "version": version.number, "user_data": dict(version.user_data)})

    def do_POST(self) -> None:  # the base class calls it
        """Tell the action for an observation, and the version that chose it."""
        policy = self.server.policy
        length = self.headers.get("Content-Length", "")
        # What is sent is read even if it cannot be used: a connection closed before that may lose the reply.
        body = self.rfile.read(min(int(length), REQUEST_MAX_BYTES)) if length.isdecimal() else b""
        if policy is None:
            self._reply(503, {"error": "there is no policy yet"})
            return
        try:
            action = policy.act(json.loads(body))
        except (ValueError, TypeError, RecursionError) as error:
            self._reply(400, {"error": str(error)})
            return
        self._reply(200, {"action": action, "version": policy.version.number})

    def _reply(self, status: int, reply: dict[str, object]) -> None:
        body = json.dumps(reply).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no requests."""


@contextmanager
def serving(port: int) -> Iterator[Service]:
    """Open a context in which a thread answers requests; those that are under way at its end are answered."""
    with Service(port) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        try:
            yield service
        finally:
            service.shutdown()
            thread.join()


def switch(service: Service, registry: ModelRegistry, version: VersionInfo, path: Path) -> None:
    """Download a version, and serve it from the next request on.

    Raises:
        InvalidError: It is no policy.
    """
    # Beside the file, which is replaced once it is known that this one will do.
    candidate = path.with_name(f".{path.name}.{version.number}")
    try:
        registry.download(version, candidate)
        policy = Policy(version, numpy.decode(candidate.read_bytes()))
        size = policy.weights["hidden.weight"].shape[1]
        policy.act([0.0] * size)
        candidate.replace(path)
    except (InvalidError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidError(f"version {version.number} is no policy: {error!r}") from error
    finally:
        candidate.unlink(missing_ok=True)
    service.policy = policy
    print(f"serving version {version.number}, {version.data_size_bytes} bytes in {path}", flush=True)


def follow(service: Service, registry: ModelRegistry, model_id: str, alias: str, path: Path) -> None:
    """Serve the version that the alias points to indefinitely, whatever happens to the registry and the model."""
    told = ""
    while True:
        trouble = ""
        try:
            version = registry.get_version(model_id, alias)
            if service.policy is None or version != service.policy.version:
                switch(service, registry, version, path)
        except ModelRegistryError as error:
            trouble = str(error)
        # What is served stays; what went wrong is told once.
        if trouble and trouble != told:
            print(f"waiting: {trouble}", flush=True)
        told = trouble
        time.sleep(LOOK_SECONDS)


def main() -> int:
    """Serve as the command line says, until SIGTERM or Ctrl-C, and return the exit code."""
    parser = argparse.ArgumentParser(description="Serve a version of a policy over HTTP, on this machine.")
    parser.add_argument("--endpoint", help="where the registry is, such as grpc://localhost:9002")
    parser.add_argument("--model", default="cartpole", help="the id of the model (default: cartpole)")
    parser.add_argument("--alias", default="production", help="which version to serve (default: production)")
    parser.add_argument("--port", type=int, default=8080, help="where to listen; 0 for any free port (default: 8080)")
    parser.add_argument("--file", type=Path, default=Path("policy.safetensors"), help="where the weights go")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        with ModelRegistry(options.endpoint) as registry, serving(options.port) as service:
            print(f"listening on http://127.0.0.1:{service.server_port}", flush=True)
            follow(service, registry, options.model, options.alias, options.file.expanduser())
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except (ModelRegistryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
