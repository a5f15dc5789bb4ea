"""What goes with calls that one process makes for others: whom they are for, and what they alone can ask.

The process that serves HTTP makes its calls over a UNIX socket that no other user can reach. The server believes what
comes there, and what comes over the network never.
"""

import ipaddress
import json
from dataclasses import asdict, dataclass

PEER_KEY = "cogment-forwarded-peer"
"""The metadata with the address of whoever a call is for, in gRPC's words: ``ipv4:127.0.0.1:4711``."""

SERVICE_NAME = "cogment_model_registry.v1.Web"
"""The service of that socket. Its messages are plain bytes."""

READ_METRICS = "LocalReadMetrics"
"""Its method that returns the metrics of the server, in Prometheus' text format."""

KNOWS_TOKEN = "LocalKnowsToken"  # noqa: S105 # no token
"""Its method that says whether the token of a call is known, without a look for it: one byte if it is, none if not."""

NAME_CALLER = "LocalNameCaller"
"""Its method that returns the name of the holder of the token of a call, without a look for it: none if unknown."""

DESCRIBE_CALLER = "LocalDescribeCaller"
"""Its method that says who calls and what they may do: a `Description` in JSON."""


@dataclass(frozen=True, slots=True)
class Description:
    """Who calls, and what they may do.

    Attributes:
        name: The name of their grant, or words for somebody without one.
        kind: How they show who they are, such as ``token``; ``anonymous`` for those who do not.
        scopes: What they may do.
        expires_ns: When that ends, in nanoseconds since the Unix epoch; None for never.
    """

    name: str
    kind: str
    scopes: tuple[str, ...]
    expires_ns: int | None = None

    def encoded(self) -> bytes:
        """Return the reply that says so."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, reply: bytes) -> "Description":
        """Return what a reply says."""
        fields = json.loads(reply)
        return cls(**{**fields, "scopes": tuple(fields["scopes"])})


def peer_of(host: str, port: int) -> str:
    """Return an address in gRPC's words.

    Raises:
        ValueError: The host is no IP address.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if mapped is not None or isinstance(address, ipaddress.IPv4Address):
        return f"ipv4:{mapped or address}:{port}"
    return f"ipv6:%5B{address}%5D:{port}"


HEALTH_PATH = "/grpc.health.v1.Health/Check"


def is_serving(reply: bytes) -> bool:
    """Return whether the reply of the health service, for the server as a whole, says that it serves."""
    return reply == b"\x08\x01"  # field 1, the status, is SERVING
