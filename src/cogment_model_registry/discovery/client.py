"""A client of any Directory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.errors import InvalidError, UnavailableError
from cogment_model_registry.records.addresses import parse_endpoint
from cogment_model_registry.records.services import Details, Endpoint, Service
from cogment_model_registry.wire import convert
from cogment_model_registry.wire import directory as wire
from cogment_model_registry.wire.directory import DecodeError

_TIMEOUT_SECONDS = 10.0

_CHANNEL_OPTIONS = (
    # A Directory that comes back is to be found within seconds, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 4000),
    ("grpc.enable_http_proxy", 0),
)


class DirectoryClient:
    """Asks a Directory. Made by `connected`.

    Every method raises `UnavailableError` when the Directory does not answer, and `TimedOutError` when it takes too
    long.

    Args:
        channel: The connection.
        token: The authentication token; empty for none.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = ((wire.TOKEN_KEY, token),) if token else ()

    async def register(
        self,
        endpoint: Endpoint,
        details: Details,
        *,
        permanent: bool = False,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> tuple[int, str]:
        """Register a service.

        Returns:
            Its id, and the secret that deregisters it.

        Raises:
            InvalidError: The Directory refuses; the message is its own.
        """
        request = wire.RegisterRequest(
            endpoint=wire.endpoint_message(endpoint), details=wire.details_message(details), permanent=permanent
        )
        async with _translated():
            data = await self._exchange("Register", request.SerializeToString(), timeout_seconds)
            reply = wire.RegisterReply.FromString(data)
        if not wire.is_ok(reply):
            raise InvalidError(f"the Directory refused: {reply.error_msg or 'it gave no reason'}")
        return reply.service_id, reply.secret

    async def deregister(self, service_id: int, secret: str, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        """Remove a service.

        Raises:
            InvalidError: The Directory refuses; the message is its own.
        """
        request = wire.DeregisterRequest(service_id=service_id, secret=secret)
        async with _translated():
            data = await self._exchange("Deregister", request.SerializeToString(), timeout_seconds)
            reply = wire.DeregisterReply.FromString(data)
        if not wire.is_ok(reply):
            raise InvalidError(f"the Directory refused: {reply.error_msg or 'it gave no reason'}")

    async def inquire(self, inquiry: Details | int, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> list[Service]:
        """Return the services that an inquiry by details, or by id, finds; most recently registered first."""
        request = wire.inquire_request(inquiry)
        multi_callable: Any = self._channel.unary_stream(f"/{wire.SERVICE_NAME}/Inquire")
        async with _translated():
            replies = multi_callable(request.SerializeToString(), timeout=timeout_seconds, metadata=self._metadata)
            return [wire.service_from_reply(data) async for data in replies]

    async def _exchange(self, method: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one request on a stream of its own, and return the one reply."""
        multi_callable: Any = self._channel.stream_stream(f"/{wire.SERVICE_NAME}/{method}")
        async for reply in multi_callable(iter([request]), timeout=timeout_seconds, metadata=self._metadata):
            return bytes(reply)
        raise UnavailableError("the Directory ended the call without a reply")


@asynccontextmanager
async def connected(endpoint: str, token: str = "") -> AsyncIterator[DirectoryClient]:
    """Open a context with a client of a Directory, which need not be there yet.

    Args:
        endpoint: Where it is: ``grpc://host:port``.
        token: The authentication token; empty for none.
    """
    target = parse_endpoint(endpoint).removeprefix("grpc://")
    async with grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS) as channel:
        yield DirectoryClient(channel, token)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except DecodeError as error:
        raise UnavailableError("the Directory sent a malformed reply") from error
    except grpc.aio.AioRpcError as error:
        raise convert.error_type_of(error.code())(
            f"the Directory answered {error.code().name}: {error.details()}"
        ) from error
