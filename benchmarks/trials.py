"""Trials: servers without a registry that differ in one thing, each compared with the plain one.

They show the cost of a part of the work, and the gain of another way to serve before it is built. They are measured
only if named with `--only`. `python -m benchmarks.trials` runs one such server and prints its port.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import uvloop

from benchmarks import processes
from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Kind, Upload, call_seconds, upload_seconds
from benchmarks.load import job, together
from benchmarks.measures import KIB, MIB, Blocks, compared, converted, interleaved, mib_per_second
from cogment_model_registry.system.machine import tune_heap
from cogment_model_registry.wire import messages

MODEL_ID = "walker"
_LARGE_BYTES = 64 * MIB
_SMALL_BYTES = 10 * KIB
_REPLY = bytes(90)  # about as large as the reply of the registry
_SLAB_BYTES = MIB
_SLABS = 256
_THREADS = 16
_LOADS = 2
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]

_Context = Any

_PUBLISHES = {
    "plain sink": (),
    "heap keeps freed memory": ("--keep-heap",),
    "heap keeps freed memory, copy into slabs": ("--keep-heap", "--copy"),
    "heap keeps freed memory, hash on a thread": ("--keep-heap", "--hash"),
    "all three": ("--keep-heap", "--copy", "--hash"),
    "all three, without bdp_probe": ("--keep-heap", "--copy", "--hash", "--option=grpc.http2.bdp_probe=0"),
    "all three, in frames of 1 MiB": ("--keep-heap", "--copy", "--hash", "--option=grpc.http2.max_frame_size=1048576"),
}
"""The variants of a sink of 64 MiB. The last but one works as the registry does."""

_CALLS = {"asyncio": (), "asyncio on uvloop": ("--loop=uvloop",), "threads": ("--loop=threads",)}
"""The servers of small calls."""


class Work:
    """Processes the bytes of one upload in a sink, as the transient store does."""

    def __init__(
        self, slabs: Iterator[memoryview], executor: ThreadPoolExecutor, *, copies: bool, hashes: bool
    ) -> None:
        self._slabs = slabs
        self._executor = executor
        self._copies = copies
        self._hashes = hashes
        self._sha256 = hashlib.sha256()
        self._space = self._slab = memoryview(b"")
        self._ready: list[memoryview] = []
        self._hashing: Future[None] | None = None

    def take(self, data: memoryview) -> None:
        """Process the next bytes."""
        if self._copies:
            self._copy(data)
        else:
            self._ready.append(data)
        if self._hashes and self._ready and (self._hashing is None or self._hashing.done()):
            ready, self._ready = self._ready, []
            self._hashing = self._executor.submit(self._hash, ready)

    def _copy(self, data: memoryview) -> None:
        while data:
            if not self._space:
                self._space = self._slab = next(self._slabs)
            size_bytes = min(len(data), len(self._space))
            self._space[:size_bytes] = data[:size_bytes]
            self._space, data = self._space[size_bytes:], data[size_bytes:]
            if not self._space:
                self._ready.append(self._slab)

    def _hash(self, parts: Sequence[memoryview]) -> None:
        for part in parts:
            self._sha256.update(part)

    async def finish(self) -> None:
        """Wait until everything is done."""
        if self._hashing is not None:
            await asyncio.wrap_future(self._hashing)
            await asyncio.wrap_future(self._executor.submit(self._hash, self._ready))


def _endless_slabs() -> Iterator[memoryview]:
    slabs = [memoryview(mmap.mmap(-1, _SLAB_BYTES)) for _ in range(_SLABS)]
    for slab in slabs:
        slab[:] = bytes(_SLAB_BYTES)  # already used, as after some publishes
    while True:
        yield from slabs


def _handlers(sink: Callable[..., Any], answer: Callable[..., Any]) -> list[grpc.GenericRpcHandler]:
    methods: dict[str, Any] = {
        "CreateVersion": grpc.stream_unary_rpc_method_handler(sink),
        "RetrieveVersionInfos": grpc.unary_unary_rpc_method_handler(answer),
    }
    return [grpc.method_handlers_generic_handler(messages.SERVICE_NAMES[0], methods)]


async def _serve_on_loop(arguments: argparse.Namespace, options: list[tuple[str, int]]) -> None:
    slabs = _endless_slabs() if arguments.copy else iter([])
    executor = ThreadPoolExecutor(2)

    async def sink(_messages: object, context: _Context) -> bytes:
        work = Work(slabs, executor, copies=arguments.copy, hashes=arguments.hash)
        while (message := await context.read()) is not grpc.aio.EOF:
            if arguments.copy or arguments.hash:
                work.take(memoryview(message))
        await work.finish()
        return _REPLY

    async def answer(_data: bytes, _context: _Context) -> bytes:
        return _REPLY

    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(_handlers(sink, answer))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving port={port}", flush=True)
    await asyncio.Event().wait()


def _serve_on_threads(options: list[tuple[str, int]]) -> None:
    def sink(received: Iterator[bytes], _context: _Context) -> bytes:
        for _ in received:
            pass
        return _REPLY

    def answer(_data: bytes, _context: _Context) -> bytes:
        return _REPLY

    server = grpc.server(ThreadPoolExecutor(_THREADS), options=options)
    server.add_generic_rpc_handlers(_handlers(sink, answer))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving port={port}", flush=True)
    server.wait_for_termination()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "threads"], default="asyncio")
    parser.add_argument("--copy", action="store_true")
    parser.add_argument("--hash", action="store_true")
    parser.add_argument("--keep-heap", action="store_true")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=NUMBER")
    arguments = parser.parse_args()
    if arguments.keep_heap:
        tune_heap()
    pairs = [option.split("=", 1) for option in arguments.option]
    options = _UNLIMITED + [(name, int(number)) for name, number in pairs]
    if arguments.loop == "threads":
        _serve_on_threads(options)
        return
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve_on_loop(arguments, options))


def _measured(
    variants: dict[str, tuple[str, ...]], repetitions: int, measure: Callable[[int], list[float]]
) -> dict[str, Blocks]:
    """Measure servers in turns, each with its arguments."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, arguments in variants.items():
            command = [sys.executable, "-m", "benchmarks.trials", *arguments]
            ports[name] = stack.enter_context(processes.running(command, r"serving port=(\d+)")).port
        return interleaved(repetitions, {name: functools.partial(measure, port) for name, port in ports.items()})


def _publish_stages(bench: Bench) -> Sequence[Outcome]:
    upload = Upload(MODEL_ID, _LARGE_BYTES)
    count = bench.choose(4, 2)
    blocks = _measured(
        _PUBLISHES,
        bench.choose(9, 3),
        lambda port: bench.load(0).run(job(upload_seconds, port, upload, count)),
    )
    rates = {name: converted(values, mib_per_second(_LARGE_BYTES)) for name, values in blocks.items()}
    plain, *others = _PUBLISHES
    return [
        compared(
            f"sink {index}",
            f"sink of 64 MiB: {name}",
            "MiB/s",
            rates[name],
            against=plain,
            floor_blocks=rates[plain],
        )
        for index, name in enumerate(others, 1)
    ]


def _loops(bench: Bench) -> Sequence[Outcome]:
    upload = Upload(MODEL_ID, _SMALL_BYTES)
    seconds = 0.6 if bench.quick else 1.2
    plain, *others = _CALLS
    results = []
    for kind, what, connections in ((Kind.PUBLISH, "sink of 10 KiB", 8), (Kind.INFOS, "unary call", 16)):

        def measure(port: int, kind: Kind = kind, connections: int = connections) -> list[float]:
            todo = job(call_seconds, port, upload, connections // _LOADS, seconds, kind)
            return [sum(map(len, together([(bench.load(index), todo) for index in range(_LOADS)]))) / seconds]

        blocks = _measured(_CALLS, bench.choose(9, 3), measure)
        results += [
            compared(
                f"{what}, {name}",
                f"{what}, {connections} connections: {name}",
                "calls/s",
                blocks[name],
                against=plain,
                floor_blocks=blocks[plain],
            )
            for name in others
        ]
    return results


TRIALS = [
    Benchmark("trial-publish", "what copying, hashing and options do to a sink (only when named)", _publish_stages),
    Benchmark("trial-loops", "what small calls cost on asyncio, uvloop and threads (only when named)", _loops),
]

if __name__ == "__main__":
    main()
