"""`cogment client model_registry`: tags, rules of retention and shares of models."""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.connection import Flags, common_flags, complete_model
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import (
    HELP_WIDTH,
    ByteCount,
    Entry,
    ModelId,
    WholeNumber,
    model_argument,
    word_text,
)
from cogment_model_registry.cli.presentation import Column, safe
from cogment_model_registry.cli.running import PathType, is_terminal, open_standard_input, translating_errors
from cogment_model_registry.errors import InvalidError, counted
from cogment_model_registry.records.documents import model_as_json, report_as_json, rule_as_json
from cogment_model_registry.records.sizes import size_text

if TYPE_CHECKING:
    from cogment_model_registry.records.lifecycle import ModelSummary, RetentionReport
    from cogment_model_registry.records.retention import RetentionRule

_F = TypeVar("_F", bound=Callable[..., object])

_FILE_MAX_BYTES = 1024 * 1024

_expected = click.option(
    "--expected", metavar="REVISION", type=WholeNumber(1), help="Change it only if the model has this revision now."
)
_rules = click.option("--rule", "rules", metavar="RULE", multiple=True, help="Such as 'archived keep_last=10'.")
_file = click.option(
    "--file",
    "path",
    metavar="FILE",
    type=PathType(),
    help="Read the rules as JSON from a file; '-' for standard input.",
)


@click.command("set_retention", cls=Command, short_help="Set the rules of a model.", context_settings=HELP_WIDTH)
@model_argument
@_rules
@_file
@click.option("--none", "is_none", is_flag=True, help="Remove all rules: every version is kept.")
@_expected
@common_flags
def set_retention(
    flags: Flags, model_id: str, *, rules: tuple[str, ...], path: str | None, is_none: bool, expected: int | None
) -> None:
    """Replace the rules that keep and delete the versions of a MODEL. The server applies them automatically.

    A rule is about the versions of a tier (transient or archived; of both without it) that its filter accepts. It keeps
    those that keep_last=N, keep_best=N with metric=NAME (and lower_is_better), keep_seconds=N or keep_every=N name; the
    others are deleted, unless another rule or an alias keeps them. The newest version always stays.

    Try the rules first with apply_retention --dry_run.
    """
    given = _given(rules, path, is_none=is_none)
    if given is None:
        raise click.UsageError("give --rule, --file or --none")
    with flags.connected() as registry:
        model = registry.set_retention(model_id, given, expected=expected)
        count = counted(len(model.retention), "rule")
        show_changed_model(flags, model, f"model {safe(model_id)} has {count}")


@click.command("show_retention", cls=Command, short_help="Show the rules of a model.", context_settings=HELP_WIDTH)
@model_argument
@common_flags
def show_retention(flags: Flags, model_id: str) -> None:
    """Show the rules that keep and delete the versions of a MODEL, one a line, as set_retention takes them.

    With --json, they are what set_retention --file reads.
    """
    from cogment_model_registry.cli.rules import rule_text  # noqa: PLC0415 # help needs no records

    with flags.connected() as registry:
        rules = registry.describe_model(model_id).retention
        if flags.as_json:
            presentation.print_json([rule_as_json(rule) for rule in rules])
        else:
            presentation.print_lines(presentation.printable(rule_text(rule)) for rule in rules)


@click.command(
    "apply_retention", cls=Command, short_help="Apply rules, or show what they would do.", context_settings=HELP_WIDTH
)
@click.argument("model_id", metavar="[MODEL]", type=ModelId(), required=False, shell_complete=complete_model)
@click.option("--dry_run", is_flag=True, help="Delete nothing; show what would happen.")
@_rules
@_file
@common_flags
def apply_retention(
    flags: Flags, model_id: str | None, *, dry_run: bool, rules: tuple[str, ...], path: str | None
) -> None:
    """Delete the versions of a MODEL, or of all models, that rules do not keep, and say why each goes or stays.

    With --dry_run, nothing is deleted, and --rule or --file try other rules. With --quiet, print only the numbers of
    deleted versions, after the model if none was given.
    """
    given = _given(rules, path, is_none=False)
    if given is not None and not dry_run:
        raise click.UsageError("--rule and --file are only for --dry_run; set_retention sets the rules of a model")
    with flags.connected() as registry:
        report = registry.apply_retention(model_id, dry_run=dry_run, rules=given)
        if flags.as_json:
            presentation.print_json(report_as_json(report))
        elif flags.is_quiet:
            prefix = "" if model_id else "{} "
            presentation.print_lines(
                prefix.format(safe(each.version.info.model_id)) + str(each.version.number)
                for each in report.decisions
                if each.deleted
            )
        else:
            _print_report(report, with_model=model_id is None, is_dry_run=dry_run)


_DECISION_COLUMNS = (
    Column("MODEL", gives_way="second"),
    Column("VERSION", "right"),
    Column("KIND"),
    Column("SIZE", "right"),
    Column("ACTION"),
    Column("REASON", gives_way="second"),
)


def _print_report(report: "RetentionReport", *, with_model: bool, is_dry_run: bool) -> None:
    start = 0 if with_model else 1
    rows = [
        (
            safe(each.version.info.model_id),
            str(each.version.number),
            presentation.kind(each.version.info),
            presentation.size_field(each.version.info.data_size_bytes),
            "delete" if each.deleted else "keep",
            presentation.printable(each.reason),
        )[start:]
        for each in report.decisions
    ]
    presentation.print_table(_DECISION_COLUMNS[start:], rows)
    verb = "would be deleted" if is_dry_run else "deleted"
    size = size_text(report.freed_bytes)
    lines = [f"{counted(report.deleted_versions, 'version')} {verb} ({size}), {report.kept_versions} kept"]
    if left_out := report.deleted_versions + report.kept_versions - len(rows):
        lines.insert(0, f"{counted(left_out, 'more version')} not shown")
    presentation.print_lines(lines)


def _given(words: Iterable[str], path: str | None, *, is_none: bool) -> "list[RetentionRule] | None":
    """Return the rules that a line gives; None if it gives none."""
    from cogment_model_registry.cli.rules import parse_rule, parse_rules  # noqa: PLC0415 # help needs no records

    texts = [*words]
    if bool(texts) + (path is not None) + is_none > 1:
        raise click.UsageError("give either --rule or --file or --none")
    if path is not None:
        what = "standard input" if path == "-" else safe(path)
        with translating_errors(f"cannot read {what}"):
            return parse_rules(_read(path), what)
    rules = [parse_rule(word_text(text) or "\0") for text in texts]
    return rules if rules or is_none else None


def _read(path: str) -> str:
    if path == "-" and is_terminal(sys.stdin):
        raise click.UsageError("rules cannot be read from a terminal: name a file, or redirect standard input")
    if path == "-":
        with open_standard_input() as stream:
            data = stream.read(_FILE_MAX_BYTES + 1)
    else:
        with open(path, "rb") as stream:
            data = stream.read(_FILE_MAX_BYTES + 1)
    if len(data) > _FILE_MAX_BYTES:
        raise InvalidError(f"{safe(path)} has more than {_FILE_MAX_BYTES} bytes; rules take less")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidError(f"{safe(path)} is not text in UTF-8") from None


@click.command("update_model", cls=Command, short_help="Set tags of a model.", context_settings=HELP_WIDTH)
@model_argument
@click.option("--tag", "tags", metavar="NAME=TEXT", type=Entry(), multiple=True, help="Tag to set.")
@click.option("--remove_tag", "removed_tags", metavar="NAME", multiple=True, help="Tag to remove.")
@_expected
@common_flags
def update_model(
    flags: Flags,
    model_id: str,
    *,
    tags: tuple[tuple[str, str], ...],
    removed_tags: tuple[str, ...],
    expected: int | None,
) -> None:
    """Set and remove tags of a MODEL. Each flag may be given several times."""
    if not (tags or removed_tags):
        raise click.UsageError("give at least one of --tag and --remove_tag")
    with flags.connected() as registry:
        model = registry.update_model(model_id, tags={**dict(tags), **dict.fromkeys(removed_tags)}, expected=expected)
        show_changed_model(flags, model, f"updated model {safe(model_id)}")


@click.command(
    "set_share", cls=Command, short_help="Set the share of the memory of a model.", context_settings=HELP_WIDTH
)
@model_argument
@click.option("--max_items", type=WholeNumber(0), default=0, metavar="N", help="Keep at most N transient versions.")
@click.option("--max_bytes", type=ByteCount(), default=0, metavar="SIZE", help="Keep at most SIZE of them.")
@click.option("--reserved_items", type=WholeNumber(0), default=0, metavar="N", help="Evict the last N of them last.")
@click.option("--reserved_bytes", type=ByteCount(), default=0, metavar="SIZE", help="Evict the last SIZE of them last.")
@_expected
@common_flags
def set_share(
    flags: Flags,
    model_id: str,
    *,
    max_items: int,
    max_bytes: int,
    reserved_items: int,
    reserved_bytes: int,
    expected: int | None,
) -> None:
    """Bound what a MODEL takes of the memory for transient versions, or reserve some of it.

    What is not given is 0: no bound, or no reserve. So without flags, the model has no share of its own.
    """
    from cogment_model_registry.records.retention import TransientShare  # noqa: PLC0415 # help needs no records

    with flags.connected() as registry:
        share = TransientShare(max_items, max_bytes, reserved_items, reserved_bytes)
        model = registry.set_share(model_id, share, expected=expected)
        show_changed_model(flags, model, f"set the share of model {safe(model_id)}")


def show_changed_model(flags: Flags, model: "ModelSummary", done: str) -> None:
    """Show a model that was changed."""
    if flags.as_json:
        presentation.print_json(model_as_json(model))
    elif flags.is_quiet:
        presentation.print_lines([str(model.revision)])
    else:
        flags.say(f"{done}; revision {model.revision}")


@click.command(
    "find_models", cls=Command, short_help="List the models that a filter accepts.", context_settings=HELP_WIDTH
)
@click.option("--filter", "accepted", default="", metavar="FILTER", help="Such as 'tags.team = robots'.")
@click.option("--limit", type=WholeNumber(1), metavar="N", help="Print at most N models.")
@common_flags
def find_models(flags: Flags, *, accepted: str, limit: int | None) -> None:
    """List the models that a filter accepts, with tags and aliases, ordered by id.

    docs/lifecycle.md describes filters. With --quiet, print only ids.
    """
    with flags.connected() as registry:
        text = word_text(accepted)
        if text is None:
            raise InvalidError("the filter must be text")
        models = registry.find_models(text, limit=limit)
        if flags.as_json:
            presentation.print_json([model_as_json(model) for model in models])
        elif flags.is_quiet:
            presentation.print_lines(safe(model.model_id) for model in models)
        else:
            presentation.print_table(_FOUND_COLUMNS, [_row(model) for model in models])


_FOUND_COLUMNS = (
    Column("MODEL", gives_way="second"),
    Column("LATEST", "right"),
    Column("VERSIONS", "right"),
    Column("ARCHIVED", "right"),
    Column("RULES", "right", gives_way="last"),
    Column("ALIASES", gives_way="second"),
    Column("TAGS", gives_way="first"),
)


def _row(model: "ModelSummary") -> tuple[str, ...]:
    return (
        safe(model.model_id),
        str(model.latest_number or "-"),
        str(model.versions),
        presentation.size_field(model.archived_bytes),
        str(len(model.retention)),
        ",".join(safe(alias.name) for alias in model.aliases) or "-",
        presentation.user_data_text(model.tags),
    )


COMMANDS = (find_models, update_model, set_share, set_retention, show_retention, apply_retention)
