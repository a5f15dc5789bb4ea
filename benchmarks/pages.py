"""What open pages cost everybody else: the main figures of a registry on which pages are open, and of one without.

Both registries serve HTTP, and are measured in turns. The pages show the model to which the calls publish. They come
from addresses of their own on the loopback interface, as those of as many people do.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Kind, Upload, fetched_moments, prepare, retrieve_seconds, upload_seconds
from benchmarks.control_path import rate
from benchmarks.load import job, meet
from benchmarks.measures import (
    KIB,
    MIB,
    Result,
    Spread,
    Target,
    at_least,
    at_most,
    compared,
    converted,
    interleaved,
    mib_per_second,
    milliseconds,
)
from benchmarks.page import web_seconds
from benchmarks.processes import ServerProcess
from benchmarks.watching import publishes_until

MODEL_ID = "walker"
_PAGES = 50
_PAGES_LOAD = 2
"""The load process that keeps the pages open; the others make the calls."""

_SLOWER = 0.95
_AS_FAST = at_least(_SLOWER)
_LARGE, _FETCHED, _SMALL = Upload(MODEL_ID, 64 * MIB), Upload(MODEL_ID, MIB), Upload(MODEL_ID, 10 * KIB)


async def pages_open(port: int, pages: int) -> int:
    """Open pages of the model, and read their events until told to end; return the bytes of the events."""
    size_bytes = 0

    async def read(reader: asyncio.StreamReader) -> None:
        nonlocal size_bytes
        while data := await reader.read(65536):
            size_bytes += len(data)
        raise RuntimeError("the events ended")

    async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
        reading = []
        for index in range(pages):
            address = f"127.0.{1 + index // 250}.{1 + index % 250}"
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            stack.callback(writer.close)
            writer.write(f"GET /models/{MODEL_ID}/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            await reader.readuntil(b"data: ")  # what the page shows now
            reading.append(group.create_task(read(reader)))
        await meet()
        for task in reading:
            task.cancel()
    return size_bytes


@dataclass(slots=True)
class _Measured:
    """A registry, and what its process for HTTP takes while pages are open.

    Attributes:
        bench: The run.
        server: The registry.
        http_port: The port of HTTP.
        has_pages: Whether pages are open while it is measured.
        shares: The processor time of the process, in percent of a core, for each measurement.
    """

    bench: Bench
    server: ServerProcess
    http_port: int
    has_pages: bool
    shares: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def pages(self) -> Iterator[None]:
        """Return a context manager in which the pages are open, if there are to be any."""
        if not self.has_pages:
            yield
            return
        load = self.bench.load(_PAGES_LOAD)
        reading = load.start(job(pages_open, self.http_port, _PAGES))
        load.wait_ready(reading)
        if reading.done():
            reading.result()
        before, began = web_seconds(self.server.pid), time.perf_counter()
        try:
            yield
            taken = web_seconds(self.server.pid) - before
            self.shares.append(100 * taken / (time.perf_counter() - began))
        finally:
            load.go()
            reading.result()


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure.

    Attributes:
        name: Its name.
        what: What is measured.
        unit: The unit.
        measure: Returns a function that returns the values of a block.
        convert: Converts a value to the unit.
        target: The target for the ratio.
    """

    name: str
    what: str
    unit: str
    measure: Callable[[Bench, int], Callable[[], Sequence[float]]]
    convert: Callable[[float], float] = float
    target: Target = _AS_FAST


def _transfers(function: Callable[..., object], upload: Upload) -> Callable[[Bench, int], Callable[[], list[float]]]:
    def measure(bench: Bench, port: int) -> Callable[[], list[float]]:
        return lambda: bench.load(0).run(job(function, port, upload, bench.choose(4, 2)))  # type: ignore[arg-type] # one of two coroutine functions

    return measure


def _calls(connections: int, kind: Kind) -> Callable[[Bench, int], Callable[[], list[float]]]:
    return lambda bench, port: rate(bench, port, connections, 0.5 if bench.quick else 2.0, kind)


def _fetched(bench: Bench, port: int) -> Callable[[], list[float]]:
    rounds = bench.choose(15, 3)
    return lambda: publishes_until(bench, port, _FETCHED, job(fetched_moments, port, _FETCHED, rounds))


_LARGE_RATE = mib_per_second(_LARGE.size_bytes)

_FIGURES = (
    _Figure("publish", "publish 64 MiB", "MiB/s", _transfers(upload_seconds, _LARGE), _LARGE_RATE),
    _Figure("retrieve", "retrieve 64 MiB", "MiB/s", _transfers(retrieve_seconds, _LARGE), _LARGE_RATE),
    _Figure("publish calls", "publish 10 KiB, 8 connections", "calls/s", _calls(8, Kind.PUBLISH)),
    _Figure("infos calls", "look up the latest version, 16 connections", "calls/s", _calls(16, Kind.INFOS)),
    _Figure(
        "publish to fetched",
        "publish 1 MiB until one watcher has retrieved it",
        "ms",
        _fetched,
        milliseconds,
        at_most(1 / _SLOWER),
    ),
)


def _pages(bench: Bench) -> Sequence[Outcome]:
    results: list[Outcome] = []
    with bench.registry("--http_port=0") as with_pages, bench.registry("--http_port=0") as without:
        sides = {
            name: _Measured(bench, server, server.logged_number("http_port"), has_pages=name == "pages")
            for name, server in (("pages", with_pages), ("none", without))
        }
        for side in sides.values():
            bench.load(0).run(job(prepare, side.server.port, [MODEL_ID]))
            bench.fill_budget(side.server, _LARGE)

        def measured(side: _Measured, figure: _Figure) -> Callable[[], Sequence[float]]:
            measure = figure.measure(bench, side.server.port)

            def once() -> Sequence[float]:
                with side.pages():
                    return measure()

            return once

        for figure in _FIGURES:
            blocks = interleaved(bench.choose(9, 2), {name: measured(side, figure) for name, side in sides.items()})
            values = {name: converted(each, figure.convert) for name, each in blocks.items()}
            results.append(
                compared(
                    f"pages: {figure.name}",
                    f"{figure.what}, with {_PAGES} open pages",
                    figure.unit,
                    values["pages"],
                    against="no open page",
                    floor_blocks=values["none"],
                    target=figure.target,
                )
            )
        shares = sides["pages"].shares
    what = f"processor time of the process for HTTP with {_PAGES} open pages, of a core"
    return [*results, Result("pages: processor", what, "%", Spread.of(shares))]


BENCHMARKS = [Benchmark("pages", "the main figures while 50 pages are open, compared with none", _pages)]
