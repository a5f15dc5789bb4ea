"""The pages: how soon one comes of a model with many versions, how large it is, and what open pages cost."""

import asyncio
import http.client
import time
from collections.abc import Callable, Sequence

import psutil

from benchmarks import archives, processes
from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.consumers import MODEL_ID, reported
from benchmarks.load import job, together
from benchmarks.measures import Result, Spread, compared, converted, interleaved, milliseconds, no_more_than
from cogment_model_registry import ModelRegistry

_PAGE_MAX_KIB = 150
_PAGES = 50
"""How many pages of the model are open, while it is measured what they cost."""

_LIVE_PERCENT = 5
_WEB = "cogment_model_registry.web"


def first_byte_seconds(port: int, path: str, count: int) -> list[float]:
    """Get a page `count` times, after once that is not measured; return the seconds until each begins.

    Args:
        port: The port of HTTP.
        path: The page.
        count: How often.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seconds = []
    try:
        for _ in range(count + 1):
            began = time.perf_counter()
            connection.request("GET", path, headers={"Accept": "text/html"})
            answer = connection.getresponse()
            seconds.append(time.perf_counter() - began)
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path} was answered with {answer.status}")
    finally:
        connection.close()
    return seconds[1:]


def _page_kib(port: int, path: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers={"Accept": "text/html"})
        return len(connection.getresponse().read()) / 1024
    finally:
        connection.close()


def _many_versions(bench: Bench) -> Sequence[Outcome]:
    """Measure the page of a model with many archived versions."""
    total, count = bench.choose(100_000, 2_000), bench.choose(10, 3)
    path = f"/models/{archives.model_name(0)}"
    with bench.place() as place:
        archives.generate(place, 1, 1, total)
        with processes.registry(place, "--http_port=0") as registry:
            port = int(registry.logged_number("http_port"))
            with ModelRegistry(f"grpc://127.0.0.1:{registry.port}", timeout=600) as client:
                client.find_versions(archives.model_name(0), limit=1)  # searches wait until the index is complete

            def pages(of: str) -> Callable[[], list[float]]:
                return lambda: first_byte_seconds(port, of, count)

            blocks = interleaved(bench.choose(5, 2), {"page": pages(path), "floor": pages("/healthz")})
            size_kib = _page_kib(port, path)
    return [
        compared(
            "page of many versions",
            f"page of a model with {total:,} versions, until its first bytes",
            "ms",
            converted(blocks["page"], milliseconds),
            against="GET /healthz",
            floor_blocks=converted(blocks["floor"], milliseconds),
            target=no_more_than(200, "ms"),
        ),
        Result(
            "size of a page",
            f"the same page, with {total:,} versions",
            "KiB",
            Spread.of([size_kib]),
            target=no_more_than(_PAGE_MAX_KIB, "KiB"),
        ),
    ]


async def _read_events(port: int, seconds: float) -> int:
    """Read the events of an open page for some time; return their bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size_bytes = 0
    try:
        writer.write(f"GET /models/{MODEL_ID}/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await writer.drain()
        try:
            async with asyncio.timeout(seconds):
                while data := await reader.read(65536):
                    size_bytes += len(data)
        except TimeoutError:
            return size_bytes
        raise RuntimeError("the events ended")
    finally:
        writer.close()


async def events_read(port: int, seconds: float, pages: int) -> int:
    """Keep so many pages of the model open for some time; return the bytes that all of them received."""
    return sum(await asyncio.gather(*(_read_events(port, seconds) for _ in range(pages))))


def web_seconds(pid: int) -> float:
    """Return the processor time of the process that serves HTTP."""
    child = next(each for each in psutil.Process(pid).children() if _WEB in each.cmdline())
    times = child.cpu_times()
    return times.user + times.system


def _live(bench: Bench) -> Sequence[Outcome]:
    """Measure what open pages of a model cost with 1,000 consumers, each of which reports once a second."""
    seconds, shares = bench.choose(20, 5), list[float]()
    with bench.registry("--http_port=0") as registry:
        port = int(registry.logged_number("http_port"))
        with ModelRegistry(f"grpc://127.0.0.1:{registry.port}") as client:
            for _ in range(20):
                client.publish(MODEL_ID, b"weights")
        bench.load(0).run(job(reported, registry.port, 2.0, is_floor=False))
        for _ in range(bench.choose(3, 1)):
            before = web_seconds(registry.pid)
            together(
                [
                    (bench.load(0), job(reported, registry.port, float(seconds), is_floor=False)),
                    (bench.load(1), job(events_read, port, float(seconds), _PAGES)),
                ]
            )
            shares.append(100 * (web_seconds(registry.pid) - before) / seconds)
    return [
        Result(
            "open pages",
            f"{_PAGES} open pages of a model with 1,000 consumers, of a core",
            "%",
            Spread.of(shares),
            target=no_more_than(_LIVE_PERCENT, "%"),
        )
    ]


BENCHMARKS = [
    Benchmark("page", "page of a model with 100,000 versions", _many_versions),
    Benchmark("live", "open pages of a model with 1,000 consumers", _live),
]
