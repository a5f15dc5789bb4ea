"""`cogment services`: the servers. The flags of each are made from its settings."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import click

from cogment_model_registry._version import __version__
from cogment_model_registry.cli.groups import NEW_LINE, Command, ServicesGroup
from cogment_model_registry.cli.server_extra import check_server_extra
from cogment_model_registry.errors import shown
from cogment_model_registry.settings import DirectorySettings, ServiceSettings, Setting, Settings, all_settings
from cogment_model_registry.system.signals import Signals

_F = TypeVar("_F", bound=Callable[..., object])
_S = TypeVar("_S", bound=ServiceSettings)


class _ServiceCommand(Command):
    """A command whose help has a paragraph for each flag on every terminal."""

    table_min_cells = sys.maxsize


@click.group(cls=ServicesGroup, short_help="Run a model registry or a Directory.")
def services() -> None:
    """Run a service."""
    check_server_extra("cogment services")


def _setting_option(setting: Setting) -> Callable[[_F], _F]:
    """Return the decorator that adds the flag of a setting.

    Its value stays text here: `Settings.load` joins it with the environment and checks both in one place.
    """
    help_text = f"{setting.help}{NEW_LINE}[env: {setting.environment}; default: {setting.default_text}]"
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
    progress; a second signal ends it immediately. SIGHUP makes it read the archive directory, and the files of its
    certificate, again.
    """
    signals = Signals()
    settings = _load(Settings, flags)
    from cogment_model_registry.server import composition as server  # noqa: PLC0415
    from cogment_model_registry.serving import life_cycle  # noqa: PLC0415

    life_cycle.run(server.serve(settings, signals))


@services.command(
    "directory",
    cls=_ServiceCommand,
    short_help="Run a Directory, where clients find services.",
    context_settings={"max_content_width": 120},
)
@_setting_options(DirectorySettings)
@click.version_option(__version__, message="cogment services directory (cogment-model-registry) %(version)s")
def directory(**flags: str | None) -> None:
    """Run a Directory, where services register and clients find them.

    A flag takes precedence over its environment variable. SIGTERM and SIGINT stop the server after the calls in
    progress; a second signal ends it immediately. SIGHUP makes it open its log file again, and read the files of its
    certificate.
    """
    signals = Signals()
    settings = _load(DirectorySettings, flags)
    from cogment_model_registry.discovery import server  # noqa: PLC0415
    from cogment_model_registry.serving import life_cycle  # noqa: PLC0415

    life_cycle.run(server.serve(settings, signals))
