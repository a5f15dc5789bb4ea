"""Interrupted downloads: their speed, the bytes that are received again, and the memory of the client.

`python -m benchmarks.downloads ENDPOINT FILE CUT_BYTES` is the client: it downloads with `resume=True`, and kills
itself as soon as it has CUT_BYTES; for 0 it downloads without `resume`. It writes a line of JSON at the end.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Upload, prepare, upload_seconds
from benchmarks.load import job
from benchmarks.measures import GIB, MIB, Result, Spread, no_more_than
from benchmarks.processes import ROOT, ServerProcess
from cogment_model_registry import ModelRegistry, Progress

_MODEL_ID = "walker"
_AGAIN_MIB = 16
_OVER_REST_MIB = 64
_CLIENT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one process.

    Attributes:
        present_bytes: The bytes that existed when it began.
        done_bytes: The bytes that existed when it ended, received or written.
        seconds: The time of its download.
        over_rest_mib: Its peak memory minus that of a client that has made only a small call.
    """

    present_bytes: int
    done_bytes: int
    seconds: float
    over_rest_mib: float


def _download(endpoint: str, path: str, cut_bytes: int) -> None:
    """Run the client process."""
    present_bytes = done_bytes = 0
    with ModelRegistry(endpoint) as registry:
        registry.status()
        rest_mib = _peak_mib()
        started = time.perf_counter()

        def end() -> None:
            piece = Piece(present_bytes, done_bytes, time.perf_counter() - started, _peak_mib() - rest_mib)
            print(json.dumps(asdict(piece)), flush=True)

        def note(progress: Progress) -> None:
            nonlocal present_bytes, done_bytes
            present_bytes = progress.done_bytes if not done_bytes else present_bytes
            done_bytes = progress.done_bytes
            if 0 < cut_bytes <= done_bytes:
                end()
                os.kill(os.getpid(), signal.SIGKILL)

        registry.download(_MODEL_ID, path, resume=cut_bytes > 0, progress=note)
        end()


def _peak_mib() -> float:
    # Not from getrusage(2), which starts with the peak of the parent.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def _piece(registry: ServerProcess, path: Path, cut_bytes: int) -> Piece:
    """Let one process download until it has a number of bytes."""
    command = [sys.executable, "-m", "benchmarks.downloads", f"grpc://127.0.0.1:{registry.port}"]
    command += [str(path), str(cut_bytes)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_CLIENT_SECONDS, check=False, cwd=ROOT)
    if ended.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a download ended with {ended.returncode}")
    return Piece(**json.loads(ended.stdout))


def _cut(bench: Bench) -> Sequence[Outcome]:
    """Download one version without an interruption, and once in pieces, by processes that are killed."""
    size_bytes, cuts = bench.choose(4 * GIB, 256 * MIB), bench.choose(20, 4)
    bench.require_room(3 * size_bytes)
    size = "256 MiB" if bench.quick else "4 GiB"
    with bench.registry("--local_socket=off") as registry, bench.place() as place:
        bench.load(0).run(job(prepare, registry.port, [_MODEL_ID]))
        upload = Upload(_MODEL_ID, size_bytes, archived=True)
        bench.load(0).run(job(upload_seconds, registry.port, upload, 1, warm_up=False))
        whole = _piece(registry, place / "whole", 0)
        (place / "whole").unlink()
        # The last process is not killed: its limit is above the size of the version.
        ends = [size_bytes * number // (cuts + 1) for number in range(1, cuts + 1)]
        pieces = [_piece(registry, place / "cut", end) for end in [*ends, 2 * size_bytes]]
    again = [(before.done_bytes - after.present_bytes) / MIB for before, after in itertools.pairwise(pieces)]
    rate = size_bytes / MIB / sum(piece.seconds for piece in pieces)
    floor = size_bytes / MIB / whole.seconds
    what = f"download {size}, cut {cuts} times"
    note = bench.note("a smaller version than in a full run")
    return [
        Result(
            "download cut",
            f"Python client: {what}",
            "MiB/s",
            Spread.of([rate]),
            "the same in one go, without `resume`",
            Spread.of([floor]),
            Spread.of([rate / floor]),
            note=note,
        ),
        Result(
            "download cut again",
            f"received again per cut at most: {what}",
            "MiB",
            Spread.of([max(again)]),
            target=no_more_than(_AGAIN_MIB, "MiB"),
            note=note,
        ),
        Result(
            "download cut memory",
            f"peak memory above an idle client: {what}",
            "MiB",
            Spread.of([max(piece.over_rest_mib for piece in pieces)]),
            "in one go",
            Spread.of([whole.over_rest_mib]),
            Spread.of([max(piece.over_rest_mib for piece in pieces) / max(whole.over_rest_mib, 0.1)]),
            target=no_more_than(_OVER_REST_MIB, "MiB"),
            note=note,
        ),
    ]


BENCHMARKS = [Benchmark("download-cut", "a download of 4 GiB that is cut 20 times, and its memory", _cut)]

if __name__ == "__main__":
    _download(sys.argv[1], sys.argv[2], int(sys.argv[3]))
