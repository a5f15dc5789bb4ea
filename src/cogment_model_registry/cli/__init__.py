"""The command line: `cogment services ...` runs servers, `cogment client ...` asks them.

`cogment archive ...` looks after an archive directory without any.
"""

import os
import sys
from collections.abc import Sequence

import click

from cogment_model_registry._version import __version__
from cogment_model_registry.cli.archive import archive
from cogment_model_registry.cli.client import client
from cogment_model_registry.cli.services import services
from cogment_model_registry.errors import (
    ModelRegistryError,
    NotFoundError,
    SettingError,
    StartError,
    TimedOutError,
    UnavailableError,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT_START = 3
EXIT_NOT_FOUND = 3
EXIT_UNAVAILABLE = 4


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s (cogment-model-registry) %(version)s")
def cogment() -> None:
    """A model registry for reinforcement learning and deployment, compatible with Cogment's."""


cogment.add_command(archive)
cogment.add_command(client)
cogment.add_command(services)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code.

    Args:
        arguments: The words after the program's name; those of the process when None.

    Returns:
        0 for success, 1 when a call failed, 2 for a wrong flag or setting, 3 when a server cannot start or a client
        finds nothing, 4 when the server asked is unavailable; one line on standard error tells why.
    """
    try:
        result = cogment.main(arguments, prog_name="cogment", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except (click.UsageError, SettingError) as error:
        return _fail(error.format_message() if isinstance(error, click.UsageError) else error.message, EXIT_USAGE)
    except ModelRegistryError as error:
        return _fail(error.message, _exit_code(error))
    except click.exceptions.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough; keep Python from telling so once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _exit_code(error: ModelRegistryError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, StartError):
        return EXIT_CANNOT_START
    if isinstance(error, NotFoundError):
        return EXIT_NOT_FOUND
    return EXIT_UNAVAILABLE if isinstance(error, UnavailableError | TimedOutError) else EXIT_FAILED


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return code
