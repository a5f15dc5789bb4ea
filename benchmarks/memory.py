"""The memory of the server, as the operating system counts it."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Client, Upload, connected, prepare, retrieve_seconds, upload_seconds
from benchmarks.load import Job, job
from benchmarks.measures import GIB, KIB, MIB, Curve, Result, Series, Spread, no_more_than
from benchmarks.processes import ServerProcess
from cogment_model_registry.wire import messages as m

_CHURNED_BUDGETS = 10
_OVER_BUDGET = 1.15
_BESIDE_BUDGET_MIB = 100
_LARGE_OVER_IDLE_MIB = 64
_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Churn:
    """A mix of versions of all sizes.

    Attributes:
        model_ids: The models of the versions.
        total_bytes: The total size.
        max_bytes: The size of the largest version; the smallest has 1 kB.
        connections: The number of clients that publish concurrently.
    """

    model_ids: list[str]
    total_bytes: int
    max_bytes: int
    connections: int


async def churn(port: int, churn: Churn) -> int:
    """Publish a mix of versions, and retrieve every fourth; return their number."""
    chance = random.Random(1)
    left = churn.total_bytes
    count = 0

    async def publish(client: Client) -> None:
        nonlocal left, count
        while left > 0:
            size = int(1000 * (churn.max_bytes / 1000) ** chance.random())
            upload = Upload(chance.choice(churn.model_ids), size, chunk_bytes=64 * KIB << chance.randrange(7))
            left -= size
            count += 1
            created = m.CreateVersionReply.FromString(await client.create_version(upload.messages()))
            if count % 4 == 0:
                await client.retrieve(upload.model_id, created.version_info.version_number)

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(churn.connections)]
        await asyncio.gather(*(publish(client) for client in clients))
    return count


@contextmanager
def _sampled(server: ServerProcess) -> Iterator[list[tuple[float, Spread]]]:
    """Return a context manager that samples the resident memory of a server, with the seconds since the start."""
    samples: list[tuple[float, Spread]] = []
    stop = threading.Event()
    started = time.perf_counter()

    def sample() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            samples.append((time.perf_counter() - started, Spread.of([server.resident_mib()])))

    thread = threading.Thread(target=sample, name="memory samples")
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _churn(bench: Bench) -> Sequence[Outcome]:
    """Measure memory while a budget's worth of versions of all sizes is replaced ten times."""
    budget_mib = bench.choose(512, 32)
    mix = Churn(
        [f"model{index}" for index in range(4)],
        _CHURNED_BUDGETS * budget_mib * MIB,
        max_bytes=bench.choose(64, 8) * MIB,
        connections=4,
    )
    with bench.registry("--cache_max_items=1000000", budget_mib=budget_mib) as registry:
        idle_mib = registry.resident_mib()
        bench.load(0).run(job(prepare, registry.port, mix.model_ids))
        with _sampled(registry) as samples:
            versions = bench.load(0).run(job(churn, registry.port, mix))
        resident, peak = Spread.of([registry.resident_mib()]), Spread.of([registry.peak_mib()])
    limit = no_more_than(_OVER_BUDGET * budget_mib + _BESIDE_BUDGET_MIB, "MiB")
    note = f"{versions:,} versions of 1 kB to {mix.max_bytes // MIB} MiB; idle {idle_mib:.0f} MiB"
    note += bench.note("; a smaller budget than in a full run")
    what = f"publishing {_CHURNED_BUDGETS} x a budget of {budget_mib} MiB"
    floor = Spread.of([float(budget_mib)])

    def result(name: str, moment: str, value: Spread) -> Result:
        ratio = Spread.of([value.median / budget_mib])
        return Result(name, f"{moment} {what}", "MiB", value, "the budget", floor, ratio, limit, peak.median, note)

    end = samples[-1][0] if samples else 1.0
    lines = [
        Series("resident", samples),
        Series("the budget", [(0.0, floor), (end, floor)], is_floor=True),
        Series("1.15 x the budget + 100 MiB", [(x, Spread.of([limit.limit])) for x in (0.0, end)]),
    ]
    curve = Curve("memory", f"Memory while {what}", "seconds", "MiB", lines, is_log_x=False, is_log_y=False)
    return [result("churn", "memory after", resident), result("churn peak", "peak memory while", peak), curve]


def peak_over_idle(
    bench: Bench, registry: ServerProcess, idle: Spread, todo: Job[list[float]], *, name: str, what: str
) -> Result:
    """Measure by how much the transfer of a very large version raises the peak of the memory.

    Args:
        bench: What measures.
        registry: The registry.
        idle: Its memory before the first transfer, in MiB.
        todo: The transfer.
        name: The name of the result, without ``memory``.
        what: What the transfer is.
    """
    registry.forget_peak()
    bench.load(0).run(todo)
    peak_mib = registry.peak_mib()
    over = Spread.of([peak_mib - idle.median])
    return Result(
        f"{name} memory",
        f"peak memory over idle: {what}",
        "MiB",
        over,
        "idle",
        idle,
        Spread.of([over.median / idle.median]),
        no_more_than(_LARGE_OVER_IDLE_MIB, "MiB"),
        peak_mib,
        bench.note("a smaller version than in a full run"),
    )


def _large(bench: Bench) -> Sequence[Outcome]:
    """Measure the memory of a store and a retrieval of one very large archived version."""
    size_bytes = 256 * MIB if bench.quick else 4 * GIB
    size = "256 MiB" if bench.quick else "4 GiB"
    bench.require_room(2 * size_bytes)
    upload = Upload("walker", size_bytes, archived=True)
    with bench.registry() as registry:
        bench.load(0).run(job(prepare, registry.port, ["walker"]))
        idle = Spread.of([registry.resident_mib()])
        store = job(upload_seconds, registry.port, upload, 1, warm_up=False)
        retrieve = job(retrieve_seconds, registry.port, upload, 1, warm_up=False)
        return [
            peak_over_idle(bench, registry, idle, store, name="store large", what=f"store {size}, archived"),
            peak_over_idle(bench, registry, idle, retrieve, name="retrieve large", what=f"retrieve {size}"),
        ]


BENCHMARKS = [
    Benchmark("churn", "memory while versions of all sizes replace each other (a plot, too)", _churn),
    Benchmark("large", "memory while one archived version of 4 GiB is stored and retrieved", _large),
]
