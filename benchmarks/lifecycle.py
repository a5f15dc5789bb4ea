"""The cost of promotion, and of searches among many versions."""

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import grpc.aio
import psutil

from benchmarks import archives, floors, processes
from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import SDK_CHUNK_BYTES, Upload, connected
from benchmarks.load import job
from benchmarks.measures import (
    GIB,
    KIB,
    MIB,
    Blocks,
    Result,
    Spread,
    at_least,
    compared,
    converted,
    mib_per_second,
    milliseconds,
    no_more_than,
)
from benchmarks.processes import ServerProcess
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.wire import lifecycle as wire
from cogment_model_registry.wire import messages as m

MODEL_ID = "walker"
_PROMOTION_EXTRA_MIB = 64
_WIRE_KIB = 64
_CALL_SECONDS = 120.0

_WARM_MS = 100
_COLD_MS = 300
_SEARCH_MIB = 150
_QUESTIONS = {
    "metric, ordered by it": ("metrics.return > 480", "metrics.return desc"),
    "metric, the newest first": ("metrics.return > 480", "version_number desc"),
    "two metrics and a tag": ('metrics.return > 250 AND metrics.loss < 0.5 AND tags.kind = "eval"', "metrics.loss"),
    "user_data, by time": ('user_data.step = "1000" AND NOT tags:kind', "creation_timestamp desc"),
    "nothing matches": ("metrics.return > 1000", "version_number"),
    "everything, by a metric that some have": ("", "metrics.loss desc"),
}


@asynccontextmanager
async def _calls(port: int) -> AsyncIterator[Any]:
    """Return a context manager for a function that calls ModelLifecycle: method, request, type of the reply."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()

        async def call(method: str, request: Any, reply_type: Any) -> Any:
            path = f"/{wire.SERVICE_NAME}/{method}"
            return reply_type.FromString(
                await channel.unary_unary(path)(request.SerializeToString(), timeout=_CALL_SECONDS)
            )

        yield call


async def promotion(port: int, upload: Upload) -> tuple[float, int]:
    """Promote the latest version; return the seconds, and the bytes that this process read and wrote."""
    async with _calls(port) as call:
        request = wire.PromoteVersionRequest(version=wire.version_ref(upload.model_id, -1))
        before = _moved_bytes()
        started = time.perf_counter()
        reply = await call("PromoteVersion", request, wire.VersionMessage)
        seconds = time.perf_counter() - started
        moved = _moved_bytes() - before
    if not reply.version_info.archived or reply.version_info.data_size != upload.size_bytes:
        raise RuntimeError("another version was promoted")
    return seconds, moved


def _moved_bytes() -> int:
    """Return the bytes that this process has read and written so far, including sockets (proc(5), `io`)."""
    counters = psutil.Process().io_counters()
    return int(counters.read_chars + counters.write_chars)


async def publish(port: int, upload: Upload) -> None:
    """Create a version."""
    async with connected(port) as client:
        await client.create_model(upload.model_id)
        await client.create_version(upload.messages())


def _promote(bench: Bench) -> Sequence[Outcome]:
    """Measure promotions of a large version, each in turns with a write of the same bytes."""
    return _without_bytes(bench, "promote", "promote", promotion)


_Archiving: TypeAlias = Callable[[int, Upload], Coroutine[Any, Any, tuple[float, int]]]


def _without_bytes(bench: Bench, name: str, verb: str, archive: _Archiving) -> Sequence[Outcome]:
    """Measure a call that archives a large published version without a transfer of its bytes."""
    size_bytes = bench.choose(GIB, 64 * MIB)
    repetitions = bench.choose(5, 2)
    bench.require_room(3 * repetitions * size_bytes)
    if psutil.virtual_memory().available < 3 * size_bytes:
        raise RuntimeError("too little memory is free")
    blocks: Blocks = []
    written: Blocks = []
    extra: list[float] = []
    moved: list[float] = []
    with bench.registry(budget_mib=3 * size_bytes // (2 * MIB)) as registry, bench.place() as place:
        writing = job(floors.write_seconds, str(place), size_bytes, SDK_CHUNK_BYTES, 1, sync=True)
        for index in range(repetitions):
            # Each has its own model: an archived version with the same bytes would be shared.
            upload = Upload(f"{MODEL_ID}{index}", size_bytes)
            bench.load(0).run(job(publish, registry.port, upload))
            before_mib = registry.resident_mib()
            registry.forget_peak()
            seconds, moved_bytes = bench.load(0).run(job(archive, registry.port, upload))
            extra.append(registry.peak_mib() - before_mib)
            blocks.append([seconds])
            moved.append(moved_bytes / KIB)
            written.append(bench.load(0).run(writing))
    rate = mib_per_second(size_bytes)
    what = f"{verb}, {size_bytes // MIB:,} MiB"
    return [
        compared(
            name,
            what,
            "MiB/s",
            converted(blocks, rate),
            against="write + fsync",
            floor_blocks=converted(written, rate),
            target=at_least(0.85),
        ),
        Result(
            f"{name} memory",
            f"memory of the server on top of the version's bytes: {what}",
            "MiB",
            Spread.of(extra),
            target=no_more_than(_PROMOTION_EXTRA_MIB, "MiB"),
        ),
        Result(
            f"{name} wire",
            f"bytes between client and server, both ways: {what}",
            "KiB",
            Spread.of(moved),
            target=no_more_than(_WIRE_KIB, "KiB"),
            note="all that the client's process read and wrote during the call",
        ),
    ]


async def stored_again(port: int, upload: Upload) -> tuple[float, int]:
    """Store a just published version; return the seconds, and the bytes that this process read and wrote."""
    async with connected(port) as client:
        [published] = m.RetrieveVersionInfosReply.FromString(await client.infos(upload.model_id, -1)).version_infos
    info = m.ModelVersionInfo(
        model_id=upload.model_id, archived=True, data_hash=published.data_hash, data_size=published.data_size
    )
    header = wire.UploadVersionRequest.Header(version_info=info, request_id=uuid4().hex)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        method: Any = channel.stream_stream(f"/{wire.SERVICE_NAME}/UploadVersion")
        before = _moved_bytes()
        started = time.perf_counter()
        call = method()
        await call.write(wire.UploadVersionRequest(header=header).SerializeToString())
        await call.done_writing()
        replies = [wire.UploadVersionReply.FromString(message) async for message in call]
        seconds, moved = time.perf_counter() - started, _moved_bytes() - before
    if replies[0].next_offset != published.data_size or not replies[-1].version.version_info.archived:
        raise RuntimeError("the server asked for the bytes")
    return seconds, moved


def _store_again(bench: Bench) -> Sequence[Outcome]:
    """Measure stores of a just published version, each in turns with a write of the same bytes."""
    return _without_bytes(bench, "store again", "store what was just published", stored_again)


async def search_seconds(port: int, question: tuple[str, str], count: int) -> list[float]:
    """Request the first page `count` times, and return the seconds of each."""
    accepted, order = question
    request = wire.ListVersionsRequest(model_id=archives.model_name(0), filter=accepted, order_by=order, page_size=100)
    seconds = []
    async with _calls(port) as call:
        for _ in range(count):
            started = time.perf_counter()
            await call("ListVersions", request, wire.ListVersionsReply)
            seconds.append(time.perf_counter() - started)
    return seconds


def _search(bench: Bench) -> Sequence[Outcome]:
    """Measure first pages of searches among many versions, in a server that runs, and in one that starts."""
    total = bench.choose(100_000, 5_000)
    warm: dict[str, list[float]] = {}
    cold: dict[str, float] = {}
    with bench.place() as place:
        archive = place / "archive"
        archives.generate(archive, 1, 1, total)
        for _ in range(2):  # the second start reads again what was written in the last seconds before the first one
            with processes.registry(archive) as registry:
                _wait_until_indexed(bench, registry, total)
        _annotate(archive / CATALOG_NAME, total)
        for name, question in _QUESTIONS.items():
            _forget(archive / CATALOG_NAME)
            with processes.registry(archive) as registry:
                [cold[name]] = bench.load(0).run(job(search_seconds, registry.port, question, 1))
        with processes.registry(place / "empty") as registry:
            empty_mib = registry.resident_mib()
        with processes.registry(archive) as registry:
            for name, question in _QUESTIONS.items():
                warm[name] = bench.load(0).run(job(search_seconds, registry.port, question, bench.choose(20, 3) + 1))[
                    1:
                ]
            memory_mib = registry.peak_mib()
    medians = {name: milliseconds(Spread.of(seconds).median) for name, seconds in warm.items()}
    slowest, coldest = max(medians, key=medians.__getitem__), max(cold, key=cold.__getitem__)
    what = f"first page of 100 among {total:,} versions of one model"
    return [
        Result(
            "search",
            f"{what}, the slowest of {len(_QUESTIONS)} questions",
            "ms",
            Spread.of([milliseconds(value) for value in warm[slowest]]),
            target=no_more_than(_WARM_MS, "ms"),
            note="; ".join(f"{name} {value:.1f} ms" for name, value in medians.items()),
        ),
        Result(
            "search cold",
            f"{what}, the first after a start, the slowest",
            "ms",
            Spread.of([milliseconds(cold[coldest])]),
            target=no_more_than(_COLD_MS, "ms"),
            note="the system was asked to drop the database from its memory before; "
            + "; ".join(f"{name} {milliseconds(value):.1f} ms" for name, value in cold.items()),
        ),
        Result(
            "search memory",
            f"peak memory of a server with {total:,} versions after these searches, less that of an empty one",
            "MiB",
            Spread.of([memory_mib - empty_mib]),
            target=no_more_than(_SEARCH_MIB, "MiB"),
        ),
    ]


def _wait_until_indexed(bench: Bench, registry: ServerProcess, total: int) -> None:
    """Search once: a search waits until everything is indexed."""
    bench.load(0).run(job(search_seconds, registry.port, ("", "version_number desc"), 1))


def _annotate(path: Path, total: int) -> None:
    """Write metrics and tags of versions directly: with calls it would take minutes."""
    with closing(sqlite3.connect(path)) as connection, connection:
        [(model, count)] = connection.execute("SELECT model, count(*) FROM versions GROUP BY model").fetchall()
        if count != total:
            raise RuntimeError(f"{count} versions were indexed instead of {total}")
        numbers = range(1, total + 1)
        rows: dict[str, list[tuple[int, int, str, str | float]]] = {
            "metrics": [(model, n, "return", n * 7919 % 50_000 / 100) for n in numbers]
            + [(model, n, "loss", n * 104_729 % 1000 / 1000) for n in numbers if n % 2],
            "tags": [(model, n, "kind", ("eval", "train")[n % 2]) for n in numbers if n % 3],
        }
        for table, entries in rows.items():
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", entries)  # noqa: S608


def _forget(path: Path) -> None:
    """Ask the system to drop a file from the page cache."""
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


BENCHMARKS = [
    Benchmark("promote", "promotion of 1 GiB, compared with a synced file of the same bytes", _promote),
    Benchmark("store-again", "store of 1 GiB that was just published, compared with a synced file", _store_again),
    Benchmark("search", "searches among 100,000 versions, in a server that runs and in one that starts", _search),
]
