"""The archive in a bucket that several servers write, which share a catalog.

Nobody owns it. The caller runs one at a time of `write_model`, `begin_removal`, `remove_version` and `Upload.commit` of
a model over all servers, and decides who may write. What a server wrote is there for the others at once, since lives of
models are looked up: before each write, and for a read when what was found before does not fit the version.

What a server that is gone has sent may still arrive. A record is created once, and its number is given once; the
objects of models are only replaced as they were read (`registers`); bytes have keys of their own. So it cannot bring
back what was removed, nor change what others have written since.
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from cachetools import LRUCache

from cogment_model_registry.errors import DataLossError, ModelRegistryError, StartError, UnavailableError
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import ModelContents, Removal
from cogment_model_registry.storage.bucket import layout, registers
from cogment_model_registry.storage.bucket.claim import LEASE_SECONDS, Claim
from cogment_model_registry.storage.bucket.commitment import write_void
from cogment_model_registry.storage.bucket.contents import contents_of, list_names, load_models
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import ModelRecord, Record
from cogment_model_registry.storage.bucket.leftovers import clear_leftovers_of
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.probe import probe
from cogment_model_registry.storage.bucket.removal import BucketRemoval, free_life
from cogment_model_registry.storage.bucket.translation import ObjectExists
from cogment_model_registry.storage.bucket.versions import BucketVersions
from cogment_model_registry.storage.folder import KnownFolder
from cogment_model_registry.system.tasks import run_to_end

_MODELS_MAX = 10_000
"""How many models are kept in memory for reads."""


class _SharedHoldings(Holdings):
    """Looks models up in the bucket, and keeps some for reads."""

    is_shared = True

    def __init__(
        self, objects: Objects, require_writable: Callable[[], Awaitable[None]], server: Callable[[], int]
    ) -> None:
        super().__init__(objects, require_writable, server)
        self.models = LRUCache(_MODELS_MAX)

    async def find_model(self, model_id: str) -> ModelRecord | None:
        model = await registers.read(self.objects, model_id)
        if model is None or model.is_ended:
            self.models.pop(model_id, None)
            return None
        self.models[model_id] = model
        return model


class SharedBucketArchive(BucketVersions):
    """Archived versions in a bucket that several servers write.

    Args:
        objects: The objects under the prefix of the archive.
        require_writable: Raises UnavailableError while this server may not write; awaited before and after writes.
        server: Returns the number of this server among those that write now, from 0 to `layout.SERVER_MAX`; no other
            one has it, now or later. After it has changed, uploads that began before are refused.
        lease_seconds: How long the claim of a single server counts that gives no sign of life.

    Attributes:
        id: What tells the archive from others, once it is open.
    """

    def __init__(
        self,
        objects: Objects,
        require_writable: Callable[[], Awaitable[None]],
        server: Callable[[], int],
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        super().__init__(_SharedHoldings(objects, require_writable, server))
        self._lease_seconds = lease_seconds

    @property
    def is_exclusive(self) -> bool:
        return False

    @property
    def failure(self) -> str:
        return self._objects.failure

    async def check(self) -> None:
        if self._objects.failure:
            name = f"{layout.PROBES}/{layout.new_life()}"
            with contextlib.suppress(ModelRegistryError):
                await self._objects.put(name, b"")
                await self._objects.delete([name])

    async def _open(self) -> None:
        await probe(self._objects, is_shared=True)
        if await self._read_format() == layout.FORMAT_SHARED:
            return
        if not self.id:
            self.id = layout.new_life()
            with contextlib.suppress(ObjectExists):
                await self._objects.create(layout.FORMAT_NAME, layout.build_format(layout.FORMAT_SHARED, self.id))
        if await self._read_format() != layout.FORMAT_SHARED:
            await self._take_over()

    async def find_id(self) -> str:
        """Return what tells the archive from others, before it is opened; empty if no server has used it.

        Raises:
            StartError: It cannot be used.
            UnavailableError: The store failed.
        """
        await self._read_format()
        return self.id

    async def find_catalog(self) -> str:
        """Return the id of the catalog to which the archive belongs; empty if it belongs to none yet.

        Raises:
            StartError: What says so is malformed.
            UnavailableError: The store failed.
        """
        return self._parse_catalog(await self._objects.find(layout.CATALOG_NAME))

    async def bind_catalog(self, catalog_id: str, *, replaces: bool = False) -> str:
        """Let the archive belong to a catalog, if it belongs to none.

        Args:
            catalog_id: The id of the catalog.
            replaces: Whether also if it belongs to another one.

        Returns:
            The id of the catalog to which it belongs now.

        Raises:
            StartError: What says so is malformed.
            UnavailableError: The store failed.
        """
        before = await self._objects.find_written(layout.CATALOG_NAME)
        with contextlib.suppress(ObjectExists):  # of another server, or of this one: it is read again
            if before is None:
                await self._objects.create(layout.CATALOG_NAME, layout.build_catalog(catalog_id))
            elif replaces and self._parse_catalog(before.data) != catalog_id:
                await self._objects.replace(layout.CATALOG_NAME, layout.build_catalog(catalog_id), before)
        return await self.find_catalog()

    def _parse_catalog(self, text: bytes | None) -> str:
        try:
            return "" if text is None else layout.parse_catalog(text)
        except layout.BadObject as error:
            name = layout.CATALOG_NAME
            raise StartError(f"archive {self._objects.url} cannot be used: its {name}: {error}") from None

    async def _take_over(self) -> None:
        """Share an archive of one server, which must have stopped.

        Raises:
            StartError: It lives.
        """
        claim = Claim(self._objects, lease_seconds=self._lease_seconds)
        try:
            await claim.take()
            if await self._read_format() != layout.FORMAT_SHARED:
                text = layout.build_format(layout.FORMAT_SHARED, self.id)
                await self._objects.put(layout.FORMAT_NAME, text)
        except StartError:
            # Another one of the servers that share it may have been first.
            if await self._read_format() != layout.FORMAT_SHARED:
                raise
        finally:
            await claim.release()

    async def scan(self) -> Sequence[ModelContents]:
        models, _ = await load_models(self._objects)
        listing = await list_names(self._objects)
        ordered = sorted(models.values(), key=lambda model: model.info.model_id)
        return [await contents_of(self._home, model, listing, KnownFolder()) for model in ordered]

    async def _write_model(self, info: ModelInfo) -> None:
        await self._home.require_writable()
        self._home.models[info.model_id] = await registers.write(self._objects, info)

    async def _begin_removal(self, model_id: str) -> Removal:
        await self._home.require_writable()
        model = await registers.end(self._objects, model_id)
        self._home.models.pop(model_id, None)
        return BucketRemoval(self._home, model.life)

    async def has_models(self) -> bool:
        """Return whether there is any model. Takes long where there are very many.

        Raises:
            UnavailableError: The store failed.
        """
        models, _ = await load_models(self._objects)
        return bool(models)

    async def has_model(self, model_id: str) -> bool:
        """Return whether a model exists whose removal has not begun.

        Raises:
            UnavailableError: The store failed.
        """
        return await self._home.find_model(model_id) is not None

    async def finish_removal(self, model_id: str) -> None:
        """Remove a model whose removal another server may have begun, and free its bytes. Nothing if it is done.

        The caller runs it as it runs `begin_removal`.

        Raises:
            UnavailableError: The store failed: try again.
        """
        await run_to_end(self._finish_removal(model_id))

    async def _finish_removal(self, model_id: str) -> None:
        await self._home.require_writable()
        model = await registers.read(self._objects, model_id)
        if model is not None and not model.is_ended:
            model = await registers.end(self._objects, model_id)
        self._home.models.pop(model_id, None)
        if model is not None:
            await free_life(self._home, model.life)

    async def _read_record(self, model_id: str, life: str, number: int) -> Record | None:
        return await self._home.read_record(model_id, life, number, is_fresh=True)

    async def _find_record(self, info: VersionInfo) -> tuple[str, Record] | None:
        known = self._home.models.get(info.model_id)
        if known is not None:
            record = None
            with contextlib.suppress(DataLossError):
                record = await self._home.read_record(info.model_id, known.life, info.number)
            if record is not None and _is_of(record, info) and record.info.data_hash == info.data_hash:
                return known.life, record
        model = await self._home.find_model(info.model_id)
        if model is None:
            return None
        record = await self._read_record(info.model_id, model.life, info.number)
        return (model.life, record) if record is not None and _is_of(record, info) else None

    async def _remove_version(self, info: VersionInfo) -> None:
        await self._home.require_writable()
        model = await self._home.find_model(info.model_id)
        if model is None:
            return
        life, number = model.life, info.number
        record, is_damaged = await self._try_record(info.model_id, life, number)
        if record is not None and not _is_of(record, info):
            return  # of another life of the model: the version is gone already
        if record is not None or is_damaged:
            await self._objects.delete([layout.version_name(life, number)])
            self._home.forget_record(life, number)
        await self._free_bytes(life, number, record)

    async def _try_record(self, model_id: str, life: str, number: int) -> tuple[Record | None, bool]:
        """Return the record of a version as it is now, and whether it is malformed."""
        try:
            return await self._read_record(model_id, life, number), False
        except DataLossError:
            return None, True

    async def remove_leftover(self, model_id: str, number: int, check: Callable[[], Awaitable[None]]) -> None:
        """Make sure that a number of a model has no version, now or later, whatever became of its commit.

        The caller runs it as it runs `Upload.commit`, in the life of the model in which the number was given. Bytes
        whose record never existed are left to `clear_leftovers`. Nothing if the model does not exist.

        Args:
            model_id: The model.
            number: The number.
            check: Raises UnavailableError if others may change the model now. A server that was frozen may find that
                the version was archived again in the meantime.

        Raises:
            UnavailableError: The store failed, or others may have changed the version: try again.
        """
        await run_to_end(self._remove_leftover(model_id, number, check))

    async def _remove_leftover(self, model_id: str, number: int, check: Callable[[], Awaitable[None]]) -> None:
        await self._home.require_writable()
        model = await self._home.find_model(model_id)
        if model is None:
            return
        life = model.life
        written = await self._objects.find_written(layout.version_name(life, number))
        record, _ = await self._try_record(model_id, life, number)
        await check()  # after it was read: whoever changes the model later changes what was read
        try:
            await write_void(self._home, life, number, written)
        except ObjectExists:
            raise UnavailableError("the archive failed: the record of a version was changed; try again") from None
        await self._free_bytes(life, number, record)

    async def _free_bytes(self, life: str, number: int, record: Record | None) -> None:
        """Delete the bytes of a version and then its hint, which leads to them where the record is gone already."""
        if record is not None:
            await self._free(record.key, layout.data_names(life, record))
            await self._objects.delete([layout.hint_name(life, number, record)])
            return
        hint_names = await self._objects.all_names(f"{layout.HINTS}/{life}")
        found = [(name, layout.parse_hint_name(name)) for name in hint_names]
        hints = {name: hint[2].key for name, hint in found if hint and hint[1] == number and hint[2].key}
        if not hints:
            return
        names = await self._objects.all_names(f"{layout.DATA}/{life}")
        for hint_name, key in hints.items():
            await self._free(key, [name for name in names if (data := layout.parse_data_name(name)) and data[1] == key])
            await self._objects.delete([hint_name])

    async def _free(self, key: str, names: Sequence[str]) -> None:
        """Delete bytes, once nobody reads them here."""
        if self._home.chores.is_pinned(key):
            self._home.chores.delete_data_soon(key, names)
        else:
            await self._objects.delete(names)

    async def clear_leftovers(self, server: int) -> int:
        """Delete what uploads and removals of a server left that is gone, and what removed models left.

        Args:
            server: Its number, which no server has any more.

        Returns:
            How many objects were deleted.

        Raises:
            UnavailableError: The store failed: try again.
        """
        return await clear_leftovers_of(self._home, server)


def _is_of(record: Record, info: VersionInfo) -> bool:
    """Return whether a record is that of a version, and not of the same number in another life of the model."""
    return record.info.created_ns == info.created_ns
