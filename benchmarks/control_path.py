"""How many small calls are answered, and how fast, against the number of clients that call at once."""

import statistics
from collections.abc import Callable, Sequence

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Upload, call_seconds, infos_seconds, shape_like, versions_listed
from benchmarks.load import job, together
from benchmarks.measures import (
    KIB,
    Curve,
    Series,
    Spread,
    at_least,
    compared,
    converted,
    interleaved,
    milliseconds,
    no_more_than,
    spread_of,
)

MODEL_ID = "walker"
_SMALL_BYTES = 10 * KIB
_PUBLISHERS = 8
_ASKERS = 16
_LOADS = 2
"""Processes that call: one alone can do less than a server."""

_LISTED = 10_000


def _latencies(
    bench: Bench, port: int, connections: int, seconds: float, *, publish: bool
) -> Callable[[], list[list[float]]]:
    """Return what makes calls for some time, and returns the seconds of each call, by process."""
    loads = min(_LOADS, connections)
    shares = [connections // loads + (index < connections % loads) for index in range(loads)]
    upload = Upload(MODEL_ID, _SMALL_BYTES)

    def measure() -> list[list[float]]:
        return together(
            [
                (bench.load(index), job(_publishing if publish else _asking, port, upload, share, seconds))
                for index, share in enumerate(shares)
            ]
        )

    return measure


async def _publishing(port: int, upload: Upload, connections: int, seconds: float) -> list[float]:
    return await call_seconds(port, upload, connections, seconds, publish=True)


async def _asking(port: int, upload: Upload, connections: int, seconds: float) -> list[float]:
    return await call_seconds(port, upload, connections, seconds, publish=False)


def _rate(
    bench: Bench, port: int, connections: int, seconds: float, *, publish: bool
) -> Callable[[], list[float]]:
    """Return what measures calls per second once."""
    measure = _latencies(bench, port, connections, seconds, publish=publish)
    return lambda: [sum(len(latencies) for latencies in measure()) / seconds]


def _calls(bench: Bench, name: str, what: str, connections: int, *, publish: bool) -> Sequence[Outcome]:
    seconds = 0.6 if bench.quick else 1.5
    with bench.pair() as pair:
        bench.fit_floor(pair, Upload(MODEL_ID, _SMALL_BYTES))
        blocks = interleaved(
            bench.choose(9, 3),
            {
                "registry": _rate(bench, pair.registry.port, connections, seconds, publish=publish),
                "floor": _rate(bench, pair.floor.port, connections, seconds, publish=publish),
            },
        )
        return [
            compared(
                name,
                what,
                "calls/s",
                blocks["registry"],
                "sink of 10 KiB" if publish else "unary",
                blocks["floor"],
                at_least(0.80),
                peak_mib=pair.registry.peak_mib(),
            )
        ]


def _publish_calls(bench: Bench) -> Sequence[Outcome]:
    return _calls(bench, "publish calls", "publish 10 KiB, 8 connections", _PUBLISHERS, publish=True)


def _infos_calls(bench: Bench) -> Sequence[Outcome]:
    return _calls(bench, "infos calls", "infos of the latest, 16 connections", _ASKERS, publish=False)


def _latency(bench: Bench) -> Sequence[Outcome]:
    """Measure the latency of small calls against concurrency."""
    seconds = 0.3 if bench.quick else 1.0
    counts = [1, 4, 16] if bench.quick else [1, 2, 4, 8, 16, 32, 64, 128]
    names = ["publish 10 KiB", "sink of 10 KiB", "infos of the latest", "unary"]
    points: dict[str, list[tuple[float, Spread]]] = {name: [] for name in names}
    with bench.pair() as pair:
        bench.fit_floor(pair, Upload(MODEL_ID, _SMALL_BYTES))
        for connections in counts:
            for index, name in enumerate(names):
                port = (pair.floor if index % 2 else pair.registry).port
                measure = _latencies(bench, port, connections, seconds, publish=index < 2)
                values = [milliseconds(value) for latencies in measure() for value in latencies]
                points[name].append((connections, Spread.of(values)))
    series = [Series(name, points[name]) for name in names]
    return [Curve("latency", "Latency against concurrency", "connections, one call at a time each", "ms", series)]


def _listing(bench: Bench) -> Sequence[Outcome]:
    """Measure a listing of many versions, and the first one after them."""
    with bench.pair(f"--cache_max_items={2 * _LISTED}") as pair:
        upload = Upload(MODEL_ID, 16)
        ports = pair.registry.port, pair.floor.port
        bench.load(0).run(job(_fill, pair.registry.port, upload, _LISTED))
        bench.load(0).run(job(shape_like, *ports, upload, infos_of_all=True))
        listed = bench.load(0).run(job(versions_listed, pair.registry.port, MODEL_ID))
        if listed != _LISTED:
            raise RuntimeError(f"{listed} versions were listed instead of {_LISTED}")
        blocks = interleaved(
            bench.choose(9, 3),
            {
                name: _listings(bench, port, bench.choose(5, 3))
                for name, port in zip(("registry", "floor"), ports, strict=True)
            },
        )
        return [
            compared(
                "list versions",
                "all infos of 10,000 versions in one call",
                "ms",
                converted(blocks["registry"], milliseconds),
                "unary of that size",
                converted(blocks["floor"], milliseconds),
                no_more_than(100, "ms"),
                peak_mib=pair.registry.peak_mib(),
            )
        ]


def _listings(bench: Bench, port: int, count: int) -> Callable[[], list[float]]:
    return lambda: bench.load(0).run(job(infos_seconds, port, MODEL_ID, count))
