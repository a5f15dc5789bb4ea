"""Several servers that share a catalog: relays between them, and small calls next to those of a single server.

All servers, PostgreSQL and all clients run on the same machine, so figures of many servers show what they cost rather
than what they gain.
"""

import contextlib
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Kind, Upload, call_seconds, prepare, publish_moments
from benchmarks.following import follow_usage, followed_moments, tracked_moment
from benchmarks.load import job, together
from benchmarks.measures import KIB, MIB, Target, at_least, at_most, compared, converted, interleaved, milliseconds
from benchmarks.polling import idle_usage, polled
from benchmarks.processes import ServerProcess, free_port, registry, running
from benchmarks.shared_servers import shared_place

_MODEL_ID = "walker"
_SIZE_BYTES = MIB
_GAP_SECONDS = 0.1
_LARGE_BYTES = 64 * MIB
_LARGE_GAP_SECONDS = 4.0
"""Longer than a version takes to reach all followers."""

_SMALL_BYTES = 10 * KIB
_SMALL_GAP_SECONDS = 0.5
_IDLE_SECONDS = 5.0
_OTHERS = 4
_FOLLOWERS = 16
_SCRAPE_SECONDS = 30.0


@contextlib.contextmanager
def _servers(bench: Bench, count: int, *flags: str) -> Iterator[list[ServerProcess]]:
    """Return a context manager with servers that share a catalog, with one model."""
    with shared_place(bench, *flags) as place, ExitStack() as stack:
        servers = [stack.enter_context(place.server()) for _ in range(count)]
        bench.load(0).run(job(prepare, servers[0].port, [_MODEL_ID]))
        yield servers


def _followed(bench: Bench) -> Sequence[Outcome]:
    """Measure from the start of a publish on one server until a follower of either has the bytes."""
    upload = Upload(_MODEL_ID, _SIZE_BYTES)
    rounds = bench.choose(15, 3)
    with _servers(bench, 2) as (first, second):

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
                target=at_most(2.0),
                peak_mib=second.peak_mib(),
                note="two servers, PostgreSQL and all clients on the same machine",
            )
        ]


def _spread(bench: Bench) -> Sequence[Outcome]:
    """Publish 64 MiB on one server; measure when the followers of four others have it, and what the first one sends."""
    upload = Upload(_MODEL_ID, _LARGE_BYTES)
    rounds, port = bench.choose(5, 2), free_port()
    with _servers(bench, 1, f"--metrics_port={port}") as [first], ExitStack() as stack:
        others = [stack.enter_context(_another(first)) for _ in range(_OTHERS)]
        before_bytes = _sent_bytes(port)
        jobs = [(bench.load(0), job(publish_moments, first.port, upload, rounds, _LARGE_GAP_SECONDS))]
        for index, server in enumerate(others):
            following = job(followed_moments, server.port, upload, 1, _FOLLOWERS // _OTHERS, rounds)
            jobs.append((bench.load(1 + index), following))
        begun, *ended = together(jobs)
        sent_bytes = (_sent_bytes(port) - before_bytes) / rounds
        seconds = [[end - start for end in ends] for start, *ends in zip(begun, *ended, strict=True)]
        return [
            compared(
                "relayed to 16",
                "publish 64 MiB until all 16 followers on 4 other servers have it",
                "ms",
                converted([[max(each) for each in seconds]], milliseconds),
                against="until all followers of the first of these servers have it",
                floor_blocks=converted([[min(each) for each in seconds]], milliseconds),
                target=at_most(1.5),
                peak_mib=first.peak_mib(),
            ),
            compared(
                "relayed bytes",
                "bytes that the first server sends for it",
                "MiB",
                [[sent_bytes / MIB]],
                against="the size of the version",
                floor_blocks=[[_LARGE_BYTES / MIB]],
                target=at_most(4.1),
            ),
        ]


def _against_polling(bench: Bench) -> Sequence[Outcome]:
    """Compare a publish to 16 followers on 4 other servers with shardcast, whose relays and clients poll."""
    with polled(bench, _OTHERS, _FOLLOWERS) as shardcast, _servers(bench, 1) as [first], ExitStack() as stack:
        others = [stack.enter_context(_another(first)) for _ in range(_OTHERS)]

        # Neither side is measured while it uses memory and files for the first time.
        bench.fill_budget(first, Upload(_MODEL_ID, _LARGE_BYTES))
        shardcast.publish_seconds(_LARGE_BYTES)

        def publish_seconds(size_bytes: int) -> float:
            upload = Upload(_MODEL_ID, size_bytes)
            jobs = [(bench.load(0), job(publish_moments, first.port, upload, 1, _SMALL_GAP_SECONDS))]
            for index, server in enumerate(others, 1):
                following = job(followed_moments, server.port, upload, 1, _FOLLOWERS // _OTHERS, 1)
                jobs.append((bench.load(index), following))
            [begun], *ended = together(jobs)
            return max(end for [end] in ended) - begun

        def publish_near_seconds() -> float:
            upload = Upload(_MODEL_ID, _LARGE_BYTES)
            jobs = [(bench.load(0), job(publish_moments, first.port, upload, 1, _SMALL_GAP_SECONDS))]
            for index, server in enumerate(others, 1):
                jobs.append((bench.load(index), job(tracked_moment, server.port, upload, _FOLLOWERS // _OTHERS)))
            [begun], *ended = together(jobs)
            return max(end for [end] in ended) - begun

        def idle_processor_seconds() -> float:
            for server in (first, *others):
                server.mark_processor()
            upload = Upload(_MODEL_ID, _SMALL_BYTES)
            jobs = [(bench.load(0), job(idle_usage, _IDLE_SECONDS))]
            for index, server in enumerate(others, 1):
                following = job(follow_usage, server.port, upload, _FOLLOWERS // _OTHERS, _IDLE_SECONDS)
                jobs.append((bench.load(index), following))
            spent = sum(together(jobs)) + sum(server.marked_processor_seconds() for server in (first, *others))
            return spent / _IDLE_SECONDS

        def compare(
            name: str, what: str, ours: Callable[[], float], theirs: Callable[[], float], target: Target | None = None
        ) -> Outcome:
            blocks = interleaved(bench.choose(5, 1), {"ours": lambda: [ours()], "theirs": lambda: [theirs()]})
            return compared(
                name,
                what,
                "ms",
                converted(blocks["ours"], milliseconds),
                against="shardcast, polling every second",
                floor_blocks=converted(blocks["theirs"], milliseconds),
                target=target,
            )

        near = compare(
            "large near shardcast",
            "publish 64 MiB until 16 Python clients on the hosts of 4 other servers have it",
            publish_near_seconds,
            partial(shardcast.publish_seconds, _LARGE_BYTES),
            at_most(0.2),
        )
        return (
            [near]
            + [
                compare(
                    f"{name} shardcast",
                    f"publish {size} until all 16 followers on 4 other servers have it",
                    partial(publish_seconds, size_bytes),
                    partial(shardcast.publish_seconds, size_bytes),
                    at_most(0.2) if size_bytes == _LARGE_BYTES else None,
                )
                for name, size, size_bytes in (("large", "64 MiB", _LARGE_BYTES), ("small", "10 KiB", _SMALL_BYTES))
            ]
            + [
                compare(
                    "idle shardcast",
                    "processor time in a second without a publish, servers and followers",
                    idle_processor_seconds,
                    partial(shardcast.idle_processor_seconds, _IDLE_SECONDS),
                )
            ]
        )


@contextlib.contextmanager
def _another(server: ServerProcess) -> Iterator[ServerProcess]:
    """Return a context manager with one more server of the same catalog, without metrics."""
    command = [each for each in server.command if not each.startswith("--metrics_port")]
    with running(command, r"serving .*\bport=(\d+)") as another:
        yield another


def _sent_bytes(port: int) -> float:
    """Return the bytes of replies that a server has sent."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_SCRAPE_SECONDS) as reply:
        lines = reply.read().decode().splitlines()
    name = "cogment_model_registry_sent_bytes_total{"
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _small_calls(bench: Bench) -> Sequence[Outcome]:
    """Compare small calls of a server whose catalog is in PostgreSQL with those of a single server."""
    seconds = 0.3 if bench.quick else 1.2
    upload = Upload(_MODEL_ID, _SMALL_BYTES)
    outcomes = list[Outcome]()
    with _servers(bench, 1) as [shared], bench.place() as place, registry(place) as single:
        bench.load(0).run(job(prepare, single.port, [_MODEL_ID]))
        for kind, connections in ((Kind.PUBLISH, 8), (Kind.INFOS, 16), (Kind.RETRIEVE, 16)):

            def rate(port: int, kind: Kind = kind, connections: int = connections) -> list[float]:
                calling = job(call_seconds, port, upload, connections, seconds, kind)
                return [sum(map(len, together([(bench.load(0), calling)]))) / seconds]

            def shared_rate() -> list[float]:
                return rate(shared.port)  # called before the next kind

            def single_rate() -> list[float]:
                return rate(single.port)

            blocks = interleaved(bench.choose(7, 2), {"shared": shared_rate, "single": single_rate})
            outcomes.append(
                compared(
                    f"{kind.value} on PostgreSQL",
                    f"{kind.value}, 10 KiB, {connections} connections, catalog in PostgreSQL",
                    "calls/s",
                    blocks["shared"],
                    against="the same on a single server",
                    floor_blocks=blocks["single"],
                    target=at_least(0.5),
                    peak_mib=shared.peak_mib(),
                )
            )
    return outcomes


BENCHMARKS = [
    Benchmark("relays", "from a publish until a follower on another server has the version", _followed),
    Benchmark("spread", "64 MiB to 16 followers on 4 other servers", _spread),
    Benchmark("shardcast", "the same, next to shardcast, whose relays and clients poll", _against_polling),
    Benchmark("shared-calls", "small calls with a catalog in PostgreSQL, next to a single server", _small_calls),
]
