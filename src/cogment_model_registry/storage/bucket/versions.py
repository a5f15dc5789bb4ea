"""What archives in buckets do with versions, whether one server writes them or several."""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from cogment_model_registry.errors import (
    DataLossError,
    ModelRegistryError,
    NotFoundError,
    StartError,
    TooLargeError,
)
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Archive, Reader, Removal, Upload
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.contents import READS_AT_ONCE
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import Record
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.bucket.reading import BucketReader
from cogment_model_registry.storage.bucket.translation import reason_of
from cogment_model_registry.storage.bucket.uploads import PART_BYTES, PARTS_MAX, BucketCopy, BucketUpload
from cogment_model_registry.system.tasks import run_to_end

_COPY_BLOCK_BYTES = 1024 * 1024
_COPY_BUFFER_BYTES = 16 * 1024 * 1024


class BucketVersions(Archive):
    """Versions in a bucket. How models are found and who may write is for the subclasses.

    Args:
        home: What the archive has in memory.

    Attributes:
        id: What tells the archive from others, once it is open.
    """

    def __init__(self, home: Holdings) -> None:
        self._home = home
        self._is_open = False
        self.id = ""

    @property
    def _objects(self) -> Objects:
        return self._home.objects

    async def open(self) -> None:
        try:
            await self._open()
        except ModelRegistryError as error:
            await self._give_up()
            if isinstance(error, StartError):
                raise
            raise StartError(f"archive {self._objects.url} cannot be used: {reason_of(error)}") from error
        except BaseException:
            await self._give_up()
            raise
        self._is_open = True

    @abstractmethod
    async def _open(self) -> None:
        """Do what `open` does."""

    async def _give_up(self) -> None:
        """Release the archive."""

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            await run_to_end(self._close())
        await run_to_end(self._objects.close())
        self._home.close()

    async def _close(self) -> None:
        await self._home.chores.close()
        await self._give_up()

    async def _read_format(self) -> int:
        """Return the format of the archive, and keep its id; 0 if there is no archive.

        Raises:
            StartError: It is malformed, or too new.
        """
        text = await self._objects.find(layout.FORMAT_NAME)
        if text is None:
            return 0
        try:
            found, self.id = layout.parse_format(text)
        except layout.BadObject as error:
            raise StartError(f"archive {self._objects.url} cannot be used: its format.json: {error}") from None
        if found > layout.FORMAT_MAX:
            raise StartError(
                f"archive {self._objects.url} has the format {found}; this version knows formats up to "
                f"{layout.FORMAT_MAX}: use a newer version"
            )
        return found

    async def write_model(self, info: ModelInfo) -> None:
        await run_to_end(self._write_model(info))

    @abstractmethod
    async def _write_model(self, info: ModelInfo) -> None:
        """Do what `write_model` does."""

    async def begin_removal(self, model_id: str) -> Removal:
        return await run_to_end(self._begin_removal(model_id))

    @abstractmethod
    async def _begin_removal(self, model_id: str) -> Removal:
        """Do what `begin_removal` does."""

    async def read_version_infos(
        self, model_id: str, numbers: Sequence[int]
    ) -> list[VersionInfo | DataLossError | None]:
        model = await self._home.find_model(model_id)
        if model is None:
            return [None] * len(numbers)
        turns = asyncio.Semaphore(READS_AT_ONCE)

        async def read(number: int) -> VersionInfo | DataLossError | None:
            async with turns:
                try:
                    record = await self._read_record(model_id, model.life, number)
                except DataLossError as error:
                    return error
            return record.info if record is not None else None

        return await asyncio.gather(*map(read, numbers))

    async def _read_record(self, model_id: str, life: str, number: int) -> Record | None:
        """Return the record of a version as it is now; None if it does not exist."""
        return await self._home.read_record(model_id, life, number)

    async def open_upload(self, model_id: str, size_bytes: int) -> Upload:
        await self._home.require_writable()
        model = await self._home.require_model(model_id)
        if size_bytes > PART_BYTES * PARTS_MAX:
            raise TooLargeError(f"a version in a bucket can have at most {PART_BYTES * PARTS_MAX} bytes")
        return BucketUpload(self._home, model.life, layout.new_key(self._home.server))

    async def open_version(self, info: VersionInfo) -> Reader:
        life, record = await self._require_record(info)
        self._home.chores.pin(record.key)
        return BucketReader(self._home, life, record)

    async def _require_record(self, info: VersionInfo) -> tuple[str, Record]:
        found = await self._find_record(info)
        if found is None:
            raise NotFoundError.version(info.model_id, info.number)
        life, record = found
        if record.info.data_size_bytes != info.data_size_bytes:
            reason = f"it has {record.info.data_size_bytes} bytes instead of {info.data_size_bytes}"
            raise DataLossError.version(info.model_id, info.number, reason)
        # The caller's hash counts: it is what clients were told.
        return life, replace(record, info=info)

    @abstractmethod
    async def _find_record(self, info: VersionInfo) -> tuple[str, Record] | None:
        """Return the life and the record of a version; None if it does not exist."""

    async def open_copy(self, info: VersionInfo) -> Upload:
        await self._home.require_writable()
        life, record = await self._require_record(info)
        self._home.chores.pin(record.key)
        return BucketCopy(self._home, life, record, layout.new_key(self._home.server), self._hash_of)

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

    @abstractmethod
    async def _remove_version(self, info: VersionInfo) -> None:
        """Do what `remove_version` does."""
