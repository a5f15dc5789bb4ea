"""The cost of many versions: listings, and starts."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import archives, processes
from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Upload, infos_seconds, shape_like, versions_listed
from benchmarks.load import job
from benchmarks.measures import (
    Blocks,
    Curve,
    Result,
    Series,
    Spread,
    compared,
    converted,
    interleaved,
    milliseconds,
    no_more_than,
    ratios,
    spread_of,
)

_MODELS = 100
_START_SECONDS = 3
_START_MIB = 200


def _list(bench: Bench) -> Sequence[Outcome]:
    """Measure a listing of many archived versions, after the first one, which reads their files."""
    model_id = archives.model_name(0)
    total = bench.choose(10_000, 2_000)
    with bench.place() as place:
        archives.generate(place, 1, 1, total)
        with processes.registry(place) as registry, processes.floor() as floor:
            load = bench.load(0)
            listed = load.run(job(versions_listed, registry.port, model_id))
            if listed != total:
                raise RuntimeError(f"{listed} versions were listed instead of {total}")
            load.run(job(shape_like, registry.port, floor.port, Upload(model_id, 0), infos_only=True))
            count = bench.choose(5, 2)

            def listings(port: int) -> Callable[[], list[float]]:
                return lambda: load.run(job(infos_seconds, port, model_id, count))

            blocks = interleaved(
                bench.choose(9, 2), {"registry": listings(registry.port), "floor": listings(floor.port)}
            )
            return [
                compared(
                    "list versions",
                    f"list {total:,} archived versions in one call",
                    "ms",
                    converted(blocks["registry"], milliseconds),
                    against="unary call with a reply of that size",
                    floor_blocks=converted(blocks["floor"], milliseconds),
                    target=no_more_than(100, "ms"),
                    peak_mib=registry.peak_mib(),
                    note="after the first listing, which reads their files",
                )
            ]


def _start(bench: Bench) -> Sequence[Outcome]:
    """Measure starts against the number of archived versions, each in turns with a start on an empty archive."""
    counts = [2_000] if bench.quick else [1_000, 10_000, 30_000, 100_000]
    points: list[tuple[float, Spread]] = []
    empty_points: list[tuple[float, Spread]] = []
    peaks: Blocks = []
    empty_peaks: Blocks = []
    blocks: dict[str, Blocks] = {}
    with bench.place() as place:
        archive, empty = place / "archive", place / "empty"
        per_model = 0
        for count in counts:
            archives.generate(archive, _MODELS, per_model + 1, count // _MODELS)
            per_model = count // _MODELS
            peaks, empty_peaks = [], []
            blocks = interleaved(
                bench.choose(3, 1),
                {
                    "many": functools.partial(_start_once, archive, peaks),
                    "none": functools.partial(_start_once, empty, empty_peaks),
                },
            )
            points.append((count, spread_of(blocks["many"])))
            empty_points.append((count, spread_of(blocks["none"])))
    what = f"{counts[-1]:,} archived versions in {_MODELS} models"
    note = "their files are in the system's memory" + bench.note("; fewer than in a full run")
    return [
        compared(
            "start",
            f"start with {what}",
            "s",
            blocks["many"],
            against="start with an empty archive",
            floor_blocks=blocks["none"],
            target=no_more_than(_START_SECONDS, "s"),
            note=note,
        ),
        Result(
            "start memory",
            f"peak memory of a start with {what}",
            "MiB",
            spread_of(peaks),
            "start with an empty archive",
            spread_of(empty_peaks),
            ratios(peaks, empty_peaks),
            no_more_than(_START_MIB, "MiB"),
            max(value for block in peaks for value in block),
            note,
            blocks=peaks,
            floor_blocks=empty_peaks,
        ),
        Curve(
            "starts",
            "Start against the number of archived versions",
            "archived versions, in 100 models",
            "seconds until it serves",
            [Series("start", points), Series("start with an empty archive", empty_points, is_floor=True)],
        ),
    ]


def _start_once(archive_dir: Path, peaks: Blocks) -> list[float]:
    """Start the registry, and return the seconds that it took; record its peak memory."""
    with processes.registry(archive_dir) as registry:
        peaks.append([registry.peak_mib()])
        return [registry.start_seconds]


BENCHMARKS = [
    Benchmark("list", "a listing of 10,000 versions in one call", _list),
    Benchmark("start", "starts with up to 100,000 archived versions, and their memory (a plot, too)", _start),
]
