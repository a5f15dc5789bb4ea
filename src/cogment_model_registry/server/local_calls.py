"""What a process on the same host can ask for over the UNIX socket: a descriptor of a version, or to adopt memory.

These are calls like those of the two services: the same rules answer them, and they are logged and counted in the same
way. A client that is refused asks by gRPC, which says the same.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import grpc

from cogment_model_registry.errors import InvalidError, TooLargeError, quoted
from cogment_model_registry.records.payload import hash_of
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.resuming import RepeatableUploads
from cogment_model_registry.server.model_lifecycle import log_aliases
from cogment_model_registry.serving.caller_limits import CallerLimits
from cogment_model_registry.serving.calls import Call, Guard, Handlers, Observer
from cogment_model_registry.system.sealed_memory import SealedMemory
from cogment_model_registry.wire import convert, lifecycle, local

_UPLOADS_MAX = 4
"""How much memory is hashed and adopted at the same time; more would not be faster on a few cores."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is connected, as the kernel says.

    Attributes:
        process: The process that connected, by its number here.
        user: Its user.
    """

    process: int
    user: int


class _RefusedError(Exception):
    """A call ended with a status."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


class _Context:
    """A call over the socket, in the terms of gRPC's."""

    def __init__(self, peer: Peer, authorization: str, forwarded_peer: str) -> None:
        self._peer = peer
        self._authorization = authorization
        self._forwarded_peer = forwarded_peer

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()
    ) -> NoReturn:
        raise _RefusedError(code, details)

    async def read(self) -> object:
        raise NotImplementedError("a call over the local socket has one request")

    async def write(self, message: bytes) -> None:
        raise NotImplementedError("a call over the local socket has one reply")

    def peer(self) -> str:
        return self._forwarded_peer or f"unix:process={self._peer.process},user={self._peer.user}"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", self._authorization),) if self._authorization else ()

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


class LocalCalls:
    """Answers requests over the socket.

    Args:
        rules: What answers reads.
        uploads: What answers uploads.
        observe: Called after each finished call.
        guard: Decides what callers may do.
        limits: How much each caller may do; None for no limits.
    """

    def __init__(
        self,
        rules: Lifecycle,
        uploads: RepeatableUploads,
        observe: Observer,
        guard: Guard | None = None,
        limits: CallerLimits | None = None,
    ) -> None:
        self._rules = rules
        self._uploads = uploads
        self._under_way = 0
        self._handlers = Handlers(observe)
        self._guard = guard
        self._limits = limits

    async def answer(
        self, message: bytes, socket_id: str, peer: Peer, descriptors: list[int], handed: list[int]
    ) -> bytes:
        """Return the reply to a request.

        Args:
            message: The request.
            socket_id: What it must carry.
            peer: Who sent it.
            descriptors: What came with it, which stays the caller's.
            handed: A list that gets what goes with the reply, for the caller to close.

        Raises:
            MalformedError: It is not a request.
        """
        try:
            request = local.LocalRequest.FromString(message)
        except convert.DecodeError as error:
            raise local.MalformedError("the request is malformed") from error
        if request.local_socket_id != socket_id:
            return local.refusal(local.STRANGER, "another server listens here")
        kind = request.WhichOneof("request")
        if kind is None:
            raise local.MalformedError("the request asks for nothing")
        method = "LocalReadVersion" if kind == "read" else "LocalUploadVersion"
        context = _Context(peer, request.authorization, request.forwarded_peer)
        call = Call(method, context, self._guard, self._limits)
        call.count_received(message)
        try:
            if kind == "read":
                return await self._handlers.answer(call, self._read(request.read, call, handed))
            return await self._handlers.answer(call, self._upload(request.upload, call, descriptors))
        except _RefusedError as error:
            return local.refusal(error.status, error.details)

    async def _read(self, request: lifecycle.ReadVersionRequest, call: Call, handed: list[int]) -> bytes:
        await call.identify()
        call.begin()
        model_id, key = request.version.model_id, lifecycle.key_of(request.version)
        call.about(model_id=model_id, version=key)
        call.admit(request)
        async with self._rules.reading(model_id, key, 0, request.expected_hash) as (version, reader):
            call.about(number=version.number, size_bytes=version.info.data_size_bytes)
            descriptor = await reader.hand_over()
            if descriptor is not None:
                handed.append(descriptor)
        return local.read(is_handed_over=descriptor is not None)

    async def _upload(
        self, message: lifecycle.UploadVersionRequest.Header, call: Call, descriptors: list[int]
    ) -> bytes:
        await call.identify()
        call.begin(is_upload=True)
        header = lifecycle.upload_header_from_message(message)
        size_bytes = header.data_size_bytes
        call.about(model_id=header.model_id, archived=header.archived, size_bytes=size_bytes)
        call.admit(header)
        header = self._uploads.checked(header)
        if not descriptors:
            raise InvalidError("an upload without bytes needs a descriptor of sealed memory", model_id=header.model_id)
        with SealedMemory.received(descriptors[0], size_bytes) as memory, self._turn(header.model_id):
            _charge(call, size_bytes)
            await self._uploads.check_room(header.version)
            header = await _with_hash(header, memory)
            # Adopting memory costs less than copying a version with the same bytes; an archived one shares its file.
            async with self._uploads.begin(header, is_whole=not header.archived) as upload:
                if not upload.is_complete:
                    await upload.adopt(memory, header.version.data_hash)
                version = await upload.commit()
        call.about(number=version.number)
        if upload.has_moved_aliases:
            log_aliases(header.model_id, upload.header.aliases, version.number, call.context.peer())
        return local.uploaded(version)

    @contextmanager
    def _turn(self, model_id: str) -> Iterator[None]:
        """Return a context manager for one of a few uploads: memory that nobody filled costs nothing to hand over.

        Raises:
            TooLargeError: There are enough; this one can be sent.
        """
        if self._under_way >= _UPLOADS_MAX:
            raise TooLargeError(f"{_UPLOADS_MAX} versions are being adopted already", model_id=model_id)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


def _charge(call: Call, size_bytes: int) -> None:
    """Count the bytes of memory that is adopted for the caller.

    Raises:
        TooLargeError: They are too many to come at once; a stream can be slowed down.
    """
    if call.share is not None:
        if not call.share.has_room(size_bytes):
            raise TooLargeError(f"the caller may not move {size_bytes} bytes at once; send them")
        call.share.charge(size_bytes)


async def _with_hash(header: UploadHeader, memory: SealedMemory) -> UploadHeader:
    """Return a header with the hash of the bytes.

    Raises:
        InvalidError: It has another one.
    """
    data_hash, declared = await asyncio.to_thread(hash_of, [memory.view]), header.version.data_hash
    if declared and declared != data_hash:
        message = f"data_hash is {quoted(declared)}, but the bytes received have {quoted(data_hash)}"
        raise InvalidError(message, model_id=header.model_id)
    return replace(header, version=replace(header.version, data_hash=data_hash))
