"""Two servers on PostgreSQL and an object store, all on this machine, and the processor time of each."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench import Bench
from benchmarks.processes import ServerProcess, running
from tests.object_store import BUCKET, object_server
from tests.postgres import PostgresServer, new_database, postgres_server

DATABASE_SETTINGS = {"shared_buffers": "256MB"}


class DatabaseTime:
    """The processor time of PostgreSQL, in all of its processes."""

    def __init__(self, server: PostgresServer) -> None:
        self._main = psutil.Process(server.pid)
        self._before: dict[int, float] = {}

    def mark(self) -> None:
        """Begin to count."""
        self._before = self._each()

    def seconds(self) -> float:
        """Return the time since `mark`; that of processes that have ended since then is missing."""
        return sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._each().items())

    def _each(self) -> dict[int, float]:
        seconds = {}
        for process in (self._main, *self._main.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds[process.pid] = float(times.user + times.system)
        return seconds


@dataclass(frozen=True, slots=True)
class Several:
    """Servers that share a catalog and an archive.

    Attributes:
        servers: The servers.
        database: The processor time of PostgreSQL.
        url: The address of the database.
    """

    servers: list[ServerProcess]
    database: DatabaseTime
    url: str


@contextlib.contextmanager
def several(bench: Bench, count: int, cache_mib: int) -> Iterator[Several]:
    """Run servers; a context manager. PostgreSQL syncs its files, as where versions must not be lost."""
    with contextlib.ExitStack() as stack:
        place: Path = stack.enter_context(bench.place())
        store = stack.enter_context(object_server(place / "store"))
        postgres = stack.enter_context(postgres_server(DATABASE_SETTINGS, is_fast=False))
        url = stack.enter_context(new_database(postgres))
        command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
        command += ["--host=127.0.0.1", f"--archive_url=s3://{BUCKET}/models", f"--catalog_url={url}"]
        command += ["--grace_seconds=0", "--local_socket=off", f"--cache_max_bytes={cache_mib * 2**20}"]
        servers = [
            stack.enter_context(running(command, r"serving .*\bport=(\d+)", store.environment)) for _ in range(count)
        ]
        yield Several(servers, DatabaseTime(postgres), url)
