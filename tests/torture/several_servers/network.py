"""The network between the nodes of a test: where each one is, and how the way between two of them fails.

Nodes are hosts of the network: the servers, the databases, the object store and the clients. There are two networks: of
namespaces, where each node has a host of its own, and of proxies on the loopback interface, for a machine on which the
process may not make namespaces.
"""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

from tests.torture.several_servers.namespaces import Namespaces
from tests.torture.several_servers.proxies import Proxies


class Network(Protocol):
    """The ways between nodes.

    Attributes:
        description: What it is made of, as the figures show it.
    """

    description: str

    def before(self, node: str) -> list[str]:
        """Return the prefix of a command that runs on a node."""

    def host(self, node: str) -> str:
        """Return the address of a node, at which its processes listen, and at which the test reaches them."""

    def peer_host(self, node: str) -> str:
        """Return the address at which the other nodes reach any port of a node."""

    def listening_socket(self, node: str) -> socket.socket:
        """Return a socket of this process that listens at a free port of a node."""

    def inside(self, node: str) -> AbstractContextManager[None]:
        """Return a context manager in which this thread makes its sockets on a node."""

    async def listen(self, node: str, port: int) -> None:
        """Let other nodes reach a port of a node by `address` and `peer_host`."""

    async def address(self, source: str, target: str, port: int) -> str:
        """Return host and port at which one node reaches a port of another one."""

    async def cut(self, one: str, other: str) -> None:
        """Let nothing pass between two nodes, without a word to either."""

    async def slow_down(self, one: str, other: str) -> None:
        """Let little pass between two nodes."""

    async def heal(self) -> None:
        """Let everything pass again."""


@asynccontextmanager
async def network(nodes: Sequence[str], *, has_own: bool) -> AsyncIterator[Network]:
    """Return a context manager for a network.

    Args:
        nodes: The names of the nodes.
        has_own: Whether this process has a network to itself, in which it makes namespaces.
    """
    if has_own:
        with Namespaces(nodes) as namespaces:
            yield namespaces
    else:
        async with Proxies() as proxies:
            yield proxies
