"""Asking a Directory for registries."""

from contextlib import ExitStack

from cogment_model_registry.client.backends import Backend
from cogment_model_registry.client.credentials import Credentials
from cogment_model_registry.client.endpoints import Direct, Discovered
from cogment_model_registry.client.failures import Subject, translated
from cogment_model_registry.client.open_channels import OpenChannels
from cogment_model_registry.errors import NotFoundError, UnavailableError
from cogment_model_registry.records.services import Protocol
from cogment_model_registry.wire import channels
from cogment_model_registry.wire import directory as wire


async def find_registries(
    opened: OpenChannels, backend: Backend, location: Discovered, seconds: float
) -> tuple[Direct, ...]:
    """Return the ready registries that a Directory knows; never none.

    Args:
        opened: Connects to the Directory, without the token of the client, and trusts the same authorities.
        backend: How to call and wait.
        location: The Directory, and which registries.
        seconds: How long it may take.

    Raises:
        NotFoundError: It knows none that matches, or none with TLS where that is wanted.
        UnavailableError: It does not answer.
        WrongServerError: It is no Directory.
    """
    request = wire.inquire_request(location.inquiry)
    directory = location.directory
    subject = Subject(f"asking {location}")
    tls = await opened.tls(backend, is_secure=directory.is_secure)
    channel = opened.connect(backend, directory.address, tls, credentials=Credentials())
    found: list[Direct] = []
    is_any_refused = False
    try:
        with translated(subject, opened, str(directory), channels.DIRECTORY), ExitStack() as stack:
            path = f"/{wire.SERVICE_NAME}/Inquire"
            replies = backend.stream(channel, path, request.SerializeToString(), seconds, location.token)
            stack.callback(replies.cancel)
            while (message := await replies.read()) is not None:
                endpoint = wire.service_from_reply(message).endpoint
                is_secure = endpoint.protocol is Protocol.GRPC_SSL
                if is_secure or (endpoint.protocol is Protocol.GRPC and not opened.encryption.is_wanted):
                    found.append(Direct(endpoint.address, is_secure))
                is_any_refused = is_any_refused or (endpoint.protocol is Protocol.GRPC and not found)
    except UnavailableError as error:
        await opened.check_stranger_at(backend, subject, error, directory, channels.DIRECTORY)
        raise
    finally:
        await opened.disconnect(backend, channel)
    if found:
        return tuple(found)
    if is_any_refused:
        raise NotFoundError(
            f"{location} knows no ready model registry with TLS that matches; those without it are not used where "
            "tls_ca or tls_certificate is given"
        )
    raise NotFoundError(f"{location} knows no ready model registry that matches")
