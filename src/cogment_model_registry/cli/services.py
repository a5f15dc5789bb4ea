"""`cogment services`: the servers. The flags of each are made from its settings."""

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

import click

from cogment_model_registry._version import __version__
from cogment_model_registry.settings import Setting, Settings, all_settings

_NEW_LINE = "\f\n"  # click would join lines that end otherwise

_F = TypeVar("_F", bound=Callable[..., object])


class _Services(click.Group):
    """The group, with the original's other name for the registry."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "model_registry" if cmd_name == "registry" else cmd_name)


class _ServiceCommand(click.Command):
    """A command whose help tells each flag in a paragraph, so that long names of variables stay whole."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options"):
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is None:
                    continue
                flag, text = record
                formatter.write_text(flag)
                with formatter.indentation():
                    for line in text.split(_NEW_LINE):
                        formatter.write_text(line)
                formatter.write_paragraph()


@click.group(cls=_Services)
def services() -> None:
    """Run a service."""


def _setting_option(setting: Setting) -> Callable[[_F], _F]:
    """Return the decorator that adds the flag of a setting.

    Its value stays text here: `Settings.load` joins it with the environment and checks both in one place.
    """
    help_text = f"{setting.help}{_NEW_LINE}[env: {setting.environment}; default: {setting.default_text}]"
    if setting.is_switch:
        # `--flag` alone switches on, `--flag=false` off, as the original's flags do.
        return click.option(
            f"--{setting.name}", help=help_text, metavar="[=SWITCH]", is_flag=False, flag_value="true", default=None
        )
    return click.option(f"--{setting.name}", help=help_text, metavar=setting.kind.placeholder, default=None)


def _setting_options(command: _F) -> _F:
    for setting in reversed(all_settings()):
        command = _setting_option(setting)(command)
    return command


@services.command("model_registry", cls=_ServiceCommand, context_settings={"max_content_width": 120})
@_setting_options
@click.version_option(__version__, message="cogment services model_registry (cogment-model-registry) %(version)s")
def model_registry(**flags: str | None) -> None:
    """Run the model registry.

    A flag beats its environment variable, which beats the default. SIGTERM and SIGINT stop the server once what is
    under way is done; SIGHUP makes it look at the archive directory anew.
    """
    settings = Settings.load({name: text for name, text in flags.items() if text is not None}, os.environ)
    # Imported late, so that --help and a wrong flag answer without loading gRPC, and so that its C core, which would
    # write to standard error by itself, finds the level it is to log at.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cogment_model_registry import logs, server  # noqa: PLC0415

    logs.configure(settings)
    asyncio.run(server.serve(settings))
