"""Retrievals: the bytes of versions, into memory or a file, from the cache or from the server."""

import contextlib
import io
import os
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import IO, TypeAlias, TypeVar

from cogment_model_registry.client import lookups
from cogment_model_registry.client.arguments import (
    asked_for,
    checked_number,
    checked_path,
)
from cogment_model_registry.client.cache import Cache
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.connection import Subject
from cogment_model_registry.client.deadlines import Deadline, Timeouts, transfer_deadline
from cogment_model_registry.client.fetching import Fetch
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.client.lifecycle_calls import look_up
from cogment_model_registry.client.partial_files import PartialFile
from cogment_model_registry.client.progress import Wish, reporting
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.replacement import Replacement

_T = TypeVar("_T")

_Fetching: TypeAlias = Callable[[VersionInfo, Deadline | None], Awaitable[None]]
"""Writes the bytes of a version where they belong, until a deadline if one was given."""

_RESOLVE_ATTEMPTS = 5
"""How often to look up a version again that was evicted, replaced or damaged before it could be fetched."""


class Retrievals:
    """Retrieves versions.

    Args:
        calls: Makes calls.
        timeouts: How long they may take.
        cache: The cache of bytes, if any.
        progress: How to report the progress by default.
    """

    def __init__(self, calls: Calls, timeouts: Timeouts, cache: Cache | None, progress: Wish) -> None:
        self._calls = calls
        self._backend = calls.backend
        self._timeouts = timeouts
        self._cache = cache
        self._progress = progress

    async def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
    ) -> bytes:
        """See `ModelRegistry.retrieve`."""
        # It returns its bytes without a copy.
        return (await self._retrieved(model, version, timeout, progress, archived=archived)).getvalue()

    async def retrieve_writable(self, version: VersionInfo, timeout: float | None, progress: Wish) -> memoryview:
        """Return the bytes of a version in memory of their own, which may be written to."""
        return (await self._retrieved(version, version, timeout, progress)).getbuffer()

    async def _retrieved(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool = False,
    ) -> io.BytesIO:
        buffer = _Memory()
        fetch = partial(self._fetch, file=buffer, progress=progress)
        await self._download(model, version, fetch, timeout, archived=archived)
        return buffer

    async def download(
        self,
        model: str | VersionInfo | Version,
        path: str | os.PathLike[str],
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
        resume: bool,
    ) -> VersionInfo:
        """See `ModelRegistry.download`."""
        target = checked_path("path", path)
        if resume:
            return await self._download_partly(model, target, version, timeout, progress, archived=archived)
        replacement = Replacement(target)
        try:
            file = await self._on_thread(replacement.open)
            fetch = partial(self._fetch, file=file, progress=progress)
            info = await self._download(model, version, fetch, timeout, archived=archived)
            await self._on_thread(replacement.commit)
        finally:
            replacement.close()
        return info

    async def _download_partly(
        self,
        model: str | VersionInfo | Version,
        path: str,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
    ) -> VersionInfo:
        """Download what a partial file lacks, and keep what was received if that fails."""
        partial_file = PartialFile(path)
        try:
            await self._on_thread(partial_file.open)
            fetch = partial(self._fetch_missing, partial_file=partial_file, progress=progress)
            info = await self._download(model, version, fetch, timeout, archived=archived)
            await self._on_thread(partial_file.commit)
        finally:
            partial_file.close()
        return info

    async def _download(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        fetch: _Fetching,
        timeout: float | None,
        *,
        archived: bool,
    ) -> VersionInfo:
        """Look a version up, fetch its bytes, and return it."""
        deadline = self._timeouts.wanted(timeout)

        async def looked_up() -> VersionInfo:
            limit = deadline or self._timeouts.of_call(None)
            return await look_up(self._calls, model_id, number, limit, archived=archived)

        model_id, number, known = asked_for(model, version)
        if known and archived:
            lookups.checked_archived(known)
        info = known or await looked_up()
        for _ in range(_RESOLVE_ATTEMPTS):
            try:
                await fetch(info, deadline)
            except (NotFoundError, DataLossError):
                # A given version never changes, but another one may be the latest by now.
                again = known or await looked_up()
                if again == info:
                    raise
                info = again
            else:
                return info
        wanted = lookups.version_text(model_id, number, archived=archived)
        message = f"{wanted} was replaced {_RESOLVE_ATTEMPTS} times before it could be retrieved"
        raise NotFoundError(message, model_id=model_id)

    async def _fetch(self, info: VersionInfo, deadline: Deadline | None, file: IO[bytes], progress: Wish) -> None:
        """Write the bytes of a version to a file: those in the cache, or those of the server."""
        cache = self._cache
        if cache is not None and await self._on_thread(lambda: cache.copy_to(info, file)):
            return
        with self._fetching(info, file, deadline, progress) as fetch:
            await fetch.run()
        if cache is not None:
            await self._on_thread(lambda: cache.keep(info, file))

    async def _fetch_missing(
        self, info: VersionInfo, deadline: Deadline | None, partial_file: PartialFile, progress: Wish
    ) -> None:
        """Write the bytes of a version that a partial file lacks to it; if it lacks all, the cache may have them."""
        cache, file = self._cache, partial_file.file
        present = await self._on_thread(lambda: partial_file.begin(info))
        if cache is not None and not present and await self._on_thread(lambda: cache.copy_to(info, file)):
            return
        with self._fetching(info, file, deadline, progress) as fetch:
            await fetch.resume(partial_file, present)
        if cache is not None:
            await self._on_thread(lambda: cache.keep(info, file))

    @contextlib.contextmanager
    def _fetching(
        self, info: VersionInfo, file: IO[bytes], deadline: Deadline | None, progress: Wish
    ) -> Generator[Fetch]:
        """Return a context manager that reports the progress of what it returns."""
        what = f"retrieving {lookups.version_text(info.model_id, info.number)}"
        subject = Subject(what, info.model_id, info.number)
        limit = deadline or transfer_deadline(info.data_size_bytes)
        wish = self._progress if progress is None else progress
        checked_number(info.model_id, info.number)
        with reporting(what, info.data_size_bytes, wish) as report:
            yield Fetch(self._calls, info, file, subject, limit, report)

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        """Return the result of work that may take long."""
        self._calls.check_open()
        return await self._backend.wait(submit(work))


class _Memory(io.BytesIO):
    """Bytes whose views may outlive it: the garbage collector closes it, and may do so before it frees a view."""

    def close(self) -> None:
        """Free the bytes, unless views of them are left, which free them later."""
        with contextlib.suppress(BufferError):
            super().close()
