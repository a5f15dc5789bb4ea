"""`cogment client model_registry watch`: versions as they appear, as lines, and as files if they are wanted."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import click

from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.connection import Flags, common_flags, complete_model
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import HELP_WIDTH, ModelId, WholeNumber, archived_flag, verify_option
from cogment_model_registry.cli.running import PathType, ending_with_reader, translating_errors
from cogment_model_registry.cli.signatures import keys_in
from cogment_model_registry.errors import shown
from cogment_model_registry.records.news import Gap, Saved
from cogment_model_registry.records.versions import VersionInfo

if TYPE_CHECKING:
    from cogment_model_registry import ModelRegistry


@click.command(
    "watch",
    cls=Command,
    short_help="Print or save the latest version, then each newer one.",
    context_settings=HELP_WIDTH,
)
@click.argument("model_ids", metavar="[MODEL]...", nargs=-1, type=ModelId(), shell_complete=complete_model)
@click.option(
    "--after", type=WholeNumber(0), default=0, metavar="N", help="Print only versions with numbers larger than N."
)
@click.option("--count", type=WholeNumber(1), metavar="N", help="Stop after N versions.")
@click.option(
    "--data",
    "directory",
    metavar="DIR",
    type=PathType(),
    help="Save every version of the MODELs, or of all models, as DIR/MODEL/NUMBER.bin.",
)
@archived_flag
@verify_option
@common_flags
def watch(
    flags: Flags,
    model_ids: tuple[str, ...],
    *,
    after: int,
    count: int | None,
    directory: str | None,
    archived: bool,
    verify: tuple[str, ...],
) -> None:
    """Print the latest version of a MODEL, then each newer one, one per line, until Ctrl-C.

    A connection that is lost is retried for 300 seconds, or for --retry_seconds. With --timeout, the command ends with
    exit code 4 after that time. With --quiet, print only numbers.

    With --data, every version is saved to a file in DIR, whole and durably, and a line is printed once it is there; it
    begins with the path, and with --quiet it is the path. Files that are there are not fetched again, and none is
    removed. Several MODELs may be given, or none for all models, and they need not exist yet. A line on standard error
    says which versions are gone. With --verify, the command ends when a version comes that none of the keys has signed,
    and saves nothing of it.
    """
    if directory is None and len(model_ids) != 1:
        raise click.UsageError("one MODEL must be given; several, or none for all, need --data")
    if directory is None and verify:
        raise click.UsageError("only versions that are saved are verified: give --data")
    with flags.connected() as registry, ending_with_reader(registry.close):
        options: dict[str, Any] = {"after": after, "archived": archived}
        if flags.retry_seconds is not None:
            options["patience_seconds"] = flags.retry_seconds
        lines: Iterator[str]
        if directory is None:
            lines = map(_event_format(flags), registry.watch(model_ids[0], **options))
        else:
            options["verify"] = keys_in(verify) or None
            lines = _saved_lines(flags, registry, directory, model_ids, options)
        for count_so_far, line in enumerate(lines, start=1):
            click.echo(line)
            if count_so_far == count:
                return


def _event_format(flags: Flags) -> Callable[[VersionInfo], str]:
    if flags.as_json:
        return presentation.version_as_json_line
    return (lambda version: str(version.number)) if flags.is_quiet else presentation.event_line


def _saved_lines(
    flags: Flags, registry: "ModelRegistry", directory: str, model_ids: tuple[str, ...], options: dict[str, Any]
) -> Iterator[str]:
    """Yield a line for each version that was saved, and print one for each gap."""
    with contextlib.closing(registry.mirror(directory, *model_ids, **options)) as events:
        while True:
            event = _next(events, directory)
            if isinstance(event, Saved):
                yield _saved_line(flags, event)
            elif flags.as_json:
                click.echo(presentation.gap_as_json_line(event))
            else:
                click.echo(presentation.gap_line(event), err=True)


def _next(events: Generator[Saved | Gap, None, None], directory: str) -> Saved | Gap:
    with translating_errors(f"saving versions in {shown(directory)}"):
        return next(events)


def _saved_line(flags: Flags, saved: Saved) -> str:
    if flags.as_json:
        return presentation.version_as_json_line(saved.version, path=saved.path)
    path = presentation.safe(saved.path)
    return path if flags.is_quiet else f"{path}{presentation.GAP}{presentation.event_line(saved.version)}"


COMMANDS = (watch,)
