"""The catalog that several servers share: in PostgreSQL.

Every question is asked of PostgreSQL, so that a call which begins after a change was answered, by any server, sees it.
Nothing is read at the start.

    schema, rows         the tables, and what their columns mean
    connections          pools, and whether PostgreSQL answers
    changes, pending     a change of a model: its lock, its transactions, what outlives a crash
    publishing, batches, removing, forgetting, aliases, models, versions     the changes
    reads, searches      the questions
    notes, listening     what servers notify each other of
    lines, watching      what happened, for those who watch
    binding              which archive it belongs to
    leases               which servers there are, and what they hold
"""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.records.lifecycle import Alias, AliasChange, AnnotationChange, ModelSummary, Version
from cogment_model_registry.records.retention import ModelChange
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.uploads import FinishedUpload
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import (
    Catalog,
    CatalogCounts,
    ModelOutline,
    ModelRef,
    ModelState,
    Newer,
    News,
    Promotion,
    Search,
    Slot,
    Watcher,
)
from cogment_model_registry.storage.postgres import aliases, holds, models, publishing, removing
from cogment_model_registry.storage.postgres.batches import Batches
from cogment_model_registry.storage.postgres.binding import Binding
from cogment_model_registry.storage.postgres.connections import CHANGES, READS, Connections, Observe
from cogment_model_registry.storage.postgres.core import NOTIFY, Core
from cogment_model_registry.storage.postgres.forgetting import Forgetting
from cogment_model_registry.storage.postgres.grants import Grants
from cogment_model_registry.storage.postgres.leases import Leases
from cogment_model_registry.storage.postgres.listening import Listening
from cogment_model_registry.storage.postgres.notes import text_message
from cogment_model_registry.storage.postgres.reads import Reads
from cogment_model_registry.storage.postgres.searches import find_versions
from cogment_model_registry.storage.postgres.watching import Watching


class PostgresCatalog(Catalog):
    """The catalog of one of the servers that share a database.

    It takes changes only while it has a lease, which `leases.take` takes and somebody lets beat.

    Args:
        url: The address of the database: ``postgresql://user:password@host:port/database``.
        changes: How many changes may be under way at once: as many connections.
        reads: How many reads may be.
        observe: Called with the name and the seconds of each query and statement.

    Attributes:
        leases: The leases of all servers.
        grants: Who may do what.
        binding: The archive that it belongs to.
    """

    def __init__(
        self,
        url: str,
        *,
        changes: int = CHANGES,
        reads: int = READS,
        observe: Observe = lambda _name, _seconds: None,
    ) -> None:
        self._connections = Connections(url, changes, reads, observe)
        self._core = Core(self._connections, observe)
        self._reads = Reads(self._core)
        self._watching = Watching(self._core, self._reads)
        self._listening = Listening(self._core)
        self._batches = Batches(self._core)
        self._forgetting = Forgetting(self._core)
        self.leases = Leases(self._core)
        self.grants = Grants(self._connections)
        self.binding = Binding(self._connections)

    @property
    def failure(self) -> str:
        return "its database does not answer" if self._connections.is_away else ""

    @property
    def pool_size(self) -> int:
        """How many connections are open, without the one that listens."""
        return self._connections.size

    @property
    def pool_in_use(self) -> int:
        """How many of them are in use."""
        return self._connections.in_use

    @property
    def is_listening(self) -> bool:
        """Whether this server is notified of changes by others now."""
        return self._listening.is_listening

    def on_dropped(self, listener: Callable[[Sequence[VersionInfo]], None]) -> None:
        """Set who receives transient versions of this server that another one deleted, promoted, or whose model ended.

        Their bytes are of no use any more. It is called on the event loop.
        """
        self._core.on_dropped = listener

    def on_model_changed(self, listener: Callable[[str], None]) -> None:
        """Set who receives the ids of models that another server created, changed or removed."""
        self._core.on_model_changed = listener

    def on_shown(self, listener: Callable[[str, int], None]) -> None:
        """Set who receives the models and numbers of versions that other servers have made visible.

        It is called on the event loop.
        """
        self._core.on_shown = listener

    def on_received(self, listener: Callable[[str], None]) -> None:
        """Set who receives the texts that other servers send. It is called on the event loop."""
        self._core.on_received = listener

    async def send(self, texts: Sequence[str]) -> None:
        """Send texts to the other servers that listen now.

        Args:
            texts: Each of ASCII, and of at most some 7,800 characters.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        await self._connections.fetch("send", NOTIFY, [text_message(self._core.origin, text) for text in texts])

    async def open(self) -> None:
        await self._connections.open()
        try:
            await self._listening.open()
        except BaseException:
            await self._connections.close()
            raise

    async def close(self) -> None:
        self.stop_watching()
        await self._listening.close()
        await self._connections.close()
        await self._batches.close()

    def stop_watching(self) -> None:
        self._core.lines.feed.stop()

    # Models.

    async def find(self, model_id: str) -> ModelRef:
        return await self._reads.find(model_id)

    async def get_model(self, model_id: str) -> ModelInfo:
        return await self._reads.get_model(model_id)

    async def list_models(self, offset: int, limit: int) -> list[ModelInfo]:
        return await self._reads.list_models(offset, limit)

    async def list_models_after(self, model_id: str, limit: int) -> list[ModelInfo]:
        return await self._reads.list_models_after(model_id, limit)

    async def list_models_with_shares(self) -> list[str]:
        return await self._reads.models_with_shares()

    async def summarize(self, models: Sequence[ModelInfo]) -> list[ModelSummary]:
        return await self._reads.summarize(models)

    def changing_model(self, ref: ModelRef, change: ModelChange) -> AbstractAsyncContextManager[ModelSummary]:
        return models.changing_model(self._core, ref, change)

    async def get_signers(self, ref: ModelRef) -> Sequence[PublicKey]:
        return await self._reads.get_signers(ref)

    async def find_with_signers(self, model_id: str) -> tuple[ModelRef, Sequence[PublicKey]]:
        return await self._reads.find_with_signers(model_id)

    async def get_state(self, ref: ModelRef) -> ModelState:
        return await self._reads.get_state(ref)

    async def get_outline(self, ref: ModelRef, last_number: int = VERSION_NUMBER_MAX) -> ModelOutline:
        return await self._reads.get_outline(ref, last_number)

    def writing_model(self, info: ModelInfo) -> AbstractAsyncContextManager[None]:
        return models.writing_model(self._core, info)

    def removing_model(self, model_id: str) -> AbstractAsyncContextManager[None]:
        return models.removing_model(self._core, model_id)

    async def count(self) -> CatalogCounts:
        return await self._reads.count()

    # Versions.

    def publishing(self, ref: ModelRef, *, archived: bool = False) -> AbstractAsyncContextManager[Slot]:
        return publishing.publishing_archived(self._core, ref) if archived else self._batches.publishing(ref)

    def promoting(self, ref: ModelRef, number: int) -> AbstractAsyncContextManager[Promotion]:
        return removing.promoting(self._core, ref, number)

    def removing_version(self, ref: ModelRef, number: int) -> AbstractAsyncContextManager[VersionInfo]:
        return removing.removing_version(self._core, ref, number)

    async def describe(self, infos: Sequence[VersionInfo]) -> list[Version]:
        return await self._reads.describe(infos)

    async def describe_visible(self, infos: list[VersionInfo]) -> list[Version]:
        return await self._reads.describe_visible(infos)

    async def change_annotations(self, ref: ModelRef, number: int, change: AnnotationChange) -> Version:
        return await aliases.change_annotations(self._core, ref, number, change)

    async def get_aliases(self, model_id: str) -> list[Alias]:
        return await self._reads.get_aliases(model_id)

    async def set_aliases(self, ref: ModelRef, changes: Sequence[AliasChange], now_ns: int) -> list[Alias]:
        return await aliases.set_aliases(self._core, ref, changes, now_ns)

    async def find_upload(self, request_id: str) -> FinishedUpload | None:
        return await self._reads.find_upload(request_id)

    async def find_copies(self, model_id: str, data_hash: str, size_bytes: int) -> list[VersionInfo]:
        return await self._reads.find_copies(model_id, data_hash, size_bytes)

    async def set_holds(self, ref: ModelRef, held: Mapping[int, str]) -> None:
        await holds.set_holds(self._core, ref, held)

    async def held_elsewhere(self, ref: ModelRef) -> Mapping[int, str]:
        return await holds.held_elsewhere(self._core, ref)

    async def search(self, search: Search) -> list[Version]:
        life = None if search.model_id is None else (await self._reads.find(search.model_id)).life
        return await find_versions(self._connections, search, life)

    async def forget(self, info: VersionInfo) -> None:
        await self._forgetting.forget(info)

    async def mark_damaged(self, ref: ModelRef, error: DataLossError) -> None:
        await removing.mark_damaged(self._core, ref, error)

    async def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo]:
        return await self._reads.get_versions(model_id, numbers)

    async def find_version(self, model_id: str, number: int) -> tuple[ModelRef, VersionInfo]:
        return await self._reads.find_version(model_id, number)

    async def newer_than(self, model_id: str, number: int) -> Newer:
        return await self._reads.newer_than(model_id, number)

    async def settled(self, model_id: str) -> None:
        async with self._core.changes.entered(model_id, leased=False):
            pass

    async def list_versions(self, model_id: str, first_number: int, limit: int) -> list[VersionInfo]:
        return await self._reads.list_versions(model_id, first_number, limit)

    # Watching.

    def watch(self, model_id: str) -> AsyncGenerator[VersionInfo, None]:
        return self._watching.watch(model_id)

    def watching(self, model_ids: Collection[str] | None) -> AbstractContextManager[Watcher]:
        return self._watching.watching(model_ids)

    async def get_news(self, model_id: str, number: int, sequence: int, limit: int) -> News:
        return await self._watching.get_news(model_id, number, sequence, limit)

    async def number_at(self, model_id: str, sequence: int) -> int | None:
        return await self._watching.number_at(model_id, sequence)

    async def removed_since(self, sequence: int) -> Sequence[str] | None:
        return self._core.lines.feed.removed_since(sequence)
