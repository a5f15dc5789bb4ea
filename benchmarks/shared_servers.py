"""Servers that share a catalog in PostgreSQL: how they start, and what several of them gain on one machine."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome
from benchmarks.clients import Kind, Upload, call_seconds, prepare
from benchmarks.load import job, together
from benchmarks.measures import (
    KIB,
    MIB,
    Blocks,
    Result,
    compared,
    converted,
    interleaved,
    milliseconds,
    no_more_than,
    ratios,
    spread_of,
)
from benchmarks.processes import ServerProcess, running
from tests.postgres import PostgresServer, find_program, new_database, postgres_server

_SERVERS = 3
_CONNECTIONS = 6
"""Of each of as many clients as there are servers."""

_SMALL_BYTES = 10 * KIB
_VERSIONS = 1_000_000
_MODELS = 100
_START_SECONDS = 2.0
_START_MIB = 150

_FILL = """
INSERT INTO cogment_model_registry.models (life, model_id, mark, archived_versions)
SELECT model, 'model-' || model, {each}, {each} FROM generate_series(1, {models}) AS model;
INSERT INTO cogment_model_registry.versions (life, number, created, data_hash, data_size)
SELECT model, number, 0, md5(model || ':' || number), 1024
FROM generate_series(1, {models}) AS model, generate_series(1, {each}) AS number;
"""


@dataclass(frozen=True, slots=True)
class Place:
    """What servers share.

    Attributes:
        postgres: The database server.
        catalog_url: The address of the database.
        command: What starts a server.
    """

    postgres: PostgresServer
    catalog_url: str
    command: Sequence[str]

    def server(self) -> contextlib.AbstractContextManager[ServerProcess]:
        """Return a context manager with one more server."""
        return running(self.command, r"serving .*\bport=(\d+)")


@contextlib.contextmanager
def shared_place(bench: Bench, *flags: str) -> Iterator[Place]:
    """Return a context manager with what servers share, and no server.

    Args:
        bench: Has a directory for the archive.
        flags: More flags of each server.
    """
    if find_program("initdb") is None:
        raise NotHereError("no PostgreSQL")
    with ExitStack() as stack:
        place = stack.enter_context(bench.place())
        postgres = stack.enter_context(postgres_server(is_fast=False))
        catalog_url = stack.enter_context(new_database(postgres))
        command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
        command += ["--host=127.0.0.1", f"--archive_url=file://{place}", f"--catalog_url={catalog_url}"]
        command += [f"--cache_max_bytes={bench.budget_mib * MIB}", "--grace_seconds=0", *flags]
        yield Place(postgres, catalog_url, command)


def _start(bench: Bench) -> Sequence[Outcome]:
    """Start a server on a catalog with very many versions, and on one without any."""
    versions = 10_000 if bench.quick else _VERSIONS
    with shared_place(bench) as empty, shared_place(bench) as full:
        peaks: Blocks = []
        empty_peaks: Blocks = []
        for place in (empty, full):
            with place.server():
                pass  # makes the tables
        fill = _FILL.format(models=_MODELS, each=versions // _MODELS)
        full.postgres.execute(fill, full.catalog_url.rpartition("/")[2])
        sides = {
            "full": lambda: _start_once(full, peaks),
            "empty": lambda: _start_once(empty, empty_peaks),
        }
        blocks = interleaved(bench.choose(5, 2), sides)
    what = f"start with {versions:,} archived versions in PostgreSQL"
    against = "start with none"
    return [
        compared(
            "start on PostgreSQL",
            what,
            "ms",
            converted(blocks["full"], milliseconds),
            against=against,
            floor_blocks=converted(blocks["empty"], milliseconds),
            target=no_more_than(_START_SECONDS * 1000, "ms"),
        ),
        Result(
            "start on PostgreSQL, memory",
            f"peak memory after a {what}",
            "MiB",
            spread_of(peaks),
            against,
            spread_of(empty_peaks),
            ratios(peaks, empty_peaks),
            no_more_than(_START_MIB, "MiB"),
            blocks=peaks,
            floor_blocks=empty_peaks,
        ),
    ]


def _start_once(place: Place, peaks: Blocks) -> list[float]:
    """Start a server, and return the seconds that it took; record its peak memory."""
    with place.server() as server:
        peaks.append([server.peak_mib()])
        return [server.start_seconds]


async def call_costs(port: int, upload: Upload, connections: int, seconds: float, kind: Kind) -> tuple[int, float]:
    """Make calls as `call_seconds` does; return how many, and the processor time of this process."""
    began = time.process_time()
    calls = len(await call_seconds(port, upload, connections, seconds, kind))
    return calls, time.process_time() - began


def _postgres_seconds(postgres: PostgresServer) -> float:
    """Return the processor time of PostgreSQL and its processes."""
    main = psutil.Process(postgres.pid)
    seconds = 0.0
    for process in (main, *main.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _several(bench: Bench) -> Sequence[Outcome]:
    """Compare calls of the same clients to three servers, and to one of them."""
    outcomes = list[Outcome]()
    seconds = 0.3 if bench.quick else 1.5
    with shared_place(bench) as place, ExitStack() as stack:
        servers = [stack.enter_context(place.server()) for _ in range(_SERVERS)]
        uploads = [Upload(f"walker-{index}", _SMALL_BYTES) for index in range(_SERVERS)]
        bench.load(0).run(job(prepare, servers[0].port, [upload.model_id for upload in uploads]))
        for kind in (Kind.PUBLISH, Kind.INFOS, Kind.RETRIEVE):
            # The processor time of a call, in ms, of one block after the other.
            costs: dict[int, dict[str, Blocks]] = {
                count: {"servers": [], "PostgreSQL": [], "clients": []} for count in (1, _SERVERS)
            }

            def rate(count: int, kind: Kind = kind, costs: dict[int, dict[str, Blocks]] = costs) -> list[float]:
                for server in servers:
                    server.mark_processor()
                before = _postgres_seconds(place.postgres)
                jobs = [
                    (
                        bench.load(index),
                        job(call_costs, servers[index % count].port, upload, _CONNECTIONS, seconds, kind),
                    )
                    for index, upload in enumerate(uploads)
                ]
                made = together(jobs)
                calls = sum(each for each, _ in made)
                used = {
                    "servers": sum(each.marked_processor_seconds() for each in servers),
                    "PostgreSQL": _postgres_seconds(place.postgres) - before,
                    "clients": sum(each for _, each in made),
                }
                for part, used_seconds in used.items():
                    costs[count][part].append([milliseconds(used_seconds) / calls])
                return [calls / seconds]

            def rate_of_all() -> list[float]:
                return rate(_SERVERS)  # called before the next kind

            def rate_of_one() -> list[float]:
                return rate(1)

            blocks = interleaved(bench.choose(5, 2), {"several": rate_of_all, "one": rate_of_one})
            parts = ", ".join(f"{name} {spread_of(each).median:.2f}" for name, each in costs[_SERVERS].items())
            what = f"{kind.value}, 10 KiB, {_SERVERS} clients with {_CONNECTIONS} connections and a model each"
            outcomes += [
                compared(
                    f"{kind.value} on {_SERVERS} servers",
                    f"{what}, on {_SERVERS} servers",
                    "calls/s",
                    blocks["several"],
                    against="the same clients on one of them",
                    floor_blocks=blocks["one"],
                    note=f"processor time of a call, in ms: {parts}",
                ),
                compared(
                    f"{kind.value} on {_SERVERS} servers, processor time",
                    f"processor time of {kind.value}: servers, PostgreSQL and clients",
                    "ms",
                    _sums(costs[_SERVERS]),
                    against="the same clients on one of them",
                    floor_blocks=_sums(costs[1]),
                ),
            ]
    return outcomes


def _sums(costs: Mapping[str, Blocks]) -> Blocks:
    """Return the sums over all parts, of one block after the other."""
    return [[sum(value for [value] in blocks)] for blocks in zip(*costs.values(), strict=True)]


BENCHMARKS = [
    Benchmark("shared-start", "the start with very many versions in PostgreSQL, and its memory", _start),
    Benchmark("shared-servers", "small calls of the same clients to three servers and to one", _several),
]
