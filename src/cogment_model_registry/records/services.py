"""What a Directory keeps about services."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

SOURCE_PROPERTY = "__registration_source"
"""Property that says how the registered host came about."""

VERSION_PROPERTY = "__version"
"""Property with the version of what registered."""

LOAD_UNSERVICEABLE = 255
"""The `overall_load` of a service that cannot serve."""


class ServiceType(enum.Enum):
    """The types of services, by the words that Cogment's command line and discovery endpoints have for them."""

    LIFECYCLE = "lifecycle"
    CLIENT_ACTOR = "actservice"
    ACTOR = "actor"
    ENVIRONMENT = "environment"
    PRE_HOOK = "prehook"
    DATALOG = "datalog"
    DATASTORE = "datastore"
    MODEL_REGISTRY = "modelregistry"
    DIRECTORY = "directory"
    OTHER = "other"


class Protocol(enum.Enum):
    """How a service is spoken to."""

    GRPC = "grpc"
    GRPC_SSL = "grpc_ssl"
    COGMENT = "cogment"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is reached.

    Attributes:
        protocol: How it is spoken to.
        host: Name or address; for `Protocol.COGMENT`, a registered name.
        port: TCP port; 0 for `Protocol.COGMENT`.
    """

    protocol: Protocol
    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port, as gRPC wants them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        scheme = "cogment" if self.protocol is Protocol.COGMENT else "grpc"
        return f"{scheme}://{self.address if self.port else self.host}"


@dataclass(frozen=True, slots=True)
class Details:
    """What a service is; also, in an inquiry, what it must be.

    Attributes:
        type: Its type.
        properties: Names and values; an inquiry matches when all of its own are there.
    """

    type: ServiceType
    properties: Mapping[str, str] = field(default_factory=dict)

    def match(self, inquiry: "Details") -> bool:
        """Return whether a service like this is one that an inquiry is for."""
        return self.type is inquiry.type and inquiry.properties.items() <= self.properties.items()


@dataclass(frozen=True, slots=True)
class Service:
    """A registered service.

    Attributes:
        service_id: Given by the Directory.
        endpoint: Where it is reached.
        details: What it is.
        permanent: Whether it is kept although its checks fail.
    """

    service_id: int
    endpoint: Endpoint
    details: Details
    permanent: bool = False
