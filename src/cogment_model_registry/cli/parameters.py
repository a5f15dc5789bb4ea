"""The arguments of `cogment client model_registry`: their types, and how the words of a line are parsed."""

import contextlib
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from cogment_model_registry.cli.connection import complete_model, complete_version
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.running import PathType
from cogment_model_registry.records.timestamps import parse_timestamp
from cogment_model_registry.settings.kinds import byte_count

_F = TypeVar("_F", bound=Callable[..., object])

_LATEST = -1

HELP_WIDTH = {"max_content_width": 120}
"""The context of commands with many flags."""

if TYPE_CHECKING:
    _Text = click.ParamType[str]
    _Number = click.ParamType[int]
    _Key = click.ParamType[int | str]
    _Entry = click.ParamType[tuple[str, str]]
else:
    _Text = _Number = _Key = _Entry = click.ParamType  # before click 8.4 it takes no type


class WholeNumber(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class ByteCount(_Number):
    """A number of bytes, plain or with a unit, as settings have it."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a word as a number of bytes."""
        kind = byte_count(0, 2**60)
        try:
            size_bytes = kind.parse(str(value))
        except ValueError:
            size_bytes = None
        if not isinstance(size_bytes, int):
            self.fail(f"{value!r} is not allowed; it must be {kind.allowed}", param, ctx)
        return size_bytes


class Moment(_Number):
    """A time, or a day, which stands for its begin in UTC; in nanoseconds since the Unix epoch."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a word as a time."""
        text = str(value)
        for each in (text, f"{text}T00:00:00Z"):
            with contextlib.suppress(ValueError):
                return parse_timestamp(each)
        message = f"{text!r} is neither a time such as 2026-11-22T08:00:00Z nor a day such as 2026-11-22"
        return self.fail(message, param, ctx)


class ModelId(_Text):
    """The id of a model: any text; the registry has the rules."""

    name = "model"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a word as an id."""
        text = word_text(str(value))
        if not text:
            self.fail(f"{value!r} is not the id of a model", param, ctx)
        return text


class VersionNumber(_Number):
    """The number of a version: 1 and up, or -1 for the latest, -2 for the one before, and so on."""

    name = "version"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return a word as a number."""
        # int() also takes spaces, underscores and the digits of other scripts.
        if not re.fullmatch(r"-?[0-9]{1,10}", str(value)) or int(str(value)) == 0:
            allowed = "a number from 1 on, or -1 for the latest, -2 for the one before, and so on"
            self.fail(f"{value!r} is not the number of a version; it must be {allowed}", param, ctx)
        return int(str(value))


class VersionKey(_Key):
    """The number of a version, or an alias."""

    name = "version"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return a word as a number if it looks like one, else as an alias."""
        if re.fullmatch("[+-]?[0-9]+", str(value)):
            return VersionNumber().convert(value, param, ctx)
        text = word_text(str(value))
        if not text:
            self.fail(f"{value!r} is neither the number of a version nor an alias", param, ctx)
        return text


class Entry(_Entry):
    """A key and its value."""

    name = "key=value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the key and the value in a word."""
        if isinstance(value, tuple):
            return value
        key, equals, text = (word_text(str(value)) or "").partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not allowed; it must be of the form key=value", param, ctx)
        return key, text


def joined_user_data(
    _ctx: click.Context, _parameter: click.Parameter, entries: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    """Return the entries as `user_data`; refuse a key that is given twice."""
    user_data = dict(entries)
    if len(user_data) < len(entries):
        keys = [key for key, _ in entries]
        raise click.BadParameter(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return user_data


tags_option = click.option("--tag", "tags", metavar="NAME=TEXT", type=Entry(), multiple=True, help="Tag to set.")
metrics_option = click.option(
    "--metric", "metrics", metavar="NAME=NUMBER", type=Entry(), multiple=True, help="Metric to set."
)


def metrics_of(entries: tuple[tuple[str, str], ...]) -> dict[str, float]:
    """Return metrics as numbers."""
    return {name: _metric(name, text) for name, text in entries}


def _metric(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"the metric {name!r} must be a number, not {text!r}") from None


def word_text(word: str) -> str | None:
    """Return a word of the command line as text; None if it is none, since it can be any bytes.

    What the encoding of the locale lacks may be UTF-8: in the locale POSIX, all that is not ASCII.
    """
    try:
        word.encode()
    except UnicodeEncodeError:  # Python shows such bytes as lone surrogates
        try:
            return os.fsencode(word).decode()
        except UnicodeError:
            return None
    return word


class NumberedCommand(Command):
    """A command that takes a version number, and does not mistake a negative one for a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a line of words."""
        options = [option for option in self.params if isinstance(option, click.Option) and not option.is_flag]
        with_value = {name for option in options for name in option.opts}
        if ctx.resilient_parsing and args and args[-1] in with_value:
            args = args[:-1]  # its value is being completed; the rest of the line names the model
        return super().parse_args(ctx, self._named(args, with_value))

    @staticmethod
    def _named(words: list[str], with_value: set[str]) -> list[str]:
        """Return the words with each negative number that stands alone as the value of `--version`."""
        named: list[str] = []
        for position, word in enumerate(words):
            if word == "--":
                return [*named, *words[position:]]
            is_value = position > 0 and words[position - 1] in with_value
            is_number = re.fullmatch(r"-[0-9]+", word) and not is_value
            named.append(f"--version={word}" if is_number else word)
        return named


model_argument = click.argument("model_id", metavar="MODEL", type=ModelId(), shell_complete=complete_model)


def version_argument(command: _F) -> _F:
    """Add a version: as an argument, or as the flag of the same name, which scripts read better; else the latest."""
    return _with_version(command, "[VERSION]", _version)


def required_version_argument(command: _F) -> _F:
    """Add a version that must be given; see `version_argument`."""
    return _with_version(command, "VERSION", _required_version)


def _with_version(command: _F, metavar: str, callback: Callable[..., int | str]) -> _F:
    command = click.option(
        "--version",
        "flagged",
        metavar="N",
        type=VersionKey(),
        multiple=True,
        expose_value=False,
        callback=_keep_flagged,
        is_eager=True,
        shell_complete=complete_version,
        help="The same as VERSION.",
    )(command)
    return click.argument(
        "number",
        metavar=metavar,
        type=VersionKey(),
        required=False,
        callback=callback,
        shell_complete=complete_version,
    )(command)


_FLAGGED = "cogment_model_registry.flagged"


def _keep_flagged(ctx: click.Context, _parameter: click.Parameter, numbers: tuple[int | str, ...]) -> None:
    ctx.meta[_FLAGGED] = numbers


def _version(ctx: click.Context, _parameter: click.Parameter, number: int | str | None) -> int | str:
    """Return the one number of the line, however it was given."""
    return _given(ctx, number) or _LATEST


def _required_version(ctx: click.Context, parameter: click.Parameter, number: int | str | None) -> int | str:
    given = _given(ctx, number)
    if given is None:
        raise click.MissingParameter(ctx=ctx, param=parameter)
    return given


def _given(ctx: click.Context, number: int | str | None) -> int | str | None:
    numbers = [*ctx.meta.get(_FLAGGED, ()), *([] if number is None else [number])]
    if len(numbers) > 1:
        raise click.UsageError(f"give one version, not {len(numbers)}: {', '.join(map(str, numbers))}")
    return numbers[0] if numbers else None


sign_option = click.option(
    "--sign",
    metavar="KEYFILE",
    type=PathType(),
    help="Sign it with the Ed25519 private key in a PEM file.",
)
verify_option = click.option(
    "--verify",
    metavar="KEYFILE",
    type=PathType(),
    multiple=True,
    help="Demand that it is signed by one of the Ed25519 public keys in a PEM file.",
)

archived_flag = click.option("--archived", is_flag=True, help="Take only archived versions into account.")
