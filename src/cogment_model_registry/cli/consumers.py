"""`cogment client model_registry`: who runs which version."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.connection import Flags, common_flags, complete_model
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import HELP_WIDTH, ModelId, WholeNumber, word_text
from cogment_model_registry.cli.presentation import Column, safe
from cogment_model_registry.cli.running import ending_with_reader
from cogment_model_registry.cli.streams import json_text
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.documents import consumer_as_json

if TYPE_CHECKING:
    from cogment_model_registry import Consumer

_REFRESH_SECONDS = 1.0
"""How often --follow looks again."""


@click.command(
    "list_consumers", cls=Command, short_help="List who runs which version of a model.", context_settings=HELP_WIDTH
)
@click.argument("model_id", metavar="[MODEL]", type=ModelId(), required=False, shell_complete=complete_model)
@click.option("--filter", "accepted", default="", metavar="FILTER", help="Such as 'versions_behind > 2'.")
@click.option("--limit", type=WholeNumber(1), metavar="N", help="Print at most N consumers.")
@click.option("--follow", is_flag=True, help="Print them again whenever something has changed, until Ctrl-C.")
@common_flags
def list_consumers(flags: Flags, model_id: str | None, *, accepted: str, limit: int | None, follow: bool) -> None:
    """List the consumers of a MODEL, or of all models: which version each runs, and how far it is behind.

    docs/consumers.md describes consumers and filters. On a terminal, --follow shows the table in place; elsewhere it
    prints another one after an empty line, or with --json another document on a line. With --quiet, print only ids.
    """
    text = word_text(accepted)
    if text is None:
        raise InvalidError("the filter must be text")
    with flags.connected() as registry:
        look = functools.partial(registry.consumers, model_id, text, limit=limit)
        if not follow:
            _print(flags, look(), with_model=model_id is None)
            return
        with ending_with_reader(registry.close):
            _follow(flags, look, with_model=model_id is None)


def _follow(flags: Flags, look: "Callable[[], Sequence[Consumer]]", *, with_model: bool) -> NoReturn:
    shown: list[tuple[object, ...]] | None = None
    while True:
        consumers = look()
        now = [_changing(each) for each in consumers]
        if presentation.is_for_people() and not flags.as_json:
            click.clear()
            _print(flags, consumers, with_model=with_model)
        elif now != shown and flags.as_json:
            click.echo(json_text([consumer_as_json(each) for each in consumers]))
        elif now != shown:
            if shown is not None:
                click.echo()
            _print(flags, consumers, with_model=with_model)
        shown = now
        time.sleep(_REFRESH_SECONDS)


def _changing(consumer: "Consumer") -> tuple[object, ...]:
    """Return what of a consumer is printed again when it has changed: not the time that passes."""
    return (consumer.model_id, consumer.consumer_id, consumer.version_number, consumer.versions_behind, consumer.state)


_COLUMNS = (
    Column("MODEL", gives_way="second"),
    Column("CONSUMER", gives_way="second"),
    Column("VERSION", "right"),
    Column("BEHIND", "right"),
    Column("SECONDS", "right"),
    Column("STATE"),
    Column("HELD", gives_way="last"),
    Column("LABELS", gives_way="first"),
    Column("ERROR", gives_way="first"),
)


def _print(flags: Flags, consumers: "Sequence[Consumer]", *, with_model: bool) -> None:
    if flags.as_json:
        presentation.print_json([consumer_as_json(each) for each in consumers])
        return
    start = 0 if with_model else 1
    if flags.is_quiet:
        presentation.print_lines(" ".join((safe(each.model_id), safe(each.consumer_id))[start:]) for each in consumers)
        return
    presentation.print_table(_COLUMNS[start:], [_row(each)[start:] for each in consumers])


def _row(consumer: "Consumer") -> tuple[str, ...]:
    return (
        safe(consumer.model_id),
        safe(consumer.consumer_id),
        str(consumer.version_number or "-"),
        str(consumer.versions_behind),
        f"{consumer.seconds_behind:.1f}",
        consumer.state,
        ",".join(map(str, consumer.held_versions)) or "-",
        presentation.user_data_text(consumer.labels) or "-",
        presentation.printable(consumer.error) if consumer.error else "",
    )


COMMANDS = (list_consumers,)
