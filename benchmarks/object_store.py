"""Throughput and memory with the archive in an object store, next to the library alone on the same store."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence

import obstore
from obstore.store import S3Store

from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome
from benchmarks.clients import SDK_CHUNK_BYTES, Upload, connected, prepare, retrieve_seconds, upload_seconds
from benchmarks.load import job
from benchmarks.measures import (
    GIB,
    MIB,
    Spread,
    at_least,
    compared,
    converted,
    interleaved,
    mib_per_second,
)
from benchmarks.memory import peak_over_idle
from benchmarks.processes import ServerProcess, running
from tests.object_store import BUCKET, S3Server, find_program, object_server, store_at

_MODEL_ID = "walker"
_SIZE_BYTES = 64 * MIB
_PART_BYTES = 8 * MIB
_PARTS_AT_ONCE = 3
_NOTE = "SeaweedFS on the same machine; the registry reads ranges of 4 MiB of parts of 8 MiB, up to 3 ahead"
_ONE_PUT = "obstore, one put with its defaults"
_ONE_GET = "obstore, one get as a stream"
_PARTS = "obstore, the same parts, 3 at once"


@contextlib.contextmanager
def _registry(bench: Bench) -> Iterator[tuple[ServerProcess, S3Server]]:
    """Return a context manager with a registry whose archive is in an S3 server, and with that server."""
    if find_program() is None:
        raise NotHereError("no SeaweedFS")
    with bench.place() as place, object_server(place / "store") as store:
        command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
        command += ["--host=127.0.0.1", f"--archive_url=s3://{BUCKET}/models", f"--catalog_dir={place / 'catalog'}"]
        command += ["--grace_seconds=0"]
        with running(command, r"serving .*\bport=(\d+)", store.environment) as registry:
            bench.load(0).run(job(prepare, registry.port, [_MODEL_ID]))
            yield registry, store


async def put_seconds(endpoint: str, size_bytes: int, count: int) -> list[float]:
    """Put an object `count` times by the library alone, and return the seconds of each."""
    store = store_at(endpoint, "alone")
    data = os.urandom(SDK_CHUNK_BYTES) * (size_bytes // SDK_CHUNK_BYTES)
    return [await _timed_put(store, data) for _ in range(count)]


async def _timed_put(store: S3Store, data: bytes) -> float:
    started = time.perf_counter()
    await obstore.put_async(store, "object", data)
    return time.perf_counter() - started


async def get_seconds(endpoint: str, size_bytes: int, count: int) -> list[float]:
    """Get the object of `put_seconds` `count` times by the library alone, and return the seconds of each."""
    store = store_at(endpoint, "alone")
    return [await _timed_get(store, size_bytes) for _ in range(count)]


async def _timed_get(store: S3Store, size_bytes: int) -> float:
    started = time.perf_counter()
    received_bytes = 0
    async for chunk in (await obstore.get_async(store, "object")).stream():
        received_bytes += len(chunk)
    if received_bytes != size_bytes:
        raise RuntimeError(f"{received_bytes} bytes were received instead of {size_bytes}")
    return time.perf_counter() - started


async def put_parts(endpoint: str, size_bytes: int) -> None:
    """Put the parts that `get_parts_seconds` gets."""
    store = store_at(endpoint, "alone")
    for part in range(size_bytes // _PART_BYTES):
        await obstore.put_async(store, f"part-{part}", os.urandom(_PART_BYTES), use_multipart=False)


async def get_parts_seconds(endpoint: str, size_bytes: int, count: int) -> list[float]:
    """Get the parts of `put_parts`, some at once, `count` times by the library alone; return the seconds of each."""
    store = store_at(endpoint, "alone")
    turns = asyncio.Semaphore(_PARTS_AT_ONCE)

    async def get(part: int) -> int:
        async with turns:
            return len(await (await obstore.get_async(store, f"part-{part}")).bytes_async())

    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        if sum(await asyncio.gather(*map(get, range(size_bytes // _PART_BYTES)))) != size_bytes:
            raise RuntimeError("parts are missing")
        seconds.append(time.perf_counter() - started)
    return seconds


async def first_retrieve_seconds(port: int, upload: Upload, count: int) -> list[float]:
    """Retrieve `count` versions that nobody has read before, and return the seconds of each."""
    messages, seconds = upload.messages(), []
    async with connected(port) as client:
        for _ in range(count):
            await client.create_version(messages)
            started = time.perf_counter()
            await client.retrieve(upload.model_id)
            seconds.append(time.perf_counter() - started)
    return seconds


def _transfers(bench: Bench) -> Sequence[Outcome]:
    """Measure stores and retrievals of 64 MiB through the registry and by the library alone, in turns."""
    upload = Upload(_MODEL_ID, _SIZE_BYTES, archived=True)
    repetitions, count = bench.choose(5, 2), bench.choose(2, 1)
    outcomes: list[Outcome] = []
    with _registry(bench) as (registry, store):
        bench.load(0).run(job(put_parts, store.endpoint, _SIZE_BYTES))
        for name, what, ours, against, floor, target in (
            ("store in bucket", "store 64 MiB in S3", upload_seconds, _ONE_PUT, put_seconds, 0.8),
            (
                "first from bucket",
                "retrieve 64 MiB from S3 for the first time, which is hashed",
                first_retrieve_seconds,
                _ONE_GET,
                get_seconds,
                None,
            ),
            ("retrieve from bucket", "retrieve 64 MiB from S3 again", retrieve_seconds, _ONE_GET, get_seconds, 0.8),
            (
                "retrieve from bucket, parts",
                "retrieve 64 MiB from S3 again",
                retrieve_seconds,
                _PARTS,
                get_parts_seconds,
                None,
            ),
        ):
            through = job(ours, registry.port, upload, count)
            alone = job(floor, store.endpoint, _SIZE_BYTES, count)
            bench.load(0).run(alone)  # the first use of a bucket makes the store create its files
            blocks = interleaved(
                repetitions,
                {
                    "registry": lambda through=through: bench.load(0).run(through),  # type: ignore[misc]
                    "obstore": lambda alone=alone: bench.load(0).run(alone),  # type: ignore[misc]
                },
            )
            rates = {side: converted(values, mib_per_second(_SIZE_BYTES)) for side, values in blocks.items()}
            outcomes.append(
                compared(
                    name,
                    what,
                    "MiB/s",
                    rates["registry"],
                    against=against,
                    floor_blocks=rates["obstore"],
                    target=at_least(target) if target else None,
                    peak_mib=registry.peak_mib(),
                    note=_NOTE,
                )
            )
    return outcomes


def _memory(bench: Bench) -> Sequence[Outcome]:
    """Measure the memory of a store and a retrieval of one very large version."""
    size_bytes = 256 * MIB if bench.quick else 4 * GIB
    size = "256 MiB" if bench.quick else "4 GiB"
    bench.require_room(3 * size_bytes)
    upload = Upload(_MODEL_ID, size_bytes, archived=True)
    with _registry(bench) as (registry, _):
        idle = Spread.of([registry.resident_mib()])
        store = job(upload_seconds, registry.port, upload, 1, warm_up=False)
        retrieve = job(retrieve_seconds, registry.port, upload, 1, warm_up=False)
        return [
            peak_over_idle(bench, registry, idle, store, name="store large in bucket", what=f"store {size} in S3"),
            peak_over_idle(
                bench, registry, idle, retrieve, name="retrieve large from bucket", what=f"retrieve {size} from S3"
            ),
        ]


BENCHMARKS = [
    Benchmark("bucket", "stores and retrievals with the archive in an object store", _transfers),
    Benchmark("bucket-large", "memory while a version of 4 GiB is stored in an object store and retrieved", _memory),
]
