"""The command line: `cogment services ...` runs servers, `cogment client ...` calls them.

`cogment archive ...` works on an archive directory without a server; `cogment webhooks` posts what happens.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cogment_model_registry._version import __version__
from cogment_model_registry.cli import streams
from cogment_model_registry.cli.groups import LazyGroup
from cogment_model_registry.errors import (
    ModelRegistryError,
    NotFoundError,
    SettingError,
    StartError,
    TimedOutError,
    UnavailableError,
    shown,
)
from cogment_model_registry.system.ending import end_process

_COMPLETION_VARIABLE = "_COGMENT_COMPLETE"
"""What a shell sets to ask for a completion; see click's documentation."""

_NoWordsError: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""The error for a group without a command, from click 8.2 on; older versions print the help themselves."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT_START = 3
EXIT_NOT_FOUND = 3
EXIT_UNAVAILABLE = 4
EXIT_INTERRUPTED = 130


_COMMANDS = {
    "archive": "cogment_model_registry.cli.archive:archive",
    "client": "cogment_model_registry.cli.client:client",
    "services": "cogment_model_registry.cli.services:services",
    "token": "cogment_model_registry.cli.token:token",
    "webhooks": "cogment_model_registry.cli.webhooks:webhooks",
}


@click.group(cls=LazyGroup, places=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s (cogment-model-registry) %(version)s")
def cogment() -> None:
    """A model registry for reinforcement learning and deployment, compatible with Cogment's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code.

    Args:
        arguments: The words after the program's name; those of the process when None.

    Returns:
        0 for success, 1 when a call failed, 2 for a wrong flag or setting, 3 when a server cannot start or a client
        finds nothing, 4 when the server is unavailable; one line on standard error says why.
    """
    streams.prepare()
    if _COMPLETION_VARIABLE in os.environ:
        from cogment_model_registry.cli import completion  # noqa: PLC0415 # few need it

        completion.install()
    try:
        result = cogment.main(arguments, prog_name="cogment", standalone_mode=False)
    except (click.UsageError, SettingError) as error:
        if isinstance(error, _NoWordsError):
            click.echo(error.format_message(), err=True)
            return EXIT_USAGE
        return _fail(_usage_message(error) if isinstance(error, click.UsageError) else error.message, EXIT_USAGE)
    except ModelRegistryError as error:
        return _fail(error.message, _exit_code(error))
    except (click.exceptions.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except OSError as error:
        # The reader of our output may have closed it, which is not an error.
        return EXIT_FAILED if isinstance(error, BrokenPipeError) else _fail(_system_message(error), EXIT_FAILED)
    finally:
        _flush_output()
    return result if isinstance(result, int) else 0


def program() -> NoReturn:
    """Run the command line of this process, and end the process with its exit code."""
    try:
        code = main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        code = end.code
    end_process(code)


def _flush_output() -> None:
    """Write the rest of the output now, so that Python reports no second failure when it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: ModelRegistryError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, StartError):
        return EXIT_CANNOT_START
    if isinstance(error, NotFoundError):
        return EXIT_NOT_FOUND
    return EXIT_UNAVAILABLE if isinstance(error, UnavailableError | TimedOutError) else EXIT_FAILED


def _usage_message(error: click.UsageError) -> str:
    """Return what is wrong with a line; where a word is missing, also where to see which it takes."""
    if isinstance(error, click.MissingParameter) and error.ctx is not None:
        return f"{error.format_message()} See {error.ctx.command_path} --help"
    return error.format_message()


def _system_message(error: OSError) -> str:
    """Return what the system says about a file, or about standard output."""
    subject = f"{shown(error.filename)}: " if error.filename else "the command failed: "
    return f"{subject}{error.strerror or error}"


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.splitlines())}", err=True)
    return code
