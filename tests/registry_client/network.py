"""Servers that are not gRPC servers, and a network that breaks connections."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Handles one connection of a server."""

_READ_BYTES = 64 * 1024


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """Return a context manager for the port of a server, which closes all connections at its end.

    It owns the sockets, and not the tasks of the connections: a task that is cancelled before its first turn never runs
    its `finally`. Nor does asyncio's server own them, which leaves just accepted sockets open when it closes.
    """
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    tasks: list[asyncio.Task[None]] = []

    async def converse(connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            await talk(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept() -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        sockets.append(connection)
        tasks.append(loop.create_task(converse(connection)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop.add_reader(listener, accept)
        try:
            yield listener.getsockname()[1]
        finally:
            loop.remove_reader(listener)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for connection in sockets:
                connection.close()


@asynccontextmanager
async def tcp_server(answer: bytes) -> AsyncIterator[int]:
    """Return a context manager for a server that is not a gRPC server: it sends some bytes, and then nothing."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        while await reader.read(_READ_BYTES):
            pass

    async with listening(talk) as port:
        yield port


@asynccontextmanager
async def http2_server(status: int) -> AsyncIterator[int]:
    """Return a context manager for an HTTP/2 server that answers each request with a status, as a proxy may."""
    text = str(status).encode()
    headers = b"\x08" + bytes([len(text)]) + text  # a literal value of the static table's ":status" (RFC 7541)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        writer.write(_frame(4, 0, bytes(4)))
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(9)
                body = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], head[5:9]
                if kind == 4 and not flags & 1:
                    writer.write(_frame(4, 1, stream))
                elif kind == 6 and not flags & 1:
                    writer.write(_frame(6, 1, stream, body))
                elif kind == 1:
                    writer.write(_frame(1, 5, stream, headers))

    async with listening(talk) as port:
        yield port


def _frame(kind: int, flags: int, stream: bytes, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream + body


class Relay:
    """A relay in front of a server.

    Args:
        target: The port of the server.

    Attributes:
        target: The port of the server for new connections.
        connections: The number of connections that clients have made.
        sent_bytes: The number of bytes that it has passed on to the server.
        replies: The number of pieces of data that it has passed on from the server.
        replied_bytes: The number of bytes in them.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.connections = self.sent_bytes = self.replies = self.replied_bytes = 0
        self._copies: set[asyncio.Task[None]] = set()

    @property
    def open_connections(self) -> int:
        """The number of connections that are open."""
        return len(self._copies) // 2

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        copies = [
            asyncio.ensure_future(self.copy(reader, server_writer, upwards=True)),
            asyncio.ensure_future(self.copy(server_reader, writer, upwards=False)),
        ]
        self._copies.update(copies)
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server_writer.transport.abort()  # before this waits, since that may be cancelled
            self._copies.difference_update(copies)
            for each in copies:
                each.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            with suppress(ConnectionError):
                await server_writer.wait_closed()

    def cut(self) -> None:
        """Cut all connections."""
        for each in self._copies:
            each.cancel()

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, upwards: bool) -> None:
        """Pass on bytes in one direction until it ends, and close the connection."""
        with suppress(ConnectionError):
            while data := await source.read(_READ_BYTES):
                target.write(data)
                await target.drain()
                self.count(len(data), upwards=upwards)

    def count(self, size_bytes: int, *, upwards: bool) -> None:
        """Count bytes that were passed on."""
        if upwards:
            self.sent_bytes += size_bytes
        else:
            self.replies += 1
            self.replied_bytes += size_bytes


class Freezing(Relay):
    """A relay that acts as a frozen server: it keeps its connections open, and sends nothing.

    Later connections are relayed again, to the server that replaced the frozen one.
    """

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._generation = 0

    def freeze(self) -> None:
        self._generation += 1

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, upwards: bool) -> None:
        generation = self._generation
        while data := await source.read(_READ_BYTES):
            if generation == self._generation:
                self.count(len(data), upwards=upwards)
                target.write(data)
        if generation != self._generation:
            await asyncio.Event().wait()  # a frozen server closes nothing either


class Switch(Relay):
    """A relay that a test switches off, as if its server were gone, or stalls, as if it were frozen."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._is_off = self._is_stalled = False
        self._act: Callable[[], None] | None = None
        self._act_after_bytes = 0
        self._act_upwards = False

    def after(self, size_bytes: int, act: Callable[[], None], *, upwards: bool = False) -> None:
        """Do something once, when so many further bytes were passed on in one direction: then no more are."""
        self._act, self._act_upwards = act, upwards
        self._act_after_bytes = size_bytes + self._passed_bytes()

    def _passed_bytes(self) -> int:
        return self.sent_bytes if self._act_upwards else self.replied_bytes

    def _act_if_due(self) -> None:
        act = self._act
        if act is not None and self._passed_bytes() > self._act_after_bytes:
            self._act = None
            act()

    def switch_off(self) -> None:
        """Cut all connections, and each later one."""
        self._is_off = True
        self.cut()

    def switch_on(self) -> None:
        """Relay later connections again."""
        self._is_off = False

    def stall(self) -> None:
        """Pass on nothing any more, and keep all connections open, also later ones."""
        self._is_stalled = True

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_off:
            self.connections += 1
            return
        if self._is_stalled:
            await asyncio.Event().wait()
        await super().relay(reader, writer)

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, upwards: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(_READ_BYTES):
                if self._is_stalled:
                    await asyncio.Event().wait()
                target.write(data)
                await target.drain()
                self.count(len(data), upwards=upwards)
                self._act_if_due()


class Cutting(Relay):
    """A relay that cuts each of its first connections after a number of bytes in one direction."""

    def __init__(self, target: int, *, cuts: int, after_bytes: int, upwards: bool) -> None:
        super().__init__(target)
        self._cuts_left = cuts
        self._after_bytes = after_bytes
        self._upwards = upwards

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, upwards: bool) -> None:
        copied_bytes = 0
        with suppress(ConnectionError):
            while data := await source.read(_READ_BYTES):
                target.write(data)
                await target.drain()
                copied_bytes += len(data)
                self.count(len(data), upwards=upwards)
                if upwards == self._upwards and self._cuts_left and copied_bytes > self._after_bytes:
                    self._cuts_left -= 1
                    return


@asynccontextmanager
async def cutting(port: int, *, cuts: int, after_bytes: int, upwards: bool = False) -> AsyncIterator[int]:
    """Return a context manager for the port of a relay that breaks connections."""
    relay = Cutting(port, cuts=cuts, after_bytes=after_bytes, upwards=upwards)
    async with listening(relay.relay) as relayed:
        yield relayed
