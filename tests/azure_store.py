"""Azure Blob Storage as `azurite` emulates it, where that is installed (`npm install azurite`, on the PATH)."""

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from obstore.store import AzureStore

from tests.ports import free_port
from tests.waiting import wait_until

_ACCOUNT = "test"
_KEY = base64.b64encode(b"key of the tests of the archive").decode()
_CONTAINER = "archives"
_VERSION = "2021-12-02"
_STOP_SECONDS = 20.0


def program() -> str:
    """Return the path of azurite; skip the test where it is not installed."""
    found = shutil.which("azurite-blob")
    if found is None:
        pytest.skip("azurite is not installed: npm install azurite, and put node_modules/.bin on the PATH")
    return found


class AzureServer:
    """An emulation of Azure Blob Storage on a port of the loopback interface.

    Attributes:
        port: The port.
    """

    def __init__(self) -> None:
        self.port = free_port()

    def store(self, prefix: str) -> AzureStore:
        """Return what is below a prefix of the container."""
        return AzureStore(
            _CONTAINER,
            prefix=prefix,
            account_name=_ACCOUNT,
            account_key=_KEY,
            endpoint=f"http://127.0.0.1:{self.port}/{_ACCOUNT}",
            client_options={"allow_http": True},
        )

    def create_container(self) -> bool:
        """Create the container, which the library of object stores does not; return whether the server answers yet."""
        headers = {"x-ms-date": formatdate(time.time(), usegmt=True), "x-ms-version": _VERSION}
        path = f"/{_ACCOUNT}/{_CONTAINER}"
        signed = "\n".join(
            [
                "PUT",
                *[""] * 11,
                *[f"{name}:{value}" for name, value in headers.items()],
                f"/{_ACCOUNT}{path}",
                "restype:container",
            ]
        )
        digest = hmac.new(base64.b64decode(_KEY), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STOP_SECONDS)
        try:
            connection.request("PUT", f"{path}?restype=container", headers={**headers, "Content-Length": "0"})
            answer = connection.getresponse()
            assert answer.status == http.client.CREATED, answer.read()
        except OSError:
            return False
        finally:
            connection.close()
        return True


@contextmanager
def azure_server(folder: Path) -> Iterator[AzureServer]:
    """Run an emulation; a context manager."""
    server = AzureServer()
    command = [
        program(),
        "--inMemoryPersistence",
        "--blobHost=127.0.0.1",
        f"--blobPort={server.port}",
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--silent",
    ]
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_KEY}"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
    try:
        wait_until(server.create_container, (folder / "log").read_text)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
