"""The export of a model of an archive directory to one tar file; see `export_format`.

Nothing is written to the directory, and a server may run on it. The export has the versions that exist at its start; if
one of them disappears during it, because the model is deleted, the export ends.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cogment_model_registry.errors import DataLossError, NotFoundError, UnavailableError, counted, quoted
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import export_format, layout, model_files
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.findings import Kind
from cogment_model_registry.storage.filesystem.model_files import Damage, ModelFiles, Unreadable

Identity: TypeAlias = tuple[int, str]
"""The time of a version, in nanoseconds since the Unix epoch, and its hash."""


@dataclass(slots=True)
class Exported:
    """The result of an export.

    Attributes:
        versions: How many versions.
        data_bytes: How many bytes they have.
    """

    versions: int = 0
    data_bytes: int = 0


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
    annotate: Callable[[Mapping[int, Identity]], export_format.Annotations | None] = lambda _exported: None,
    warn: Callable[[str], object],
    advance: Callable[[int], None],
) -> Exported:
    """Write a model as a tar file.

    Args:
        files: The file operations.
        root: Descriptor of the archive directory.
        model_id: The model; an id that obeys the rules.
        write: Takes the next bytes of the tar file.
        skip_damaged: Whether to leave out what is damaged; data is read twice then, to know before it is written.
        annotate: Returns what else the file has to have, for the versions that it has.
        warn: Called with a line for each thing that is left out.
        advance: Called with the bytes of versions that were written.

    Raises:
        DataLossError: Something is damaged, or every version with `skip_damaged`; the written file is not a complete
            export.
        NotFoundError: The model does not exist, or is deleted during the export.
        UnavailableError: A file cannot be read, and may be intact.
        OSError: The directory cannot be listed, or the process is short of a resource.
    """
    directory = _open_model(files, root, model_id)
    try:
        found = model_files.list_model(files, directory, model_id)
        if not found.is_model:
            raise NotFoundError.model(model_id)
        export = _Export(files, root, directory, model_id, write=write, annotate=annotate, advance=advance)
        return export.run(found, warn if skip_damaged else None)
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


class _Export:
    """One export."""

    def __init__(
        self,
        files: Files,
        root: int,
        directory: int,
        model_id: str,
        *,
        write: Callable[[bytes], object],
        annotate: Callable[[Mapping[int, Identity]], export_format.Annotations | None],
        advance: Callable[[int], None],
    ) -> None:
        self._files = files
        self._root = root
        self._directory = directory
        self._model_id = model_id
        self._write_bytes = write
        self._annotate = annotate
        self._advance = advance
        self._offset = 0
        self._exported = Exported()
        self._identities: dict[int, Identity] = {}

    def run(self, found: ModelFiles, warn: Callable[[str], object] | None) -> Exported:
        """Write everything; `warn` is given when damage is left out."""
        mark = self._high_water_mark(found, warn)
        model_text = self._model_text(warn)
        self._add(layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(mark))
        self._add(layout.model_file_name(self._model_id), model_text)
        manifest = export_format.Manifest(self._model_id, mark, model_text)
        left_out: list[int] = []
        for number in sorted(found.metadata):
            try:
                self._add_version(number, manifest, is_checked_first=warn is not None)
            except FileNotFoundError:
                raise self._deleted() from None
            except Damage as damage:
                error = self._damaged(number, damage)
                if warn is None or isinstance(error, NotFoundError):
                    raise error from None
                warn(f"left out: {error.message}")
                left_out.append(number)
        if left_out and not self._exported.versions:
            damaged = counted(len(left_out), "damaged version")
            message = f"no version of model {quoted(self._model_id)} is left to export: {damaged} left out"
            raise DataLossError(message, model_id=self._model_id)
        self._add(layout.MANIFEST_NAME, manifest.text(left_out, self._annotate(self._identities)))
        self._write(export_format.ending(self._offset))
        return self._exported

    def _high_water_mark(self, found: ModelFiles, warn: Callable[[str], object] | None) -> int:
        """Return the highest number that may have been given, as far as it is known."""
        mark = 0
        try:
            mark = model_files.read_high_water_mark(self._files, self._directory)
        except FileNotFoundError:
            pass  # the original has none
        except Damage as damage:
            self._leave_out(damage, "its high-water mark", warn)
        return max(mark, found.last_number)

    def _model_text(self, warn: Callable[[str], object] | None) -> bytes:
        try:
            return model_files.read_model(self._files, self._directory, self._model_id)[1]
        except FileNotFoundError:
            name = layout.model_file_name(self._model_id)
            self._leave_out(Damage(Kind.MODEL_METADATA_MISSING, name, "it is missing"), "its user_data", warn)
        except Damage as damage:
            self._leave_out(damage, "its user_data", warn)
        return layout.format_model(ModelInfo(self._model_id))

    def _leave_out(self, damage: Damage, what: str, warn: Callable[[str], object] | None) -> None:
        message = f"model {quoted(self._model_id)} is damaged: {damage.name}: {damage.message}"
        if warn is None:
            raise DataLossError(message, model_id=self._model_id)
        warn(f"left out: {what}: {message}")

    def _damaged(self, number: int, damage: Damage) -> DataLossError | NotFoundError:
        if not model_files.is_still(self._files, self._root, self._directory, self._model_id):
            return self._deleted()  # and its files go one by one
        return DataLossError.version(self._model_id, number, f"{quoted(damage.name)}: {damage.message}")

    def _deleted(self) -> NotFoundError:
        message = f"model {quoted(self._model_id)}, or a version of it, was deleted while it was exported"
        return NotFoundError(message, model_id=self._model_id)

    def _add_version(self, number: int, manifest: export_format.Manifest, *, is_checked_first: bool) -> None:
        info, text = model_files.read_version(self._files, self._directory, self._model_id, number)
        with model_files.opened_data(self._files, self._directory, info) as file:
            if is_checked_first:
                self._check_data(info, file)
            try:
                self._add_data(info, file)
            except Damage as damage:
                raise self._damaged(number, damage) from None  # part of it is written already
        self._add(layout.version_file_name(self._model_id, number), text, export_format.mtime_seconds(info))
        manifest.add(info, text)
        self._identities[number] = (info.created_ns, info.data_hash)
        self._exported.versions += 1
        self._exported.data_bytes += info.data_size_bytes

    def _check_data(self, info: VersionInfo, file: int) -> None:
        for _ in model_files.data_blocks(self._files, file, info):
            pass
        os.lseek(file, 0, os.SEEK_SET)

    def _add_data(self, info: VersionInfo, file: int) -> None:
        name = layout.data_file_name(self._model_id, info.number)
        self._add_header(name, info.data_size_bytes, export_format.mtime_seconds(info))
        for block in model_files.data_blocks(self._files, file, info):
            self._write(block)
            self._advance(len(block))
        self._write(export_format.padding(info.data_size_bytes))

    def _add(self, name: str, text: bytes, mtime_seconds: int = 0) -> None:
        self._add_header(name, len(text), mtime_seconds)
        self._write(text + export_format.padding(len(text)))

    def _add_header(self, name: str, size_bytes: int, mtime_seconds: int) -> None:
        self._write(export_format.header(f"{self._model_id}/{name}", size_bytes, mtime_seconds))

    def _write(self, data: bytes) -> None:
        self._write_bytes(data)
        self._offset += len(data)
