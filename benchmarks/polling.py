"""An alternative that polls: shardcast, which distributes checkpoints over HTTP from an origin by relays.

One origin, four relays (its "middle nodes") and sixteen clients: as many as our other servers and followers.
Relays and clients look for news every second, as often as the relays of shardcast can; its clients decide themselves.
All listen on the loopback interface alone. What several clients of one installation would take from each other, a file
of fixed name, is a file for each.
"""

import asyncio
import importlib
import os
import random
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, NotHereError
from benchmarks.load import job, meet, together
from benchmarks.processes import ServerProcess, free_port, running
from benchmarks.usage import processor_seconds

POLL_SECONDS = 1
_NEWS_SECONDS = 60.0
_STOP_SECONDS = 10.0
_WGET = Path("/usr/bin/wget")
"""The program that downloads. Without it there, shardcast would install it."""

_HOST = "127.0.0.1"
_NEWS = "distribution.txt"
_PROBE = "data1.bin"
_PROBE_BYTES = 1 << 20
_ENVIRONMENT = {
    "SHARDCAST_FAST_RETRY_INTERVAL": str(POLL_SECONDS),
    "SHARDCAST_LOG_LEVEL": "CRITICAL",
    "no_proxy": _HOST,
}

_origins: list[Any] = []
"""In a load process: the origin that it runs."""


def _module(name: str) -> Any:
    """Import a module of shardcast, whose servers then listen on the loopback interface alone."""
    os.environ.update(_ENVIRONMENT)
    server: Any = importlib.import_module("shardcast.server")
    if not hasattr(server, "listening_anywhere"):
        server.listening_anywhere = server.ShardcastServer
        server.ShardcastServer = _listening_here
    return importlib.import_module(f"shardcast.{name}")


def _listening_here(address: tuple[str, int], *arguments: Any) -> Any:
    server: Any = importlib.import_module("shardcast.server")
    return server.listening_anywhere((_HOST, address[1]), *arguments)


class Polled:
    """An origin, relays and clients of shardcast.

    Args:
        bench: The run.
        place: An empty directory for their files.
        relays: The relays.
        followers: How many clients there are, which share the relays evenly.
    """

    def __init__(self, bench: Bench, place: Path, relays: list[ServerProcess], followers: int) -> None:
        self._bench = bench
        self._place = place
        self._relays = relays
        self._each = followers // len(relays)

    def publish_seconds(self, size_bytes: int) -> float:
        """Return how long it takes from a broadcast until the last client has the bytes, whose hash it has checked."""
        path = self._place / "weights"
        path.write_bytes(os.urandom(size_bytes))
        moments: list[float] = together(self._jobs(job(broadcast_moment, str(path)), poll_moment))
        return max(moments[1:]) - moments[0]

    def idle_processor_seconds(self, seconds: float) -> float:
        """Return the processor time of all processes in some seconds without a broadcast, by second."""
        for relay in self._relays:
            relay.mark_processor()
        jobs = self._jobs(job(idle_usage, seconds), partial(poll_usage, seconds=seconds))
        usages: list[float] = together(jobs)
        spent = sum(usages) + sum(relay.marked_processor_seconds() for relay in self._relays)
        return spent / seconds

    def _jobs(self, of_origin: Any, of_clients: Callable[..., Any]) -> list[Any]:
        jobs = [(self._bench.load(0), of_origin)]
        for index, relay in enumerate(self._relays, 1):
            place = str(self._place / f"clients-{index}")
            jobs.append((self._bench.load(index), job(of_clients, relay.port, place, self._each)))
        return jobs


@contextmanager
def polled(bench: Bench, relays: int, followers: int) -> Iterator[Polled]:
    """Return a context manager with an origin, relays and clients of shardcast."""
    if find_spec("shardcast") is None:
        raise NotHereError("shardcast is not installed")
    if not _WGET.exists():
        raise NotHereError(f"shardcast needs {_WGET}")
    port = free_port()
    with bench.place() as place, ExitStack() as stack:
        bench.load(0).run(job(start_origin, str(place / "origin"), port))
        stack.callback(lambda: bench.load(0).run(job(stop_origin)))
        command = [sys.executable, "-m", "benchmarks.polling", f"http://{_HOST}:{port}"]
        started = [
            stack.enter_context(running([*command, str(place / f"relay-{index}")], r"serving port=(\d+)"))
            for index in range(relays)
        ]
        yield Polled(bench, place, started, followers)


# In the load process of the origin.


async def start_origin(directory: str, port: int) -> None:
    """Start an origin, which goes on after this job."""
    _prepare(directory)
    _origins.append(_module("origin_server").OriginServer(directory, port))


async def stop_origin() -> None:
    """Stop the origin."""
    origin = _origins.pop()
    origin.shutdown_event.set()
    await asyncio.to_thread(_wake, origin.port)  # it looks at the event after each request
    await asyncio.to_thread(origin.server_thread.join, _STOP_SECONDS)


def _wake(port: int) -> None:
    urllib.request.urlopen(f"http://{_HOST}:{port}/{_NEWS}", timeout=_STOP_SECONDS).close()


async def broadcast_moment(path: str) -> float:
    """Broadcast a file at any moment between two looks of the clients; return that moment."""
    await meet()
    await asyncio.sleep(POLL_SECONDS * (1 + random.random()))
    moment = time.monotonic()
    await asyncio.to_thread(_origins[0].broadcast, path)
    return moment


async def idle_usage(seconds: float) -> float:
    """Do nothing for some seconds; return the processor time of this process."""
    await meet()
    before = processor_seconds()
    await asyncio.sleep(seconds)
    return processor_seconds() - before


# In load processes of clients.


async def poll_moment(port: int, place: str, count: int) -> float:
    """Poll by some clients; return the moment at which the last of them had the next version."""
    clients = [_client(port, Path(place) / str(index)) for index in range(count)]
    known = await asyncio.to_thread(clients[0].list_available_versions)
    with ThreadPoolExecutor(count) as threads:
        await meet()
        loop = asyncio.get_running_loop()
        moments = [loop.run_in_executor(threads, _next_version, client, set(known)) for client in clients]
        return max(await asyncio.gather(*moments))


async def poll_usage(port: int, place: str, count: int, *, seconds: float) -> float:
    """Poll by some clients for some seconds without news; return the processor time that this took here."""
    clients = [_client(port, Path(place) / str(index)) for index in range(count)]
    with ThreadPoolExecutor(count) as threads:
        await meet()
        before = processor_seconds()
        end = time.monotonic() + seconds
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, _poll_until, client, end) for client in clients))
        return processor_seconds() - before


def _next_version(client: Any, known: set[str]) -> float:
    time.sleep(POLL_SECONDS * random.random())  # each has its own phase
    end = time.monotonic() + _NEWS_SECONDS
    while time.monotonic() < end:
        if found := client.list_available_versions().keys() - known:
            path = client.download_version(found.pop())
            moment = time.monotonic()
            if path:
                os.unlink(path)
                return moment
        time.sleep(POLL_SECONDS)
    raise TimeoutError("a client of shardcast received nothing")


def _poll_until(client: Any, end: float) -> None:
    time.sleep(POLL_SECONDS * random.random())
    while time.monotonic() < end:
        client.list_available_versions()
        time.sleep(POLL_SECONDS)


def _client(port: int, directory: Path) -> Any:
    """Return a client of one relay, with files of its own."""
    client = _module("client_node").ClientNode([], str(directory))
    server, downloader = f"http://{_HOST}:{port}", client.downloader
    # As it does itself, with a download to a file that all clients on a machine share.
    downloader.servers = [server]
    downloader.server_metrics[server] = _module("client").ServerMetrics(bandwidth_mbps=1.0, success_rate=1.0)
    downloader.download_distribution_file = partial(_read_news, downloader, directory / _NEWS)
    return client


def _read_news(downloader: Any, path: Path) -> str | None:
    if downloader.download_file(_NEWS, str(path), update_metrics=False, log_error_on_failure=False):
        return path.read_text()
    return None


def _prepare(directory: str) -> None:
    """Create the directory of an origin or a relay, with the file by which others measure its bandwidth."""
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    (Path(directory) / _PROBE).write_bytes(bytes(_PROBE_BYTES))


def main() -> None:
    """Run a relay, of the origin that the first argument names, with the directory that the second one names."""
    upstream, directory = sys.argv[1:]
    _prepare(directory)
    port = free_port()
    relay = _module("middle_node").MiddleNode([upstream], directory, port, POLL_SECONDS)
    print(f"serving port={port}", flush=True)
    relay.monitor_thread.join()


if __name__ == "__main__":
    main()
