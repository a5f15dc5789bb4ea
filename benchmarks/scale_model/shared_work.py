"""What servers that share a catalog and an archive take: relays, the object store, small calls, and news of others."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench import Bench
from benchmarks.clients import (
    Kind,
    Upload,
    call_seconds,
    connected,
    notified_moments,
    prepare,
    publish_moments,
    upload_seconds,
)
from benchmarks.load import Job, job, together
from benchmarks.measures import KIB, MIB
from benchmarks.scale_model.one_server import MODEL_ID, core_seconds_per_gib
from benchmarks.scale_model.several_servers import Several, several

_GAP_SECONDS = 0.25


async def fetched_once_each(port: int, model_id: str, numbers: list[int]) -> None:
    """Retrieve each of some versions once."""
    async with connected(port) as client:
        for number in numbers:
            await client.retrieve(model_id, number)


def shared_work(bench: Bench, send: float) -> dict[str, float]:
    """Return the figures of servers that share a catalog and an archive.

    Args:
        bench: The run.
        send: The core seconds for each GiB that a server sends.
    """
    size = bench.choose(256, 16) * MIB
    count = bench.choose(6, 2)
    with several(bench, 2, (count + 2) * size // MIB) as shared:
        first, second = shared.servers
        bench.load(0).run(job(prepare, first.port, [MODEL_ID]))
        bench.load(0).run(job(upload_seconds, first.port, Upload(MODEL_ID, KIB), 3))
        idle = _idle_core_ms_per_second(bench, shared)
        calls = _small_calls(bench, shared)
        heard = _hear_core_ms(bench, shared)
        large, stored = Upload("large", size), Upload("stored", size, archived=True)
        bench.load(0).run(job(prepare, first.port, ["large", "stored"]))
        bench.load(0).run(job(upload_seconds, first.port, large, count, warm_up=False))
        numbers = list(range(1, count + 1))
        fetch = job(fetched_once_each, second.port, "large", numbers)
        through = core_seconds_per_gib(bench, second, fetch, size * count)
        store = job(upload_seconds, first.port, stored, count, warm_up=False)
        written = core_seconds_per_gib(bench, first, store, size * count)
        read = job(fetched_once_each, second.port, "stored", numbers)
        return {
            **calls,
            "server_database": idle,
            "hear": heard,
            "relay": through - send,
            "bucket_write": written,
            "bucket_read": core_seconds_per_gib(bench, second, read, size * count),
        }


def _idle_core_ms_per_second(bench: Bench, shared: Several) -> float:
    """Return the processor time of PostgreSQL for each idle server and second."""
    seconds = bench.choose(20, 3)
    shared.database.mark()
    time.sleep(seconds)  # what is measured is that nothing happens
    return shared.database.seconds() / seconds / len(shared.servers) * 1000


def _small_calls(bench: Bench, shared: Several) -> dict[str, float]:
    """Return what publishes, stores and look-ups take, of the server and of PostgreSQL."""
    server, database = shared.servers[0], shared.database
    seconds = float(bench.choose(6, 1))

    def each(todo: Job[Any], count_of: Callable[[Any], int]) -> tuple[float, float]:
        server.mark_processor()
        database.mark()
        count = count_of(bench.load(0).run(todo))
        return server.marked_processor_seconds() / count * 1000, database.seconds() / count * 1000

    small, archived = Upload(MODEL_ID, KIB), Upload(MODEL_ID, KIB, archived=True)
    publish = each(job(call_seconds, server.port, small, 8, seconds, Kind.PUBLISH), len)
    store = each(job(call_seconds, server.port, archived, 8, seconds, Kind.PUBLISH), len)
    lookup = each(job(call_seconds, server.port, small, 16, seconds, Kind.INFOS), len)
    return {
        "small_publish": publish[0],
        "small_publish_database": publish[1],
        "small_store_database": store[1],
        "lookup": lookup[0],
        "lookup_database": lookup[1],
    }


def _hear_core_ms(bench: Bench, shared: Several) -> float:
    """Return what a version costs the second server that the first one received, with one watcher on the second."""
    first, second = shared.servers
    rounds = bench.choose(60, 5)
    small = Upload(MODEL_ID, KIB)
    publishing = job(publish_moments, first.port, small, rounds, _GAP_SECONDS)
    watching = job(notified_moments, second.port, small, 1, 1, rounds)
    second.mark_processor()
    started = time.perf_counter()
    together([(bench.load(0), publishing), (bench.load(1), watching)])
    seconds, busy = time.perf_counter() - started, second.marked_processor_seconds()
    second.mark_processor()
    time.sleep(seconds)  # what the server does by itself in that time
    return max(0.0, busy - second.marked_processor_seconds()) / rounds * 1000
