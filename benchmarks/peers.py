"""Alternatives, measured in the same way and in turns: plain files, Redis, MLflow.

They make other guarantees. Redis keeps its data in memory and assigns no numbers; here it saves nothing either. A file
has no versions and notifies nobody. MLflow keeps versions and their artifacts, and was not designed for many versions a
minute. Alternatives that are not installed are skipped and reported.
"""

import asyncio
import functools
import importlib
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import floors, processes
from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome
from benchmarks.clients import SDK_CHUNK_BYTES, Kind, Upload, call_seconds, retrieve_seconds, upload_seconds
from benchmarks.load import job, meet, together
from benchmarks.measures import KIB, MIB, Blocks, Result, compared, converted, interleaved, mib_per_second

_LARGE_BYTES = 64 * MIB
_SMALL_BYTES = 10 * KIB
_CONNECTIONS = 8
_REPETITIONS = 3
_COUNT = 3
_SECONDS = 1.0
_LOADS = 2
_KEY = "walker"
_HTTP_SECONDS = 120


_Side = tuple[str, Callable[[], list[float]]]
"""A description, and the function that measures it: seconds for 64 MiB."""


def _rates(bench: Bench, name: str, ours: _Side, theirs: _Side) -> Result:
    """Compare the throughput of the registry with that of a peer, for 64 MiB."""
    blocks = interleaved(_REPETITIONS, {"ours": ours[1], "theirs": theirs[1]})
    rates = {side: converted(values, mib_per_second(_LARGE_BYTES)) for side, values in blocks.items()}
    return compared(name, ours[0], "MiB/s", rates["ours"], against=theirs[0], floor_blocks=rates["theirs"])


def _files(bench: Bench) -> Sequence[Outcome]:
    load = bench.load(0)
    transient, archived = Upload(_KEY, _LARGE_BYTES), Upload(_KEY, _LARGE_BYTES, archived=True)
    with bench.pair() as pair, bench.place() as place:
        port, directory = pair.registry.port, str(place)
        bench.fill_budget(pair.registry, transient)

        def writes(*, sync: bool) -> Callable[[], list[float]]:
            writing = job(floors.write_seconds, directory, _LARGE_BYTES, SDK_CHUNK_BYTES, _COUNT, sync=sync)
            return lambda: load.run(writing)

        def uploads(upload: Upload) -> Callable[[], list[float]]:
            return lambda: load.run(job(upload_seconds, port, upload, _COUNT))

        def retrievals() -> list[float]:
            return load.run(job(retrieve_seconds, port, archived, _COUNT))

        def reads() -> list[float]:
            return load.run(job(floors.read_seconds, directory, _LARGE_BYTES, SDK_CHUNK_BYTES, _COUNT))

        return [
            _rates(
                bench,
                "file write",
                ("publish 64 MiB, transient", uploads(transient)),
                ("file: write + rename", writes(sync=False)),
            ),
            _rates(
                bench,
                "file sync",
                ("store 64 MiB, archived", uploads(archived)),
                ("file: write + fsync + rename", writes(sync=True)),
            ),
            _rates(bench, "file read", ("retrieve 64 MiB, archived", retrievals), ("file: read", reads)),
        ]


# Redis.


def _redis() -> Any:
    """Return redis-py."""
    try:
        return importlib.import_module("redis")
    except ImportError:
        raise NotHereError("redis-py is not installed; see requirements/bench.txt") from None


def _redis_benchmark(bench: Bench) -> Sequence[Outcome]:
    _redis()
    program = shutil.which("redis-server")
    if program is None:
        raise NotHereError("redis-server is not installed")
    large, small = Upload(_KEY, _LARGE_BYTES), Upload(_KEY, _SMALL_BYTES)
    load = bench.load(0)
    with bench.pair() as pair, bench.place() as place:
        command = [program, "--port", str(processes.free_port()), "--bind", "127.0.0.1", "--dir", str(place)]
        command += ["--save", "", "--appendonly", "no"]
        with processes.running(command, r"[Rr]unning mode=standalone, port=(\d+)") as redis:
            ours, theirs = pair.registry.port, redis.port
            bench.fill_budget(pair.registry, large)
            results = [
                _rates(
                    bench,
                    "redis set",
                    ("publish 64 MiB, transient", lambda: load.run(job(upload_seconds, ours, large, _COUNT))),
                    ("Redis SET", lambda: load.run(job(redis_seconds, theirs, _LARGE_BYTES, _COUNT, write=True))),
                ),
                _rates(
                    bench,
                    "redis get",
                    ("retrieve 64 MiB, transient", lambda: load.run(job(retrieve_seconds, ours, large, _COUNT))),
                    ("Redis GET", lambda: load.run(job(redis_seconds, theirs, _LARGE_BYTES, _COUNT, write=False))),
                ),
            ]
            for kind, verb in ((Kind.PUBLISH, "SET"), (Kind.RETRIEVE, "GET")):
                blocks = interleaved(
                    _REPETITIONS,
                    {
                        "ours": functools.partial(_calls, bench, ours, small, _SECONDS, kind),
                        "theirs": functools.partial(_redis_calls, bench, theirs, _SECONDS, kind),
                    },
                )
                results.append(_small_calls(kind, verb, blocks))
            return results


def _small_calls(kind: Kind, verb: str, blocks: dict[str, Blocks]) -> Result:
    what = f"{kind.value.split()[0]} 10 KiB, {_CONNECTIONS} connections"
    return compared(
        f"redis {verb.lower()} calls",
        what,
        "calls/s",
        blocks["ours"],
        against=f"Redis {verb}",
        floor_blocks=blocks["theirs"],
    )


def _calls(bench: Bench, port: int, upload: Upload, seconds: float, kind: Kind) -> list[float]:
    todo = job(call_seconds, port, upload, _CONNECTIONS // _LOADS, seconds, kind)
    return [sum(map(len, together([(bench.load(index), todo) for index in range(_LOADS)]))) / seconds]


def _redis_calls(bench: Bench, port: int, seconds: float, kind: Kind) -> list[float]:
    todo = job(redis_call_seconds, port, _CONNECTIONS // _LOADS, seconds, write=kind is Kind.PUBLISH)
    return [sum(map(len, together([(bench.load(index), todo) for index in range(_LOADS)]))) / seconds]


async def redis_seconds(port: int, size_bytes: int, count: int, *, write: bool) -> list[float]:
    """Set or get a value `count` times, after one call that is not measured; return the seconds of each."""
    client = _redis().Redis(port=port)
    value = os.urandom(size_bytes) if write else b""
    seconds = []
    for index in range(count + 1):
        started = time.perf_counter()
        if write:
            client.set(_KEY, value)
        elif len(client.get(_KEY)) != size_bytes:
            raise RuntimeError("a wrong value was received")
        if index:
            seconds.append(time.perf_counter() - started)
    client.close()
    return seconds


async def redis_call_seconds(port: int, connections: int, seconds: float, *, write: bool) -> list[float]:
    """Set or get values of 10 KiB, one after the other on each of some connections; return the seconds of each."""
    redis = importlib.import_module("redis.asyncio")
    clients = [redis.Redis(port=port, single_connection_client=True) for _ in range(connections)]
    value = os.urandom(_SMALL_BYTES)
    latencies: list[float] = []

    async def calls(client: Any, deadline: float) -> None:
        while (started := time.perf_counter()) < deadline:
            await (client.set("small", value) if write else client.get("small"))
            latencies.append(time.perf_counter() - started)

    for client in clients:
        await client.set("small", value)
    await meet()
    deadline = time.perf_counter() + seconds
    await asyncio.gather(*(calls(client, deadline) for client in clients))
    for client in clients:
        await client.aclose()
    return latencies


# MLflow.


def _mlflow_benchmark(bench: Bench) -> Sequence[Outcome]:
    program = bench.mlflow or shutil.which("mlflow")
    if not program:
        raise NotHereError("mlflow is not installed; name it with --mlflow")
    load = bench.load(0)
    upload = Upload(_KEY, _LARGE_BYTES, archived=True)
    with bench.pair() as pair, bench.place() as place:
        command = [program, "server", "--host=127.0.0.1", f"--port={processes.free_port()}", "--workers=1"]
        command += ["--serve-artifacts", f"--artifacts-destination={place / 'artifacts'}"]
        command += [f"--backend-store-uri=sqlite:///{place / 'mlflow.db'}"]
        home = {"HOME": str(place), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        with processes.running(command, r"running on http://127\.0\.0\.1:(\d+)", home) as mlflow:
            ours, theirs = pair.registry.port, mlflow.port
            run = load.run(job(mlflow_prepare, theirs))
            return [
                _rates(
                    bench,
                    "mlflow store",
                    ("store 64 MiB, archived", lambda: load.run(job(upload_seconds, ours, upload, 1))),
                    ("MLflow: artifact + version", lambda: load.run(job(mlflow_store_seconds, theirs, run, 1))),
                ),
                _rates(
                    bench,
                    "mlflow retrieve",
                    ("retrieve 64 MiB, archived", lambda: load.run(job(retrieve_seconds, ours, upload, 1))),
                    ("MLflow: artifact", lambda: load.run(job(mlflow_retrieve_seconds, theirs, run, 1))),
                ),
            ]


def _open(port: int, method: str, path: str, body: bytes | None, content_type: str) -> Any:
    """Make an HTTP call, and return the reply."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/{path}", body, method=method)
    request.add_header("Content-Type", content_type)
    try:
        return urllib.request.urlopen(request, timeout=_HTTP_SECONDS)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{method} {path}: {error.code} {error.read(200)!r}") from None


def _post(port: int, path: str, **fields: str) -> Any:
    """Call MLflow with JSON, and return its reply."""
    with _open(port, "POST", f"mlflow/{path}", json.dumps(fields).encode(), "application/json") as reply:
        return json.loads(reply.read())


@dataclass(frozen=True, slots=True)
class MlflowRun:
    """The run that MLflow requires for the versions of a model.

    Attributes:
        run_id: Its id.
        artifact_uri: The address of its artifacts in MLflow.
    """

    run_id: str
    artifact_uri: str

    @property
    def path(self) -> str:
        """The path of its one artifact."""
        return f"mlflow-artifacts/artifacts/{self.artifact_uri.removeprefix('mlflow-artifacts:/')}/weights"


async def mlflow_prepare(port: int) -> MlflowRun:
    """Create a registered model and a run."""
    _post(port, "registered-models/create", name=_KEY)
    info = _post(port, "runs/create", experiment_id="0")["run"]["info"]
    return MlflowRun(info["run_id"], info["artifact_uri"])


async def mlflow_store_seconds(port: int, run: MlflowRun, count: int) -> list[float]:
    """Upload an artifact and register it as a version, `count` times after one that is not measured."""
    data = os.urandom(_LARGE_BYTES)
    seconds = []
    for index in range(count + 1):
        started = time.perf_counter()
        _open(port, "PUT", run.path, data, "application/octet-stream").close()
        _post(port, "model-versions/create", name=_KEY, source=run.artifact_uri, run_id=run.run_id)
        if index:
            seconds.append(time.perf_counter() - started)
    return seconds


async def mlflow_retrieve_seconds(port: int, run: MlflowRun, count: int) -> list[float]:
    """Download the artifact `count` times, after one that is not measured."""
    seconds = []
    for index in range(count + 1):
        started = time.perf_counter()
        received_bytes = 0
        with _open(port, "GET", run.path, None, "application/octet-stream") as reply:
            while block := reply.read(SDK_CHUNK_BYTES):
                received_bytes += len(block)
        if received_bytes != _LARGE_BYTES:
            raise RuntimeError("a wrong artifact was received")
        if index:
            seconds.append(time.perf_counter() - started)
    return seconds


BENCHMARKS = [
    Benchmark("files", "plain files, with and without a sync, compared with the registry", _files),
    Benchmark("redis", "Redis, SET and GET, compared with the registry", _redis_benchmark),
    Benchmark("mlflow", "MLflow's registry and artifacts, compared with the registry", _mlflow_benchmark),
]
