"""Throughput of publishes, stores and retrievals, with one client at a time."""

import asyncio
import functools
from collections.abc import Callable, Sequence

import psutil

from benchmarks import floors
from benchmarks.bench import Bench, Benchmark, Outcome, Pair
from benchmarks.clients import SDK_CHUNK_BYTES, Upload, prepare, retrieve_seconds, upload_seconds
from benchmarks.load import job
from benchmarks.measures import (
    GIB,
    KIB,
    MIB,
    Curve,
    Series,
    Spread,
    Target,
    at_least,
    compared,
    converted,
    interleaved,
    mib_per_second,
    spread_of,
)

MODEL_ID = "walker"
_LARGE_BYTES = 64 * MIB

_FLOORS = ("sink", "source", "write + fsync")

_SETTLE_SECONDS = 0.2
"""Longer than the period in which a change of a file may be invisible in its times."""


def _measure_uploads(bench: Bench, port: int, upload: Upload, count: int) -> Callable[[], list[float]]:
    return lambda: bench.load(0).run(job(upload_seconds, port, upload, count))


def _measure_retrievals(bench: Bench, port: int, upload: Upload, count: int) -> Callable[[], list[float]]:
    return lambda: bench.load(0).run(job(retrieve_seconds, port, upload, count))


def _repetitions(bench: Bench) -> tuple[int, int]:
    """Return the number of blocks, and the number of values in each."""
    return bench.choose(9, 2), bench.choose(4, 1)


_Measure = Callable[[Bench, int, Upload, int], Callable[[], list[float]]]


def _compared(
    bench: Bench,
    pair: Pair,
    measure: _Measure,
    upload: Upload,
    *,
    name: str,
    floor: str,
    target: Target,
    note: str = "",
) -> Outcome:
    """Measure transfers of 64 MiB through the registry and through its floor, in turns."""
    repetitions, count = _repetitions(bench)
    pair.mark()
    blocks = interleaved(
        repetitions,
        {
            "registry": measure(bench, pair.registry.port, upload, count),
            floor: measure(bench, pair.floor.port, upload, count),
        },
    )
    rate = mib_per_second(_LARGE_BYTES)
    verb, kind = name.split()
    return compared(
        name,
        f"{verb} 64 MiB, {kind}",
        "MiB/s",
        converted(blocks["registry"], rate),
        against=floor,
        floor_blocks=converted(blocks[floor], rate),
        target=target,
        peak_mib=pair.registry.peak_mib(),
        processor_ratio=pair.processor_ratio(),
        note=note,
    )


def _publish(bench: Bench) -> Sequence[Outcome]:
    upload = Upload(MODEL_ID, _LARGE_BYTES)
    with bench.pair() as pair:
        bench.fit_floor(pair, upload)
        bench.fill_budget(pair.registry, upload)
        target = at_least(0.70)
        return [_compared(bench, pair, _measure_uploads, upload, name="publish transient", floor="sink", target=target)]


def _store(bench: Bench) -> Sequence[Outcome]:
    upload = Upload(MODEL_ID, _LARGE_BYTES, archived=True)
    repetitions, count = _repetitions(bench)
    with bench.pair() as pair, bench.place() as place:
        bench.fit_floor(pair, upload)
        writing = job(floors.write_seconds, str(place), _LARGE_BYTES, SDK_CHUNK_BYTES, count, sync=True)
        pair.mark()
        blocks = interleaved(
            repetitions,
            {
                "registry": _measure_uploads(bench, pair.registry.port, upload, count),
                "sink": _measure_uploads(bench, pair.floor.port, upload, count),
                "write": lambda: bench.load(0).run(writing),
            },
        )
        rates = {name: converted(values, mib_per_second(_LARGE_BYTES)) for name, values in blocks.items()}
        sink, write = spread_of(rates["sink"]), spread_of(rates["write"])
        lower = "sink" if sink.median < write.median else "write"
        result = compared(
            "store archived",
            "store 64 MiB, archived",
            "MiB/s",
            rates["registry"],
            against={"sink": "sink", "write": "write + fsync"}[lower],
            floor_blocks=rates[lower],
            target=at_least(0.80),
            peak_mib=pair.registry.peak_mib(),
            processor_ratio=pair.processor_ratio(),
            note=f"the lower of: sink {sink.median:,.0f}, write + fsync {write.median:,.0f} MiB/s",
        )
        return [result]


def _retrieve(bench: Bench, *, archived: bool) -> Sequence[Outcome]:
    upload = Upload(MODEL_ID, _LARGE_BYTES, archived=archived)
    with bench.pair() as pair:
        bench.fit_floor(pair, upload)
        if archived:
            _check_stored(bench, pair, upload)
        return [
            _compared(
                bench,
                pair,
                _measure_retrievals,
                upload,
                name="retrieve archived" if archived else "retrieve transient",
                floor="source",
                target=at_least(0.90),
                note="read and checked before, and in the system's memory" if archived else "",
            )
        ]


def _check_stored(bench: Bench, pair: Pair, upload: Upload) -> None:
    """Let the registry read a stored version to its end, after a change would be visible in its times."""
    bench.load(0).run(job(_settled_retrieval, pair.registry.port, upload))


async def _settled_retrieval(port: int, upload: Upload) -> list[float]:
    await asyncio.sleep(_SETTLE_SECONDS)
    return await retrieve_seconds(port, upload, 1)


def _throughput(bench: Bench) -> Sequence[Outcome]:
    """Measure throughput against the size of versions."""
    largest = 16 * MIB if bench.quick else GIB
    # The budget and the archived versions take several times the size.
    largest = min(largest, psutil.virtual_memory().available // 6, bench.free_bytes() // 20)
    sizes = [size for size in (KIB, 16 * KIB, 256 * KIB, 4 * MIB, 16 * MIB, 64 * MIB, GIB) if size <= largest]
    names = [
        "publish transient",
        "sink",
        "store archived",
        "write + fsync",
        "retrieve transient",
        "retrieve archived",
        "source",
    ]
    points: dict[str, list[tuple[float, Spread]]] = {name: [] for name in names}
    for size in sizes:
        for name, spread in _throughput_at(bench, size).items():
            points[name].append((size, spread))
    series = [Series(name, points[name], is_floor=name in _FLOORS) for name in names]
    return [Curve("throughput", "Throughput against the size of versions", "size (bytes)", "MiB/s", series)]


def _throughput_at(bench: Bench, size_bytes: int) -> dict[str, Spread]:
    transient, archived = Upload("transient", size_bytes), Upload("archived", size_bytes, archived=True)
    count = max(1, min(20, 64 * MIB // size_bytes) // bench.choose(1, 4))
    repetitions = bench.choose(1 if size_bytes >= GIB else 3, 1)
    with bench.pair(model_id="transient", budget_mib=max(512, 3 * size_bytes // MIB)) as pair, bench.place() as place:
        registry, floor = pair.registry.port, pair.floor.port
        bench.load(0).run(job(prepare, registry, ["archived"]))
        bench.fit_floor(pair, archived)
        bench.fit_floor(pair, transient)
        _check_stored(bench, pair, archived)
        writing = job(floors.write_seconds, str(place), size_bytes, SDK_CHUNK_BYTES, count, sync=True)
        # Retrievals first: each store makes another version the latest, which would be checked again.
        blocks = interleaved(
            repetitions,
            {
                "retrieve transient": _measure_retrievals(bench, registry, transient, count),
                "source": _measure_retrievals(bench, floor, transient, count),
                "publish transient": _measure_uploads(bench, registry, transient, count),
                "sink": _measure_uploads(bench, floor, transient, count),
            },
        )
        blocks |= interleaved(repetitions, {"retrieve archived": _measure_retrievals(bench, registry, archived, count)})
        blocks |= interleaved(
            repetitions,
            {
                "store archived": _measure_uploads(bench, registry, archived, count),
                "write + fsync": lambda: bench.load(0).run(writing),
            },
        )
    return {name: spread_of(converted(values, mib_per_second(size_bytes))) for name, values in blocks.items()}


BENCHMARKS = [
    Benchmark("publish", "publish of a transient version of 64 MiB, compared with a sink", _publish),
    Benchmark("store", "store of an archived version of 64 MiB, compared with a sink and a synced file", _store),
    Benchmark(
        "retrieve-transient",
        "retrieval of a transient version of 64 MiB, compared with a source",
        functools.partial(_retrieve, archived=False),
    ),
    Benchmark(
        "retrieve-archived",
        "retrieval of an archived version of 64 MiB, compared with a source",
        functools.partial(_retrieve, archived=True),
    ),
]

CURVES = [Benchmark("throughput", "throughput against the size of versions (a plot)", _throughput)]
