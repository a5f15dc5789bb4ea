"""Commands and groups of them: their help on narrow terminals, what they suggest, and when they are imported."""

import importlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import click

_SAME_WORD = 0.8
"""How similar to a command of another group a word must be; of its own group, less is enough."""

NEW_LINE = "\f\n"
"""Ends a line of a help text; click joins lines that end otherwise."""

_OF_THE_ORIGINAL = {"launch", "orchestrator", "trial_datastore", "web_proxy"}
"""Commands of the original program of this name, which is hidden where ours comes first on the path."""


class Command(click.Command):
    """A command whose help has a paragraph for each flag where a table would break long names of variables.

    Attributes:
        table_min_cells: From which width on the flags are in a table.
    """

    table_min_cells = 70

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags of a help text."""
        if formatter.width >= self.table_min_cells:
            super().format_options(ctx, formatter)
            return
        with formatter.section("Options"):
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is None:
                    continue
                flag, text = record
                formatter.write_text(flag)
                with formatter.indentation():
                    for line in text.split(NEW_LINE):
                        formatter.write_text(line)
                formatter.write_paragraph()


class Group(click.Group):
    """A group that suggests commands for a word that is none."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that a line names.

        Raises:
            click.UsageError: There is none; the message has those that may be meant.
        """
        name = args[0]
        if ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name):
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"{ctx.command_path} has no command {name!r}: {self._advice(ctx, name)}")

    def _advice(self, ctx: click.Context, name: str) -> str:
        if name in _OF_THE_ORIGINAL:
            return "this is the cogment of cogment-model-registry; run the original by its path"
        flag = next((flag for each in self.get_params(ctx) for flag in each.opts if flag == f"--{name}"), "")
        if flag:
            return f"did you mean {ctx.command_path} {flag}?"
        known = self.list_commands(ctx)
        near = [f"{ctx.command_path} {each}" for each in get_close_matches(name, known)]
        near = near or [path for word, path in _commands(ctx.find_root()) if _is_near(name, word)]
        if near:
            return f"did you mean {' or '.join(near)}?"
        return f"it has {', '.join(known)}"


class LazyGroup(Group):
    """A group whose commands are imported when they are asked for.

    Args:
        places: Where each command is, by its name: ``module:attribute``.
        names: All other arguments are those of `click.Group`.
    """

    def __init__(self, *args: Any, places: Mapping[str, str] | None = None, **names: Any) -> None:
        super().__init__(*args, **names)
        self._places = dict(places or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self._places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name."""
        if cmd_name not in self._places:
            return super().get_command(ctx, cmd_name)
        module, attribute = self._places[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class ServicesGroup(LazyGroup):
    """A group of services, with the original's other name for the registry."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name."""
        return super().get_command(ctx, "model_registry" if cmd_name == "registry" else cmd_name)


def _is_near(name: str, word: str) -> bool:
    return bool(get_close_matches(name, [word], cutoff=_SAME_WORD))


def _commands(root: click.Context) -> Iterator[tuple[str, str]]:
    """Yield each command of the program by its name, with all its words."""

    def below(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(root):
                yield name, f"{path} {name}"
                if (inner := command.get_command(root, name)) is not None:
                    yield from below(inner, f"{path} {name}")

    yield from below(root.command, root.command_path)
