"""A network that carries nothing any more is noticed, whoever the client can ask instead."""

import os
import socket
from typing import Any

import psutil
import pytest

from cogment_model_registry.server.composition import Server
from cogment_model_registry.wire import channels


def silent_milliseconds(port: int) -> set[int]:
    """Return after which times without a confirmation the system ends the connections of this process to a port."""
    found = set()
    for connection in psutil.Process().net_connections("tcp"):
        if connection.raddr[1:] == (port,):
            with socket.socket(fileno=os.dup(connection.fd)) as used:
                found.add(used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return found


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux breaks off silent connections")
async def test_a_connection_to_the_only_server_is_broken_off_when_nothing_is_confirmed(
    server: Server, registry: Any
) -> None:
    await registry.list_models()
    assert silent_milliseconds(server.port) == {channels.SILENT_SECONDS * 1000}
