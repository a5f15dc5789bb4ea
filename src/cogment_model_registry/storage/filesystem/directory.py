"""The blocking half of the archive on a directory: its lock, its models, and the order of writes.

The order of writes is what makes a version durable:

1. its bytes go to a temporary file, which is synced;
2. that file is renamed to the version's data file, and the directory synced;
3. the metadata goes to a temporary file, which is synced and renamed, and the directory synced.

The metadata is the commit point: a reader that finds it finds the whole data. Syncing the directory between the two
renames keeps a power cut from persisting the second without the first, which a file system may otherwise reorder.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from cogment_model_registry.errors import (
    DataLossError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    StartError,
    TooLargeError,
    UnavailableError,
    counted,
    quoted,
)
from cogment_model_registry.records.versions import ModelInfo, VersionInfo, check_model_id
from cogment_model_registry.storage.filesystem import layout, reading
from cogment_model_registry.storage.filesystem.files import (
    Cause,
    Files,
    NotRegularError,
    cannot_be_linked,
    cannot_be_renamed,
    cause_of,
)
from cogment_model_registry.storage.filesystem.hold import Hold
from cogment_model_registry.storage.filesystem.model_files import (
    ModelFiles,
    close_quietly,
    is_marked,
    list_model,
    read_metadata,
)
from cogment_model_registry.storage.filesystem.recognition import check_format
from cogment_model_registry.storage.filesystem.removal import DoomedModel, Removals
from cogment_model_registry.storage.filesystem.touches import OwnTouches
from cogment_model_registry.storage.filesystem.writing import DurableWriter
from cogment_model_registry.storage.folder import FolderContents, KnownFolder

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A temporary file that is being written.

    Attributes:
        directory: Descriptor of the model's directory.
        file: Descriptor of the file.
        name: Its name, a temporary one until it is prepared.
        is_shared: Whether it is a second name of the data of a version.
        is_kept: Whether it is the data of a version now.
    """

    directory: int
    file: int
    name: str
    is_shared: bool = False
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class DoomedVersion:
    """A version that does not exist any more, and whose files are still there.

    Attributes:
        model_id: Its model.
        number: Its number.
        name: The temporary name of its metadata.
    """

    model_id: str
    number: int
    name: str


class ArchiveDirectory:
    """An archive directory, read and written by blocking calls.

    Errors about the layout are those of the package; errors of the system are `OSError`.

    Args:
        path: The directory; created if it does not exist.
        model_id_max_bytes: Directories with longer names are not models.
        files: The file operations.
        observe_sync: Called after each sync, with its kind (`file`, `directory`) and the seconds that it took.
        read_only: Whether to write nothing, not even a lock; the directory must exist then.
    """

    def __init__(
        self,
        path: str,
        model_id_max_bytes: int,
        files: Files,
        observe_sync: Callable[[str, float], None],
        *,
        read_only: bool = False,
    ) -> None:
        self._path = path
        self._model_id_max_bytes = model_id_max_bytes
        self.is_read_only = read_only
        self.files = files
        self.writer = DurableWriter(files, observe_sync)
        self._hold = Hold(path, files, read_only=read_only)
        self._removals = Removals(files, self.writer)
        self._left: list[DoomedVersion] = []
        self._sweeping = False
        self.touches = OwnTouches()

    @property
    def _root(self) -> int:
        return self._hold.root

    @property
    def failure(self) -> str:
        """Why nothing is written any more, or for now; empty while it is."""
        return self.writer.failure or self._hold.loss

    def open(self, *, sweep: bool = True) -> None:
        """Lock the directory for this process, and remove the leftovers of a crash unless `sweep` is false.

        A read-only archive is only opened: it is neither created nor locked, and nothing is removed.
        """
        try:
            self._hold.take()
            check_format(self.files, self._root, self._path)
            self.writer.failure = ""
            if sweep and not self.is_read_only:
                self.files.remove(self._root, layout.BACKUP_NAME)  # from here on it is no backup any more
                # Make the renames of a process that was killed durable before anything relies on them.
                self.writer.sync_directory(self._root)
                self._sweep()
        except OSError as error:
            self.close()
            advice = "; to serve it as it is, give --read_only" if sweep and error.errno == errno.EROFS else ""
            raise StartError(f"archive directory {self._path} cannot be used: {self._reason(error)}{advice}") from error
        except StartError:
            self.close()
            raise

    def _reason(self, error: OSError) -> str:
        """Return what went wrong while the directory was opened, and with which directory if it was one above it."""
        reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror or str(error)
        place = error.filename
        is_above = isinstance(place, str) and os.path.isabs(place) and place != os.path.abspath(self._path)
        return f"{reason}: {place}" if is_above else reason

    def _sweep(self) -> None:
        """Remove models that were on their way out; the first scan removes temporary files, and models with a mark."""
        for entry in self.files.list_directory(self._root):
            if layout.is_temporary(entry.name) and entry.is_directory:
                self._removals.finish(self._root, DoomedModel(entry.name))
        self._sweeping = True

    def check(self) -> None:
        """Notice if the directory or its lock are not where they were opened, or are there again; see `failure`."""
        self._hold.check()

    def close(self) -> None:
        """Release the directory."""
        self._hold.release()
        self.writer.close()
        self._removals.forget()
        self._left.clear()

    def close_file(self, descriptor: int) -> None:
        """Close a descriptor, ignoring errors."""
        close_quietly(self.files, descriptor)

    def list_names(self) -> list[str]:
        """Return the names of directories that may be models, sorted."""
        self._hold.check()
        if self._hold.loss:  # nobody knows what is at the path now
            raise UnavailableError(f"the archive cannot be read again: {self._hold.loss}")
        self._remove_what_was_left()
        return sorted(entry.name for entry in self.files.list_directory(self._root) if entry.is_directory)

    def scan(self, names: Sequence[str], known: Mapping[str, KnownFolder]) -> list[FolderContents]:
        """Return those of the directories that are models."""
        return [contents for name in names if (contents := self.scan_model(name, known.get(name, KnownFolder())))]

    def end_sweep(self) -> None:
        """Let temporary files stay from now on: those that a crash left were removed by the first scan."""
        self._sweeping = False

    def scan_model(self, model_id: str, known: KnownFolder) -> FolderContents | None:
        """Return the contents of a model's directory; None when it is not one of a model, or cannot be read."""
        try:
            check_model_id(model_id, self._model_id_max_bytes)
            return self._scan_model(model_id, known)
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

    def _scan_model(self, model_id: str, known: KnownFolder) -> FolderContents | None:
        with self._directory(model_id) as directory:
            stamp = reading.stamp(self.files, directory)
            if known.is_complete and known.stamp == stamp:
                return reading.known_contents(self.files, directory, model_id, known)
            found = list_model(self.files, directory, model_id)
            if self._sweeping and not found.is_deleted:
                for name in found.temporary:
                    self._remove_temporary(directory, model_id, name, found)
            if found.is_model:
                return reading.read_contents(self.files, directory, model_id, found, stamp=stamp, known=known)
        if self._sweeping and found.is_deleted:
            self._removals.finish(self._root, DoomedModel(model_id, is_marked=True))
        return None

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
        self._removals.finish_marked(self._root, info.model_id)
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
        self._refuse_other_case(directory, name, old, info.model_id)
        try:
            self.writer.write(directory, name, layout.format_model(info))
        except OSError:
            if old and self.writer.failure:  # only a sync may have failed after the rename
                self.writer.restore(directory, name, old)
            raise

    def _refuse_other_case(self, directory: int, name: str, text: bytes, model_id: str) -> None:
        """Refuse to overwrite a model whose id differs in case only, where the file system takes both for one name."""
        other_id = layout.model_id_in(text)
        if other_id == model_id or other_id.casefold() != model_id.casefold():
            return
        if all(entry.name != name for entry in self.files.list_directory(directory)):
            message = (
                f"model {quoted(model_id)} cannot be created: model {quoted(other_id)} exists, and the file system of "
                "the archive does not distinguish upper and lower case"
            )
            raise InvalidError(message, model_id=model_id)

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
        except BaseException as error:
            self._removals.finish(self._root, DoomedModel(temporary))
            if isinstance(error, OSError) and cannot_be_renamed(error):
                self._create_model_in_place(info)
                return
            raise
        try:
            self.writer.sync_directory(self._root)
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.rename(self._root, info.model_id, temporary)
                self._removals.finish(self._root, DoomedModel(temporary))
            raise

    def _create_model_in_place(self, info: ModelInfo) -> None:
        """Make the directory of a model under its own name; until it has metadata, it is no model."""
        self.files.make_directory(self._root, info.model_id)
        try:
            self.writer.sync_directory(self._root)
            with self._directory(info.model_id) as directory:
                name = layout.model_file_name(info.model_id)
                try:
                    self.writer.write(directory, name, layout.format_model(info))
                except BaseException:
                    self.writer.remove(directory, name)
                    raise
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.remove_directory(self._root, info.model_id)
            raise

    def begin_removal(self, model_id: str) -> DoomedModel:
        """Take the model out of the archive, durably and atomically."""
        self._require_writable()
        return self._removals.begin(self._root, model_id)

    def finish_removal(self, doomed: DoomedModel) -> None:
        """Remove, file by file, a model that was taken out of the archive."""
        self._removals.finish(self._root, doomed)

    def finish_marked_removal(self, model_id: str) -> None:
        """Remove the files of a model that has the mark of a deleted one; nothing if it does not have it."""
        self._require_writable()
        self._removals.finish_marked(self._root, model_id)

    def write_high_water_mark(self, model_id: str, number: int) -> None:
        """Persist the number up to which no number may be given again."""
        self._require_writable()
        try:
            with self._directory(model_id) as directory:
                self.writer.write(directory, layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(number))
        except FileNotFoundError:
            raise NotFoundError.model(model_id) from None

    def prepare(self, new: NewFile, info: VersionInfo) -> NewFile:
        """Give a synced temporary file its name as the data of a version, which does not exist yet; return it."""
        self._require_writable()
        if is_marked(self.files, new.directory):
            raise NotFoundError.model(info.model_id)
        data_name = layout.data_file_name(info.model_id, info.number)
        self._require_absent(new.directory, data_name, layout.version_file_name(info.model_id, info.number))
        try:
            with self._touching(new):
                self.files.rename(new.directory, new.name, data_name)
            self.writer.sync_directory(new.directory)
        except FileNotFoundError:
            raise NotFoundError.model(info.model_id) from None  # removed, with the upload's temporary file
        except BaseException:
            self.writer.remove(new.directory, data_name)
            raise
        return replace(new, name=data_name)

    def commit(self, new: NewFile, info: VersionInfo) -> NewFile:
        """Write the metadata of a version, after its data has its name; return the file."""
        data_name = layout.data_file_name(info.model_id, info.number)
        version_name = layout.version_file_name(info.model_id, info.number)
        if new.name != data_name:
            new = self.prepare(new, info)
        elif is_marked(self.files, new.directory):
            raise NotFoundError.model(info.model_id)
        try:
            self._require_writable()
            self.writer.write(new.directory, version_name, layout.format_version(info))
        except FileNotFoundError:
            raise NotFoundError.model(info.model_id) from None
        except BaseException:
            for name in (version_name, data_name):
                self.writer.remove(new.directory, name)
            raise
        return replace(new, is_kept=True)

    def remove_version(self, model_id: str, number: int) -> None:
        """Remove a version, durably: first its metadata, under a temporary name until its data is gone too.

        If the process ends before the data is gone, the temporary name still leads to it: see `_remove_temporary`. What
        cannot be removed is removed before the next write.
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
                self._finish_version(directory, DoomedVersion(model_id, number, doomed))
        except FileNotFoundError:
            return

    def _finish_version(self, directory: int, doomed: DoomedVersion) -> None:
        """Remove the files of a version that does not exist any more; try again before the next write if that fails."""
        try:
            # A later model of the same id may have a version of this number, but not this temporary file.
            self.files.status_of(directory, doomed.name)
            self._remove_data(directory, layout.data_file_name(doomed.model_id, doomed.number))
            self.files.remove(directory, doomed.name)
        except FileNotFoundError:
            return
        except OSError as error:
            self._left.append(doomed)
            _log.warning(
                "removal of a deleted version postponed",
                model_id=doomed.model_id,
                number=doomed.number,
                reason=error.strerror,
            )

    def _finish_left_versions(self) -> None:
        left, self._left = self._left, []
        for doomed in left:
            try:
                with self._directory(doomed.model_id) as directory:
                    self._finish_version(directory, doomed)
            except FileNotFoundError:
                pass  # it went with its model
            except OSError:
                self._left.append(doomed)

    def _remove_data(self, directory: int, name: str) -> None:
        """Remove the data of a version, durably: what leads to it must not be lost before."""
        with contextlib.suppress(FileNotFoundError):
            if self.files.status_of(directory, name).st_nlink > 1:
                self._remove_shared(directory, name)
            else:
                self.files.remove(directory, name)
            self.writer.sync_directory(directory)

    def _remove_shared(self, directory: int, name: str) -> None:
        """Remove a name of a file that another version may have too, whose readers go on."""
        file = self.files.open_to_read(directory, name)
        try:
            with self.touches.touching(self.files, file):
                self.files.remove(directory, name)
        finally:
            self.close_file(file)

    def _touching(self, new: NewFile) -> contextlib.AbstractContextManager[None]:
        """Return the context manager for an operation on the name of a file that may be that of a version too."""
        return self.touches.touching(self.files, new.file) if new.is_shared else contextlib.nullcontext()

    def _remove_temporary(self, directory: int, model_id: str, name: str, found: ModelFiles) -> None:
        """Remove a temporary file that a crash left, and the data of the version that it describes, if it does.

        Metadata under a temporary name is that of a version that was not stored to the end, or not removed to the end.
        Either way the version does not exist, and its data must not stay.
        """
        with contextlib.suppress(layout.BadMetadata, NotRegularError):
            number = layout.parse_version_number(read_metadata(self.files, directory, name), model_id)
            if number not in found.metadata:
                # The process that began this may have been killed before its syncs: a power cut could bring back the
                # metadata without the data, or the data without anything that leads to it.
                self.writer.sync_directory(directory)
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
        self._finish_left_versions()
        self._removals.retry(self._root)

    def _require_writable(self) -> None:
        """Refuse to write where nothing may be written, or might reach the wrong directory."""
        if self.is_read_only:
            raise PreconditionError("the archive is open for reading only")
        self.writer.require_writable()
        self._hold.check()
        if self._hold.loss:
            raise UnavailableError(f"the archive takes no writes: {self._hold.loss}")
        self._remove_what_was_left()

    def create_upload(self, model_id: str, size_bytes: int, promised_bytes: int) -> NewFile:
        """Return a new temporary file for `size_bytes` bytes, while others are promised `promised_bytes` bytes."""
        self._require_writable()
        available = max(self.files.free_bytes(self._root) - promised_bytes, 0)
        if size_bytes > available:
            free = counted(available, "byte")
            message = f"an archived version of {counted(size_bytes, 'byte')} does not fit the free space of {free}"
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

    def share_data(self, info: VersionInfo) -> NewFile | None:
        """Return the data of a version under a second, temporary name; None where a file can have only one."""
        self._require_writable()
        try:
            directory = self.files.open_directory(self._root, info.model_id)
        except FileNotFoundError:
            raise NotFoundError.version(info.model_id, info.number) from None
        try:
            file = reading.open_data(self.files, directory, info)
        except FileNotFoundError:
            self.close_file(directory)
            raise NotFoundError.version(info.model_id, info.number) from None
        except BaseException:
            self.close_file(directory)
            raise
        new = NewFile(directory, file, layout.temporary_name(), is_shared=True)
        try:
            with self._touching(new):
                self.files.link(directory, layout.data_file_name(info.model_id, info.number), new.name)
        except BaseException as error:
            self.discard_upload(new)
            if isinstance(error, OSError) and cannot_be_linked(error):
                return None
            if isinstance(error, FileNotFoundError):
                raise NotFoundError.version(info.model_id, info.number) from None
            raise
        return new

    def discard_upload(self, new: NewFile) -> None:
        """Close the file of an upload, and remove it unless it was committed."""
        if not new.is_kept:
            self._remove_new(new)
        self.close_file(new.file)
        self.close_file(new.directory)

    def _remove_new(self, new: NewFile) -> None:
        try:
            with self._touching(new):
                self.writer.remove(new.directory, new.name)
        except OSError:  # its status is not available
            self.writer.remove(new.directory, new.name)

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
