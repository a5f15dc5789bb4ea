"""The export of a model of an archive directory to one tar file; see `export_format`.

Nothing is written to the directory, and a server may run on it. The export has the versions that exist at its start; if
one of them disappears during it, because the model is deleted, the export ends.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from cogment_model_registry.errors import DataLossError, NotFoundError, UnavailableError, quoted
from cogment_model_registry.storage.filesystem import export_writer, layout, model_files
from cogment_model_registry.storage.filesystem.export_writer import Annotate, Exported, ExportSource, OpenVersion
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.findings import Kind
from cogment_model_registry.storage.filesystem.model_files import Damage, ModelFiles, Unreadable


def data_size_bytes(files: Files, root: int, model_id: str) -> int:
    """Return about how many bytes the versions of a model have, for a progress bar.

    Raises:
        NotFoundError: The model does not exist.
    """
    directory = _open_model(files, root, model_id)
    try:
        return model_files.data_size_bytes(files, directory, model_id)
    finally:
        files.close(directory)


def export_model(
    files: Files,
    root: int,
    model_id: str,
    write: Callable[[bytes], object],
    *,
    skip_damaged: bool = False,
    annotate: Annotate = export_writer.no_annotations,
    warn: Callable[[str], object],
    advance: Callable[[int], None],
) -> Exported:
    """Write a model as a tar file; see `export_writer.write_export`.

    Args:
        files: The file operations.
        root: Descriptor of the archive directory.
        model_id: The model; an id that obeys the rules.
        write: See there.
        skip_damaged: See there.
        annotate: See there.
        warn: See there.
        advance: See there.

    Raises:
        DataLossError: See there.
        NotFoundError: The model does not exist, or is deleted during the export.
        UnavailableError: A file cannot be read, and may be intact.
        OSError: The directory cannot be listed, or the process is short of a resource.
    """
    directory = _open_model(files, root, model_id)
    try:
        found = model_files.list_model(files, directory, model_id)
        if not found.is_model:
            raise NotFoundError.model(model_id)
        source = _DirectorySource(files, root, directory, model_id, found)
        return export_writer.write_export(
            source, write, skip_damaged=skip_damaged, annotate=annotate, warn=warn, advance=advance
        )
    except Unreadable as fault:
        # It may be intact, so it is not left out as what is damaged is.
        message = f"model {quoted(model_id)} cannot be exported now: {fault.name}: {fault.message}"
        raise UnavailableError(message, model_id=model_id) from None
    finally:
        files.close(directory)


def _open_model(files: Files, root: int, model_id: str) -> int:
    try:
        return files.open_directory(root, model_id)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError.model(model_id) from None


class _DirectorySource(ExportSource):
    """A model in an archive directory."""

    def __init__(self, files: Files, root: int, directory: int, model_id: str, found: ModelFiles) -> None:
        self._files = files
        self._root = root
        self._directory = directory
        self._model_id = model_id
        self._found = found

    @property
    def model_id(self) -> str:
        return self._model_id

    @property
    def numbers(self) -> Sequence[int]:
        return sorted(self._found.metadata)

    @property
    def last_number(self) -> int:
        return self._found.last_number

    def read_mark(self) -> int:
        try:
            return model_files.read_high_water_mark(self._files, self._directory)
        except FileNotFoundError:
            return 0  # the original has none
        except Damage as damage:
            raise self._damaged_model(damage) from None

    def read_model(self) -> bytes:
        try:
            return model_files.read_model(self._files, self._directory, self._model_id)[1]
        except FileNotFoundError:
            name = layout.model_file_name(self._model_id)
            raise self._damaged_model(Damage(Kind.MODEL_METADATA_MISSING, name, "it is missing")) from None
        except Damage as damage:
            raise self._damaged_model(damage) from None

    def _damaged_model(self, damage: Damage) -> DataLossError:
        message = f"model {quoted(self._model_id)} is damaged: {damage.name}: {damage.message}"
        return DataLossError(message, model_id=self._model_id)

    @contextlib.contextmanager
    def opened_version(self, number: int) -> Iterator[OpenVersion]:
        try:
            info, text = model_files.read_version(self._files, self._directory, self._model_id, number)
            with model_files.opened_data(self._files, self._directory, info) as file:

                def blocks() -> Iterator[bytes]:
                    os.lseek(file, 0, os.SEEK_SET)
                    try:
                        yield from model_files.data_blocks(self._files, file, info)
                    except Damage as damage:
                        raise self._damaged(number, damage) from None

                yield OpenVersion(info, text, blocks)
        except FileNotFoundError:
            raise export_writer.deleted(self._model_id) from None
        except Damage as damage:
            raise self._damaged(number, damage) from None

    def _damaged(self, number: int, damage: Damage) -> DataLossError | NotFoundError:
        if not model_files.is_still(self._files, self._root, self._directory, self._model_id):
            return export_writer.deleted(self._model_id)  # and its files go one by one
        return DataLossError.version(self._model_id, number, f"{quoted(damage.name)}: {damage.message}")
