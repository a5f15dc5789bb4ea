"""How notebooks show records: as tables of HTML."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


class Shown:
    """Lets notebooks show a dataclass as a table of its fields. Whatever is in them, it is text."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from html import escape  # noqa: PLC0415 # for few

        rows = "".join(
            f'<tr><th style="text-align: left">{escape(name)}</th>'
            f'<td style="text-align: left">{"<br>".join(map(escape, lines))}</td></tr>'
            for name, lines in _rows(self)
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption><tbody>{rows}</tbody></table>"


def _rows(record: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the fields of a record, and the lines of their values; those of records inside it too."""
    from cogment_model_registry.records.sizes import size_text  # noqa: PLC0415 # for few
    from cogment_model_registry.records.timestamps import format_timestamp  # noqa: PLC0415 # it needs the records

    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from _rows(value)
        elif field.name.endswith("_ns"):
            yield field.name.removesuffix("_ns"), [format_timestamp(value)]
        elif field.name.endswith("_bytes"):
            yield field.name, [f"{value} ({size_text(value)})"]
        elif isinstance(value, Mapping):
            yield field.name, [f"{key} = {entry}" for key, entry in sorted(value.items())]
        elif isinstance(value, tuple):
            yield field.name, [_line(each) for each in value]
        else:
            yield field.name, [_text(value)]


def _line(value: object) -> str:
    """Return a record inside another one in a line."""
    if not dataclasses.is_dataclass(value):
        return _text(value)
    return ", ".join(f"{name} = {' '.join(lines)}" for name, lines in _rows(value))


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
