"""The networks in which several servers are tested: what passes, what does not, and what passes again."""

import asyncio
import socket
import subprocess
import sys
import time

import pytest

from tests.processes import clean_environment
from tests.torture.several_servers.namespaces import OWN_NETWORK, may_make_namespaces
from tests.torture.several_servers.network import Network, network
from tests.torture.several_servers.stage import ROOT
from tests.waiting import PATIENCE_SECONDS

_NODES = ("one", "two", "three")
_LARGE = bytes(80_000)


async def serve(ways: Network, node: str) -> tuple[asyncio.Server, int]:
    """Return a server on a node that sends everything back, and its port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    listening = ways.listening_socket(node)
    return await asyncio.start_server(echo, sock=listening), listening.getsockname()[1]


class Peer:
    """A connection from a node to the server of another one."""

    def __init__(self, ways: Network, source: str, address: str) -> None:
        host, port = address.split(":")
        with ways.inside(source):
            self._socket = socket.create_connection((host, int(port)), PATIENCE_SECONDS)

    def passes(self, data: bytes, within_seconds: float) -> bool:
        """Return whether data comes back in time; what is late comes later."""
        self._socket.sendall(data)
        return self.arrives(len(data), within_seconds)

    def arrives(self, size_bytes: int, within_seconds: float) -> bool:
        """Return whether so many bytes arrive in time."""
        self._socket.settimeout(within_seconds)
        try:
            while size_bytes > 0:
                size_bytes -= len(self._socket.recv(65_536))
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(PATIENCE_SECONDS)
        return True

    def close(self) -> None:
        self._socket.close()


async def check_network(*, has_own: bool) -> None:
    """Check that a cut way carries nothing, a slow one little, another one everything, and a healed one all again."""
    async with network(_NODES, has_own=has_own) as ways:
        server, port = await serve(ways, "two")
        peers = [
            await asyncio.to_thread(Peer, ways, source, await ways.address(source, "two", port))
            for source in ("one", "three")
        ]

        def passes(peer: Peer, data: bytes = b"x", within_seconds: float = PATIENCE_SECONDS) -> asyncio.Future[bool]:
            return asyncio.ensure_future(asyncio.to_thread(peer.passes, data, within_seconds))

        assert all([await passes(peer, _LARGE) for peer in peers])
        await ways.cut("two", "one")
        assert not await passes(peers[0], within_seconds=0.3)
        assert await passes(peers[1])
        await ways.heal()
        assert await asyncio.to_thread(peers[0].arrives, 1, PATIENCE_SECONDS)
        await ways.slow_down("one", "two")
        began = time.monotonic()
        assert await passes(peers[0], _LARGE)
        assert time.monotonic() - began > 1
        assert await passes(peers[1], _LARGE)
        await ways.heal()
        assert all([await passes(peer, _LARGE) for peer in peers])
        for peer in peers:
            peer.close()
        server.close()
        await server.wait_closed()


async def test_proxies_cut_and_slow_down_single_ways() -> None:
    await check_network(has_own=False)


def test_namespaces_cut_and_slow_down_single_ways() -> None:
    if not may_make_namespaces():
        pytest.skip("this process may not make network namespaces")
    command = [*OWN_NETWORK, sys.executable, "-m", "tests.torture.test_networks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=clean_environment())
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    asyncio.run(check_network(has_own=True))
