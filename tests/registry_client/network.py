"""Ports, servers that are no gRPC servers, and a network that cuts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def tcp_server(answer: bytes) -> AsyncIterator[int]:
    """Open a context with a server that is no gRPC server: it sends some bytes, and then says nothing."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async with listening(talk) as port:
        yield port


@asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Open a context with the port of a server whose connections are all closed at its end."""
    talks: set[asyncio.Future[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.ensure_future(talk(reader, writer)))

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in talks:
            each.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes what was aborted with its next turn
        await asyncio.sleep(0)


class Cutting:
    """A relay in front of a server that cuts each of its first connections after so many bytes of one direction."""

    def __init__(self, port: int, *, cuts: int, after_bytes: int, upwards: bool) -> None:
        self._target = port
        self._cuts_left = cuts
        self._after_bytes = after_bytes
        self._upwards = upwards
        self.port = 0

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        copies = [
            asyncio.ensure_future(self._copy(reader, server_writer, counted=self._upwards)),
            asyncio.ensure_future(self._copy(server_reader, writer, counted=not self._upwards)),
        ]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in copies:
                each.cancel()
            writer.transport.abort()
            server_writer.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, counted: bool) -> None:
        copied_bytes = 0
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
                copied_bytes += len(data)
                if counted and self._cuts_left and copied_bytes > self._after_bytes:
                    self._cuts_left -= 1
                    return
        except ConnectionError:
            return


@asynccontextmanager
async def cutting(port: int, *, cuts: int, after_bytes: int, upwards: bool = False) -> AsyncIterator[int]:
    """Open a context with the port of a relay that cuts."""
    relay = Cutting(port, cuts=cuts, after_bytes=after_bytes, upwards=upwards)
    async with listening(relay.relay) as relayed:
        yield relayed
