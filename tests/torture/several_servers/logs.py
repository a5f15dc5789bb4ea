"""What the logs of the servers say."""

import json
from collections.abc import Iterable

SERVER_GONE = "server gone"
"""The event by which a server says that it has removed the lease of another one."""


def is_removal(line: str) -> bool:
    """Return whether a line says that a lease was removed."""
    return f'"event": "{SERVER_GONE}"' in line


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
