"""The records of models and versions, and the rules for their names and annotations."""

import base64
import binascii
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

from cogment_model_registry.errors import InvalidError, TooLargeError, counted, quoted
from cogment_model_registry.records.notebooks import Shown
from cogment_model_registry.records.signatures import Signature

VERSION_NUMBER_MAX = 2**32 - 1
"""The largest version number: `version_number` is a uint32 on the wire."""

DATA_SIZE_MAX_BYTES = 2**63 - 1
"""The largest size of a version: the range of a file offset."""

CREATED_MAX_NS = 2**64 - 1
"""The latest time in the range of `creation_timestamp`, a fixed64 of nanoseconds (in the year 2554)."""

_DIGEST_BYTES = sha256().digest_size


@dataclass(frozen=True, slots=True)
class ModelInfo(Shown):
    """A model: a named line of versions.

    Attributes:
        model_id: Its name; see `check_model_id`.
        user_data: The annotations of its owner.
    """

    model_id: str
    user_data: Mapping[str, str] = field(default_factory=dict)


class _WeaklyReferable:
    """Lets a dataclass with slots be referred to weakly, so that a cache does not keep it alive."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class VersionInfo(_WeaklyReferable, Shown):
    """A version of a model: one immutable blob, described.

    Attributes:
        model_id: The model that it belongs to.
        number: From 1, strictly increasing within the model, never reused while the model exists.
        created_ns: When it was created, in nanoseconds since the Unix epoch.
        archived: Whether it is archived; otherwise it is transient and may be evicted.
        data_hash: SHA-256 of its bytes, in standard base64 with padding.
        data_size_bytes: How many bytes it has.
        user_data: The annotations of its creator.
        signature: The signature of its creator; None for none, and from calls of the original's service, which has no
            field for it. So it does not count when two records are compared.
    """

    model_id: str
    number: int
    created_ns: int
    archived: bool
    data_hash: str
    data_size_bytes: int
    user_data: Mapping[str, str] = field(default_factory=dict)
    signature: Signature | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VersionHeader:
    """The declaration of a version, which comes before its bytes.

    Attributes:
        model_id: The model that gets the version.
        archived: Whether to archive it.
        data_size_bytes: How many bytes will follow.
        data_hash: Their SHA-256 in standard base64 with padding; empty when not declared.
        created_ns: When it was created, in nanoseconds since the Unix epoch; 0 for now.
        user_data: Its annotations.
        signature: The signature of its creator, which is not checked here; None for none.
    """

    model_id: str
    archived: bool
    data_size_bytes: int
    data_hash: str = ""
    created_ns: int = 0
    user_data: Mapping[str, str] = field(default_factory=dict)
    signature: Signature | None = None


def check_model_id(model_id: str, max_bytes: int) -> None:
    """Refuse an id that is not a plain name.

    An id names a directory of the archive, so the rule allows names that work on every file system and in every script,
    and nothing that is a path, looks like one, or is invisible: letters, marks and digits, and ``_-.:+=@~(),`` and the
    space; first a letter, a digit or ``_``; last neither a space nor a dot; in Unicode NFC, with an NFKC form that
    obeys the same rules (so that no look-alike of a separator passes).

    Args:
        model_id: The id.
        max_bytes: How many bytes of UTF-8 it may have at most.

    Raises:
        InvalidError: It breaks the rule.
    """
    # An id that is too long for sure is not worth a place in a cache.
    problem = (_problem_of_usual_id if len(model_id) <= max_bytes else _model_id_problem)(model_id, max_bytes)
    if problem:
        raise InvalidError(f"model_id {quoted(model_id)} {problem}", model_id=model_id)


def _model_id_problem(model_id: str, max_bytes: int) -> str:
    """Return what is wrong with an id, empty when nothing is."""
    try:
        size_bytes = len(model_id.encode())
    except UnicodeEncodeError:
        return "is not Unicode text"
    if not 1 <= size_bytes <= max_bytes:
        return f"has {size_bytes} bytes of UTF-8; it must have 1 to {max_bytes}"
    if not unicodedata.is_normalized("NFC", model_id):
        return "must be in Unicode normal form C"
    return _name_problem(model_id) or _name_problem(unicodedata.normalize("NFKC", model_id))


_problem_of_usual_id = lru_cache(1024)(_model_id_problem)
"""Each call names one of a few models, and looking at each character takes longer than some calls."""


def _name_problem(name: str) -> str:
    bad = next((character for character in name if not _may_stand_in_id(character)), None)
    if bad is not None:
        shown = f"{bad} (U+{ord(bad):04X})" if bad.isascii() and bad.isprintable() else f"U+{ord(bad):04X}"
        return f"must not contain {shown}; letters, digits, marks, space and _-.:+=@~(), are allowed"
    if name[0] != "_" and not _is_letter_or_digit(name[0]):
        return "must start with a letter, a digit or _"
    return "must not end with a space or a dot" if name[-1] in " ." else ""


def _is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character).startswith("L") or unicodedata.category(character) == "Nd"


def _may_stand_in_id(character: str) -> bool:
    return (
        _is_letter_or_digit(character) or unicodedata.category(character).startswith("M") or character in "_-.:+=@~(), "
    )


def check_user_data(user_data: Mapping[str, str], max_bytes: int, model_id: str, name: str = "user_data") -> None:
    """Refuse `user_data`, or what `name` says, with more than `max_bytes` bytes of UTF-8 in its keys and values.

    Raises:
        InvalidError: They are larger.
    """
    size_bytes = user_data_bytes(user_data)
    if size_bytes > max_bytes:
        message = f"{name} has {counted(size_bytes, 'byte')} of keys and values; at most {max_bytes} are allowed"
        raise InvalidError(message, model_id=model_id)


def user_data_bytes(user_data: Mapping[str, str]) -> int:
    """Return the bytes of UTF-8 that the keys and values have together."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in user_data.items()) if user_data else 0


def check_data_size(data_size_bytes: int, model_id: str) -> None:
    """Refuse an impossible size.

    Raises:
        InvalidError: It is larger than `DATA_SIZE_MAX_BYTES`.
    """
    if data_size_bytes > DATA_SIZE_MAX_BYTES:
        message = f"data_size {data_size_bytes} is too large; at most {DATA_SIZE_MAX_BYTES} bytes can be stored"
        raise InvalidError(message, model_id=model_id)


def check_data_hash(data_hash: str, model_id: str) -> None:
    """Refuse a hash that is not the standard base64, with padding, of the 32 bytes of a SHA-256.

    Raises:
        InvalidError: It is not.
    """
    try:
        digest = base64.b64decode(data_hash.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        digest = b""
    # Comparing with the canonical text also refuses stray bits in the last character.
    if len(digest) != _DIGEST_BYTES or digest_text(digest) != data_hash:
        message = f"data_hash {quoted(data_hash)} is not the standard base64 of {_DIGEST_BYTES} bytes"
        raise InvalidError(message, model_id=model_id)


def digest_text(digest: bytes) -> str:
    """Return the text that stands for a SHA-256 digest: standard base64 with padding."""
    return binascii.b2a_base64(digest, newline=False).decode("ascii")


def check_version_number(number: int, model_id: str) -> None:
    """Refuse to number a version beyond the range of the wire.

    Raises:
        TooLargeError: The numbers of the model are used up.
    """
    if number > VERSION_NUMBER_MAX:
        raise TooLargeError(
            f"model {quoted(model_id)} has used up its version numbers; create another model", model_id=model_id
        )
