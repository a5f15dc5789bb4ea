"""Transfers of versions over calls, in bounded memory, whatever the number of calls.

gRPC holds a message as a whole, and so do we: a message that is received is in memory twice for a moment (gRPC's
pieces, then one buffer), and so is one that waits to be sent to a client that does not read. A hundred peers with
messages of 2 MiB would take 400 MiB on top of the budget of the transient store. Therefore:

- *receiving* is by turns: an upload asks gRPC for its next message only when a share of a fixed budget is free, and
  until then gRPC's flow control holds the client back. An upload that has a turn and sends nothing soon loses the turn
  to the next one, but not its call, so that slow clients delay nobody;
- *sending* is by windows: the more retrievals are under way, the smaller are the chunks of the next one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import Generic, Protocol, Self, TypeVar

from cogment_model_registry.errors import InvalidError, ModelRegistryError, TimedOutError, counted
from cogment_model_registry.records.sizes import KIB, MIB
from cogment_model_registry.registry.registry import VersionReader
from cogment_model_registry.serving.calls import Call
from cogment_model_registry.settings import Settings
from cogment_model_registry.system.byte_budget import ByteBudget
from cogment_model_registry.system.tasks import IdleTimer, run_without_task

_RECEIVE_BYTES = 8 * MIB
"""The memory for messages of uploads of one tier while they are received: four of the usual size, more than two cores
can process. A message that is larger is received alone."""

_USUAL_MESSAGE_BYTES = 2 * MIB
"""The assumed size of a message before the first one came; the stock SDK sends no larger ones."""

_SMALL_MESSAGE_BYTES = 64 * KIB
"""gRPC receives up to so many bytes without being asked, so turns would save nothing."""

_TURN_SECONDS = 0.2
"""How long a turn waits for its message: longer than one takes on its way, unless the client or the network is slow."""

_SEND_BYTES = 32 * MIB
"""The memory for chunks while they are sent, shared by those retrievals that do not use the smallest window."""

_COPIES = 4
"""How often a chunk is in memory while it is sent: as gRPC's copy and as our message, read and read ahead."""

_WINDOW_MIN_BYTES = 256 * KIB
"""The smallest window: chunks of 64 KiB, which cost little more per byte than larger ones."""

_SHARED_COPIES = 2
"""How often a chunk that watchers share is in memory for each of them: as gRPC's copy, made and being sent."""

_SHARED_CHUNK_BYTES = _WINDOW_MIN_BYTES // _SHARED_COPIES

_DISCARD_QUIET_SECONDS = 0.05
_DISCARD_MAX_SECONDS = 2.0


class Header(Protocol):
    """What a header of an upload says, of either service."""

    @property
    def model_id(self) -> str:
        """The model."""

    @property
    def archived(self) -> bool:
        """Whether the version will be archived."""

    @property
    def data_size_bytes(self) -> int:
        """How many bytes it will have."""


_Header = TypeVar("_Header", bound=Header)
_T = TypeVar("_T")


class Transfers:
    """The limits that all transfers of a server share.

    Args:
        settings: The limits.

    Attributes:
        count: How many are under way, those of refused uploads included.
        begun: How many began so far.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # One for each tier, so that a slow disk does not delay transient uploads.
        self._receiving = {archived: ByteBudget(_RECEIVE_BYTES) for archived in (False, True)}
        self._send_bytes = _SEND_BYTES
        self._small_chunk_bytes = min(settings.sent_version_chunk_size, _SHARED_CHUNK_BYTES)
        self._small_window = nullcontext(self._small_chunk_bytes)
        self._upload_idle = IdleTimer(settings.upload_idle_seconds)
        self._retrieval_idle = IdleTimer(settings.retrieval_idle_seconds)
        self.count = self.begun = 0

    def receiving(self, call: Call, decode: Callable[[bytes], _Header | memoryview]) -> "Receiver[_Header]":
        """Return the context manager that receives an upload.

        Args:
            call: Its call.
            decode: Returns the content of a message: the header, or bytes.
        """
        self._note_begin()
        return Receiver(call, decode, self._receiving, self._upload_idle, self._note_end)

    def sending(self, call: Call, size_bytes: int) -> "VersionSender":
        """Return the context manager that sends a version of `size_bytes` bytes."""
        window_bytes = _WINDOW_MIN_BYTES
        if size_bytes > _WINDOW_MIN_BYTES // _COPIES:
            window_bytes = min(self._send_bytes // 4, _COPIES * self._settings.sent_version_chunk_size)
            window_bytes = max(window_bytes, _WINDOW_MIN_BYTES)
            self._send_bytes -= window_bytes
            # Not before the call is over: bytes that a client does not take stay in gRPC, even after its time is up.
            call.when_over(lambda: self._give_back_window(window_bytes))
        self._note_begin()
        return VersionSender(
            call, window_bytes, self._settings.sent_version_chunk_size, self._retrieval_idle, self._note_end
        )

    def replying(self, call: Call) -> "ReplySender":
        """Return the context manager that sends replies to a watcher."""
        return ReplySender(call, self._retrieval_idle, lambda: None)

    def window(self, call: Call, size_bytes: int) -> AbstractContextManager[int]:
        """Return the context manager in which a watcher is sent the bytes of a version; it yields the size of chunks.

        Small versions have the same chunks for all watchers, which share them.
        """
        return self._small_window if size_bytes <= _SHARED_CHUNK_BYTES else self._window(call, size_bytes)

    @property
    def small_chunk_bytes(self) -> int:
        """The size of the chunks of small versions: those of versions that have no more bytes need no window."""
        return self._small_chunk_bytes

    @contextmanager
    def _window(self, call: Call, size_bytes: int) -> Iterator[int]:
        self._note_begin()
        chunk_bytes = self._settings.sent_version_chunk_size
        window_bytes = _SHARED_COPIES * min(size_bytes, chunk_bytes)
        if window_bytes > self._send_bytes // 4:
            chunk_bytes, window_bytes = min(chunk_bytes, _SHARED_CHUNK_BYTES), 0
        self._send_bytes -= window_bytes
        try:
            yield chunk_bytes
        except BaseException:
            call.when_over(lambda: self._give_back_window(window_bytes))
            raise
        else:
            self._give_back_window(window_bytes)
        finally:
            self._note_end()

    def _give_back_window(self, window_bytes: int) -> None:
        self._send_bytes += window_bytes

    def _note_begin(self) -> None:
        self.count += 1
        self.begun += 1

    def _note_end(self) -> None:
        self.count -= 1


class _Transfer:
    """One upload or retrieval under way: a context manager that releases everything at its end.

    Args:
        call: Its call.
        idle: What bounds its waits.
        on_end: Called at the end.
    """

    def __init__(self, call: Call, idle: IdleTimer, on_end: Callable[[], None]) -> None:
        self._call = call
        self._idle_seconds = idle.seconds
        self._watch = idle.watch()
        self._on_end = on_end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        self._on_end()


class Receiver(_Transfer, Generic[_Header]):
    """Receives the messages of one upload. Made by `Transfers.receiving`."""

    def __init__(
        self,
        call: Call,
        decode: Callable[[bytes], _Header | memoryview],
        budgets: Mapping[bool, ByteBudget],
        idle: IdleTimer,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(call, idle, on_end)
        self._decode = decode
        self._budgets = budgets
        self._budget = budgets[False]
        self._declared_bytes = 0
        self._expected_bytes = 0
        self._taken_bytes = 0

    async def header(self) -> _Header:
        """Return the content of the first message.

        Raises:
            InvalidError: It is not a header.
            PermissionDeniedError: The caller may not create the version.
            LimitedError: The caller is over a limit.
            TimedOutError: The client sent nothing for too long.
        """
        method = self._call.method
        self._call.begin(is_upload=True)
        first = await self.next_chunk()
        if first is None:
            raise InvalidError(f"{method} must begin with a header; the stream was empty")
        if isinstance(first, memoryview):
            raise InvalidError(f"{method} must begin with a header; a body came first")
        self._call.about(model_id=first.model_id, archived=first.archived, size_bytes=first.data_size_bytes)
        self._call.admit(first)
        return first

    async def pass_on(self, write: Callable[[memoryview], Awaitable[None]]) -> None:
        """Pass on the bytes of all messages up to the end of the stream.

        Raises:
            InvalidError: One is not a chunk of bytes.
            TimedOutError: The client sent nothing for too long.
        """
        missing_bytes = self._declared_bytes
        while (chunk := await self.next_chunk()) is not None:
            if not isinstance(chunk, memoryview):
                raise InvalidError(f"{self._call.method} must have one header; a second one came")
            missing_bytes -= len(chunk)
            await write(chunk)
            del chunk  # with its message, before the next turn is waited for
        if missing_bytes:
            # gRPC reports a cancellation as an end first, and only then as a cancellation.
            await asyncio.sleep(0)

    async def next_chunk(self) -> _Header | memoryview | None:
        """Return the content of the next chunk; None at the end. The previous content must have been used.

        Raises:
            InvalidError: It is not a chunk.
            TimedOutError: The client sent nothing for too long.
        """
        if self._call.share is not None:
            self.end_turn()  # others have it while this one waits
            await self._call.share.paced(self._expected_bytes)
        turn = None
        if self._taken_bytes or self._expected_bytes > _SMALL_MESSAGE_BYTES:
            await self._take_turn()
            if self._taken_bytes:
                turn = asyncio.get_running_loop().call_later(_TURN_SECONDS, self.end_turn)
        try:
            message = await self._watch.wait(self._call.read())
        except TimeoutError:
            raise TimedOutError(f"the upload sent nothing for {counted(self._idle_seconds, 'second')}") from None
        finally:
            if turn is not None:
                turn.cancel()
        if message is None:
            self.end_turn()
            return None
        chunk = self._decode(message)
        if isinstance(chunk, memoryview):
            self._expected_bytes = len(message)
        else:
            self._budget = self._budgets[chunk.archived]
            self._declared_bytes = chunk.data_size_bytes
            self._expected_bytes = min(chunk.data_size_bytes, _USUAL_MESSAGE_BYTES)
        return chunk

    async def accepting(self, work: Awaitable[_T]) -> _T:
        """Return the result of what receives and uses the messages; discard those that follow if it refuses them."""
        try:
            return await work
        except TimedOutError:
            raise  # nothing has to be discarded
        except ModelRegistryError:
            await self.discard()
            raise

    async def discard(self) -> None:
        """Read and drop, for a moment, what the client of a refused upload still sends.

        A client on Python's `grpc.aio`, the stock SDK among them, that is still writing when the status comes may
        report an INTERNAL error of its own instead (https://github.com/grpc/grpc/issues/36066). So its messages are
        read and dropped until it pauses or has had its time. A client that cancelled looks like one that ended until
        its cancellation is here: an end is a pause too.
        """
        loop = asyncio.get_running_loop()
        seconds_left = _DISCARD_MAX_SECONDS
        while seconds_left > 0:
            await self._take_turn()
            started = loop.time()
            reading = asyncio.ensure_future(self._call.read())
            reading.add_done_callback(_drop_result)
            if not await _is_done_soon(reading):
                break  # left alone rather than cancelled: gRPC never frees a message that comes for a read that was
            if reading.result() is None:
                await asyncio.sleep(_DISCARD_QUIET_SECONDS)
                break
            del reading  # with its message, before the next turn is waited for
            seconds_left -= loop.time() - started

    async def _take_turn(self) -> None:
        self.end_turn()
        if self._expected_bytes > _SMALL_MESSAGE_BYTES:
            self._taken_bytes = await self._budget.take(self._expected_bytes)

    def __exit__(self, *_: object) -> None:
        self.end_turn()
        super().__exit__()

    def end_turn(self) -> None:
        """Give the turn to others."""
        taken_bytes, self._taken_bytes = self._taken_bytes, 0
        if taken_bytes:
            self._budget.give_back(taken_bytes)


class ReplySender(_Transfer):
    """Sends replies one by one. Made by `Transfers.replying`."""

    def start(self, message: bytes, when_sent: Callable[[BaseException | None], None]) -> None:
        """Begin to send a message, from any task; nothing else may be sent until it is sent.

        A client that takes it for too long ends what the call's own task does in `waiting`.

        Args:
            message: The message.
            when_sent: Called when it is sent, or with the error by which that failed.
        """

        def note(error: BaseException | None) -> None:
            self._watch.end()
            when_sent(error)

        self._watch.begin()
        run_without_task(self._call.write(message), note)

    @property
    def is_slowed(self) -> bool:
        """Whether the caller has to wait for bytes."""
        return self._call.share is not None and self._call.share.is_slowed

    async def paced(self) -> None:
        """Wait until the caller may be sent bytes."""
        await self._call.paced(0)

    async def waiting(self, work: Awaitable[_T]) -> _T:
        """Await `work` in the task of the call, while messages are sent that `start` began.

        Raises:
            TimedOutError: The client took nothing for too long.
        """
        try:
            return await self._watch.bounded(work)
        except TimeoutError:
            raise self._timed_out() from None

    def _timed_out(self) -> TimedOutError:
        return TimedOutError(f"the client took nothing for {counted(self._idle_seconds, 'second')}")

    async def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            TimedOutError: The client took nothing for too long.
        """
        if self._call.share is not None:
            await self._call.share.paced(len(message))
        try:
            await self._watch.wait(self._call.write(message))
        except TimeoutError:
            raise self._timed_out() from None


class VersionSender(ReplySender):
    """Sends the chunks of one version. Made by `Transfers.sending`.

    Attributes:
        chunk_bytes: The size of its chunks.
        buffer_bytes: What the reader may hold in addition to the chunk that is being sent.
    """

    def __init__(
        self, call: Call, window_bytes: int, chunk_max_bytes: int, idle: IdleTimer, on_end: Callable[[], None]
    ) -> None:
        super().__init__(call, idle, on_end)
        self.chunk_bytes = min(chunk_max_bytes, window_bytes // _COPIES)
        self.buffer_bytes = window_bytes // 2

    async def send_version(
        self,
        reader: VersionReader,
        encode: Callable[[Sequence[memoryview]], bytes],
        offset: int = 0,
        limit: int | None = None,
    ) -> None:
        """Send the bytes of a version, or a part of them.

        Args:
            reader: The version.
            encode: Returns the message with the bytes of some views.
            offset: Where to begin.
            limit: How many bytes to send at most; None for all that follow.

        Raises:
            DataLossError: They are not those that were stored.
            TimedOutError: The client took nothing for too long.
        """
        if not offset and limit is None and (parts := reader.in_memory(self.chunk_bytes)) is not None:
            await self.send(encode(parts))
            return
        async with aclosing(reader.chunks(self.chunk_bytes, self.buffer_bytes, offset, limit)) as chunks:
            async for parts in chunks:
                await self.send(encode(parts))


async def _is_done_soon(reading: asyncio.Future[bytes | None]) -> bool:
    """Return whether a read ends before a pause is over; checked twice, since a busy loop may see the pause first."""
    for _ in range(2):
        done, _pending = await asyncio.wait([reading], timeout=_DISCARD_QUIET_SECONDS / 2)
        if done:
            return True
    return False


def _drop_result(reading: asyncio.Future[bytes | None]) -> None:
    """Retrieve the result of a read that nobody waits for, so that asyncio does not report it."""
    if not reading.cancelled():
        reading.exception()
