"""A client of any Directory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.errors import InvalidError, UnavailableError
from cogment_model_registry.records.addresses import endpoint_text, split_endpoint
from cogment_model_registry.records.services import Details, Endpoint, Service
from cogment_model_registry.system.certificates import CertificateError
from cogment_model_registry.wire import channels
from cogment_model_registry.wire import directory as wire
from cogment_model_registry.wire.directory import DecodeError
from cogment_model_registry.wire.tls import TlsFiles

_TIMEOUT_SECONDS = 10.0


class DirectoryClient:
    """Asks a Directory, one question after the other. Made by `connected`.

    A call that failed ends its connection: the Directory may have frozen, or moved to another address of its name.

    Every method raises `UnavailableError` when the Directory does not answer, `TimedOutError` when it takes too long,
    and `WrongServerError` when something else answers.

    Args:
        address: Its host and port.
        token: The authentication token; empty for none.
        files: What to trust and show over TLS; None for a Directory without it.
    """

    def __init__(self, address: str, token: str, files: TlsFiles | None = None) -> None:
        self._address = address
        self._files = files
        self._metadata = ((wire.TOKEN_KEY, token),) if token else ()
        self._channel: grpc.aio.Channel | None = None

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
        async with self._calling() as channel:
            data = await self._exchange(channel, "Register", request.SerializeToString(), timeout_seconds)
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
        async with self._calling() as channel:
            data = await self._exchange(channel, "Deregister", request.SerializeToString(), timeout_seconds)
            reply = wire.DeregisterReply.FromString(data)
        if not wire.is_ok(reply):
            raise InvalidError(f"the Directory refused: {reply.error_msg or 'it gave no reason'}")

    async def inquire(self, inquiry: Details | int, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> list[Service]:
        """Return the services that an inquiry by details, or by id, finds; most recently registered first."""
        request = wire.inquire_request(inquiry)
        async with self._calling() as channel:
            multi_callable: Any = channel.unary_stream(f"/{wire.SERVICE_NAME}/Inquire")
            replies = multi_callable(request.SerializeToString(), timeout=timeout_seconds, metadata=self._metadata)
            return [wire.service_from_reply(data) async for data in replies]

    async def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _exchange(self, channel: grpc.aio.Channel, method: str, request: bytes, timeout_seconds: float) -> bytes:
        """Send one request on a stream of its own, and return the one reply.

        A call with one request is the same on the wire. `grpc.aio` sends that with the beginning of the call, and so
        reports the status of a server that refuses it; see https://github.com/grpc/grpc/issues/36066.
        """
        multi_callable: Any = channel.unary_stream(f"/{wire.SERVICE_NAME}/{method}")
        async for reply in multi_callable(request, timeout=timeout_seconds, metadata=self._metadata):
            return bytes(reply)
        raise UnavailableError("the Directory ended the call without a reply")

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[grpc.aio.Channel]:
        """Return a context manager with the channel for one call, whose errors it translates."""
        if self._channel is None:
            self._channel = await self._connect()
        try:
            yield self._channel
        except DecodeError as error:
            raise UnavailableError("the Directory sent a malformed reply") from error
        except grpc.aio.AioRpcError as error:
            await self.close()
            where = endpoint_text(self._address, is_secure=self._files is not None)
            if not channels.was_sent(error):
                await asyncio.to_thread(self._check_stranger, error, where)
            error_type, message = channels.described(error, where, channels.DIRECTORY)
            raise error_type(f"asking the Directory: {message}") from error

    async def _connect(self) -> grpc.aio.Channel:
        """Return a channel, with what the files have now.

        Raises:
            UnavailableError: They cannot be used.
        """
        if self._files is None:
            return grpc.aio.insecure_channel(self._address, options=channels.OPTIONS)
        try:
            tls = await asyncio.to_thread(self._files.read)
        except CertificateError as error:
            raise UnavailableError(f"asking the Directory: {error}") from error
        return grpc.aio.secure_channel(self._address, tls.credentials(), options=channels.OPTIONS)

    def _check_stranger(self, error: grpc.aio.AioRpcError, where: str) -> None:
        if self._files is None:
            channels.check_stranger(self._address, where, channels.DIRECTORY)
        else:
            channels.check_tls(error, self._address, where, self._files)


@asynccontextmanager
async def connected(endpoint: str, token: str = "", files: TlsFiles | None = None) -> AsyncIterator[DirectoryClient]:
    """Return a context manager with a client of a Directory, which need not run yet.

    Args:
        endpoint: Its address: ``grpc://host:port`` or ``grpcs://host:port``.
        token: The authentication token; empty for none.
        files: What to trust and show over TLS, where that is used; None for the authorities that gRPC knows.
    """
    address, is_secure = split_endpoint(endpoint)
    client = DirectoryClient(address, token, (files or TlsFiles()) if is_secure else None)
    try:
        yield client
    finally:
        await client.close()
