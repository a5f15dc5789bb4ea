"""Processor time of a small call in the registry's own Python, without transport: in one process, with fake calls.

The handlers are those that the server passes to gRPC, on the backends that it opens.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.clients import Upload
from benchmarks.load import job
from benchmarks.measures import KIB, MIB, Result, Spread, no_more_than
from cogment_model_registry.registry.access import NOBODY, Caller
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.server.audit import AuditGuard, AuditLog
from cogment_model_registry.server.backends import open_backends
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.server.model_registry import ModelRegistryService
from cogment_model_registry.server.transfers import Transfers
from cogment_model_registry.serving.calls import Call
from cogment_model_registry.settings import Settings
from cogment_model_registry.wire import messages as m

_MODEL_ID = "walker"
_SMALL_BYTES = 10 * KIB
_KINDS = {
    "publish": ("publish 10 KiB", 60),
    "audited": ("publish 10 KiB with an audit log", 200),
    "get": ("retrieve 10 KiB", 30),
    "infos": ("look up the latest version", 15),
}


@dataclass(slots=True)
class _FakedContext:
    """gRPC's part of a call: requests are available at once, and replies are discarded."""

    requests: list[bytes] = field(default_factory=list)
    replies: int = 0

    async def read(self) -> object:
        return self.requests.pop(0) if self.requests else grpc.aio.EOF

    async def write(self, _message: bytes) -> None:
        self.replies += 1

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> Any:
        return ()


@dataclass(slots=True)
class _Method:
    """The argument with which gRPC looks up a handler."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


class _Everybody:
    """A guard that lets everybody do everything."""

    def check_method(self, method: str) -> None:
        """Do nothing."""

    def identify(self, _call: Call) -> Caller:
        return NOBODY

    async def look_up(self, _call: Call) -> Caller:
        return NOBODY

    def is_known(self, _call: Call) -> bool:
        return True

    def decide(self, call: Call, request: object) -> None:
        """Do nothing."""

    def check_still(self, caller: Caller) -> None:
        """Do nothing."""


@asynccontextmanager
async def _methods(archive_dir: Path, audit_dir: Path | None = None) -> AsyncIterator[Callable[[str], Any]]:
    """Return a context manager for a function that returns the handler of a method; the model exists."""
    settings = Settings(archive_dir=str(archive_dir), cache_max_bytes=64 * MIB)
    metrics = Metrics()
    audit = AuditLog(str(audit_dir)) if audit_dir else None
    async with AsyncExitStack() as stack:
        if audit is not None:
            stack.push_async_callback(audit.close)
        backends = await stack.enter_async_context(open_backends(settings, metrics))
        limits = Limits(settings.model_id_max_bytes, settings.user_data_max_bytes, settings.request_max_items)
        registry = Registry(limits, backends.catalog, backends.archive, backends.transient)
        guard = AuditGuard(_Everybody(), audit) if audit else None
        service = ModelRegistryService(
            registry, Transfers(settings), settings, observe=metrics.observe_call, guard=guard
        )
        [first, *_] = service.handlers()

        def method(name: str) -> Any:
            found: Any = first.service(_Method(f"/{m.SERVICE_NAMES[0]}/{name}"))
            return found.unary_unary or found.stream_unary or found.unary_stream

        model = m.CreateOrUpdateModelRequest(model_info=m.ModelInfo(model_id=_MODEL_ID)).SerializeToString()
        await method("CreateOrUpdateModel")(model, _FakedContext())
        yield method


async def processor_us(archive_dir: str, calls: int, blocks: int) -> dict[str, list[float]]:
    """Return the processor time of a call in microseconds, by kind: means of blocks of calls.

    The cost of an empty task is subtracted: gRPC creates one for each call. The server with an audit log runs after the
    one without: the memory of both would not fit the processor's cache.
    """
    place = Path(archive_dir)
    upload = Upload(_MODEL_ID, _SMALL_BYTES).messages()
    get = m.RetrieveVersionDataRequest(model_id=_MODEL_ID, version_number=-1).SerializeToString()
    infos = m.RetrieveVersionInfosRequest(model_id=_MODEL_ID, version_numbers=[-1]).SerializeToString()
    async with _methods(place / "plain") as method:
        create, retrieve, look_up = (
            method(name) for name in ("CreateVersion", "RetrieveVersionData", "RetrieveVersionInfos")
        )
        kinds: dict[str, Callable[[], Awaitable[object]]] = {
            "publish": lambda: create(None, _FakedContext([*upload])),
            "get": lambda: retrieve(get, _FakedContext()),
            "infos": lambda: look_up(infos, _FakedContext()),
        }
        found = await _blocks(kinds, upload, calls, blocks)
    async with _methods(place / "audited", place / "log") as method:
        publish = method("CreateVersion")
        audited = {"audited": lambda: publish(None, _FakedContext([*upload]))}
        return {**found, **await _blocks(audited, upload, calls, blocks)}


async def _blocks(
    kinds: Mapping[str, Callable[[], Awaitable[object]]], upload: Sequence[bytes], calls: int, blocks: int
) -> dict[str, list[float]]:
    """Return the means of blocks of calls, by kind."""
    all_kinds = {"nothing": lambda: _nothing(None, _FakedContext([*upload])), **kinds}
    found: dict[str, list[float]] = {kind: [] for kind in all_kinds}
    for _ in range(blocks + 1):
        for kind, call in all_kinds.items():
            found[kind].append(await _mean_us(call, calls))
    nothing = found.pop("nothing")[1:]  # the first block warms up
    return {
        kind: [value - less for value, less in zip(values[1:], nothing, strict=True)] for kind, values in found.items()
    }


async def _nothing(_request: object, _context: _FakedContext) -> None:
    return


async def _mean_us(call: Callable[[], Awaitable[object]], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        await asyncio.ensure_future(call())
    return (time.process_time() - started) / calls * 1e6


def _small_path(bench: Bench) -> Sequence[Outcome]:
    with bench.place() as place:
        todo = job(processor_us, str(place / "archive"), bench.choose(2000, 300), bench.choose(15, 3))
        found = bench.load(0).run(todo)
    return [
        Result(
            f"own time: {what}",
            f"processor time of the registry's own Python: {what}",
            "µs",
            Spread.of(found[kind]),
            target=no_more_than(limit, "µs"),
            blocks=[found[kind]],
        )
        for kind, (what, limit) in _KINDS.items()
    ]


BENCHMARKS = [
    Benchmark("small-path", "processor time of small calls in the registry's own Python, with faked calls", _small_path)
]
