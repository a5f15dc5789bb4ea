"""Write the generated parts of the documents; with `--check`, only report whether they are up to date.

A document has each table between two comments: ``<!-- settings -->`` and ``<!-- /settings -->`` for the registry,
``<!-- directory settings -->`` and ``<!-- /directory settings -->`` for the Directory, and so on. Figures come from
files that `make bench` wrote; the help of a command, in comments such as ``<!-- help cogment archive -->``, from the
command.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from benchmarks.scale_model import tables
from benchmarks.scale_model.figures import Measured
from benchmarks.scale_model.inputs import INPUTS, Inputs
from cogment_model_registry.cli import cogment
from cogment_model_registry.settings import DirectorySettings, ServiceSettings, Setting, Settings, all_settings

ROOT = pathlib.Path(__file__).parent.parent


def short_table() -> str:
    """Return the table of all settings of the registry with their defaults."""
    rows = [
        f"| `--{setting.name}` | `{setting.environment}` | {setting.default_text} |"
        for setting in all_settings(Settings)
    ]
    return "\n".join(["| flag | environment variable | default |", "|---|---|---|", *rows])


def reference(settings_class: type[ServiceSettings]) -> str:
    """Return the reference of all settings of a class."""
    return "\n\n".join(section(setting) for setting in all_settings(settings_class))


def section(setting: Setting) -> str:
    """Return the section of the reference about one setting."""
    example = f"--{setting.name}" if setting.is_switch else f"--{setting.name}={setting.kind.placeholder}"
    return "\n".join(
        [
            f"### `{setting.name}`",
            "",
            setting.help,
            "",
            f"- flag: `{example}`",
            f"- environment variable: `{setting.environment}`",
            f"- allowed: {setting.kind.allowed}",
            f"- default: {setting.default_text}",
        ]
    )


def registry_reference() -> str:
    """Return the reference of the registry's settings."""
    return reference(Settings)


def directory_reference() -> str:
    """Return the reference of the Directory's settings."""
    return reference(DirectorySettings)


FIGURES = "docs/benchmarks/figures.json"
TRIALS = "docs/benchmarks/trials.json"


def run_of(file: str) -> Any:
    """Return the figures of a run of the benchmarks."""
    return json.loads((ROOT / file).read_text())


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(measured: dict[str, float], unit: str) -> str:
    """Return a median with its quartiles."""
    median = f"{number(measured['median'])} {unit}".rstrip()
    if measured["count"] == 1:
        return median
    return f"{median} ({number(measured['lower'])} to {number(measured['upper'])})"


def machine(file: str) -> str:
    """Return the sentence about the machine of a run."""
    about = run_of(file)["machine"]
    return (
        f"Measured on {about['date'][:10]} at commit `{about['commit']}`: {about['cores']} cores "
        f"({about['processor']}), {about['memory_mib'] // 1024} GiB, {about['kernel']}, {about['file_system']}, "
        f"Python {about['python']}, grpcio {about['grpcio']}."
    )


def verdict(figure: dict[str, Any]) -> str:
    """Return the target of a figure, and whether it was reached; empty if there is none."""
    if not figure["target"]:
        return ""
    return f"{figure['target']}, {'reached' if figure['reached'] else '**missed**'}"


def figures(file: str, kind: str, floor: str) -> str:
    """Return the table of a run's figures, or of its peers."""
    rows = [
        f"| {each['what']}{'*' if 'again' in each else ''} | {spread(each['value'], each['unit'])} "
        + (f"| {each['against']}: {spread(each['floor'], each['unit'])} " if each["floor"] else "| ")
        + (f"| {spread(each['ratio'], '')} |" if each["ratio"] else "| |")
        + (f" {verdict(each)} |" if kind == "figures" else "")
        for each in run_of(file)[kind]
    ]
    head = f"| figure | value | {floor} | ratio |" + (" target |" if kind == "figures" else "")
    moments = sorted(
        {(each["again"]["date"][:10], each["again"]["commit"]) for each in run_of(file)[kind] if "again" in each}
    )
    again = [
        "Rows with * were measured " + ", ".join(f"on {day} at commit `{commit}`" for day, commit in moments) + "."
    ]
    return "\n".join(
        [machine(file), *(again if moments else []), "", head, "|---" * (head.count("|") - 1) + "|", *rows]
    )


def trials() -> str:
    """Return the table of trials."""
    rows = [
        f"| {each['what']} | {spread(each['value'], each['unit'])} "
        f"| {each['against']}: {spread(each['floor'], each['unit'])} | {number(each['ratio']['median'])} |"
        for each in run_of(TRIALS)["figures"]
    ]
    return "\n".join([machine(TRIALS), "", "| trial | value | compared with | ratio |", "|---|---|---|---|", *rows])


GUARANTEES = "docs/guarantees.md"


def counted(what: str) -> str:
    """Return a count in the table of figures of the proofs, by the words after it."""
    found = re.search(rf"([0-9,]+) {what}", (ROOT / GUARANTEES).read_text())
    if found is None:
        raise SystemExit(f"{GUARANTEES} counts no {what}")
    return found[1]


CLAIMS = """\
- **Fast.** An actor has received a new version of 1 MiB {to_actor} ms after its publish began.
  1,000 watchers are notified of a version of 1 KiB within {to_watchers} ms.
  Versions of 64 MiB are sent at {sent} MiB/s, {of_grpc} times the speed of plain gRPC, and our Python client \
retrieves them {of_stock} times as fast as Cogment's. [Figures](docs/performance.md#figures)
- **Durable.** The server process was killed {kills} times, and lost none of {acknowledged} acknowledged archived \
versions.
  None of {cuts} simulated states after a power cut had lost or damaged one. [Proofs](docs/guarantees.md#figures)
- **Correct.** An archive was damaged {damage} times, and {wrong} wrong bytes were served as valid: the server checks \
archived bytes against their SHA-256. [Proofs](docs/guarantees.md#figures)
- **Bounded.** With a budget of 512 MiB for transient versions, the server peaked at {peak} MiB while ten times the \
budget was published.
  Storing a version of 4 GiB takes {stored} MiB more than an idle server. [Figures](docs/performance.md#figures)"""


def claims() -> str:
    """Return the claims of the README, with the figures of the last runs of the benchmarks and of the proofs."""
    run = {(each["what"], each["against"]): each for each in run_of(FIGURES)["figures"]}

    def median(what: str, against: str, part: str = "value") -> str:
        return number(run[what, against][part]["median"])

    watchers = ("publish 1 KiB until the last of 1,000 watchers is notified", "1,000 messages on 1,000 open streams")
    stock = ("Python client: retrieve 64 MiB from the registry", "the stock client, from the same registry")
    return CLAIMS.format(
        to_actor=median("publish 1 MiB until one watcher has retrieved it", "sink + source of 1 MiB"),
        to_watchers=median(*watchers),
        sent=median("retrieve 64 MiB, transient", "source"),
        of_grpc=median("retrieve 64 MiB, transient", "source", "ratio"),
        of_stock=median(*stock, "ratio"),
        kills=counted("kills, [0-9]+ kills during a start"),
        acknowledged=counted("acknowledged versions, [^|]*0 lost, 0 torn"),
        cuts=counted("distinct states recovered[^|]* 0 lost or damaged"),
        damage=counted("cases of damage, [0-9,]+ retrievals refused"),
        wrong=counted("wrong bytes served as valid"),
        peak=median("peak memory while publishing 10 x a budget of 512 MiB", "the budget"),
        stored=median("peak memory over idle: store 4 GiB, archived", "idle"),
    )


HELP_WIDTH = 100


def proofs() -> str:
    """Return the table of all proofs."""
    sys.path.insert(0, str(ROOT))  # the tests are not in an installed package
    from tests.torture.proofs import PROOFS  # noqa: PLC0415 (they load what tests alone need)

    rows = ["| promise | proof | short form | long form | requirements |", "|---|---|---|---|---|"]
    for proof in PROOFS:
        short, long = (proof.rounds(number) for number in (proof.short, proof.long))
        rows.append(f"| {proof.promise} | `{proof.name}` | {short} | {long} | {proof.requirements} |")
    return "\n".join(rows)


def commands(path: tuple[str, ...] = ("cogment",)) -> dict[tuple[str, ...], click.Context]:
    """Return the context of each command and group, by its name."""
    found: dict[tuple[str, ...], click.Context] = {}

    def walk(command: click.Command, words: tuple[str, ...], parent: click.Context | None) -> None:
        settings = command.context_settings
        context = click.Context(command, parent, words[-1], **{**settings, "terminal_width": HELP_WIDTH})
        found[words] = context
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                if (subcommand := command.get_command(context, name)) is not None:
                    walk(subcommand, (*words, name), context)

    walk(cogment, path, None)
    return found


def help_of(context: click.Context) -> str:
    """Return the help of a command, as a block."""
    return f"```text\n{context.get_help()}\n```"


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"claims": claims},
    "docs/configuration.md": {
        "table of settings": short_table,
        "settings": registry_reference,
        "directory settings": directory_reference,
    },
    "docs/performance.md": {
        "figures": lambda: figures(FIGURES, "figures", "compared with"),
        "peers": lambda: figures(FIGURES, "peers", "compared with"),
        "trials": trials,
    },
    "docs/guarantees.md": {"proofs": proofs},
    "docs/scale_model.md": {
        "measured": lambda: tables.measured(Measured.read()),
        "inputs": lambda: tables.options(*INPUTS),
        "work": lambda: tables.knobs(Inputs(), Measured.read().figures),
        "sizes": lambda: tables.sizes(Inputs(), Measured.read().figures),
        "kept": lambda: tables.kept(Inputs(), Measured.read().figures),
        "database": lambda: tables.database(Inputs(), Measured.read().figures),
        "month": lambda: tables.money(Inputs(), Measured.read().figures),
    },
    "docs/command_line.md": {
        f"help {' '.join(words)}": lambda context=context: help_of(context)  # type: ignore[misc] # no such lambda
        for words, context in commands().items()
    },
}
"""The functions that generate the parts of each document, by the name in the comments around the part."""


def filled(document: str) -> str:
    """Return the text of a document with its tables rebuilt."""
    text = (ROOT / document).read_text()
    for name, make in DOCUMENTS[document].items():
        parts = re.split(rf"(<!-- /?{name} -->)", text)
        if parts[1::2] != [f"<!-- {name} -->", f"<!-- /{name} -->"]:
            raise SystemExit(f"{document} must have the comments of one table of {name}")
        parts[2] = f"\n{make()}\n"
        text = "".join(parts)
    return text


def main() -> int:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a document is out of date")
    check = parser.parse_args().check
    for document in DOCUMENTS:
        text = filled(document)
        if text == (ROOT / document).read_text():
            continue
        if check:
            print(f"{document} is out of date: run `make docs`", file=sys.stderr)
            return 1
        (ROOT / document).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
