"""A network of namespaces: each node has an address of its own, and this process is the router between them.

The process must have a network namespace to itself (`own_network`). A way is cut by a rule of the router that drops
packets, so neither end notices anything except that nothing arrives. A slow way is a queue with a low rate.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from types import TracebackType

OWN_NETWORK = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""The prefix of a command that gets a network, and whose processes all end with it."""

_SLOW = "400kbit"
_BURST_BYTES = 8_000
_CLONE_NEWNET = 0x40000000


def may_make_namespaces() -> bool:
    """Return whether this process may make network namespaces: root, on Linux, with the tools for it."""
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip", "tc"))):
        return False
    command = [*OWN_NETWORK, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Namespaces(AbstractContextManager["Namespaces"]):
    """The nodes and their addresses.

    Args:
        nodes: The names of the nodes.
    """

    description = "network namespaces"

    def __init__(self, nodes: Sequence[str]) -> None:
        self._indices = {node: index for index, node in enumerate(nodes, 1)}
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()
        self._marks = count(10)
        self._undo: list[tuple[str, ...]] = []
        self._classes: dict[str, int] = {}

    def __enter__(self) -> "Namespaces":
        _run("ip", "link", "set", "lo", "up")
        _run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for node in self._indices:
            self._add(node)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _add(self, node: str) -> None:
        index = self._indices[node]
        # A namespace lives as long as a process in it; this one ends when its input does.
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo && exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._stack.enter_context(holder)
        assert holder.stdout is not None
        holder.stdout.readline()
        self._holders[node] = holder
        _run("ip", "link", "add", f"v{index}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _run("ip", "addr", "add", f"10.77.{index}.1/24", "dev", f"v{index}")
        _run("ip", "link", "set", f"v{index}", "up")
        inside = self.before(node)
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run(*inside, "ip", "addr", "add", f"{self.host(node)}/24", "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        _run(*inside, "ip", "route", "add", "default", "via", f"10.77.{index}.1")

    def before(self, node: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holders[node].pid}/ns/net"]

    def host(self, node: str) -> str:
        return f"10.77.{self._indices[node]}.2"

    def peer_host(self, node: str) -> str:
        return self.host(node)

    async def listen(self, node: str, port: int) -> None:
        """Do nothing: every node reaches every port."""

    async def address(self, source: str, target: str, port: int) -> str:
        return f"{self.host(target)}:{port}"

    async def cut(self, one: str, other: str) -> None:
        for source, target in ((one, other), (other, one)):
            rule = ("from", self.host(source), "to", self.host(target), "blackhole")
            mark = str(next(self._marks))
            _run("ip", "rule", "add", "pref", mark, *rule)
            self._undo.append(("ip", "rule", "del", "pref", mark))

    async def slow_down(self, one: str, other: str) -> None:
        for source, target in ((one, other), (other, one)):
            device = f"v{self._indices[target]}"
            if device not in self._classes:
                _run("tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "htb")
                self._undo.append(("tc", "qdisc", "del", "dev", device, "root"))
            self._classes[device] = self._classes.get(device, 0) + 1
            name = f"1:{self._classes[device]}"
            rate = ("htb", "rate", _SLOW, "burst", str(_BURST_BYTES))
            _run("tc", "class", "add", "dev", device, "parent", "1:", "classid", name, *rate)
            match = ("u32", "match", "ip", "src", f"{self.host(source)}/32", "flowid", name)
            _run("tc", "filter", "add", "dev", device, "parent", "1:", "protocol", "ip", *match)

    async def heal(self) -> None:
        while self._undo:
            _run(*self._undo.pop())
        self._classes.clear()

    @contextmanager
    def inside(self, node: str) -> Iterator[None]:
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as own:
            with open(f"/proc/{self._holders[node].pid}/ns/net", "rb") as other:
                assert libc.setns(other.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(own.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def listening_socket(self, node: str) -> socket.socket:
        """Return a socket of this process that listens at a free port of a node."""
        with self.inside(node):
            return socket.create_server((self.host(node), 0))
