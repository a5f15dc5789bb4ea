"""A proxy in front of an object store that fails in the ways in which networks and stores do."""

import asyncio
import contextlib
import enum
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cogment_model_registry.system.tasks import end


class Mode(enum.Enum):
    """What happens to requests."""

    PASS = enum.auto()
    REFUSE = enum.auto()
    """Connections are closed at once."""
    BUSY = enum.auto()
    """Each request is answered with 503, as by a store that sheds load."""
    STALL = enum.auto()
    """Requests are taken, and never answered."""
    LOSE_REPLIES = enum.auto()
    """Requests reach the store, and their answers are lost."""
    CUT = enum.auto()
    """Connections end after some bytes of a request."""


_CUT_BYTES = 100_000


class ObjectProxy:
    """A proxy on a port of the loopback interface, or at another socket.

    Args:
        target_port: The port of the store.
        target_host: The address of the store.
        listening: A socket that listens already.

    Attributes:
        port: Its port.
        mode: What happens to requests; changed by `set_mode`.
        requests: How many connections sent something since the mode was set.
    """

    def __init__(
        self, target_port: int, target_host: str = "127.0.0.1", listening: socket.socket | None = None
    ) -> None:
        self._target = target_host, target_port
        self._listening = listening
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.mode = Mode.PASS
        self.requests = 0

    @property
    def endpoint(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen."""
        if self._listening is None:
            self._listening = socket.create_server(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=self._listening)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End all connections."""
        assert self._server is not None
        self._server.close()
        await self._end_connections()

    async def set_mode(self, mode: Mode) -> None:
        """Change what happens to requests; connections that are open end."""
        self.mode = mode
        self.requests = 0
        await self._end_connections()

    async def _end_connections(self) -> None:
        for task in [*self._tasks]:
            await end(task)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of its own, since asyncio reports the end of its own one by a cancellation as an error.
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._treat(reader, writer)
        finally:
            writer.close()

    async def _treat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.REFUSE:
            return
        first = await reader.read(65_536)
        if not first:
            return
        self.requests += 1
        if self.mode is Mode.STALL:
            await asyncio.Event().wait()
        elif self.mode is Mode.BUSY:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        else:
            await self._relay(first, reader, writer)

    async def _relay(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_connection(*self._target)
        try:
            store_writer.write(first)
            sending = asyncio.create_task(self._send(len(first), reader, store_writer))
            try:
                await self._answer(store_reader, writer, sending)
            finally:
                await end(sending)
        finally:
            store_writer.close()

    async def _send(self, sent_bytes: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                sent_bytes += len(data)
                if self.mode is Mode.CUT and sent_bytes > _CUT_BYTES:
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sending: asyncio.Task[None]
    ) -> None:
        while data := await reader.read(65_536):
            if self.mode is Mode.LOSE_REPLIES:
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def object_proxy(target_port: int) -> AsyncIterator[ObjectProxy]:
    """Run a proxy; a context manager."""
    proxy = ObjectProxy(target_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
