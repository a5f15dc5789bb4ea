"""PostgreSQL twice: a primary, and a standby that has each commit before it is acknowledged and can take over.

Each commit waits for the standby, so that a failover loses nothing that was acknowledged. A new primary waits for
nobody until it has a standby of its own, and no fault comes in between. Nothing is synced to the disk, since no fault
cuts the power.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.ports import free_port
from tests.postgres import find_program, owner_prefix, system_user
from tests.torture.several_servers.network import Network
from tests.waiting import PATIENCE_SECONDS, wait_until

USER, DATABASE = "registry", "postgres"
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "hot_standby": "on",
    "log_line_prefix": "%m ",
    "max_connections": "100",
    "max_wal_senders": "5",
    "shared_buffers": "32MB",
    "synchronous_commit": "on",
    "unix_socket_directories": "",
    "wal_keep_size": "64MB",
    "wal_level": "replica",
    "wal_retrieve_retry_interval": "200ms",
}
TAKES_CHANGES = "SELECT 'yes' WHERE NOT pg_is_in_recovery()"
_IS_STANDBY = "SELECT 'yes' WHERE pg_is_in_recovery()"
_HAS_STANDBY = "SELECT 'yes' FROM pg_stat_replication WHERE state = 'streaming'"
_ALL_COMMITS_WAIT = "synchronous_standby_names = '*'\n"


_PROGRAMS = ("initdb", "pg_basebackup", "pg_ctl", "postgres", "psql")


def is_installed() -> bool:
    """Return whether all programs of PostgreSQL are there."""
    return all(map(find_program, _PROGRAMS))


@dataclass
class Database:
    """One PostgreSQL, on a node of its own.

    Attributes:
        node: The node.
        host: Its address.
        port: Its port.
        folder: Where its files are.
        before: The prefix of its commands.
        process: It, while it runs.
    """

    node: str
    host: str
    port: int
    folder: Path
    before: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def data(self) -> Path:
        """The directory of its data."""
        return self.folder / "data"

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of PostgreSQL next to it, and return what it printed."""
        done = self.try_to_run(program, *arguments)
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def try_to_run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of PostgreSQL next to it."""
        return subprocess.run(
            [*self.before, str(find_program(program)), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "5"},
        )

    def query(self, statement: str) -> str:
        """Return what a statement returns; empty if the database does not answer."""
        address = f"host={self.host} port={self.port} user={USER} dbname={DATABASE}"
        done = self.try_to_run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "-c", statement, address)
        return done.stdout.strip() if done.returncode == 0 else ""

    def configure(self, name: str, settings: Mapping[str, str]) -> None:
        """Write settings into a file that it includes."""
        (self.data / name).write_text("".join(f"{key} = '{value}'\n" for key, value in settings.items()))

    def let_commits_wait(self, *, wait: bool) -> None:
        """Set whether a commit waits for the standby."""
        (self.data / "waiting.conf").write_text(_ALL_COMMITS_WAIT if wait else "")
        if self.process:
            self.process.send_signal(signal.SIGHUP)

    def start(self, is_ready: str = TAKES_CHANGES) -> None:
        """Start it, and wait until a statement returns something."""
        command = [*self.before, str(find_program("postgres")), "-D", str(self.data)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        wait_until(lambda: self.query(is_ready), self.last_lines)

    def end(self, number: signal.Signals) -> None:
        """End it: SIGINT as `pg_ctl stop -m fast` does, SIGQUIT as `-m immediate` does, or SIGKILL."""
        process, self.process = self.process, None
        if process is None:
            return
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)
        # They end by themselves when the first process was killed, and the next one must not start before.
        wait_until(lambda: not any(map(_is_running, children)), self.last_lines)

    def last_lines(self) -> str:
        """Return the end of its log."""
        return "\n".join((self.folder / "log").read_text("utf-8", "replace").splitlines()[-10:])


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Pair:
    """A primary and a standby.

    Args:
        place: An empty directory that the user of PostgreSQL may enter.
        network: The network.
        nodes: The two nodes.

    Attributes:
        primary: The one that takes changes.
        standby: The other one.
    """

    def __init__(self, place: Path, network: Network, nodes: tuple[str, str]) -> None:
        self._network = network
        self.primary, self.standby = (self._database(place / node, node) for node in nodes)

    def _database(self, folder: Path, node: str) -> Database:
        folder.mkdir(parents=True)
        user = system_user()
        if user:
            shutil.chown(folder, user)
        before = [*self._network.before(node), *owner_prefix()]
        return Database(node, self._network.host(node), free_port(), folder, before)

    @property
    def both(self) -> tuple[Database, Database]:
        """Both, in the order of their names."""
        first, second = sorted((self.primary, self.standby), key=lambda each: each.node)
        return first, second

    async def url(self, source: str) -> str:
        """Return the address of the database for a node: of both, of which it takes the one that takes changes."""
        hosts = [await self._network.address(source, each.node, each.port) for each in self.both]
        return f"postgresql://{USER}@{','.join(hosts)}/{DATABASE}?target_session_attrs=read-write"

    async def start(self) -> None:
        """Make and start both."""
        await asyncio.to_thread(self._create)
        await self.attach()

    def _create(self) -> None:
        primary = self.primary
        primary.run("initdb", "-D", "data", "-U", USER, "-A", "trust", "--no-sync", "--encoding=UTF8", "--no-locale")
        with (primary.data / "postgresql.conf").open("a") as file:
            file.writelines(f"include = '{name}'\n" for name in ("common.conf", "own.conf", "waiting.conf"))
        with (primary.data / "pg_hba.conf").open("a") as file:
            file.write("host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n")
        primary.configure("common.conf", _SETTINGS)
        primary.configure("own.conf", {"listen_addresses": primary.host, "port": str(primary.port)})
        primary.let_commits_wait(wait=False)
        primary.start()

    async def attach(self) -> None:
        """Make the standby from the primary, and let commits wait for it from then on."""
        host, port = (await self._network.address(self.standby.node, self.primary.node, self.primary.port)).split(":")
        await asyncio.to_thread(self._attach, host, port)

    def _attach(self, host: str, port: str) -> None:
        standby = self.standby
        shutil.rmtree(standby.data, ignore_errors=True)
        source = ("-h", host, "-p", port, "-U", USER, "--checkpoint=fast", "--no-sync", "--write-recovery-conf")
        standby.run("pg_basebackup", "-D", "data", *source)
        standby.configure("own.conf", {"listen_addresses": standby.host, "port": str(standby.port)})
        standby.let_commits_wait(wait=False)
        standby.start(_IS_STANDBY)
        wait_until(lambda: self.primary.query(_HAS_STANDBY), standby.last_lines)
        self.primary.let_commits_wait(wait=True)
        wait_until(lambda: self.primary.query("SHOW synchronous_standby_names") == "*", self.primary.last_lines)

    def fail_over(self) -> None:
        """Let the standby take over from a primary that was killed; `attach` gives it a standby of its own."""
        self.primary, self.standby = self.standby, self.primary
        self.primary.run("pg_ctl", "promote", "-D", "data", "-w")
        wait_until(lambda: self.primary.query(TAKES_CHANGES), self.primary.last_lines)

    def close(self) -> None:
        """End both."""
        for each in self.both:
            each.end(signal.SIGQUIT)
