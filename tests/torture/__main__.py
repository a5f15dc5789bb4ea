"""`make torture`: the long forms of the proofs, batch by batch, and the table of what they counted.

Progress is saved after each batch, so a run that was stopped continues where it was; `--fresh` starts over. A batch's
randomness comes from the name of its proof and its first round, so a failure can be reproduced.
"""

import argparse
import datetime
import json
import logging
import os
import platform
import re
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
import structlog

from tests.processes import end_preloaded
from tests.torture.proof import Figures, Proof
from tests.torture.proofs import PROOFS

_STATE = Path(".cache/torture")
_PAGE = Path("docs/guarantees.md")
_BEGIN, _END = "<!-- figures of `make torture`: begin -->", "<!-- figures of `make torture`: end -->"


@dataclass
class Progress:
    """Progress of the long form of a proof."""

    rounds: int = 0
    seconds: float = 0.0
    date: str = ""
    figures: Figures = field(default_factory=Figures)

    @classmethod
    def load(cls, proof: Proof) -> "Progress":
        try:
            saved = json.loads(_state(proof).read_text())
        except FileNotFoundError:
            return cls()
        saved["figures"] = Figures(Counter(saved["figures"]["sums"]), saved["figures"]["peaks"])
        return cls(**saved)

    def save(self, proof: Proof) -> None:
        _STATE.mkdir(parents=True, exist_ok=True)
        new = _state(proof).with_suffix(".new")
        new.write_text(json.dumps({**vars(self), "figures": vars(self.figures)}, indent=2))
        new.replace(_state(proof))


def _state(proof: Proof) -> Path:
    return _STATE / f"{proof.name}.json"


def prove(proof: Proof, progress: Progress) -> bool:
    """Run the remaining rounds of a proof; return whether the promise held."""
    while progress.rounds < proof.long:
        rounds = min(proof.batch, proof.long - progress.rounds)
        place = _STATE / f"{proof.name}.place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        started = time.perf_counter()
        figures = Figures()
        seed = f"{proof.name} {progress.rounds}"
        try:
            proof.attempt(place.resolve(), rounds, Random(seed), figures)
        except Exception:
            traceback.print_exc()
            print(f"{proof.name}: BROKEN in the batch that begins at round {progress.rounds}; its files: {place}")
            return False
        shutil.rmtree(place)
        progress.figures.add(figures)
        progress.rounds += rounds
        progress.seconds += time.perf_counter() - started
        progress.date = datetime.datetime.now(datetime.UTC).date().isoformat()
        progress.save(proof)
        print(f"{proof.name}: {progress.rounds:,} of {proof.long:,} {proof.unit}; {progress.figures}", flush=True)
    return True


def row(proof: Proof) -> str:
    """Return the saved figures of a proof, as a row of the table of figures."""
    progress = Progress.load(proof)
    if reason := proof.missing():
        return f"| {proof.promise} | none | not shown on this machine: {reason} | | |"
    if not progress.rounds:
        return f"| {proof.promise} | none | | | |"
    rounds = proof.rounds(progress.rounds)
    return f"| {proof.promise} | {rounds} | {progress.figures} | {progress.seconds:,.0f} s | {progress.date} |"


def table(rows: Iterable[str]) -> str:
    """Return a table of figures."""
    return "\n".join(["| promise | rounds | counted | time | date |", "|---|---|---|---|---|", *rows])


def machine() -> str:
    """Return a line that describes this machine."""
    memory_gib = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {system}, Python {platform.python_version()}"


def write_page() -> None:
    """Write the saved figures into the page of guarantees; proofs that were not run here keep their rows."""
    page = _PAGE.read_text()
    between = re.compile(re.escape(_BEGIN) + ".*" + re.escape(_END), re.DOTALL)
    found = between.search(page)
    if not found:
        raise SystemExit(f"error: {_PAGE} has no place for the figures")
    rows = {line.split(" | ")[0]: line for line in found[0].splitlines() if line.startswith("| ")}
    rows |= {f"| {proof.promise}": row(proof) for proof in PROOFS if Progress.load(proof).rounds}
    text = table(rows.get(f"| {proof.promise}") or row(proof) for proof in PROOFS)
    _PAGE.write_text(between.sub(lambda _: f"{_BEGIN}\nOn {machine()}:\n\n{text}\n{_END}", page))


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line, with the selected proofs as `proofs`."""
    parser = argparse.ArgumentParser(prog="make torture", description="Try to break each promise, many times.")
    parser.add_argument("names", nargs="*", metavar="proof", help="names of proofs; without any, all proofs")
    parser.add_argument("--list", action="store_true", help="list the proofs and exit")
    parser.add_argument("--fresh", action="store_true", help="start over instead of continuing")
    parser.add_argument("--write", action="store_true", help=f"write the figures into {_PAGE}")
    options = parser.parse_args()
    known = {proof.name: proof for proof in PROOFS}
    for name in options.names:
        if name not in known:
            parser.error(f"{name!r} is not a proof; the proofs are: {', '.join(known)}")
    options.proofs = [known[name] for name in options.names] or PROOFS
    return options


def main() -> int:
    """Run the selected proofs, and print the table."""
    options = parse_arguments()
    if options.list:
        for proof in options.proofs:
            print(f"{proof.name:20} {proof.long:>9,} {proof.unit:12} {proof.promise}")
        return 0
    # As in the tests, servers in this process log nowhere.
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs], logger_factory=structlog.stdlib.LoggerFactory()
    )
    logging.getLogger().addHandler(logging.NullHandler())
    broken = []
    for proof in options.proofs:
        if options.fresh:
            _state(proof).unlink(missing_ok=True)
        if reason := proof.missing():
            print(f"{proof.name}: skipped on this machine: {reason}")
        elif not prove(proof, Progress.load(proof)):
            broken.append(proof.name)
    end_preloaded()
    print(f"\nOn {machine()}:\n\n{table(map(row, options.proofs))}")
    if options.write:
        write_page()
    if broken:
        print(f"\nbroken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
