"""Reading a model's directory by blocking calls: what is believed, and what is damage.

Errors are `OSError` where the system fails, and so says nothing about a file; damage is an answer.
"""

import contextlib
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from cogment_model_registry.errors import DataLossError, counted
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Cause, Files, NotRegularError, cause_of
from cogment_model_registry.storage.filesystem.model_files import ModelFiles, read_metadata
from cogment_model_registry.storage.folder import FolderContents, FolderStamp, KnownFolder

_log = structlog.stdlib.get_logger(__name__)

_SETTLING_NS = 50 * 10**6

FOLDER_SETTLING_NS = 2 * 10**9
"""How old the last change of a directory must be for its time to tell it from the next one: some file systems keep
whole seconds, or two."""


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


def stamp(files: Files, directory: int) -> FolderStamp:
    """Return the state of a model's directory."""
    status = files.status(directory)
    if time.time_ns() - status.st_ctime_ns > FOLDER_SETTLING_NS:
        return FolderStamp(status.st_ino, status.st_ctime_ns)
    return FolderStamp(status.st_ino, status.st_ctime_ns - FOLDER_SETTLING_NS, is_settled=False)


def known_contents(files: Files, directory: int, model_id: str, known: KnownFolder) -> FolderContents:
    """Return the contents of a model whose names are as they are known; the model's own files may have changed."""
    return FolderContents(
        info=_read_model(files, directory, model_id),
        version_numbers=[*known.size_bytes],
        size_bytes=dict(known.size_bytes),
        last_number=max(known.size_bytes, default=0),
        high_water_mark=_read_high_water_mark(files, directory, model_id),
        stamp=known.stamp,
        is_plain=True,
        is_as_known=True,
    )


def read_contents(
    files: Files, directory: int, model_id: str, found: ModelFiles, *, stamp: FolderStamp, known: KnownFolder
) -> FolderContents:
    """Return the contents of a model, as far as names and the model's own files show.

    Args:
        files: The file operations.
        directory: Descriptor of the model's directory.
        model_id: The model.
        found: The names in the directory.
        stamp: The state of the directory before its names were read.
        known: What is known of its versions.
    """
    damaged = dict(_damage_by_names(found))
    numbers = sorted(found.metadata.keys() - damaged.keys())
    changed = [number for number in numbers if _is_changed(files, directory, model_id, number, known)]
    sizes_bytes = {number: known.size_bytes.get(number, 0) for number in numbers}
    sizes_bytes.update(_data_sizes_bytes(files, directory, model_id, changed))
    return FolderContents(
        info=_read_model(files, directory, model_id),
        version_numbers=numbers,
        size_bytes=sizes_bytes,
        damaged=damaged,
        last_number=found.last_number,
        high_water_mark=_read_high_water_mark(files, directory, model_id),
        stamp=stamp,
        changed=changed,
        is_plain=not damaged and found.metadata.keys() == found.data.keys(),
    )


def _is_changed(files: Files, directory: int, model_id: str, number: int, known: KnownFolder) -> bool:
    """Return whether a version is not known, or its metadata was written since."""
    if known.stamp is None or number not in known.size_bytes:
        return True
    try:
        status = files.status_of(directory, layout.version_file_name(model_id, number))
    except FileNotFoundError:
        return True
    return status.st_ctime_ns >= known.stamp.changed_ns


def _data_sizes_bytes(files: Files, directory: int, model_id: str, numbers: Sequence[int]) -> dict[int, int]:
    sizes_bytes = dict.fromkeys(numbers, 0)
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):
            sizes_bytes[number] = files.status_of(directory, layout.data_file_name(model_id, number)).st_size
    return sizes_bytes


def _read_model(files: Files, directory: int, model_id: str) -> ModelInfo:
    """Return a model; without `user_data` when its metadata is damaged, so that its versions stay available."""
    try:
        return layout.parse_model(read_metadata(files, directory, layout.model_file_name(model_id)), model_id)
    except FileNotFoundError:
        reason = "it is missing"
    except (layout.BadMetadata, OSError) as error:
        reason = damage_of(error)
    _log.error("model loaded without user_data: its metadata is damaged", model_id=model_id, reason=reason)
    return ModelInfo(model_id)


def _read_high_water_mark(files: Files, directory: int, model_id: str) -> int:
    try:
        return layout.parse_high_water_mark(read_metadata(files, directory, layout.HIGH_WATER_MARK_NAME))
    except FileNotFoundError:
        return 0
    except (layout.BadMetadata, OSError) as error:
        reason = damage_of(error)
        _log.error(
            "model loaded without its damaged high-water mark: numbers of lost transient versions may be reused",
            model_id=model_id,
            reason=reason,
        )
        return 0


def read_version(files: Files, directory: int, model_id: str, number: int) -> VersionInfo | DataLossError | None:
    """Return a version; the error if it is damaged, None if it does not exist."""
    try:
        text = read_metadata(files, directory, layout.version_file_name(model_id, number))
        info = layout.parse_version(text, model_id, number)
    except FileNotFoundError:
        return None
    except (layout.BadMetadata, OSError) as error:
        return DataLossError.version(model_id, number, damage_of(error))
    problem = data_problem(files, directory, info)
    return DataLossError.version(model_id, number, problem) if problem else info


def data_problem(files: Files, directory: int, info: VersionInfo) -> str:
    """Return what is wrong with the data file of a version, as far as its status shows."""
    try:
        status = files.status_of(directory, layout.data_file_name(info.model_id, info.number))
    except FileNotFoundError:
        return "its data is missing"
    if not stat.S_ISREG(status.st_mode):
        return "its data is not a regular file"
    if status.st_size != info.data_size_bytes:
        return f"its data has {counted(status.st_size, 'byte')} instead of {info.data_size_bytes}"
    return ""


def open_data(files: Files, directory: int, info: VersionInfo) -> int:
    """Return a descriptor of the data of a version.

    Raises:
        DataLossError: The data is missing or damaged.
        FileNotFoundError: The version does not exist.
    """
    problem = data_problem(files, directory, info)
    if problem:
        # Without metadata it is not a version any more, and nothing is damaged.
        files.status_of(directory, layout.version_file_name(info.model_id, info.number))
        raise DataLossError.version(info.model_id, info.number, problem)
    try:
        return files.open_to_read(directory, layout.data_file_name(info.model_id, info.number))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataLossError.version(info.model_id, info.number, f"its data: {damage_of(error)}") from None


def fingerprint(files: Files, file: int) -> Fingerprint:
    """Return the fingerprint of an open file."""
    status = files.status(file)
    return Fingerprint(
        status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink, time.time_ns()
    )


def _damage_by_names(found: ModelFiles) -> Iterator[tuple[int, str]]:
    """Yield what is wrong with versions, as far as the kinds of their files show."""
    for number, is_file in found.metadata.items():
        if not is_file:
            yield number, "its metadata is not a regular file"
        elif number not in found.data:
            yield number, "its data is missing"
        elif not found.data[number]:
            yield number, "its data is not a regular file"


def damage_of(error: layout.BadMetadata | OSError) -> str:
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
