"""Rate and latency of small calls against the number of concurrent clients."""

from collections.abc import Callable, Sequence

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Kind, Upload, call_seconds
from benchmarks.load import job, together
from benchmarks.measures import (
    KIB,
    Curve,
    Series,
    Spread,
    at_least,
    compared,
    interleaved,
    milliseconds,
)

MODEL_ID = "walker"
_SMALL_BYTES = 10 * KIB
_PUBLISHERS = 8
_ASKERS = 16
_LOADS = 2
"""The number of load processes: a single one is slower than a server."""


def _latencies(
    bench: Bench, port: int, connections: int, seconds: float, kind: Kind
) -> Callable[[], list[list[float]]]:
    """Return a function that makes calls for a time, and returns the seconds of each call, by process."""
    loads = min(_LOADS, connections)
    shares = [connections // loads + (index < connections % loads) for index in range(loads)]
    upload = Upload(MODEL_ID, _SMALL_BYTES)

    def measure() -> list[list[float]]:
        return together(
            [
                (bench.load(index), job(call_seconds, port, upload, share, seconds, kind))
                for index, share in enumerate(shares)
            ]
        )

    return measure


def rate(bench: Bench, port: int, connections: int, seconds: float, kind: Kind) -> Callable[[], list[float]]:
    """Return a function that measures calls per second once."""
    measure = _latencies(bench, port, connections, seconds, kind)
    return lambda: [sum(len(latencies) for latencies in measure()) / seconds]


def _calls(bench: Bench, name: str, what: str, connections: int, kind: Kind) -> Sequence[Outcome]:
    seconds = 0.3 if bench.quick else 1.2
    with bench.pair() as pair:
        bench.fit_floor(pair, Upload(MODEL_ID, _SMALL_BYTES))
        pair.mark()
        blocks = interleaved(
            bench.choose(9, 2),
            {
                "registry": rate(bench, pair.registry.port, connections, seconds, kind),
                "floor": rate(bench, pair.floor.port, connections, seconds, kind),
            },
        )
        return [
            compared(
                name,
                what,
                "calls/s",
                blocks["registry"],
                against="sink of 10 KiB" if kind is Kind.PUBLISH else "unary call",
                floor_blocks=blocks["floor"],
                target=at_least(0.80),
                peak_mib=pair.registry.peak_mib(),
                processor_ratio=pair.processor_ratio(blocks["registry"], blocks["floor"]),
            )
        ]


def _publish_calls(bench: Bench) -> Sequence[Outcome]:
    return _calls(bench, "publish calls", "publish 10 KiB, 8 connections", _PUBLISHERS, Kind.PUBLISH)


def _infos_calls(bench: Bench) -> Sequence[Outcome]:
    return _calls(bench, "infos calls", "look up the latest version, 16 connections", _ASKERS, Kind.INFOS)


def _latency(bench: Bench) -> Sequence[Outcome]:
    """Measure the latency of small calls against concurrency."""
    seconds = 0.3 if bench.quick else 0.6
    counts = [1, 4, 16] if bench.quick else [1, 2, 4, 8, 16, 32, 64, 128]
    names = ["publish 10 KiB", "sink of 10 KiB", "look up the latest", "unary call"]
    points: dict[str, list[tuple[float, Spread]]] = {name: [] for name in names}
    with bench.pair() as pair:
        bench.fit_floor(pair, Upload(MODEL_ID, _SMALL_BYTES))
        for connections in counts:
            for index, name in enumerate(names):
                port = (pair.floor if index % 2 else pair.registry).port
                measure = _latencies(bench, port, connections, seconds, Kind.PUBLISH if index < 2 else Kind.INFOS)
                values = [milliseconds(value) for latencies in measure() for value in latencies]
                points[name].append((connections, Spread.of(values)))
    series = [Series(name, points[name], is_floor=bool(index % 2)) for index, name in enumerate(names)]
    return [Curve("latency", "Latency against concurrency", "connections, one call at a time each", "ms", series)]


BENCHMARKS = [
    Benchmark("publish-calls", "publishes of 10 KiB in a second over 8 connections", _publish_calls),
    Benchmark("infos-calls", "look-ups of the latest version in a second over 16 connections", _infos_calls),
]

CURVES = [Benchmark("latency", "latency against concurrency (a plot)", _latency)]
