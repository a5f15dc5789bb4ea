"""Pings by which a client notices within seconds that a server froze, or that the network between them is gone.

A server of gRPC allows one ping in five minutes by default, and breaks the connection of a client that sends more. So a
client that can go on with another server asks first, by the status `STATUS`, and pings only while calls are under way.
"""

from collections.abc import Mapping

STATUS = "ping_min_seconds"
"""The name of the status that says how often the server allows pings."""

MIN_SECONDS = 1.0
"""How often servers of this package allow them."""

_EVERY_SECONDS = 2.0
"""How long nothing may arrive before a client pings."""

_ANSWER_SECONDS = 2.0
"""How long the answer may take: together with the time before, and with that to connect to another server, less than
five seconds. A process answers pings on gRPC's own threads, so one that is busy answers at once."""

OPTIONS = {
    "grpc.keepalive_time_ms": int(_EVERY_SECONDS * 1000),
    "grpc.keepalive_timeout_ms": int(_ANSWER_SECONDS * 1000),
    # Newer releases of gRPC wait for this where the kernel of a frozen peer still acknowledges bytes.
    "grpc.http2.ping_timeout_ms": int(_ANSWER_SECONDS * 1000),
    # A client that watches sends nothing else, and older releases would stop after two pings.
    "grpc.http2.max_pings_without_data": 0,
}
"""The options of a channel that pings."""


def are_allowed(statuses: Mapping[str, str]) -> bool:
    """Return whether a server with some statuses allows pings as often as `OPTIONS` sends them."""
    try:
        return 0 < float(statuses.get(STATUS, "")) < _EVERY_SECONDS
    except ValueError:
        return False
