"""The floors: a gRPC server without a registry, and a file that is written and synced.

The server has the same methods as the registry, so the same client code sends the same messages to both. Its replies,
which are configured first, have the same sizes as those of the registry:

- `CreateVersion` is the *sink*: it drops the messages as raw bytes;
- `RetrieveVersionData` is the *source*: it repeats one prebuilt buffer;
- `RetrieveVersionInfos` is the *unary* call;
- `VersionUpdate` keeps a stream open, and each end of a sink sends one message to every such stream: the reply of
  CreateVersion, or what the registry sent to a follower, bytes included.

`python -m benchmarks.floors` runs it and prints its port; with the files of a certificate and its key, it uses TLS.
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

_Context: TypeAlias = Any  # gRPC's own type lacks the end of a stream


@dataclass(frozen=True, slots=True)
class Shape:
    """The replies of the registry, which the floor repeats.

    Attributes:
        created: The reply of CreateVersion, in base64; updates have its version.
        infos: The reply of RetrieveVersionInfos, in base64.
        chunks_bytes: The sizes of the data in the messages of RetrieveVersionData, which are zeros.
        news: The message of VersionUpdate for a version, in base64; if empty, the reply of CreateVersion.
    """

    created: str = ""
    infos: str = ""
    chunks_bytes: list[int] = field(default_factory=list)
    news: str = ""

    def encoded(self) -> bytes:
        """Return the shape as a message."""
        return json.dumps(asdict(self)).encode()


class _Floor:
    """Answers with the configured replies."""

    def __init__(self) -> None:
        self._created = self._infos = self._update = b""
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
        self._update = b64decode(shape.news) or self._created
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
            await context.write(self._update)
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
    """Write a new file under a temporary name, `count` times, and return the seconds of each.

    Args:
        directory: The directory.
        size_bytes: The size of the file.
        block_bytes: The size of one write.
        count: The number of files.
        sync: Whether to sync the file, too.
    """
    blocks = _blocks(size_bytes, block_bytes)
    # The files stay, as versions do: memory and blocks of a just removed file would be allocated faster.
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
    """Read a file in the page cache, `count` times, and return the seconds of each."""
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
