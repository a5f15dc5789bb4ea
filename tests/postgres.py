"""A real PostgreSQL in processes of its own, in a temporary directory.

It refuses to run as root, so there it runs as the user that its package has made, or as nobody.
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from cogment_model_registry.storage.postgres.schema import SCHEMA
from tests.ports import free_ports
from tests.processes import GuardedProcess
from tests.waiting import wait_until

_SECONDS = 60
_USER = "registry"

_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}

_STATUS_LINE = 7
"""The line of `postmaster.pid` with its status, from 0."""

_FAST = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}
"""Settings of a server whose files need not outlive the machine; those that a crash of PostgreSQL needs stay."""


def find_program(name: str) -> str | None:
    """Return the path of a program of PostgreSQL; None where it is not installed."""
    folders = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def program(name: str) -> str:
    """Return the path of a program of PostgreSQL; skip the test where it is not installed, except in CI."""
    import pytest  # noqa: PLC0415 # benchmarks use the rest of this module without it

    found = find_program(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found


def system_user() -> str | None:
    """Return the user that PostgreSQL runs as; None for the current one."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


def owner_prefix() -> list[str]:
    """Return the prefix of a command that runs as the user of PostgreSQL.

    The arguments of `subprocess` for that fork this process with the handlers of gRPC, in which a child may crash.
    """
    user = system_user()
    return (
        [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    )


class PostgresServer:
    """PostgreSQL on a port of the loopback interface. It can be stopped and started again.

    Args:
        folder: Where it keeps its files; it is handed to the user that it runs as.
        settings: More settings.
        is_fast: Whether it may lose what it has when the machine crashes.

    Attributes:
        port: Its port.
        has_database: Whether it has the database of `emptied_database`.
    """

    has_database = False

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, *, is_fast: bool = True) -> None:
        self.port = free_ports(1)[0]
        self._data = folder / "data"
        self._log = folder / "log"
        self._process: GuardedProcess | None = None
        self._user = system_user()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "log_min_messages": "warning",
            **(_FAST if is_fast else {}),
            **(settings or {}),
        }
        if self._user is not None:
            shutil.chown(folder, self._user)
        arguments = [f"--username={_USER}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", f"--pgdata={self._data}", *arguments)
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in options.items())

    def url(self, database: str = "postgres", user: str = _USER) -> str:
        """Return the address of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        command = [program("postgres"), "-D", str(self._data)]
        self._process = GuardedProcess(command, signal.SIGQUIT, self._log, _ENVIRONMENT, user=self._user or "")
        wait_until(self._is_ready, self._last_lines)

    def _is_ready(self) -> bool:
        """Return whether it takes connections: whether the last line of its file says so, as `pg_ctl` looks at it."""
        assert self._process is not None
        assert self._process.is_running, self._last_lines()
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready"

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-10:])

    def stop(self) -> None:
        """End it in order; connections are broken off."""
        self._stop("fast")

    def crash(self) -> None:
        """End it without a checkpoint, as a crash does: it recovers at the next start, and empties unlogged tables."""
        self._stop("immediate")

    def _stop(self, mode: str) -> None:
        arguments = (f"--pgdata={self._data}", "--silent", f"--mode={mode}", "--wait", f"--timeout={_SECONDS}")
        self._run("pg_ctl", "stop", *arguments)
        process, self._process = self._process, None
        if process is not None:
            process.wait()

    def restart(self) -> None:
        """End it in order, and start it again."""
        self.stop()
        self.start()

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run statements."""

        async def run() -> None:
            connection = await asyncpg.connect(self.url(database))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop, which stays as it is
            thread.submit(asyncio.run, run()).result()

    @property
    def pid(self) -> int:
        """Its main process, while it runs."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return (self._data / "postmaster.pid").exists()

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [*owner_prefix(), program(name), *arguments],
            cwd="/",
            env=_ENVIRONMENT,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2 * _SECONDS,
        )


@contextmanager
def postgres_server(settings: Mapping[str, str] | None = None, *, is_fast: bool = True) -> Iterator[PostgresServer]:
    """Run PostgreSQL; a context manager."""
    program("initdb")
    # Not below the directory of a test, which other users may not enter.
    with TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), settings, is_fast=is_fast)
        server.start()
        try:
            yield server
        finally:
            if server.is_running:
                server.crash()  # nobody needs its files


_DATABASE = "tests"

_EMPTY = f"""
DO $$ BEGIN
    PERFORM pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    EXECUTE (SELECT coalesce('TRUNCATE ' || string_agg(format('%I.%I', schemaname, tablename), ', '), '')
        FROM pg_tables WHERE schemaname = '{SCHEMA}' AND tablename <> 'migrations');
END $$
"""


def emptied_database(server: PostgresServer) -> str:
    """Return the address of a database for one test at a time, which has no models: that is faster than a new one."""
    if not server.has_database:
        server.execute(f"CREATE DATABASE {_DATABASE}")
        server.has_database = True
    server.execute(_EMPTY, _DATABASE)
    return server.url(_DATABASE)


@contextmanager
def new_database(server: PostgresServer) -> Iterator[str]:
    """Make a database that nobody else uses; a context manager with its address."""
    name = f"test_{secrets.token_hex(8)}"
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield server.url(name)
    finally:
        if server.is_running:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def execute(url: str, statement: str, *values: object) -> list[asyncpg.Record]:
    """Run a statement in a database, and return its rows."""
    connection = await asyncpg.connect(url)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
        return rows
    finally:
        await connection.close()
