"""`cogment services`: the servers. The flags of each are made from its settings."""

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import click

from cogment_model_registry._version import __version__
from cogment_model_registry.cli.groups import ServicesGroup
from cogment_model_registry.cli.server_extra import check_server_extra
from cogment_model_registry.errors import shown
from cogment_model_registry.settings import DirectorySettings, ServiceSettings, Setting, Settings, all_settings
from cogment_model_registry.system.signals import Signals

_NEW_LINE = "\f\n"  # click joins lines that end in any other way

_F = TypeVar("_F", bound=Callable[..., object])
_S = TypeVar("_S", bound=ServiceSettings)


class _ServiceCommand(click.Command):
    """A command whose help has a paragraph for each flag, so that long names of variables stay whole."""

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


@click.group(cls=ServicesGroup)
def services() -> None:
    """Run a service."""
    check_server_extra("cogment services")


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


def _setting_options(settings_class: type[ServiceSettings]) -> Callable[[_F], _F]:
    """Return the decorator that adds the flags of all settings of a class."""

    def decorate(command: _F) -> _F:
        for setting in reversed(all_settings(settings_class)):
            command = _setting_option(setting)(command)
        return command

    return decorate


def _load(settings_class: type[_S], flags: Mapping[str, str | None]) -> _S:
    """Return the settings that flags and environment give, with the log set up as they say."""
    given = {name: text for name, text in flags.items() if text is not None}
    settings = settings_class.load(given, os.environ)
    # gRPC is imported after this: --help and a wrong flag answer without loading it, and its C core, which otherwise
    # writes to standard error, reads this variable when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Slow to import, and no other command needs them.
    import structlog  # noqa: PLC0415

    from cogment_model_registry.serving import logs  # noqa: PLC0415

    logs.configure(settings)
    for each in all_settings(settings_class):
        if each.name not in given and each.is_link(os.environ):
            structlog.stdlib.get_logger(__name__).warning(
                f"ignoring a variable that Kubernetes or Docker set for a service; --{each.name} gives the setting",
                variable=each.environment,
                value=shown(os.environ[each.environment]),
            )
    return settings


@services.command("model_registry", cls=_ServiceCommand, context_settings={"max_content_width": 120})
@_setting_options(Settings)
@click.version_option(__version__, message="cogment services model_registry (cogment-model-registry) %(version)s")
def model_registry(**flags: str | None) -> None:
    """Run the model registry.

    A flag takes precedence over its environment variable. SIGTERM and SIGINT stop the server after the calls in
    progress; a second signal ends it immediately. SIGHUP makes it read the archive directory again.
    """
    signals = Signals()
    settings = _load(Settings, flags)
    from cogment_model_registry.server import composition as server  # noqa: PLC0415
    from cogment_model_registry.serving import life_cycle  # noqa: PLC0415

    life_cycle.run(server.serve(settings, signals))


@services.command("directory", cls=_ServiceCommand, context_settings={"max_content_width": 120})
@_setting_options(DirectorySettings)
@click.version_option(__version__, message="cogment services directory (cogment-model-registry) %(version)s")
def directory(**flags: str | None) -> None:
    """Run a Directory, where services register and clients find them.

    A flag takes precedence over its environment variable. SIGTERM and SIGINT stop the server after the calls in
    progress; a second signal ends it immediately. SIGHUP makes it open its log file again.
    """
    signals = Signals()
    settings = _load(DirectorySettings, flags)
    from cogment_model_registry.discovery import server  # noqa: PLC0415
    from cogment_model_registry.serving import life_cycle  # noqa: PLC0415

    life_cycle.run(server.serve(settings, signals))
