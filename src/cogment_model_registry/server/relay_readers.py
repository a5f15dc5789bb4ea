"""Readers of versions that another server holds: while they arrive for all, or each alone."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from cogment_model_registry.errors import UnavailableError, quoted
from cogment_model_registry.records.payload import INLINE_HASH_MAX_BYTES, PayloadHash
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Reader
from cogment_model_registry.server.relay_arrivals import Relay, RelayUser
from cogment_model_registry.server.relay_sources import Source
from cogment_model_registry.system.tasks import run_to_end


class RelayReader(RelayUser, Reader):
    """Reads a version while it arrives.

    Args:
        relay: Its relay.
        new_source: Returns where the version comes from, to receive it alone.
    """

    def __init__(self, relay: Relay, new_source: Callable[[], Source]) -> None:
        super().__init__()
        self._relay = relay
        self._new_source = new_source
        self._is_closed = False
        relay.join(self)

    async def begin(self) -> None:
        """Wait until a server sends the version.

        Raises:
            DataLossError: All that hold it have other bytes.
            NotFoundError: None holds it.
            UnavailableError: One that holds it cannot be reached.
        """
        while not self._relay.has_begun and not self._relay.has_no_room:
            self._raise_failure()
            await self._relay.changed()
        if self._relay.has_no_room and self.kept is None:
            async with self._new_source() as source:
                await source.begin(0, 1)

    async def settled(self) -> None:
        """Wait until the store has all of the version, or turns out to have no room for it.

        Raises:
            DataLossError: As for `begin`.
            NotFoundError: As for `begin`.
            UnavailableError: As for `begin`.
        """
        while self.kept is None and not self._relay.is_over:
            await self._relay.changed()
        self._raise_failure()

    async def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        size_bytes = self._relay.info.data_size_bytes
        end = size_bytes if limit is None else min(offset + limit, size_bytes)
        position = offset
        while self.kept is None and not self._relay.has_no_room:
            self._raise_failure()
            stop = min(position + max_bytes, end)
            if self.arrivals and self.arrivals[0].is_wrong:
                await self.arrivals.pop(0).leave()
                if position > offset:
                    raise _wrong(self._relay.info)
            elif self.arrivals and self.arrivals[0].has(stop):
                yield self.arrivals[0].parts(position, stop)
                position = stop
                if position == end:
                    return
            else:
                await self._relay.changed()
        if self.kept is not None:
            rest = self.kept.chunks(max_bytes, buffer_bytes, position, end - position)
        else:
            rest = self._alone(max_bytes, position, end, is_whole=offset == 0 and end == size_bytes)
        async with aclosing(rest):
            async for chunk in rest:
                yield chunk

    def in_memory(self, max_bytes: int) -> Sequence[memoryview] | None:
        return None if self.kept is None else self.kept.in_memory(max_bytes)

    async def hand_over(self) -> int | None:
        await self.settled()
        return None if self.kept is None else await self.kept.hand_over()

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._relay.leave(self)
            await run_to_end(self._aclose())

    async def _aclose(self) -> None:
        await self._leave_arrivals()
        if self.kept is not None:
            await self.kept.aclose()

    async def _leave_arrivals(self) -> None:
        while self.arrivals:
            await self.arrivals.pop().leave()

    def _raise_failure(self) -> None:
        error = self._relay.error
        if error is not None:
            raise error.reworded(error.message)  # each reader has a traceback of its own

    async def _alone(
        self, max_bytes: int, position: int, end: int, *, is_whole: bool
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        """Yield the bytes from a position on, in chunks that each come by a call of its own, so that no more wait here.

        All of a version is checked against its hash, with what was read before of what had arrived.
        """
        self._relay.counts.unkept += 1
        checked = PayloadHash() if is_whole else None
        if checked is not None and position:
            await _hash(checked, self.arrivals[0].parts(0, position))
        await self._leave_arrivals()  # so that there is room for others
        async with self._new_source() as source:
            alone = _receive(self._relay.info, source, checked, max_bytes, range(position, end))
            async with aclosing(alone):
                async for chunk in alone:
                    yield chunk


async def _receive(
    info: VersionInfo, source: Source, checked: PayloadHash | None, max_bytes: int, part: range
) -> AsyncGenerator[list[memoryview], None]:
    """Yield the bytes of a version from a server, in chunks, and check them before the last one."""
    position = part.start
    while True:
        stop = min(position + max_bytes, part.stop)
        chunk: list[memoryview] = []
        await source.begin(position, stop - position)
        while (view := await source.next()) is not None:
            chunk.append(view)
        await source.finish()
        if checked is not None:
            await _hash(checked, chunk)
            if stop == part.stop and checked.digest_text() != info.data_hash:
                source.reject()
                if position or not source.has_more:
                    raise _wrong(info) if source.has_more or part.start else source.failure()
                checked = PayloadHash()
                continue
        yield chunk
        position = stop
        if position == part.stop:
            return


async def _hash(payload_hash: PayloadHash, parts: list[memoryview]) -> None:
    """Hash bytes, on a thread if they are many."""
    if sum(map(len, parts)) <= INLINE_HASH_MAX_BYTES:
        payload_hash.update(parts)
    else:
        await run_to_end(asyncio.to_thread(payload_hash.update, parts))


def _wrong(info: VersionInfo) -> UnavailableError:
    """Return the error for a reader that has read bytes that turned out to be wrong, and may get the right ones."""
    what = f"version {info.number} of model {quoted(info.model_id)}"
    message = f"{what}: another server sent wrong bytes; try again"
    return UnavailableError(message, model_id=info.model_id, version_number=info.number)
