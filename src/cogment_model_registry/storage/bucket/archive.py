"""The archive in a bucket, of one server: see `layout` for its objects, and `claim` for who owns it."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog

from cogment_model_registry.errors import (
    DataLossError,
    ModelRegistryError,
    NotFoundError,
    StartError,
    TooLargeError,
    UnavailableError,
)
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Reader, Removal, Upload
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.claim import LEASE_SECONDS, Claim
from cogment_model_registry.storage.bucket.contents import READS_AT_ONCE, Listing, contents_of, list_names, load_models
from cogment_model_registry.storage.bucket.holdings import HeldModel, Holdings
from cogment_model_registry.storage.bucket.layout import Record
from cogment_model_registry.storage.bucket.leftovers import clear_leftovers
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.probe import probe
from cogment_model_registry.storage.bucket.reading import BucketReader
from cogment_model_registry.storage.bucket.translation import ObjectExists, reason_of
from cogment_model_registry.storage.bucket.uploads import PART_BYTES, PARTS_MAX, BucketCopy, BucketUpload
from cogment_model_registry.storage.folder import FolderArchive, FolderContents, KnownFolder
from cogment_model_registry.system.tasks import end, run_to_end

_log = structlog.stdlib.get_logger(__name__)

_COPY_BLOCK_BYTES = 1024 * 1024
_COPY_BUFFER_BYTES = 16 * 1024 * 1024


class BucketArchive(FolderArchive):
    """Archived versions in a bucket.

    Args:
        objects: The objects under the prefix of the archive.
        state: What identifies the directory of the catalog, which this process has locked; empty for none.
        read_only: Whether to write nothing: another server may own the archive.
        lease_seconds: How long the claim of a server counts that gives no sign of life.

    Attributes:
        id: What tells the archive from others, once it is open.
    """

    def __init__(
        self, objects: Objects, state: str = "", *, read_only: bool = False, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._objects = objects
        self._claim = None if read_only else Claim(objects, state, lease_seconds)
        self._home = Holdings(objects, self._claim)
        self.id = ""
        self._is_open = False
        self._is_fresh = False
        self._is_swept = False
        self._sweeping: asyncio.Task[None] | None = None
        self._malformed: list[str] = []

    @property
    def malformed(self) -> list[str]:
        """The names of objects of models that are malformed; those models are not served."""
        return self._malformed

    @property
    def is_exclusive(self) -> bool:
        return not self.is_read_only

    @property
    def is_read_only(self) -> bool:
        return self._claim is None

    @property
    def failure(self) -> str:
        return "" if self._claim is None else self._claim.failure or self._objects.failure

    async def open(self) -> None:
        try:
            if self._claim is not None:
                await probe(self._objects)
                await self._claim.take()
            await self._check_format()
            await self._load_models()
        except ModelRegistryError as error:
            await self._release()
            if isinstance(error, StartError):
                raise
            raise StartError(f"archive {self._objects.url} cannot be used: {reason_of(error)}") from error
        except BaseException:
            await self._release()
            raise
        self._is_open = True

    async def _check_format(self) -> None:
        text = await self._objects.find(layout.FORMAT_NAME)
        if text is None:
            if self._claim is None:
                raise StartError(f"archive {self._objects.url} cannot be used: no server has used it")
            text = layout.build_format(layout.new_life())
            await self._objects.put(layout.FORMAT_NAME, text)
        try:
            found, self.id = layout.parse_format(text)
        except layout.BadObject as error:
            raise StartError(f"archive {self._objects.url} cannot be used: its format.json: {error}") from None
        if found > layout.FORMAT_MAX:
            raise StartError(
                f"archive {self._objects.url} has the format {found}; this version knows formats up to "
                f"{layout.FORMAT_MAX}: use a newer version"
            )

    async def _load_models(self) -> None:
        self._home.models, self._malformed = await load_models(self._objects)
        self._is_fresh = True

    async def _release(self) -> None:
        if self._claim is not None:
            await self._claim.release()

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await run_to_end(self._close())
        await run_to_end(self._objects.close())
        self._home.close()

    async def _close(self) -> None:
        if self._sweeping is not None:
            await end(self._sweeping)
        await self._home.chores.close()
        await self._release()

    async def scan(self, known: Mapping[str, KnownFolder] | None = None) -> list[FolderContents]:
        if not self._is_fresh:
            await self._load_models()
            if self.is_read_only:
                self._home.forget_records()  # another server may have removed some
        self._is_fresh = False
        listing = await list_names(self._objects)
        self._home.marks = dict(listing.marks)
        models = sorted(self._home.models.values(), key=lambda model: model.info.model_id)
        known = known or {}
        contents = [
            await contents_of(self._home, model, listing, known.get(model.info.model_id, KnownFolder()))
            for model in models
        ]
        if not self._is_swept and self._claim is not None and not self._malformed:
            self._is_swept = True
            self._sweeping = asyncio.create_task(self._sweep(listing))
        return contents

    async def _sweep(self, listing: Listing) -> None:
        """Clear away what interruptions left. What fails now is done by the next start."""
        try:
            await clear_leftovers(self._home, listing)
        except ModelRegistryError as error:
            _log.warning("leftovers of interrupted work stay until the next start", reason=error.message)

    async def swept(self) -> None:
        """Wait until what interruptions left is cleared away, which the first `scan` begins."""
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping])

    async def scan_model(self, model_id: str, known: KnownFolder | None = None) -> FolderContents | None:
        model = self._home.models.get(model_id)
        if model is None:
            return None
        listing = await list_names(self._objects, model.life)
        self._home.marks[model.life] = listing.marks.get(model.life, 0)
        return await contents_of(self._home, model, listing, known or KnownFolder())

    async def write_model(self, info: ModelInfo) -> None:
        await run_to_end(self._write_model(info))

    async def _write_model(self, info: ModelInfo) -> None:
        await self._home.require_writable()
        held = self._home.models.get(info.model_id)
        life = held.life if held else await self._begin_life(info)
        if held is not None:
            await self._objects.put(layout.model_name(info.model_id), layout.build_model(info, life))
        self._home.models[info.model_id] = HeldModel(info, life)

    async def _begin_life(self, info: ModelInfo) -> str:
        """Create a model, and return the id of its life."""
        name, life = layout.model_name(info.model_id), layout.new_life()
        text = layout.build_model(info, life)
        try:
            await self._objects.create(name, text)
        except (ObjectExists, UnavailableError) as error:
            # Of this server, which the store did not confirm: now, or when the model was to be created before.
            found = await self._objects.find(name)
            if found is None:
                raise error if isinstance(error, UnavailableError) else self._contradiction() from None
            try:
                _, life = layout.parse_model(found, name)
            except layout.BadObject as damage:
                raise UnavailableError(f"the archive failed: the object of the model is malformed: {damage}") from None
            if found != text:
                await self._objects.put(name, layout.build_model(info, life))
        return life

    def _contradiction(self) -> UnavailableError:
        return UnavailableError("the archive failed: the object store contradicts itself")

    async def begin_removal(self, model_id: str) -> Removal:
        return await run_to_end(self._begin_removal(model_id))

    async def _begin_removal(self, model_id: str) -> "_BucketRemoval":
        await self._home.require_writable()
        model = self._home.require_model(model_id)
        name = layout.model_name(model_id)
        try:
            await self._objects.delete([name])
        except UnavailableError:
            if await self._objects.find(name) is not None:
                raise
        del self._home.models[model_id]
        self._home.marks.pop(model.life, None)
        return _BucketRemoval(self._home, model.life)

    async def write_high_water_mark(self, model_id: str, number: int) -> None:
        await run_to_end(self._write_high_water_mark(model_id, number))

    async def _write_high_water_mark(self, model_id: str, number: int) -> None:
        await self._home.require_writable()
        life = self._home.require_model(model_id).life
        before = self._home.marks.get(life, 0)
        if number == before:
            return
        await self._objects.put(layout.mark_name(life, number), b"")
        # The highest counts; so a crash in between never lowers it.
        self._home.marks[life] = max(number, before)
        if before:
            await self._objects.delete([layout.mark_name(life, before)])
        self._home.marks[life] = number

    async def read_version_infos(
        self, model_id: str, numbers: Sequence[int]
    ) -> list[VersionInfo | DataLossError | None]:
        model = self._home.models.get(model_id)
        if model is None:
            return [None] * len(numbers)
        turns = asyncio.Semaphore(READS_AT_ONCE)

        async def read(number: int) -> VersionInfo | DataLossError | None:
            async with turns:
                try:
                    record = await self._home.read_record(model_id, model.life, number)
                except DataLossError as error:
                    return error
            return record.info if record is not None else None

        return await asyncio.gather(*map(read, numbers))

    async def open_upload(self, model_id: str, size_bytes: int) -> Upload:
        await self._home.require_writable()
        model = self._home.require_model(model_id)
        if size_bytes > PART_BYTES * PARTS_MAX:
            raise TooLargeError(f"a version in a bucket can have at most {PART_BYTES * PARTS_MAX} bytes")
        return BucketUpload(self._home, model.life, layout.new_key(self._home.epoch))

    async def open_version(self, info: VersionInfo) -> Reader:
        life, record = await self._require_record(info)
        self._home.chores.pin(record.key)
        return BucketReader(self._home, life, record)

    async def _require_record(self, info: VersionInfo) -> tuple[str, Record]:
        model = self._home.models.get(info.model_id)
        record = await self._home.read_record(info.model_id, model.life, info.number) if model else None
        if model is None or record is None:
            raise NotFoundError.version(info.model_id, info.number)
        if record.info.data_size_bytes != info.data_size_bytes:
            reason = f"it has {record.info.data_size_bytes} bytes instead of {info.data_size_bytes}"
            raise DataLossError.version(info.model_id, info.number, reason)
        # The caller's hash counts: it is what clients were told.
        return model.life, replace(record, info=info)

    async def open_copy(self, info: VersionInfo) -> Upload:
        await self._home.require_writable()
        life, record = await self._require_record(info)
        self._home.chores.pin(record.key)
        return BucketCopy(self._home, life, record, layout.new_key(self._home.epoch), self._hash_of)

    async def _hash_of(self, life: str, record: Record) -> str:
        """Return the hash of the bytes that a record leads to."""
        digest = PayloadHash()
        self._home.chores.pin(record.key)
        reader = BucketReader(self._home, life, record, is_checked=False)  # the caller compares the hash
        async with reader, aclosing(reader.chunks(_COPY_BLOCK_BYTES, _COPY_BUFFER_BYTES)) as chunks:
            async for chunk in chunks:
                await self._home.start_hash(digest, chunk)
        return digest.digest_text()

    async def remove_version(self, info: VersionInfo) -> None:
        await run_to_end(self._remove_version(info))

    async def _remove_version(self, info: VersionInfo) -> None:
        await self._home.require_writable()
        model = self._home.models.get(info.model_id)
        if model is None:
            return
        number = info.number
        try:
            record = await self._home.read_record(info.model_id, model.life, number)
        except DataLossError:
            record = None
        await self._objects.delete([layout.version_name(model.life, number)])
        self._home.forget_record(model.life, number)
        if record is not None:
            self._home.chores.delete_soon([layout.hint_name(model.life, number, record)])
            self._home.chores.delete_data_soon(record.key, layout.data_names(model.life, record))


class _BucketRemoval(Removal):
    """A life that no model has any more, whose objects go one by one."""

    def __init__(self, home: Holdings, life: str) -> None:
        self._home = home
        self._life = life

    async def finish(self) -> None:
        await run_to_end(self._finish())

    async def _finish(self) -> None:
        try:
            for prefix in (layout.VERSIONS, layout.HINTS, layout.MARKS):
                await self._delete(await self._home.objects.all_names(f"{prefix}/{self._life}"))
            by_key: dict[str, list[str]] = {}
            for name in await self._home.objects.all_names(f"{layout.DATA}/{self._life}"):
                if data := layout.parse_data_name(name):
                    by_key.setdefault(data[1], []).append(name)
            free = [name for key, names in by_key.items() if not self._home.chores.is_pinned(key) for name in names]
            await self._delete(free)
            for key, names in by_key.items():
                if self._home.chores.is_pinned(key):
                    self._home.chores.delete_data_soon(key, names)
        except ModelRegistryError as error:
            _log.warning("removal of part of a deleted model postponed", reason=error.message)

    async def _delete(self, names: Sequence[str]) -> None:
        if names:
            await self._home.require_writable()
            await self._home.objects.delete(names)
