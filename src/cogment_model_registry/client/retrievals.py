"""Retrievals: the bytes of versions, into memory or a file, from the cache or from the server."""

import contextlib
import io
import mmap
import os
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from typing import IO, TypeAlias, TypeVar

from cogment_model_registry.client import local, lookups
from cogment_model_registry.client.arguments import (
    asked_for,
    checked_number,
    checked_path,
)
from cogment_model_registry.client.cache import Cache
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline, Timeouts, transfer_deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.fetching import Fetch
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.client.lifecycle_calls import look_up
from cogment_model_registry.client.partial_files import PartialFile
from cogment_model_registry.client.progress import Report, Wish, reporting
from cogment_model_registry.client.signatures import Trust, TrustedKeys, described_version, trust_of, verified
from cogment_model_registry.client.threads import submit
from cogment_model_registry.client.unpacking import NewFolder, check_folder, is_path_of_folder
from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.system.replacement import Replacement

_T = TypeVar("_T")

Verify: TypeAlias = "bool | TrustedKeys | Trust"
"""Whether to check hashes here; or the keys of which one must have signed what is retrieved, which implies that."""

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
        self._local = local.LocalTransfers(calls)

    async def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool,
        verify: Verify = False,
    ) -> bytes:
        """See `ModelRegistry.retrieve`."""
        trust = await self._trust(verify)

        async def get(info: VersionInfo, deadline: Deadline | None) -> bytes:
            data = await self._from_here(info, local.bytes_of(info), deadline, progress)
            if data is None:
                # It returns its bytes without a copy.
                return (await self._fetched(info, deadline, progress)).getvalue()
            await self._verify(info, data, is_wanted=verify is not False)
            return data

        return (await self._resolved(model, version, timeout, get, archived=archived, trust=trust))[1]

    async def view(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        progress: Wish,
        *,
        archived: bool = False,
        verify: Verify = False,
        is_writable: bool = False,
    ) -> memoryview:
        """See `ModelRegistry.retrieve` without a copy; what is written to a writable view is this process's alone."""
        trust = await self._trust(verify)

        async def get(info: VersionInfo, deadline: Deadline | None) -> memoryview:
            # Whoever may write the files of the archive could change a mapped one after it was verified.
            take = local.mapped if trust is None else local.unchangeable
            mapped = await self._from_here(info, take(info, is_writable=is_writable), deadline, progress)
            if mapped is None:
                view = (await self._fetched(info, deadline, progress)).getbuffer()
                return view if is_writable else view.toreadonly()
            await self._verify(info, mapped, is_wanted=verify is not False)
            return memoryview(mapped)

        return (await self._resolved(model, version, timeout, get, archived=archived, trust=trust))[1]

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
        verify: Verify = False,
        unpack: bool | None = False,
    ) -> VersionInfo:
        """See `ModelRegistry.download`."""
        target = checked_path("path", path)
        trust = await self._trust(verify)
        folder = NewFolder(target) if is_path_of_folder(target, unpack) else None
        if folder is not None:
            await self._on_thread(folder.check)
            target = folder.archive_path
        new = PartialFile(target) if resume else Replacement(target)
        try:
            file = await self._on_thread(new.open)

            async def get(info: VersionInfo, deadline: Deadline | None) -> None:
                if folder is not None:
                    check_folder(info)
                if isinstance(new, PartialFile):
                    is_copied = await self._fetch_missing(info, new, deadline, progress)
                else:
                    is_copied = bool(await self._from_here(info, local.copy_to(info, file), deadline, progress))
                    if not is_copied:
                        await self._fetch(info, file, deadline, progress)
                if is_copied and verify is not False:
                    await self._on_thread(lambda: local.check_file(info, file))

            info, _ = await self._resolved(model, version, timeout, get, archived=archived, trust=trust)
            if folder is None:
                await self._on_thread(new.commit)
            else:
                await self._on_thread(lambda: folder.unpack(info, file))
                if isinstance(new, PartialFile):
                    await self._on_thread(new.give_up)
        finally:
            if folder is not None:
                folder.close()
            new.close()
        return info

    async def _resolved(
        self,
        model: str | VersionInfo | Version,
        version: Key,
        timeout: float | None,
        get: Callable[[VersionInfo, Deadline | None], Awaitable[_T]],
        *,
        archived: bool,
        trust: Trust | None,
    ) -> tuple[VersionInfo, _T]:
        """Return a version, and what a function gets of it; with another version if it is gone or damaged."""
        deadline = self._timeouts.wanted(timeout)

        async def looked_up() -> VersionInfo:
            limit = deadline or self._timeouts.of_call(None)
            if trust is not None and not archived:  # with its signature
                return await described_version(self._calls, model_id, number, limit)
            return await look_up(self._calls, model_id, number, limit, archived=archived)

        model_id, number, known = asked_for(model, version)
        if known and archived:
            lookups.checked_archived(known)
        info = known or await looked_up()
        for _ in range(_RESOLVE_ATTEMPTS):
            try:
                if trust is not None:
                    limit = deadline or self._timeouts.of_call(None)
                    info = await verified(self._calls, info, model_id, trust, limit)
                return info, await get(info, deadline)
            except (NotFoundError, DataLossError):
                # A given version never changes, but another one may be the latest by now.
                again = known or await looked_up()
                if again == info:
                    raise
                info = again
        wanted = lookups.version_text(model_id, number, archived=archived)
        message = f"{wanted} was replaced {_RESOLVE_ATTEMPTS} times before it could be retrieved"
        raise NotFoundError(message, model_id=model_id)

    async def _from_here(
        self, info: VersionInfo, take: Callable[[int], _T], deadline: Deadline | None, progress: Wish
    ) -> _T | None:
        """Return what a function makes of a descriptor of a version, or None where it must be fetched."""
        if info.data_size_bytes < local.MIN_BYTES:
            return None
        limit = deadline or transfer_deadline(info.data_size_bytes)
        with self._reporting(info, progress) as report:
            taken = await self._local.retrieve(info, take, limit)
            if taken is not None:
                report.advance(info.data_size_bytes)
        return taken

    async def _trust(self, verify: "Verify") -> Trust | None:
        """Return what verifies, unless no keys were given."""
        if isinstance(verify, bool):
            return None
        return verify if isinstance(verify, Trust) else await self._on_thread(lambda: trust_of(verify))

    async def _verify(self, info: VersionInfo, data: mmap.mmap | bytes | bytearray, *, is_wanted: bool) -> None:
        """Check bytes that the server on this host has checked already, if that is wanted."""
        if is_wanted:
            await self._on_thread(lambda: local.check(info, data))

    def _reporting(self, info: VersionInfo, progress: Wish) -> AbstractContextManager[Report]:
        what = f"retrieving {lookups.version_text(info.model_id, info.number)}"
        return reporting(what, info.data_size_bytes, self._progress if progress is None else progress)

    async def _fetched(self, info: VersionInfo, deadline: Deadline | None, progress: Wish) -> io.BytesIO:
        buffer = _Memory()
        await self._fetch(info, buffer, deadline, progress)
        return buffer

    async def _fetch(self, info: VersionInfo, file: IO[bytes], deadline: Deadline | None, progress: Wish) -> None:
        """Write the bytes of a version to a file: those in the cache, or those of the server."""
        cache = self._cache
        if cache is not None and await self._on_thread(lambda: cache.copy_to(info, file)):
            return
        with self._fetching(info, file, deadline, progress) as fetch:
            await fetch.run()
        if cache is not None:
            await self._on_thread(lambda: cache.keep(info, file))

    async def _fetch_missing(
        self, info: VersionInfo, partial_file: PartialFile, deadline: Deadline | None, progress: Wish
    ) -> bool:
        """Write the bytes of a version that a partial file lacks to it; if it lacks all, this host may have them.

        Returns:
            Whether they are from this host, and were not checked here.
        """
        cache, file = self._cache, partial_file.file
        present = await self._on_thread(lambda: partial_file.begin(info))
        if not present and await self._from_here(info, local.copy_to(info, file), deadline, progress):
            return True
        if cache is not None and not present and await self._on_thread(lambda: cache.copy_to(info, file)):
            return False
        with self._fetching(info, file, deadline, progress) as fetch:
            await fetch.resume(partial_file, present)
        if cache is not None:
            await self._on_thread(lambda: cache.keep(info, file))
        return False

    @contextlib.contextmanager
    def _fetching(
        self, info: VersionInfo, file: IO[bytes], deadline: Deadline | None, progress: Wish
    ) -> Generator[Fetch]:
        """Return a context manager that reports the progress of what it returns."""
        subject = Subject(f"retrieving {lookups.version_text(info.model_id, info.number)}", info.model_id, info.number)
        limit = deadline or transfer_deadline(info.data_size_bytes)
        checked_number(info.model_id, info.number)
        with self._reporting(info, progress) as report:
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
