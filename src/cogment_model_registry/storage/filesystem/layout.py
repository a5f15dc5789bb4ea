"""The names and the text of the files of an archive directory: those of the original, which can read and write it too.

    <archive_dir>/
      .lock                       the process that owns the archive
      .catalog.sqlite3            what is not in the other files: aliases, tags, metrics; and an index of the versions
      .backup                     `cogment archive backup` may update the directory; the first server on it removes this
      .format                     the format of the archive; without it, 1: see `recognition`
      .~<digits>/                 a model that is being created, or was deleted: renamed, then removed
      <model_id>/
        <model_id>.yaml           the model; its commit point
        <model_id>-v000001.data   the bytes of a version
        <model_id>-v000001.yaml   a version; its commit point
        .high_water_mark          no number up to this one may be given again
        .deleted                  the model was deleted, where its directory cannot be renamed; goes last
        .~<digits>                a file being written
        .manifest.json            what `tar` unpacked from an export

Entries with other names are foreign and left alone. The names that only this package uses start with a dot, as no model
id does. The original takes every directory whose name has a letter for a model, and every file whose name contains
``-v``, digits and ``.yaml`` for a version; so temporary names have neither.

A version that its creator signed has the field `signature` in its metadata, which the original ignores.

Metadata is YAML 1.1. A scalar is read as it is written, so an unquoted value of `user_data` (`1e3`, `yes`) stays that
text, and a timestamp keeps its nanoseconds. Reading builds no objects, follows no alias and nests no deeper than the
layout does.
"""

import re
import secrets
from collections.abc import Iterator, Mapping

import yaml

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.signatures import Signature, parse_signature
from cogment_model_registry.records.timestamps import format_timestamp, parse_timestamp
from cogment_model_registry.records.versions import (
    VERSION_NUMBER_MAX,
    ModelInfo,
    VersionInfo,
    check_data_hash,
)

LOCK_NAME = ".lock"

CATALOG_NAME = ".catalog.sqlite3"
"""The database of the catalog, which a server that is not read-only makes."""

CATALOG_NAMES = frozenset(f"{CATALOG_NAME}{ending}" for ending in ("", "-journal", "-wal", "-shm"))
"""The files of the database (https://www.sqlite.org/tempfiles.html)."""

BACKUP_NAME = ".backup"
"""The mark of a backup. A server that may write removes it: what it stores must not be lost to an update."""

FORMAT_NAME = ".format"
HIGH_WATER_MARK_NAME = ".high_water_mark"
TEMPORARY_PREFIX = ".~"

DELETION_MARK_NAME = ".deleted"
"""The mark of a deleted model whose directory cannot be renamed: from its creation on, the directory is no model."""

MANIFEST_NAME = ".manifest.json"
"""The last file of an export; servers ignore it, and so does the original."""

LOST_AND_FOUND = "lost+found"
"""A directory of the file system check in the root of ext file systems; its name would be a valid model id."""

METADATA_MAX_BYTES = 8 * 1024 * 1024
"""The largest metadata file that is read: several times the largest `user_data` allowed, with all of it escaped."""


class BadMetadata(Exception):
    """A metadata file is malformed; the message says in what way."""


def model_file_name(model_id: str) -> str:
    """Return the name of a model's metadata file."""
    return f"{model_id}.yaml"


def version_file_name(model_id: str, number: int) -> str:
    """Return the name of a version's metadata file."""
    return f"{model_id}-v{number:06d}.yaml"


def data_file_name(model_id: str, number: int) -> str:
    """Return the name of the file with a version's bytes."""
    return f"{model_id}-v{number:06d}.data"


def temporary_name() -> str:
    """Return a temporary name, for a file or directory that is being made or removed."""
    return f"{TEMPORARY_PREFIX}{secrets.randbelow(10**18)}"


def is_temporary(name: str) -> bool:
    """Return whether a name is one of `temporary_name`."""
    return re.fullmatch(re.escape(TEMPORARY_PREFIX) + "[0-9]+", name) is not None


_VERSION_FILE = re.compile(r"-v([0-9]{6}|[1-9][0-9]{6,9})\.(yaml|data)")
"""The part after the model's id in the name of a version's file: six digits, or more without leading zeros."""


def parse_file_name(model_id: str, name: str) -> tuple[int, str] | None:
    """Return the version number and the ending (``yaml`` or ``data``) of a version's file; None for other files."""
    match = _VERSION_FILE.fullmatch(name, len(model_id)) if name.startswith(model_id) else None
    if match is None:
        return None
    number = int(match[1])
    return (number, match[2]) if 1 <= number <= VERSION_NUMBER_MAX else None


def format_model(info: ModelInfo) -> bytes:
    """Return the text of a model's metadata file."""
    return _dump({"model_id": info.model_id, "user_data": _quote(info.user_data)})


def parse_model(text: bytes, model_id: str) -> ModelInfo:
    """Return the model that a metadata file describes.

    Raises:
        BadMetadata: It is malformed, or describes another one.
    """
    fields = _load(text)
    _expect(fields, "model_id", model_id)
    return ModelInfo(model_id, _user_data(fields))


def model_id_in(text: bytes) -> str:
    """Return the id in a model's metadata file; empty if it is malformed."""
    try:
        return _scalar(_load(text), "model_id")
    except BadMetadata:
        return ""


def format_version(info: VersionInfo) -> bytes:
    """Return the text of a version's metadata file."""
    fields: dict[str, object] = {
        "model_id": info.model_id,
        "version_number": info.number,
        "creation_timestamp": _Timestamp(format_timestamp(info.created_ns)),
        "data_hash": info.data_hash,
        "data_size": info.data_size_bytes,
        "user_data": _quote(info.user_data),
    }
    if info.signature is not None:
        fields["signature"] = str(info.signature)
    return _dump(fields)


def parse_version(text: bytes, model_id: str, number: int) -> VersionInfo:
    """Return the version that a metadata file describes.

    Raises:
        BadMetadata: It is malformed, or describes another one.
    """
    fields = _load(text)
    _expect(fields, "model_id", model_id)
    if _whole_number(fields, "version_number") != number:
        raise BadMetadata(f"its metadata names version {fields['version_number']!r}")
    data_hash = _scalar(fields, "data_hash")
    try:
        check_data_hash(data_hash, model_id)
    except InvalidError as error:
        raise BadMetadata(f"in its metadata, {error.message}") from None
    return VersionInfo(
        model_id=model_id,
        number=number,
        created_ns=_timestamp(fields),
        archived=fields.get("transient", "false") not in _YAML_TRUE,
        data_hash=data_hash,
        data_size_bytes=_whole_number(fields, "data_size"),
        user_data=_user_data(fields),
        signature=_signature(fields),
    )


def parse_version_number(text: bytes, model_id: str) -> int:
    """Return the number of the version of a model that a metadata file describes.

    Raises:
        BadMetadata: It is malformed, or describes a version of another model.
    """
    fields = _load(text)
    _expect(fields, "model_id", model_id)
    return _whole_number(fields, "version_number")


# https://yaml.org/type/bool.html
_YAML_TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")


def format_high_water_mark(number: int) -> bytes:
    """Return the text of a high-water mark."""
    return b"%d\n" % number


def parse_high_water_mark(text: bytes) -> int:
    """Return the number in a high-water mark.

    Raises:
        BadMetadata: The text is not one.
    """
    match = re.fullmatch(rb"([0-9]{1,10})\n?", text)
    if not match or int(match[1]) > VERSION_NUMBER_MAX:
        raise BadMetadata("it is not a version number")
    return int(match[1])


def parse_format(text: bytes) -> int:
    """Return the number of the format of an archive.

    Raises:
        BadMetadata: The text is not one.
    """
    match = re.fullmatch(rb"([1-9][0-9]{0,8})\n?", text)
    if not match:
        raise BadMetadata("it is not the number of a format")
    return int(match[1])


class _Timestamp(str):
    """A text that is written as a YAML timestamp, without quotes, as the original does."""

    __slots__ = ()


class _Quoted(str):
    """A text that is written in quotes, whatever it looks like: YAML's versions differ on what is a number."""

    __slots__ = ()


class _Dumper(yaml.CSafeDumper):
    """Writes `_Timestamp` and `_Quoted`, and no aliases for equal values."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_timestamp(dumper: _Dumper, value: _Timestamp) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:timestamp", str(value))


def _represent_quoted(dumper: _Dumper, value: _Quoted) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style='"')


_Dumper.add_representer(_Timestamp, _represent_timestamp)
_Dumper.add_representer(_Quoted, _represent_quoted)


def _quote(user_data: Mapping[str, str]) -> dict[_Quoted, _Quoted]:
    return {_Quoted(name): _Quoted(text) for name, text in user_data.items()}


def _dump(fields: Mapping[str, object]) -> bytes:
    text = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=2**30)
    return text.encode()


_Fields = dict[str, str | dict[str, str]]
"""The fields of a metadata file: texts, and one level of mappings of texts."""


_KNOWN_FIELDS = {"model_id", "version_number", "transient", "creation_timestamp", "data_hash", "data_size", "user_data"}

_OPTIONAL_TEXTS = {"signature"}
"""Fields of ours that count only where they are texts: to other programs they may mean something else."""

_DEPTH_MAX = 64
"""How deep an unknown field may nest."""


def _load(text: bytes) -> _Fields:
    """Return the known fields of a metadata file."""
    fields: _Fields = {}
    try:
        events = _events(text)
        for name, value in _items(events):
            if name in _OPTIONAL_TEXTS and isinstance(value, yaml.ScalarEvent):
                fields[name] = _text(value)
            elif name not in _KNOWN_FIELDS:
                _skip(value, events)
            elif isinstance(value, yaml.MappingStartEvent):
                fields[name] = {inner: _text(inner_value) for inner, inner_value in _items(events)}
            else:
                fields[name] = _text(value)
    except (yaml.YAMLError, UnicodeError):
        raise BadMetadata("its metadata is not readable") from None
    return fields


def _skip(value: yaml.Event, events: Iterator[yaml.Event]) -> None:
    """Skip the events of a value that begins with `value`."""
    depth = 0
    event = value
    while True:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_MAX or isinstance(event, yaml.AliasEvent):
            raise BadMetadata("its metadata nests too deep or has an alias")
        if depth == 0:
            return
        event = next(events)


def _events(text: bytes) -> Iterator[yaml.Event]:
    """Yield the events of the first document that follow the start of its mapping."""
    events: Iterator[yaml.Event] = yaml.parse(text.decode(), Loader=yaml.CBaseLoader)
    for event in events:
        if isinstance(event, yaml.MappingStartEvent):
            yield from events
        elif not isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            raise BadMetadata("its metadata is empty or not a mapping")


def _items(events: Iterator[yaml.Event]) -> Iterator[tuple[str, yaml.Event]]:
    """Yield the names of a mapping, each with the first event of its value."""
    for key in events:
        if isinstance(key, yaml.MappingEndEvent):
            return
        yield _text(key), next(events)


def _text(event: yaml.Event) -> str:
    if not isinstance(event, yaml.ScalarEvent):
        raise BadMetadata("its metadata has a list, an alias or a mapping where a text is expected")
    value = str(event.value)
    value.encode()  # a lone surrogate, which no message can carry, is a UnicodeError
    return value


def _scalar(fields: _Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise BadMetadata(f"its metadata has no {name}")
    return value


def _expect(fields: _Fields, name: str, expected: str) -> None:
    value = _scalar(fields, name)
    if value != expected:
        raise BadMetadata(f"its metadata has another {name}: {value[:128]!r}")


def _whole_number(fields: _Fields, name: str) -> int:
    value = _scalar(fields, name)
    if not re.fullmatch(r"[0-9]{1,19}", value):
        raise BadMetadata(f"its metadata has a {name} that is not a whole number")
    return int(value)


def _timestamp(fields: _Fields) -> int:
    try:
        return parse_timestamp(_scalar(fields, "creation_timestamp"))
    except ValueError:
        raise BadMetadata("its creation_timestamp is not a time") from None


def _signature(fields: _Fields) -> Signature | None:
    """Return the signature, if there is one."""
    return parse_signature(_scalar(fields, "signature")) if "signature" in fields else None


def _user_data(fields: _Fields) -> dict[str, str]:
    value = fields.get("user_data", {})
    if isinstance(value, dict):
        return value
    if value in ("", "~", "null", "Null", "NULL"):  # https://yaml.org/type/null.html
        return {}
    raise BadMetadata("its metadata has user_data that is not a mapping")
