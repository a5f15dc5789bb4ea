"""Versions by descriptors instead of bytes, where the server runs on the same host as the same user.

`Status` names the UNIX socket of the server. The client asks for it once for each connection, before the first transfer
that is large enough; what goes wrong is logged at `debug`, and gRPC does the transfer. The server has checked the bytes
of what it hands over, and keeps them unchanged: a file of its archive, or sealed memory.
"""

import asyncio
import io
import logging
import mmap
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import IO, TypeVar

from cogment_model_registry.client.blocks import Source
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.links import LocalPlace
from cogment_model_registry.client.progress import Report
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import (
    ClosedError,
    DataLossError,
    LimitedError,
    ModelRegistryError,
    TimedOutError,
    UnavailableError,
)
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.payload import hash_of
from cogment_model_registry.records.sizes import GIB, MIB
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system import sealed_memory
from cogment_model_registry.system.sealed_memory import SealedMemory, UnsealedMemory
from cogment_model_registry.wire import local, messages

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

MIN_BYTES = MIB
"""The smallest transfer that goes this way."""

_COPIED_MAX_BYTES = GIB
"""The largest version that is copied to sealed memory to be published. The server may refuse it, and then the copy was
made in vain."""

_ASK_SECONDS = 1.0
"""How long the server may take to say where its socket is."""

_ASK_AGAIN_SECONDS = 10.0
"""How long to remember that there is no socket."""

_QUIET_SECONDS = 0.5
"""How long to wait for an answer before the server is checked, where another one can go on."""

_CHECK_SECONDS = 5.0
"""How long it may take to answer then; its connection breaks sooner if it froze."""

_BLOCK_BYTES = 4 * MIB


class LocalTransfers:
    """Retrieves and publishes versions by descriptors.

    Args:
        calls: Makes calls.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def retrieve(self, info: VersionInfo, take: Callable[[int], _T], deadline: Deadline) -> _T | None:
        """Return what a function makes of a descriptor of a version, or None if the server hands none over.

        Args:
            info: The version.
            take: Gets the descriptor, on a thread, and leaves it open.
            deadline: When to give up.
        """
        credentials = self._calls.connection.credentials
        authorization, forwarded_peer = credentials.authorization(), credentials.forwarded_peer()  # not on the thread

        def ask(place: LocalPlace, connection: socket.socket) -> _T:
            request = local.read_request(
                place.socket_id,
                info.model_id,
                info.number,
                info.data_hash,
                authorization=authorization,
                forwarded_peer=forwarded_peer,
            )
            received: list[int] = []
            try:
                local.send(connection, request, [])
                local.read_reply(local.receive(connection, received))
                if not received:
                    raise local.RefusedError("the server has no descriptor of it to give")
                status = os.fstat(received[0])
                if not stat.S_ISREG(status.st_mode) or status.st_size != info.data_size_bytes:
                    raise local.MalformedError("the descriptor is not one of the version")
                return take(received[0])
            finally:
                local.close_all(received)

        return await self._talk(f"version {info.number} of model {info.model_id!r}", ask, deadline)

    async def may_publish(self, source: Source, deadline: Deadline | None) -> bool:
        """Return whether bytes in memory are worth being published by `publish`, as far as is known."""
        is_small_enough = source.sealed is not None or source.size_bytes <= _COPIED_MAX_BYTES
        if source.size_bytes < MIN_BYTES or not is_small_enough or not sealed_memory.is_supported():
            return False
        return await self._place(deadline or Deadline(_ASK_SECONDS)) is not None

    async def publish(
        self, header: UploadHeader, source: Source, report: Report, deadline: Deadline
    ) -> VersionInfo | None:
        """Publish a version, and return it; None if the server may not have it, so that it must be sent.

        The header may have no hash: the server computes it, and knows the upload by its id if it is sent then.
        """

        def ask(place: LocalPlace, connection: socket.socket) -> Version:
            with _sealed(source, report) as memory:
                descriptor = memory.descriptor()
                received: list[int] = []
                try:
                    local.send(
                        connection, local.upload_request(place.socket_id, header, self._authorization()), [descriptor]
                    )
                    version = local.read_reply(local.receive(connection, received))
                finally:
                    local.close_all([descriptor, *received])
            if version is None:
                raise local.MalformedError("the reply to an upload has no version")
            return version

        version = await self._talk(f"a new version of model {header.model_id!r}", ask, deadline)
        return None if version is None else version.info

    def _authorization(self) -> str:
        return self._calls.connection.credentials.authorization()

    async def _talk(self, what: str, ask: Callable[[LocalPlace, socket.socket], _T], deadline: Deadline) -> _T | None:
        """Return the result of a function that talks to the server, on a thread; None if that failed."""
        for is_last in (False, True):
            place = await self._place(deadline)
            if place is None:
                return None
            try:
                return await self._connected(place, ask, deadline)
            except _AbsentError as absent:
                # The server may have been restarted, and then says another path.
                self._calls.connection.local = LocalPlace.nowhere() if is_last else None
                _log.debug("%s is not here: %s", place.path, absent)
            except (local.RefusedError, local.MalformedError, OSError) as error:
                reason = str(error) or type(error).__name__
                _log.debug("%s goes by gRPC and not by %s: %s", what, place.path, reason)
                return None
        return None

    async def _connected(
        self, place: LocalPlace, ask: Callable[[LocalPlace, socket.socket], _T], deadline: Deadline
    ) -> _T:
        connection = local.new_socket()
        try:
            talking = submit(partial(_ask, connection, place, ask, deadline.left_seconds()))
            return await self._awaited(talking, connection, place, deadline)
        except BaseException:
            _wake(connection)
            raise

    async def _awaited(
        self, talking: "Future[_T]", connection: socket.socket, place: LocalPlace, deadline: Deadline
    ) -> _T:
        """Return the result of talking to the server; check on the way that it answers, if another one can go on.

        Raises:
            _AbsentError: It does not answer any more, or calls go to another server by now.
            TimeoutError: The result did not come in time.
        """
        backend = self._calls.backend
        if not self._calls.connection.has_others:
            return await backend.wait(talking, deadline.left_seconds())
        while True:
            over: Future[None] = Future()  # one that a wait may cancel
            talking.add_done_callback(partial(_note_end, over))
            left_seconds = deadline.left_seconds()
            with suppress(TimeoutError, asyncio.TimeoutError):  # which are two before Python 3.11
                await backend.wait(over, min(_QUIET_SECONDS, left_seconds))
            if talking.done():
                return talking.result()
            if left_seconds <= _QUIET_SECONDS:
                raise TimeoutError
            if reason := await self._absence(place):
                _wake(connection)  # the thread may have its answer already; it never works on after this
                try:
                    return await backend.wait(talking, deadline.left_seconds())
                except (local.RefusedError, local.MalformedError, OSError):
                    raise _AbsentError(reason) from None

    async def _absence(self, place: LocalPlace) -> str:
        """Return why the server of a socket is not the one to wait for any more; empty if it still answers."""
        request, limit = messages.StatusRequest(names=[local.ID_STATUS]), Deadline(_CHECK_SECONDS)
        try:
            await self._calls.without_retries().unary(
                "Status", request, messages.StatusReply, Subject("checking the server"), limit
            )
        except LimitedError:
            return ""
        except (UnavailableError, TimedOutError) as error:
            return error.message
        return "" if self._calls.connection.local is place else "calls go to another server by now"

    async def _place(self, deadline: Deadline) -> LocalPlace | None:
        """Return where the socket of the server is; None if it has none here."""
        connection = self._calls.connection
        known = connection.local
        if not local.is_supported() or not connection.has_lifecycle:
            return None
        if known is None or (not known.path and time.monotonic() - known.asked >= _ASK_AGAIN_SECONDS):
            known = connection.local = await self._ask(Deadline(min(_ASK_SECONDS, deadline.left_seconds())))
        return known if known.path else None

    async def _ask(self, deadline: Deadline) -> LocalPlace:
        request = messages.StatusRequest(names=[local.PATH_STATUS, local.ID_STATUS])
        subject = Subject("asking for the local socket")
        calls = self._calls.without_retries()
        try:
            reply = await calls.unary("Status", request, messages.StatusReply, subject, deadline)
        except ClosedError:
            raise
        except ModelRegistryError as error:
            _log.debug("the local socket is not known: %s", error)
            return LocalPlace.nowhere()
        path, socket_id = reply.statuses.get(local.PATH_STATUS, ""), reply.statuses.get(local.ID_STATUS, "")
        if not path:
            _log.debug("the server at %s has no local socket", calls.connection.peer)
        return LocalPlace(path, socket_id, time.monotonic())


def _wake(connection: socket.socket) -> None:
    """Let the thread that talks over a socket find it ended; it closes the socket."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()  # it never connected, or is closed


def _note_end(over: "Future[None]", _talking: object) -> None:
    """Wake who waits for the end of something, unless they have given up."""
    if over.set_running_or_notify_cancel():
        over.set_result(None)


class _AbsentError(Exception):
    """The server is not at the path that it said, as seen from here."""


def _ask(
    connection: socket.socket, place: LocalPlace, ask: Callable[[LocalPlace, socket.socket], _T], seconds: float
) -> _T:
    """Connect, and return the result of a function that talks to the server; blocks."""
    with connection:
        connection.settimeout(max(seconds, 0.001))
        try:
            connection.connect(place.path)
        except BlockingIOError:
            raise  # it is there, and busy
        except OSError as error:
            raise _AbsentError(error.strerror or str(error)) from None
        _process, user = local.peer_of(connection)
        if user != os.geteuid():
            raise _AbsentError("another user listens there")
        try:
            return ask(place, connection)
        except local.StrangerError as error:
            raise _AbsentError(str(error)) from None


def _sealed(source: Source, report: Report) -> SealedMemory:
    """Return the bytes of a source in sealed memory, copied unless they are in such memory."""
    report.restart()
    if source.sealed is not None:
        report.advance(source.size_bytes)
        return source.sealed.shared()
    memory = UnsealedMemory(source.size_bytes)
    try:
        memory.write(_counted(source, report))
        # A hash that was computed before would show a change; comparing takes a fifth of its time.
        if not source.is_fixed and not memory.has(source.blocks(_BLOCK_BYTES)):
            raise OSError("the bytes changed while they were copied")
        return memory.seal()
    except BaseException:
        memory.close()
        raise


def _counted(source: Source, report: Report) -> Iterator[memoryview | bytes]:
    for block in source.blocks(_BLOCK_BYTES):
        yield block
        report.advance(len(block))


def mapped(info: VersionInfo, *, is_writable: bool) -> Callable[[int], mmap.mmap]:
    """Return what maps the bytes of a descriptor of a version; see `sealed_memory.mapped`."""
    return partial(sealed_memory.mapped, size_bytes=info.data_size_bytes, is_writable=is_writable)


def unchangeable(info: VersionInfo, *, is_writable: bool) -> Callable[[int], mmap.mmap | bytes | bytearray]:
    """Return what maps the bytes of a descriptor of sealed memory, and copies those of a file, which may be changed."""

    def take(descriptor: int) -> mmap.mmap | bytes | bytearray:
        if sealed_memory.is_sealed(descriptor):
            return mapped(info, is_writable=is_writable)(descriptor)
        data = bytes_of(info)(descriptor)
        return bytearray(data) if is_writable else data

    return take


def bytes_of(info: VersionInfo) -> Callable[[int], bytes]:
    """Return what copies the bytes of a descriptor of a version."""

    def read(descriptor: int) -> bytes:
        # Other threads can run in the meantime, which they cannot while mapped memory is copied.
        data = os.pread(descriptor, info.data_size_bytes, 0)
        if len(data) == info.data_size_bytes:
            return data
        buffer = io.BytesIO()  # the system reads 2 GiB at once at most
        copy_to(info, buffer)(descriptor)
        return buffer.getvalue()

    return read


def copy_to(info: VersionInfo, file: IO[bytes]) -> Callable[[int], bool]:
    """Return what copies the bytes of a descriptor of a version to a file, in place of its contents."""

    def copy(descriptor: int) -> bool:
        file.seek(0)
        file.truncate()
        position = 0
        while position < info.data_size_bytes:
            block = os.pread(descriptor, _BLOCK_BYTES, position)
            if not block:
                raise local.MalformedError("the file was truncated while it was read")
            file.write(block)
            position += len(block)
        return True

    return copy


def check(info: VersionInfo, data: "mmap.mmap | memoryview | bytes | bytearray") -> None:
    """Check bytes against the hash of their version; blocks.

    Raises:
        DataLossError: They do not match it.
    """
    _check(info, hash_of([memoryview(data)]))


def check_file(info: VersionInfo, file: IO[bytes]) -> None:
    """Check all bytes of a file against the hash of their version; blocks. See `check`."""
    file.seek(0)
    _check(info, hash_of(iter(partial(file.read, _BLOCK_BYTES), b"")))


def _check(info: VersionInfo, data_hash: str) -> None:
    if data_hash != info.data_hash:
        reason = f"its data_hash is {info.data_hash}, but the bytes received have {data_hash}"
        raise DataLossError.version(info.model_id, info.number, reason)
