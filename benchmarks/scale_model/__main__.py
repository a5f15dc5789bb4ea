"""`python -m benchmarks.scale_model`: print what the model says; `measure` measures what it computes from."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click

from benchmarks.scale_model import tables
from benchmarks.scale_model.figures import FILE, Measured
from benchmarks.scale_model.inputs import INPUTS, Inputs, Kept, Machines, Prices, Work


def _with_inputs(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each input."""
    for part in reversed(INPUTS):
        for each in reversed(fields(part)):
            option = click.option(
                f"--{each.name}",
                type=click.FloatRange(min=0, min_open=part is not Prices),
                default=each.default,
                show_default=True,
                help=each.metadata["what"].capitalize() + ".",
            )
            command = option(command)
    return command


@click.group(invoke_without_command=True)
@click.option("--figures", "path", type=click.Path(path_type=Path), default=FILE, help="What `measure` wrote.")
@_with_inputs
@click.pass_context
def main(context: click.Context, /, path: Path, **given: float) -> None:
    """Print what the model says of the work, the machines and the prices that are given."""
    if context.invoked_subcommand:
        return
    work, machines, kept, prices = ({each.name: given[each.name] for each in fields(part)} for part in INPUTS)
    inputs = Inputs(Work(**work), Machines(**machines), Kept(**kept), Prices(**prices))
    run = Measured.read(path)
    for title, table in tables.report(inputs, run).items():
        click.echo(f"{title}\n\n{table}\n")


@main.command("measure")
@click.option("--quick", is_flag=True, help="Measure little; the figures say little.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=FILE, help="The file to write.")
def measure_command(*, quick: bool, path: Path) -> None:
    """Measure what the model computes from, in some minutes."""
    from benchmarks.scale_model.measuring import measure  # noqa: PLC0415 # the model itself needs no PostgreSQL

    run = measure(quick=quick)
    run.write(path)
    click.echo(tables.measured(run))


if __name__ == "__main__":
    main()
