"""Reads of a model's directory, whatever it contains.

`list_model` and `read_metadata` serve the archive and the commands that need no server; the rest serves only the
commands. What is damaged raises `Damage`, with what a server would say of it; what a failing disk hides raises
`Unreadable`. What someone deletes during the reading raises `FileNotFoundError`, and is not damage.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cogment_model_registry.errors import InvalidError, counted
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import ModelInfo, VersionInfo, check_model_id
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Cause, Files, NotRegularError, cause_of
from cogment_model_registry.storage.filesystem.findings import Kind

BLOCK_BYTES = 2**20
"""The size of the blocks in which a version is read."""

MODEL_ID_MAX_BYTES = 255 - len("-v4294967295.yaml")
"""The longest id with valid file names; a server may allow less."""


def is_model_id(name: str) -> bool:
    """Return whether the name of a directory may be that of a model."""
    try:
        check_model_id(name, MODEL_ID_MAX_BYTES)
    except InvalidError:
        return False
    return True


class Fault(Exception):
    """A file is not what it must be, or it is not known whether it is.

    Args:
        kind: The kind of finding.
        name: The file.
        message: A sentence on it, without its name.
    """

    def __init__(self, kind: Kind, name: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name
        self.message = message


class Damage(Fault):
    """A file is not what it must be, and will be the same when it is read again."""


class Unreadable(Fault):
    """A file cannot be read because its disk or its file system fails; it may be intact."""


@dataclass(slots=True)
class ModelFiles:
    """The entries of a model's directory, by name.

    Attributes:
        has_model: Whether the name of the model's metadata exists.
        metadata: The numbers of versions whose metadata exists; the value says whether it is a regular file.
        data: Likewise of their data.
        temporary: Files that were being written.
        foreign: Names of entries that are not part of a model.
        is_deleted: Whether the mark of a deleted model exists.
    """

    has_model: bool = False
    is_deleted: bool = False
    metadata: dict[int, bool] = field(default_factory=dict)
    data: dict[int, bool] = field(default_factory=dict)
    temporary: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def is_model(self) -> bool:
        """Whether a server takes the directory for a model."""
        return not self.is_deleted and (self.has_model or bool(self.metadata))

    @property
    def last_number(self) -> int:
        """The highest number that any file names, 0 for none."""
        return max([0, *self.metadata, *self.data])


def list_model(files: Files, directory: int, model_id: str) -> ModelFiles:
    """Return the entries of a model's directory."""
    found = ModelFiles()
    by_ending = {"yaml": found.metadata, "data": found.data}
    for name, is_file, _ in files.list_directory(directory):
        version = layout.parse_file_name(model_id, name)
        if version:
            number, ending = version
            by_ending[ending][number] = is_file
        elif name == layout.model_file_name(model_id):
            found.has_model = True
        elif name == layout.DELETION_MARK_NAME:
            found.is_deleted = True
        elif layout.is_temporary(name) and is_file:
            found.temporary.append(name)
        elif name not in (layout.HIGH_WATER_MARK_NAME, layout.MANIFEST_NAME):
            found.foreign.append(name)
    return found


def data_size_bytes(files: Files, directory: int, model_id: str) -> int:
    """Return about how many bytes the versions of a model have, for a progress bar."""
    found = list_model(files, directory, model_id)
    total = 0
    for number in found.metadata.keys() & found.data.keys():
        with contextlib.suppress(FileNotFoundError):
            total += files.status_of(directory, layout.data_file_name(model_id, number)).st_size
    return total


def read_metadata(files: Files, directory: int, name: str) -> bytes:
    """Return the text of a metadata file.

    Raises:
        BadMetadata: It is too large to be one.
        OSError: It does not exist, is not a regular file, or cannot be read.
    """
    file = files.open_to_read(directory, name)
    try:
        text = files.read(file, layout.METADATA_MAX_BYTES + 1)
    finally:
        close_quietly(files, file)
    if len(text) > layout.METADATA_MAX_BYTES:
        raise layout.BadMetadata("its metadata is too large")
    return text


def close_quietly(files: Files, descriptor: int) -> None:
    """Close a descriptor. Durable files were synced before, so an error is of no importance."""
    with contextlib.suppress(OSError):
        files.close(descriptor)


def is_marked(files: Files, directory: int) -> bool:
    """Return whether a model was deleted, and its directory could not be renamed."""
    try:
        files.status_of(directory, layout.DELETION_MARK_NAME)
    except FileNotFoundError:
        return False
    return True


def is_still(files: Files, root: int, directory: int, model_id: str) -> bool:
    """Return whether the open directory is still that of a model: a deletion first takes its name, or marks it."""
    if is_marked(files, directory):
        return False
    try:
        named = files.status_of(root, model_id)
    except FileNotFoundError:
        return False
    opened = files.status(directory)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def read_model(files: Files, directory: int, model_id: str) -> tuple[ModelInfo, bytes]:
    """Return a model and the text of its metadata.

    Raises:
        Fault: Its metadata is damaged, or cannot be read.
        FileNotFoundError: It does not exist.
    """
    name = layout.model_file_name(model_id)
    with _translated(name, Kind.MODEL_METADATA_DAMAGED, Kind.MODEL_METADATA_NOT_A_FILE):
        text = read_metadata(files, directory, name)
        return layout.parse_model(text, model_id), text


def read_version(files: Files, directory: int, model_id: str, number: int) -> tuple[VersionInfo, bytes]:
    """Return a version and the text of its metadata.

    Raises:
        Fault: Its metadata is damaged, or cannot be read.
        FileNotFoundError: It does not exist.
    """
    name = layout.version_file_name(model_id, number)
    with _translated(name, Kind.VERSION_METADATA_DAMAGED, Kind.VERSION_METADATA_NOT_A_FILE):
        text = read_metadata(files, directory, name)
        return layout.parse_version(text, model_id, number), text


def read_high_water_mark(files: Files, directory: int) -> int:
    """Return the number up to which no number may be given again.

    Raises:
        Fault: The mark is damaged, or cannot be read.
        FileNotFoundError: It does not exist.
    """
    name = layout.HIGH_WATER_MARK_NAME
    with _translated(name, Kind.HIGH_WATER_MARK_DAMAGED, Kind.HIGH_WATER_MARK_NOT_A_FILE):
        return layout.parse_high_water_mark(read_metadata(files, directory, name))


@contextlib.contextmanager
def opened_data(files: Files, directory: int, info: VersionInfo) -> Iterator[int]:
    """Return a context manager with a descriptor of the data of a version, whose size is as declared.

    Raises:
        Fault: It has another size, is missing, or cannot be read.
        FileNotFoundError: The version was deleted.
    """
    name = layout.data_file_name(info.model_id, info.number)
    try:
        with _translated(name, Kind.DATA_NOT_A_FILE, Kind.DATA_NOT_A_FILE):
            file = files.open_to_read(directory, name)
    except FileNotFoundError:
        # A version goes with its metadata first; while that exists, the data has to.
        files.status_of(directory, layout.version_file_name(info.model_id, info.number))
        raise Damage(Kind.DATA_MISSING, name, "it is missing") from None
    try:
        size_bytes = files.status(file).st_size
        if size_bytes != info.data_size_bytes:
            message = f"it has {counted(size_bytes, 'byte')} instead of {info.data_size_bytes}"
            raise Damage(Kind.DATA_WRONG_SIZE, name, message)
        yield file
    finally:
        files.close(file)


def data_blocks(files: Files, file: int, info: VersionInfo) -> Iterator[bytes]:
    """Yield the data of a version in blocks; at its end all of it was checked against its hash.

    Raises:
        Fault: It is not what was stored, or cannot be read.
    """
    name = layout.data_file_name(info.model_id, info.number)
    payload_hash = PayloadHash()
    missing_bytes = info.data_size_bytes
    while missing_bytes:
        with _translated(name, Kind.DATA_NOT_A_FILE, Kind.DATA_NOT_A_FILE):
            block = files.read(file, min(BLOCK_BYTES, missing_bytes))
        if not block:
            raise Damage(Kind.DATA_WRONG_SIZE, name, "it was truncated while it was read")
        payload_hash.update([block])
        missing_bytes -= len(block)
        yield block
    if payload_hash.digest_text() != info.data_hash:
        raise Damage(Kind.DATA_WRONG_HASH, name, "its bytes do not match their hash")


def unreadable(name: str, error: OSError) -> Fault:
    """Return the fault that an error of the system means.

    Raises:
        OSError: The process is short of a resource, so no other file can be read either.
    """
    cause = cause_of(error)
    if cause is Cause.PROCESS:
        raise error
    kind = Damage if cause is Cause.FILE else Unreadable
    return kind(Kind.UNREADABLE, name, f"it cannot be read: {error.strerror}")


@contextlib.contextmanager
def _translated(name: str, damaged: Kind, not_a_file: Kind) -> Iterator[None]:
    """Translate errors of reading a file into a `Fault`, except for its absence."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotRegularError:
        raise Damage(not_a_file, name, "it is not a regular file") from None
    except layout.BadMetadata as error:
        raise Damage(damaged, name, str(error)) from None
    except OSError as error:
        raise unreadable(name, error) from None
