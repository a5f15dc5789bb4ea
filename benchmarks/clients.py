"""The calls of a benchmark's clients, with messages that were encoded beforehand: the jobs of load processes.

The same code calls the registry and its floor: only the port differs. All clients have gRPC's default options, but
separate connections.
"""

import asyncio
import os
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from benchmarks.floors import CONFIGURE, Shape
from benchmarks.load import meet
from benchmarks.measures import MIB
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.convert import decode_data_chunk
from cogment_model_registry.wire.lifecycle import SERVICE_NAME as LIFECYCLE
from cogment_model_registry.wire.watching import Reply, decode_reply, watch_request

_METHOD = f"/{m.SERVICE_NAMES[0]}/"
_NOISE = os.urandom(4 * MIB)

SDK_CHUNK_BYTES = 2 * MIB
"""The chunk size of the stock SDK."""

_NEWS_SECONDS = 20.0
"""The longest time that a watcher waits for the next version."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A version to create.

    Attributes:
        model_id: Its model.
        size_bytes: Its size.
        archived: Whether it is archived.
        chunk_bytes: The size of one body; 4 MiB at most.
        is_zeros: Whether its bytes are zeros instead of noise.
    """

    model_id: str
    size_bytes: int
    archived: bool = False
    chunk_bytes: int = SDK_CHUNK_BYTES
    is_zeros: bool = False

    def messages(self) -> list[bytes]:
        """Return the encoded messages. Equal bodies are one object."""
        info = m.ModelVersionInfo(model_id=self.model_id, data_size=self.size_bytes, archived=self.archived)
        header = m.CreateVersionRequestChunk(header=m.CreateVersionRequestChunk.Header(version_info=info))
        full, rest = divmod(self.size_bytes, self.chunk_bytes)
        bodies = [_body(self.chunk_bytes, is_zeros=self.is_zeros)] * full
        if rest:
            bodies.append(_body(rest, is_zeros=self.is_zeros))
        return [header.SerializeToString(), *bodies]


@lru_cache(8)
def _body(size_bytes: int, *, is_zeros: bool) -> bytes:
    body = m.CreateVersionRequestChunk.Body(data_chunk=bytes(size_bytes) if is_zeros else _NOISE[:size_bytes])
    return m.CreateVersionRequestChunk(body=body).SerializeToString()


def follow_request(upload: Upload) -> bytes:
    """Return the request to follow a model with the bytes of its versions, in one reply if they fit."""
    return watch_request([upload.model_id], "", inline_max_bytes=upload.size_bytes, in_one_reply=True)


class Kind(Enum):
    """Calls that many clients make concurrently."""

    PUBLISH = "publish"
    INFOS = "infos of the latest"
    RETRIEVE = "retrieve the latest"


class Client:
    """One connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._watches: Any = channel.unary_stream(f"/{LIFECYCLE}/Watch")
        self._create: Any = channel.stream_unary(_METHOD + "CreateVersion")
        self._data: Any = channel.unary_stream(_METHOD + "RetrieveVersionData")
        self._infos: Any = channel.unary_unary(_METHOD + "RetrieveVersionInfos")
        self._updates: Any = channel.unary_stream(_METHOD + "VersionUpdate")
        self._model: Any = channel.unary_unary(_METHOD + "CreateOrUpdateModel")
        self._configure: Any = channel.unary_unary(CONFIGURE)

    async def create_model(self, model_id: str) -> None:
        """Create a model."""
        request = m.CreateOrUpdateModelRequest(model_info=m.ModelInfo(model_id=model_id))
        await self._model(request.SerializeToString())

    async def configure(self, shape: Shape) -> None:
        """Configure the replies of a floor."""
        await self._configure(shape.encoded())

    async def create_version(self, messages: Sequence[bytes]) -> bytes:
        """Send the messages of an upload, and return the reply."""
        call = self._create()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        reply: bytes = await call
        return reply

    async def retrieve(self, model_id: str, number: int = -1) -> list[int]:
        """Retrieve a version, and return the sizes of the chunks."""
        request = m.RetrieveVersionDataRequest(model_id=model_id, version_number=number)
        call = self._data(request.SerializeToString())
        sizes = []
        while (message := await call.read()) is not grpc.aio.EOF:
            sizes.append(len(decode_data_chunk(message)))
        if await call.code() != grpc.StatusCode.OK:
            raise RuntimeError(f"the retrieval ended with {await call.code()}: {await call.details()}")
        return sizes

    async def infos(self, model_id: str, *numbers: int) -> bytes:
        """Return the reply of RetrieveVersionInfos, encoded."""
        request = m.RetrieveVersionInfosRequest(model_id=model_id, version_numbers=numbers)
        reply: bytes = await self._infos(request.SerializeToString())
        return reply

    def watch(self, model_id: str) -> Any:
        """Return a VersionUpdate call."""
        return self._updates(m.VersionUpdateRequest(model_id=model_id).SerializeToString())

    def follow(self, request: bytes) -> Any:
        """Return a Watch call."""
        return self._watches(request)

    async def newest_inline(self, upload: Upload) -> bytes:
        """Return the message to a follower with the newest version of a model and its bytes."""
        call = self.follow(follow_request(upload))
        while (message := await call.read()) is not grpc.aio.EOF:
            reply = decode_reply(message)
            if isinstance(reply, Reply) and reply.data is not None:
                call.cancel()
                return bytes(message)
        raise RuntimeError("the registry sent no version with its bytes")


@dataclass(frozen=True, slots=True)
class SecurePort:
    """A port with TLS.

    Attributes:
        number: The port.
        authority: The file with the certificate to trust.
    """

    number: int
    authority: str


Port: TypeAlias = int | SecurePort


def _channel(port: Port, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
    if isinstance(port, int):
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
    credentials = grpc.ssl_channel_credentials(Path(port.authority).read_bytes())
    return grpc.aio.secure_channel(f"127.0.0.1:{port.number}", credentials, options=options)


@asynccontextmanager
async def connected(port: Port) -> AsyncIterator[Client]:
    """Return a context manager for a client of a server."""
    async with _channel(port, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        await channel.channel_ready()
        yield Client(channel)


async def prepare(port: Port, model_ids: Sequence[str]) -> None:
    """Create models."""
    async with connected(port) as client:
        for model_id in model_ids:
            await client.create_model(model_id)


async def shape_like(
    port: Port, floor_port: Port, upload: Upload, *, infos_only: bool = False, with_bytes: bool = False
) -> Shape:
    """Let a floor answer as the registry does for an upload like this one; return the replies.

    Creates a version unless `infos_only`, which measures the listing of all versions. With `with_bytes`, each watcher
    receives the message that the registry sends to a follower.
    """
    async with connected(port) as client, connected(floor_port) as floor:
        if infos_only:
            shape = Shape(infos=_text(await client.infos(upload.model_id)))
        else:
            created = _text(await client.create_version(upload.messages()))
            infos = _text(await client.infos(upload.model_id, -1))
            chunks_bytes = await client.retrieve(upload.model_id)
            news = _text(await client.newest_inline(upload)) if with_bytes else ""
            shape = Shape(created, infos, chunks_bytes, news)
        await floor.configure(shape)
    return shape


def _text(message: bytes) -> str:
    return b64encode(message).decode()


async def upload_seconds(
    port: Port, upload: Upload, count: int, gap_seconds: float = 0.0, *, warm_up: bool = True
) -> list[float]:
    """Create `count` versions, one after the other, and return the seconds of each.

    Args:
        port: The server.
        upload: The version to create.
        count: The number of calls.
        gap_seconds: The pause before each call.
        warm_up: Whether to make one more call first, which is not measured.
    """
    messages = upload.messages()
    async with connected(port) as client:

        async def once() -> None:
            await client.create_version(messages)

        return await _timed(once, count, gap_seconds, warm_up=warm_up)


async def _timed(call: Callable[[], Awaitable[None]], count: int, gap_seconds: float, *, warm_up: bool) -> list[float]:
    """Call `count` times, and return the seconds of each call."""
    seconds = []
    if warm_up:
        await call()
    for _ in range(count):
        if gap_seconds:
            await asyncio.sleep(gap_seconds)
        started = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - started)
    return seconds


async def retrieve_seconds(
    port: Port, upload: Upload, count: int, gap_seconds: float = 0.0, *, warm_up: bool = True
) -> list[float]:
    """Retrieve the latest version `count` times, and return the seconds of each; see `upload_seconds`."""
    async with connected(port) as client:

        async def once() -> None:
            sizes = await client.retrieve(upload.model_id)
            if sum(sizes) < upload.size_bytes:
                raise RuntimeError(f"{sum(sizes)} bytes were received instead of {upload.size_bytes}")

        return await _timed(once, count, gap_seconds, warm_up=warm_up)


async def infos_seconds(port: int, model_id: str, count: int) -> list[float]:
    """List all versions in one call, `count` times, and return the seconds of each; see `upload_seconds`."""
    async with connected(port) as client:

        async def once() -> None:
            await client.infos(model_id)

        return await _timed(once, count, 0.0, warm_up=True)


async def versions_listed(port: int, model_id: str) -> int:
    """Return the number of versions in one listing."""
    async with connected(port) as client:
        return len(m.RetrieveVersionInfosReply.FromString(await client.infos(model_id)).version_infos)


async def latest_number(port: int, model_id: str) -> int:
    """Return the number of the latest version."""
    async with connected(port) as client:
        reply = m.RetrieveVersionInfosReply.FromString(await client.infos(model_id, -1))
        return reply.version_infos[0].version_number


async def call_seconds(port: int, upload: Upload, connections: int, seconds: float, kind: Kind) -> list[float]:
    """Make successive calls on each of some connections for a time; return the seconds of each call.

    Args:
        port: The server.
        upload: The version to publish, or whose model is looked up.
        connections: The number of connections.
        seconds: The time.
        kind: The kind of call.
    """
    messages = upload.messages()
    latencies: list[float] = []

    async def call(client: Client) -> None:
        match kind:
            case Kind.PUBLISH:
                await client.create_version(messages)
            case Kind.INFOS:
                await client.infos(upload.model_id, -1)
            case Kind.RETRIEVE:
                await client.retrieve(upload.model_id)

    async def calls(client: Client, deadline: float) -> None:
        while (started := time.perf_counter()) < deadline:
            await call(client)
            latencies.append(time.perf_counter() - started)

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        for client in clients:
            await call(client)
        await meet()
        deadline = time.perf_counter() + seconds
        await asyncio.gather(*(calls(client, deadline) for client in clients))
    return latencies


async def publish_moments(port: int, upload: Upload, rounds: int, gap_seconds: float) -> list[float]:
    """Create `rounds` versions with gaps between them; return the moment at which each call began."""
    messages = upload.messages()
    moments = []
    async with connected(port) as client:
        await meet()
        for _ in range(rounds):
            await asyncio.sleep(gap_seconds)
            moments.append(time.monotonic())
            await client.create_version(messages)
        await asyncio.sleep(gap_seconds)
    return moments


async def notified_moments(port: int, upload: Upload, connections: int, streams: int, rounds: int) -> list[float]:
    """Watch a model with `streams` streams over some connections.

    Returns:
        For each of `rounds` versions, the moment at which the last stream was notified.
    """
    last = [0.0] * rounds

    async def watch(call: Any) -> None:
        for index in range(rounds):
            async with asyncio.timeout(_NEWS_SECONDS):  # a stream that skipped a version would wait indefinitely
                message = await call.read()
            if message is grpc.aio.EOF:
                raise RuntimeError("a watch ended")
            last[index] = max(last[index], time.monotonic())

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        calls = [clients[index % connections].watch(upload.model_id) for index in range(streams)]
        await asyncio.gather(*(call.read() for call in calls))  # the latest version at once
        await meet()
        await asyncio.gather(*(watch(call) for call in calls))
        for call in calls:
            call.cancel()
    return last


async def fetched_moments(port: int, upload: Upload, rounds: int) -> list[float]:
    """Watch a model, and retrieve each version; return the moments at which each one was complete."""
    moments = []
    async with connected(port) as client:
        call = client.watch(upload.model_id)
        await call.read()
        await client.retrieve(upload.model_id)
        await meet()
        for _ in range(rounds):
            async with asyncio.timeout(_NEWS_SECONDS):
                update = m.VersionUpdateReply.FromString(await call.read())
            await client.retrieve(upload.model_id, update.version_info.version_number)
            moments.append(time.monotonic())
        call.cancel()
    return moments
