"""The command line: `cogment services ...`."""

import os
import sys
from collections.abc import Sequence

import click

from cogment_model_registry._version import __version__
from cogment_model_registry.cli.services import services
from cogment_model_registry.errors import SettingError, StartError

EXIT_USAGE = 2
EXIT_CANNOT_START = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s (cogment-model-registry) %(version)s")
def cogment() -> None:
    """A model registry for reinforcement learning and deployment, compatible with Cogment's."""


cogment.add_command(services)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code.

    Args:
        arguments: The words after the program's name; those of the process when None.

    Returns:
        0 for success, 2 for a wrong flag or setting, 3 when the server cannot start; for these, one line on standard
        error tells why.
    """
    try:
        result = cogment.main(arguments, prog_name="cogment", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except (click.UsageError, SettingError) as error:
        return _fail(error.format_message() if isinstance(error, click.UsageError) else error.message, EXIT_USAGE)
    except StartError as error:
        return _fail(error.message, EXIT_CANNOT_START)
    except click.exceptions.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough; keep Python from telling so once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return code
