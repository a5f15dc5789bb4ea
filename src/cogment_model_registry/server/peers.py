"""Connections to the other servers of a catalog, over which this one asks for versions that they hold.

A connection is kept while it is used and a while longer. One whose server could not be reached, or fell silent, is
replaced at the next call: the server may have been started again, with another certificate or at another address.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from cogment_model_registry.errors import (
    NotFoundError,
    SettingError,
    StartError,
    StoppingError,
    UnavailableError,
    counted,
)
from cogment_model_registry.records.addresses import split_endpoint
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.serving.calls import Call
from cogment_model_registry.serving.certificates import pair_files
from cogment_model_registry.settings import Settings
from cogment_model_registry.system.certificates import CertificateError, PemFile
from cogment_model_registry.system.tasks import SharedWork, TaskSet, wait_at_most
from cogment_model_registry.system.token_files import AGAIN_SECONDS, read_token
from cogment_model_registry.wire import channels, convert, lifecycle
from cogment_model_registry.wire.tls import TlsFiles

_OPTIONS = (
    *channels.OPTIONS,
    # A server sends chunks of the size that its settings say.
    ("grpc.max_receive_message_length", -1),
)

_READ_VERSION = f"/{lifecycle.SERVICE_NAME}/ReadVersion"

SILENT_SECONDS = 10.0
"""How long a server may send nothing of a version: as long as it may not renew its lease."""

_UNUSED_SECONDS = 60.0
"""How long a connection is kept that nobody uses."""


class PeerToken:
    """The token that this server shows to others, from a file that may be replaced at any time.

    Args:
        path: The file; empty for no token.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._token = ""
        self._read_at = float("-inf")
        self._reading: SharedWork[None, str] = SharedWork()

    def check(self) -> None:
        """Read the file; blocks.

        Raises:
            SettingError: It has no token.
        """
        if self._path:
            read_token("peer_token_file", self._path)

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what a call carries.

        Raises:
            SettingError: The file has no token now.
        """
        if not self._path:
            return ()
        if time.monotonic() - self._read_at >= AGAIN_SECONDS:
            self._token = await self._reading.result(None, self._read)
            self._read_at = time.monotonic()
        return (("authorization", f"Bearer {self._token}"),)

    async def _read(self) -> str:
        return await asyncio.to_thread(read_token, "peer_token_file", self._path)


class _Connection:
    """A channel to one server, and how many calls are under way on it."""

    __slots__ = ("calls", "channel", "closing")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.closing: asyncio.TimerHandle | None = None  # while nobody uses it


class Peers:
    """The other servers. An asynchronous context manager, which closes the connections; calls must have ended before.

    Args:
        token: What it shows them.
        files: What it trusts and shows over TLS.
        silent_seconds: How long a server may send nothing.
        unused_seconds: How long a connection is kept that nobody uses.
    """

    def __init__(
        self,
        token: PeerToken,
        files: TlsFiles,
        silent_seconds: float = SILENT_SECONDS,
        unused_seconds: float = _UNUSED_SECONDS,
    ) -> None:
        self._token = token
        self._files = files
        self._silent_seconds = silent_seconds
        self._unused_seconds = unused_seconds
        self._connections: dict[str, _Connection] = {}
        self._connecting: SharedWork[str, None] = SharedWork()
        self._closing = TaskSet()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        for endpoint, connection in [*self._connections.items()]:
            self._close(endpoint, connection)
        await self._closing.settled()

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    async def ask(self, endpoint: str, name: str, request: bytes) -> bytes:
        """Make a call of ModelLifecycle, which the server answers from what it knows itself; return the reply.

        Raises:
            UnavailableError: It cannot be reached, or did not answer.
            ModelRegistryError: It refused.
        """
        connection = await self._begin(endpoint)
        is_lost = False
        try:
            metadata = (*lifecycle.FOR_A_PEER, *await self._token.metadata())
            multi_callable: Any = connection.channel.unary_unary(f"/{lifecycle.SERVICE_NAME}/{name}")
            reply: bytes = await multi_callable(request, metadata=metadata, timeout=self._silent_seconds)
        except grpc.aio.AioRpcError as error:
            is_lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            error_type, message = channels.described(error, endpoint, channels.REGISTRY)
            raise error_type(message) from None
        finally:
            self._note_end(endpoint, connection, is_lost=is_lost)
        return reply

    async def _begin(self, endpoint: str) -> _Connection:
        """Return a connection for a call that begins now."""
        connection = await self._connected(endpoint)
        connection.calls += 1
        if connection.closing is not None:
            connection.closing.cancel()
            connection.closing = None
        return connection

    async def open_stream(self, endpoint: str, info: VersionInfo, offset: int, limit: int | None) -> "PeerStream":
        """Ask a server for a version that it has in memory; see `relay_sources.OpenStream`.

        Raises:
            NotFoundError: It has it not, or another one with this number.
            UnavailableError: It cannot be reached, or did not answer.
            ModelRegistryError: It refused.
        """
        connection = await self._begin(endpoint)
        try:
            metadata = (*lifecycle.FOR_A_PEER, *await self._token.metadata())
            request = lifecycle.read_request(info.model_id, info.number, offset, limit, info.data_hash)
            multi_callable: Any = connection.channel.unary_stream(_READ_VERSION)
            call = multi_callable(request.SerializeToString(), metadata=metadata)
        except BaseException:
            self._note_end(endpoint, connection, is_lost=False)
            raise
        stream = PeerStream(
            call, endpoint, self._silent_seconds, functools.partial(self._note_end, endpoint, connection)
        )
        try:
            await stream.begin(info)
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _connected(self, endpoint: str) -> _Connection:
        while (connection := self._connections.get(endpoint)) is None:
            if self._is_closed:
                raise StoppingError
            await self._connecting.result(endpoint, lambda: self._connect(endpoint))
        return connection

    async def _connect(self, endpoint: str) -> None:
        address, is_secure = split_endpoint(endpoint)
        if is_secure:
            try:
                tls = await asyncio.to_thread(self._files.read)
            except CertificateError as error:
                raise UnavailableError(str(error)) from None
            channel = grpc.aio.secure_channel(address, tls.credentials(), options=_OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._connections[endpoint] = _Connection(channel)

    def _note_end(self, endpoint: str, connection: _Connection, *, is_lost: bool) -> None:
        """Note that a call is over; after one that failed, the next call makes a new connection."""
        connection.calls -= 1
        if is_lost and self._connections.get(endpoint) is connection:
            del self._connections[endpoint]
        if not connection.calls:
            if self._connections.get(endpoint) is connection:
                loop = asyncio.get_running_loop()
                connection.closing = loop.call_later(self._unused_seconds, self._close, endpoint, connection)
            else:
                self._close(endpoint, connection)

    def _close(self, endpoint: str, connection: _Connection) -> None:
        if self._connections.get(endpoint) is connection:
            del self._connections[endpoint]
        if connection.closing is not None:
            connection.closing.cancel()
        self._closing.begin(connection.channel.close())


class PeerStream:
    """A version that a server sends. Made by `Peers.open_stream`.

    Args:
        call: The call ReadVersion.
        endpoint: Whom it is for.
        silent_seconds: How long the server may send nothing.
        on_end: Called once at the end, with whether the server is to be connected to again.
    """

    def __init__(self, call: Any, endpoint: str, silent_seconds: float, on_end: Callable[..., None]) -> None:
        self._call = call
        self._endpoint = endpoint
        self._silent_seconds = silent_seconds
        self._on_end = on_end
        self._is_lost = False
        self._is_closed = False

    async def begin(self, info: VersionInfo) -> None:
        """Wait for the record of the version.

        Raises:
            NotFoundError: It is that of another one.
            ModelRegistryError: The server does not send it.
        """
        sent = await self._read()
        if not isinstance(sent, Version):
            raise UnavailableError("it sent no record of the version")
        if _identity(sent) != _identity(info):
            raise NotFoundError.version(info.model_id, info.number)

    async def next(self) -> memoryview | None:
        """Return the next bytes; None at the end.

        Raises:
            ModelRegistryError: The server does not send them.
        """
        sent = await self._read()
        if isinstance(sent, Version):
            raise UnavailableError("it sent another record after that of the version")
        return sent

    async def aclose(self) -> None:
        """End the call. Closing twice does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._call.cancel()
            self._on_end(is_lost=self._is_lost)

    async def _read(self) -> Version | memoryview | None:
        """Return what the next message has; None at the end."""
        try:
            message = await wait_at_most(self._silent_seconds, self._call.read())
            return None if message is grpc.aio.EOF else lifecycle.read_reply(message)
        except TimeoutError:
            self._is_lost = True
            raise UnavailableError(f"it sent nothing for {counted(self._silent_seconds, 'second')}") from None
        except convert.DecodeError:
            raise UnavailableError("it sent a malformed message") from None
        except grpc.aio.AioRpcError as error:
            self._is_lost = error.code() is grpc.StatusCode.UNAVAILABLE
            error_type, message = channels.described(error, self._endpoint, channels.REGISTRY)
            raise error_type(message) from None


def is_for_a_peer(call: Call) -> bool:
    """Return whether another server makes a call, which is to be answered from what this one has and knows itself."""
    [(mark, value)] = lifecycle.FOR_A_PEER
    return call.metadata(mark) == value


def _identity(info: VersionInfo) -> tuple[str, int, int, str, int]:
    return info.model_id, info.number, info.created_ns, info.data_hash, info.data_size_bytes


def peers_of(settings: Settings) -> Peers:
    """Return the connections to other servers that the settings describe.

    Raises:
        StartError: A file cannot be used.
    """
    authorities = settings.peer_tls_ca
    files = TlsFiles(PemFile("peer_tls_ca", authorities) if authorities else None, pair_files(settings))
    token = PeerToken(settings.peer_token_file)
    try:
        files.read()
        token.check()
    except (CertificateError, SettingError) as error:
        raise StartError(str(error)) from None
    return Peers(token, files)
