"""The import of a model into an archive directory from a tar file; see `export_format`.

The model is written under a temporary name, synced, and renamed to its own name last, so it is imported whole or not at
all. Only an exact export is accepted: each header is rebuilt and compared, which excludes links, devices, paths and
attributes.

A server may run on the directory. A server that *starts* during the import removes everything with a temporary name, so
the owner of the archive is checked before and after the rename, and a change ends the import.
"""

import contextlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeAlias

from cogment_model_registry.errors import InvalidError, UnavailableError, counted, quoted
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo, check_model_id
from cogment_model_registry.storage.filesystem import export_format, layout
from cogment_model_registry.storage.filesystem.files import Files, cannot_be_renamed
from cogment_model_registry.storage.filesystem.model_files import BLOCK_BYTES, MODEL_ID_MAX_BYTES, is_marked

_LONG_NAME_MAX_BYTES = 1024
_LEFT_OUT_MAX_BYTES = layout.METADATA_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import.

    Attributes:
        model_id: The model, by its new name.
        versions: How many versions it has.
        data_bytes: How many bytes they have.
        left_out: The numbers of versions that the export had left out.
        numbers: The numbers of the versions.
        annotations: What the files do not have, as the export has it, unchecked; None for nothing.
    """

    model_id: str
    versions: int
    data_bytes: int
    left_out: list[int]
    numbers: frozenset[int] = frozenset()
    annotations: export_format.Annotations | None = None


Annotate: TypeAlias = Callable[[Imported, Callable[[], int]], contextlib.AbstractContextManager[None]]
"""Keeps what the files do not have; gets a function that opens the directory of the model under its temporary name."""


@dataclass(frozen=True, slots=True)
class _Member:
    """The header of a file in the tar file."""

    name: str
    size_bytes: int
    mtime_seconds: int


def import_model(
    files: Files,
    root: int,
    stream: BinaryIO,
    *,
    model_id: str = "",
    annotate: Annotate = lambda _imported, _directory: contextlib.nullcontext(),
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
    source = _Source(stream, advance)
    temporary = layout.temporary_name()
    files.make_directory(root, temporary)
    try:
        directory = files.open_directory(root, temporary)
        try:
            target = _Target(files, directory)
            imported = _Import(source, target, lambda name: _require_absent(files, root, name)).run(model_id)
            target.finish()
        finally:
            files.close(directory)
        with annotate(imported, lambda: files.open_directory(root, temporary)):
            _give_name(files, root, temporary, imported.model_id, check_holder)
    except BaseException:
        files.remove_tree(root, temporary, lambda _error: None)
        raise
    return imported


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
        raise _exists(model_id)


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


def _exists(model_id: str) -> InvalidError:
    return InvalidError(f"model {quoted(model_id)} exists already", model_id=model_id)


def _swept() -> UnavailableError:
    return UnavailableError("the imported files were removed, perhaps by a server that started: import the model again")


def _bad(message: str) -> InvalidError:
    return InvalidError(f"this is not a complete export of a model: {message}")


class _Target:
    """The directory that is written."""

    def __init__(self, files: Files, directory: int) -> None:
        self._files = files
        self._directory = directory
        self._names: set[str] = set()

    def write(self, name: str, text: bytes) -> None:
        """Write a file whole."""
        with self.created(name) as write:
            write(text)

    @contextlib.contextmanager
    def created(self, name: str) -> Iterator[Callable[[bytes], None]]:
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
        """Make the names durable, and check that all of them exist."""
        self._files.sync_directory(self._directory)
        if {entry.name for entry in self._files.list_directory(self._directory)} != self._names:
            raise _swept()


class _Source:
    """The tar file, block by block."""

    def __init__(self, stream: BinaryIO, advance: Callable[[int], None]) -> None:
        self._stream = stream
        self._advance = advance
        self._offset = 0

    def read(self, size_bytes: int) -> bytes:
        """Return exactly so many bytes; not more than fit into memory."""
        data = self._stream.read(size_bytes)
        if len(data) < size_bytes:
            raise _bad(f"it ends after {counted(self._offset + len(data), 'byte')}")
        self._offset += size_bytes
        self._advance(size_bytes)
        return data

    def next_member(self) -> _Member:
        """Return the next header, which is exactly as an export writes it."""
        raw = self.read(export_format.BLOCK_BYTES)
        info = _parsed(raw)
        name = info.name
        if info.type == tarfile.GNUTYPE_LONGNAME:
            if not 1 <= info.size <= _LONG_NAME_MAX_BYTES:
                raise _bad("a name in it is too long")
            text = self.read(info.size + len(export_format.padding(info.size)))
            block = self.read(export_format.BLOCK_BYTES)
            raw += text + block
            info = _parsed(block)
            name = text.rstrip(b"\0").decode("utf-8", "replace")
        member = _Member(name, info.size, int(info.mtime))
        if info.size < 0 or info.mtime < 0 or raw != export_format.header(name, info.size, int(info.mtime)):
            raise _bad(f"the header of {quoted(name)} is not one of a plain file")
        return member

    def blocks(self, member: _Member) -> Iterator[bytes]:
        """Yield the bytes of a file, whose header came last."""
        missing_bytes = member.size_bytes
        while missing_bytes:
            block = self.read(min(BLOCK_BYTES, missing_bytes))
            missing_bytes -= len(block)
            yield block
        padding = export_format.padding(member.size_bytes)
        if self.read(len(padding)) != padding:
            raise _bad("it has data between its files")

    def text(self, member: _Member, max_bytes: int) -> bytes:
        """Return the bytes of a file that must not be large."""
        if member.size_bytes > max_bytes:
            raise _bad(f"{quoted(member.name)} has {member.size_bytes} bytes; at most {max_bytes} are allowed")
        return b"".join(self.blocks(member))

    def finish(self) -> None:
        """Check that the tar file ends here."""
        ending = export_format.ending(self._offset)
        if self.read(len(ending)) != ending or self._stream.read(1):
            raise _bad("it has data after its end")


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, ValueError, OverflowError):
        raise _bad("a header in it is damaged, or it is not a tar file") from None


class _Import:
    """One import: the files come in exactly one order."""

    def __init__(self, source: _Source, target: _Target, require_absent: Callable[[str], None]) -> None:
        self._source = source
        self._target = target
        self._require_absent = require_absent
        self._old_id = ""
        self._new_id = ""
        self._mark = 0
        self._numbers: set[int] = set()
        self._data_bytes = 0

    def run(self, new_id: str) -> Imported:
        first = self._source.next_member()
        self._old_id = first.name.partition("/")[0]
        if first.name != f"{self._old_id}/{layout.HIGH_WATER_MARK_NAME}":
            raise _bad(f"it begins with {quoted(first.name)}")
        try:
            check_model_id(self._old_id, MODEL_ID_MAX_BYTES)
        except InvalidError as error:
            raise _bad(error.message) from None
        self._new_id = new_id or self._old_id
        self._require_absent(self._new_id)
        manifest = self._take_model(first)
        last_number = 0
        while (member := self._source.next_member()).name != f"{self._old_id}/{layout.MANIFEST_NAME}":
            last_number = self._take_version(member, last_number, manifest)
        left_out, annotations = self._take_manifest(member, manifest)
        self._source.finish()
        numbers = frozenset(self._numbers)
        return Imported(self._new_id, len(numbers), self._data_bytes, left_out, numbers, annotations)

    def _take_model(self, first: _Member) -> export_format.Manifest:
        """Take the high-water mark and the metadata of the model."""
        mark_text = self._source.text(first, layout.METADATA_MAX_BYTES)
        with _reporting_bad_metadata(first):
            self._mark = layout.parse_high_water_mark(mark_text)
        if mark_text != layout.format_high_water_mark(self._mark):
            raise _bad("its high-water mark is not in the form that an export writes")
        member = self._next(layout.model_file_name(self._old_id))
        text = self._source.text(member, layout.METADATA_MAX_BYTES)
        with _reporting_bad_metadata(member):
            info = layout.parse_model(text, self._old_id)
        if self._new_id != self._old_id:
            new_text = layout.format_model(ModelInfo(self._new_id, info.user_data))
        else:
            new_text = text
        self._target.write(layout.HIGH_WATER_MARK_NAME, mark_text)
        self._target.write(layout.model_file_name(self._new_id), new_text)
        return export_format.Manifest(self._old_id, self._mark, text)

    def _take_version(self, member: _Member, last_number: int, manifest: export_format.Manifest) -> int:
        """Take the data of a version and the metadata that follows it; return the number."""
        directory, _, name = member.name.partition("/")
        version = layout.parse_file_name(self._old_id, name)
        if directory != self._old_id or not version or version[1] != "data":
            raise _bad(f"{quoted(member.name)} is out of place")
        number = version[0]
        if not last_number < number <= self._mark:
            raise _bad(f"version {number} is out of order, or above the high-water mark")
        payload_hash = PayloadHash()
        with self._target.created(layout.data_file_name(self._new_id, number)) as write:
            for block in self._source.blocks(member):
                payload_hash.update([block])
                write(block)
        info = self._take_metadata(number, manifest)
        if (info.data_size_bytes, info.data_hash) != (member.size_bytes, payload_hash.digest_text()):
            raise _bad(f"the data of version {number} does not match its metadata")
        if member.mtime_seconds != export_format.mtime_seconds(info):
            raise _bad(f"the data of version {number} has a different time from its metadata")
        self._numbers.add(number)
        self._data_bytes += member.size_bytes
        return number

    def _take_metadata(self, number: int, manifest: export_format.Manifest) -> VersionInfo:
        member = self._next(layout.version_file_name(self._old_id, number))
        text = self._source.text(member, layout.METADATA_MAX_BYTES)
        with _reporting_bad_metadata(member):
            info = layout.parse_version(text, self._old_id, number)
        manifest.add(info, text)
        if self._new_id != self._old_id:
            text = layout.format_version(replace(info, model_id=self._new_id))
        self._target.write(layout.version_file_name(self._new_id, number), text)
        return info

    def _next(self, name: str) -> _Member:
        member = self._source.next_member()
        if member.name != f"{self._old_id}/{name}":
            raise _bad(f"{quoted(member.name)} is where {quoted(name)} is expected")
        return member

    def _take_manifest(
        self, member: _Member, manifest: export_format.Manifest
    ) -> tuple[list[int], export_format.Annotations | None]:
        """Check the manifest against the received files; return what it says besides.

        Returns:
            The numbers of versions that were left out, and what the files do not have.
        """
        annotations_max_bytes = layout.METADATA_MAX_BYTES * (1 + len(self._numbers))
        text = self._source.text(member, len(manifest.text([])) + _LEFT_OUT_MAX_BYTES + annotations_max_bytes)
        try:
            fields = json.loads(text)
            left_out, export, annotations = fields["left_out"], fields["format"], fields.get("annotations")
            if isinstance(export, str) and export not in export_format.FORMATS:
                message = f"this is an export in another format, {quoted(export)}: import it with a newer version"
                raise InvalidError(message)
            is_exact = _are_numbers(left_out) and manifest.text(left_out, annotations) == text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            is_exact = False
        if not is_exact or not isinstance(annotations, dict | None) or self._numbers & {*left_out}:
            raise _bad("its manifest does not match its files")
        return [*left_out], annotations


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(number, int) and 1 <= number <= VERSION_NUMBER_MAX for number in value
    )


@contextlib.contextmanager
def _reporting_bad_metadata(member: _Member) -> Iterator[None]:
    try:
        yield
    except layout.BadMetadata as error:
        raise _bad(f"{quoted(member.name)}: {error}") from None
