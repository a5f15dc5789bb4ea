"""Groups of commands: their modules are imported when they are needed, since most lines need one of them."""

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
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
