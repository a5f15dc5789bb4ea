"""The names and the text of the objects of an archive in a bucket.

    <prefix>/
      format.json                             the format of the archive
      catalog.json                            the catalog of several servers to which the archive belongs
      claims/<epoch>.json                     a server that owned the archive; the highest epoch owns it
      claims/<epoch>.alive                    changes while that server lives: see `claim`
      models/<name>.json                      a model, and the id of its life; its commit point. Several servers do not
                                              delete it, but write that the life has ended: see `registers`
      marks/<life>/<number>                   no number up to this one may be given again; the highest counts
      versions/<life>/<number>.json           the record of a version, created once; its commit point
      hints/<life>/<number>-<size>-<key>      what the record says, by its name alone, so that a listing shows it
      data/<life>/<key>.<part>                the bytes of a version, in parts
      probes/<key>                            what a start tries the store with

A model that is created again has another life, so nothing of a deleted one can come back with it. An object that no
model or no record leads to is what an interruption left.

Bytes are ordinary objects and not the parts of a multipart upload: what an interrupted one leaves is invisible in a
listing, stays until someone aborts it, and is paid for. The key of the bytes begins with the number of the server that
wrote them, the epoch of its claim or its lease, so what a server that is gone left is told from uploads under way.

Numbers have leading zeros in names, so that a listing is in their order. Foreign objects are left alone.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.signatures import parse_signature
from cogment_model_registry.records.versions import (
    CREATED_MAX_NS,
    VERSION_NUMBER_MAX,
    ModelInfo,
    VersionInfo,
    check_data_hash,
)

FORMAT_OF_ONE = 1
"""The format of an archive that one server at a time owns."""

FORMAT_SHARED = 2
"""The format of an archive that several servers write, which share a catalog. One server alone refuses it."""

FORMAT_MAX = FORMAT_SHARED
"""The newest format that this version reads and writes."""

SERVER_MAX = 2**32 - 1
"""The highest number of a server for which keys have digits."""

FORMAT_NAME = "format.json"
CATALOG_NAME = "catalog.json"
CLAIMS, MODELS, MARKS, VERSIONS, HINTS, DATA, PROBES = (
    "claims",
    "models",
    "marks",
    "versions",
    "hints",
    "data",
    "probes",
)

VOID = "void"
"""In place of size and key in the hint of a number whose record is void."""

_PLAIN_NAME_MAX = 180
"""So many characters of a model's name are readable; longer ones end with a hash, so that they are file names too."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_HINT = re.compile(r"hints/([0-9a-f]{32})/([0-9]{10})-(?:([0-9]{1,19})-([0-9a-f]{8}-[0-9a-f]{32})|void)")
_VERSION = re.compile(r"versions/([0-9a-f]{32})/([0-9]{10})\.json")
_MARK = re.compile(r"marks/([0-9a-f]{32})/([0-9]{10})")
_DATA = re.compile(r"data/([0-9a-f]{32})/(([0-9a-f]{8})-[0-9a-f]{32})\.([0-9]{6})")
_CLAIM = re.compile(r"claims/([0-9a-f]{8})\.json")


class BadObject(ValueError):  # a malformed text is no error of the program
    """The text of an object is malformed. The message says how, without its name."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What the object of a model says.

    Attributes:
        info: The model.
        life: The id of its life.
        is_ended: Whether the life has ended, so the model does not exist.
    """

    info: ModelInfo
    life: str
    is_ended: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a version.

    Attributes:
        info: The version.
        key: The key of its bytes.
        parts: The bytes of each part, in order.
    """

    info: VersionInfo
    key: str
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hint:
    """What the name of a hint says of the version with a number.

    Attributes:
        size_bytes: Its size.
        key: The key of its bytes; empty when its number is void.
    """

    size_bytes: int
    key: str


def new_life() -> str:
    """Return the id of a life of a model."""
    return secrets.token_hex(16)


def new_key(server: int) -> str:
    """Return a key for the bytes of a version that the server with a number writes."""
    if not 0 <= server <= SERVER_MAX:
        raise ValueError(f"the number of a server must be from 0 to {SERVER_MAX}")
    return f"{server:08x}-{secrets.token_hex(16)}"


def server_of(key: str) -> int:
    """Return the number of the server that wrote the bytes that have a key."""
    return int(key[:8], 16)


def life_of(name: str) -> str:
    """Return the life that an object is of; empty for objects of none, and for foreign ones."""
    parsed = parse_version_name(name) or parse_hint_name(name) or parse_mark_name(name) or parse_data_name(name)
    return parsed[0] if parsed else ""


def model_name(model_id: str) -> str:
    """Return the name of the object of a model: ASCII that each store and file system takes, and no path."""
    name = "".join(chr(byte) if byte in _PLAIN else f"={byte:02x}" for byte in model_id.encode())
    if len(name) > _PLAIN_NAME_MAX:
        # "=h" is no encoded byte, so this is the name of no shorter id.
        name = f"{name[: _PLAIN_NAME_MAX - 66]}=h{sha256(model_id.encode()).hexdigest()}"
    return f"{MODELS}/{name}.json"


def version_name(life: str, number: int) -> str:
    """Return the name of the record of a version."""
    return f"{VERSIONS}/{life}/{number:010d}.json"


def hint_name(life: str, number: int, record: Record | None) -> str:
    """Return the name of the hint of a version, or of a void number."""
    rest = VOID if record is None else f"{record.info.data_size_bytes}-{record.key}"
    return f"{HINTS}/{life}/{number:010d}-{rest}"


def mark_name(life: str, number: int) -> str:
    """Return the name of the mark of a number."""
    return f"{MARKS}/{life}/{number:010d}"


def data_name(life: str, key: str, part: int) -> str:
    """Return the name of a part of the bytes of a version, from 0."""
    return f"{DATA}/{life}/{key}.{part:06d}"


def data_names(life: str, record: Record) -> list[str]:
    """Return the names of all parts of the bytes of a version."""
    return [data_name(life, record.key, part) for part in range(len(record.parts))]


def claim_name(epoch: int) -> str:
    """Return the name of the claim of an epoch."""
    return f"{CLAIMS}/{epoch:08x}.json"


def alive_name(epoch: int) -> str:
    """Return the name of what changes while the owner of an epoch lives."""
    return f"{CLAIMS}/{epoch:08x}.alive"


def parse_hint_name(name: str) -> tuple[str, int, Hint] | None:
    """Return the life, the number and what the name of a hint says; None for other names."""
    match = _HINT.fullmatch(name)
    return (match[1], int(match[2]), Hint(int(match[3] or 0), match[4] or "")) if match else None


def parse_version_name(name: str) -> tuple[str, int] | None:
    """Return the life and the number of the name of a record; None for other names."""
    match = _VERSION.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def parse_mark_name(name: str) -> tuple[str, int] | None:
    """Return the life and the number of a mark; None for other names."""
    match = _MARK.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def parse_data_name(name: str) -> tuple[str, str, int] | None:
    """Return the life, the key and the server's number of the name of a part; None for other names."""
    match = _DATA.fullmatch(name)
    return (match[1], match[2], int(match[3], 16)) if match else None


def parse_claim_name(name: str) -> int | None:
    """Return the epoch of the name of a claim; None for other names."""
    match = _CLAIM.fullmatch(name)
    return int(match[1], 16) if match else None


def build_object(fields: Mapping[str, object]) -> bytes:
    """Return the text of an object."""
    return json.dumps(fields, indent=1).encode()


def parse_object(text: bytes) -> dict[str, object]:
    """Return the fields of an object.

    Raises:
        BadObject: It is no JSON object.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise BadObject("it is not JSON") from None
    if not isinstance(fields, dict):
        raise BadObject("it is not a JSON object")
    return fields


def build_format(format_number: int, archive_id: str) -> bytes:
    """Return the text of the format of an archive."""
    return build_object({"format": format_number, "id": archive_id})


def parse_format(text: bytes) -> tuple[int, str]:
    """Return the format of an archive, and its id.

    Raises:
        BadObject: It is malformed.
    """
    fields = parse_object(text)
    return _number(fields, "format", 2**31), _text(fields, "id")


def build_catalog(catalog_id: str) -> bytes:
    """Return the text of what says to which catalog an archive belongs."""
    return build_object({"id": catalog_id})


def parse_catalog(text: bytes) -> str:
    """Return the id of the catalog to which an archive belongs.

    Raises:
        BadObject: It is malformed.
    """
    return _text(parse_object(text), "id")


def build_model(model: ModelRecord, change: str = "") -> bytes:
    """Return the text of a model.

    Args:
        model: The model.
        change: What no other text has, if this one is to be told from others that say the same.
    """
    return build_object(
        {
            "model_id": model.info.model_id,
            "life": model.life,
            "user_data": dict(model.info.user_data),
            **({VOID: True} if model.is_ended else {}),
            **({"change": change} if change else {}),
        }
    )


def parse_model(text: bytes, name: str) -> ModelRecord:
    """Return what the object of a model says.

    Args:
        text: The text of the object.
        name: The name of the object.

    Raises:
        BadObject: It is malformed, or of a model that has another name.
    """
    fields = parse_object(text)
    model_id, life = _text(fields, "model_id"), _text(fields, "life")
    if model_name(model_id) != name:
        raise BadObject("it is of another model")
    if not re.fullmatch("[0-9a-f]{32}", life):
        raise BadObject("its life is not 32 hexadecimal digits")
    return ModelRecord(ModelInfo(model_id, _user_data(fields)), life, fields.get(VOID) is True)


def build_record(record: Record) -> bytes:
    """Return the text of the record of a version."""
    info = record.info
    return build_object(
        {
            "model_id": info.model_id,
            "version_number": info.number,
            "creation_timestamp_ns": info.created_ns,
            "data_hash": info.data_hash,
            "data_size": info.data_size_bytes,
            "user_data": dict(info.user_data),
            "key": record.key,
            "parts": list(record.parts),
            **({} if info.signature is None else {"signature": str(info.signature)}),
        }
    )


def parse_model_id(text: bytes) -> str:
    """Return the model that a record says that it is of.

    Raises:
        BadObject: It is malformed, or void.
    """
    return _text(parse_object(text), "model_id")


def build_void() -> bytes:
    """Return the text of a record that keeps a number from being used, which no other one has."""
    return build_object({VOID: True, "change": secrets.token_hex(16)})


def is_void(text: bytes) -> bool:
    """Return whether a record is void."""
    try:
        return parse_object(text).get(VOID) is True
    except BadObject:
        return False


def parse_record(text: bytes, model_id: str, number: int) -> Record | None:
    """Return the record of a version; None when it is void.

    Raises:
        BadObject: It is malformed, or of another version.
    """
    fields = parse_object(text)
    if fields.get(VOID) is True:
        return None
    if (_text(fields, "model_id"), _number(fields, "version_number", VERSION_NUMBER_MAX)) != (model_id, number):
        raise BadObject("it is of another version")
    data_hash, size_bytes = _text(fields, "data_hash"), _number(fields, "data_size", 2**63 - 1)
    try:
        check_data_hash(data_hash, model_id)
    except InvalidError:
        raise BadObject("its data_hash is malformed") from None
    info = VersionInfo(
        model_id=model_id,
        number=number,
        created_ns=_number(fields, "creation_timestamp_ns", CREATED_MAX_NS),
        archived=True,
        data_hash=data_hash,
        data_size_bytes=size_bytes,
        user_data=_user_data(fields),
        signature=parse_signature(_text(fields, "signature")) if "signature" in fields else None,
    )
    key, parts = _text(fields, "key"), fields.get("parts")
    if not re.fullmatch("[0-9a-f]{8}-[0-9a-f]{32}", key):
        raise BadObject("its key is malformed")
    if not isinstance(parts, list) or not all(type(part) is int and part > 0 for part in parts):
        raise BadObject("its parts are not a list of sizes")
    if sum(parts) != size_bytes:
        raise BadObject("its parts do not have its size")
    return Record(info, key, tuple(parts))


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise BadObject(f"its {name} is not a text")
    return value


def _number(fields: Mapping[str, object], name: str, most: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise BadObject(f"its {name} is not a number from 0 to {most}")
    return value


def _user_data(fields: Mapping[str, object]) -> dict[str, str]:
    value = fields.get("user_data")
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise BadObject("its user_data are not texts")
    return value
