"""`cogment archive`: verify, repair, export and import archive directories, without a server."""

import json
import time
from typing import TYPE_CHECKING, Any

import click

from cogment_model_registry.cli import archive_transfer, bucket_archive
from cogment_model_registry.cli.archive_places import (
    CATALOG_HELP,
    PLACE,
    check_catalog_dir,
    check_catalog_url,
    opened,
    running,
    warn,
)
from cogment_model_registry.cli.groups import Command, Group
from cogment_model_registry.cli.progress import is_shown, progress_bar
from cogment_model_registry.cli.running import PathType
from cogment_model_registry.cli.server_extra import check_server_extra
from cogment_model_registry.errors import NotFoundError, counted, shown
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.storage.filesystem.findings import AFTER_REPAIR, INFORMATION, MEANINGS, Finding

if TYPE_CHECKING:
    from cogment_model_registry.storage.filesystem.claim import OwnedFiles
    from cogment_model_registry.storage.filesystem.repair import Outcome
    from cogment_model_registry.storage.filesystem.verification import Report

_DIRECTORY = PathType(exists=True, file_okay=False)


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
@click.argument("directory", type=PLACE)
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

    DIRECTORY may also be an address such as s3://bucket/prefix. There, --repair removes what interrupted uploads and
    deletions have left, and rebuilds malformed metadata of models from those of their versions, without user_data.
    """
    started = time.monotonic()
    if bucket_archive.is_url(directory):
        return _verify_bucket(directory, started, is_repair=is_repair, as_json=as_json)
    with running(f"checking {shown(directory)}"), opened(directory) as (files, root):
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
    outcomes: list[Outcome] = []
    with running(f"checking {url}"), progress_bar("checking", None) as advance:
        if is_repair:
            report, outcomes = bucket_archive.repair(url, advance)
        else:
            report = bucket_archive.verify(url, advance)
    repaired = {outcome.finding for outcome in outcomes if outcome.is_repaired}
    problems = [finding for finding in report.findings if finding.is_problem and finding not in repaired]
    if as_json:
        document = _as_json(url, report, outcomes, is_sound=not problems and report.models > 0)
        remedies = {"findings": [{**each, "remedy": bucket_archive.REMEDY} for each in document["findings"]]}
        click.echo(json.dumps({**document, **remedies}, indent=2))
    else:
        _show(report, outcomes, [], time.monotonic() - started)
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

    with (
        running(f"the backup to {shown(target)}"),
        opened(directory) as (files, root),
        tool.opened_target(target, directory) as copy,
    ):
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
@click.argument("source", metavar="FROM", type=PLACE)
@click.argument("target", metavar="TO", type=bucket_archive.PlaceType(file_okay=False))
@click.option("--from_catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=CATALOG_HELP)
@click.option(
    "--from_catalog_url",
    metavar="URL",
    type=bucket_archive.CatalogUrlType(),
    help="Address of the catalog in PostgreSQL, if several servers share FROM.",
)
@click.option("--to_catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=CATALOG_HELP)
def copy(source: str, target: str, *, from_catalog_dir: str, from_catalog_url: str | None, to_catalog_dir: str) -> int:
    """Copy the archive FROM to TO: each is a directory, or an address such as s3://bucket/prefix.

    A server may use FROM, and none TO. All models and archived versions are copied, checked against their hashes, then
    the aliases, tags, metrics and tokens. What TO has already is not copied again: the same command continues an
    interrupted copy. TO is new, empty, or such a copy: if it has a model or a version that FROM does not have, nothing
    is copied. TO is an archive of one server, also if several servers share FROM; without --from_catalog_url, aliases,
    tags, metrics, rules and tokens are then left out, and a warning on standard error says so before the copy begins.

    Exits with 1 if a version is damaged, which is left out, or if TO is no copy of FROM; and with 3 if one of them
    cannot be used or FROM has no model.
    """
    for name, place, catalog in (("from", source, from_catalog_dir), ("to", target, to_catalog_dir)):
        check_catalog_dir(place, catalog, f"{name}_catalog_dir")
    check_catalog_url(source, from_catalog_url, from_catalog_dir, "from_")
    with running(f"the copy to {shown(target)}"), progress_bar("copying", None) as advance:
        if from_catalog_url:
            copied = bucket_archive.copy_shared(source, from_catalog_url, target, to_catalog_dir, advance)
            has_catalog = True
        else:
            copied, has_catalog = bucket_archive.copy(
                source, target, from_catalog_dir, to_catalog_dir, warn=warn, advance=advance
            )
    for error in copied.damaged:
        click.echo(f"problem: {error.message}")
    click.echo(
        f"{counted(copied.models, 'model')}: {counted(copied.versions, 'version')} copied "
        f"({size_text(copied.data_bytes)}), {copied.unchanged} unchanged, "
        f"{'with' if has_catalog else 'without'} a catalog: {counted(len(copied.damaged), 'problem')}"
    )
    return 1 if copied.damaged else 0


@archive.command("share", short_help="Let several servers use an archive in an object store.")
@click.argument("place", metavar="URL", type=PLACE)
@click.argument("catalog_url", metavar="CATALOG_URL", type=bucket_archive.CatalogUrlType())
@click.option("--catalog_dir", metavar="PATH", type=PathType(file_okay=False), default="", help=CATALOG_HELP)
@click.option(
    "--replace_catalog",
    is_flag=True,
    help="Use CATALOG_URL in place of the catalog to which the archive belongs, which is lost.",
)
def share(place: str, catalog_url: str, *, catalog_dir: str, replace_catalog: bool) -> int:
    """Make the archive at URL, of one server, one that several servers share, with their catalog at CATALOG_URL.

    The server must have stopped, and no single server can use the archive afterwards. Its models and versions are put
    into the catalog in PostgreSQL, with the aliases, tags, metrics, rules and tokens of the server's own catalog. What
    the shared catalog has already is left as it is: the same command continues an interrupted run.

    The archive then belongs to that catalog, and is refused with another database. If the catalog was lost and there is
    no backup of it, --replace_catalog gives the servers a new one, once all of them have stopped: then aliases, tags,
    metrics, rules and tokens are missing, and numbers may be given again that transient versions had.

    Exits with 1 if a version is damaged, which is left out; and with 3 if one of them cannot be used.
    """
    if not bucket_archive.is_url(place):
        raise click.UsageError("several servers share an archive in an object store: give its address")
    with running("the move"):
        shared = bucket_archive.share(place, catalog_url, catalog_dir, replaces_catalog=replace_catalog)
    for error in shared.damaged:
        click.echo(f"problem: {error.message}")
    click.echo(
        f"{counted(shared.models, 'model')} with {counted(shared.versions, 'version')} and "
        f"{counted(shared.grants, 'token')} added, {counted(shared.unchanged, 'model')} there before: "
        f"{counted(len(shared.damaged), 'problem')}"
    )
    return 1 if shared.damaged else 0


archive.add_command(archive_transfer.export_model)
archive.add_command(archive_transfer.import_model)
