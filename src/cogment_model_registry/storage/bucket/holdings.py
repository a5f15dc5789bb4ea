"""What an archive in a bucket has in memory: models, the records read last, and what its parts share."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cachetools import LRUCache

from cogment_model_registry.errors import DataLossError, NotFoundError, UnavailableError
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import user_data_bytes
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.chores import Chores
from cogment_model_registry.storage.bucket.layout import ModelRecord, Record
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.system.byte_budget import ByteBudget
from cogment_model_registry.system.machine import release_free_memory

_HASH_THREADS = 4
_SENDING_BYTES = 32 * 1024 * 1024
_COLLECTED_BYTES = 64 * 1024 * 1024
_AHEAD_BYTES = 64 * 1024 * 1024
_READER_AHEAD_BYTES = 12 * 1024 * 1024
_LONG_BYTES = 256 * 1024 * 1024
_RECORDS_BYTES = 16 * 1024 * 1024
_CHECKED_BYTES = 4 * 1024 * 1024
_RECORD_BYTES = 1000
"""What a record takes in memory without its user_data and its parts."""


def _record_bytes(record: Record) -> int:
    return _RECORD_BYTES + 2 * user_data_bytes(record.info.user_data) + 36 * len(record.parts)


@dataclass(frozen=True, slots=True)
class Checked:
    """The bytes of a version that matched their hash when they were read.

    Attributes:
        data_hash: The hash.
        tags: What the store called the object of each part then: another one has other tags.
    """

    data_hash: str
    tags: tuple[str, ...]


def _checked_bytes(checked: Checked) -> int:
    return 300 + 100 * len(checked.tags)


class Holdings:
    """What an archive has in memory.

    Args:
        objects: The objects of the archive.
        require_writable: Checks that this process may write; see `Holdings.require_writable`.
        server: Returns the number of this server.

    Attributes:
        objects: The same.
        require_writable: The same. It raises PreconditionError if the archive is only read, and UnavailableError if
            this process may not write now.
        models: The models by id.
        marks: The mark of the numbers of each life.
        doubts: The lives and numbers of records that may exist or not.
        chores: What is done later.
        sending: The memory for what is being sent.
        collected_bytes: How much uploads have collected.
        is_shared: Whether several servers write the archive.
    """

    is_shared = False

    def __init__(
        self, objects: Objects, require_writable: Callable[[], Awaitable[None]], server: Callable[[], int]
    ) -> None:
        self.objects = objects
        self.require_writable = require_writable
        self._server = server
        self.models: MutableMapping[str, ModelRecord] = {}
        self.marks: dict[str, int] = {}
        self.doubts: set[tuple[str, int]] = set()
        self.chores = Chores(objects, require_writable)
        self.sending = ByteBudget(_SENDING_BYTES)
        self.collected_bytes = 0
        self._ahead_bytes = _AHEAD_BYTES
        self._records: LRUCache[tuple[str, int], Record] = LRUCache(_RECORDS_BYTES, _record_bytes)
        self._checked: LRUCache[str, Checked] = LRUCache(_CHECKED_BYTES, _checked_bytes)
        self._executor = ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="archive")

    @property
    def is_crowded(self) -> bool:
        """Whether uploads have collected so much that they should send what they have."""
        return self.collected_bytes > _COLLECTED_BYTES

    def take_ahead(self, size_bytes: int) -> int:
        """Return how many bytes a reader may read ahead in addition to its buffers; `give_ahead_back` ends that.

        A network that answers late needs several requests at once. All readers together have a bound, and what one gets
        when they are many is nothing.
        """
        taken_bytes = max(min(size_bytes, _READER_AHEAD_BYTES, self._ahead_bytes), 0)
        self._ahead_bytes -= taken_bytes
        return taken_bytes

    def give_ahead_back(self, taken_bytes: int) -> None:
        """Give back what `take_ahead` returned."""
        self._ahead_bytes += taken_bytes

    @property
    def server(self) -> int:
        """The number of this server, with which the keys of its bytes begin."""
        return self._server()

    async def find_model(self, model_id: str) -> ModelRecord | None:
        """Return a model as it is now; None if it does not exist.

        Raises:
            UnavailableError: The store failed.
        """
        return self.models.get(model_id)

    async def require_model(self, model_id: str) -> ModelRecord:
        """Return a model as it is now.

        Raises:
            NotFoundError: It does not exist.
            UnavailableError: The store failed.
        """
        model = await self.find_model(model_id)
        if model is None:
            raise NotFoundError.model(model_id)
        return model

    async def require_upload(self, model_id: str, life: str, key: str) -> None:
        """Check that an upload can still become a version.

        Raises:
            NotFoundError: The model was removed in the meantime.
            PreconditionError: The archive is only read.
            UnavailableError: This process may not write, or another server may have deleted the bytes.
        """
        if (await self.require_model(model_id)).life != life:
            raise NotFoundError.model(model_id)
        await self.require_writable()
        if layout.server_of(key) != self.server:
            raise UnavailableError("the server was out of touch with the others during the upload; store it again")

    async def read_record(self, model_id: str, life: str, number: int, *, is_fresh: bool = False) -> Record | None:
        """Return the record of a version; None if it does not exist.

        Args:
            model_id: The model.
            life: Its life.
            number: The number of the version.
            is_fresh: Whether to ask the store, although the record was read before.

        Raises:
            DataLossError: It is malformed.
            UnavailableError: The store failed.
        """
        record = None if is_fresh else self._records.get((life, number))
        if record is not None or (life, number) in self.doubts:
            return record
        text = await self.objects.find(layout.version_name(life, number))
        if text is None:
            self.forget_record(life, number)
            return None
        try:
            record = layout.parse_record(text, model_id, number)
        except layout.BadObject as error:
            raise DataLossError.version(model_id, number, f"its record: {error}") from None
        if record is None:
            self.forget_record(life, number)
        else:
            self.keep_record(life, record)
        return record

    def keep_record(self, life: str, record: Record) -> None:
        """Keep a record that was read or created."""
        if _record_bytes(record) <= _RECORDS_BYTES:
            self._records[life, record.info.number] = record

    def forget_record(self, life: str, number: int) -> None:
        """Keep a record no more."""
        self._records.pop((life, number), None)

    def forget_records(self) -> None:
        """Keep no record."""
        self._records.clear()

    def checked_tags(self, record: Record) -> Sequence[str]:
        """Return the tags of the parts of a version that were read and matched its hash; empty if none were."""
        checked = self._checked.get(record.key)
        return checked.tags if checked is not None and checked.data_hash == record.info.data_hash else ()

    def keep_checked(self, record: Record, tags: Sequence[str]) -> None:
        """Keep that the parts of a version with these tags match its hash."""
        checked = Checked(record.info.data_hash, tuple(tags))
        if _checked_bytes(checked) <= _CHECKED_BYTES:
            self._checked[record.key] = checked

    def forget_checked(self, record: Record) -> None:
        """Keep no more that the parts of a version match its hash."""
        self._checked.pop(record.key, None)

    def start_hash(self, digest: PayloadHash, parts: Sequence[bytes | memoryview]) -> asyncio.Future[None]:
        """Begin to hash some bytes on a thread."""
        return asyncio.get_running_loop().run_in_executor(self._executor, digest.update, parts)

    async def end_transfer(self, size_bytes: int) -> None:
        """Return what the heap keeps to the system after a transfer of so many bytes, if it was a long one.

        The blocks of uploads and those of retrievals come from different arenas, so neither can use what the other has
        left: both would pile up. After a short transfer, the next one is faster if it stays.
        """
        if size_bytes >= _LONG_BYTES:
            await asyncio.to_thread(release_free_memory)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()
