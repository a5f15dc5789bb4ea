"""The archive in a bucket, of one server: see `layout` for its objects, and `claim` for who owns it."""

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from cogment_model_registry.errors import (
    DataLossError,
    ModelRegistryError,
    PreconditionError,
    StartError,
    UnavailableError,
)
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Removal
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.claim import LEASE_SECONDS, Claim
from cogment_model_registry.storage.bucket.contents import Listing, contents_of, list_names, load_models
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import ModelRecord, Record
from cogment_model_registry.storage.bucket.leftovers import clear_leftovers, delete_leftovers, find_leftovers
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.probe import probe
from cogment_model_registry.storage.bucket.rebuilding import rebuild_model
from cogment_model_registry.storage.bucket.removal import BucketRemoval
from cogment_model_registry.storage.bucket.translation import ObjectExists
from cogment_model_registry.storage.bucket.versions import BucketVersions
from cogment_model_registry.storage.folder import FolderArchive, FolderContents, KnownFolder
from cogment_model_registry.system.tasks import end, run_to_end

_log = structlog.stdlib.get_logger(__name__)


class BucketArchive(BucketVersions, FolderArchive):
    """Archived versions in a bucket, of one server.

    Args:
        objects: The objects under the prefix of the archive.
        state: What identifies the directory of the catalog, which this process has locked; empty for none.
        read_only: Whether to write nothing: another server may own the archive, or several may share it.
        lease_seconds: How long the claim of a server counts that gives no sign of life.
        is_sweeping: Whether the first `scan` begins to clear away what interruptions left.

    Attributes:
        id: What tells the archive from others, once it is open.
    """

    def __init__(
        self,
        objects: Objects,
        state: str = "",
        *,
        read_only: bool = False,
        lease_seconds: float = LEASE_SECONDS,
        is_sweeping: bool = True,
    ) -> None:
        self._claim = None if read_only else Claim(objects, state, lease_seconds)
        super().__init__(Holdings(objects, self._require_writable, lambda: self._claim.epoch if self._claim else 0))
        self._is_fresh = False
        self._is_swept = not is_sweeping
        self._sweeping: asyncio.Task[None] | None = None
        self._malformed: list[str] = []
        self._staged: set[str] = set()

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

    async def is_shared(self) -> bool:
        """Return whether several servers share the archive.

        Raises:
            UnavailableError: The store failed.
        """
        return await self._read_format() == layout.FORMAT_SHARED

    async def _require_writable(self) -> None:
        if self._claim is None:
            raise PreconditionError("the archive is open for reading only")
        await self._claim.require()

    async def _open(self) -> None:
        if self._claim is not None:
            await probe(self._objects)
            await self._claim.take()
        await self._check_format()
        await self._load_models()

    async def _check_format(self) -> None:
        found = await self._read_format()
        if not found:
            if self._claim is None:
                raise StartError(f"archive {self._objects.url} cannot be used: no server has used it")
            self.id = layout.new_life()
            try:
                await self._objects.create(layout.FORMAT_NAME, layout.build_format(layout.FORMAT_OF_ONE, self.id))
            except ObjectExists:  # of servers that share it, or of this one, if the store did not answer at first
                found = await self._read_format()
        if found == layout.FORMAT_SHARED and self._claim is not None:
            raise StartError(
                f"archive {self._objects.url} is in use by several servers that share a catalog: only a server with "
                "their catalog_url can write it; cogment archive copy makes a copy for a single server"
            )

    async def _load_models(self) -> None:
        self._home.models, self._malformed = await load_models(self._objects)
        self._is_fresh = True

    async def _give_up(self) -> None:
        if self._claim is not None:
            await self._claim.release()

    async def _close(self) -> None:
        if self._sweeping is not None:
            await end(self._sweeping)
        await super()._close()

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

    async def find_leftovers(self) -> list[tuple[str, str]]:
        """Return the names of what interruptions left, with the model of each, empty for a model that was removed.

        The archive must be owned by this process, and have no malformed model.

        Raises:
            UnavailableError: The store failed.
        """
        listing = await list_names(self._objects)
        models = {model.life: model.info.model_id for model in self._home.models.values()}
        found = [name async for names in find_leftovers(self._home, listing) for name in names]
        return [(name, models.get(layout.life_of(name), "")) for name in found]

    async def delete_leftovers(self, names: Sequence[str]) -> None:
        """Delete what `find_leftovers` has found.

        Raises:
            UnavailableError: The store failed.
        """
        await delete_leftovers(self._home, names)

    async def rebuild_model(self, name: str) -> None:
        """Rebuild the malformed object of a model from its versions, without `user_data`.

        Raises:
            DataLossError: That is not possible.
            UnavailableError: The store failed.
        """
        await self._home.require_writable()
        living = {model.life for model in self._home.models.values()}
        model = await rebuild_model(self._objects, name, await list_names(self._objects), living)
        self._home.models[model.info.model_id] = model
        self._malformed.remove(name)

    async def scan_model(self, model_id: str, known: KnownFolder | None = None) -> FolderContents | None:
        model = self._home.models.get(model_id)
        if model is None:
            return None
        listing = await list_names(self._objects, model.life)
        self._home.marks[model.life] = listing.marks.get(model.life, 0)
        return await contents_of(self._home, model, listing, known or KnownFolder())

    def has_model(self, model_id: str) -> bool:
        """Return whether there is a model of a name, or a malformed object of one."""
        return model_id in self._home.models or layout.model_name(model_id) in self._malformed

    def stage_model(self, info: ModelInfo) -> None:
        """Begin a model that takes versions now, and appears with all of them when `write_model` writes it.

        There must be none of its name, and nothing else may use the archive until then.
        """
        self._home.models[info.model_id] = ModelRecord(info, layout.new_life())
        self._staged.add(info.model_id)

    async def discard_model(self, model_id: str) -> None:
        """Give up a model that was begun by `stage_model`, and delete its versions."""
        self._staged.discard(model_id)
        await BucketRemoval(self._home, self._home.models.pop(model_id).life).finish()

    async def _write_model(self, info: ModelInfo) -> None:
        await self._home.require_writable()
        held = self._home.models.get(info.model_id)
        model = ModelRecord(info, held.life if held else layout.new_life())
        if held is None or info.model_id in self._staged:
            model = await self._begin_life(model)
            self._staged.discard(info.model_id)
        else:
            await self._objects.put(layout.model_name(info.model_id), layout.build_model(model))
        self._home.models[info.model_id] = model

    async def _begin_life(self, model: ModelRecord) -> ModelRecord:
        """Create a model, and return it with its life."""
        name, text = layout.model_name(model.info.model_id), layout.build_model(model)
        try:
            await self._objects.create(name, text)
        except (ObjectExists, UnavailableError) as error:
            # Of this server, which the store did not confirm: now, or when the model was to be created before.
            found = await self._objects.find(name)
            if found is None:
                raise error if isinstance(error, UnavailableError) else self._contradiction() from None
            try:
                life = layout.parse_model(found, name).life
            except layout.BadObject as damage:
                raise UnavailableError(f"the archive failed: the object of the model is malformed: {damage}") from None
            if model.info.model_id in self._staged and life != model.life:
                raise self._contradiction() from None  # its versions are in another life
            model = ModelRecord(model.info, life)
            if found != text:
                await self._objects.put(name, layout.build_model(model))
        return model

    def _contradiction(self) -> UnavailableError:
        return UnavailableError("the archive failed: the object store contradicts itself")

    async def _begin_removal(self, model_id: str) -> Removal:
        await self._home.require_writable()
        model = await self._home.require_model(model_id)
        name = layout.model_name(model_id)
        try:
            await self._objects.delete([name])
        except UnavailableError:
            if await self._objects.find(name) is not None:
                raise
        del self._home.models[model_id]
        self._home.marks.pop(model.life, None)
        return BucketRemoval(self._home, model.life)

    async def write_high_water_mark(self, model_id: str, number: int) -> None:
        await run_to_end(self._write_high_water_mark(model_id, number))

    async def _write_high_water_mark(self, model_id: str, number: int) -> None:
        await self._home.require_writable()
        life = (await self._home.require_model(model_id)).life
        before = self._home.marks.get(life, 0)
        if number == before:
            return
        await self._objects.put(layout.mark_name(life, number), b"")
        # The highest counts; so a crash in between never lowers it.
        self._home.marks[life] = max(number, before)
        if before:
            await self._objects.delete([layout.mark_name(life, before)])
        self._home.marks[life] = number

    async def _find_record(self, info: VersionInfo) -> tuple[str, Record] | None:
        model = self._home.models.get(info.model_id)
        record = await self._home.read_record(info.model_id, model.life, info.number) if model else None
        return (model.life, record) if model and record else None

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
