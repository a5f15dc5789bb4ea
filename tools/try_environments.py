"""Run tests in environments that users have: other locales, an umask, a user who is not root, closed standard streams.

If this machine lacks something for an environment, this is printed, and the environment is skipped.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from tests.locales import POSIX, C, MissingLocaleError, latin_1
from tests.mounts import reaching

ROOT = pathlib.Path(__file__).parent.parent
SUITES = [f"tests/{name}" for name in ("archive_tools", "cli", "settings", "storage/test_filesystem.py", "system")]
SUITES += [f"tests/registry_client/test_{name}.py" for name in ("cache", "calls")]
SUITES += [f"tests/server/test_{name}.py" for name in ("call_log", "life_cycle", "locales", "log_writer")]
"""Tests of files, streams and the command line."""

PYTEST = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-q"]
NOBODY = "nobody"


class MissingError(Exception):
    """The machine lacks something for an environment; the message says what."""


@dataclass(frozen=True, slots=True)
class Environment:
    """How to run a command in an environment.

    Attributes:
        prefix: The prefix of the command.
        variables: Environment variables.
        umask: The umask; -1 for that of this process.
        cwd: The working copy.
    """

    prefix: Sequence[str] = ()
    variables: dict[str, str] = field(default_factory=dict)
    umask: int = -1
    cwd: pathlib.Path = ROOT


@contextmanager
def _latin_1() -> Iterator[Environment]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            variables = latin_1(pathlib.Path(folder))
        except MissingLocaleError as error:
            raise MissingError(str(error)) from None
        yield Environment(variables=variables)


@contextmanager
def _another_user() -> Iterator[Environment]:
    """Let `nobody` run on a copy of the working copy."""
    if os.geteuid() != 0:
        raise MissingError("this user is not root, and neither was that of `make test`")
    switch = ["setpriv", f"--reuid={NOBODY}", "--regid=nogroup", "--clear-groups"]
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        copy = pathlib.Path(folder) / "copy"
        left_out = shutil.ignore_patterns(".git", ".cache", ".venv*", "__pycache__", "models", "dist")
        shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            shutil.chown(path, NOBODY, "nogroup")
        prefix = [*reaching(pathlib.Path(folder) / "kept", [ROOT, sys.prefix, sys.base_prefix]), *switch]
        tried = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            raise MissingError(f"{NOBODY} cannot run {sys.executable}: {tried.stderr.strip()}")
        cache = str(copy / ".cache/pycache")
        yield Environment(prefix, {"HOME": str(copy), "PYTHONPYCACHEPREFIX": cache}, cwd=copy)


ENVIRONMENTS: dict[str, Callable[[], AbstractContextManager[Environment]]] = {
    "c": lambda: contextlib.nullcontext(Environment(variables=C)),
    "latin_1": _latin_1,
    "posix": lambda: contextlib.nullcontext(Environment(variables=POSIX)),
    "umask_077": lambda: contextlib.nullcontext(Environment(umask=0o077)),
    "another_user": _another_user,
    # Standard output shows the results. pytest's capture and parallel runs would open descriptors.
    "closed_streams": lambda: contextlib.nullcontext(
        Environment(["sh", "-c", 'exec "$@" -n0 -s -p no:faulthandler <&- 2>&-', "sh"])
    ),
}


def try_environment(name: str, arguments: Sequence[str]) -> str:
    """Run the tests in an environment, and return a description of the result."""
    try:
        with ENVIRONMENTS[name]() as environment:
            done = subprocess.run(
                [*environment.prefix, *PYTEST, *arguments],
                env={**os.environ, **environment.variables},
                umask=environment.umask,
                cwd=environment.cwd,
                check=False,
            )
    except MissingError as error:
        return f"skipped: {error}"
    return "passed" if done.returncode == 0 else f"failed with {done.returncode}"


def main() -> int:
    """Try all environments; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", action="append", choices=ENVIRONMENTS, help="by default all of them")
    parser.add_argument("arguments", nargs="*", default=SUITES, help="arguments for pytest; by default the suites")
    options = parser.parse_args()
    results = {}
    for name in options.environment or ENVIRONMENTS:
        print(f"== {name}", flush=True)
        results[name] = try_environment(name, options.arguments)
    for name, result in results.items():
        print(f"{name:<16}{result}")
    return int(any(result.startswith("failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
