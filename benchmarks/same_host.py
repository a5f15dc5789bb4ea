"""Transfers over the UNIX socket between a client and a server on one host, without copies.

A *further reader* retrieves a version that the server has already checked, and reads each of its pages. Its floor is a
file in the page cache, mapped and read in the same way.
"""

import asyncio
import mmap
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.load import job
from benchmarks.measures import (
    MIB,
    Result,
    Spread,
    Target,
    at_least,
    compared,
    converted,
    interleaved,
    mib_per_second,
    no_more_than,
)
from cogment_model_registry import ModelRegistry, SealedMemory

_MODEL_ID = "walker"
_LARGE_BYTES = 64 * MIB
_PAGE_BYTES = mmap.PAGESIZE
_READERS = 16
_READ_MIB_PER_SECOND = 4000.0
_COPIES_MAX = 1.1
_PUBLISH_RATIO = 1.5

_kept: list[memoryview] = []
"""In a load process: its open views."""


def _fresh(size_bytes: int) -> bytearray:
    """Return bytes that no version has: a model shares equal bytes."""
    data = bytearray(size_bytes)
    data[:8] = os.urandom(8)
    return data


def _client(port: int, authority: str = "") -> ModelRegistry:
    """Return a client; with the file of an authority, over TLS."""
    if authority:
        return ModelRegistry(f"grpcs://127.0.0.1:{port}", tls_ca=authority)
    return ModelRegistry(f"grpc://127.0.0.1:{port}")


async def publish(
    port: int, size_bytes: int, *, archived: bool = False, model_id: str = _MODEL_ID, authority: str = ""
) -> None:
    """Create a version; with the file of an authority, over TLS."""

    def call() -> None:
        with _client(port, authority) as registry:
            (registry.store if archived else registry.publish)(model_id, _fresh(size_bytes))

    await asyncio.to_thread(call)


async def view_seconds(port: int, count: int) -> list[float]:
    """Retrieve the latest version without a copy and read each page, `count` times; return the seconds of each."""

    def measure() -> list[float]:
        with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
            return _timed(lambda: _read_pages(registry.retrieve(_MODEL_ID, copy=False)), count)

    return await asyncio.to_thread(measure)


async def copy_seconds(port: int, count: int, authority: str = "") -> list[float]:
    """Retrieve a copy of the latest version `count` times; return the seconds of each. See `publish`."""

    def measure() -> list[float]:
        with _client(port, authority) as registry:
            return _timed(lambda: registry.retrieve(_MODEL_ID), count)

    return await asyncio.to_thread(measure)


async def mapped_seconds(directory: str, size_bytes: int, count: int) -> list[float]:
    """Map a file in the page cache and read each page, `count` times; return the seconds of each."""
    path = Path(directory) / "mapped"
    if not path.exists():
        path.write_bytes(_fresh(size_bytes))

    def read() -> memoryview:
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_READ))
        return _read_pages(view)

    return _timed(read, count)


async def publish_seconds(port: int, size_bytes: int, count: int, *, sealed: bool) -> list[float]:
    """Publish `count` versions, from sealed or from ordinary memory; return the seconds of each."""

    def measure() -> list[float]:
        make = SealedMemory.of if sealed else bytes
        versions = iter([make(_fresh(size_bytes)) for _ in range(count + 1)])
        with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
            return _timed(lambda: registry.publish(_MODEL_ID, next(versions)), count)

    return await asyncio.to_thread(measure)


def _read_pages(view: memoryview) -> memoryview:
    """Read each page of a view, and return the view."""
    view[::_PAGE_BYTES].tobytes()
    return view


def _timed(call: Callable[[], object], count: int) -> list[float]:
    """Call `count` times, after one call that is not measured; return the seconds of each.

    The results of the calls are kept until the end, as by readers that use them.
    """
    results = [call()]
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        results.append(call())
        seconds.append(time.perf_counter() - started)
    return seconds


async def keep_view(port: int) -> None:
    """Retrieve the latest version without a copy, read each page, and keep it in place of the previous one."""

    def keep() -> None:
        with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
            view = registry.retrieve(_MODEL_ID, copy=False)
        _kept[:] = [view]
        _read_pages(view)

    await asyncio.to_thread(keep)


async def process_id() -> int:
    """Return the load process."""
    return os.getpid()


def _share_mib(pid: int) -> float:
    """Return the proportional set size of a process; the sum over processes counts each page once."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _retrieve(bench: Bench) -> Sequence[Outcome]:
    """Measure further readers of a version of either tier, and copies."""
    repetitions, count = bench.choose(5, 2), bench.choose(3, 1)
    results: list[Outcome] = []
    for kind, archived in (("transient", False), ("archived", True)):
        with bench.registry() as registry, bench.registry("--local_socket=off") as remote, bench.place() as place:
            for each in (registry, remote):
                bench.load(0).run(job(publish, each.port, _LARGE_BYTES, archived=archived))
            blocks = interleaved(
                repetitions,
                {
                    "view": lambda: bench.load(0).run(job(view_seconds, registry.port, count)),
                    "mapped": lambda: bench.load(0).run(job(mapped_seconds, str(place), _LARGE_BYTES, count)),
                    "copy": lambda: bench.load(0).run(job(copy_seconds, registry.port, count)),
                    "grpc": lambda: bench.load(0).run(job(copy_seconds, remote.port, count)),
                },
            )
        rates = {name: converted(values, mib_per_second(_LARGE_BYTES)) for name, values in blocks.items()}
        results += [
            compared(
                f"same host view {kind}",
                f"same host: retrieve 64 MiB without a copy, {kind}, each further reader",
                "MiB/s",
                rates["view"],
                against="a file in memory, mapped and read",
                floor_blocks=rates["mapped"],
                target=Target(_READ_MIB_PER_SECOND, is_minimum=True, of_ratio=False, unit="MiB/s"),
            ),
            compared(
                f"same host copy {kind}",
                f"same host: retrieve a copy of 64 MiB, {kind}",
                "MiB/s",
                rates["copy"],
                against="the same over gRPC",
                floor_blocks=rates["grpc"],
            ),
        ]
    return results


def _readers(bench: Bench) -> Sequence[Outcome]:
    """Measure the memory of sixteen readers and the server for one version, together."""
    results: list[Outcome] = []
    loads = [bench.load(index) for index in range(_READERS)]
    with bench.registry() as registry:
        pids = [registry.pid, *(load.run(job(process_id)) for load in loads)]

        def shares_mib(size_bytes: int, *, archived: bool) -> float:
            loads[0].run(job(publish, registry.port, size_bytes, archived=archived))
            for load in loads:
                load.run(job(keep_view, registry.port))
            return sum(map(_share_mib, pids))

        for kind, archived in (("transient", False), ("archived", True)):
            # A first transfer loads modules, starts threads and grows the heap before the measurement.
            loads[0].run(job(publish, registry.port, _LARGE_BYTES, archived=archived, model_id="warm-up"))
            before_mib = shares_mib(2 * MIB, archived=archived)
            grown_mib = shares_mib(_LARGE_BYTES, archived=archived) - before_mib
            value, one = Spread.of([grown_mib]), Spread.of([_LARGE_BYTES / MIB])
            results.append(
                Result(
                    f"same host readers {kind}",
                    f"same host: memory of {_READERS} readers of 64 MiB and the server, {kind}",
                    "MiB",
                    value,
                    "one copy",
                    one,
                    Spread.of([value.median / one.median]),
                    no_more_than(_COPIES_MAX * one.median, "MiB"),
                )
            )
    return results


def _publish(bench: Bench) -> Sequence[Outcome]:
    """Compare a publish from sealed memory, and one from ordinary memory, with one over gRPC."""
    repetitions, count = bench.choose(5, 2), bench.choose(3, 1)
    with bench.registry() as registry, bench.registry("--local_socket=off") as remote:

        def measured(port: int, *, sealed: bool) -> Callable[[], list[float]]:
            return lambda: bench.load(0).run(job(publish_seconds, port, _LARGE_BYTES, count, sealed=sealed))

        blocks = interleaved(
            repetitions,
            {
                "sealed": measured(registry.port, sealed=True),
                "bytes": measured(registry.port, sealed=False),
                "grpc": measured(remote.port, sealed=False),
            },
        )
    rates = {name: converted(values, mib_per_second(_LARGE_BYTES)) for name, values in blocks.items()}
    return [
        compared(
            f"same host publish {name}",
            f"same host: publish 64 MiB from {what}",
            "MiB/s",
            rates[name],
            against="the same over gRPC",
            floor_blocks=rates["grpc"],
            target=target,
        )
        for name, what, target in (
            ("sealed", "sealed memory", at_least(_PUBLISH_RATIO)),
            ("bytes", "bytes, which are copied to such memory", None),
        )
    ]


BENCHMARKS = [
    Benchmark("same-host-retrieve", "retrieval of 64 MiB over the UNIX socket, compared with a mapped file", _retrieve),
    Benchmark("same-host-readers", "memory of sixteen readers of 64 MiB on the server's host", _readers),
    Benchmark("same-host-publish", "publish of 64 MiB over the UNIX socket, compared with gRPC", _publish),
]
