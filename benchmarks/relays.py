"""The time until a follower on another server of a catalog has a version, next to one on the server it came to."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome
from benchmarks.clients import Upload, prepare, publish_moments
from benchmarks.following import followed_moments
from benchmarks.load import job, together
from benchmarks.measures import MIB, compared, converted, interleaved, milliseconds
from benchmarks.processes import ServerProcess, running
from tests.postgres import find_program, new_database, postgres_server

_MODEL_ID = "walker"
_SIZE_BYTES = MIB
_GAP_SECONDS = 0.1


@contextlib.contextmanager
def _servers(bench: Bench) -> Iterator[list[ServerProcess]]:
    """Return a context manager with two servers that share a catalog, with one model."""
    if find_program("initdb") is None:
        raise NotHereError("no PostgreSQL")
    with ExitStack() as stack:
        place = stack.enter_context(bench.place())
        catalog_url = stack.enter_context(new_database(stack.enter_context(postgres_server(is_fast=False))))
        command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
        command += ["--host=127.0.0.1", f"--archive_url=file://{place}", f"--catalog_url={catalog_url}"]
        command += [f"--cache_max_bytes={bench.budget_mib * MIB}", "--grace_seconds=0"]
        servers = [stack.enter_context(running(command, r"serving .*\bport=(\d+)")) for _ in range(2)]
        bench.load(0).run(job(prepare, servers[0].port, [_MODEL_ID]))
        yield servers


def _followed(bench: Bench) -> Sequence[Outcome]:
    """Measure from the start of a publish on one server until a follower of either has the bytes."""
    upload = Upload(_MODEL_ID, _SIZE_BYTES)
    rounds = bench.choose(15, 3)
    with _servers(bench) as (first, second):

        def seconds(server: ServerProcess) -> list[float]:
            publishing = job(publish_moments, first.port, upload, rounds, _GAP_SECONDS)
            following = job(followed_moments, server.port, upload, 1, 1, rounds)
            begun, ended = together([(bench.load(0), publishing), (bench.load(1), following)])
            return [end - start for start, end in zip(begun, ended, strict=True)]

        blocks = interleaved(bench.choose(5, 2), {"other": lambda: seconds(second), "same": lambda: seconds(first)})
        return [
            compared(
                "publish to relayed",
                "publish 1 MiB until a follower on another server has its verified bytes",
                "ms",
                converted(blocks["other"], milliseconds),
                against="the same on the server of the publish",
                floor_blocks=converted(blocks["same"], milliseconds),
                peak_mib=second.peak_mib(),
                note="two servers, PostgreSQL and all clients on the same machine",
            )
        ]


BENCHMARKS = [Benchmark("relays", "from a publish until a follower on another server has the version", _followed)]
