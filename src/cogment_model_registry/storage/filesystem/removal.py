"""The removal of models from an archive directory, by blocking calls.

A model is taken out at once, and its files are removed later. Usually its directory is renamed to a temporary name.
Where the file system cannot rename it, such as a directory of a lower layer of an overlay file system, it is marked:

1. The mark is created in the directory, which is synced. From then on, the directory is no model.
2. All other files are removed, and the directory is synced.
3. The mark is removed, then the directory, and the archive directory is synced.

The sync between the removals keeps a power cut from persisting that of the mark without those of the other files, which
would bring a part of the model back. A start finishes what a crash has interrupted.
"""

import threading
from dataclasses import dataclass

import structlog

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Files, cannot_be_renamed
from cogment_model_registry.storage.filesystem.model_files import close_quietly, is_marked
from cogment_model_registry.storage.filesystem.writing import DurableWriter

_log = structlog.stdlib.get_logger(__name__)

_ATTEMPTS = 3
"""How often to list and remove files: an upload that just began may add one after the first time."""


@dataclass(frozen=True, slots=True)
class DoomedModel:
    """A model that was taken out of the archive, and whose files still have to be removed.

    Attributes:
        name: The name of its directory now.
        is_marked: Whether it is a directory that could not be renamed, and has the mark.
        failure: Why the removal may not be durable; empty when it is.
    """

    name: str
    is_marked: bool = False
    failure: str = ""


class Removals:
    """Removes models, and remembers what could not be removed. Errors of the system are `OSError`.

    Args:
        files: The file operations.
        writer: What syncs directories.
    """

    def __init__(self, files: Files, writer: DurableWriter) -> None:
        self._files = files
        self._writer = writer
        self._emptying = threading.Lock()
        self._left: list[DoomedModel] = []
        self._left_empty: list[str] = []

    def begin(self, root: int, model_id: str) -> DoomedModel:
        """Take a model out of the archive, durably and atomically.

        Raises:
            NotFoundError: It does not exist.
        """
        doomed = layout.temporary_name()
        try:
            self._files.rename(root, model_id, doomed)
        except FileNotFoundError:
            raise NotFoundError.model(model_id) from None
        except OSError as error:
            if cannot_be_renamed(error):
                return self._mark(root, model_id)
            raise
        try:
            self._writer.sync_directory(root)
        except OSError as error:
            try:
                self._files.rename(root, doomed, model_id)
            except OSError:
                return DoomedModel(doomed, failure=f"the archive failed: {error.strerror}")
            raise
        return DoomedModel(doomed)

    def _mark(self, root: int, model_id: str) -> DoomedModel:
        directory = self._files.open_directory(root, model_id)
        try:
            close_quietly(self._files, self._files.create(directory, layout.DELETION_MARK_NAME))
            try:
                self._writer.sync_directory(directory)
            except OSError as error:
                try:
                    self._files.remove(directory, layout.DELETION_MARK_NAME)
                except OSError:
                    return DoomedModel(model_id, is_marked=True, failure=f"the archive failed: {error.strerror}")
                raise
        except FileExistsError:
            raise NotFoundError.model(model_id) from None
        finally:
            close_quietly(self._files, directory)
        return DoomedModel(model_id, is_marked=True)

    def finish(self, root: int, doomed: DoomedModel) -> None:
        """Remove, file by file, a model that was taken out of the archive; what fails is tried again by `retry`."""
        error = self._finish_marked(root, doomed.name) if doomed.is_marked else self._remove_tree(root, doomed.name)
        if error is not None:
            self._left.append(doomed)
            _log.warning("removal of part of a deleted model postponed", reason=error.strerror)

    def retry(self, root: int) -> None:
        """Try again to remove what could not be removed before."""
        left, self._left = self._left, []
        for doomed in left:
            self.finish(root, doomed)
        left_empty, self._left_empty = self._left_empty, []
        for name in left_empty:
            try:
                self._files.remove_directory(root, name)
            except OSError as error:
                _log.info("empty directory of a deleted model stays", model_id=name, reason=error.strerror)

    def forget(self) -> None:
        """Give up what could not be removed; a start removes it."""
        self._left.clear()
        self._left_empty.clear()

    def _remove_tree(self, root: int, name: str) -> OSError | None:
        """Remove a directory; return why that failed."""
        errors: list[OSError] = []
        for _ in range(_ATTEMPTS):
            errors.clear()
            self._files.remove_tree(root, name, errors.append)
            if not errors:
                return None
        return None if isinstance(errors[-1], FileNotFoundError) else errors[-1]

    def _finish_marked(self, root: int, model_id: str) -> OSError | None:
        """Remove the directory of a model if it has the mark; return why that failed."""
        try:
            self.finish_marked(root, model_id)
        except OSError as error:
            return error
        return None

    def finish_marked(self, root: int, model_id: str) -> None:
        """Remove the directory of a model if it exists and has the mark; nobody else does that at the same time.

        Files that come when the mark is gone belong to another model of that name, and stay, with their directory.
        """
        try:
            directory = self._files.open_directory(root, model_id)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if not is_marked(self._files, directory):
                return
            with self._emptying:
                if is_marked(self._files, directory):
                    self._remove_marked(root, directory, model_id)
        finally:
            close_quietly(self._files, directory)

    def _remove_marked(self, root: int, directory: int, model_id: str) -> None:
        self._writer.sync_directory(directory)  # a process that made the mark may have been killed before its sync
        self._empty(directory)
        self._writer.sync_directory(directory)
        self._files.remove(directory, layout.DELETION_MARK_NAME)
        try:
            self._files.remove_directory(root, model_id)
        except OSError:  # it is no model any more, and may already be a new one
            self._left_empty.append(model_id)
        self._writer.sync_directory(root)

    def _empty(self, directory: int) -> None:
        """Remove everything but the mark."""
        for _ in range(_ATTEMPTS):
            entries = [
                entry for entry in self._files.list_directory(directory) if entry.name != layout.DELETION_MARK_NAME
            ]
            for entry in entries:
                if entry.is_directory:
                    self._remove_foreign_directory(directory, entry.name)
                else:
                    self._files.remove(directory, entry.name)
            if not entries:
                return

    def _remove_foreign_directory(self, directory: int, name: str) -> None:
        error = self._remove_tree(directory, name)
        if error is not None:
            raise error
