"""The rules of uploads that can be repeated: resumed, found finished, or made of bytes that are there already.

An upload goes

    claim its id  ->  finished before: its version
                      interrupted before: the bytes after those received    ->  bytes  ->  commit with all that
                      else: the bytes of a version with the same hash, or all             belongs to it

An id is claimed by one call at a time. A client that lost its connection calls again, perhaps before the server notices
the loss: then the new call takes over, and the old one ends.
"""

import asyncio
import contextlib
from dataclasses import replace
from types import TracebackType
from typing import Self
from uuid import uuid4

from cogment_model_registry.errors import (
    ConflictError,
    DataLossError,
    ExistsError,
    InvalidError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    quoted,
)
from cogment_model_registry.records.lifecycle import (
    Annotations,
    Version,
    check_alias,
    check_entries,
    check_metrics,
)
from cogment_model_registry.records.uploads import UploadHeader, UploadRequest, check_request_id
from cogment_model_registry.records.versions import VersionHeader, VersionInfo
from cogment_model_registry.registry.contracts import Archive, Catalog, TransientStore, VersionStore
from cogment_model_registry.registry.copying import copy_bytes
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.registry.uploads import VersionUpload
from cogment_model_registry.system.sealed_memory import SealedMemory
from cogment_model_registry.system.tasks import run_to_end

_COPIED_BYTES = 4 * 1024 * 1024
"""How much is copied at once of memory of which a part was received before."""


class RepeatableUpload:
    """An upload under way. Made by `RepeatableUploads.begin`; to be entered, by the task that makes it.

    Attributes:
        next_offset: From where the bytes are wanted.
        is_complete: Whether none are wanted, since the version exists, or its bytes do.
        is_whole: Whether the client sends all bytes without being asked.
        has_moved_aliases: Whether it has set its aliases: not if it was finished before.
    """

    def __init__(self, uploads: "RepeatableUploads", header: UploadHeader, *, is_whole: bool) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("no task is running that could be ended")
        self.header = header
        self.is_whole = is_whole or not header.version.data_hash
        self.next_offset = 0
        self.is_complete = False
        self.has_moved_aliases = False
        self.over = asyncio.Event()
        self._uploads = uploads
        self._task = task
        self._is_taken_over = False
        self._is_committing = False
        self._upload: VersionUpload | None = None
        self._version: Version | None = None

    async def __aenter__(self) -> Self:
        await self._uploads.claim(self)
        self._uploads.under_way.count += 1
        try:
            await self._open()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def _open(self) -> None:
        header, uploads = self.header, self._uploads
        self._version = await uploads.find_finished(header)
        self._upload = None if self._version else await uploads.take_interrupted(header, is_whole=self.is_whole)
        if self._version is None and self._upload is None:
            await uploads.prepare_model(header)
            self._upload = None if self.is_whole else await uploads.copy_of(header.version)
            self.is_complete = self._upload is not None
            self._upload = self._upload or await uploads.open(header.version)
        self.is_complete = self.is_complete or self._version is not None
        self.next_offset = self._upload.received_bytes if self._upload else header.data_size_bytes

    def take_over(self) -> None:
        """End the call that makes this upload, so that another one can continue it."""
        if not self._is_taken_over:
            self._is_taken_over = True
            self._task.cancel()

    async def write(self, data: memoryview) -> None:
        """Write the next bytes, which must not change until the upload is over.

        Raises:
            InvalidError: They are more than were declared.
            TooLargeError: No space is left for them.
        """
        if self._upload is None:
            raise RuntimeError("the upload is finished")
        if self._can_wait:
            await run_to_end(self._upload.write(data))  # as a whole, so that it is known what was received
        else:
            await self._upload.write(data)

    async def adopt(self, memory: SealedMemory, data_hash: str) -> None:
        """Take the bytes from memory that nobody can change, in place of `write`; see `VersionUpload.adopt`.

        Only what is missing is copied if the upload was interrupted before.
        """
        if self._upload is None:
            raise RuntimeError("the upload is finished")
        if not self._upload.received_bytes:
            await self._upload.adopt(memory, data_hash)
            return
        for start in range(self._upload.received_bytes, memory.size_bytes, _COPIED_BYTES):
            await self.write(memory.view[start : start + _COPIED_BYTES])

    async def commit(self) -> Version:
        """Make the version visible with all that belongs to it, or return the one that exists already.

        Raises:
            InvalidError: Fewer bytes came than were declared, or others.
            NotFoundError: The model was deleted in the meantime.
            TooLargeError: No space is left.
        """
        if self._upload is not None:
            header = self.header
            annotations = Annotations(header.tags, header.metrics) if header.tags or header.metrics else None
            committing = self._upload.commit(annotations, _request_of(header))
            self._is_committing = self._upload.received_bytes == header.data_size_bytes
            # A client that repeats an upload finds it finished, even if it was gone in the meantime.
            info = await (run_to_end(committing) if header.request_id else committing)
            self.has_moved_aliases = bool(header.aliases)
            self._version = Version.of(info, annotations or Annotations(), tuple(sorted(header.aliases)))
        if self._version is None:
            raise RuntimeError("the upload was not entered")
        return self._version

    @property
    def _can_wait(self) -> bool:
        """Whether it can be resumed. Without a hash, nobody knows whether the rest belongs to what was received."""
        return bool(self.header.request_id) and not self.is_whole and not self.is_complete

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await run_to_end(self._close(error))
        except asyncio.CancelledError as late:
            if not self._is_taken_over:
                raise
            error = late
        finally:
            self._uploads.under_way.count -= 1
            self._uploads.release(self)
        if self._is_taken_over:
            await self._absorb(error)

    async def _close(self, error: BaseException | None) -> None:
        upload, self._upload = self._upload, None
        if upload is None:
            return
        is_interrupted = isinstance(error, asyncio.CancelledError | TimedOutError)
        if isinstance(error, InvalidError):
            # gRPC may report a lost client as the end of its stream, and only later as a cancellation.
            is_interrupted = upload.received_bytes < self.header.data_size_bytes
        if is_interrupted and self._can_wait and upload.received_bytes and not self._is_committing:
            await self._uploads.parking.park(self.header, upload)
        else:
            await upload.aclose()

    async def _absorb(self, error: BaseException | None) -> None:
        """End the cancellation by which another call took over.

        Raises:
            ConflictError: Another call took over before the version was committed.
            asyncio.CancelledError: The client of this call cancelled it too.
        """
        if not isinstance(error, asyncio.CancelledError):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # it came too late, and would end whatever is awaited next
        if self._task.uncancel():
            raise asyncio.CancelledError
        if isinstance(error, asyncio.CancelledError):
            message = f"another call continues the upload with request_id {quoted(self.header.request_id)}"
            raise ConflictError(message, model_id=self.header.version.model_id) from None


class RepeatableUploads:
    """The uploads of the second service.

    Args:
        registry: The registry, whose limits hold.
        catalog: What exists.
        archive: Where archived versions live.
        transient: Where transient versions live.
    """

    def __init__(self, registry: Registry, catalog: Catalog, archive: Archive, transient: TransientStore) -> None:
        self._registry = registry
        self._catalog = catalog
        self._archive = archive
        self._transient = transient
        self._active: dict[str, RepeatableUpload] = {}
        self.parking = registry.parking
        self.under_way = registry.under_way

    def begin(self, header: UploadHeader, *, is_whole: bool = False) -> RepeatableUpload:
        """Return an upload, to be entered, which raises all errors but the first.

        Args:
            header: The declaration of the version.
            is_whole: Whether the client sends all bytes without being asked.

        Raises:
            InvalidError: The header breaks a rule.
            ExistsError: The id is that of an upload with another header.
            NotFoundError: The model does not exist; or the version that the upload made, no longer.
            PreconditionError: The registry is read-only.
            TooLargeError: The version cannot fit.
        """
        return RepeatableUpload(self, self.checked(header), is_whole=is_whole)

    def checked(self, header: UploadHeader) -> UploadHeader:
        """Return a header that obeys the rules; an alias points to an archived version.

        Raises:
            InvalidError: It breaks a rule.
            PreconditionError: The registry is read-only.
        """
        version, limits = header.version, self._registry.limits
        self._registry.check_header(version)
        check_request_id(header.request_id, version.model_id)
        if header.tags or header.metrics:
            check_metrics(header.metrics, version.model_id)
            check_entries(header.tags, header.metrics, limits.user_data_max_bytes, version.model_id)
        self._registry.check_count("aliases", len(header.aliases))
        for alias in header.aliases:
            check_alias(alias, version.model_id, limits.model_id_max_bytes)
        if not header.aliases:
            return header
        aliases = tuple(sorted(set(header.aliases)))
        return replace(header, version=replace(version, archived=True), aliases=aliases)

    # Called by uploads.

    async def claim(self, upload: RepeatableUpload) -> None:
        """Wait until no other call makes the same upload."""
        request_id = upload.header.request_id
        while request_id and (active := self._active.get(request_id)):
            _require_same(upload.header, active.header.digest())
            active.take_over()
            await active.over.wait()
        if request_id:
            self._active[request_id] = upload

    def release(self, upload: RepeatableUpload) -> None:
        """Let another call make the same upload."""
        if self._active.get(upload.header.request_id) is upload:
            del self._active[upload.header.request_id]
        upload.over.set()

    async def find_finished(self, header: UploadHeader) -> Version | None:
        """Return the version that this upload made before.

        Raises:
            ExistsError: The id is that of another upload.
            NotFoundError: The version is gone since.
            UnavailableError: Too few servers have it.
        """
        finished = await self._catalog.find_upload(header.request_id) if header.request_id else None
        if finished is None:
            return None
        _require_same(header, finished.digest)
        with contextlib.suppress(NotFoundError):
            if finished.number:
                infos = await self._catalog.get_versions(finished.model_id, [finished.number])
                [version] = await self._catalog.describe_visible(infos)
                await self._registry.ensure_copies(version.info)
                return version
        what = f"version {finished.number}" if finished.number else "the version"
        message = f"{what} that this upload made of model {quoted(finished.model_id)} was evicted or deleted since"
        raise NotFoundError(message, model_id=finished.model_id, version_number=finished.number or None)

    async def take_interrupted(self, header: UploadHeader, *, is_whole: bool) -> VersionUpload | None:
        """Return this upload as it was interrupted before; drop it if it begins from the start.

        Raises:
            ExistsError: The id is that of another upload.
        """
        waiting = self.parking.header_of(header.request_id) if header.request_id else None
        if waiting is None:
            return None
        _require_same(header, waiting.digest())
        upload = self.parking.take(header.request_id)
        if upload is None or not is_whole:
            return upload
        await upload.aclose()
        return None

    async def open(self, header: VersionHeader) -> VersionUpload:
        """Return an upload that takes all bytes."""
        return await self._registry.open_version_upload(header)

    async def check_room(self, header: VersionHeader) -> None:
        """Refuse a version that does not fit now, before anything is done with its bytes.

        Raises:
            TooLargeError: It does not fit.
        """
        store: VersionStore = self._archive if header.archived else self._transient
        with contextlib.suppress(NotFoundError):  # its model may be created first
            await (await self._registry.open_upload(store, header.model_id, header.data_size_bytes)).aclose()

    async def prepare_model(self, header: UploadHeader) -> None:
        """Create the model if that is asked for, and refuse what it cannot have.

        Raises:
            NotFoundError: It does not exist.
            TooLargeError: It would get too many aliases, or no space is left for it.
        """
        if header.create_model:
            await self._registry.find_or_create_model(header.model_id)
        await self._registry.check_alias_count(header.model_id, header.aliases)

    async def copy_of(self, version: VersionHeader) -> VersionUpload | None:
        """Return an upload that has the bytes of a version with the same hash, if there is one.

        Raises:
            NotFoundError: The model does not exist.
            TooLargeError: The version cannot fit.
        """
        ref = await self._catalog.find(version.model_id)
        try:
            found = await self._catalog.find_copies(version.model_id, version.data_hash, version.data_size_bytes)
        except UnavailableError:
            return None  # it saves a transfer, no more
        for source in sorted(found, key=lambda info: info.archived is not version.archived):
            with contextlib.suppress(NotFoundError, UnavailableError):
                try:
                    return await self._copied(version, source)
                except DataLossError as error:
                    await self._registry.mark_damaged(ref, error)
        return None

    async def _copied(self, header: VersionHeader, source: VersionInfo) -> VersionUpload:
        """Return an upload with the bytes of a version, which were checked.

        Raises:
            DataLossError: They are damaged.
            NotFoundError: The version is gone.
            TooLargeError: They do not fit.
        """
        ref, signers = await self._catalog.find_with_signers(header.model_id)
        if header.archived and source.archived:
            upload = self._registry.uploading(header, ref, signers, await self._archive.open_copy(source))
            upload.accept_all()
            return await _finished(upload, source)
        stores: dict[bool, VersionStore] = {False: self._transient, True: self._archive}
        async with await stores[source.archived].open_version(source) as reader:
            opened = await self._registry.open_upload(stores[header.archived], header.model_id, header.data_size_bytes)
            upload = self._registry.uploading(header, ref, signers, opened)
            try:
                await copy_bytes(reader, upload)
            except BaseException:
                await upload.aclose()
                raise
            return await _finished(upload, source)


async def _finished(upload: VersionUpload, source: VersionInfo) -> VersionUpload:
    """Return an upload whose bytes were checked; it is closed if that fails."""
    try:
        await upload.finish()
    except BaseException as error:
        await upload.aclose()
        if isinstance(error, InvalidError):
            raise DataLossError.version(source.model_id, source.number, "its bytes do not match their hash") from None
        raise
    return upload


def _require_same(header: UploadHeader, digest: str) -> None:
    if header.digest() != digest:
        message = f"request_id {quoted(header.request_id)} is that of another upload, whose header differs"
        raise ExistsError(message, model_id=header.version.model_id)


def _request_of(header: UploadHeader) -> UploadRequest | None:
    """Return what makes an upload repeatable; aliases are completed after a crash by it, so they need an id too."""
    if not header.request_id and not header.aliases:
        return None
    return UploadRequest(header.request_id or uuid4().hex, header.digest(), header.aliases)
