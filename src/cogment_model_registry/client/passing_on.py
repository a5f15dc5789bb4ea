"""Pass versions on while they arrive, without keeping them: the calls of the client that a gateway needs."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue

from cogment_model_registry.client.attempts import CHUNK_BYTES, Upload
from cogment_model_registry.client.blocks import Source
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.deadlines import Deadline, transfer_deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.local import MIN_BYTES, LocalTransfers
from cogment_model_registry.client.progress import Report
from cogment_model_registry.client.streams import streaming
from cogment_model_registry.errors import ModelRegistryError, quoted
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.news import Event
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import lifecycle, watching

_LONGEST_SECONDS = 7 * 86_400.0
"""The longest time for a stream; in practice, the two ends of the stream decide when it takes too long."""

_CHUNKS_MAX = 2
"""How many chunks of an upload wait to be sent."""


class PassingOn:
    """Passes versions on, in both directions.

    Args:
        calls: Makes calls.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._local = LocalTransfers(calls)

    async def descriptor(self, info: VersionInfo) -> int | None:
        """Return a descriptor of the bytes of a version, to be closed; None where they have to be received."""
        if info.data_size_bytes < MIN_BYTES:
            return None
        return await self._local.retrieve(info, os.dup, transfer_deadline(info.data_size_bytes))

    async def receive(self, info: VersionInfo, part: range) -> AsyncGenerator[memoryview, None]:
        """Yield some bytes of a version as they arrive.

        Args:
            info: The version.
            part: The positions of the bytes, of which there is at least one.

        Raises:
            NotFoundError: It does not exist any more.
            PreconditionError: The number now belongs to another version.
        """
        subject = Subject(f"reading version {info.number} of model {quoted(info.model_id)}", info.model_id, info.number)
        request = lifecycle.read_request(info.model_id, info.number, part.start, len(part), info.data_hash)
        path = method_path("ReadVersion", lifecycle.SERVICE_NAME)
        data = request.SerializeToString()
        async with streaming(self._calls, path, data, subject, _LONGEST_SECONDS, is_brief=True) as replies:
            while (message := await replies.read()) is not None:
                received = lifecycle.read_reply(message)
                if isinstance(received, memoryview):
                    yield received

    async def watch(
        self, model_ids: Sequence[str], token: str, *, every: bool, accepted: str, consumers: bool
    ) -> AsyncGenerator[tuple[str, Event | Consumer], None]:
        """Yield the events of some models, or of all, each with the token that resumes after it."""
        request = watching.watch_request(model_ids, token, every=every, accepted=accepted, consumers=consumers)
        path = method_path("Watch", lifecycle.SERVICE_NAME)
        subject = Subject("watching", model_ids[0] if len(model_ids) == 1 else None)
        async with streaming(self._calls, path, request, subject, _LONGEST_SECONDS) as replies:
            while (message := await replies.read()) is not None:
                reply = watching.decode_reply(message)
                if isinstance(reply, watching.Reply) and reply.event is not None:
                    yield reply.token, reply.event

    async def upload(self, header: UploadHeader, parts: Callable[[], AsyncIterator[bytes]]) -> VersionInfo:
        """Upload a version whose bytes arrive in parts; they are received only as fast as the server accepts them.

        Args:
            header: The declaration of the version.
            parts: Returns an iterator over all bytes; called when the server needs the first ones.

        Raises:
            InvalidError: There are fewer bytes, or more, than declared.
        """
        body = _Body(header.data_size_bytes)
        subject = Subject(f"a new version of model {quoted(header.model_id)}", header.model_id)
        deadline = Deadline(_LONGEST_SECONDS)
        report = Report("", header.data_size_bytes, lambda _: None)
        upload = Upload(self._calls, header, body, subject=subject, deadline=deadline, report=report)
        running = asyncio.ensure_future(upload.run())
        feeding = asyncio.ensure_future(body.feed(parts))
        try:
            await asyncio.wait((running, feeding), return_when=asyncio.FIRST_COMPLETED)
            return await running
        finally:
            for task in (running, feeding):
                task.cancel()
            body.close()
            await asyncio.gather(running, feeding, return_exceptions=True)


class _Body(Source):
    """Bytes that an event loop provides once, for the thread of gRPC that sends them.

    Args:
        size_bytes: The number of bytes.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.is_fixed = True
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._start = 0
        self._room = asyncio.Semaphore(_CHUNKS_MAX)
        self._chunks: SimpleQueue[bytes | BaseException | None] = SimpleQueue()

    async def feed(self, parts: Callable[[], AsyncIterator[bytes]]) -> None:
        """Wait until bytes are requested, then pass them on; those before the requested position are dropped."""
        await self._wanted.wait()
        try:
            await self._feed(parts)
            self._chunks.put(None)
        except BaseException as error:
            self._chunks.put(error)
            raise

    async def _feed(self, parts: Callable[[], AsyncIterator[bytes]]) -> None:
        chunk, position = bytearray(), 0
        async for part in parts():
            skipped = min(max(self._start - position, 0), len(part))
            position += len(part)
            chunk += part[skipped:] if skipped else part
            while len(chunk) >= CHUNK_BYTES:
                await self._put(bytes(chunk[:CHUNK_BYTES]))
                del chunk[:CHUNK_BYTES]
        if chunk:
            await self._put(bytes(chunk))

    async def _put(self, chunk: bytes) -> None:
        await self._room.acquire()
        self._chunks.put(chunk)

    def blocks(self, size_bytes: int, start: int = 0) -> Iterator[memoryview | bytes]:
        """Yield the bytes; on a thread, and once."""
        self._start = start
        self._tell(self._wanted.set)
        while isinstance(chunk := self._chunks.get(), bytes):
            yield chunk
            self._tell(self._room.release)
        if chunk is not None:
            raise chunk

    def _tell(self, action: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(action)

    def finish(self) -> None:
        """Do nothing: the bytes are no file."""

    def close(self) -> None:
        """End the thread that waits for bytes."""
        self._chunks.put(_EndedError("the upload is over"))


class _EndedError(ModelRegistryError):
    """The upload has ended, so nobody needs the bytes."""
