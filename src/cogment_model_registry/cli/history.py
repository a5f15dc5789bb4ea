"""`cogment client model_registry history`: who changed what of a model."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.connection import Flags, common_flags
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import HELP_WIDTH, ModelId, Moment, WholeNumber, model_argument
from cogment_model_registry.cli.presentation import Column, safe
from cogment_model_registry.records.documents import entry_as_json, time_text
from cogment_model_registry.records.history import HISTORY_LIMIT

if TYPE_CHECKING:
    from cogment_model_registry import HistoryEntry

_COLUMNS = (
    Column("TIME"),
    Column("CHANGE"),
    Column("VERSION", "right"),
    Column("ALIAS", gives_way="second"),
    Column("CALLER", gives_way="second"),
    Column("PEER", gives_way="last"),
    Column("BEFORE", gives_way="first"),
    Column("AFTER", gives_way="first"),
)


@click.command("history", cls=Command, short_help="Show who changed what of a model.", context_settings=HELP_WIDTH)
@model_argument
@click.option("--alias", metavar="ALIAS", type=ModelId(), help="Only changes of an alias.")
@click.option("--since", "since_ns", metavar="TIME", type=Moment(), help="Only changes since a time or a day (UTC).")
@click.option(
    "--limit",
    type=WholeNumber(1),
    metavar="N",
    default=HISTORY_LIMIT,
    show_default=True,
    help="Print at most N changes.",
)
@common_flags
def history(flags: Flags, model_id: str, *, alias: str | None, since_ns: int | None, limit: int) -> None:
    """Show the changes of a MODEL, newest first: what, by whom, and what was before and after.

    They come from the audit log of the server, and need the scope admin. With --quiet, print only the changes' times.
    """
    with flags.connected() as registry:
        entries = registry.history(model_id, alias=alias, since_ns=since_ns, limit=limit)
        if flags.as_json:
            presentation.print_json([entry_as_json(entry) for entry in entries])
        elif flags.is_quiet:
            presentation.print_lines(time_text(entry.time_ns) for entry in entries)
        else:
            _print(entries)


def _print(entries: "Sequence[HistoryEntry]") -> None:
    presentation.print_table(
        _COLUMNS,
        [
            (
                time_text(entry.time_ns),
                presentation.printable(entry.change),
                str(entry.version_number or "-"),
                safe(entry.alias) if entry.alias else "-",
                safe(entry.caller or entry.caller_kind),
                safe(entry.peer) if entry.peer else "-",
                _state_text(entry.before, entry.after),
                presentation.printable(entry.reason) if entry.reason else _state_text(entry.after, entry.before),
            )
            for entry in entries
        ],
    )


def _state_text(state: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Return what was or is, as far as it differs, in one line without control characters."""
    if state is None:
        return "-"
    differing = {name: value for name, value in state.items() if other is None or other.get(name, ...) != value}
    return " ".join(f"{safe(name, '=')}={_value_text(value)}" for name, value in differing.items())


def _value_text(value: object) -> str:
    if isinstance(value, str):
        return safe(value)
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")  # JSON leaves this one as it is


COMMANDS = (history,)
