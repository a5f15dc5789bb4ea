"""What servers notify each other of: each change is a message of PostgreSQL that is sent when it is committed.

https://www.postgresql.org/docs/current/sql-notify.html bounds a message to 8,000 bytes.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.signatures import parse_signature
from cogment_model_registry.records.versions import VersionInfo

MESSAGE_MAX_BYTES = 7900

_NUMBERS = 500
"""How many numbers a message has at most."""

Kind: TypeAlias = Literal["created", "changed", "removed", "shown", "lost", "promoted", "annotated"]


@dataclass(frozen=True, slots=True)
class Note:
    """A change.

    Attributes:
        kind: What happened: a model was ``created``, ``changed`` or ``removed``; a version was ``shown``, ``promoted``
            or, while it was transient, ``annotated``; versions were ``lost``.
        model_id: The model.
        life: Its life.
        numbers: The versions.
        reason: Why versions were lost.
        info: The version that was shown or promoted, if it fits a message.
        annotations: What people said of the version that was annotated, if it fits.
    """

    kind: Kind
    model_id: str
    life: int
    numbers: Sequence[int] = ()
    reason: str = ""
    info: VersionInfo | None = None
    annotations: Annotations | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A note with its sender, as it is sent.

    Attributes:
        origin: Which catalog sent it.
        change: The number of the change there: a catalog records its own changes when it has committed them.
        note: What changed.
        is_last: Whether it is the last letter of the change.
    """

    origin: int
    change: int
    note: Note
    is_last: bool


def messages(origin: int, change: int, notes: Iterable[Note]) -> list[str]:
    """Return the notes of a change as messages of the size that PostgreSQL allows."""
    letters = [parts for note in notes for parts in _letters(note)]
    return [
        _message({"o": origin, "c": change, "z": position == len(letters), **parts}, rest)
        for position, (parts, rest) in enumerate(letters, 1)
    ]


def _letters(note: Note) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what the letters of a note have to say, and what they say if it fits."""
    parts: dict[str, Any] = {"k": note.kind, "m": note.model_id, "l": note.life}
    if note.reason:
        parts["r"] = note.reason
    rest = {}
    if note.info is not None:
        rest["i"] = _info_parts(note.info)
    if note.annotations is not None:
        rest["a"] = [dict(note.annotations.tags), dict(note.annotations.metrics), note.annotations.revision]
    for start in range(0, max(len(note.numbers), 1), _NUMBERS):
        yield {**parts, "n": [*note.numbers[start : start + _NUMBERS]]}, rest


def _message(parts: dict[str, Any], rest: dict[str, Any]) -> str:
    message = _text({**parts, **rest})
    return message if len(message) <= MESSAGE_MAX_BYTES else _text(parts)


def _text(parts: dict[str, Any]) -> str:
    return json.dumps(parts, separators=(",", ":"))  # ASCII: as many bytes as characters, and no U+0000


def _info_parts(info: VersionInfo) -> list[Any]:
    signature = None if info.signature is None else str(info.signature)
    return [info.number, info.created_ns, info.archived, info.data_hash, info.data_size_bytes, dict(info.user_data)] + (
        [signature] if signature else []
    )


def text_message(origin: int, text: str) -> str:
    """Return the message with a text of ASCII that is for other servers, and no change of the catalog."""
    return _text({"o": origin, "t": text})


def text_in(message: str, origin: int) -> str | None:
    """Return the text in a message of another catalog than `origin`; None if it has none."""
    with contextlib.suppress(ValueError):
        parts = json.loads(message)
        if isinstance(parts, dict) and parts.get("o") != origin and isinstance(parts.get("t"), str):
            return str(parts["t"])
    return None


def letter_of(message: str) -> Letter | None:
    """Return the letter in a message; None for one that this release does not understand."""
    try:
        parts = json.loads(message)
        return Letter(parts["o"], parts["c"], _note_of(parts), parts["z"])
    except (ValueError, TypeError, KeyError, IndexError):
        return None


def _note_of(parts: dict[str, Any]) -> Note:
    info = annotations = None
    if "i" in parts:
        number, created_ns, archived, data_hash, data_size, user_data, *signature = parts["i"]
        found = parse_signature(signature[0]) if signature else None
        info = VersionInfo(parts["m"], number, created_ns, archived, data_hash, data_size, user_data, found)
    if "a" in parts:
        annotations = Annotations(*parts["a"])
    return Note(parts["k"], parts["m"], parts["l"], parts["n"], parts.get("r", ""), info, annotations)
