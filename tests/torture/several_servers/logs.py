"""What the logs of the servers say."""

import json
import time
from collections.abc import Iterable
from datetime import datetime

from tests.torture.several_servers.history import Effect, Trouble

LEASE_LOST = ("lease lost; another one taken", "server gone")
"""The events by which a server says that its lease, or that of another one, is gone."""

_LEASE_NS = 20 * 10**9
"""How long before such an event the server may have given no sign of life, with room for a busy machine."""


def leases_lost(lines: Iterable[str]) -> list[Trouble]:
    """Return when leases were lost: on a busy machine without a fault too. Transient versions are lost with them."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    troubles = []
    for line in lines:
        if any(f'"{event}"' in line for event in LEASE_LOST) and line.startswith("{"):
            at = datetime.fromisoformat(json.loads(line)["timestamp"])
            at_ns = int(at.timestamp() * 10**9) - offset_ns
            troubles.append(Trouble("lease lost", at_ns - _LEASE_NS, at_ns, Effect.LOSES))
    return troubles


def complaints(lines: Iterable[str]) -> list[str]:
    """Return the exceptions that nobody handled; that something is not available is expected."""
    return [complaint for line in lines if (complaint := _complaint(line))]


def _complaint(line: str) -> str:
    if not line.startswith("{"):
        return line
    entry = json.loads(line)
    parts = [f"{entry['timestamp']} {entry['event']} {entry.get('call', '')}"] if "exception" in entry else []
    for each in entry.get("exception", []):
        where = [f"{frame['filename']}:{frame['lineno']}" for frame in each["frames"][-6:]]
        parts.append(f"{each['exc_type']}: {each['exc_value']} at {', '.join(where)}")
    return "; ".join(parts)
