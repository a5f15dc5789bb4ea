"""Throughput of the Python client, compared with bare `grpcio`, and with the stock client.

A *bare client* is `grpcio`'s blocking one with the generated messages: it cuts the bytes into chunks and joins them, as
the documentation of gRPC shows. It checks nothing, while ours hashes the bytes that it sends and receives. Both call a
server without a registry, a sink or a source. The floor of the server is measured too: messages that are encoded in
advance, and replies that are not joined.
"""

import asyncio
import functools
import json
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome, Pair
from benchmarks.clients import SDK_CHUNK_BYTES, Upload, retrieve_seconds, upload_seconds
from benchmarks.load import job
from benchmarks.measures import MIB, Result, Target, at_least, compared, converted, interleaved, mib_per_second
from benchmarks.processes import ROOT
from cogment_model_registry import ModelRegistry
from cogment_model_registry.wire import messages as m

_MODEL_ID = "walker"
_LARGE_BYTES = 64 * MIB
_METHOD = f"/{m.SERVICE_NAMES[0]}/"

_STOCK_SECONDS = 60.0
_STOCK_ENVIRONMENTS = ".cache/stock-client-*/bin/python"
"""The environment in which the tests install the stock client."""

_Timed = Callable[..., Coroutine[Any, Any, list[float]]]


def _times(call: Callable[[], object], count: int) -> list[float]:
    """Call `count` times, after one call that is not measured; return the seconds of each."""
    call()
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


async def library_upload_seconds(port: int, size_bytes: int, count: int) -> list[float]:
    """Publish zeros with our client `count` times, and return the seconds of each."""

    def measure() -> list[float]:
        data = bytes(size_bytes)
        with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
            return _times(lambda: registry.publish(_MODEL_ID, data), count)

    return await asyncio.to_thread(measure)


async def library_retrieve_seconds(port: int, size_bytes: int, count: int) -> list[float]:
    """Retrieve the latest version with our client `count` times, and return the seconds of each."""

    def measure() -> list[float]:
        with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:

            def retrieve() -> None:
                if len(registry.retrieve(_MODEL_ID)) != size_bytes:
                    raise RuntimeError("a retrieval was cut short")

            return _times(retrieve, count)

    return await asyncio.to_thread(measure)


async def bare_upload_seconds(port: int, size_bytes: int, count: int) -> list[float]:
    """Send zeros with a bare client `count` times, and return the seconds of each."""

    def measure() -> list[float]:
        data = bytes(size_bytes)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            create: Any = channel.stream_unary(
                _METHOD + "CreateVersion",
                request_serializer=m.CreateVersionRequestChunk.SerializeToString,
                response_deserializer=m.CreateVersionReply.FromString,
            )
            return _times(lambda: create(_bare_chunks(data)), count)

    return await asyncio.to_thread(measure)


def _bare_chunks(data: bytes) -> Iterator[m.CreateVersionRequestChunk]:
    info = m.ModelVersionInfo(model_id=_MODEL_ID, data_size=len(data))
    yield m.CreateVersionRequestChunk(header=m.CreateVersionRequestChunk.Header(version_info=info))
    for start in range(0, len(data), SDK_CHUNK_BYTES):
        body = m.CreateVersionRequestChunk.Body(data_chunk=data[start : start + SDK_CHUNK_BYTES])
        yield m.CreateVersionRequestChunk(body=body)


async def bare_retrieve_seconds(port: int, size_bytes: int, count: int) -> list[float]:
    """Retrieve the latest version with a bare client `count` times, and return the seconds of each."""

    def measure() -> list[float]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = channel.unary_stream(
                _METHOD + "RetrieveVersionData",
                request_serializer=m.RetrieveVersionDataRequest.SerializeToString,
                response_deserializer=m.RetrieveVersionDataReplyChunk.FromString,
            )

            def retrieve() -> None:
                replies = method(m.RetrieveVersionDataRequest(model_id=_MODEL_ID, version_number=-1))
                if len(b"".join(reply.data_chunk for reply in replies)) != size_bytes:
                    raise RuntimeError("a retrieval was cut short")

            return _times(retrieve, count)

    return await asyncio.to_thread(measure)


async def prepared_upload_seconds(port: int, size_bytes: int, count: int) -> list[float]:
    """Send messages that were encoded in advance `count` times, and return the seconds of each."""
    return await upload_seconds(port, Upload(_MODEL_ID, size_bytes), count)


async def dropped_retrieve_seconds(port: int, size_bytes: int, count: int) -> list[float]:
    """Retrieve the latest version and discard its bytes, `count` times, and return the seconds of each."""
    return await retrieve_seconds(port, Upload(_MODEL_ID, size_bytes), count)


_Side = tuple[str, _Timed]
"""A description, and the function that measures it."""


def _compared(bench: Bench, pair: Pair, ours: _Side, theirs: _Side, target: Target | None = None) -> Result:
    """Measure our client and another client, in turns, on a server without a registry."""
    count = bench.choose(4, 1)

    def measured(timed: _Timed) -> Callable[[], list[float]]:
        return lambda: bench.load(0).run(job(timed, pair.floor.port, _LARGE_BYTES, count))

    blocks = interleaved(bench.choose(5, 2), {"ours": measured(ours[1]), "theirs": measured(theirs[1])})
    rates = {side: converted(values, mib_per_second(_LARGE_BYTES)) for side, values in blocks.items()}
    return compared(
        f"library {ours[0]}",
        f"Python client: {ours[0]} 64 MiB",
        "MiB/s",
        rates["ours"],
        against=theirs[0],
        floor_blocks=rates["theirs"],
        target=target,
    )


def _library(bench: Bench) -> Sequence[Outcome]:
    """Compare our client with a bare one, and with prepared messages."""
    with bench.pair() as pair:
        # The floor's data is zeros: they have the hash that our client checks.
        bench.fit_floor(pair, Upload(_MODEL_ID, _LARGE_BYTES, is_zeros=True))
        against = functools.partial(_compared, bench, pair)
        publish, retrieve = ("publish", library_upload_seconds), ("retrieve", library_retrieve_seconds)
        return [
            against(publish, ("a bare client, and a sink", bare_upload_seconds), at_least(0.75)),
            against(retrieve, ("a bare client, and a source", bare_retrieve_seconds), at_least(0.75)),
            against(publish, ("messages encoded in advance, and a sink", prepared_upload_seconds)),
            against(retrieve, ("replies that are not joined, from a source", dropped_retrieve_seconds)),
        ]


def _stock(bench: Bench) -> Sequence[Outcome]:
    """Measure retrievals of our client and of the stock one, from the same server."""
    python = next(iter(sorted(ROOT.glob(_STOCK_ENVIRONMENTS))), None)
    if python is None:
        raise NotHereError("the stock client is not installed; `make test` installs it if there is a Python 3.10")
    count = bench.choose(3, 1)
    with bench.registry("--local_socket=off") as registry:
        bench.load(0).run(job(library_upload_seconds, registry.port, _LARGE_BYTES, 0))
        blocks = interleaved(
            bench.choose(3, 1),
            {
                "ours": lambda: bench.load(0).run(job(library_retrieve_seconds, registry.port, _LARGE_BYTES, count)),
                "theirs": lambda: _stock_retrieve_seconds(python, registry.port, count),
            },
        )
    rates = {side: converted(values, mib_per_second(_LARGE_BYTES)) for side, values in blocks.items()}
    return [
        compared(
            "library stock retrieve",
            "Python client: retrieve 64 MiB from the registry",
            "MiB/s",
            rates["ours"],
            against="the stock client, from the same registry",
            floor_blocks=rates["theirs"],
            target=at_least(5.0),
        )
    ]


def _stock_retrieve_seconds(python: Path, port: int, count: int) -> list[float]:
    result = subprocess.run(
        # As a module: in the directory of a script, its neighbours hide modules of Python.
        [python, "-m", "benchmarks.stock_client", f"127.0.0.1:{port}", _MODEL_ID, str(count)],
        capture_output=True,
        text=True,
        timeout=_STOCK_SECONDS,
        cwd=ROOT,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"the stock client failed: {result.stderr.strip().rpartition(chr(10))[2]}")
    seconds: list[float] = json.loads(result.stdout)
    return seconds


BENCHMARKS = [
    Benchmark("library", "the Python client with 64 MiB, compared with a bare one", _library),
    Benchmark("library-stock", "the Python client compared with the stock one, where that is installed", _stock),
]
