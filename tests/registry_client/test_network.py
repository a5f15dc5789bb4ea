"""The network of these tests leaves no socket open, whenever it ends."""

import asyncio
import gc
import socket
from contextlib import AsyncExitStack, suppress

import pytest

from cogment_model_registry.server.composition import Server
from tests.registry_client.network import cutting, tcp_server


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_is_closed_however_early_the_peer_ends(turns: int, server: Server) -> None:
    """Even if its task has not run yet, so its `finally` never runs."""
    connections = []
    async with AsyncExitStack() as stack:
        for peer in (tcp_server(b"answer"), cutting(server.port, cuts=1, after_bytes=1)):
            port = await stack.enter_async_context(peer)
            connections.append(socket.create_connection(("127.0.0.1", port)))
        for _ in range(turns):
            await asyncio.sleep(0)
    gc.collect()  # an open transport warns when it is collected, which fails the test
    for connection in connections:
        connection.settimeout(20)
        with connection, suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
