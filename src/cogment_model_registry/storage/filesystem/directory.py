"""The blocking half of the archive on a directory: its lock, its models, and the order of writes.

The order of writes is what makes a version durable:

1. its bytes go to a temporary file, which is synced;
2. that file is renamed to the version's data file, and the directory synced;
3. the metadata goes to a temporary file, which is synced and renamed, and the directory synced.

The metadata is the commit point: a reader that finds it finds the whole data. Syncing the directory between the two
renames keeps a power cut from persisting the second without the first, which a file system may otherwise reorder.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from cogment_model_registry.errors import (
    DataLossError,
    InvalidError,
    NotFoundError,
    StartError,
    TooLargeError,
    UnavailableError,
    quoted,
)
from cogment_model_registry.records.versions import ModelInfo, VersionInfo, check_model_id
from cogment_model_registry.storage.filesystem import layout, reading
from cogment_model_registry.storage.filesystem.files import Cause, Files, NotRegularError, cause_of
from cogment_model_registry.storage.filesystem.model_files import ModelFiles, close_quietly, list_model, read_metadata
from cogment_model_registry.storage.filesystem.writing import DurableWriter
from cogment_model_registry.storage.folder import FolderContents
from cogment_model_registry.system.file_locks import lock_soon

_log = structlog.stdlib.get_logger(__name__)

_LOCK_ATTEMPTS = 10
_LOCK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class NewFile:
    """A temporary file that is being written.

    Attributes:
        directory: Descriptor of the model's directory.
        file: Descriptor of the file.
        name: Its temporary name.
    """

    directory: int
    file: int
    name: str


@dataclass(frozen=True, slots=True)
class DoomedModel:
    """A model that was taken out of the archive, and whose files still have to be removed.

    Attributes:
        name: The name of its directory now.
        failure: Why the removal may not be durable; empty when it is.
    """

    name: str
    failure: str = ""


class ArchiveDirectory:
    """An archive directory, read and written by blocking calls.

    Errors about the layout are those of the package; errors of the system are `OSError`.

    Args:
        path: The directory; created if it does not exist.
        model_id_max_bytes: Directories with longer names are not models.
        files: The file operations.
        observe_sync: Called after each sync, with its kind (`file`, `directory`) and the seconds that it took.
    """

    def __init__(
        self, path: str, model_id_max_bytes: int, files: Files, observe_sync: Callable[[str, float], None]
    ) -> None:
        self._path = path
        self._model_id_max_bytes = model_id_max_bytes
        self.files = files
        self.writer = DurableWriter(files, observe_sync)
        self._root = -1
        self._lock = -1
        self._sweeping = False
        self._left_models: list[str] = []

    def open(self, *, sweep: bool = True) -> None:
        """Lock the directory for this process, and remove the leftovers of a crash unless `sweep` is false."""
        try:
            self._root = self.files.open_root(self._path)
            self._lock = self._take_lock()
            self.writer.failure = ""
            if sweep:
                # Make the renames of a process that was killed durable before anything relies on them.
                self.writer.sync_directory(self._root)
                self._sweep()
        except OSError as error:
            self.close()
            message = f"archive directory {self._path} cannot be used: {error.strerror}"
            raise StartError(message) from error
        except StartError:
            self.close()
            raise

    def _sweep(self) -> None:
        """Remove models that were on their way out; temporary files are removed by the first scan."""
        for entry in self.files.list_directory(self._root):
            if layout.is_temporary(entry.name) and entry.is_directory:
                self._remove_doomed(entry.name)
        self._sweeping = True

    def _take_lock(self) -> int:
        """Return the descriptor of the lock file, which holds the lock until it is closed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(layout.LOCK_NAME, flags, 0o640, dir_fd=self._root)
        try:
            # Try more than once: a process that looks up the owner holds the lock for a moment.
            if not lock_soon(lock, _LOCK_ATTEMPTS, _LOCK_SECONDS):
                holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
                raise StartError(f"archive directory {self._path} is in use by process {holder}")
            if os.fstat(lock).st_nlink > 1:
                # A file elsewhere has this inode too, as in a backup made of hard links: leave that file alone.
                os.unlink(layout.LOCK_NAME, dir_fd=self._root)
                os.close(lock)
                return self._take_lock()
            os.ftruncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
        except StartError:
            os.close(lock)
            raise
        return lock

    def close(self) -> None:
        """Release the directory."""
        for descriptor in (self._lock, self._root):
            if descriptor >= 0:
                self.close_file(descriptor)
        self._lock = self._root = -1
        self.writer.close()
        self._left_models.clear()

    def close_file(self, descriptor: int) -> None:
        """Close a descriptor, ignoring errors."""
        close_quietly(self.files, descriptor)

    def scan(self) -> list[FolderContents]:
        """Return all models, ordered by id; the first time, remove temporary files that a crash left."""
        self._remove_what_was_left()
        names = [entry.name for entry in self.files.list_directory(self._root) if entry.is_directory]
        models = [contents for name in sorted(names) if (contents := self.scan_model(name))]
        self._sweeping = False
        return models

    def scan_model(self, model_id: str) -> FolderContents | None:
        """Return the contents of a model's directory; None when it is not one of a model, or cannot be read."""
        try:
            check_model_id(model_id, self._model_id_max_bytes)
            return self._scan_model(model_id)
        except InvalidError:
            _log.debug("directory ignored: its name is not a model id", directory=quoted(model_id))
        except FileNotFoundError:
            pass
        except OSError as error:
            if cause_of(error) is not Cause.FILE:
                raise
            level = logging.DEBUG if model_id == layout.LOST_AND_FOUND else logging.ERROR
            _log.log(level, "model left out: its directory cannot be read", model_id=model_id, reason=error.strerror)
        return None

    def _scan_model(self, model_id: str) -> FolderContents | None:
        with self._directory(model_id) as directory:
            found = list_model(self.files, directory, model_id)
            if self._sweeping:
                for name in found.temporary:
                    self._remove_temporary(directory, model_id, name, found)
            if not found.is_model:
                return None
            return reading.read_contents(self.files, directory, model_id, found)

    def read_version_infos(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo | DataLossError | None]:
        """Return the versions; for each one the error if it is damaged, and None if it does not exist."""
        try:
            with self._directory(model_id) as directory:
                return [reading.read_version(self.files, directory, model_id, number) for number in numbers]
        except FileNotFoundError:
            return [None] * len(numbers)

    def write_model(self, info: ModelInfo) -> None:
        """Create the model, or replace its `user_data`, durably."""
        self._require_writable()
        try:
            with self._directory(info.model_id) as directory:
                self._update_model(directory, info)
        except FileNotFoundError:
            self._create_model(info)

    def _update_model(self, directory: int, info: ModelInfo) -> None:
        name = layout.model_file_name(info.model_id)
        try:
            old = read_metadata(self.files, directory, name)
        except (FileNotFoundError, layout.BadMetadata, NotRegularError):
            old = b""  # damaged, so no old text to restore
        try:
            self.writer.write(directory, name, layout.format_model(info))
        except OSError:
            if old and self.writer.failure:  # only a sync may have failed after the rename
                self.writer.restore(directory, name, old)
            raise

    def _create_model(self, info: ModelInfo) -> None:
        """Make the directory of a model under a temporary name, and rename it when it is complete.

        The original takes any directory for a model, and fails on one without metadata.
        """
        temporary = layout.temporary_name()
        self.files.make_directory(self._root, temporary)
        try:
            with self._directory(temporary) as directory:
                self.writer.write(directory, layout.model_file_name(info.model_id), layout.format_model(info))
            self.files.rename(self._root, temporary, info.model_id)
        except BaseException:
            self._remove_doomed(temporary)
            raise
        try:
            self.writer.sync_directory(self._root)
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.rename(self._root, info.model_id, temporary)
                self._remove_doomed(temporary)
            raise

    def begin_removal(self, model_id: str) -> DoomedModel:
        """Take the model out of the archive, durably and atomically: by a rename."""
        self._require_writable()
        doomed = layout.temporary_name()
        try:
            self.files.rename(self._root, model_id, doomed)
        except FileNotFoundError:
            raise NotFoundError.model(model_id) from None
        try:
            self.writer.sync_directory(self._root)
        except OSError as error:
            try:
                self.files.rename(self._root, doomed, model_id)
            except OSError:
                return DoomedModel(doomed, f"the archive failed: {error.strerror}")
            raise
        return DoomedModel(doomed)

    def finish_removal(self, removal: DoomedModel) -> None:
        """Remove, file by file, a model that was taken out of the archive."""
        self._remove_doomed(removal.name)

    def _remove_doomed(self, doomed: str) -> None:
        """Remove a model on its way out; repeat if an upload that just began left a file after the first attempt."""
        errors: list[OSError] = []
        for _ in range(3):
            errors.clear()
            self.files.remove_tree(self._root, doomed, errors.append)
            if not errors:
                return
        if not isinstance(errors[-1], FileNotFoundError):
            self._left_models.append(doomed)
            _log.warning("removal of part of a deleted model postponed", reason=errors[-1].strerror)

    def write_high_water_mark(self, model_id: str, number: int) -> None:
        """Persist the number up to which no number may be given again."""
        self._require_writable()
        try:
            with self._directory(model_id) as directory:
                self.writer.write(directory, layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(number))
        except FileNotFoundError:
            raise NotFoundError.model(model_id) from None

    def commit(self, new: NewFile, info: VersionInfo) -> None:
        """Give a synced temporary file its name as the data of a version, then write the version's metadata."""
        self._require_writable()
        data_name = layout.data_file_name(info.model_id, info.number)
        version_name = layout.version_file_name(info.model_id, info.number)
        self._require_absent(new.directory, data_name, version_name)
        try:
            self.files.rename(new.directory, new.name, data_name)
            self.writer.sync_directory(new.directory)
            self.writer.write(new.directory, version_name, layout.format_version(info))
        except FileNotFoundError:
            raise NotFoundError.model(info.model_id) from None  # removed, with the upload's temporary file
        except BaseException:
            for name in (version_name, data_name):
                self.writer.remove(new.directory, name)
            raise

    def remove_version(self, model_id: str, number: int) -> None:
        """Remove a version, durably: first its metadata, under a temporary name until its data is gone too.

        If the process ends before the data is gone, the temporary name still leads to it: see `_remove_temporary`.
        """
        self._require_writable()
        try:
            with self._directory(model_id) as directory:
                doomed = layout.temporary_name()
                self.files.rename(directory, layout.version_file_name(model_id, number), doomed)
                try:
                    self.writer.sync_directory(directory)
                except BaseException:
                    with contextlib.suppress(OSError):
                        self.files.rename(directory, doomed, layout.version_file_name(model_id, number))
                    raise
                with contextlib.suppress(OSError):  # what is left now goes at the next start
                    self._remove_data(directory, layout.data_file_name(model_id, number))
                    self.files.remove(directory, doomed)
        except FileNotFoundError:
            return

    def _remove_data(self, directory: int, name: str) -> None:
        """Remove the data of a version, durably: what leads to it must not be lost before."""
        with contextlib.suppress(FileNotFoundError):
            self.files.remove(directory, name)
            self.writer.sync_directory(directory)

    def _remove_temporary(self, directory: int, model_id: str, name: str, found: ModelFiles) -> None:
        """Remove a temporary file that a crash left, and the data of the version that it describes, if it does.

        Metadata under a temporary name is that of a version that was not stored to the end, or not removed to the end.
        Either way the version does not exist, and its data must not stay.
        """
        with contextlib.suppress(layout.BadMetadata, NotRegularError):
            number = layout.parse_version_number(read_metadata(self.files, directory, name), model_id)
            if number in found.data and number not in found.metadata:
                self._remove_data(directory, layout.data_file_name(model_id, number))
        self.files.remove(directory, name)

    def _require_absent(self, directory: int, *names: str) -> None:
        """Refuse to replace files that someone put there from outside under a free number."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.files.status_of(directory, name)
                raise UnavailableError(
                    "the archive already has files of this version, from outside: have the server rescan it"
                )

    def _remove_what_was_left(self) -> None:
        self.writer.remove_what_was_left()
        left_models, self._left_models = self._left_models, []
        for doomed in left_models:
            self._remove_doomed(doomed)

    def _require_writable(self) -> None:
        self.writer.require_writable()
        self._remove_what_was_left()

    def create_upload(self, model_id: str, size_bytes: int, promised_bytes: int) -> NewFile:
        """Return a new temporary file for `size_bytes` bytes, while others are promised `promised_bytes` bytes."""
        self._require_writable()
        available = max(self.files.free_bytes(self._root) - promised_bytes, 0)
        if size_bytes > available:
            message = f"an archived version of {size_bytes} bytes does not fit the {available} bytes that are free"
            raise TooLargeError(message, model_id=model_id)
        name = layout.temporary_name()
        try:
            directory = self.files.open_directory(self._root, model_id)
        except FileNotFoundError:
            raise NotFoundError.model(model_id) from None
        try:
            return NewFile(directory, self.files.create(directory, name), name)
        except FileNotFoundError:
            self.close_file(directory)
            raise NotFoundError.model(model_id) from None  # removed in the meantime
        except BaseException:
            self.close_file(directory)
            raise

    def discard_upload(self, new: NewFile) -> None:
        """Close a temporary file, and remove it unless it was committed."""
        self.close_file(new.file)
        self.writer.remove(new.directory, new.name)
        self.close_file(new.directory)

    def open_data(self, info: VersionInfo) -> tuple[int, reading.Fingerprint]:
        """Return a descriptor of the data of a version, and its fingerprint."""
        try:
            with self._directory(info.model_id) as directory:
                file = reading.open_data(self.files, directory, info)
            try:
                return file, reading.fingerprint(self.files, file)
            except BaseException:
                self.close_file(file)
                raise
        except FileNotFoundError:
            raise NotFoundError.version(info.model_id, info.number) from None

    @contextlib.contextmanager
    def _directory(self, model_id: str) -> Iterator[int]:
        directory = self.files.open_directory(self._root, model_id)
        try:
            yield directory
        finally:
            self.close_file(directory)
