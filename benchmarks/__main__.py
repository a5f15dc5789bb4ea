"""`python -m benchmarks`: measure, print tables, write JSON, and draw plots on request."""

import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from benchmarks import (
    consumers,
    control_path,
    data_path,
    downloads,
    encryption,
    h2load,
    http,
    library,
    lifecycle,
    listing,
    memory,
    object_store,
    page,
    pages,
    peers,
    plots,
    relays,
    same_host,
    shared_servers,
    small_path,
    tokens,
    trials,
    watching,
)
from benchmarks.bench import Bench, Benchmark, NotHereError
from benchmarks.machine import Machine
from benchmarks.measures import Result
from benchmarks.processes import ROOT
from benchmarks.report import Run

_FIGURES = [
    *data_path.BENCHMARKS,
    *encryption.BENCHMARKS,
    *control_path.BENCHMARKS,
    *watching.BENCHMARKS,
    *listing.BENCHMARKS,
    *memory.BENCHMARKS,
    *object_store.BENCHMARKS,
    *relays.BENCHMARKS,
    *shared_servers.BENCHMARKS,
    *library.BENCHMARKS,
    *downloads.BENCHMARKS,
    *lifecycle.BENCHMARKS,
    *consumers.BENCHMARKS,
    *same_host.BENCHMARKS,
    *small_path.BENCHMARKS,
    *tokens.BENCHMARKS,
    *h2load.BENCHMARKS,
    *http.BENCHMARKS,
    *page.BENCHMARKS,
    *pages.BENCHMARKS,
]
_CURVES = [*data_path.CURVES, *control_path.CURVES]
_WIDTH = 130
_ALL = [*_FIGURES, *peers.BENCHMARKS, *_CURVES, *trials.TRIALS]


def _chosen(only: Sequence[str], *, with_plots: bool, quick: bool) -> list[Benchmark]:
    names = {benchmark.name for benchmark in _ALL}
    if unknown := sorted(set(only) - names):
        raise click.UsageError(f"there is no {', '.join(unknown)}; --list shows all names")
    if only:
        return [benchmark for benchmark in _ALL if benchmark.name in only]
    left_out = [*trials.TRIALS, *([] if with_plots else _CURVES), *(peers.BENCHMARKS if quick else [])]
    return [benchmark for benchmark in _ALL if benchmark not in left_out]


def _measure(bench: Bench, benchmark: Benchmark, run: Run) -> None:
    """Measure, and record the result or the failure."""
    started = time.perf_counter()
    try:
        outcomes = benchmark.run(bench)
    except NotHereError as error:
        run.skipped[benchmark.name] = str(error)
        return
    except Exception as error:  # a failed benchmark is reported, and the others continue
        run.failed[benchmark.name] = escape(f"{type(error).__name__}: {error}")
        return
    finally:
        run.seconds[benchmark.name] = round(time.perf_counter() - started, 1)
    for outcome in outcomes:
        if not isinstance(outcome, Result):
            run.curves.append(outcome)
        elif benchmark in peers.BENCHMARKS:
            run.peers.append(outcome)
        else:
            run.figures.append(outcome)


def _run_all(benchmarks: Sequence[Benchmark], directory: Path, console: Console, *, quick: bool, mlflow: str) -> Run:
    run = Run(Machine.here(directory), quick)
    bench = Bench(directory, quick=quick, mlflow=mlflow)
    try:
        for index, benchmark in enumerate(benchmarks, 1):
            console.print(f"[dim]{index}/{len(benchmarks)} {benchmark.what}[/]")
            _measure(bench, benchmark, run)
    finally:
        bench.close()
        shutil.rmtree(directory, ignore_errors=True)
    return run


def _exit_on(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # unwinds all context managers, which end the processes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Fewer repetitions, smaller sizes, and no alternatives.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure only this; may be repeated.")
@click.option("--list", "list_them", is_flag=True, help="List all benchmarks.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File to write the figures to, as JSON.")
@click.option("--update", is_flag=True, help="Replace the figures measured now in the file of an earlier run.")
@click.option(
    "--plots", "plots_dir", type=click.Path(path_type=Path), is_flag=False, flag_value=ROOT / "docs/benchmarks"
)
@click.option("--mlflow", default="", metavar="PATH", help="The program of MLflow, if it is not in PATH.")
def main(
    *,
    quick: bool,
    only: Sequence[str],
    list_them: bool,
    json_path: Path | None,
    update: bool,
    plots_dir: Path | None,
    mlflow: str,
) -> None:
    """Measure the server and the client, and compare each figure with its floor."""
    if update and (json_path is None or not json_path.exists()):
        raise click.UsageError("--update needs --json with a file of an earlier run")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)  # the console has none for a file
    if list_them:
        for benchmark in _ALL:
            console.print(f"{benchmark.name:20}{benchmark.what}", highlight=False)
        return
    benchmarks = _chosen(only, with_plots=plots_dir is not None, quick=quick)
    if plots_dir is not None:
        try:
            plots.load_matplotlib()  # fails before minutes are spent
        except plots.NoPlotsError as error:
            raise click.ClickException(str(error)) from None
    signal.signal(signal.SIGTERM, _exit_on)
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    directory = ROOT / ".cache/benchmarks" / f"run-{moment}"
    directory.mkdir(parents=True)
    started = time.perf_counter()
    run = _run_all(benchmarks, directory, console, quick=quick, mlflow=mlflow)
    run.show(console)
    json_path = json_path or ROOT / ".cache/benchmarks" / f"{moment}.json"
    (run.update if update else run.write)(json_path)
    console.print(f"{time.perf_counter() - started:.0f} seconds; figures in {json_path}", highlight=False)
    if plots_dir is not None:
        caption = f"{run.machine.date}, {run.machine.cores} cores, commit {run.machine.commit}"
        for path in plots.draw(run.curves, plots_dir, caption + (", quick run" if quick else "")):
            console.print(f"plot in {path}", highlight=False)
    if run.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
