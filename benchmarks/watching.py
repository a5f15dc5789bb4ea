"""How soon those who watch a model have what was published."""

from collections.abc import Callable, Sequence

from benchmarks.bench import Bench, Benchmark, Outcome, Pair
from benchmarks.clients import (
    Upload,
    fetched_moments,
    publish_moments,
    retrieve_seconds,
    told_moments,
    upload_seconds,
)
from benchmarks.load import job, together
from benchmarks.measures import (
    KIB,
    MIB,
    Blocks,
    Curve,
    Series,
    Spread,
    at_most,
    compared,
    converted,
    interleaved,
    milliseconds,
    spread_of,
)

MODEL_ID = "walker"
_FETCHED_BYTES = MIB
_FETCH_GAP_SECONDS = 0.1
_WATCHER_LOADS = 2
_STREAMS_PER_CONNECTION = 10


def _fetched(bench: Bench) -> Sequence[Outcome]:
    """Measure from the start of a publish until the one who watches has the bytes."""
    upload = Upload(MODEL_ID, _FETCHED_BYTES)
    rounds = bench.choose(15, 3)
    with bench.pair() as pair:
        bench.fit_floor(pair, upload)
        bench.fill_budget(pair, upload)

        def floors() -> list[float]:
            sink = bench.load(0).run(job(upload_seconds, pair.floor.port, upload, rounds, _FETCH_GAP_SECONDS))
            source = bench.load(1).run(job(retrieve_seconds, pair.floor.port, upload, rounds, _FETCH_GAP_SECONDS))
            # In order of size, so that the median of the sums is the sum of the medians.
            return [each + other for each, other in zip(sorted(sink), sorted(source), strict=True)]

        pair.mark()
        blocks = interleaved(
            bench.choose(5, 2),
            {"registry": lambda: _publishes_to_fetched(bench, pair, upload, rounds), "floors": floors},
        )
        return [
            compared(
                "publish to fetched",
                "publish 1 MiB until one watcher has retrieved it",
                "ms",
                converted(blocks["registry"], milliseconds),
                against="sink + source of 1 MiB",
                floor_blocks=converted(blocks["floors"], milliseconds),
                target=at_most(1.3),
                peak_mib=pair.registry.peak_mib(),
                processor_ratio=pair.processor_ratio(),
            )
        ]


def _publishes_to_fetched(bench: Bench, pair: Pair, upload: Upload, rounds: int) -> list[float]:
    port = pair.registry.port
    begun, fetched = together(
        [
            (bench.load(0), job(publish_moments, port, upload, rounds, _FETCH_GAP_SECONDS)),
            (bench.load(1), job(fetched_moments, port, upload, rounds)),
        ]
    )
    return [end - start for start, end in zip(begun, fetched, strict=True)]


def _fan_out(bench: Bench) -> Sequence[Outcome]:
    """Measure from the start of a publish until the last watcher is notified."""
    counts = [1000] if bench.quick else [1, 10, 100, 1000]
    points: dict[str, list[tuple[float, Spread]]] = {"registry": [], "floor": []}
    blocks: dict[str, Blocks] = {}
    upload = Upload(MODEL_ID, KIB)
    with bench.pair() as pair:
        bench.fit_floor(pair, upload)
        for count in counts:
            pair.mark()
            blocks = interleaved(
                bench.choose(3, 1),
                {
                    "registry": _tellings(bench, pair.registry.port, upload, count),
                    "floor": _tellings(bench, pair.floor.port, upload, count),
                },
            )
            blocks = {name: converted(values, milliseconds) for name, values in blocks.items()}
            for name, values in blocks.items():
                points[name].append((count, spread_of(values)))
        result = compared(
            "fan-out",
            "publish 1 KiB until the last of 1,000 watchers is notified",
            "ms",
            blocks["registry"],
            against="1,000 messages on 1,000 open streams",
            floor_blocks=blocks["floor"],
            target=at_most(1.3),
            peak_mib=pair.registry.peak_mib(),
            processor_ratio=pair.processor_ratio(),
        )
    series = [
        Series("publish until the last watcher is notified", points["registry"]),
        Series("a message on each of as many open streams", points["floor"], is_floor=True),
    ]
    return [result, Curve("watchers", "Fan-out against the number of watchers", "watchers", "ms", series)]


def _tellings(bench: Bench, port: int, upload: Upload, watchers: int) -> Callable[[], list[float]]:
    """Return what opens the streams, publishes some times, and returns the seconds of each time."""
    rounds = bench.choose(6, 2)
    gap_seconds = 0.1 + watchers * 0.0004
    loads = min(_WATCHER_LOADS, watchers)
    shares = [watchers // loads + (index < watchers % loads) for index in range(loads)]

    def measure() -> list[float]:
        watching = [
            (
                bench.load(1 + index),
                job(told_moments, port, upload, -(-share // _STREAMS_PER_CONNECTION), share, rounds + 1),
            )
            for index, share in enumerate(shares)
        ]
        begun, *told = together(
            [(bench.load(0), job(publish_moments, port, upload, rounds + 1, gap_seconds)), *watching]
        )
        # The first one warms up.
        return [max(ends) - start for start, *ends in zip(begun, *told, strict=True)][1:]

    return measure


BENCHMARKS = [
    Benchmark("publish-to-fetched", "from a publish of 1 MiB until one watcher has the bytes", _fetched),
    Benchmark("fan-out", "from a publish until the last of 1,000 watchers is notified (a plot, too)", _fan_out),
]
