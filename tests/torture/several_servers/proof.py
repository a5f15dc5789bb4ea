"""Several servers on one PostgreSQL and one object store keep what they promise, whatever fails."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from tests.object_store import find_program
from tests.processes import clean_environment
from tests.torture.proof import Figures, Proof
from tests.torture.several_servers.database import is_installed
from tests.torture.several_servers.namespaces import OWN_NETWORK, may_make_namespaces
from tests.torture.several_servers.stage import FIGURES, ROOT


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Let so many faults happen, in a process that has a network to itself if that is possible."""
    has_own_network = may_make_namespaces()
    # A shell as the first process of its namespace takes care of processes whose parents were killed.
    before = [*OWN_NETWORK, "sh", "-c", '"$@"; exit $?', "sh"] if has_own_network else []
    # The directory of a test may be closed to the user of PostgreSQL.
    with tempfile.TemporaryDirectory(prefix="several-servers-") as databases:
        os.chmod(databases, 0o755)
        arguments = [str(place), databases, str(rounds), "yes" if has_own_network else "no"]
        code, output = _run([*before, sys.executable, "-m", "tests.torture.several_servers", *arguments], random)
    assert code == 0, output
    counted = json.loads((place / FIGURES).read_text())
    figures.add(Figures(Counter(counted["sums"]), counted["peaks"]))


def _run(command: list[str], random: Random) -> tuple[int, str]:
    """Return the exit code of a command, and the end of what it printed. It ends with all its processes."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=clean_environment(),
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(pickle.dumps(random))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output.decode("utf-8", "replace")[-20_000:]


def missing() -> str:
    """Return what this machine lacks."""
    lacks = [] if is_installed() else ["PostgreSQL"]
    return " and ".join([*lacks, *([] if find_program() else ["SeaweedFS"])]) + " not installed" if lacks else ""


PROOF = Proof(
    name="several_servers",
    promise="Several servers lose, repeat and tear nothing, and agree, while processes, databases and networks fail",
    attempt=attempt,
    unit="faults",
    short=3,
    long=216,
    batch=36,
    missing=missing,
    requirements="PostgreSQL, SeaweedFS; root for network namespaces, else proxies replace them",
    is_needed=True,
)
