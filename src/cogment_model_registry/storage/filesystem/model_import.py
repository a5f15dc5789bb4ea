"""The import of a model into an archive directory from a tar file; see `export_format`.

The model is written under a temporary name, synced, and renamed to its own name last, so it is imported whole or not at
all.

A server may run on the directory. A server that *starts* during the import removes everything with a temporary name, so
the owner of the archive is checked before and after the rename, and a change ends the import.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from cogment_model_registry.errors import InvalidError, UnavailableError, quoted
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import import_reader, layout, model_files
from cogment_model_registry.storage.filesystem.files import Files, cannot_be_renamed
from cogment_model_registry.storage.filesystem.import_reader import Annotate, Imported, ImportTarget
from cogment_model_registry.storage.filesystem.model_files import is_marked


def import_model(
    files: Files,
    root: int,
    stream: BinaryIO,
    *,
    model_id: str = "",
    annotate: Annotate = import_reader.no_annotations,
    check_holder: Callable[[], object],
    advance: Callable[[int], None],
) -> Imported:
    """Make a model from a tar file.

    Args:
        files: The file operations.
        root: Descriptor of the archive directory.
        stream: The tar file.
        model_id: Its new name, an id that obeys the rules; empty for the one that it has.
        annotate: Returns a context manager for the moment in which the model gets its name: it keeps, durably, what the
            files do not have, and takes it back if the body fails.
        check_holder: Raises an error when another process took the archive since the import began.
        advance: Called with the bytes that were read from the stream.

    Raises:
        InvalidError: It is not a complete export, or a model of this name exists.
        OSError: The stream cannot be read, or the directory not be written.
        UnavailableError: Another process removed the written files.
    """
    temporary = layout.temporary_name()
    files.make_directory(root, temporary)
    try:
        directory = files.open_directory(root, temporary)
        try:
            imported = import_reader.read_export(stream, _Target(files, root, directory), advance, model_id)
        finally:
            files.close(directory)
        with annotate(imported, lambda numbers: _read_versions(files, root, temporary, imported.model_id, numbers)):
            _give_name(files, root, temporary, imported.model_id, check_holder)
    except BaseException:
        files.remove_tree(root, temporary, lambda _error: None)
        raise
    return imported


def _read_versions(
    files: Files, root: int, temporary: str, model_id: str, numbers: Iterable[int]
) -> Iterator[VersionInfo]:
    """Yield versions of a model that still has a temporary name."""
    directory = files.open_directory(root, temporary)
    try:
        for number in numbers:
            yield model_files.read_version(files, directory, model_id, number)[0]
    finally:
        files.close(directory)


def _give_name(files: Files, root: int, temporary: str, model_id: str, check_holder: Callable[[], object]) -> None:
    check_holder()
    _require_absent(files, root, model_id)
    _rename(files, root, temporary, model_id)
    try:
        check_holder()
        files.sync_directory(root)
    except BaseException:
        with contextlib.suppress(OSError):
            files.rename(root, model_id, temporary)
        raise


def _require_absent(files: Files, root: int, model_id: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.status_of(root, model_id)
        if _is_deleted(files, root, model_id):
            raise InvalidError(
                f"model {quoted(model_id)} was deleted, but its files were not removed yet: start the server of this "
                "archive, or run `cogment archive verify --repair`, and import the model again",
                model_id=model_id,
            )
        raise import_reader.exists(model_id)


def _is_deleted(files: Files, root: int, model_id: str) -> bool:
    try:
        directory = files.open_directory(root, model_id)
    except OSError:
        return False
    try:
        return is_marked(files, directory)
    finally:
        files.close(directory)


def _rename(files: Files, root: int, temporary: str, model_id: str) -> None:
    try:
        files.rename(root, temporary, model_id)
    except FileNotFoundError:
        raise _swept() from None
    except OSError as error:
        _require_absent(files, root, model_id)  # created during the import
        if cannot_be_renamed(error):
            raise UnavailableError(
                "the file system of the archive cannot rename a directory, so the model would not appear whole: import "
                "it into an archive on another file system, and copy its directory while the server is stopped"
            ) from error
        raise


def _swept() -> UnavailableError:
    return UnavailableError("the imported files were removed, perhaps by a server that started: import the model again")


class _Target(ImportTarget):
    """The directory that is written."""

    def __init__(self, files: Files, root: int, directory: int) -> None:
        self._files = files
        self._root = root
        self._directory = directory
        self._names: set[str] = set()

    def require_absent(self, model_id: str) -> None:
        _require_absent(self._files, self._root, model_id)

    def put_model(self, info: ModelInfo, text: bytes, mark: int) -> None:
        self._write(layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(mark))
        self._write(layout.model_file_name(info.model_id), text)

    def created_data(
        self, model_id: str, number: int, size_bytes: int
    ) -> contextlib.AbstractContextManager[Callable[[bytes], None]]:
        return self._created(layout.data_file_name(model_id, number))

    def put_version(self, info: VersionInfo, text: bytes) -> None:
        self._write(layout.version_file_name(info.model_id, info.number), text)

    def _write(self, name: str, text: bytes) -> None:
        """Write a file whole."""
        with self._created(name) as write:
            write(text)

    @contextlib.contextmanager
    def _created(self, name: str) -> Iterator[Callable[[bytes], None]]:
        """Return a context manager with a function that writes a new file, which is durable at the end."""
        try:
            file = self._files.create(self._directory, name)
        except FileNotFoundError:
            raise _swept() from None
        try:
            yield lambda block: self._files.write(file, [block])
            self._files.sync_file(file)
        finally:
            self._files.close(file)
        self._names.add(name)

    def finish(self) -> None:
        # All names must be there: a server that starts removes them.
        self._files.sync_directory(self._directory)
        if {entry.name for entry in self._files.list_directory(self._directory)} != self._names:
            raise _swept()
