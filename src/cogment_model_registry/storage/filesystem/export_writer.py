"""Writing a model to one tar file, wherever the model is; see `export_format`."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cogment_model_registry.errors import DataLossError, NotFoundError, counted, quoted
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import export_format, layout

Identity: TypeAlias = tuple[int, str]
"""The time of a version, in nanoseconds since the Unix epoch, and its hash."""

Annotate: TypeAlias = Callable[[Mapping[int, Identity]], export_format.Annotations | None]
"""Returns what else the file has to have, for the versions that it has."""


def no_annotations(_exported: Mapping[int, Identity]) -> None:
    """Return nothing."""


@dataclass(slots=True)
class Exported:
    """The result of an export.

    Attributes:
        versions: How many versions.
        data_bytes: How many bytes they have.
    """

    versions: int = 0
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """A version that is exported.

    Attributes:
        info: The version.
        text: Its metadata, as an archive directory has them.
        blocks: Yields its data from the start, which is checked at the end. Raises DataLossError.
    """

    info: VersionInfo
    text: bytes
    blocks: Callable[[], Iterator[bytes]]


class ExportSource(ABC):
    """Where an exported model comes from."""

    @property
    @abstractmethod
    def model_id(self) -> str:
        """The model."""

    @property
    @abstractmethod
    def numbers(self) -> Sequence[int]:
        """The numbers of its versions, ascending."""

    @property
    @abstractmethod
    def last_number(self) -> int:
        """The highest number in use; 0 for none."""

    @abstractmethod
    def read_mark(self) -> int:
        """Return the number up to which none may be given again; 0 for none.

        Raises:
            DataLossError: It is damaged.
        """

    @abstractmethod
    def read_model(self) -> bytes:
        """Return the metadata of the model, as an archive directory has them.

        Raises:
            DataLossError: They are damaged.
        """

    @abstractmethod
    def opened_version(self, number: int) -> contextlib.AbstractContextManager[OpenVersion]:
        """Return a context manager with a version.

        Raises:
            DataLossError: It is damaged.
            NotFoundError: It was deleted, or its model.
        """


def deleted(model_id: str) -> NotFoundError:
    """Return the error of a model that was deleted during an export."""
    message = f"model {quoted(model_id)}, or a version of it, was deleted while it was exported"
    return NotFoundError(message, model_id=model_id)


def write_export(
    source: ExportSource,
    write: Callable[[bytes], object],
    *,
    skip_damaged: bool,
    annotate: Annotate,
    warn: Callable[[str], object],
    advance: Callable[[int], None],
) -> Exported:
    """Write a model as a tar file.

    Args:
        source: The model.
        write: Takes the next bytes of the tar file.
        skip_damaged: Whether to leave out what is damaged; data is read twice then, to know before it is written.
        annotate: Returns what else the file has to have, for the versions that it has.
        warn: Called with a line for each thing that is left out.
        advance: Called with the bytes of versions that were written.

    Raises:
        DataLossError: Something is damaged, or every version with `skip_damaged`; the written file is not a complete
            export.
        NotFoundError: The model is deleted during the export.
    """
    return _Export(source, write=write, annotate=annotate, advance=advance).run(warn if skip_damaged else None)


class _Export:
    """One export."""

    def __init__(
        self,
        source: ExportSource,
        *,
        write: Callable[[bytes], object],
        annotate: Annotate,
        advance: Callable[[int], None],
    ) -> None:
        self._source = source
        self._model_id = source.model_id
        self._write_bytes = write
        self._annotate = annotate
        self._advance = advance
        self._offset = 0
        self._is_torn = False
        self._exported = Exported()
        self._identities: dict[int, Identity] = {}

    def run(self, warn: Callable[[str], object] | None) -> Exported:
        """Write everything; `warn` is given when damage is left out."""
        mark = self._high_water_mark(warn)
        model_text = self._model_text(warn)
        self._add(layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(mark))
        self._add(layout.model_file_name(self._model_id), model_text)
        manifest = export_format.Manifest(self._model_id, mark, model_text)
        left_out: list[int] = []
        for number in self._source.numbers:
            try:
                self._add_version(number, manifest, is_checked_first=warn is not None)
            except DataLossError as error:
                if warn is None or self._is_torn:
                    raise
                warn(f"left out: {error.message}")
                left_out.append(number)
        if left_out and not self._exported.versions:
            damaged = counted(len(left_out), "damaged version")
            message = f"no version of model {quoted(self._model_id)} is left to export: {damaged} left out"
            raise DataLossError(message, model_id=self._model_id)
        self._add(layout.MANIFEST_NAME, manifest.text(left_out, self._annotate(self._identities)))
        self._write(export_format.ending(self._offset))
        return self._exported

    def _high_water_mark(self, warn: Callable[[str], object] | None) -> int:
        """Return the highest number that may have been given, as far as it is known."""
        mark = 0
        try:
            mark = self._source.read_mark()
        except DataLossError as error:
            self._leave_out(error, "its high-water mark", warn)
        return max(mark, self._source.last_number)

    def _model_text(self, warn: Callable[[str], object] | None) -> bytes:
        try:
            return self._source.read_model()
        except DataLossError as error:
            self._leave_out(error, "its user_data", warn)
        return layout.format_model(ModelInfo(self._model_id))

    def _leave_out(self, error: DataLossError, what: str, warn: Callable[[str], object] | None) -> None:
        if warn is None:
            raise error
        warn(f"left out: {what}: {error.message}")

    def _add_version(self, number: int, manifest: export_format.Manifest, *, is_checked_first: bool) -> None:
        with self._source.opened_version(number) as version:
            info = version.info
            if is_checked_first:
                for _ in version.blocks():
                    pass
            self._add_data(version)
        mtime_seconds = export_format.mtime_seconds(info)
        self._add(layout.version_file_name(self._model_id, number), version.text, mtime_seconds)
        manifest.add(info, version.text)
        self._identities[number] = (info.created_ns, info.data_hash)
        self._exported.versions += 1
        self._exported.data_bytes += info.data_size_bytes

    def _add_data(self, version: OpenVersion) -> None:
        info = version.info
        name = layout.data_file_name(self._model_id, info.number)
        self._is_torn = True
        self._add_header(name, info.data_size_bytes, export_format.mtime_seconds(info))
        for block in version.blocks():
            self._write(block)
            self._advance(len(block))
        self._write(export_format.padding(info.data_size_bytes))
        self._is_torn = False

    def _add(self, name: str, text: bytes, mtime_seconds: int = 0) -> None:
        self._add_header(name, len(text), mtime_seconds)
        self._write(text + export_format.padding(len(text)))

    def _add_header(self, name: str, size_bytes: int, mtime_seconds: int) -> None:
        self._write(export_format.header(f"{self._model_id}/{name}", size_bytes, mtime_seconds))

    def _write(self, data: bytes) -> None:
        self._write_bytes(data)
        self._offset += len(data)
