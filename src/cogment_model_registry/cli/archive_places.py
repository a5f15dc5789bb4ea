"""What the commands of `cogment archive` open, and how they run."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cogment_model_registry.cli import bucket_archive
from cogment_model_registry.cli.running import PathType, ending_on_signals, silence_log, translating_errors
from cogment_model_registry.errors import shown

if TYPE_CHECKING:
    from cogment_model_registry.storage.filesystem.claim import OwnedFiles

CATALOG_HELP = "Directory of the catalog, for an address; by default that of a server with this archive_url."
PLACE = bucket_archive.PlaceType(exists=True, file_okay=False)

option_catalog_dir = click.option(
    "--catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=CATALOG_HELP
)


def check_catalog_dir(place: str, catalog_dir: str, name: str = "catalog_dir") -> None:
    """Refuse the directory of a catalog for a place that has its own.

    Raises:
        click.UsageError: It has.
    """
    if catalog_dir and not bucket_archive.is_url(place):
        raise click.UsageError(f"--{name} is for an address: a directory has its catalog")


def check_catalog_url(place: str, catalog_url: str | None, catalog_dir: str, prefix: str = "") -> None:
    """Refuse the address of a shared catalog for a place that cannot have one, and two catalogs for one place.

    Raises:
        click.UsageError: It has none, or both are given.
    """
    if catalog_url and not bucket_archive.is_url(place):
        raise click.UsageError(f"--{prefix}catalog_url is for an address: several servers share no directory")
    if catalog_url and catalog_dir:
        raise click.UsageError(f"give --{prefix}catalog_url or --{prefix}catalog_dir: an archive has one catalog")


@contextlib.contextmanager
def opened(directory: str, *, may_be_unused: bool = False) -> "Iterator[tuple[OwnedFiles, int]]":
    """Return a context manager with an archive directory: file operations, and its descriptor.

    Args:
        directory: Its path.
        may_be_unused: Whether an empty directory will do.

    Raises:
        click.UsageError: It is no archive.
        StartError: Its format is newer than this version.
    """
    from cogment_model_registry.storage.filesystem import claim, recognition  # noqa: PLC0415 # not needed for --help

    files = claim.OwnedFiles(directory)
    with claim.opened_root(files, directory) as root:
        recognition.check_format(files, root, directory)
        if not recognition.is_archive(files, root) and not (may_be_unused and recognition.is_unused(files, root)):
            name = recognition.used_below(files, root)
            found = f"did you mean {shown(os.path.join(directory, name))}?" if name else ""
            raise click.UsageError(
                f"{shown(directory)} is not an archive: it has no model, and no server has used it; "
                f"{found or 'give the archive_dir of a server'}"
            )
        yield files, root


def warn(message: str) -> None:
    """Print a line to standard error."""
    click.echo(message, err=True)


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Return a context manager that turns errors of the system into one line, and cleans up on signals."""
    silence_log()
    with translating_errors(what), ending_on_signals():
        yield
