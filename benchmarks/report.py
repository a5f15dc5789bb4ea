"""A run as tables on a terminal, and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import Machine
from benchmarks.measures import Curve, Result, Spread


@dataclass(slots=True)
class Run:
    """The results of a run.

    Attributes:
        machine: The machine.
        quick: Whether it was a quick run.
        figures: The figures.
        peers: The registry compared with alternatives.
        curves: The data of the plots.
        skipped: The reasons for which benchmarks were skipped, by name.
        failed: The errors of failed benchmarks, by name.
        seconds: The time of each benchmark, by name.
    """

    machine: Machine
    quick: bool
    figures: list[Result] = field(default_factory=list)
    peers: list[Result] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._fields(), indent=1) + "\n")

    def update(self, path: Path) -> None:
        """Replace its figures in the JSON of an earlier run, where each says when it was measured."""
        earlier, fields = json.loads(path.read_text()), self._fields()
        again = {"date": self.machine.date, "commit": self.machine.commit}
        for name in ("figures", "peers"):
            places = {(each["what"], each["against"]): index for index, each in enumerate(earlier[name])}
            for figure in fields[name]:
                index = places.get((figure["what"], figure["against"]), len(earlier[name]))
                earlier[name][index : index + 1] = [{**figure, "again": again}]
        for name in self.seconds:
            for reasons in ("skipped", "failed"):
                earlier[reasons].pop(name, None)
        for part in ("skipped", "failed", "seconds"):
            earlier[part].update(fields[part])
        path.write_text(json.dumps(earlier, indent=1) + "\n")

    def _fields(self) -> dict[str, Any]:
        fields = asdict(self)
        for name, results in (("figures", self.figures), ("peers", self.peers)):
            fields[name] = [
                {**asdict(result), "target": str(result.target or ""), "reached": result.reached} for result in results
            ]
        return fields

    def show(self, console: Console) -> None:
        """Print the tables."""
        machine = self.machine
        console.print(
            f"\n{machine.date}  commit {machine.commit}  {machine.cores} cores ({machine.processor}), "
            f"{machine.memory_mib:,} MiB, load {machine.load} before\n{machine.kernel}, {machine.file_system}, "
            f"Python {machine.python}, grpcio {machine.grpcio}"
        )
        if self.quick:
            console.print("A quick run: few repetitions and smaller sizes; its figures say little.")
        if self.figures:
            console.print(_table("Compared with the floors", "floor", self.figures))
        if self.peers:
            console.print(_table("Compared with alternatives", "alternative", self.peers))
        for result in (*self.figures, *self.peers):
            if result.note:
                console.print(f"{result.name}: {result.note}")
        for name, reason in self.skipped.items():
            console.print(f"skipped: {name}: {reason}")
        for name, reason in self.failed.items():
            console.print(f"[red]failed[/]: {name}: {reason}")
        missed = [result.name for result in self.figures if result.reached is False]
        console.print(f"Missed targets: {', '.join(missed) or 'none'}.")
        console.print(
            "Values are medians, with their quartiles; a ratio is the median over neighbouring measurements;\n"
            "processor is the processor time of the server, divided by that of the floor's server."
        )


def _table(title: str, floor: str, results: Sequence[Result]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("figure", min_width=20)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("compared with")
    table.add_column(floor, justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("processor", justify="right")
    table.add_column("target", no_wrap=True)
    table.add_column("peak MiB", justify="right")
    for result in results:
        table.add_row(
            result.what,
            _shown(result.value, result.unit),
            result.against,
            _shown(result.floor, result.unit) if result.floor else "",
            _shown(result.ratio, "x") if result.ratio else "",
            f"{result.processor_ratio:.2f} x" if result.processor_ratio is not None else "",
            f"{result.target or ''}\n{_verdict(result)}".strip(),
            f"{result.peak_mib:,.0f}" if result.peak_mib is not None else "",
        )
        table.add_section()
    return table


def _verdict(result: Result) -> str:
    return {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[result.reached]


def _shown(spread: Spread, unit: str) -> str:
    median = f"{_number(spread.median)} {unit}"
    if spread.count == 1:
        return median
    return f"{median}\n[dim]{_number(spread.lower)} to {_number(spread.upper)}[/]"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
