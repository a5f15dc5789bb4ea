"""The time from a publish until watchers have the version."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from benchmarks.bench import Bench, Benchmark, Outcome, Pair
from benchmarks.clients import (
    Upload,
    fetched_moments,
    notified_moments,
    publish_moments,
    retrieve_seconds,
    upload_seconds,
)
from benchmarks.following import followed_moments, notified_then_fetched_moments
from benchmarks.load import Job, job, together
from benchmarks.measures import (
    KIB,
    MIB,
    Blocks,
    Curve,
    Result,
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
_FAN_OUT_GAP_SECONDS = 4.0
"""The pause between two versions that 1,000 watchers fetch, so that none skips one."""

_WATCHER_LOADS = 2
_STREAMS_PER_CONNECTION = 10


def _fetched(bench: Bench) -> Sequence[Outcome]:
    """Measure from the start of a publish until the watcher has the bytes."""
    upload = Upload(MODEL_ID, _FETCHED_BYTES)
    rounds = bench.choose(15, 3)
    with bench.pair() as pair:
        bench.fit_floor(pair, upload)
        bench.fill_budget(pair.registry, upload)

        def floors() -> list[float]:
            sink = bench.load(0).run(job(upload_seconds, pair.floor.port, upload, rounds, _FETCH_GAP_SECONDS))
            source = bench.load(1).run(job(retrieve_seconds, pair.floor.port, upload, rounds, _FETCH_GAP_SECONDS))
            # In order of size, so that the median of the sums is the sum of the medians.
            return [each + other for each, other in zip(sorted(sink), sorted(source), strict=True)]

        pair.mark()
        port = pair.registry.port
        blocks = interleaved(
            bench.choose(5, 2),
            {
                "fetched": lambda: publishes_until(bench, port, upload, job(fetched_moments, port, upload, rounds)),
                "followed": lambda: publishes_until(
                    bench, port, upload, job(followed_moments, port, upload, 1, 1, rounds)
                ),
                "floors": floors,
            },
        )
        return [
            _until(
                pair,
                "publish to followed",
                "publish 1 MiB until one follower has its verified bytes",
                blocks["followed"],
                against="sink + source of 1 MiB",
                floor_blocks=blocks["floors"],
                at_most_ratio=1.15,
            ),
            _until(
                pair,
                "publish to fetched",
                "publish 1 MiB until one watcher has retrieved it",
                blocks["fetched"],
                against="sink + source of 1 MiB",
                floor_blocks=blocks["floors"],
                at_most_ratio=1.3,
            ),
        ]


def _until(
    pair: Pair, name: str, what: str, blocks: Blocks, *, against: str, floor_blocks: Blocks, at_most_ratio: float
) -> Result:
    """Return a figure: the seconds from a publish until an event, compared with those of the floor."""
    return compared(
        name,
        what,
        "ms",
        converted(blocks, milliseconds),
        against=against,
        floor_blocks=converted(floor_blocks, milliseconds),
        target=at_most(at_most_ratio),
        peak_mib=pair.registry.peak_mib(),
        processor_ratio=pair.processor_ratio(),
    )


def publishes_until(bench: Bench, port: int, upload: Upload, until: Job[list[float]]) -> list[float]:
    """Publish some versions; return the seconds from the start of each publish until a watcher has the version.

    Args:
        bench: The run, whose first two load processes it uses.
        port: The registry.
        upload: The version.
        until: The job of the watcher, which returns the moments.
    """
    rounds = bench.choose(15, 3)
    publishing = job(publish_moments, port, upload, rounds, _FETCH_GAP_SECONDS)
    begun, ended = together([(bench.load(0), publishing), (bench.load(1), until)])
    return [end - start for start, end in zip(begun, ended, strict=True)]


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
                    "registry": _notifications(bench, pair.registry.port, upload, count),
                    "floor": _notifications(bench, pair.floor.port, upload, count),
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


def _followed(bench: Bench) -> Sequence[Outcome]:
    """Measure from the start of a publish until the last of 1,000 followers has the bytes."""
    small, large = Upload(MODEL_ID, KIB), Upload(MODEL_ID, 100 * KIB)
    with bench.pair() as pair:
        bench.fit_floor(pair, small, with_bytes=True)
        port = pair.registry.port
        followed = interleaved(
            bench.choose(3, 1),
            {
                "registry": _notifications(bench, port, small, 1000, moments=followed_moments),
                "floor": _notifications(bench, pair.floor.port, small, 1000, moments=followed_moments, is_floor=True),
            },
        )
        bench.fit_floor(pair, large, with_bytes=True)
        bytes_of = interleaved(
            bench.choose(3, 1),
            {
                "followed": _notifications(
                    bench, port, large, 1000, moments=followed_moments, gap_seconds=_FAN_OUT_GAP_SECONDS
                ),
                "fetched": _notifications(
                    bench, port, large, 1000, moments=notified_then_fetched_moments, gap_seconds=_FAN_OUT_GAP_SECONDS
                ),
                "floor": _notifications(
                    bench,
                    pair.floor.port,
                    large,
                    1000,
                    moments=followed_moments,
                    gap_seconds=_FAN_OUT_GAP_SECONDS,
                    is_floor=True,
                ),
            },
        )
        return [
            _until(
                pair,
                "fan-out inline",
                "publish 1 KiB until the last of 1,000 followers has its bytes",
                followed["registry"],
                against="the same messages from an empty server",
                floor_blocks=followed["floor"],
                at_most_ratio=1.3,
            ),
            _until(
                pair,
                "fan-out of bytes",
                "publish 100 KiB until the last of 1,000 followers has its bytes",
                bytes_of["followed"],
                against="the same messages from an empty server",
                floor_blocks=bytes_of["floor"],
                at_most_ratio=1.3,
            ),
            _until(
                pair,
                "fan-out against fetching",
                "publish 100 KiB until the last of 1,000 followers has its bytes",
                bytes_of["followed"],
                against="notified, then fetched, from the same server",
                floor_blocks=bytes_of["fetched"],
                at_most_ratio=0.5,
            ),
        ]


def _notifications(
    bench: Bench,
    port: int,
    upload: Upload,
    watchers: int,
    *,
    moments: Callable[..., Coroutine[Any, Any, list[float]]] = notified_moments,
    gap_seconds: float = 0.0,
    **options: object,
) -> Callable[[], list[float]]:
    """Return a function that opens the streams, publishes some times, and returns the seconds of each time."""
    rounds = bench.choose(6, 2)
    gap_seconds = gap_seconds or 0.1 + watchers * 0.0004
    loads = min(_WATCHER_LOADS, watchers)
    shares = [watchers // loads + (index < watchers % loads) for index in range(loads)]

    def measure() -> list[float]:
        watching = [
            (
                bench.load(1 + index),
                job(moments, port, upload, -(-share // _STREAMS_PER_CONNECTION), share, rounds + 1, **options),
            )
            for index, share in enumerate(shares)
        ]
        begun, *received = together(
            [(bench.load(0), job(publish_moments, port, upload, rounds + 1, gap_seconds)), *watching]
        )
        # The first one warms up.
        return [max(ends) - start for start, *ends in zip(begun, *received, strict=True)][1:]

    return measure


BENCHMARKS = [
    Benchmark("publish-to-fetched", "from a publish of 1 MiB until one watcher has the bytes", _fetched),
    Benchmark("fan-out", "from a publish until the last of 1,000 watchers is notified (a plot, too)", _fan_out),
    Benchmark("followed", "from a publish until the last of 1,000 followers has the bytes", _followed),
]
