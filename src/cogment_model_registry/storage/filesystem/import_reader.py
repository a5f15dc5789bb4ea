"""Reading a model from one tar file, wherever the model goes; see `export_format`.

Only an exact export is accepted: each header is rebuilt and compared, which excludes links, devices, paths and
attributes.
"""

import contextlib
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeAlias

from cogment_model_registry.errors import InvalidError, counted, quoted
from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, ModelInfo, VersionInfo, check_model_id
from cogment_model_registry.storage.filesystem import export_format, layout
from cogment_model_registry.storage.filesystem.model_files import BLOCK_BYTES, MODEL_ID_MAX_BYTES

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


Annotate: TypeAlias = Callable[
    [Imported, Callable[[Iterable[int]], Iterable[VersionInfo]]], contextlib.AbstractContextManager[None]
]
"""Keeps what the files do not have; gets a function that returns imported versions by their numbers."""


def no_annotations(
    _imported: Imported, _read: Callable[[Iterable[int]], Iterable[VersionInfo]]
) -> contextlib.AbstractContextManager[None]:
    """Keep nothing."""
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class _Member:
    """The header of a file in the tar file."""

    name: str
    size_bytes: int
    mtime_seconds: int


class ImportTarget(ABC):
    """Where an imported model goes. What it got is no model before the import gives it its name."""

    @abstractmethod
    def require_absent(self, model_id: str) -> None:
        """Check that there is no model of a name.

        Raises:
            InvalidError: There is one.
        """

    @abstractmethod
    def put_model(self, info: ModelInfo, text: bytes, mark: int) -> None:
        """Take the model, first.

        Args:
            info: The model.
            text: Its metadata, as an archive directory has them.
            mark: The number up to which none may be given again.
        """

    @abstractmethod
    def created_data(
        self, model_id: str, number: int, size_bytes: int
    ) -> contextlib.AbstractContextManager[Callable[[bytes], None]]:
        """Return a context manager with a function that takes the next data of a version."""

    @abstractmethod
    def put_version(self, info: VersionInfo, text: bytes) -> None:
        """Take a version whose data came last, and is what its metadata says.

        Args:
            info: The version.
            text: Its metadata, as an archive directory has them.
        """

    @abstractmethod
    def finish(self) -> None:
        """Make all of it durable."""


def exists(model_id: str) -> InvalidError:
    """Return the error of a model that is there already."""
    return InvalidError(f"model {quoted(model_id)} exists already", model_id=model_id)


def read_export(stream: BinaryIO, target: ImportTarget, advance: Callable[[int], None], model_id: str = "") -> Imported:
    """Read a model from a tar file.

    Args:
        stream: The tar file.
        target: Where it goes.
        advance: Called with the bytes that were read from the stream.
        model_id: Its new name, an id that obeys the rules; empty for the one that it has.

    Raises:
        InvalidError: It is not a complete export, or a model of this name exists.
        OSError: The stream cannot be read.
    """
    imported = _Import(_Source(stream, advance), target).run(model_id)
    target.finish()
    return imported


def _bad(message: str) -> InvalidError:
    return InvalidError(f"this is not a complete export of a model: {message}")


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

    def __init__(self, source: _Source, target: ImportTarget) -> None:
        self._source = source
        self._target = target
        self._old_id = ""
        self._new_id = ""
        self._mark = 0
        self._numbers: set[int] = set()
        self._data_bytes = 0

    def run(self, new_id: str) -> Imported:
        """Read everything."""
        first = self._source.next_member()
        self._old_id = first.name.partition("/")[0]
        if first.name != f"{self._old_id}/{layout.HIGH_WATER_MARK_NAME}":
            raise _bad(f"it begins with {quoted(first.name)}")
        try:
            check_model_id(self._old_id, MODEL_ID_MAX_BYTES)
        except InvalidError as error:
            raise _bad(error.message) from None
        self._new_id = new_id or self._old_id
        self._target.require_absent(self._new_id)
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
        new_text = text
        if self._new_id != self._old_id:
            info = ModelInfo(self._new_id, info.user_data)
            new_text = layout.format_model(info)
        self._target.put_model(info, new_text, self._mark)
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
        with self._target.created_data(self._new_id, number, member.size_bytes) as write:
            for block in self._source.blocks(member):
                payload_hash.update([block])
                write(block)
        info, text = self._take_metadata(number, manifest)
        if (info.data_size_bytes, info.data_hash) != (member.size_bytes, payload_hash.digest_text()):
            raise _bad(f"the data of version {number} does not match its metadata")
        if member.mtime_seconds != export_format.mtime_seconds(info):
            raise _bad(f"the data of version {number} has a different time from its metadata")
        self._target.put_version(info, text)
        self._numbers.add(number)
        self._data_bytes += member.size_bytes
        return number

    def _take_metadata(self, number: int, manifest: export_format.Manifest) -> tuple[VersionInfo, bytes]:
        member = self._next(layout.version_file_name(self._old_id, number))
        text = self._source.text(member, layout.METADATA_MAX_BYTES)
        with _reporting_bad_metadata(member):
            info = layout.parse_version(text, self._old_id, number)
        manifest.add(info, text)
        if self._new_id != self._old_id:
            info = replace(info, model_id=self._new_id)
            text = layout.format_version(info)
        return info, text

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
