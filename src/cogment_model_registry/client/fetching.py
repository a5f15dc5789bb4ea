"""The bytes of one version from the server, in one stream or in parts.

A stream that breaks goes on where it broke, if the server has ModelLifecycle; each part names the hash of the version,
so two versions are never mixed. Of a large archived version the first part decides about the rest: on a fast path one
stream is fastest, since the client is the limit; on a long one the window of each connection is the limit, and several
connections are faster, but not several streams of one connection. Measured with 256 MiB on two cores: over loopback
875 MiB/s in one stream, 720 in four parts at a time over one connection, 670 over four; and where a round trip takes
50 ms and a connection has 4 MiB under way, 74, 75 and 249 MiB/s.
"""

import io
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import IO

import grpc

from cogment_model_registry.client.backends import Backend, Channel, Replies
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.downloads import Download, Rest
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.partial_files import PartialFile
from cogment_model_registry.client.progress import Report
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import DataLossError, NotFoundError, PreconditionError, WrongServerError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import convert, lifecycle, messages

_LARGE_BYTES = 64 * 1024 * 1024
"""The size from which an archived version may be received in parts."""

_FIRST_BYTES = 16 * 1024 * 1024
"""The size of the first part."""

_FAST_BYTES_PER_SECOND = 300 * 1024 * 1024
"""From this speed of the first part on, the rest comes in one stream."""

_CONNECTIONS = 4
"""How many parts are received at the same time otherwise, into memory."""

_FILE_WINDOWS = [4 * 1024 * 1024] * 2
"""The same into a file, for each connection how many bytes the server may send ahead. Whoever downloads to a file may
have no room in memory: of 256 MiB on two cores, a client took 43 to 57 MiB like this, and 65 to 97 with four
connections as gRPC sets them up."""


@dataclass(slots=True)
class Fetch:
    """Receives the bytes of a version into a file, whose contents they replace."""

    _calls: Calls
    _info: VersionInfo
    _file: IO[bytes]
    _subject: Subject
    _deadline: Deadline
    _report: Report
    _reporting: threading.Lock = field(default_factory=threading.Lock)
    _has_parts: bool = True

    async def run(self) -> None:
        """Receive all bytes.

        Raises:
            DataLossError: They are not those of the version.
            NotFoundError: It does not exist any more.
        """
        self._has_parts = self._calls.connection.has_lifecycle
        with self._recognising_new_models():
            if not (self._is_large and self._has_parts and await self._in_parts()):
                await self._as_a_whole()

    async def resume(self, partial_file: PartialFile, present: Sequence[range]) -> None:
        """Receive the bytes that a partial file lacks.

        If bytes turn out to be wrong, or the server cannot send parts, all are received again.

        Args:
            partial_file: The file, which was opened and begun.
            present: The positions of the bytes that it has, in order and disjoint.

        Raises:
            DataLossError: They are not those of the version.
            NotFoundError: It does not exist any more.
            OSError: They cannot be synced.
        """
        self._has_parts = self._calls.connection.has_lifecycle
        with self._recognising_new_models():
            if not (self._has_parts and await self._missing_parts(partial_file, present)):
                await self._calls.backend.wait(submit(partial_file.give_up))
                await self._as_a_whole()

    @property
    def _is_large(self) -> bool:
        return self._info.archived and self._info.data_size_bytes >= _LARGE_BYTES

    @contextmanager
    def _recognising_new_models(self) -> Generator[None]:
        """Return a context manager that translates the error for a hash that is not the expected one."""
        try:
            yield
        except PreconditionError as error:
            message = f"{self._subject.text}: the model was created again, and another version has this number"
            raise NotFoundError(message, model_id=self._info.model_id, version_number=self._info.number) from error

    def _restarted(self) -> Download:
        self._report.restart()
        self._file.seek(0)
        self._file.truncate()
        return Download(self._info, self._file, self._calls.backend)

    # In one stream.

    async def _as_a_whole(self) -> None:
        download = self._restarted()

        async def receive(channel: Channel) -> None:
            nonlocal download
            is_broken = download.received_bytes > 0
            if not (is_broken and self._has_parts and await self._resumed(channel, download)):
                if is_broken:
                    download.abandon()
                    download = self._restarted()
                await self._receive(self._whole(channel), convert.decode_data_chunk, download.write)
            await download.finish()

        try:
            await self._calls.retrying(
                receive, self._subject, self._deadline, progress=lambda: download.received_bytes * self._has_parts
            )
        finally:
            if self._calls.connection.is_usable():  # elsewhere its threads stand still
                download.abandon()

    async def _resumed(self, channel: Channel, download: Download) -> bool:
        """Receive what is missing; return False if the server cannot send parts."""
        await download.settle()
        try:
            await self._go_on(channel, download, self._info.data_size_bytes)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._has_parts = False
        return self._has_parts

    def _whole(self, channel: Channel) -> Replies:
        request = messages.RetrieveVersionDataRequest(model_id=self._info.model_id, version_number=self._info.number)
        path = method_path("RetrieveVersionData")
        return self._calls.backend.stream(channel, path, request.SerializeToString(), self._deadline.left_seconds())

    # In parts.

    async def _in_parts(self) -> bool:
        """Receive the first part, and then the rest in the way that fits its speed.

        Returns:
            Whether the bytes are there. If not, they are to be received as a whole: the server cannot send parts, or
            the bytes are damaged, which a server notices when it sends all of them.
        """
        download = self._restarted()
        began = time.monotonic()
        try:
            await self._until(download, _FIRST_BYTES)
            if _is_fast(_FIRST_BYTES, began):
                await self._until(download, self._info.data_size_bytes)
                await download.finish()
            else:
                is_memory = isinstance(self._file, io.BytesIO)
                windows = [None, *[0] * (_CONNECTIONS - 1)] if is_memory else _FILE_WINDOWS
                await self._receive_rest(await download.rest(), windows)
        except (WrongServerError, DataLossError):
            return False
        finally:
            if self._calls.connection.is_usable():
                download.abandon()
        return True

    async def _missing_parts(self, partial_file: PartialFile, present: Sequence[range]) -> bool:
        """Receive the parts that are missing, the first of which decides over how many connections the others come.

        Returns:
            Whether the bytes are there; see `_in_parts`.
        """
        self._report.advance(sum(map(len, present)))
        rest = Rest(self._info, self._file, self._calls.backend, present, written=partial_file.note)
        windows: Sequence[int | None] = [None]
        try:
            if (first := rest.next_part()) is not None:
                began = time.monotonic()
                await self._receive_part(self._calls, rest, first, None)
                rest.finish_part(first)
                if self._is_large:
                    windows = _FILE_WINDOWS[: 1 if _is_fast(len(first), began) else None]
            await self._receive_rest(rest, windows)
        except (WrongServerError, DataLossError):
            return False
        return True

    async def _receive_rest(self, rest: Rest, windows: Sequence[int | None]) -> None:
        """Receive all parts that nobody receives yet, and check the whole.

        Args:
            rest: What receives them.
            windows: For each connection how many bytes the server may send ahead, or 0 to leave that to gRPC; None
                stands for the connection of all calls.
        """
        works = [partial(self._receive_parts, rest, window_bytes=window_bytes) for window_bytes in windows]
        try:
            await self._calls.backend.together(works)
            await rest.finish()
        finally:
            if self._calls.connection.is_usable():
                rest.abandon()

    async def _until(self, download: Download, end: int) -> None:
        """Receive the bytes before a position."""

        async def receive(channel: Channel) -> None:
            await download.settle()
            await self._go_on(channel, download, end)

        await self._calls.retrying(receive, self._subject, self._deadline, progress=lambda: download.received_bytes)

    async def _go_on(self, channel: Channel, download: Download, end: int) -> None:
        """Receive the bytes that follow those that were received, up to a position."""
        if download.received_bytes < end:
            replies = self._part(self._calls.backend, channel, range(download.received_bytes, end))
            await self._receive(replies, lifecycle.read_reply, download.write)
        if download.received_bytes != end:
            raise self._loss(f"{download.received_bytes} bytes were received where {end} were asked for")

    async def _receive_parts(self, rest: Rest, backend: Backend, *, window_bytes: int | None) -> None:
        """Receive parts until none is left, over the connection of all calls or one of their own."""
        calls = self._calls.on(backend)
        async with AsyncExitStack() as stack:
            own = None
            if window_bytes is not None:
                own = await stack.enter_async_context(calls.connection.another(backend, window_bytes))
            while (part := rest.next_part()) is not None:
                await self._receive_part(calls, rest, part, own)
                rest.finish_part(part)

    async def _receive_part(self, calls: Calls, rest: Rest, part: range, own: Channel | None) -> None:
        position = part.start
        channels = [own] if own else []

        async def take(data: memoryview) -> None:
            nonlocal position
            if len(data) > part.stop - position:
                raise self._loss("more bytes were received than were asked for")
            await calls.backend.wait(submit(partial(rest.write, position, data)))
            position += len(data)

        async def receive(channel: Channel) -> None:
            channel = channels.pop() if channels else channel  # once: the registry may have moved
            if position < part.stop:
                replies = self._part(calls.backend, channel, range(position, part.stop))
                await self._receive(replies, lifecycle.read_reply, take)
            if position < part.stop:
                raise self._loss("fewer bytes were received than were asked for")

        await calls.retrying(receive, self._subject, self._deadline, progress=lambda: position)

    def _part(self, backend: Backend, channel: Channel, part: range) -> Replies:
        info = self._info
        request = lifecycle.read_request(info.model_id, info.number, part.start, len(part), info.data_hash)
        path = method_path("ReadVersion", lifecycle.SERVICE_NAME)
        return backend.stream(channel, path, request.SerializeToString(), self._deadline.left_seconds())

    # Both.

    async def _receive(
        self,
        replies: Replies,
        decode: Callable[[bytes], memoryview | Version],
        take: Callable[[memoryview], Awaitable[None]],
    ) -> None:
        """Receive the bytes of one stream."""
        try:
            while (message := await replies.read()) is not None:
                data = decode(message)
                if isinstance(data, memoryview):  # otherwise it is the record, which is known
                    await take(data)
                    with self._reporting:
                        self._report.advance(len(data))
                del message, data  # which the next message would otherwise be next to
        finally:
            if self._calls.connection.is_usable():  # elsewhere gRPC's threads stand still
                replies.cancel()

    def _loss(self, reason: str) -> DataLossError:
        return DataLossError.version(self._info.model_id, self._info.number, reason)


def _is_fast(size_bytes: int, began: float) -> bool:
    """Return whether bytes that began to arrive at a moment came so fast that one stream is fastest."""
    return _FAST_BYTES_PER_SECOND * (time.monotonic() - began) <= size_bytes
