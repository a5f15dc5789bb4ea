"""The cost of consumers, and how soon a trainer knows that all of them run a version."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Upload, connected
from benchmarks.lifecycle import publish
from benchmarks.load import job, together
from benchmarks.measures import (
    KIB,
    Result,
    at_most,
    compared,
    converted,
    interleaved,
    milliseconds,
    no_more_than,
    spread_of,
)
from benchmarks.processes import ServerProcess
from cogment_model_registry import aio
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.wire import consumers as wire
from cogment_model_registry.wire.lifecycle import SERVICE_NAME

MODEL_ID = "walker"
_CONSUMERS = 1000
_CONNECTIONS = 20
_BARRIER_CONSUMERS = 100
_BARRIER_SECONDS = 0.2
"""The period in which the consumers of a barrier report."""

_CALLS_MAX = 500
"""The largest number of concurrent calls. A gRPC server that does not run for a while, as on a busy machine, ends calls
with CANCELLED when 1,000 are waiting (`grpc.server.max_pending_requests`); reports arrive at a fixed rate."""

_TIMEOUT_SECONDS = 60.0


def _requests(count: int, number: int) -> list[bytes]:
    """Return the reports of consumers that run a version."""
    labels = {"host": "node-17.example.org", "role": "actor"}
    reports = (Consumer(MODEL_ID, f"actor-{each}", number, "active", "", labels, 10) for each in range(count))
    return [
        wire.ReportConsumerRequest(consumer=wire.consumer_message(report)).SerializeToString() for report in reports
    ]


async def reported(port: int, seconds: float, *, is_floor: bool) -> int:
    """Let each consumer report once a second, evenly distributed; return the number of answered reports.

    Args:
        port: The port of the registry, or of the floor.
        seconds: The time.
        is_floor: Whether to make as many empty calls to the floor instead.
    """
    requests = itertools.cycle(_requests(_CONSUMERS, 1))
    answered = 0
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(_CONNECTIONS)]
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(_CONNECTIONS)
        ]
        calls: list[Any] = [channel.unary_unary(f"/{SERVICE_NAME}/ReportConsumer") for channel in channels]

        async def call(position: int, request: bytes) -> None:
            nonlocal answered
            if is_floor:
                await clients[position].infos(MODEL_ID, 1)
            else:
                await calls[position](request, timeout=_TIMEOUT_SECONDS)
            answered += 1
            room.release()

        room = asyncio.Semaphore(_CALLS_MAX)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for position in range(int(seconds * _CONSUMERS)):
                await asyncio.sleep(max(began + position / _CONSUMERS - time.perf_counter(), 0))
                await room.acquire()
                group.create_task(call(position % _CONNECTIONS, next(requests)))
    return answered


def _share(bench: Bench, server: ServerProcess, seconds: float, *, is_floor: bool) -> Callable[[], list[float]]:
    """Return a function that measures the share of a core that a server takes, in percent."""

    def measure() -> list[float]:
        server.mark_processor()
        answered = bench.load(0).run(job(reported, server.port, seconds, is_floor=is_floor))
        # By the number of calls and not by the clock: on a busy machine they take longer than planned.
        return [100 * server.marked_processor_seconds() / (answered / _CONSUMERS)]

    return measure


def _reports(bench: Bench) -> Sequence[Outcome]:
    seconds = 1.0 if bench.quick else 4.0
    with bench.pair() as pair:
        bench.fit_floor(pair, Upload(MODEL_ID, KIB))
        pair.mark()
        blocks = interleaved(
            bench.choose(5, 1),
            {
                "registry": _share(bench, pair.registry, seconds, is_floor=False),
                "floor": _share(bench, pair.floor, seconds, is_floor=True),
            },
        )
        return [
            compared(
                "consumers",
                "1,000 consumers that report once a second",
                "% of a core",
                blocks["registry"],
                against="as many unary calls",
                floor_blocks=blocks["floor"],
                target=at_most(1.2),
                peak_mib=pair.registry.peak_mib(),
            )
        ]


async def last_reports(port: int, rounds: int) -> list[float]:
    """Let consumers report each of some versions within a short period; return the moments of the last replies."""
    moments = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(f"/{SERVICE_NAME}/ReportConsumer")
        for number in range(1, rounds + 1):
            await publish(port, Upload(MODEL_ID, KIB))
            await asyncio.sleep(_BARRIER_SECONDS)  # the trainer begins to wait
            for request in _requests(_BARRIER_CONSUMERS, number):
                await call(request, timeout=_TIMEOUT_SECONDS)
                await asyncio.sleep(_BARRIER_SECONDS / _BARRIER_CONSUMERS)
            moments.append(time.perf_counter() - _BARRIER_SECONDS / _BARRIER_CONSUMERS)
    return moments


async def passed_barriers(port: int, rounds: int) -> list[float]:
    """Return the moments at which all consumers were known to run each of some versions."""
    moments = []
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
        for number in range(1, rounds + 1):
            await registry.wait_for_consumers(MODEL_ID, number, count=_BARRIER_CONSUMERS, timeout=_TIMEOUT_SECONDS)
            moments.append(time.perf_counter())
    return moments


def _barrier(bench: Bench) -> Sequence[Outcome]:
    rounds = bench.choose(20, 3)
    with bench.registry() as registry:
        bench.load(0).run(job(_create, registry.port))
        last, passed = together(
            [
                (bench.load(0), job(last_reports, registry.port, rounds)),
                (bench.load(1), job(passed_barriers, registry.port, rounds)),
            ]
        )
        # The first one waits until the registry has loaded its parser of filters.
        blocks = [[end - start for start, end in zip(last, passed, strict=True)][1:]]
        blocks = converted(blocks, milliseconds)
        return [
            Result(
                "barrier",
                "from the last of 100 reports until a trainer knows that all run the version",
                "ms",
                spread_of(blocks),
                target=no_more_than(10, "ms"),
                peak_mib=registry.peak_mib(),
                blocks=blocks,
            )
        ]


async def _create(port: int) -> None:
    async with connected(port) as client:
        await client.create_model(MODEL_ID)


BENCHMARKS = [
    Benchmark("consumers", "the share of a core that 1,000 consumers take", _reports),
    Benchmark("barrier", "how soon a trainer knows that 100 consumers run a version", _barrier),
]
