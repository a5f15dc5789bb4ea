"""The check for what `cogment services` and `cogment archive` need in addition to the client."""

import os
import sys
from importlib.util import find_spec

import click

_MODULES = (
    "cachetools",
    "grpc_health",
    "grpc_reflection",
    "prometheus_client",
    "psutil",
    "structlog",
    "uvloop",
    "yaml",
)
"""What the extra `server` installs."""

_PYTHON = (3, 11)
"""The oldest Python that servers support; the client supports older ones."""


def check_server_extra(command: str) -> None:
    """Refuse a command if something that it needs is missing.

    Args:
        command: The command, as it is typed.

    Raises:
        click.UsageError: The system is neither Linux nor macOS, Python is too old, or the extra is not installed.
    """
    if os.name != "posix":
        raise click.UsageError(f"{command} runs on Linux and macOS only; the client runs here too")
    if sys.version_info < _PYTHON:
        wanted = ".".join(map(str, _PYTHON))
        raise click.UsageError(f"{command} needs Python {wanted} or later, and this is {sys.version.split()[0]}")
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        install = "pip install 'cogment-model-registry[server]'"
        raise click.UsageError(f"{command} needs {', '.join(missing)}, which the client does not: {install}")
