"""The records of a Directory: services, their endpoints and details."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

SOURCE_PROPERTY = "__registration_source"
"""Property that says how the registered host was chosen."""

VERSION_PROPERTY = "__version"
"""Property with the version of the registered program."""

LOAD_UNSERVICEABLE = 255
"""The `overall_load` of a service that cannot serve."""


class ServiceType(enum.Enum):
    """The types of services, by their names in Cogment's command line and discovery endpoints."""

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
    """The protocol of a service."""

    GRPC = "grpc"
    GRPC_SSL = "grpc_ssl"
    COGMENT = "cogment"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a service.

    Attributes:
        protocol: Its protocol.
        host: Name or address; for `Protocol.COGMENT`, a registered name.
        port: TCP port; 0 for `Protocol.COGMENT`.
    """

    protocol: Protocol
    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port, in gRPC's form."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        scheme = "cogment" if self.protocol is Protocol.COGMENT else "grpc"
        return f"{scheme}://{self.address if self.port else self.host}"


@dataclass(frozen=True, slots=True)
class Details:
    """The type and the properties of a service; in an inquiry, those that it must have.

    Attributes:
        type: Its type.
        properties: Names and values; an inquiry matches a service that has all of the inquiry's.
    """

    type: ServiceType
    properties: Mapping[str, str] = field(default_factory=dict)

    def match(self, inquiry: "Details") -> bool:
        """Return whether an inquiry finds a service with these details."""
        return self.type is inquiry.type and inquiry.properties.items() <= self.properties.items()


@dataclass(frozen=True, slots=True)
class Service:
    """A registered service.

    Attributes:
        service_id: Its id, from the Directory.
        endpoint: Its address.
        details: Its type and properties.
        permanent: Whether it is kept although its checks fail.
    """

    service_id: int
    endpoint: Endpoint
    details: Details
    permanent: bool = False
