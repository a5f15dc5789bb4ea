"""How models and versions are shown: as tables for people, as plain columns for other programs, as JSON.

On a terminal a table is cut to its width, sizes have units and times are ages. Elsewhere nothing is cut or coloured:
columns are aligned with spaces, sizes are bytes and times are absolute. Texts of users are escaped, so that they cannot
break a line, a column or the terminal.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal
from unicodedata import category, east_asian_width

import click

from cogment_model_registry.cli.running import is_terminal
from cogment_model_registry.cli.streams import escaped, json_text
from cogment_model_registry.records.sizes import KIB, size_text
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

_NS_PER_SECOND = 10**9
_GAP = "  "

_CUT = "…"
"""The end of a text that was cut."""

_ASCII_CUT = "..."
"""The same on a terminal that lacks it."""

_CUT_MIN_CELLS = 12
"""The width that a cut text keeps on the narrowest terminal."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands above it.
        justify: The side on which its texts are aligned.
        may_be_cut: Whether its texts are cut on a narrow terminal.
    """

    title: str
    justify: Literal["left", "right"] = "left"
    may_be_cut: bool = False


_MODEL_COLUMNS = (Column("MODEL"), Column("USER_DATA", may_be_cut=True))
_VERSION_COLUMNS = (
    Column("VERSION", "right"),
    Column("KIND"),
    Column("CREATED"),
    Column("SIZE", "right"),
    Column("USER_DATA", may_be_cut=True),
)


def is_for_people() -> bool:
    """Return whether standard output is a terminal."""
    return is_terminal(sys.stdout)


def print_json(document: object) -> None:
    """Print one document."""
    click.echo(json_text(document, indent=2))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines; without any, print nothing."""
    text = "\n".join(lines)
    if text:
        click.echo(text)


def print_models(models: Sequence[ModelInfo]) -> None:
    """Print a table of models."""
    _print_table(_MODEL_COLUMNS, [(safe(model.model_id), user_data_text(model.user_data)) for model in models])


def print_versions(versions: Sequence[VersionInfo]) -> None:
    """Print a table of versions."""
    now_ns = time.time_ns()
    created = (lambda ns: age(ns, now_ns)) if is_for_people() else time_text
    rows = [
        (
            str(version.number),
            kind(version),
            created(version.created_ns),
            size_field(version.data_size_bytes),
            user_data_text(version.user_data),
        )
        for version in versions
    ]
    _print_table(_VERSION_COLUMNS, rows)


def print_details(details: Mapping[str, str]) -> None:
    """Print names with their values, one a line."""
    width = max(map(len, details), default=0)
    for name, value in details.items():
        title = click.style(f"{name:<{width}}", dim=True) if is_for_people() else f"{name:<{width}}"
        click.echo(f"{title}{_GAP}{value}")


def version_details(version: VersionInfo) -> dict[str, str]:
    """Return the fields of a version, by name."""
    details = {
        "model": safe(version.model_id),
        "version": str(version.number),
        "kind": kind(version),
        "created": moment_text(version.created_ns),
        "size": size_field(version.data_size_bytes),
        "data_hash": version.data_hash,
        "user_data": user_data_text(version.user_data),
    }
    if is_for_people() and version.data_size_bytes >= KIB:
        details["size"] += f" ({version.data_size_bytes} bytes)"
    return details


def event_line(version: VersionInfo) -> str:
    """Return the line for a new version: the columns of the table, not aligned, since more lines follow."""
    return _GAP.join(
        (
            str(version.number),
            kind(version),
            time_text(version.created_ns),
            size_field(version.data_size_bytes),
            user_data_text(version.user_data),
        )
    ).rstrip()


def _print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    rows = [[escaped(text) for text in row] for row in rows]
    if is_for_people():
        _print_terminal_table(columns, rows)
        return
    titles = [column.title for column in columns]
    widths = [max(map(len, texts)) for texts in zip(titles, *rows, strict=True)]
    lines = [
        _GAP.join(
            text.rjust(width) if column.justify == "right" else text.ljust(width)
            for column, text, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in (titles, *rows)
    ]
    click.echo("\n".join(lines))


def _print_terminal_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    titles = [column.title for column in columns]
    widths = [max(map(_cells, texts)) for texts in zip(titles, *rows, strict=True)]
    room = shutil.get_terminal_size().columns - len(_GAP) * (len(columns) - 1)
    room -= sum(width for column, width in zip(columns, widths, strict=True) if not column.may_be_cut)
    room = max(room, _CUT_MIN_CELLS)
    widths = [min(width, room) if column.may_be_cut else width for column, width in zip(columns, widths, strict=True)]
    for row in (titles, *rows):
        texts = [_fitted(*each) for each in zip(row, columns, widths, strict=True)]
        line = _GAP.join(texts).rstrip()
        click.echo(click.style(line, bold=True) if row is titles else line)


def _fitted(text: str, column: Column, width: int) -> str:
    """Return a text in a number of cells: cut, or filled up with spaces."""
    if _cells(text) > width:
        cut = _CUT if escaped(_CUT) == _CUT else _ASCII_CUT
        while _cells(text) > width - len(cut):
            text = text[:-1]
        text += cut
    filling = " " * (width - _cells(text))
    return filling + text if column.justify == "right" else text + filling


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if _is_combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def _is_combining(character: str) -> bool:
    return category(character) in ("Mn", "Me", "Cf")


def kind(version: VersionInfo) -> str:
    """Return the tier of a version, in a word."""
    return "archived" if version.archived else "transient"


def size_field(size_bytes: int) -> str:
    """Return a size with a unit for people, and as a number of bytes for programs."""
    return size_text(size_bytes) if is_for_people() else str(size_bytes)


def age(then_ns: int, now_ns: int) -> str:
    """Return how long ago something was, in one unit."""
    seconds = (now_ns - then_ns) // _NS_PER_SECOND
    if seconds < -60:
        return time_text(then_ns)  # clocks differ: an age would be nonsense
    if seconds < 1:
        return "just now"
    for unit, in_seconds in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * in_seconds if unit == "days" else in_seconds):
            return f"{seconds // in_seconds} {unit} ago"
    return f"{seconds} s ago"


def moment_text(time_ns: int) -> str:
    """Return a time, and for people also how long ago it was."""
    return time_text(time_ns) + (f" ({age(time_ns, time.time_ns())})" if is_for_people() else "")


def time_text(time_ns: int) -> str:
    """Return a time in UTC as ISO 8601 has it, to the microsecond."""
    seconds, ns = divmod(time_ns, _NS_PER_SECOND)
    moment = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=ns // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def user_data_text(user_data: Mapping[str, str]) -> str:
    """Return `user_data` in one line, in the order of its keys."""
    return " ".join(f"{safe(key, '=')}={safe(value)}" for key, value in sorted(user_data.items()))


def safe(text: str, special: str = "") -> str:
    """Return a text unchanged if it is one printable word, otherwise escaped and in quotes."""
    if text and text.isprintable() and not set(text) & {" ", '"', "'", "\\", *special}:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def model_as_json(model: ModelInfo) -> dict[str, object]:
    """Return the object that stands for a model."""
    return {"model_id": model.model_id, "user_data": dict(sorted(model.user_data.items()))}


def version_as_json(version: VersionInfo) -> dict[str, object]:
    """Return the object that stands for a version."""
    return {
        "model_id": version.model_id,
        "number": version.number,
        "created_ns": version.created_ns,
        "created": time_text(version.created_ns),
        "archived": version.archived,
        "data_hash": version.data_hash,
        "data_size_bytes": version.data_size_bytes,
        "user_data": dict(sorted(version.user_data.items())),
    }


def version_as_json_line(version: VersionInfo) -> str:
    """Return the same in one line."""
    return json_text(version_as_json(version))
