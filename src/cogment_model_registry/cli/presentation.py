"""How models and versions are shown: as tables for people, as plain columns for other programs, as JSON.

On a terminal a table is cut to its width, sizes have units and times are ages. Elsewhere nothing is cut or coloured:
columns are aligned with spaces, sizes are bytes and times are absolute. Texts of users are escaped, so that they cannot
break a line, a column or the terminal.
"""

import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from unicodedata import category, east_asian_width

import click

from cogment_model_registry.cli.running import ended_by_interruptions, is_terminal
from cogment_model_registry.cli.streams import escaped, json_text
from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.documents import model_info_as_json, time_text, version_as_json
from cogment_model_registry.records.lifecycle import Alias, ModelSummary, Version
from cogment_model_registry.records.news import Gap
from cogment_model_registry.records.sizes import KIB, size_text
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

_NS_PER_SECOND = 10**9
GAP = "  "

_CUT = "…"
"""The end of a text that was cut."""

_ASCII_CUT = "..."
"""The same on a terminal that lacks it."""

_CUT_MIN_CELLS = 12
"""The width that a cut text keeps."""

_NOTHING = "-"
"""What a table shows where a model has no version, so that columns can be counted."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands above it.
        justify: The side on which its texts are aligned.
        gives_way: Whether its texts are cut or left out on a narrow terminal: never, first (cut, and left out if that
            is not enough), second (cut), or last (left out).
    """

    title: str
    justify: Literal["left", "right"] = "left"
    gives_way: Literal["never", "first", "second", "last"] = "never"


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model with what it has.

    Attributes:
        summary: What the registry says about it.
        latest: Its latest version, if there is one.
    """

    summary: ModelSummary
    latest: VersionInfo | None

    @classmethod
    def of(cls, model: ModelInfo, versions: Sequence[VersionInfo]) -> "ListedModel":
        """Return a model that has these versions, oldest first, of a registry that does not summarise models."""
        latest = versions[-1] if versions else None
        archived_bytes = sum(version.data_size_bytes for version in versions if version.archived)
        summary = ModelSummary.of(
            model,
            latest_number=latest.number if latest else 0,
            versions=len(versions),
            archived_bytes=archived_bytes,
        )
        return cls(summary, latest)


_MODEL_COLUMNS = (
    Column("MODEL", gives_way="second"),
    Column("LATEST", "right"),
    Column("VERSIONS", "right"),
    Column("ARCHIVED", "right"),
    Column("UPDATED", gives_way="last"),
    Column("ALIASES", gives_way="second"),
    Column("USER_DATA", gives_way="first"),
)
_ALIAS_COLUMNS = (
    Column("ALIAS"),
    Column("VERSION", "right"),
    Column("SET", gives_way="last"),
    Column("REVISION", "right"),
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


def print_models(models: Sequence[ListedModel]) -> None:
    """Print a table of models; the time of a model is that of its latest version."""
    created_text = _created_text()
    rows = [
        (
            safe(each.summary.model_id),
            str(each.latest.number) if each.latest else _NOTHING,
            str(each.summary.versions),
            size_field(each.summary.archived_bytes),
            created_text(each.latest.created_ns) if each.latest else _NOTHING,
            _targets_text(each.summary.aliases) or _NOTHING,
            user_data_text(each.summary.user_data),
        )
        for each in models
    ]
    print_table(_MODEL_COLUMNS, rows)


def _targets_text(aliases: Iterable[Alias]) -> str:
    """Return aliases with the versions that they point to, in one line."""
    return " ".join(f"{safe(alias.name, '=')}={alias.version_number}" for alias in aliases)


def model_details(model: ListedModel) -> dict[str, str]:
    """Return the fields of a model, by name."""
    summary = model.summary
    details = {
        "model": safe(summary.model_id),
        "user_data": user_data_text(summary.user_data),
        "versions": str(summary.versions),
        "archived": size_field(summary.archived_bytes),
        "aliases": _targets_text(summary.aliases),
    }
    if model.latest:
        details["latest"] = str(model.latest.number)
        details["latest_created"] = moment_text(model.latest.created_ns)
    return details


def _created_text() -> Callable[[int], str]:
    """Return how a table shows times: as ages for people, else as they are."""
    now_ns = time.time_ns()
    return (lambda ns: age(ns, now_ns)) if is_for_people() else time_text


def print_versions(versions: Sequence[VersionInfo], *, with_model: bool = False) -> None:
    """Print a table of versions: with a column for each metric, and those for aliases and tags, where any has some."""
    columns = _version_columns([each for each in versions if isinstance(each, Version)])
    if with_model:
        columns = {Column("MODEL", gives_way="second"): lambda version: safe(version.model_id), **columns}
    print_table([*columns], [[text_of(version) for text_of in columns.values()] for version in versions])


def _version_columns(described: Sequence[Version]) -> dict[Column, Callable[[VersionInfo], str]]:
    """Return the columns of a table of versions, with how each shows a version."""
    created_text = _created_text()
    columns: dict[Column, Callable[[VersionInfo], str]] = {
        Column("VERSION", "right"): lambda version: str(version.number),
        Column("KIND"): kind,
        Column("CREATED", gives_way="last"): lambda version: created_text(version.created_ns),
        Column("SIZE", "right"): lambda version: size_field(version.data_size_bytes),
    }
    if any(version.aliases for version in described):
        columns[Column("ALIASES")] = _shown(lambda version: ",".join(map(safe, version.aliases)))
    for name in sorted({name for version in described for name in version.metrics}):
        columns[Column(safe(name), "right", gives_way="last")] = _shown(functools.partial(_metric_text, name=name))
    if any(version.tags for version in described):
        columns[Column("TAGS", gives_way="first")] = _shown(lambda version: user_data_text(version.tags))
    columns[Column("USER_DATA", gives_way="first")] = lambda version: user_data_text(version.user_data)
    return columns


def _shown(text_of: Callable[[Version], str]) -> Callable[[VersionInfo], str]:
    """Return how a column shows a version, of which it may know nothing."""
    return lambda version: (text_of(version) if isinstance(version, Version) else "") or _NOTHING


def _metric_text(version: Version, name: str) -> str:
    return f"{version.metrics[name]:g}" if name in version.metrics else ""


def print_aliases(aliases: Iterable[Alias]) -> None:
    """Print a table of aliases."""
    created_text = _created_text()
    rows = [
        (safe(alias.name), str(alias.version_number), created_text(alias.set_ns), str(alias.revision))
        for alias in aliases
    ]
    print_table(_ALIAS_COLUMNS, rows)


def confirm(question: str, *, otherwise: str) -> None:
    """Ask a question on the terminal.

    Raises:
        ModelRegistryError: The answer is no; the message is `otherwise`.
    """
    with ended_by_interruptions():
        is_wanted = click.confirm(question, err=True)
    if not is_wanted:
        raise ModelRegistryError(otherwise)


def print_details(details: Mapping[str, str]) -> None:
    """Print names with their values, one a line."""
    width = max(map(len, details), default=0)
    for name, value in details.items():
        click.echo(f"{_styled(f'{name:<{width}}', dim=True)}{GAP}{value}")


def _styled(text: str, *, bold: bool | None = None, dim: bool | None = None) -> str:
    """Return a text in a style, on a terminal that has styles and whose user wants them (https://no-color.org)."""
    has_styles = is_for_people() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, bold=bold, dim=dim) if has_styles else text


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
    return GAP.join(
        (
            str(version.number),
            kind(version),
            time_text(version.created_ns),
            size_field(version.data_size_bytes),
            user_data_text(version.user_data),
        )
    ).rstrip()


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; on a terminal, cut to its width."""
    rows = [[escaped(text) for text in row] for row in rows]
    if is_for_people():
        _print_terminal_table(columns, rows)
        return
    titles = [column.title for column in columns]
    widths = [max(map(len, texts)) for texts in zip(titles, *rows, strict=True)]
    lines = [
        GAP.join(
            text.rjust(width) if column.justify == "right" else text.ljust(width)
            for column, text, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in (titles, *rows)
    ]
    click.echo("\n".join(lines))


def _print_terminal_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    titles = [column.title for column in columns]
    widths = [max(map(_cells, texts)) for texts in zip(titles, *rows, strict=True)]
    widths = _narrowed(columns, widths, shutil.get_terminal_size().columns)
    for row in (titles, *rows):
        texts = [_fitted(*each) for each in zip(row, columns, widths, strict=True) if each[2]]
        line = GAP.join(texts).rstrip()
        click.echo(_styled(line, bold=True) if row is titles else line)


def _narrowed(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Return the widths of columns on a terminal with room for so many cells; 0 for one that is left out.

    What never gives way may still be wider than the terminal.
    """
    widths = list(widths)
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - room
    for when in ("first", "second", "last"):
        for position, column in reversed([*enumerate(columns)]):
            if column.gives_way != when or excess <= 0:
                continue
            width = widths[position]
            least = width if when == "last" else min(width, _CUT_MIN_CELLS)
            is_left_out = when != "second" and width - least < excess
            widths[position] = 0 if is_left_out else max(width - excess, least)
            excess -= width - widths[position] + is_left_out * len(GAP)
    return widths


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


def user_data_text(user_data: Mapping[str, str]) -> str:
    """Return `user_data` in one line, in the order of its keys."""
    return " ".join(f"{safe(key, '=')}={safe(value)}" for key, value in sorted(user_data.items()))


def safe(text: str, special: str = "") -> str:
    """Return a text unchanged if it is one printable word, otherwise escaped and in quotes."""
    if text and text.isprintable() and not set(text) & {" ", '"', "'", "\\", *special}:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def printable(text: str) -> str:
    """Return a line of text unchanged if it is printable, otherwise escaped and in quotes."""
    return text if text.isprintable() else json.dumps(text, ensure_ascii=True)


def listed_as_json(model: ListedModel) -> dict[str, object]:
    """Return the object that stands for a model with what it has."""
    summary = model.summary
    return {
        **model_info_as_json(summary),
        "versions": summary.versions,
        "archived_bytes": summary.archived_bytes,
        "latest_version": version_as_json(model.latest) if model.latest else None,
        "aliases": {alias.name: alias.version_number for alias in summary.aliases},
    }


def version_as_json_line(version: VersionInfo, **more: str) -> str:
    """Return the same in one line, perhaps with more fields."""
    return json_text({**version_as_json(version), **more})


def gap_line(gap: Gap) -> str:
    """Return the line for a gap in the versions of a watch."""
    numbers = f"version {gap.first_number} is"
    if gap.first_number < gap.last_number:
        numbers = f"versions {gap.first_number} to {gap.last_number} are"
    return f"{numbers} gone or never existed: model {safe(gap.model_id)}"


def gap_as_json_line(gap: Gap) -> str:
    """Return the same as a JSON object in one line."""
    return json_text({"model_id": gap.model_id, "first_number": gap.first_number, "last_number": gap.last_number})
