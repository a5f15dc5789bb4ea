"""`cogment archive export` and `import`: a model of an archive as one tar file."""

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from cogment_model_registry.cli import bucket_archive
from cogment_model_registry.cli.archive_places import (
    PLACE,
    check_catalog_dir,
    check_catalog_url,
    opened,
    option_catalog_dir,
    running,
    warn,
)
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import word_text
from cogment_model_registry.cli.progress import is_shown, progress_bar
from cogment_model_registry.cli.running import (
    PathType,
    check_free,
    check_open,
    is_terminal,
    open_standard_output,
    translating_errors,
)
from cogment_model_registry.errors import InvalidError, UnavailableError, counted, shown
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.system.replacement import Replacement

if TYPE_CHECKING:
    from cogment_model_registry.storage.filesystem.export_writer import Exported
    from cogment_model_registry.storage.filesystem.import_reader import Imported


def _check_model_id(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from cogment_model_registry.records.versions import check_model_id  # noqa: PLC0415
    from cogment_model_registry.storage.filesystem.model_files import MODEL_ID_MAX_BYTES  # noqa: PLC0415

    if value is None:
        return None
    model_id = word_text(value) or value
    try:
        check_model_id(model_id, MODEL_ID_MAX_BYTES)
    except InvalidError as error:
        raise click.BadParameter(error.message) from None
    return model_id


@click.command("export", cls=Command, short_help="Write a model to one tar file.")
@click.argument("directory", type=PLACE)
@click.argument("model_id", callback=_check_model_id)
@click.option(
    "--output",
    default="-",
    metavar="FILE",
    type=PathType(allow_dash=True),
    help="File to write; - (the default) is standard output.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--skip_damaged", is_flag=True, help="Leave out damaged versions, and report them, instead of failing.")
@click.option(
    "--without_annotations",
    is_flag=True,
    help="Leave out aliases, tags and metrics: older releases can import such a file.",
)
@option_catalog_dir
@click.option(
    "--catalog_url",
    metavar="URL",
    type=bucket_archive.CatalogUrlType(),
    help="Address of the catalog in PostgreSQL, if several servers share the archive.",
)
def export_model(
    directory: str,
    model_id: str,
    *,
    output: str,
    force: bool,
    skip_damaged: bool,
    without_annotations: bool,
    catalog_dir: str,
    catalog_url: str | None,
) -> None:
    """Write a model of an archive DIRECTORY, with all its archived versions, to one tar file.

    DIRECTORY may also be an address such as s3://bucket/prefix; then the aliases, tags and metrics come from the
    directory of the catalog of its server, if that is on this machine, or from the catalog that its servers share.

    The file has the aliases of the model, and the tags and metrics of its versions.
    Data is checked against its hash, and `cogment archive import` detects a file that was cut. A server may use the
    directory. Exits with 1 if something is damaged, or everything with --skip_damaged; with 2 if the directory is no
    archive, with 3 if the model does not exist, and with 4 if a file cannot be read because its disk fails.
    """
    check_catalog_dir(directory, catalog_dir)
    check_catalog_url(directory, catalog_url, catalog_dir)
    if output == "-" and is_terminal(sys.stdout):
        raise click.UsageError("a tar file cannot be written to a terminal: give --output, or redirect standard output")
    annotations = not without_annotations
    with running("the export"):
        if bucket_archive.is_url(directory):
            with (
                bucket_archive.opened_for_export(directory, catalog_dir, catalog_url) as export,
                _output(output, force=force) as file,
                progress_bar("exporting", None) as advance,
            ):
                exported = export(
                    model_id, file.write, skip_damaged=skip_damaged, annotations=annotations, warn=warn, advance=advance
                )
        else:
            exported = _export_from_directory(
                directory,
                model_id,
                lambda: _output(output, force=force),
                skip_damaged=skip_damaged,
                annotations=annotations,
            )
    warn(f"exported {counted(exported.versions, 'version')}: {size_text(exported.data_bytes)}")


def _export_from_directory(
    directory: str,
    model_id: str,
    open_output: Callable[[], contextlib.AbstractContextManager[BinaryIO]],
    *,
    skip_damaged: bool,
    annotations: bool,
) -> "Exported":
    from cogment_model_registry.storage.filesystem import model_export  # noqa: PLC0415 # not needed for --help
    from cogment_model_registry.storage.tools import model_transfer  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    with opened(directory) as (files, root):
        total_bytes = model_export.data_size_bytes(files, root, model_id) if is_shown() else None
        with open_output() as file, progress_bar("exporting", total_bytes) as advance:
            return model_transfer.export_model(
                ArchivePlace(files, root, directory),
                model_id,
                file.write,
                skip_damaged=skip_damaged,
                annotations=annotations,
                warn=warn,
                advance=advance,
            )


@contextlib.contextmanager
def _output(path: str, *, force: bool) -> Iterator[BinaryIO]:
    """Return a context manager with a file to write, which gets its name at the end, complete and durable."""
    if path == "-":
        with open_standard_output() as file:
            yield file
        return
    check_free(path, force=force)
    with contextlib.closing(Replacement(path, 0o640)) as replacement:
        with translating_errors(f"writing {shown(path)}"):
            file = replacement.open()
        yield file
        check_free(path, force=force)
        with translating_errors(f"writing {shown(path)}"):
            replacement.commit()


@click.command("import", cls=Command, short_help="Create a model from a tar file of `export`.")
@click.argument("directory", type=PLACE)
@click.argument("file", type=PathType(exists=True, dir_okay=False, allow_dash=True))
@click.option("--model_id", metavar="NAME", callback=_check_model_id, help="Give the model this name.")
@click.option("--without_annotations", is_flag=True, help="Leave out the aliases, tags and metrics in the file.")
@option_catalog_dir
def import_model(
    directory: str, file: str, *, model_id: str | None, without_annotations: bool, catalog_dir: str
) -> None:
    """Create a model in an archive DIRECTORY from a tar FILE of `cogment archive export`; - is standard input.

    DIRECTORY may also be an address such as s3://bucket/prefix, which no server may use then; aliases, tags and metrics
    go to the directory of the catalog with which its server will start.

    The model is created completely or not at all. The directory is an archive, or is empty and becomes one. If a server
    uses it, send it SIGHUP afterwards; the command prints its process. Aliases, tags and metrics can be imported only
    while no server uses the directory. Exits with 1 if the file is incomplete, if a model of that name exists, or if
    the file has aliases, tags or metrics and a server uses the directory; and with 2 if the directory is no archive.
    """
    from cogment_model_registry.storage.tools import model_transfer  # noqa: PLC0415 # not needed for --help

    check_catalog_dir(directory, catalog_dir)
    if file == "-" and is_terminal(sys.stdin):
        raise click.UsageError("a tar file cannot be read from a terminal: name it, or redirect standard input")
    holder = ""
    with running("the import"), _input(file) as stream:
        status = os.fstat(stream.fileno())
        total_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        with progress_bar("importing", total_bytes) as advance:
            annotations, name = not without_annotations, model_id or ""
            if bucket_archive.is_url(directory):
                imported = bucket_archive.import_model(
                    directory, stream, name, annotations=annotations, catalog_dir=catalog_dir, advance=advance
                )
            else:
                imported, holder = _import_to_directory(
                    directory, stream, name, annotations=annotations, advance=advance
                )
    if imported.left_out:
        numbers = ", ".join(map(str, imported.left_out))
        warn(f"the export had left out {counted(len(imported.left_out), 'damaged version')}: {numbers}")
    versions = counted(imported.versions, "version")
    summary = "" if without_annotations else model_transfer.summary(imported.annotations)
    click.echo(
        f"imported {imported.model_id}: {versions}, {size_text(imported.data_bytes)}"
        + (f", {summary}" if summary else "")
    )
    if holder:
        click.echo(f"process {shown(holder)} uses the archive: send it SIGHUP to make it load the model")


def _import_to_directory(
    directory: str, stream: BinaryIO, model_id: str, *, annotations: bool, advance: Callable[[int], None]
) -> "tuple[Imported, str]":
    """Import a model; return it, and the process that uses the archive, empty for none."""
    from cogment_model_registry.storage.filesystem import claim  # noqa: PLC0415 # not needed for --help
    from cogment_model_registry.storage.tools import model_transfer  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        files, root = stack.enter_context(opened(directory, may_be_unused=True))
        holder = claim.find_holder(files, root)
        if holder is None:
            stack.enter_context(claim.claimed(directory, files, root))

        def check_holder() -> None:
            if holder is not None and claim.find_holder(files, root) != holder:
                raise UnavailableError("another process took the archive during the import: import the model again")

        imported = model_transfer.import_model(
            ArchivePlace(files, root, directory),
            stream,
            model_id=model_id,
            annotations=annotations,
            holder=holder,
            check_holder=check_holder,
            advance=advance,
        )
        return imported, "" if holder is None else holder.process


@contextlib.contextmanager
def _input(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        check_open(sys.stdin)
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        try:
            yield file
        except InvalidError as error:
            raise error.reworded(f"importing {shown(path)}: {error.message}") from None
