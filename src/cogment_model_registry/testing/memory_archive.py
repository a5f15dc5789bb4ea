"""An archive in memory, for tests of the rules. It passes the conformance suite.

Its content is in dictionaries that all archives on the same shelf share, so it survives a restart.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from cogment_model_registry.errors import DataLossError, NotFoundError, PreconditionError, TooLargeError, counted
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Archive, ModelContents, Reader, Removal, Upload
from cogment_model_registry.testing.bytes import hash_of

_CHUNK_BYTES = 1024


@dataclass(eq=False, slots=True)
class StoredModel:
    """One life of a model.

    Attributes:
        info: The model.
        versions: The record and the bytes of each version, by number.
    """

    info: ModelInfo
    versions: dict[int, tuple[VersionInfo, bytes]] = field(default_factory=dict)


class MemoryArchive(Archive):
    """An archive in memory, which several openers can share.

    Args:
        shelf: The models by id; the same dictionary for each opener.
        max_bytes: The size of the largest version that it accepts.
        read_only: Whether it refuses writes.
    """

    def __init__(self, shelf: dict[str, StoredModel], max_bytes: int = 2**40, *, read_only: bool = False) -> None:
        self.shelf = shelf
        self.max_bytes = max_bytes
        self._read_only = read_only

    @property
    def is_read_only(self) -> bool:
        return self._read_only

    @property
    def is_exclusive(self) -> bool:
        return False

    @property
    def failure(self) -> str:
        return ""

    async def open(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def scan(self) -> Sequence[ModelContents]:
        await asyncio.sleep(0)
        return [_contents(self.shelf[model_id]) for model_id in sorted(self.shelf)]

    async def write_model(self, info: ModelInfo) -> None:
        await asyncio.sleep(0)
        self._require_writable()
        self.shelf.setdefault(info.model_id, StoredModel(info)).info = info

    async def begin_removal(self, model_id: str) -> Removal:
        await asyncio.sleep(0)
        self._require_writable()
        self.require(model_id)
        del self.shelf[model_id]
        return _MemoryRemoval()

    async def read_version_infos(
        self, model_id: str, numbers: Sequence[int]
    ) -> list[VersionInfo | DataLossError | None]:
        await asyncio.sleep(0)
        versions = self.shelf[model_id].versions if model_id in self.shelf else {}
        return [versions[number][0] if number in versions else None for number in numbers]

    async def open_upload(self, model_id: str, size_bytes: int) -> Upload:
        await asyncio.sleep(0)
        self._require_writable()
        if size_bytes > self.max_bytes:
            raise TooLargeError(f"the archive takes at most {self.max_bytes} bytes", model_id=model_id)
        return _MemoryUpload(self, self.require(model_id))

    async def open_copy(self, info: VersionInfo) -> Upload:
        upload = await self.open_upload(info.model_id, info.data_size_bytes)
        async with await self.open_version(info) as reader:
            async for parts in reader.chunks(_CHUNK_BYTES, 2 * _CHUNK_BYTES):
                await upload.write(memoryview(b"".join(parts)))
        return upload

    async def open_version(self, info: VersionInfo) -> Reader:
        await asyncio.sleep(0)
        _, data = self.require(info.model_id).versions.get(info.number, (None, None))
        if data is None:
            raise NotFoundError.version(info.model_id, info.number)
        if len(data) != info.data_size_bytes:
            raise DataLossError.version(info.model_id, info.number, f"its data has {counted(len(data), 'byte')}")
        return _MemoryReader(info, data)

    async def remove_version(self, info: VersionInfo) -> None:
        await asyncio.sleep(0)
        self._require_writable()
        if info.model_id in self.shelf:
            self.shelf[info.model_id].versions.pop(info.number, None)

    def _require_writable(self) -> None:
        if self._read_only:
            raise PreconditionError("the archive is open for reading only")

    def require(self, model_id: str) -> StoredModel:
        """Return a model.

        Raises:
            NotFoundError: It does not exist.
        """
        if model_id not in self.shelf:
            raise NotFoundError.model(model_id)
        return self.shelf[model_id]


def _contents(model: StoredModel) -> ModelContents:
    numbers = sorted(model.versions)
    return ModelContents(
        info=model.info,
        version_numbers=numbers,
        size_bytes={number: len(model.versions[number][1]) for number in numbers},
        last_number=max(numbers, default=0),
    )


class _MemoryRemoval(Removal):
    async def finish(self) -> None:
        await asyncio.sleep(0)


class _MemoryUpload(Upload):
    def __init__(self, archive: MemoryArchive, model: StoredModel) -> None:
        self._archive = archive
        self._model = model
        self._data = bytearray()

    async def write(self, *parts: memoryview) -> None:
        await asyncio.sleep(0)
        for part in parts:
            self._data += part

    async def finish(self) -> str:
        await asyncio.sleep(0)
        return hash_of(bytes(self._data))

    async def commit(self, info: VersionInfo) -> None:
        await asyncio.sleep(0)
        if self._archive.require(info.model_id) is not self._model:
            raise NotFoundError.model(info.model_id)
        self._model.versions[info.number] = (info, bytes(self._data))

    async def aclose(self) -> None:
        await asyncio.sleep(0)


class _MemoryReader(Reader):
    def __init__(self, info: VersionInfo, data: bytes) -> None:
        self._info = info
        self._data = memoryview(data)

    async def chunks(
        self, max_bytes: int, buffer_bytes: int, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[Sequence[memoryview], None]:
        del buffer_bytes  # without a copy
        data = self._data[offset : None if limit is None else offset + limit]
        is_whole = len(data) == len(self._data)
        starts = range(0, max(len(data), 1), max_bytes)
        for start in starts:
            await asyncio.sleep(0)
            if is_whole and start == starts[-1] and hash_of(bytes(data)) != self._info.data_hash:
                raise DataLossError.version(self._info.model_id, self._info.number, "its bytes do not match their hash")
            yield [data[start : start + max_bytes]]

    async def aclose(self) -> None:
        await asyncio.sleep(0)
