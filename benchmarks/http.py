"""Downloads over HTTP, compared with gRPC in the same run, and what they cost gRPC.

The client of HTTP reads what comes into a buffer, as curl does; that of gRPC is the Python client over the network.
"""

import asyncio
import http.client
import ssl
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.encryption import create_certificate
from benchmarks.load import job
from benchmarks.measures import MIB, at_least, compared, converted, interleaved, mib_per_second
from benchmarks.same_host import copy_seconds, publish

_LARGE_BYTES = 64 * MIB
_BLOCK_BYTES = MIB
_RATIO = 0.8
_PATH = "/models/walker/versions/latest/data"


async def download_seconds(port: int, size_bytes: int, count: int, authority: str = "") -> list[float]:
    """Download the latest version over HTTP `count` times, after once that is not measured; return the seconds.

    With the file of an authority, it is over TLS, and the seconds include the handshake.
    """
    context = ssl.create_default_context(cafile=authority) if authority else None

    def download() -> None:
        buffer = memoryview(bytearray(size_bytes))
        connection = (
            http.client.HTTPSConnection("127.0.0.1", port, context=context)
            if context
            else http.client.HTTPConnection("127.0.0.1", port)
        )
        try:
            connection.request("GET", _PATH)
            response = connection.getresponse()
            position = 0
            while taken := response.readinto(buffer[position : position + _BLOCK_BYTES]):
                position += taken
        finally:
            connection.close()
        if position != size_bytes:
            raise RuntimeError(f"{position} bytes were received in place of {size_bytes}")

    def measure() -> list[float]:
        download()
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            download()
            seconds.append(time.perf_counter() - started)
        return seconds

    return await asyncio.to_thread(measure)


def _download(bench: Bench) -> Sequence[Outcome]:
    """Measure downloads of a version of either tier, from descriptors of the server, and without them."""
    repetitions, count = bench.choose(5, 2), bench.choose(3, 1)
    results: list[Outcome] = []
    for kind, archived, flag, target in (
        ("transient", False, "auto", at_least(_RATIO)),
        ("archived", True, "auto", at_least(_RATIO)),
        ("received", False, "off", None),
    ):
        with (
            bench.registry("--http_port=0", f"--local_socket={flag}") as registry,
            bench.registry("--local_socket=off") as remote,
        ):
            for each in (registry, remote):
                bench.load(0).run(job(publish, each.port, _LARGE_BYTES, archived=archived))
            http_port, port = registry.logged_number("http_port"), remote.port
            over_http = partial(bench.load(0).run, job(download_seconds, http_port, _LARGE_BYTES, count))
            over_grpc = partial(bench.load(0).run, job(copy_seconds, port, count))
            blocks = interleaved(repetitions, {"http": over_http, "grpc": over_grpc})
        rates = {name: converted(values, mib_per_second(_LARGE_BYTES)) for name, values in blocks.items()}
        what = "without the local socket" if flag == "off" else kind
        results.append(
            compared(
                f"http download {kind}",
                f"HTTP: download 64 MiB, {what}",
                "MiB/s",
                rates["http"],
                against="a retrieval over gRPC",
                floor_blocks=rates["grpc"],
                target=target,
            )
        )
    return results


def _download_over_tls(bench: Bench) -> Sequence[Outcome]:
    """Measure downloads over HTTPS, compared with retrievals over gRPC with TLS."""
    repetitions, count = bench.choose(5, 2), bench.choose(3, 1)
    with bench.place() as place:
        authority, key = create_certificate(place)
        tls = f"--tls_certificate={authority}", f"--tls_key={key}"
        with bench.registry("--http_port=0", *tls) as registry, bench.registry("--local_socket=off", *tls) as remote:
            for each in (registry, remote):
                bench.load(0).run(job(publish, each.port, _LARGE_BYTES, authority=authority))
            http_port, port = registry.logged_number("http_port"), remote.port
            over_http = partial(
                bench.load(0).run, job(download_seconds, http_port, _LARGE_BYTES, count, authority=authority)
            )
            over_grpc = partial(bench.load(0).run, job(copy_seconds, port, count, authority=authority))
            blocks = interleaved(repetitions, {"http": over_http, "grpc": over_grpc})
    rates = {name: converted(values, mib_per_second(_LARGE_BYTES)) for name, values in blocks.items()}
    return [
        compared(
            "https download",
            "HTTPS: download 64 MiB, transient",
            "MiB/s",
            rates["http"],
            against="a retrieval over gRPC with TLS",
            floor_blocks=rates["grpc"],
            target=at_least(_RATIO),
        )
    ]


BENCHMARKS = [
    Benchmark("http", "download of 64 MiB over HTTP, compared with gRPC", _download),
    Benchmark("https", "download of 64 MiB over HTTPS, compared with gRPC over TLS", _download_over_tls),
]
