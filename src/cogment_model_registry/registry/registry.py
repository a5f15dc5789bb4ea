"""The rules of the registry: what an upload, a lookup, an eviction and a watch mean.

It joins the three contracts of storage and knows no backend, no network and no metrics. A version goes

    open an upload in the store of its tier  ->  bytes  ->  finish (hash, durable)  ->  number  ->  commit  ->  visible

where the last three are one change of the catalog, so that numbers become visible in their order. An upload that ends
before leaves nothing.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import time_ns
from typing import Self, TypeAlias

from cogment_model_registry.errors import (
    DataLossError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    StoppingError,
    TooLargeError,
    counted,
    quoted,
)
from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.versions import (
    ModelInfo,
    VersionHeader,
    VersionInfo,
    check_data_hash,
    check_data_size,
    check_model_id,
    check_user_data,
)
from cogment_model_registry.registry import signing_rules
from cogment_model_registry.registry.contracts import (
    Archive,
    Catalog,
    ModelRef,
    Reader,
    TransientStore,
    TransientUsage,
    Upload,
    VersionStore,
)
from cogment_model_registry.registry.parking import Parking
from cogment_model_registry.registry.uploads import Completion, UploadsUnderWay, VersionUpload
from cogment_model_registry.system.tasks import run_to_end

_BUSY_TRANSFERS = 64
"""How many transfers at once count as a full load. With two cores, some 10 already use the whole machine."""

LOAD_MAX = 254
"""The highest load of a registry that works; 255 means unserviceable."""


KeepCopies: TypeAlias = Callable[[VersionInfo], Awaitable[None]]
"""Lets other servers have a transient version. Raises `UnavailableError` if they do not get it; it stays published."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of what callers may ask for.

    Attributes:
        model_id_max_bytes: Bytes of a model id in UTF-8.
        user_data_max_bytes: Bytes of the keys and values of `user_data` in UTF-8.
        request_max_items: Entries of a list in a request.
        model_aliases_max: Aliases of one model.
    """

    model_id_max_bytes: int
    user_data_max_bytes: int
    request_max_items: int
    model_aliases_max: int = 1000


@dataclass(frozen=True, slots=True)
class RegistryStatus:
    """The state of the registry.

    Attributes:
        models: Models that exist.
        versions: Versions that can be retrieved.
        archived_bytes: Bytes of archived versions.
        transient: How full the transient store is.
        uploads: Uploads under way.
        readers: Retrievals under way.
        watchers: Watchers that wait for news.
        load: From 0 to 254, or 255 when the archive takes no writes.
        archive_failure: Why the archive takes no writes; empty while it does, and when it is read-only.
        catalog_failure: Why aliases, tags, metrics and rules cannot be changed; empty while they can.
        is_read_only: Whether the registry takes no writes because it was started so.
    """

    models: int
    versions: int
    archived_bytes: int
    transient: TransientUsage
    uploads: int
    readers: int
    watchers: int
    load: int
    archive_failure: str
    catalog_failure: str
    is_read_only: bool


def _ignore(_model_id: str) -> None:
    """Do nothing about a deleted model."""


async def _both(*works: Awaitable[None]) -> None:
    """Do two things at once, to their ends, and raise the first error."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if outcome is not None:
            raise outcome


def _require_signature(signers: Sequence[PublicKey], header: VersionHeader, data_hash: str) -> None:
    """Refuse a version that a model demands to be signed, and that is not."""
    if signers:
        signing_rules.check_signature(signers, replace(header, data_hash=data_hash), header.signature)


class _ModelExistsError(Exception):
    """A model that was to be created exists."""


class VersionReader:
    """A version being retrieved. Made by `Registry.open_version`; to be entered.

    Attributes:
        info: The version.
    """

    def __init__(self, registry: "Registry", info: VersionInfo, ref: ModelRef | None, reader: Reader) -> None:
        self.info = info
        self._registry = registry
        self._ref = ref
        self._reader = reader

    async def __aenter__(self) -> Self:
        self._registry.readers_under_way += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._registry.readers_under_way -= 1
        await self._reader.aclose()

    async def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        """Yield the bytes, or a part of them; see `Reader.chunks`.

        Raises:
            DataLossError: They are not those that were stored.
        """
        try:
            async with aclosing(self._reader.chunks(max_bytes, buffer_bytes, offset, limit)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except DataLossError as error:
            await self._mark_damaged(error)
            raise

    def in_memory(self, max_bytes: int) -> Sequence[memoryview] | None:
        """Return all bytes at once, or None; see `Reader.in_memory`."""
        return self._reader.in_memory(max_bytes)

    async def hand_over(self) -> int | None:
        """Return a descriptor of the bytes, for the caller to close, or None; see `Reader.hand_over`.

        Raises:
            DataLossError: They are not those that were stored.
        """
        try:
            return await self._reader.hand_over()
        except DataLossError as error:
            await self._mark_damaged(error)
            raise

    async def _mark_damaged(self, error: DataLossError) -> None:
        if self._ref is not None:
            await self._registry.mark_damaged(self._ref, error)


class Registry:
    """A registry of models over a catalog, an archive and a transient store.

    Args:
        limits: The limits of requests.
        catalog: What exists.
        archive: Where archived versions live.
        transient: Where transient versions live; the registry becomes its listener of evictions.
        resume_seconds: How long an interrupted upload may wait to be resumed.

    Attributes:
        limits: The limits of requests.
        parking: The interrupted uploads.
        under_way: Counts the others.
        readers_under_way: Retrievals under way.
        watchers: Watchers that wait for news.
    """

    def __init__(
        self,
        limits: Limits,
        catalog: Catalog,
        archive: Archive,
        transient: TransientStore,
        resume_seconds: float = 0.0,
    ) -> None:
        self.limits = limits
        self.parking = Parking(resume_seconds)
        self._catalog = catalog
        self._archive = archive
        self._transient = transient
        self.under_way = UploadsUnderWay()
        self.readers_under_way = 0
        self.watchers = 0
        # Versions that are committed and not visible yet, and whether they were evicted already.
        self._publishing: dict[tuple[str, int], bool] = {}
        self._on_model_removed: Callable[[str], None] = _ignore
        self._takes_uploads = True
        self._keep_copies: KeepCopies | None = None
        transient.on_evicted(self._forget)

    def on_model_removed(self, listener: Callable[[str], None]) -> None:
        """Set who receives the ids of models that were deleted."""
        self._on_model_removed = listener

    def on_published(self, keep_copies: KeepCopies) -> None:
        """Set what lets other servers have each transient version, before its publish is acknowledged."""
        self._keep_copies = keep_copies

    async def create_or_update_model(self, info: ModelInfo) -> None:
        """Create the model, or replace its `user_data`; durable on return.

        Raises:
            InvalidError: The id or the `user_data` breaks a rule.
            PreconditionError: The registry is read-only.
            TooLargeError: No space is left.
        """
        self.check_model_id(info.model_id)
        check_user_data(info.user_data, self.limits.user_data_max_bytes, info.model_id)
        self.require_writable(info.model_id)

        async def create_or_update() -> None:
            async with self._catalog.writing_model(info):
                await self._archive.write_model(info)

        await run_to_end(create_or_update())

    async def find_or_create_model(self, model_id: str) -> ModelRef:
        """Return the model, which is created without `user_data` if it does not exist; durable on return.

        Raises:
            PreconditionError: The registry is read-only.
            TooLargeError: No space is left.
        """
        with contextlib.suppress(NotFoundError):
            return await self._catalog.find(model_id)
        self.require_writable(model_id)
        info = ModelInfo(model_id)

        async def create() -> None:
            with contextlib.suppress(_ModelExistsError):
                async with self._catalog.writing_model(info):
                    with contextlib.suppress(NotFoundError):
                        await self._catalog.get_model(model_id)
                        raise _ModelExistsError  # someone else was faster, perhaps with `user_data`
                    await self._archive.write_model(info)

        await run_to_end(create())
        return await self._catalog.find(model_id)

    async def delete_model(self, model_id: str) -> None:
        """Delete the model and all its versions. Readers under way go on.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: It does not exist.
            PreconditionError: The registry is read-only.
        """
        self.check_model_id(model_id)
        self.require_writable(model_id)

        async def delete() -> None:
            async with self._catalog.removing_model(model_id):
                try:
                    removal = await self._archive.begin_removal(model_id)
                except NotFoundError:
                    removal = None  # someone removed its files by hand
                await self._transient.remove_model(model_id)
            self._on_model_removed(model_id)
            await self.parking.drop_model(model_id)
            if removal is not None:
                await removal.finish()

        await run_to_end(delete())

    async def list_models(self, offset: int, limit: int) -> list[ModelInfo]:
        """Return up to `limit` models, ordered by id, without the first `offset` ones."""
        return await self._catalog.list_models(offset, limit)

    async def get_models(self, model_ids: Sequence[str]) -> list[ModelInfo]:
        """Return the models with these ids, in the order given.

        Raises:
            InvalidError: An id breaks a rule, or the list is too long.
            NotFoundError: One does not exist.
        """
        self.check_count("model_ids", len(model_ids))
        for model_id in model_ids:
            self.check_model_id(model_id)
        return [await self._catalog.get_model(model_id) for model_id in model_ids]

    async def has_model(self, model_id: str) -> bool:
        """Return whether a model exists."""
        try:
            await self._catalog.get_model(model_id)
        except NotFoundError:
            return False
        return True

    async def create_version(self, header: VersionHeader) -> VersionUpload:
        """Return the upload of a new version; left without commit, it leaves nothing.

        Raises:
            InvalidError: The header breaks a rule.
            NotFoundError: The model does not exist.
            PreconditionError: The registry is read-only, so it takes no transient versions either: it could not record
                which numbers it gave.
            TooLargeError: The version cannot fit.
        """
        self.check_header(header)
        return await self.open_version_upload(header)

    async def open_version_upload(self, header: VersionHeader) -> VersionUpload:
        """Return the upload of a new version whose header was checked; see `create_version`.

        Raises:
            UnavailableError: After `stop_uploads`.
        """
        if not self._takes_uploads:
            raise StoppingError
        ref, signers = await self._catalog.find_with_signers(header.model_id)
        signing_rules.check_header(signers, header)
        store: VersionStore = self._archive if header.archived else self._transient
        upload = await self.open_upload(store, header.model_id, header.data_size_bytes)
        return self.uploading(header, ref, signers, upload)

    def stop_uploads(self) -> None:
        """Refuse new versions from now on: the server stops. Uploads that have begun go on."""
        self._takes_uploads = False

    def uploading(
        self, header: VersionHeader, ref: ModelRef, signers: Sequence[PublicKey], upload: Upload
    ) -> VersionUpload:
        """Return the upload of a version whose bytes go to an upload of the store of its tier.

        Args:
            header: The declaration of the version.
            ref: Its model.
            signers: Those of the model, as they were found with it.
            upload: Takes the bytes.
        """
        publish = functools.partial(self._publish, header, ref, signers, upload)
        return VersionUpload(header, upload, publish, self.under_way)

    def check_header(self, header: VersionHeader) -> None:
        """Refuse a header that breaks a rule, or any where the registry is read-only.

        Raises:
            InvalidError: It breaks a rule.
            PreconditionError: The registry is read-only.
        """
        self.check_model_id(header.model_id)
        check_user_data(header.user_data, self.limits.user_data_max_bytes, header.model_id)
        check_data_size(header.data_size_bytes, header.model_id)
        if header.data_hash:
            check_data_hash(header.data_hash, header.model_id)
        self.require_writable(header.model_id)

    async def open_upload(self, store: VersionStore, model_id: str, size_bytes: int) -> Upload:
        """Begin to write a version of `size_bytes` bytes; interrupted uploads make room if there is none.

        Raises:
            NotFoundError: The model does not exist.
            TooLargeError: It cannot fit.
        """
        while True:
            try:
                return await store.open_upload(model_id, size_bytes)
            except TooLargeError:
                if not await self.parking.drop_oldest():
                    raise

    async def list_versions(self, model_id: str, first_number: int, limit: int) -> list[VersionInfo]:
        """Return up to `limit` versions, ordered by number, from `first_number` on.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: The model does not exist.
        """
        self.check_model_id(model_id)
        return await self._catalog.list_versions(model_id, first_number, limit)

    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        """Return versions by number, or by -n for the n-th from the last, in the order given.

        Raises:
            DataLossError: One is damaged.
            InvalidError: The id breaks a rule, or the list of numbers is too long.
            NotFoundError: The model or one of the versions does not exist.
        """
        self.check_model_id(model_id)
        self.check_count("version_numbers", len(numbers))
        return await self._catalog.get_versions(model_id, numbers)

    async def open_version(self, model_id: str, number: int) -> VersionReader:
        """Return the reader of a version; `number` as for `get_versions`.

        Raises:
            DataLossError: It is damaged.
            InvalidError: The id breaks a rule.
            NotFoundError: The model or the version does not exist.
        """
        self.check_model_id(model_id)
        gone: VersionInfo | None = None
        while True:
            ref, info = await self._catalog.find_version(model_id, number)
            # If the model is deleted and created again in the meantime, other bytes may have this number.
            try:
                reader = await self._open(info)
                if await self._is_current(ref, reader):
                    return VersionReader(self, info, ref, reader)
            except DataLossError as error:
                if await self._is_current(ref):
                    await self.mark_damaged(ref, error)
                    raise
            except NotFoundError:
                # Perhaps it was promoted in this moment, and is archived now; or it is being deleted, and then another
                # version is the n-th from the last.
                if info == gone:
                    raise
                gone = info
                if number < 0:
                    await self._catalog.settled(model_id)

    async def open_same_version(self, info: VersionInfo) -> VersionReader:
        """Return the reader of a version that was found before.

        Raises:
            DataLossError: It is damaged.
            NotFoundError: It does not exist any more; perhaps another model has its number.
        """
        reader = await self.open_version(info.model_id, info.number)
        if (reader.info.data_hash, reader.info.created_ns) != (info.data_hash, info.created_ns):
            async with reader:
                raise NotFoundError.version(info.model_id, info.number)
        return reader

    async def open_own_version(self, model_id: str, number: int) -> VersionReader:
        """Return the reader of a transient version whose bytes this process has. Not even the catalog is asked.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: The process does not have them.
        """
        self.check_model_id(model_id)
        info, reader = await self._transient.open_own(model_id, number)
        return VersionReader(self, info, None, reader)

    async def _is_current(self, ref: ModelRef, reader: Reader | None = None) -> bool:
        """Return whether a model was not deleted and created again; close a reader if it was.

        Raises:
            NotFoundError: It was deleted.
        """
        is_current = False
        try:
            found = await self._catalog.find(ref.model_id)
            is_current = found is ref or found == ref
        finally:
            if reader is not None and not is_current:
                await reader.aclose()
        return is_current

    async def watch(self, model_id: str) -> AsyncGenerator[VersionInfo, None]:
        """Yield the latest version of the model if it has any, then newer ones; see `Catalog.watch`.

        To be closed with `contextlib.aclosing`.

        Raises:
            InvalidError: The id breaks a rule.
            NotFoundError: The model does not exist, or was deleted.
            UnavailableError: The registry stops.
        """
        self.check_model_id(model_id)
        self.watchers += 1
        try:
            async with aclosing(self._catalog.watch(model_id)) as versions:
                async for info in versions:
                    yield info
        finally:
            self.watchers -= 1

    async def status(self) -> RegistryStatus:
        """Return the state of the registry."""
        counts = await self._catalog.count()
        return RegistryStatus(
            models=counts.models,
            versions=counts.versions,
            archived_bytes=counts.archived_bytes,
            transient=self._transient.usage,
            uploads=self.under_way.count,
            readers=self.readers_under_way,
            watchers=self.watchers,
            load=self._load(),
            archive_failure=self._archive.failure,
            catalog_failure=self._catalog.failure,
            is_read_only=self._archive.is_read_only,
        )

    def _load(self) -> int:
        """Return the load: the share in use of what is scarcest, memory that cannot be freed or transfers."""
        if self._archive.failure:
            return LOAD_MAX + 1
        usage = self._transient.usage
        memory_share = usage.held_bytes / usage.max_bytes
        transfer_share = (self.under_way.count + self.readers_under_way) / _BUSY_TRANSFERS
        return round(min(max(memory_share, transfer_share), 1) * LOAD_MAX)

    async def _publish(
        self,
        header: VersionHeader,
        ref: ModelRef,
        signers: Sequence[PublicKey],
        upload: Upload,
        completion: Completion,
    ) -> VersionInfo:
        """Number a finished upload, commit it and make it visible."""
        created_ns = header.created_ns or time_ns()
        key = None
        evicted: Sequence[VersionInfo] = ()
        _require_signature(signers, header, completion.data_hash)  # before a number is used up
        try:
            async with self._catalog.publishing(ref, archived=header.archived) as slot:
                if (now := await self._catalog.get_signers(ref)) != signers:
                    _require_signature(now, header, completion.data_hash)
                info = VersionInfo(
                    model_id=header.model_id,
                    number=slot.number,
                    created_ns=created_ns,
                    archived=header.archived,
                    data_hash=completion.data_hash,
                    data_size_bytes=header.data_size_bytes,
                    user_data=header.user_data,
                    signature=header.signature,
                )
                key = info.model_id, info.number
                self._publishing[key] = False
                if completion.annotations is not None or completion.request is not None:
                    annotating = slot.annotate(info, completion.annotations or Annotations(), completion.request)
                    # The database and the files each have a sync to wait for.
                    await (_both(annotating, upload.prepare(info)) if info.archived else annotating)
                await upload.commit(info)
                slot.show(info)
                evicted = slot.forget(self._without_publishing(upload.take_evicted()))
                if info.archived:
                    self._transient.note_newest(*key)
        finally:
            is_evicted = key is not None and self._publishing.pop(key)
            await self._forget(evicted)
        if is_evicted:
            await self._catalog.forget(info)
        else:
            await self.ensure_copies(info)
        return info

    async def ensure_copies(self, info: VersionInfo) -> None:
        """Let other servers have a published version, if that is asked for and it is transient.

        Raises:
            UnavailableError: They do not get it; it stays published.
        """
        if self._keep_copies is not None and not info.archived:
            await self._keep_copies(info)

    async def mark_damaged(self, ref: ModelRef, error: DataLossError) -> None:
        """Take a version out of the listing that turned out to be damaged."""
        await self._catalog.mark_damaged(ref, error)

    async def _forget(self, evicted: Sequence[VersionInfo]) -> None:
        """Make evicted versions invisible."""
        for info in self._without_publishing(evicted):
            await self._catalog.forget(info)

    def _without_publishing(self, evicted: Sequence[VersionInfo]) -> list[VersionInfo]:
        """Return evicted versions without those that are not visible yet, of which this is noted."""
        visible = []
        for info in evicted:
            key = info.model_id, info.number
            if key in self._publishing:
                self._publishing[key] = True
            else:
                visible.append(info)
        return visible

    async def _open(self, info: VersionInfo) -> Reader:
        store: VersionStore = self._archive if info.archived else self._transient
        return await store.open_version(info)

    def check_model_id(self, model_id: str) -> None:
        """Refuse an id that breaks a rule; see `records.versions.check_model_id`."""
        check_model_id(model_id, self.limits.model_id_max_bytes)

    def require_writable(self, model_id: str) -> None:
        """Refuse to write where the archive is read-only.

        Raises:
            PreconditionError: It is.
        """
        if self._archive.is_read_only:
            message = "this registry is read-only: it takes no versions and no changes of models"
            raise PreconditionError(message, model_id=model_id)

    async def check_alias_count(self, model_id: str, names: Sequence[str]) -> None:
        """Refuse aliases by which a model would get too many.

        Raises:
            NotFoundError: The model does not exist.
            TooLargeError: It would get too many.
        """
        if not names:
            return
        known = {alias.name for alias in await self._catalog.get_aliases(model_id)}
        most = self.limits.model_aliases_max
        if not known.issuperset(names) and len(known.union(names)) > most:
            has = counted(len(known), "alias", "aliases")
            message = f"model {quoted(model_id)} has {has}; at most {most} are allowed"
            raise TooLargeError(message, model_id=model_id)

    def check_count(self, name: str, count: int) -> None:
        """Refuse a list that is too long.

        Raises:
            InvalidError: It is.
        """
        if count > self.limits.request_max_items:
            raise InvalidError(
                f"{name} has {counted(count, 'entry', 'entries')}; at most {self.limits.request_max_items} are allowed"
            )
