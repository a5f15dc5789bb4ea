"""Small calls from h2load of nghttp2, a load generator in C that leaves more of the machine to servers.

It repeats one prepared request over some connections. A gRPC call is a POST whose body has its messages, each after
five bytes: a zero, and the length. h2load does not read the status of a gRPC call; so one call is made before, and the
received bytes are counted.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench import Bench, Benchmark, NotHereError, Outcome, Pair
from benchmarks.clients import Kind, Upload, call_seconds, latest_number, upload_seconds
from benchmarks.load import job
from benchmarks.measures import KIB, Blocks, compared, interleaved
from benchmarks.processes import ServerProcess
from cogment_model_registry.wire import messages as m

MODEL_ID = "walker"
_UPLOAD = Upload(MODEL_ID, 10 * KIB)
_CONNECTIONS = 8
_SECONDS_MAX = 120
_WARM_UP_VERSIONS = 200
"""Enough for each further publish to evict a version, as in normal use."""

_FOUND = re.compile(r"finished in .*?, (?P<rate>[\d.]+) req/s")
_SUCCEEDED = re.compile(r"requests: .* (?P<succeeded>\d+) succeeded")
_DATA = re.compile(r"traffic: .* \((?P<bytes>\d+)\) data")


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is repeated.

    Attributes:
        kind: Which call it is.
        name: Its name in the names of figures.
        what: A short description.
        floor: What the floor does for it.
        method: The method.
        messages: Its messages.
        reply_min_bytes: The smallest size of a reply.
    """

    kind: Kind
    name: str
    what: str
    floor: str
    method: str
    messages: Sequence[bytes] = field(repr=False)
    reply_min_bytes: int

    def body(self) -> bytes:
        """Return the body of the request."""
        return b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in self.messages)


_INFOS = m.RetrieveVersionInfosRequest(model_id=MODEL_ID, version_numbers=[-1]).SerializeToString()
_DATA_REQUEST = m.RetrieveVersionDataRequest(model_id=MODEL_ID, version_number=-1).SerializeToString()
_CALLS = (
    _Call(Kind.INFOS, "infos", "look up the latest version", "unary call", "RetrieveVersionInfos", [_INFOS], 50),
    _Call(Kind.PUBLISH, "publish", "publish 10 KiB", "sink of 10 KiB", "CreateVersion", _UPLOAD.messages(), 50),
    _Call(
        Kind.RETRIEVE,
        "retrieve",
        "retrieve 10 KiB",
        "source of 10 KiB",
        "RetrieveVersionData",
        [_DATA_REQUEST],
        _UPLOAD.size_bytes,
    ),
)


def _program() -> str:
    """Return h2load."""
    program = shutil.which("h2load")
    if program is None:
        raise NotHereError("no h2load")
    return program


@dataclass(frozen=True, slots=True)
class _Turn:
    """The results of one run of h2load.

    Attributes:
        calls_per_second: How many calls were answered in a second.
        processor_us: The processor time of the server for one call, in microseconds.
    """

    calls_per_second: float
    processor_us: float


def _turn(program: str, server: ServerProcess, call: _Call, body: Path, calls: int) -> _Turn:
    """Make a call many times; see `_Turn`."""
    server.mark_processor()
    command = [program, f"--requests={calls}", f"--clients={_CONNECTIONS}", "--max-concurrent-streams=1"]
    command += [f"--data={body}", "--header=content-type: application/grpc", "--header=te: trailers"]
    command += [f"http://127.0.0.1:{server.port}/{m.SERVICE_NAMES[0]}/{call.method}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS_MAX).stdout
    processor_us = server.marked_processor_seconds() / calls * 1e6
    rate, succeeded, data = (pattern.search(said) for pattern in (_FOUND, _SUCCEEDED, _DATA))
    if rate is None or succeeded is None or data is None:
        raise RuntimeError(f"the output of h2load is not as expected: {said[-500:]}")
    if int(succeeded["succeeded"]) != calls or int(data["bytes"]) < calls * call.reply_min_bytes:
        raise RuntimeError(f"{calls} calls of {call.method} were not all answered: {said[-500:]}")
    return _Turn(float(rate["rate"]), processor_us)


def _h2load(bench: Bench) -> Sequence[Outcome]:
    program = _program()
    outcomes: list[Outcome] = []
    with bench.pair() as pair, tempfile.TemporaryDirectory() as directory:
        bench.fit_floor(pair, _UPLOAD)
        bench.load(0).run(job(upload_seconds, pair.registry.port, _UPLOAD, _WARM_UP_VERSIONS))
        for call in _CALLS:
            outcomes += _measured(bench, program, call, pair, Path(directory) / call.name)
    return outcomes


def _measured(bench: Bench, program: str, call: _Call, pair: Pair, body: Path) -> Sequence[Outcome]:
    """Return the calls per second, and the processor time of one, compared with the floor."""
    registry = pair.registry
    calls, turns = bench.choose(2000, 400), bench.choose(5, 2)
    body.write_bytes(call.body())
    bench.load(0).run(job(call_seconds, registry.port, _UPLOAD, 1, 0.05, call.kind))  # raises if it is refused
    before = bench.load(0).run(job(latest_number, registry.port, MODEL_ID))
    measured: dict[str, list[_Turn]] = {"registry": [], "floor": []}

    def measure(name: str, server: ServerProcess) -> Callable[[], list[float]]:
        def once() -> list[float]:
            measured[name].append(_turn(program, server, call, body, calls))
            return [measured[name][-1].calls_per_second]

        return once

    rates = interleaved(turns, {"registry": measure("registry", registry), "floor": measure("floor", pair.floor)})
    if call.kind is Kind.PUBLISH:
        published = bench.load(0).run(job(latest_number, registry.port, MODEL_ID)) - before
        if published != len(measured["registry"]) * calls:
            raise RuntimeError(f"{published} versions were published instead of {len(measured['registry']) * calls}")
    processor: dict[str, Blocks] = {
        name: [[turn.processor_us] for turn in each[-turns:]] for name, each in measured.items()
    }
    return [
        compared(
            f"h2load {call.name} calls",
            f"{call.what}, {_CONNECTIONS} connections of h2load",
            "calls/s",
            rates["registry"],
            against=call.floor,
            floor_blocks=rates["floor"],
            peak_mib=registry.peak_mib(),
        ),
        compared(
            f"h2load {call.name} processor",
            f"processor time of the server: {call.what}, from h2load",
            "µs",
            processor["registry"],
            against=call.floor,
            floor_blocks=processor["floor"],
        ),
    ]


BENCHMARKS = [Benchmark("h2load", "small calls from h2load, in a second, and their processor time", _h2load)]
