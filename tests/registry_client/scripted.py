"""A gRPC server whose replies the test chooses, also malformed ones."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.settings import MIB
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.frames import split_body
from tests.client import SERVICE

DATA = os.urandom(5 * MIB)
HASH = digest_text(hashlib.sha256(DATA).digest())

Answer = Callable[["Call"], Awaitable[None]]
"""Answers a call, whose `context` reads and writes raw messages; see `Call`."""


class Call:
    """One call that the server received.

    Attributes:
        number: Its number among the calls of its method, from 1.
        context: The context of gRPC.
    """

    def __init__(self, number: int, context: Any) -> None:
        self.number = number
        self.context = context

    async def receive(self) -> bytes | None:
        """Return the next message of an upload; None at its end."""
        message = await self.context.read()
        return message if isinstance(message, bytes) else None

    async def receive_all(self) -> list[bytes]:
        messages = []
        while (message := await self.receive()) is not None:
            messages.append(message)
        return messages

    async def send(self, message: Any) -> None:
        """Send a message, or raw bytes."""
        await self.context.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def fail(self, status: grpc.StatusCode, details: str = "for the test") -> None:
        await self.context.abort(status, details)


class Scripted:
    """The handlers of the server, and the number of calls.

    Attributes:
        calls: The number of calls of each method.
    """

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.calls: dict[str, int] = dict.fromkeys(answers, 0)
        self.port = 0

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        # Requests and replies of each call are streams here, which on the wire is the same as any other kind of call.
        methods: dict[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(self._handler(name)) for name in self.answers
        }
        # The services have no method name in common.
        return [grpc.method_handlers_generic_handler(name, methods) for name in (SERVICE, lifecycle.SERVICE_NAME)]

    def replace(self, **answers: Answer) -> None:
        """Answer later calls of some methods in other ways."""
        self.answers.update(answers)

    def _handler(self, name: str) -> Callable[..., Awaitable[None]]:
        async def handle(_requests: object, context: Any) -> None:
            self.calls[name] += 1
            await self.answers[name](Call(self.calls[name], context))

        return handle


@asynccontextmanager
async def scripted(**answers: Answer) -> AsyncIterator[Scripted]:
    """Return a context manager for a server with these methods, by name."""
    script = Scripted(answers)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(script.handlers())
    script.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield script
    finally:
        await server.stop(0)


def version_message(number: int = 1, data_hash: str = "", size_bytes: int = 0, **fields: Any) -> m.ModelVersionInfo:
    """Return a version of the model "policy"."""
    return m.ModelVersionInfo(
        model_id="policy", version_number=number, data_hash=data_hash, data_size=size_bytes, **fields
    )


async def has_model(call: Call) -> None:
    """Answer that the model "policy" exists."""
    await call.send(m.RetrieveModelsReply(model_infos=[m.ModelInfo(model_id="policy")]))


async def infos(call: Call, *, data: bytes = DATA, number: int = 1) -> None:
    """Answer with one version."""
    message = version_message(number, digest_text(hashlib.sha256(data).digest()), len(data))
    await call.send(m.RetrieveVersionInfosReply(version_infos=[message], next_version_handle="2"))


def chunks(*parts: bytes) -> Answer:
    """Return an answer with these bytes."""

    async def answer(call: Call) -> None:
        for part in parts:
            await call.send(m.RetrieveVersionDataReplyChunk(data_chunk=part))

    return answer


async def created(call: Call, data: bytes | None = None) -> None:
    """Receive an upload, or the rest of it, and answer with a version of the received bytes, or of other bytes."""
    received = [body for body in map(split_body, await call.receive_all()) if body is not None]
    data = b"".join(received) if data is None else data
    message = version_message(1, digest_text(hashlib.sha256(data).digest()), len(data))
    await call.send(m.CreateVersionReply(version_info=message))


async def silence(_call: Call) -> None:
    await asyncio.Event().wait()


def failing(times: int, then: Answer, status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Answer:
    """Return an answer that fails a number of times, before anything was received, and then succeeds."""

    async def answer(call: Call) -> None:
        if call.number <= times:
            await call.fail(status)
        await then(call)

    return answer
