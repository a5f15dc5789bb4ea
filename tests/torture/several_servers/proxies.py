"""A network of TCP proxies on the loopback interface, where this process may not make namespaces.

Each way from one node to a port of another one has a proxy of its own. The ways from all servers to one of them share
a proxy, at another address of the loopback interface, since a server has one address for all of them: so a cut between
two servers cuts the second one off from all.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from cogment_model_registry.system.tasks import end

_HOST, _PEER_HOST = "127.0.0.1", "127.77.0.1"
_SLOW_BYTES_PER_SECOND = 50_000
PEERS = "the servers"


class Proxy:
    """A proxy for TCP connections, which can stop and slow down what they carry."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._is_slow = False
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; 0 for a free port."""
        self._server = await asyncio.start_server(self._accept, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End all connections."""
        assert self._server is not None
        self._server.close()
        for task in [*self._tasks]:
            await end(task)

    def cut(self) -> None:
        """Let nothing pass, and keep all connections."""
        self._is_open.clear()

    def slow_down(self) -> None:
        """Let little pass."""
        self._is_slow = True

    def heal(self) -> None:
        """Let everything pass."""
        self._is_slow = False
        self._is_open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with contextlib.suppress(OSError):
                await self._is_open.wait()
                other_reader, other_writer = await asyncio.open_connection(_HOST, self._target_port)
                writers.append(other_writer)
                directions = (self._carry(reader, other_writer), self._carry(other_reader, writer))
                tasks = [asyncio.create_task(each) for each in directions]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        await end(task)
        finally:
            for each in writers:
                each.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(16_384):
            await self._is_open.wait()
            if self._is_slow:
                await asyncio.sleep(len(data) / _SLOW_BYTES_PER_SECOND)  # what a slow network does
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


class Proxies(AbstractAsyncContextManager["Proxies"]):
    """All proxies, by the nodes that they connect."""

    description = "proxies on the loopback interface"

    def __init__(self) -> None:
        self._proxies: dict[tuple[str, str, int], Proxy] = {}

    async def __aenter__(self) -> "Proxies":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for proxy in self._proxies.values():
            await proxy.close()

    def before(self, _node: str) -> list[str]:
        return []

    def host(self, _node: str) -> str:
        return _HOST

    def peer_host(self, _node: str) -> str:
        return _PEER_HOST

    def inside(self, _node: str) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    async def listen(self, node: str, port: int) -> None:
        if (PEERS, node, port) not in self._proxies:
            await self._start(PEERS, node, port, _PEER_HOST, port)

    async def address(self, source: str, target: str, port: int) -> str:
        proxy = self._proxies.get((source, target, port)) or await self._start(source, target, port, _HOST, 0)
        return f"{_HOST}:{proxy.port}"

    async def _start(self, source: str, target: str, target_port: int, host: str, port: int) -> Proxy:
        proxy = self._proxies[source, target, target_port] = Proxy(target_port)
        await proxy.start(host, port)
        return proxy

    async def cut(self, one: str, other: str) -> None:
        for proxy in self._between(one, other):
            proxy.cut()

    async def slow_down(self, one: str, other: str) -> None:
        for proxy in self._between(one, other):
            proxy.slow_down()

    async def heal(self) -> None:
        for proxy in self._proxies.values():
            proxy.heal()

    def _between(self, one: str, other: str) -> Iterable[Proxy]:
        found = [proxy for key, proxy in self._proxies.items() if {*key[:2]} == {one, other}]
        return found or [proxy for key, proxy in self._proxies.items() if key[:2] == (PEERS, other)]

    def listening_socket(self, _node: str) -> socket.socket:
        """Return a socket of this process that listens at a free port."""
        return socket.create_server((_HOST, 0))
