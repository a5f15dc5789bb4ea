"""Free ports of the loopback interface."""

import random
import socket
from collections.abc import Iterator
from itertools import islice

# The system assigns ephemeral ports from 32768 on (Linux) or 49152 on (macOS): it never assigns one of these ports
# between the moment when a test picks it and the moment when a server listens on it.
_RANGE = range(20_000, 32_000)


def _ports() -> Iterator[int]:
    # Each process that runs tests starts at its own position; no port is used twice before all others.
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
    """Return distinct free ports."""
    return list(islice(_free, count))


def free_port() -> int:
    """Return a free port."""
    return next(_free)
