"""Throughput over TLS, compared with a gRPC server over TLS without a registry."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome, Pair
from benchmarks.clients import SecurePort, Upload, prepare, retrieve_seconds, shape_like, upload_seconds
from benchmarks.load import Job, job
from benchmarks.measures import MIB, at_least, compared, converted, interleaved, mib_per_second

_UPLOAD = Upload("walker", 64 * MIB)


@dataclass(frozen=True, slots=True)
class _Secured:
    """The registry and its floor over TLS.

    Attributes:
        pair: Their processes.
        registry: The port of the registry.
        floor: The port of the floor.
    """

    pair: Pair
    registry: SecurePort
    floor: SecurePort


def create_certificate(directory: Path) -> tuple[str, str]:
    """Create a self-signed certificate, and return its file and that of its key."""
    if shutil.which("openssl") is None:
        raise NotHereError("openssl is not installed")
    certificate, key = str(directory / "tls.pem"), str(directory / "tls.key")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", certificate)
    named = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    subprocess.run(["openssl", "req", "-x509", *new, *named], check=True, capture_output=True)
    return certificate, key


@contextmanager
def _secured(bench: Bench) -> Iterator[_Secured]:
    """Return a context manager for a registry with a version, and a floor with the same replies, both over TLS."""
    with bench.place() as place:
        certificate, key = create_certificate(place)
        with (
            bench.registry(f"--tls_certificate={certificate}", f"--tls_key={key}") as registry,
            processes.floor(certificate, key) as floor,
        ):
            ports = SecurePort(registry.port, certificate), SecurePort(floor.port, certificate)
            for port in ports:
                bench.load(0).run(job(prepare, port, [_UPLOAD.model_id]))
            bench.load(0).run(job(shape_like, *ports, _UPLOAD))
            yield _Secured(Pair(registry, floor), *ports)


def _measure(bench: Bench, timed: Callable[[SecurePort, int], Job[list[float]]], *, verb: str) -> Sequence[Outcome]:
    """Measure calls, and the same to the floor, in turns."""
    repetitions, count = bench.choose(9, 2), bench.choose(4, 1)
    floor_name = {"publish": "sink", "retrieve": "source"}[verb]
    with _secured(bench) as secured:
        if verb == "publish":  # memory is then recycled, as in normal use
            full = bench.budget_mib * MIB // _UPLOAD.size_bytes + 1
            bench.load(0).run(timed(secured.registry, full))
        secured.pair.mark()
        blocks = interleaved(
            repetitions,
            {
                "registry": lambda: bench.load(0).run(timed(secured.registry, count)),
                "floor": lambda: bench.load(0).run(timed(secured.floor, count)),
            },
        )
        rate = mib_per_second(_UPLOAD.size_bytes)
        result = compared(
            f"{verb} over TLS",
            f"{verb} 64 MiB, transient, over TLS",
            "MiB/s",
            converted(blocks["registry"], rate),
            against=f"{floor_name} over TLS",
            floor_blocks=converted(blocks["floor"], rate),
            target=at_least(0.90),
            peak_mib=secured.pair.registry.peak_mib(),
            processor_ratio=secured.pair.processor_ratio(),
            note="one connection",
        )
        return [result]


def _publish(bench: Bench) -> Sequence[Outcome]:
    return _measure(bench, lambda port, count: job(upload_seconds, port, _UPLOAD, count), verb="publish")


def _retrieve(bench: Bench) -> Sequence[Outcome]:
    return _measure(bench, lambda port, count: job(retrieve_seconds, port, _UPLOAD, count), verb="retrieve")


BENCHMARKS = [
    Benchmark("publish-tls", "publish of 64 MiB over TLS, compared with a sink over TLS", _publish),
    Benchmark("retrieve-tls", "retrieval of 64 MiB over TLS, compared with a source over TLS", _retrieve),
]
