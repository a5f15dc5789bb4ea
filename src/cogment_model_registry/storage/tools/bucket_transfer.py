"""Exports and imports of a model of an archive in a bucket; the tar file is the same as that of a directory.

The tar file is read and written in order, and blocks; the bucket is asked in between, by a function that runs the event
loop until an answer is there.
"""

import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol, TypeVar

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Upload
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.filesystem import export_writer, import_reader, layout
from cogment_model_registry.storage.filesystem.export_writer import Exported, ExportSource, OpenVersion
from cogment_model_registry.storage.filesystem.import_reader import Imported, ImportTarget
from cogment_model_registry.storage.folder import FolderContents

_T = TypeVar("_T")

_CHUNK_BYTES = 1024 * 1024
_BUFFER_BYTES = 32 * 1024 * 1024
_INFOS_AT_ONCE = 256


class Run(Protocol):
    """Runs the event loop until a coroutine has its result."""

    def __call__(self, coroutine: Coroutine[Any, Any, _T], /) -> _T:
        """Return the result."""


def export_model(
    run: Run,
    archive: BucketArchive,
    contents: FolderContents | None,
    model_id: str,
    write: Callable[[bytes], object],
    *,
    skip_damaged: bool = False,
    annotate: export_writer.Annotate,
    warn: Callable[[str], object],
    advance: Callable[[int], None],
) -> Exported:
    """Write a model as a tar file; see `export_writer.write_export`.

    Args:
        run: Runs the event loop.
        archive: The archive, opened to be read.
        contents: What of the model is exported; None for what the archive has, which is found out.
        model_id: The model.
        write: See there.
        skip_damaged: See there.
        annotate: See there.
        warn: See there.
        advance: See there.

    Raises:
        DataLossError: See there.
        NotFoundError: The model does not exist, or is deleted during the export.
        UnavailableError: The store failed.
    """
    contents = contents or run(archive.scan_model(model_id))
    if contents is None:
        raise NotFoundError.model(model_id)
    source = _BucketSource(run, archive, contents)
    return export_writer.write_export(
        source, write, skip_damaged=skip_damaged, annotate=annotate, warn=warn, advance=advance
    )


class _BucketSource(ExportSource):
    """A model in a bucket."""

    def __init__(self, run: Run, archive: BucketArchive, contents: FolderContents) -> None:
        self._run = run
        self._archive = archive
        self._contents = contents
        self._numbers = sorted({*contents.version_numbers, *contents.damaged})
        self._infos: dict[int, VersionInfo | DataLossError | None] = {}

    @property
    def model_id(self) -> str:
        return self._contents.info.model_id

    @property
    def numbers(self) -> Sequence[int]:
        return self._numbers

    @property
    def last_number(self) -> int:
        return self._contents.last_number

    def read_mark(self) -> int:
        return self._contents.high_water_mark

    def read_model(self) -> bytes:
        return layout.format_model(self._contents.info)

    @contextlib.contextmanager
    def opened_version(self, number: int) -> Iterator[OpenVersion]:
        info = self._info(number)
        if isinstance(info, DataLossError):
            raise info
        try:
            if info is None:
                raise NotFoundError.version(self.model_id, number)
            yield OpenVersion(info, layout.format_version(info), lambda: self._blocks(info))
        except NotFoundError:
            raise export_writer.deleted(self.model_id) from None

    def _info(self, number: int) -> VersionInfo | DataLossError | None:
        """Return a version, which was read with those that follow it."""
        if number not in self._infos:
            start = self._numbers.index(number)
            batch = self._numbers[start : start + _INFOS_AT_ONCE]
            found = self._run(self._archive.read_version_infos(self.model_id, batch))
            self._infos = dict(zip(batch, found, strict=True))
        return self._infos[number]

    def _blocks(self, info: VersionInfo) -> Iterator[bytes]:
        reader = self._run(self._archive.open_version(info))
        chunks = reader.chunks(_CHUNK_BYTES, _BUFFER_BYTES)

        async def next_block() -> bytes | None:
            async for chunk in chunks:
                return b"".join(chunk)
            return None

        try:
            while (block := self._run(next_block())) is not None:
                yield block
        finally:
            self._run(chunks.aclose())
            self._run(reader.aclose())


def import_model(
    run: Run,
    archive: BucketArchive,
    stream: BinaryIO,
    *,
    model_id: str = "",
    annotate: import_reader.Annotate,
    advance: Callable[[int], None],
) -> Imported:
    """Make a model from a tar file; see `import_reader.read_export`.

    The model has no object before all of its versions are there, so it is imported whole or not at all. What an import
    that ends in between has written is cleared away by the next start.

    Args:
        run: Runs the event loop.
        archive: The archive, which this process owns.
        stream: The tar file.
        model_id: Its new name, an id that obeys the rules; empty for the one that it has.
        annotate: Returns a context manager for the moment in which the model appears; see `import_reader.Annotate`.
        advance: Called with the bytes that were read from the stream.

    Raises:
        InvalidError: It is not a complete export, or a model of this name exists.
        OSError: The stream cannot be read.
        TooLargeError: No space is left.
        UnavailableError: The store failed.
    """
    target = _BucketTarget(run, archive)
    try:
        imported = import_reader.read_export(stream, target, advance, model_id)
    except BaseException:
        target.discard()
        raise

    def read(numbers: Iterable[int]) -> Iterable[VersionInfo]:
        found = run(archive.read_version_infos(imported.model_id, list(numbers)))
        return [info for info in found if isinstance(info, VersionInfo)]

    with annotate(imported, read):
        target.appear()
    return imported


class _BucketTarget(ImportTarget):
    """A model that appears when it is whole."""

    def __init__(self, run: Run, archive: BucketArchive) -> None:
        self._run = run
        self._archive = archive
        self._model: ModelInfo | None = None
        self._upload: Upload | None = None

    def require_absent(self, model_id: str) -> None:
        if self._archive.has_model(model_id):
            raise import_reader.exists(model_id)

    def put_model(self, info: ModelInfo, text: bytes, mark: int) -> None:
        self._model = info
        self._archive.stage_model(info)
        self._run(self._archive.write_high_water_mark(info.model_id, mark))

    @contextlib.contextmanager
    def created_data(self, model_id: str, number: int, size_bytes: int) -> Iterator[Callable[[bytes], None]]:
        upload = self._upload = self._run(self._archive.open_upload(model_id, size_bytes))
        yield lambda block: self._run(upload.write(memoryview(block)))
        self._run(upload.finish())

    def put_version(self, info: VersionInfo, text: bytes) -> None:
        if self._upload is None:
            raise RuntimeError("a version has no data")
        self._run(self._upload.commit(info))
        self._close()

    def finish(self) -> None:
        pass

    def _close(self) -> None:
        if self._upload is not None:
            self._run(self._upload.aclose())
            self._upload = None

    def appear(self) -> None:
        """Let the model appear."""
        if self._model is None:
            raise RuntimeError("nothing was imported")
        self._run(self._archive.write_model(self._model))

    def discard(self) -> None:
        """Delete what was written."""
        self._close()
        if self._model is not None:
            self._run(self._archive.discard_model(self._model.model_id))
