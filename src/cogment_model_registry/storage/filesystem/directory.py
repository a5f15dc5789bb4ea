"""The blocking half of the archive in a directory: the order of writes, and the checks of reads.

The order of writes is what makes a version durable:

1. its bytes go to a temporary file, which is synced;
2. that file is renamed to the version's data file, and the directory synced;
3. the metadata goes to a temporary file, which is synced and renamed, and the directory synced.

The metadata is the commit point: a reader that finds it finds the whole data. Syncing the directory between the two
renames keeps a power cut from persisting the second without the first, which a file system may otherwise reorder.

A sync that fails is not repeated, since the kernel may have dropped the bytes and report success the next time
(https://wiki.postgresql.org/wiki/Fsync_Errors). Nothing is written any more until the next start.
"""

import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Cause, Files, NotRegularError, cause_of
from cogment_model_registry.storage.filesystem.model_files import ModelFiles, close_quietly, list_model, read_metadata
from cogment_model_registry.storage.folder import FolderContents
from cogment_model_registry.system.file_locks import lock_soon

_log = structlog.stdlib.get_logger(__name__)

_LOCK_ATTEMPTS = 10
_LOCK_SECONDS = 0.02

_SETTLING_NS = 50 * 10**6


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


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The part of a file's status that changes with its content."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    links: int = field(compare=False)
    taken_ns: int = field(compare=False)

    @property
    def is_settled(self) -> bool:
        """Whether a later change of the file would change this too: many kernels keep times in ticks of up to 10 ms."""
        return self.taken_ns - max(self.modified_ns, self.changed_ns) > _SETTLING_NS


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
        self._observe_sync = observe_sync
        self.failure = ""
        self._root = -1
        self._lock = -1
        self._sweeping = False
        self._left_files: list[tuple[int, str]] = []
        self._left_models: list[str] = []

    def open(self, *, sweep: bool = True) -> None:
        """Lock the directory for this process, and remove the leftovers of a crash unless `sweep` is false."""
        try:
            self._root = self.files.open_root(self._path)
            self._lock = self._take_lock()
            self.failure = ""
            if sweep:
                # Make the renames of a process that was killed durable before anything relies on them.
                self._sync_directory(self._root)
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
        for descriptor in (self._lock, self._root, *(directory for directory, _ in self._left_files)):
            if descriptor >= 0:
                self.close_file(descriptor)
        self._lock = self._root = -1
        self._left_files.clear()
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
                    self.files.remove(directory, name)
            if not found.is_model:
                return None
            damaged = dict(_damage_by_names(found))
            numbers = sorted(found.metadata.keys() - damaged.keys())
            return FolderContents(
                info=self._read_model(directory, model_id),
                version_numbers=numbers,
                size_bytes=self._data_sizes_bytes(directory, model_id, numbers),
                damaged=damaged,
                last_number=found.last_number,
                high_water_mark=self._read_high_water_mark(directory, model_id),
            )

    def _data_sizes_bytes(self, directory: int, model_id: str, numbers: Sequence[int]) -> dict[int, int]:
        sizes_bytes = dict.fromkeys(numbers, 0)
        for number in numbers:
            try:
                status = self.files.status_of(directory, layout.data_file_name(model_id, number))
            except FileNotFoundError:
                continue
            sizes_bytes[number] = status.st_size
        return sizes_bytes

    def _read_model(self, directory: int, model_id: str) -> ModelInfo:
        """Return a model; without `user_data` when its metadata is damaged, so that its versions stay available."""
        try:
            return layout.parse_model(read_metadata(self.files, directory, layout.model_file_name(model_id)), model_id)
        except FileNotFoundError:
            reason = "it is missing"
        except (layout.BadMetadata, OSError) as error:
            reason = _damage(error)
        _log.error("model loaded without user_data: its metadata is damaged", model_id=model_id, reason=reason)
        return ModelInfo(model_id)

    def _read_high_water_mark(self, directory: int, model_id: str) -> int:
        try:
            return layout.parse_high_water_mark(read_metadata(self.files, directory, layout.HIGH_WATER_MARK_NAME))
        except FileNotFoundError:
            return 0
        except (layout.BadMetadata, OSError) as error:
            reason = _damage(error)
            _log.error(
                "model loaded without its damaged high-water mark: numbers of lost transient versions may be reused",
                model_id=model_id,
                reason=reason,
            )
            return 0

    def read_version_infos(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo | DataLossError | None]:
        """Return the versions; for each one the error if it is damaged, and None if it does not exist."""
        try:
            with self._directory(model_id) as directory:
                return [self._read_version_info(directory, model_id, number) for number in numbers]
        except FileNotFoundError:
            return [None] * len(numbers)

    def _read_version_info(self, directory: int, model_id: str, number: int) -> VersionInfo | DataLossError | None:
        try:
            text = read_metadata(self.files, directory, layout.version_file_name(model_id, number))
            info = layout.parse_version(text, model_id, number)
        except FileNotFoundError:
            return None
        except (layout.BadMetadata, OSError) as error:
            return DataLossError.version(model_id, number, _damage(error))
        problem = self._data_problem(directory, info)
        return DataLossError.version(model_id, number, problem) if problem else info

    def _data_problem(self, directory: int, info: VersionInfo) -> str:
        """Return what is wrong with the data file of a version, as far as its status shows."""
        try:
            status = self.files.status_of(directory, layout.data_file_name(info.model_id, info.number))
        except FileNotFoundError:
            return "its data is missing"
        if not stat.S_ISREG(status.st_mode):
            return "its data is not a regular file"
        if status.st_size != info.data_size_bytes:
            return f"its data has {status.st_size} bytes instead of {info.data_size_bytes}"
        return ""

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
            self._write_durably(directory, name, layout.format_model(info))
        except OSError:
            if old and self.failure:  # only a sync may have failed after the rename
                with contextlib.suppress(OSError):
                    self._write(directory, name, old, sync=False)
            raise

    def _create_model(self, info: ModelInfo) -> None:
        """Make the directory of a model under a temporary name, and rename it when it is complete.

        The original takes any directory for a model, and fails on one without metadata.
        """
        temporary = layout.temporary_name()
        self.files.make_directory(self._root, temporary)
        try:
            with self._directory(temporary) as directory:
                self._write_durably(directory, layout.model_file_name(info.model_id), layout.format_model(info))
            self.files.rename(self._root, temporary, info.model_id)
        except BaseException:
            self._remove_doomed(temporary)
            raise
        try:
            self._sync_directory(self._root)
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
            self._sync_directory(self._root)
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
                self._write_durably(directory, layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(number))
        except FileNotFoundError:
            raise NotFoundError.model(model_id) from None

    def sync_file(self, file: int) -> None:
        """Make a file durable; a failure ends all writing."""
        self._sync("file", self.files.sync_file, file)

    def commit(self, new: NewFile, info: VersionInfo) -> None:
        """Give a synced temporary file its name as the data of a version, then write the version's metadata."""
        self._require_writable()
        data_name = layout.data_file_name(info.model_id, info.number)
        version_name = layout.version_file_name(info.model_id, info.number)
        self._require_absent(new.directory, data_name, version_name)
        try:
            self.files.rename(new.directory, new.name, data_name)
            self._sync_directory(new.directory)
            self._write_durably(new.directory, version_name, layout.format_version(info))
        except FileNotFoundError:
            raise NotFoundError.model(info.model_id) from None  # removed, with the upload's temporary file
        except BaseException:
            for name in (version_name, data_name):
                self._remove(new.directory, name)
            raise

    def _require_absent(self, directory: int, *names: str) -> None:
        """Refuse to replace files that someone put there from outside under a free number."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.files.status_of(directory, name)
                raise UnavailableError(
                    "the archive already has files of this version, from outside: have the server rescan it"
                )

    def _write_durably(self, directory: int, name: str, text: bytes) -> None:
        """Write a file whole or not at all: temporary, synced, renamed, its directory synced."""
        self._write(directory, name, text, sync=True)
        self._sync_directory(directory)

    def _write(self, directory: int, name: str, text: bytes, *, sync: bool) -> None:
        temporary = layout.temporary_name()
        file = self.files.create(directory, temporary)
        try:
            try:
                self.files.write(file, [text])
                if sync:
                    self.sync_file(file)
            finally:
                self.close_file(file)
            self.files.rename(directory, temporary, name)
        except BaseException:
            self._remove(directory, temporary)
            raise

    def _remove(self, directory: int, name: str) -> None:
        """Remove a file that this process made; if that fails, try again with the next write."""
        try:
            self.files.remove(directory, name)
        except OSError:
            with contextlib.suppress(OSError):
                self._left_files.append((os.dup(directory), name))

    def _remove_what_was_left(self) -> None:
        left_files, self._left_files = self._left_files, []
        for directory, name in left_files:
            self._remove(directory, name)
            self.close_file(directory)
        left_models, self._left_models = self._left_models, []
        for doomed in left_models:
            self._remove_doomed(doomed)

    def _sync_directory(self, directory: int) -> None:
        """Make the names in a directory durable; a failure ends all writing."""
        self._sync("directory", self.files.sync_directory, directory)

    def _sync(self, kind: str, sync: Callable[[int], None], descriptor: int) -> None:
        started = time.perf_counter()
        try:
            sync(descriptor)
        except OSError as error:
            self.failure = f"a sync failed: {error.strerror}"
            _log.error("archive stopped taking writes until a restart", reason=self.failure)
            raise
        self._observe_sync(kind, time.perf_counter() - started)

    def _require_writable(self) -> None:
        if self.failure:
            raise UnavailableError(f"the archive takes no writes until a restart: {self.failure}")
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
        self._remove(new.directory, new.name)
        self.close_file(new.directory)

    def open_data(self, info: VersionInfo) -> tuple[int, Fingerprint]:
        """Return a descriptor of the data of a version, and its fingerprint."""
        try:
            with self._directory(info.model_id) as directory:
                file = self._open_data_in(directory, info)
            try:
                return file, self.fingerprint(file)
            except BaseException:
                self.close_file(file)
                raise
        except FileNotFoundError:
            raise NotFoundError.version(info.model_id, info.number) from None

    def _open_data_in(self, directory: int, info: VersionInfo) -> int:
        problem = self._data_problem(directory, info)
        if problem:
            # Without metadata it is not a version any more, and nothing is damaged.
            self.files.status_of(directory, layout.version_file_name(info.model_id, info.number))
            raise DataLossError.version(info.model_id, info.number, problem)
        try:
            return self.files.open_to_read(directory, layout.data_file_name(info.model_id, info.number))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataLossError.version(info.model_id, info.number, f"its data: {_damage(error)}") from None

    def fingerprint(self, file: int) -> Fingerprint:
        """Return the fingerprint of an open file."""
        status = self.files.status(file)
        return Fingerprint(
            status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink, time.time_ns()
        )

    @contextlib.contextmanager
    def _directory(self, model_id: str) -> Iterator[int]:
        directory = self.files.open_directory(self._root, model_id)
        try:
            yield directory
        finally:
            self.close_file(directory)


def _damage_by_names(found: ModelFiles) -> Iterator[tuple[int, str]]:
    """Yield what is wrong with versions, as far as the kinds of their files show."""
    for number, is_file in found.metadata.items():
        if not is_file:
            yield number, "its metadata is not a regular file"
        elif number not in found.data:
            yield number, "its data is missing"
        elif not found.data[number]:
            yield number, "its data is not a regular file"


def _damage(error: layout.BadMetadata | OSError) -> str:
    """Return what is wrong with a file, without its name.

    Raises:
        OSError: The error does not show damage: the file is unavailable.
    """
    if isinstance(error, NotRegularError):
        return "it is not a regular file"
    if isinstance(error, OSError):
        if cause_of(error) is not Cause.FILE:
            raise error
        return f"it cannot be read: {error.strerror}"
    return str(error)
