"""Between the records of a Directory and the messages of its API."""

from google.protobuf.message import DecodeError as _DecodeError

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.services import Details, Endpoint, Protocol, Service, ServiceType
from cogment_model_registry.wire._generated.cogment.api import directory_pb2

SERVICE_NAME = directory_pb2.DESCRIPTOR.services_by_name["DirectorySP"].full_name

TOKEN_KEY = "authentication-token"  # noqa: S105 # the name of it
"""The key of the metadata that carries the authentication token."""

DecodeError = _DecodeError
RegisterRequest = directory_pb2.RegisterRequest
RegisterReply = directory_pb2.RegisterReply
DeregisterRequest = directory_pb2.DeregisterRequest
DeregisterReply = directory_pb2.DeregisterReply
InquireRequest = directory_pb2.InquireRequest
InquireReply = directory_pb2.InquireReply


_TYPES = {
    ServiceType.LIFECYCLE: directory_pb2.TRIAL_LIFE_CYCLE_SERVICE,
    ServiceType.CLIENT_ACTOR: directory_pb2.CLIENT_ACTOR_CONNECTION_SERVICE,
    ServiceType.ACTOR: directory_pb2.ACTOR_SERVICE,
    ServiceType.ENVIRONMENT: directory_pb2.ENVIRONMENT_SERVICE,
    ServiceType.PRE_HOOK: directory_pb2.PRE_HOOK_SERVICE,
    ServiceType.DATALOG: directory_pb2.DATALOG_SERVICE,
    ServiceType.DATASTORE: directory_pb2.DATASTORE_SERVICE,
    ServiceType.MODEL_REGISTRY: directory_pb2.MODEL_REGISTRY_SERVICE,
    ServiceType.DIRECTORY: directory_pb2.DIRECTORY_SERVICE,
    ServiceType.OTHER: directory_pb2.OTHER_SERVICE,
}
_PROTOCOLS = {
    Protocol.GRPC: directory_pb2.ServiceEndpoint.GRPC,
    Protocol.GRPC_SSL: directory_pb2.ServiceEndpoint.GRPC_SSL,
    Protocol.COGMENT: directory_pb2.ServiceEndpoint.COGMENT,
}

# The name of the gRPC service that answers `Status` for each type.
STATUS_SERVICES = {
    ServiceType.LIFECYCLE: "cogmentAPI.TrialLifecycleSP",
    ServiceType.CLIENT_ACTOR: "cogmentAPI.ClientActorSP",
    ServiceType.ACTOR: "cogmentAPI.ServiceActorSP",
    ServiceType.ENVIRONMENT: "cogmentAPI.EnvironmentSP",
    ServiceType.PRE_HOOK: "cogmentAPI.TrialHooksSP",
    ServiceType.DATALOG: "cogmentAPI.DatalogSP",
    ServiceType.DATASTORE: "cogmentAPI.TrialDatastoreSP",
    ServiceType.MODEL_REGISTRY: "cogmentAPI.ModelRegistrySP",
    ServiceType.DIRECTORY: "cogmentAPI.DirectorySP",
}


def inquire_request(inquiry: Details | int) -> directory_pb2.InquireRequest:
    """Return the request for services by details, or by id."""
    if isinstance(inquiry, int):
        return directory_pb2.InquireRequest(service_id=inquiry)
    return directory_pb2.InquireRequest(details=details_message(inquiry))


def service_from_reply(data: bytes) -> Service:
    """Return the service in an InquireReply.

    Raises:
        DecodeError: The bytes are not such a reply.
        InvalidError: It describes no service.
    """
    return service_from_message(directory_pb2.InquireReply.FromString(data).data)


def is_ok(reply: directory_pb2.RegisterReply | directory_pb2.DeregisterReply) -> bool:
    """Return whether the Directory did the request."""
    return reply.status == type(reply).OK


def details_from_message(message: directory_pb2.ServiceDetails) -> Details:
    """Return the details of a service in a message.

    Raises:
        InvalidError: The type does not exist.
    """
    for service_type, number in _TYPES.items():
        if number == message.type:
            return Details(service_type, dict(message.properties))
    raise InvalidError(f"service type {message.type} does not exist")


def details_message(details: Details) -> directory_pb2.ServiceDetails:
    """Return the message with the details of a service."""
    return directory_pb2.ServiceDetails(type=_TYPES[details.type], properties=details.properties)


def endpoint_from_message(message: directory_pb2.ServiceEndpoint) -> Endpoint:
    """Return the endpoint that a message describes.

    Raises:
        InvalidError: It is malformed.
    """
    protocol = next((each for each, number in _PROTOCOLS.items() if number == message.protocol), None)
    if protocol is None:
        raise InvalidError(f"protocol {message.protocol} does not exist")
    if not message.host:
        raise InvalidError("the endpoint has no host")
    if protocol is not Protocol.COGMENT and not 1 <= message.port <= 65535:
        raise InvalidError(f"port {message.port} is not valid; it must be from 1 to 65535")
    return Endpoint(protocol, message.host, message.port)


def endpoint_message(endpoint: Endpoint) -> directory_pb2.ServiceEndpoint:
    """Return the message that describes an endpoint."""
    return directory_pb2.ServiceEndpoint(protocol=_PROTOCOLS[endpoint.protocol], host=endpoint.host, port=endpoint.port)


def service_from_message(message: directory_pb2.FullServiceData) -> Service:
    """Return the registered service that a message describes.

    Raises:
        InvalidError: It is malformed.
    """
    return Service(
        message.service_id,
        endpoint_from_message(message.endpoint),
        details_from_message(message.details),
        message.permanent,
    )


def service_message(service: Service) -> directory_pb2.FullServiceData:
    """Return the message that describes a registered service."""
    return directory_pb2.FullServiceData(
        endpoint=endpoint_message(service.endpoint),
        service_id=service.service_id,
        details=details_message(service.details),
        permanent=service.permanent,
    )


def register_reply(*, service_id: int = 0, secret: str = "", error: str = "") -> directory_pb2.RegisterReply:
    """Return the reply to a registration: OK with an id and a secret, or FAILED with an error."""
    if error:
        return directory_pb2.RegisterReply(status=directory_pb2.RegisterReply.FAILED, error_msg=error)
    status = directory_pb2.RegisterReply.OK
    return directory_pb2.RegisterReply(status=status, service_id=service_id, secret=secret)


def deregister_reply(*, error: str = "") -> directory_pb2.DeregisterReply:
    """Return the reply to a deregistration: OK, or FAILED with an error."""
    status = directory_pb2.DeregisterReply.FAILED if error else directory_pb2.DeregisterReply.OK
    return directory_pb2.DeregisterReply(status=status, error_msg=error)
