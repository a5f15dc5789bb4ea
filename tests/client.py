"""A client that sends exactly the messages or raw bytes of a test, over a real channel."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from cogment_model_registry.wire import messages as m
from tests.waiting import PATIENCE_SECONDS

SERVICE = m.SERVICE_NAMES[0]


def header(model_id: str, size: int, archived: bool = False, **fields: Any) -> m.CreateVersionRequestChunk:
    """Return the header of an upload."""
    info = m.ModelVersionInfo(model_id=model_id, data_size=size, archived=archived, **fields)
    return m.CreateVersionRequestChunk(header=m.CreateVersionRequestChunk.Header(version_info=info))


def body(data: bytes) -> m.CreateVersionRequestChunk:
    """Return a chunk of bytes of an upload."""
    return m.CreateVersionRequestChunk(body=m.CreateVersionRequestChunk.Body(data_chunk=data))


def upload(
    model_id: str, data: bytes, archived: bool = False, chunk_size: int = 2**21, **fields: Any
) -> list[m.CreateVersionRequestChunk]:
    """Return the chunks of a complete upload."""
    chunks = [header(model_id, len(data), archived, **fields)]
    return chunks + [body(data[start : start + chunk_size]) for start in range(0, len(data), chunk_size)]


class Client:
    """The nine calls, without retries or checks."""

    def __init__(self, channel: grpc.aio.Channel, service: str = SERVICE, port: int = 0) -> None:
        self.channel = channel
        self.port = port
        self._service = service

    async def unary(self, method: str, request: Message | bytes, reply_type: type[Any]) -> Any:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        call: Any = self.channel.unary_unary(f"/{self._service}/{method}")
        return reply_type.FromString(await call(data, timeout=PATIENCE_SECONDS))

    def streamed(self, method: str, request: Message | bytes) -> Any:
        """Return the call of a method that streams its reply: an iterator of raw messages."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        call: Any = self.channel.unary_stream(f"/{self._service}/{method}")
        return call(data, timeout=PATIENCE_SECONDS)

    def uploading(self) -> Any:
        """Return a CreateVersion call to write raw messages to."""
        call: Any = self.channel.stream_unary(f"/{self._service}/CreateVersion")
        return call(timeout=PATIENCE_SECONDS)

    async def create_model(self, model_id: str, **user_data: str) -> None:
        info = m.ModelInfo(model_id=model_id, user_data=user_data)
        await self.unary(
            "CreateOrUpdateModel", m.CreateOrUpdateModelRequest(model_info=info), m.CreateOrUpdateModelReply
        )

    async def delete_model(self, model_id: str) -> None:
        await self.unary("DeleteModel", m.DeleteModelRequest(model_id=model_id), m.DeleteModelReply)

    async def models(self, *model_ids: str, count: int = 0, handle: str = "") -> m.RetrieveModelsReply:
        request = m.RetrieveModelsRequest(model_ids=model_ids, models_count=count, model_handle=handle)
        reply: m.RetrieveModelsReply = await self.unary("RetrieveModels", request, m.RetrieveModelsReply)
        return reply

    async def create_version(self, chunks: Iterable[Message | bytes]) -> m.ModelVersionInfo:
        """Upload the chunks unchanged, and return the version of the reply."""

        async def encoded() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk if isinstance(chunk, bytes) else chunk.SerializeToString()

        call: Any = self.channel.stream_unary(f"/{self._service}/CreateVersion")
        return m.CreateVersionReply.FromString(await call(encoded(), timeout=PATIENCE_SECONDS)).version_info

    async def create_version_to_the_end(self, chunks: Iterable[Message | bytes]) -> m.ModelVersionInfo:
        """Upload the chunks unchanged with gRPC's blocking client, which always reports the status of the server.

        The asyncio client may report its own status if the server ends a call while the client is still writing
        (https://github.com/grpc/grpc/issues/36066).
        """

        def upload() -> m.ModelVersionInfo:
            encoded = [chunk if isinstance(chunk, bytes) else chunk.SerializeToString() for chunk in chunks]
            with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                call: Any = channel.stream_unary(f"/{self._service}/CreateVersion")
                return m.CreateVersionReply.FromString(call(iter(encoded), timeout=60)).version_info

        return await asyncio.to_thread(upload)

    async def publish(self, model_id: str, data: bytes, **fields: Any) -> m.ModelVersionInfo:
        """Create a transient version."""
        return await self.create_version(upload(model_id, data, **fields))

    async def store(self, model_id: str, data: bytes, **fields: Any) -> m.ModelVersionInfo:
        """Create an archived version."""
        return await self.create_version(upload(model_id, data, archived=True, **fields))

    async def infos(
        self, model_id: str, *numbers: int, count: int = 0, handle: str = ""
    ) -> m.RetrieveVersionInfosReply:
        request = m.RetrieveVersionInfosRequest(
            model_id=model_id, version_numbers=numbers, versions_count=count, version_handle=handle
        )
        reply: m.RetrieveVersionInfosReply = await self.unary(
            "RetrieveVersionInfos", request, m.RetrieveVersionInfosReply
        )
        return reply

    async def numbers(self, model_id: str) -> list[int]:
        """Return the numbers of all versions of a model."""
        return [info.version_number for info in (await self.infos(model_id)).version_infos]

    async def chunks(self, model_id: str, number: int = -1) -> list[bytes]:
        """Retrieve a version, and return the bytes of each chunk."""
        request = m.RetrieveVersionDataRequest(model_id=model_id, version_number=number)
        messages = [message async for message in self.streamed("RetrieveVersionData", request)]
        return [m.RetrieveVersionDataReplyChunk.FromString(message).data_chunk for message in messages]

    async def data(self, model_id: str, number: int = -1) -> bytes:
        """Retrieve the bytes of a version."""
        return b"".join(await self.chunks(model_id, number))

    def watching(self, model_id: str) -> Any:
        """Return a VersionUpdate call: an iterator of raw messages."""
        return self.streamed("VersionUpdate", m.VersionUpdateRequest(model_id=model_id))

    async def status(self, *names: str) -> dict[str, str]:
        reply = await self.unary("Status", m.StatusRequest(names=names), m.StatusReply)
        return dict(reply.statuses)

    async def version(self) -> dict[str, str]:
        reply = await self.unary("Version", m.VersionRequest(), m.ServiceVersionInfo)
        return {part.name: part.version for part in reply.versions}


async def next_version(watch: Any) -> m.ModelVersionInfo:
    """Return the next version that a watch yields."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        message = await watch.read()
    assert message is not grpc.aio.EOF, await watch.code()
    return m.VersionUpdateReply.FromString(message).version_info


@asynccontextmanager
async def connected(
    port: int, service: str = SERVICE, further_options: Sequence[tuple[str, int]] = ()
) -> AsyncIterator[Client]:
    """Return a context manager for a client of the server on a port of the loopback interface."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),  # a separate connection for each client
        *further_options,
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Client(channel, service, port)


@contextmanager
def refused(code: grpc.StatusCode, details: str = "") -> Iterator[None]:
    """Expect that a call ends with a status, and with details that contain a text."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() == code, caught.value.details()
    assert details in (caught.value.details() or "")


async def status_of(call: Awaitable[object]) -> grpc.StatusCode:
    """Return the status of a call."""
    try:
        await call
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def metrics_text(port: int) -> str:
    """Return the reply to a scrape of a port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS) as reply:
        text: str = reply.read().decode()
        return text
