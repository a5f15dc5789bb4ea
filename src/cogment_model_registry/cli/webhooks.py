"""`cogment webhooks`: posts events of a registry to HTTP servers."""

import logging
import os
import sys

import click

from cogment_model_registry.cli.connection import Flags, common_flags
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import HELP_WIDTH
from cogment_model_registry.cli.presentation import print_json, print_lines
from cogment_model_registry.cli.running import PathType, translating_errors
from cogment_model_registry.errors import ModelRegistryError, shown


@click.command(
    "webhooks",
    cls=Command,
    short_help="Post events of a registry to HTTP servers.",
    context_settings=HELP_WIDTH,
)
@click.option("--config", "path", required=True, metavar="FILE", type=PathType(), help="The hooks, in TOML.")
@click.option("--check", is_flag=True, help="Only check the configuration, and print the names of the hooks.")
@common_flags
def webhooks(flags: Flags, path: str, *, check: bool) -> None:
    """Watch a registry, and post its events to the HTTP servers in a configuration, until SIGTERM or Ctrl-C.

    Each event is posted to each hook that lists its type: signed, in order and at least once. A post that fails is
    retried, also after a restart. The position in the watch and the waiting posts are in a database next to FILE. Each
    post writes a line to standard error; --quiet leaves out those that succeeded at the first try.
    """
    try:
        from cogment_model_registry.bridges.webhooks import running  # noqa: PLC0415 # not for --help
        from cogment_model_registry.bridges.webhooks.configuration import Configuration  # noqa: PLC0415
    except ImportError as error:  # pragma: no cover # on Python 3.10 alone
        message = "cogment webhooks needs another package: pip install 'cogment-model-registry[webhooks]'"
        raise ModelRegistryError(message) from error
    with translating_errors(f"reading {shown(path)}"):
        configuration = Configuration.read(path, os.environ)
    if check:
        names = [hook.name for hook in configuration.hooks]
        print_json(names) if flags.as_json else print_lines(names)
        return
    _set_up_log(is_quiet=flags.is_quiet)
    log = logging.getLogger("cogment_model_registry.webhooks")
    said: list[bool] = []

    def is_ready() -> None:
        if not said:
            said.append(True)
            log.info("ready: events from now on are posted")

    try:
        with flags.connected() as registry:
            running.run(registry, configuration, is_ready)
    except SystemExit:
        log.info("stopped")  # a signal ends a service, which is no failure


def _set_up_log(*, is_quiet: bool) -> None:
    """Write lines of the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("cogment_model_registry")
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    logging.getLogger("cogment_model_registry.webhooks").setLevel(logging.WARNING if is_quiet else logging.INFO)
