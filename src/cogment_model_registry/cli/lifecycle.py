"""`cogment client model_registry`: promotion, aliases, tags, metrics, search and deletion."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.connection import Flags, common_flags, complete_model
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import (
    HELP_WIDTH,
    ModelId,
    NumberedCommand,
    WholeNumber,
    archived_flag,
    metrics_of,
    metrics_option,
    model_argument,
    required_version_argument,
    tags_option,
    word_text,
)
from cogment_model_registry.cli.running import is_terminal
from cogment_model_registry.errors import InvalidError, ModelRegistryError, WrongServerError
from cogment_model_registry.records.documents import alias_as_json, version_as_json

if TYPE_CHECKING:
    from cogment_model_registry import Alias, ModelRegistry, Version, VersionInfo

_F = TypeVar("_F", bound=Callable[..., object])

_alias = click.argument("alias", metavar="ALIAS", type=ModelId())
_expected = click.option(
    "--expected",
    metavar="REVISION",
    type=WholeNumber(0),
    help="Change it only if it has this revision now; 0 for an alias that must not exist.",
)


@click.command(
    "promote_version",
    cls=NumberedCommand,
    short_help="Make a transient version archived.",
    context_settings=HELP_WIDTH,
)
@model_argument
@required_version_argument
@click.option("--alias", metavar="ALIAS", type=ModelId(), help="Alias to point to it.")
@common_flags
def promote_version(flags: Flags, model_id: str, number: int | str, *, alias: str | None) -> None:
    """Make a transient VERSION of a MODEL archived: durable when the command ends, and kept.

    VERSION is a number, -1 for the latest, or an alias. The bytes do not leave the server.
    """
    with flags.connected() as registry:
        version = registry.promote(model_id, number, alias=alias)
        _show(flags, version, f"promoted version {version.number} of model {presentation.safe(model_id)}")


@click.command(
    "update_version", cls=NumberedCommand, short_help="Set tags and metrics of a version.", context_settings=HELP_WIDTH
)
@model_argument
@required_version_argument
@tags_option
@click.option("--remove_tag", "removed_tags", metavar="NAME", multiple=True, help="Tag to remove.")
@metrics_option
@click.option("--remove_metric", "removed_metrics", metavar="NAME", multiple=True, help="Metric to remove.")
@_expected
@common_flags
def update_version(
    flags: Flags,
    model_id: str,
    number: int | str,
    *,
    tags: tuple[tuple[str, str], ...],
    removed_tags: tuple[str, ...],
    metrics: tuple[tuple[str, str], ...],
    removed_metrics: tuple[str, ...],
    expected: int | None,
) -> None:
    """Set and remove tags and metrics of a VERSION of a MODEL.

    VERSION is a number, -1 for the latest, or an alias. Each flag may be given several times.
    """
    if not (tags or removed_tags or metrics or removed_metrics):
        raise click.UsageError("give at least one of --tag, --remove_tag, --metric and --remove_metric")
    with flags.connected() as registry:
        version = registry.update_version(
            model_id,
            number,
            tags={**dict(tags), **dict.fromkeys(removed_tags)},
            metrics={**metrics_of(metrics), **dict.fromkeys(removed_metrics)},
            expected=expected or None,
        )
        _show(flags, version, f"updated version {version.number} of model {presentation.safe(model_id)}")


def lacks_lifecycle(error: ModelRegistryError) -> bool:
    """Return whether a call failed because the server has no ModelLifecycle, as the original."""
    return isinstance(error.__cause__, WrongServerError)


def _search_flags(function: _F) -> _F:
    """Add the flags of commands that list versions."""
    options = (
        click.option("--filter", "accepted", default="", metavar="FILTER", help="Such as 'metrics.return > 480'."),
        click.option("--order_by", default="", metavar="FIELD", help="Such as 'metrics.return desc'; default: number."),
        click.option("--limit", type=WholeNumber(1), metavar="N", help="Print at most N versions."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    "list_versions",
    cls=Command,
    short_help="List the versions of a model that can be retrieved.",
    context_settings=HELP_WIDTH,
)
@model_argument
@archived_flag
@_search_flags
@common_flags
def list_versions(
    flags: Flags, model_id: str, *, archived: bool, accepted: str, order_by: str, limit: int | None
) -> None:
    """List the versions of a MODEL that can be retrieved, with their metrics, tags and aliases.

    docs/lifecycle.md describes filters. With --quiet, print only numbers.
    """
    with flags.connected() as registry:
        # An expression is complete before the AND, so its own precedence does not matter.
        tier = (" AND " * bool(accepted) + "archived = true") if archived else ""
        try:
            versions: Sequence[VersionInfo] = _found(registry, model_id, accepted + tier, order_by, limit)
        except ModelRegistryError as error:
            if accepted or order_by or limit or not lacks_lifecycle(error):
                raise
            versions = registry.list_versions(model_id, archived=archived)
        _show_versions(flags, versions, with_model=False)


@click.command(
    "find_versions", cls=Command, short_help="List the versions that a filter accepts.", context_settings=HELP_WIDTH
)
@click.argument("model_id", metavar="[MODEL]", type=ModelId(), required=False, shell_complete=complete_model)
@_search_flags
@common_flags
def find_versions(flags: Flags, model_id: str | None, *, accepted: str, order_by: str, limit: int | None) -> None:
    """List the versions of all models, or of a MODEL, as list_versions does.

    docs/lifecycle.md describes filters. With --quiet, print only numbers, after the model if none was given.
    """
    with flags.connected() as registry:
        versions = _found(registry, model_id, accepted, order_by, limit)
        _show_versions(flags, versions, with_model=model_id is None)


def _found(
    registry: "ModelRegistry", model_id: str | None, accepted: str, order_by: str, limit: int | None
) -> "list[Version]":
    accepted_text, order_text = (word_text(text) for text in (accepted, order_by))
    if accepted_text is None or order_text is None:
        raise InvalidError("the filter and the order must be text")
    return registry.find_versions(model_id, accepted_text, order_by=order_text, limit=limit)


def _show_versions(flags: Flags, versions: "Sequence[VersionInfo]", *, with_model: bool) -> None:
    if flags.as_json:
        presentation.print_json([version_as_json(version) for version in versions])
    elif flags.is_quiet:
        prefix = "{} " if with_model else ""
        presentation.print_lines(
            prefix.format(presentation.safe(version.model_id)) + str(version.number) for version in versions
        )
    else:
        presentation.print_versions(versions, with_model=with_model)


@click.command("delete_version", cls=NumberedCommand, short_help="Delete a version.", context_settings=HELP_WIDTH)
@model_argument
@required_version_argument
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--force", is_flag=True, help="Remove the aliases that point to it too.")
@common_flags
def delete_version(flags: Flags, model_id: str, number: int | str, *, yes: bool, force: bool) -> None:
    """Delete a VERSION of a MODEL, after asking. Its number is never given again.

    VERSION is a number, -1 for the latest, or an alias.
    """
    if not yes and not is_terminal(sys.stdin):
        raise click.UsageError("standard input is not a terminal, so nobody can confirm the deletion: give --yes")
    with flags.connected() as registry:
        version = registry.describe_version(model_id, number)
        if not yes:
            what = f"{presentation.kind(version)} version {version.number} of model {presentation.safe(model_id)}"
            presentation.confirm(f"Delete {what}?", otherwise="nothing was deleted")
        registry.delete_version(model_id, version.number, force=force)
        if flags.as_json:
            presentation.print_json({"model_id": model_id, "number": version.number})
        flags.say(f"deleted version {version.number} of model {presentation.safe(model_id)}")


@click.command("list_aliases", cls=Command, short_help="List the aliases of a model.", context_settings=HELP_WIDTH)
@model_argument
@common_flags
def list_aliases(flags: Flags, model_id: str) -> None:
    """List the aliases of a MODEL, with the versions that they point to. With --quiet, print only their names."""
    with flags.connected() as registry:
        aliases = registry.aliases(model_id)
        if flags.as_json:
            presentation.print_json([alias_as_json(alias) for alias in aliases.values()])
        elif flags.is_quiet:
            presentation.print_lines(map(presentation.safe, aliases))
        else:
            presentation.print_aliases(aliases.values())


@click.command("set_alias", cls=NumberedCommand, short_help="Point an alias to a version.", context_settings=HELP_WIDTH)
@model_argument
@_alias
@required_version_argument
@_expected
@common_flags
def set_alias(flags: Flags, model_id: str, alias: str, number: int | str, *, expected: int | None) -> None:
    """Point an ALIAS of a MODEL to a VERSION, atomically and durably; a transient version is archived first.

    VERSION is a number, -1 for the latest, or another alias. With --quiet, print only the new revision.
    """
    with flags.connected() as registry:
        moved = registry.set_alias(model_id, alias, number, expected=expected)
        _show_alias(flags, moved, model_id)


def _show_alias(flags: Flags, alias: "Alias", model_id: str) -> None:
    if flags.as_json:
        presentation.print_json(alias_as_json(alias))
    elif flags.is_quiet:
        presentation.print_lines([str(alias.revision)])
    else:
        target = f"version {alias.version_number} of model {presentation.safe(model_id)}"
        flags.say(f"alias {presentation.safe(alias.name)} points to {target}; revision {alias.revision}")


@click.command("remove_alias", cls=Command, short_help="Remove an alias.", context_settings=HELP_WIDTH)
@model_argument
@_alias
@_expected
@common_flags
def remove_alias(flags: Flags, model_id: str, alias: str, *, expected: int | None) -> None:
    """Remove an ALIAS of a MODEL."""
    with flags.connected() as registry:
        registry.remove_alias(model_id, alias, expected=expected)
        if flags.as_json:
            presentation.print_json({"model_id": model_id, "alias": alias})
        flags.say(f"removed alias {presentation.safe(alias)} of model {presentation.safe(model_id)}")


def _show(flags: Flags, version: "Version", done: str) -> None:
    if flags.as_json:
        presentation.print_json(version_as_json(version))
    elif flags.is_quiet:
        presentation.print_lines([str(version.number)])
    else:
        flags.say(f"{done}; revision {version.revision}")


COMMANDS = (
    promote_version,
    update_version,
    list_versions,
    find_versions,
    delete_version,
    list_aliases,
    set_alias,
    remove_alias,
)
