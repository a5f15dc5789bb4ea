"""What there is to beat: a gRPC server with nothing behind it, and a file that is written and synced.

The server answers the paths of the registry's own methods, so that the same client code with the same messages meets
both, and answers as the registry does, which it is told first, with data of the same sizes:

- `CreateVersion` is the *sink*: it drops the messages as raw bytes;
- `RetrieveVersionData` is the *source*: it repeats one prebuilt buffer;
- `RetrieveVersionInfos` is the *unary* call;
- `VersionUpdate` keeps a stream open, and each end of a sink sends one message to every such stream: the reply of
  CreateVersion, or what the registry sent to a follower, bytes included.

`python -m benchmarks.floors` runs it and says its port; the files of a certificate and its key let it use TLS.
"""

import asyncio
import json
import os
import signal
import sys
import time
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cogment_model_registry.wire import messages
from cogment_model_registry.wire.frames import build_data_chunk

CONFIGURE = "/benchmarks.Floor/Configure"

_Context: TypeAlias = Any  # gRPC's own type knows no end of a stream


@dataclass(frozen=True, slots=True)
class Shape:
    """What the registry answers, for the floor to answer alike.

    Attributes:
        created: The reply of CreateVersion, in base64; an update has the version that it has.
        infos: The reply of RetrieveVersionInfos, in base64.
        chunks_bytes: The sizes of the data in the messages of RetrieveVersionData, which are zeros.
        news: What VersionUpdate sends for a version, in base64; empty for the reply of CreateVersion.
    """

    created: str = ""
    infos: str = ""
    chunks_bytes: list[int] = field(default_factory=list)
    news: str = ""

    def encoded(self) -> bytes:
        """Return it as a message."""
        return json.dumps(asdict(self)).encode()


class _Floor:
    """Answers with what it was told."""

    def __init__(self) -> None:
        self._created = self._infos = self._told = b""
        self._chunks: list[bytes] = []
        self._news = asyncio.Event()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        service: dict[str, Any] = {
            "CreateOrUpdateModel": grpc.unary_unary_rpc_method_handler(self._nothing),
            "CreateVersion": grpc.stream_unary_rpc_method_handler(self._sink),
            "RetrieveVersionInfos": grpc.unary_unary_rpc_method_handler(self._unary),
            "RetrieveVersionData": grpc.unary_stream_rpc_method_handler(self._source),
            "VersionUpdate": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        control: dict[str, Any] = {"Configure": grpc.unary_unary_rpc_method_handler(self._configure)}
        return [
            grpc.method_handlers_generic_handler(messages.SERVICE_NAMES[0], service),
            grpc.method_handlers_generic_handler(CONFIGURE.split("/")[1], control),
        ]

    async def _configure(self, data: bytes, _context: _Context) -> bytes:
        shape = Shape(**json.loads(data))
        self._created, self._infos = b64decode(shape.created), b64decode(shape.infos)
        self._told = b64decode(shape.news) or self._created
        buffers = {size: build_data_chunk([bytes(size)]) for size in set(shape.chunks_bytes)}
        self._chunks = [buffers[size] for size in shape.chunks_bytes]
        return b""

    async def _nothing(self, _data: bytes, _context: _Context) -> bytes:
        return b""

    async def _unary(self, _data: bytes, _context: _Context) -> bytes:
        return self._infos

    async def _sink(self, _messages: object, context: _Context) -> bytes:
        while await context.read() is not grpc.aio.EOF:
            pass
        self._news.set()
        self._news = asyncio.Event()
        return self._created

    async def _source(self, _data: bytes, context: _Context) -> None:
        for chunk in self._chunks:
            await context.write(chunk)

    async def _watch(self, _data: bytes, context: _Context) -> None:
        while True:
            news = self._news
            await context.write(self._told)
            await news.wait()


async def _serve(certificate: str = "", key: str = "") -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(_Floor().handlers())
    if certificate:
        pair = await asyncio.to_thread(Path(key).read_bytes), await asyncio.to_thread(Path(certificate).read_bytes)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    print(f"serving port={port}", flush=True)
    await stop.wait()
    await server.stop(0)


async def write_seconds(directory: str, size_bytes: int, block_bytes: int, count: int, *, sync: bool) -> list[float]:
    """Write a new file under a temporary name, `count` times, and return the seconds that each took.

    Args:
        directory: Where.
        size_bytes: How much.
        block_bytes: How much at once.
        count: How often.
        sync: Whether it is synced, too.
    """
    blocks = _blocks(size_bytes, block_bytes)
    # They stay, as versions do: memory and blocks of a file that was just removed would be had sooner.
    started_ns = time.monotonic_ns()
    return [_write_once(Path(directory) / f"floor-{started_ns}-{index}", blocks, sync=sync) for index in range(count)]


def _write_once(path: Path, blocks: Sequence[bytes], *, sync: bool) -> float:
    new = path.with_suffix(".new")
    started = time.perf_counter()
    with open(new, "wb", buffering=0) as file:
        file.writelines(blocks)
        if sync:
            os.fsync(file.fileno())
    os.replace(new, path)
    return time.perf_counter() - started


async def read_seconds(directory: str, size_bytes: int, block_bytes: int, count: int) -> list[float]:
    """Read a file that the system has in memory, `count` times, and return the seconds that each took."""
    path = Path(directory) / "read"
    if not path.exists():
        path.write_bytes(b"".join(_blocks(size_bytes, block_bytes)))
    return [_read_once(path, block_bytes) for _ in range(count)]


def _read_once(path: Path, block_bytes: int) -> float:
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(block_bytes):
            pass
    return time.perf_counter() - started


def _blocks(size_bytes: int, block_bytes: int) -> Sequence[bytes]:
    block = os.urandom(min(block_bytes, size_bytes))
    full, rest = divmod(size_bytes, block_bytes)
    return [block] * full + ([block[:rest]] if rest else [])


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
