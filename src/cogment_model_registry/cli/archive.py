"""`cogment archive`: verify, repair, export and import archive directories, without a server."""

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from cogment_model_registry.cli import bucket_archive
from cogment_model_registry.cli.groups import Command, Group
from cogment_model_registry.cli.parameters import word_text
from cogment_model_registry.cli.progress import is_shown, progress_bar
from cogment_model_registry.cli.running import (
    PathType,
    check_free,
    check_open,
    ending_on_signals,
    is_terminal,
    open_standard_output,
    translating_errors,
)
from cogment_model_registry.cli.server_extra import check_server_extra
from cogment_model_registry.errors import InvalidError, NotFoundError, UnavailableError, counted, shown
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.storage.filesystem.findings import AFTER_REPAIR, INFORMATION, MEANINGS, Finding
from cogment_model_registry.system.replacement import Replacement

if TYPE_CHECKING:
    from cogment_model_registry.storage.filesystem.claim import OwnedFiles
    from cogment_model_registry.storage.filesystem.repair import Outcome
    from cogment_model_registry.storage.filesystem.verification import Report

_DIRECTORY = PathType(exists=True, file_okay=False)
_CATALOG_HELP = "Directory of the catalog, for an address; by default that of a server with this archive_url."
_PLACE = bucket_archive.PlaceType(exists=True, file_okay=False)


class _VerifyCommand(Command):
    """A command whose help has the kinds of findings."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the kinds, with what they mean."""
        notes = [(f"{kind} (no problem)" if kind in INFORMATION else kind, text) for kind, text in MEANINGS.items()]
        with formatter.section("Findings"):
            for name, meaning in notes:
                formatter.write_text(f"{name}:")
                with formatter.indentation():
                    formatter.write_text(meaning)


@click.group(cls=Group, short_help="Check archive directories, and move models between them.")
def archive() -> None:
    """Check an archive directory, or move models between two, without a server."""
    check_server_extra("cogment archive")


@archive.command(
    cls=_VerifyCommand,
    short_help="Check all metadata, and all data against its hash.",
    context_settings={"max_content_width": 120},
)
@click.argument("directory", type=_PLACE)
@click.option("--repair", "is_repair", is_flag=True, help="Make the safe repairs; no server may use the directory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(directory: str, *, is_repair: bool, as_json: bool) -> int:
    """Check an archive DIRECTORY: all metadata, and all data against its hash.

    Exits with 0 if nothing is wrong, 1 if something is, 2 if the directory does not exist, cannot be read or is not an
    archive, and 3 if the archive has no model to check, is of a newer format, or is to be repaired while another
    process uses it. Without --repair nothing is written, and a server may use the directory; files that may be part of
    its current work are then not reported.

    With --repair, temporary files, models that were being deleted and data without metadata are removed, high-water
    marks are repaired, and missing metadata of models is written. Damaged versions are left as they are.
    """
    started = time.monotonic()
    if bucket_archive.is_url(directory):
        return _verify_bucket(directory, started, is_repair=is_repair, as_json=as_json)
    with _running(f"checking {shown(directory)}"), _opened(directory) as (files, root):
        report, outcomes = _repaired(directory, files, root) if is_repair else (_verified(directory, files, root), [])
    repaired = {outcome.finding for outcome in outcomes if outcome.is_repaired}
    left = [finding for finding in report.findings if finding.is_problem and finding not in repaired]
    if as_json:
        click.echo(json.dumps(_as_json(directory, report, outcomes, is_sound=not left and report.models > 0), indent=2))
    else:
        _show(report, outcomes, left, time.monotonic() - started)
    if left:
        return 1
    if not report.models:
        raise NotFoundError(f"archive {shown(directory)} has no model, so nothing was checked")
    return 0


def _verified(directory: str, files: "OwnedFiles", root: int, *, is_claimed: bool = False) -> "Report":
    from cogment_model_registry.storage.filesystem import verification  # noqa: PLC0415
    from cogment_model_registry.storage.tools import catalog_check  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    total_bytes = verification.data_size_bytes(files, root) if is_shown() else None
    with progress_bar("verifying", total_bytes) as advance:
        return catalog_check.verify(ArchivePlace(files, root, directory), is_claimed=is_claimed, advance=advance)


def _repaired(directory: str, files: "OwnedFiles", root: int) -> "tuple[Report, list[Outcome]]":
    from cogment_model_registry.storage.filesystem import claim, repair  # noqa: PLC0415 # not needed for --help
    from cogment_model_registry.storage.tools import catalog_repair  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    with claim.claimed(directory, files, root) as claimed:
        report = _verified(directory, files, root, is_claimed=True)
        outcomes = list(repair.repair(claimed, root, report.findings))
        place = ArchivePlace(files, root, directory)
        return report, [*outcomes, *catalog_repair.repair(place, report.findings)]


def _verify_bucket(url: str, started: float, *, is_repair: bool, as_json: bool) -> int:
    """Verify the archive at an address; return the exit code."""
    if is_repair:
        raise click.UsageError("an archive in an object store is not repaired: a start clears away what is left over")
    with _running(f"checking {url}"), progress_bar("checking", None) as advance:
        report = bucket_archive.verify(url, advance)
    problems = [finding for finding in report.findings if finding.is_problem]
    if as_json:
        document = _as_json(url, report, [], is_sound=not problems and report.models > 0)
        remedies = {"findings": [{**each, "remedy": bucket_archive.REMEDY} for each in document["findings"]]}
        click.echo(json.dumps({**document, **remedies}, indent=2))
    else:
        _show(report, [], [], time.monotonic() - started)
        if problems:
            click.echo(f"to do: {bucket_archive.REMEDY}")
    if problems:
        return 1
    if not report.models:
        raise NotFoundError(f"archive {url} has no model, so nothing was checked")
    return 0


def _show(report: "Report", outcomes: "list[Outcome]", left: list[Finding], seconds: float) -> None:
    """Print the findings, for people, and what to do about those that are left."""
    if report.holder:
        click.echo(
            f"note: process {shown(report.holder)} uses the archive: temporary files, data without metadata and models "
            "that are being deleted are not reported, because that process may be using them"
        )
    for finding in report.findings:
        click.echo(f"{'problem' if finding.is_problem else 'note'}: {finding.kind}: {_line(finding, finding.message)}")
    for outcome in outcomes:
        click.echo(
            f"{'repaired' if outcome.is_repaired else 'not repaired'}: {_line(outcome.finding, outcome.message)}"
        )
    tried = {outcome.finding for outcome in outcomes}
    remedies = dict.fromkeys((each.kind, AFTER_REPAIR if each in tried else each.remedy) for each in left)
    for kind, remedy in remedies:
        click.echo(f"to do: {kind}: {remedy}")
    problems = sum(finding.is_problem for finding in report.findings)
    repaired = sum(outcome.is_repaired and outcome.finding.is_problem for outcome in outcomes)
    rate = size_text(report.data_bytes / max(seconds, 0.001))
    click.echo(
        f"{counted(report.models, 'model')}, {counted(report.versions, 'version')}, {size_text(report.data_bytes)} "
        f"read in {seconds:.1f} s ({rate}/s): {counted(problems, 'problem')}"
        + (f", {repaired} of them repaired" if outcomes else "")
    )


def _line(finding: Finding, message: str) -> str:
    return f"{shown(finding.file)}: {message}"


def _as_json(directory: str, report: "Report", outcomes: "list[Outcome]", *, is_sound: bool) -> dict[str, Any]:
    return {
        "path": directory,
        "in_use_by": report.holder or None,
        "models": report.models,
        "versions": report.versions,
        "bytes": report.data_bytes,
        "findings": [_finding_as_json(finding, finding.message) for finding in report.findings],
        "repaired": [_finding_as_json(outcome.finding, outcome.message) for outcome in outcomes if outcome.is_repaired],
        "not_repaired": [
            _finding_as_json(outcome.finding, outcome.message) for outcome in outcomes if not outcome.is_repaired
        ],
        "sound": is_sound,
    }


def _finding_as_json(finding: Finding, message: str) -> dict[str, object]:
    return {
        "kind": finding.kind.value,
        "problem": finding.is_problem,
        "model_id": finding.model_id or None,
        "version_number": finding.number or None,
        "file": finding.file,
        "message": message,
        "remedy": finding.remedy or None,
    }


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


@archive.command("export", short_help="Write a model to one tar file.")
@click.argument("directory", type=_DIRECTORY)
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
def export_model(
    directory: str, model_id: str, *, output: str, force: bool, skip_damaged: bool, without_annotations: bool
) -> None:
    """Write a model of an archive DIRECTORY, with all its archived versions, to one tar file.

    The file has the aliases of the model, and the tags and metrics of its versions.
    Data is checked against its hash, and `cogment archive import` detects a file that was cut. A server may use the
    directory. Exits with 1 if something is damaged, or everything with --skip_damaged; with 2 if the directory is no
    archive, with 3 if the model does not exist, and with 4 if a file cannot be read because its disk fails.
    """
    from cogment_model_registry.storage.filesystem import model_export  # noqa: PLC0415 # not needed for --help
    from cogment_model_registry.storage.tools import model_transfer  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    if output == "-" and is_terminal(sys.stdout):
        raise click.UsageError("a tar file cannot be written to a terminal: give --output, or redirect standard output")
    with _running("the export"), _opened(directory) as (files, root):
        total_bytes = model_export.data_size_bytes(files, root, model_id) if is_shown() else None
        with _output(output, force=force) as file, progress_bar("exporting", total_bytes) as advance:
            exported = model_transfer.export_model(
                ArchivePlace(files, root, directory),
                model_id,
                file.write,
                skip_damaged=skip_damaged,
                annotations=not without_annotations,
                warn=_warn,
                advance=advance,
            )
    _warn(f"exported {counted(exported.versions, 'version')}: {size_text(exported.data_bytes)}")


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


@archive.command("import", short_help="Create a model from a tar file of `export`.")
@click.argument("directory", type=_DIRECTORY)
@click.argument("file", type=PathType(exists=True, dir_okay=False, allow_dash=True))
@click.option("--model_id", metavar="NAME", callback=_check_model_id, help="Give the model this name.")
@click.option("--without_annotations", is_flag=True, help="Leave out the aliases, tags and metrics in the file.")
def import_model(directory: str, file: str, *, model_id: str | None, without_annotations: bool) -> None:
    """Create a model in an archive DIRECTORY from a tar FILE of `cogment archive export`; - is standard input.

    The model is created completely or not at all. The directory is an archive, or is empty and becomes one. If a server
    uses it, send it SIGHUP afterwards; the command prints its process. Aliases, tags and metrics can be imported only
    while no server uses the directory. Exits with 1 if the file is incomplete, if a model of that name exists, or if
    the file has aliases, tags or metrics and a server uses the directory; and with 2 if the directory is no archive.
    """
    from cogment_model_registry.storage.filesystem import claim  # noqa: PLC0415 # not needed for --help
    from cogment_model_registry.storage.tools import model_transfer  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    if file == "-" and is_terminal(sys.stdin):
        raise click.UsageError("a tar file cannot be read from a terminal: name it, or redirect standard input")
    with _running("the import"), _input(file) as stream, contextlib.ExitStack() as stack:
        files, root = stack.enter_context(_opened(directory, may_be_unused=True))
        holder = claim.find_holder(files, root)
        if holder is None:
            stack.enter_context(claim.claimed(directory, files, root))

        def check_holder() -> None:
            if holder is not None and claim.find_holder(files, root) != holder:
                raise UnavailableError("another process took the archive during the import: import the model again")

        status = os.fstat(stream.fileno())
        total_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None
        with progress_bar("importing", total_bytes) as advance:
            imported = model_transfer.import_model(
                ArchivePlace(files, root, directory),
                stream,
                model_id=model_id or "",
                annotations=not without_annotations,
                holder=holder,
                check_holder=check_holder,
                advance=advance,
            )
    if imported.left_out:
        numbers = ", ".join(map(str, imported.left_out))
        _warn(f"the export had left out {counted(len(imported.left_out), 'damaged version')}: {numbers}")
    versions = counted(imported.versions, "version")
    annotations = "" if without_annotations else model_transfer.summary(imported.annotations)
    click.echo(
        f"imported {imported.model_id}: {versions}, {size_text(imported.data_bytes)}"
        + (f", {annotations}" if annotations else "")
    )
    if holder is not None:
        click.echo(f"process {shown(holder.process)} uses the archive: send it SIGHUP to make it load the model")


@archive.command(short_help="Copy an archive that may be in use, or update such a copy.")
@click.argument("directory", type=_DIRECTORY)
@click.argument("target", type=PathType(file_okay=False))
@click.option("--quick", is_flag=True, help="Do not read again what the backup had already.")
def backup(directory: str, target: str, *, quick: bool) -> int:
    """Make TARGET a backup of an archive DIRECTORY, or bring a backup up to date.

    A server may use the directory, and is not disturbed. TARGET is an archive directory itself: it has all models and
    archived versions, and the aliases, tags and metrics as they are at one moment. Versions that it has already are not
    copied again, and those that were deleted in the archive leave it. Data is checked against its hash while it is
    copied, and at the end the whole backup is checked as by `cogment archive verify`, unless --quick is given.

    What is damaged in the archive is reported, and replaces nothing in the backup. Exits with 1 if something is
    damaged; with 2 if the directory is no archive; and with 3 if it has no model or if another process uses TARGET.
    TARGET must be new, empty, or written by this command; once a server has used it, it is no backup any more.
    """
    from cogment_model_registry.storage.filesystem import verification  # noqa: PLC0415 # not needed for --help
    from cogment_model_registry.storage.tools import backup as tool  # noqa: PLC0415
    from cogment_model_registry.storage.tools.place import ArchivePlace  # noqa: PLC0415

    with _running("the backup"), _opened(directory) as (files, root), tool.opened_target(target, directory) as copy:
        total_bytes = verification.data_size_bytes(files, root) if is_shown() else None
        with progress_bar("copying", total_bytes) as advance:
            copied = tool.back_up(ArchivePlace(files, root, directory), copy, advance)
        findings = copied.findings
        if not quick:
            findings = [*findings, *_verified(target, copy.files, copy.root, is_claimed=True).findings]
    problems = [finding for finding in findings if finding.is_problem]
    for finding in problems:
        click.echo(f"problem: {finding.kind}: {_line(finding, finding.message)}")
    for kind, remedy in dict.fromkeys((finding.kind, finding.remedy) for finding in problems):
        click.echo(f"to do: {kind}: {remedy}")
    click.echo(
        f"{counted(copied.models, 'model')}: {counted(copied.versions, 'version')} copied "
        f"({size_text(copied.data_bytes)}), {copied.unchanged} unchanged, {copied.removed} removed: "
        f"{counted(len(problems), 'problem')}"
    )
    return 1 if problems else 0


@archive.command("copy", short_help="Copy an archive between directories and object stores.")
@click.argument("source", metavar="FROM", type=_PLACE)
@click.argument("target", metavar="TO", type=bucket_archive.PlaceType(file_okay=False))
@click.option("--from_catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=_CATALOG_HELP)
@click.option("--to_catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=_CATALOG_HELP)
def copy(source: str, target: str, *, from_catalog_dir: str, to_catalog_dir: str) -> int:
    """Copy the archive FROM to TO: each is a directory, or an address such as s3://bucket/prefix.

    A server may use FROM, and none TO. All models and archived versions are copied, checked against their hashes, then
    the aliases, tags, metrics and tokens. What TO has already is not copied again, so an interrupted copy goes on. TO
    is new, empty, or such a copy: if it has a model or a version that FROM does not have, nothing is copied.

    Exits with 1 if a version is damaged, which is left out, or if TO is no copy of FROM; and with 3 if one of them
    cannot be used or FROM has no model.
    """
    for name, place, catalog in (("from", source, from_catalog_dir), ("to", target, to_catalog_dir)):
        if catalog and not bucket_archive.is_url(place):
            raise click.UsageError(f"--{name}_catalog_dir is for an address: a directory has its catalog")
    with _running("the copy"), progress_bar("copying", None) as advance:
        copied, has_catalog = bucket_archive.copy(source, target, from_catalog_dir, to_catalog_dir, advance)
    for error in copied.damaged:
        click.echo(f"problem: {error.message}")
    click.echo(
        f"{counted(copied.models, 'model')}: {counted(copied.versions, 'version')} copied "
        f"({size_text(copied.data_bytes)}), {copied.unchanged} unchanged, "
        f"{'with' if has_catalog else 'without'} a catalog: {counted(len(copied.damaged), 'problem')}"
    )
    return 1 if copied.damaged else 0


@archive.command("share", short_help="Let several servers use an archive in an object store.")
@click.argument("place", metavar="URL", type=_PLACE)
@click.argument("catalog_url", metavar="CATALOG_URL", type=bucket_archive.CatalogUrlType())
@click.option("--catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=_CATALOG_HELP)
def share(place: str, catalog_url: str, *, catalog_dir: str) -> int:
    """Make the archive at URL, of one server, one that several servers share, with their catalog at CATALOG_URL.

    The server must have stopped, and no single server can use the archive afterwards. Its models and versions are put
    into the catalog in PostgreSQL, with the aliases, tags, metrics, rules and tokens of the server's own catalog. What
    the shared catalog has already is left as it is, so an interrupted run goes on.

    The same command gives the servers a new catalog if theirs was lost and there is no backup of it: then aliases,
    tags, metrics, rules and tokens are missing, and numbers may be given again that transient versions had.

    Exits with 1 if a version is damaged, which is left out; and with 3 if one of them cannot be used.
    """
    if not bucket_archive.is_url(place):
        raise click.UsageError("several servers share an archive in an object store: give its address")
    with _running("the move"):
        shared = bucket_archive.share(place, catalog_url, catalog_dir)
    for error in shared.damaged:
        click.echo(f"problem: {error.message}")
    click.echo(
        f"{counted(shared.models, 'model')} with {counted(shared.versions, 'version')} and "
        f"{counted(shared.grants, 'token')} added, {counted(shared.unchanged, 'model')} there before: "
        f"{counted(len(shared.damaged), 'problem')}"
    )
    return 1 if shared.damaged else 0


@contextlib.contextmanager
def _input(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        check_open(sys.stdin)
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        yield file


@contextlib.contextmanager
def _opened(directory: str, *, may_be_unused: bool = False) -> "Iterator[tuple[OwnedFiles, int]]":
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


def _warn(message: str) -> None:
    click.echo(message, err=True)


@contextlib.contextmanager
def _running(what: str) -> Iterator[None]:
    """Return a context manager that turns errors of the system into one line, and cleans up on signals."""
    import structlog  # noqa: PLC0415

    # Errors are printed; log lines of a server do not belong in the output of a command.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with translating_errors(what), ending_on_signals():
        yield
