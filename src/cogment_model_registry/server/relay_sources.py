"""The bytes of a version from the servers that hold it, one after the other."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

import structlog

from cogment_model_registry.errors import (
    DataLossError,
    ModelRegistryError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    counted,
    quoted,
)
from cogment_model_registry.records.versions import VersionInfo

_log = structlog.stdlib.get_logger(__name__)


class Stream(Protocol):
    """A part of a version that another server sends."""

    async def next(self) -> memoryview | None:
        """Return the next bytes; None at the end.

        Raises:
            ModelRegistryError: The server does not send them.
        """

    async def aclose(self) -> None:
        """End it. Closing twice does nothing."""


Locate: TypeAlias = Callable[[VersionInfo], Awaitable[Sequence[str]]]
"""Returns the endpoints of the other servers that hold a version, the best one first."""

OpenStream: TypeAlias = Callable[[str, VersionInfo, int, int | None], Awaitable[Stream]]
"""Asks the server at an endpoint for a version from an offset on, up to a limit or the end, and returns its stream.

It returns when the server has said that it has this very version: number, hash, size and time. Else it raises a
`ModelRegistryError`, which is a `NotFoundError` or a `PreconditionError` where the server answered that it has not.
"""


@dataclass(slots=True)
class RelayCounts:
    """What relays did so far.

    Attributes:
        begun: Relays that began.
        joined: Readers that joined a relay under way.
        failed: Relays that ended since no server sent the version.
        unkept: Readers that received a version alone, since the store had no room for it.
        received_bytes: Bytes of versions that were received from other servers.
    """

    begun: int = 0
    joined: int = 0
    failed: int = 0
    unkept: int = 0
    received_bytes: int = 0


class Source:
    """Receives a version, or parts of it; when a server fails, the next one sends the rest.

    A context manager, for one task at a time.

    Args:
        info: The version.
        locate: Finds the servers that hold it.
        open_stream: Asks one of them.
        counts: Receives the count of bytes.
    """

    def __init__(self, info: VersionInfo, locate: Locate, open_stream: OpenStream, counts: RelayCounts) -> None:
        self._info = info
        self._locate = locate
        self._open_stream = open_stream
        self._counts = counts
        self._holders: list[str] | None = None
        self._stream: Stream | None = None
        self._senders: set[str] = set()  # of the bytes since the last `reject`
        self._position = 0
        self._end = 0
        self._is_any_away = False
        self._is_any_wrong = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def has_more(self) -> bool:
        """Whether a server is left that may have the version."""
        return bool(self._holders)

    async def begin(self, offset: int = 0, limit: int | None = None) -> None:
        """Find a server that sends the bytes from an offset on, up to a limit or the end.

        Raises:
            DataLossError: All that answered had other bytes; see `reject`.
            NotFoundError: No server has the version.
            UnavailableError: One that may have it did not answer, or it cannot be found out who has it.
        """
        await self._close()
        size_bytes = self._info.data_size_bytes
        self._position = offset
        self._end = size_bytes if limit is None else min(offset + limit, size_bytes)
        if self._holders is None:
            self._holders = [*await self._locate(self._info)]
        await self._connect(self._holders)

    async def next(self) -> memoryview | None:
        """Return the next bytes; None when all were returned that `begin` asked for.

        Raises:
            DataLossError: As for `begin`.
            NotFoundError: As for `begin`.
            UnavailableError: As for `begin`.
        """
        holders = self._holders or []
        while self._position < self._end:
            try:
                view = await self._next_of_stream()
            except ModelRegistryError as error:
                self._drop(holders, error)
                await self._connect(holders)
                continue
            if view:
                self._senders.add(holders[0])
                self._position += len(view)
                self._counts.received_bytes += len(view)
                return view
        return None

    async def finish(self) -> None:
        """Wait for the end of the stream whose bytes were all received, so that its server sees no cancelled call."""
        if self._stream is not None:
            try:
                await self._stream.next()
            except ModelRegistryError as error:
                _log.debug("the end of a relay was not confirmed", reason=error.message)

    def reject(self) -> None:
        """Record that the bytes received from the beginning on are not those of the version.

        One server that sent all of them is not asked again. Of several, each may be the one with the wrong bytes, so
        the last one, which still answers, is asked for all of them.
        """
        if self._holders and len(self._senders) <= 1:
            self._drop(self._holders, DataLossError("its bytes do not match the hash"))
        self._senders.clear()

    def failure(self) -> ModelRegistryError:
        """Return the error that says why nobody sends the version."""
        info = self._info
        if self._is_any_away:
            message = (
                f"version {info.number} of model {quoted(info.model_id)} is on a server that cannot be reached; "
                "retry in some seconds, and publish it again if it is gone then"
            )
            return UnavailableError(message, model_id=info.model_id, version_number=info.number)
        if self._is_any_wrong:
            return DataLossError.version(info.model_id, info.number, "the servers that hold it have other bytes")
        return NotFoundError.version(info.model_id, info.number)

    async def _connect(self, holders: list[str]) -> None:
        await self._close()
        while holders:
            limit = self._end - self._position if self._end < self._info.data_size_bytes else None
            try:
                self._stream = await self._open_stream(holders[0], self._info, self._position, limit)
                return
            except ModelRegistryError as error:
                self._drop(holders, error)
        raise self.failure()

    async def _next_of_stream(self) -> memoryview:
        if self._stream is None:
            raise RuntimeError("a source must begin first")
        view = await self._stream.next()
        if view is None:
            raise UnavailableError(f"it ended before byte {self._end}")
        if len(view) > self._end - self._position:
            raise DataLossError(f"it has more than {counted(self._info.data_size_bytes, 'byte')}")
        return view

    def _drop(self, holders: list[str], error: ModelRegistryError) -> None:
        """Record that a server does not send the version."""
        endpoint = holders.pop(0)
        is_gone = isinstance(error, NotFoundError | PreconditionError)
        is_wrong = isinstance(error, DataLossError)
        self._is_any_wrong |= is_wrong
        self._is_any_away |= not is_gone and not is_wrong
        log = _log.info if is_gone else _log.error if is_wrong else _log.warning
        log(
            "another server did not send a version",
            server=endpoint,
            model_id=self._info.model_id,
            number=self._info.number,
            reason=error.message,
        )

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()
