"""Ports of the loopback interface that nobody listens on."""

import random
import socket
from collections.abc import Iterator
from itertools import islice

# The system gives ports to those who ask for any, and to connections, from 32768 on (Linux) or 49152 on (macOS): it
# never gives one of these to someone else between the moment when a test picks it and that when a server listens on it.
_RANGE = range(20_000, 32_000)


def _ports() -> Iterator[int]:
    # From a place of its own in each process that runs tests; none a second time before all others.
    start = random.SystemRandom().randrange(len(_RANGE))
    while True:
        for index in range(len(_RANGE)):
            port = _RANGE[(start + index) % len(_RANGE)]
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            yield port


_free = _ports()


def free_ports(count: int) -> list[int]:
    """Return distinct ports that nobody listens on."""
    return list(islice(_free, count))


def free_port() -> int:
    """Return a port that nobody listens on."""
    return next(_free)
