"""Everything that runs: the servers, the databases, the object store, the network, and the processes of clients."""

import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

from tests.object_proxy import ObjectProxy
from tests.object_store import BUCKET, S3Server, environment_of
from tests.ports import free_port
from tests.processes import ServerProcess, clean_environment
from tests.torture.several_servers.database import Pair
from tests.torture.several_servers.history import Effect, Trouble
from tests.torture.several_servers.live import LiveHistory
from tests.torture.several_servers.logs import is_removal
from tests.torture.several_servers.network import Network, network
from tests.torture.several_servers.workers import Task
from tests.waiting import PATIENCE_SECONDS

SERVERS = ("server-1", "server-2", "server-3")
DATABASES = ("database-1", "database-2")
LEASE_NS = 20 * 10**9
"""How long before its lease was removed a server may have given no sign of life, with room for a busy machine."""

STORE, CLIENTS = "store", "clients"
MODELS = ("m", "n")
FIGURES = "figures.json"
ROOT = Path(__file__).parents[3]
"""The working copy."""

_FLAGS = (
    f"--archive_url=s3://{BUCKET}/models",
    "--cache_max_items=1000000",
    "--log_format=json",
    "--anonymous=everything",
)
"""Enough room that no transient version is evicted: what disappears was lost."""

WORKING = {"trainers": {"train": 3}, "operators": {"deploy": 2, "delete": 1}, "readers": {"read": 1}}
"""The threads of the processes that work until they are stopped."""

FOLLOWING = {"actors": {"track": 1, "watch": 1}}
"""The threads of the process that follows the models to their last versions."""


class Stage:
    """What runs, and how to reach it.

    Attributes:
        place: A directory for files.
        network: The network.
        databases: PostgreSQL.
        store: The object store.
        proxy: What is between it and the servers.
        servers: The servers that run, by name.
        live: What the clients have recorded so far.
        removed: When leases were removed.
    """

    def __init__(self, place: Path, ways: Network, databases: Pair, store: S3Server, proxy: ObjectProxy) -> None:
        self.place = place
        self.network = ways
        self.databases = databases
        self.store = store
        self.proxy = proxy
        self.servers: dict[str, ServerProcess] = {}
        self.live = LiveHistory()
        self.removed: list[Trouble] = []
        self._ports = {name: free_port() for name in SERVERS}
        self._lines: dict[str, list[str]] = {name: [] for name in SERVERS}
        self._read: dict[str, int] = dict.fromkeys(SERVERS, 0)
        self._clients: dict[str, subprocess.Popen[bytes]] = {}

    async def start_server(self, name: str) -> None:
        """Start a server, again at the same address, and wait until it serves."""
        ways, port = self.network, self._ports[name]
        await ways.listen(name, port)
        flags = [*_FLAGS, f"--host={ways.host(name)}", f"--port={port}", f"--peer_host={ways.peer_host(name)}"]
        flags.append(f"--catalog_url={await self.databases.url(name)}")
        store = await ways.address(name, STORE, self.proxy.port)
        self.servers[name] = await asyncio.to_thread(
            ServerProcess, None, *flags, environment=environment_of(f"http://{store}"), before=ways.before(name)
        )

    async def kill_server(self, name: str) -> None:
        """Kill a server."""
        server = self.servers.pop(name)
        await asyncio.to_thread(server.kill)
        self._read_log(name, server)
        self._read[name] = 0
        self._lines[name] += server.lines

    def read_logs(self) -> None:
        """Note which leases were removed since the last time.

        That happens on a busy machine without a fault too, and transient versions are lost with a lease. The times in
        the logs are of another clock, which may jump. What a server acknowledges later under such a lease has no
        excuse.
        """
        for name, server in self.servers.items():
            self._read_log(name, server)

    def _read_log(self, name: str, server: ServerProcess) -> None:
        lines = server.lines[self._read[name] :]
        self._read[name] += len(lines)
        now_ns = time.monotonic_ns()
        removed = Trouble("lease removed", now_ns - LEASE_NS, now_ns, Effect.LOSES)
        self.removed += [removed for line in lines if is_removal(line)]

    def logged(self) -> list[str]:
        """Return all lines that the servers have logged."""
        running = [line for server in self.servers.values() for line in [*server.lines]]
        return [*running, *(line for lines in self._lines.values() for line in lines)]

    def endpoint(self, name: str) -> str:
        """Return the address of a server for this process, to which no fault of the network applies."""
        return f"grpc://{self.network.host(name)}:{self._ports[name]}"

    async def start_clients(self, kinds: dict[str, dict[str, int]], seed: Random) -> None:
        """Start the processes of some clients."""
        ways = self.network
        endpoints = {name: f"grpc://{await ways.address(CLIENTS, name, self._ports[name])}" for name in SERVERS}
        for name, threads in kinds.items():
            path = self.place / f"{name}.history"
            path.touch()
            self.live.add(path)
            task = Task(name, endpoints, [*MODELS], str(seed.getrandbits(64)), threads, str(path))
            self._clients[name] = self._start_client(task)

    def _start_client(self, task: Task) -> "subprocess.Popen[bytes]":
        command = [*self.network.before(CLIENTS), sys.executable, "-m", "tests.torture.several_servers.client"]
        with (self.place / f"{task.name}.errors").open("wb") as errors:
            return subprocess.Popen(
                [*command, json.dumps(dataclasses.asdict(task))],
                stdin=subprocess.PIPE,
                stderr=errors,
                env=clean_environment(),
                cwd=ROOT,
            )

    def check_clients(self) -> None:
        """Check that all processes of clients run."""
        for name, process in self._clients.items():
            assert process.poll() is None, f"{name} ended: {self._errors(name)}"

    async def stop_clients(self, names: list[str]) -> None:
        """End the processes of some clients, and check that they ended well."""
        for name in names:
            stdin = self._clients[name].stdin
            assert stdin is not None
            stdin.close()
        for name in names:
            process = self._clients.pop(name)
            try:
                await asyncio.to_thread(process.wait, 2 * PATIENCE_SECONDS)
            finally:
                process.kill()
            assert process.wait() == 0, f"{name} failed: {self._errors(name)}"

    def _errors(self, name: str) -> str:
        return (self.place / f"{name}.errors").read_text("utf-8", "replace")[-5000:]

    async def close(self) -> None:
        """Kill everything that runs, and write the logs of the servers into files."""
        for client in self._clients.values():
            client.kill()
            await asyncio.to_thread(client.wait)
            assert client.stdin is not None
            client.stdin.close()
        for server in self.servers.values():
            with contextlib.suppress(ProcessLookupError):
                server.signal(signal.SIGCONT)
        for name in [*self.servers]:
            await self.kill_server(name)
        for name, lines in self._lines.items():
            (self.place / f"{name}.log").write_text("\n".join(lines))


@asynccontextmanager
async def stage(place: Path, databases: Path, *, has_own_network: bool) -> AsyncIterator[Stage]:
    """Return a context manager for a stage without servers.

    Args:
        place: An empty directory.
        databases: Another one, which the user of PostgreSQL may enter.
        has_own_network: Whether this process has a network to itself.
    """
    async with AsyncExitStack() as stack:
        nodes = (*SERVERS, *DATABASES, STORE, CLIENTS)
        ways = await stack.enter_async_context(network(nodes, has_own=has_own_network))
        store = S3Server(place / "store", ways.host(STORE), ways.before(STORE))
        stack.callback(store.kill)
        pair = Pair(databases, ways, DATABASES)
        stack.callback(pair.close)
        await asyncio.gather(asyncio.to_thread(store.start), pair.start())
        proxy = ObjectProxy(store.port, ways.host(STORE), ways.listening_socket(STORE))
        await proxy.start()
        stack.push_async_callback(proxy.close)
        made = Stage(place, ways, pair, store, proxy)
        stack.push_async_callback(made.close)
        yield made
