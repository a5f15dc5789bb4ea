"""Real server processes and commands.

Most are forked by a Python that has loaded the package already, which takes a tenth of the time; see `tests.preloaded`.
Those whose start is what a test looks at are started as a user starts them.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import psutil

from tests.preloaded import ForkedProcess, Preloaded
from tests.waiting import PATIENCE_SECONDS

START_SECONDS = PATIENCE_SECONDS


class ServerProcess:
    """`cogment services model_registry`, or `directory`, in a separate process; `before` is the prefix of its command.

    Without `archive_dir`, the flags or the environment say where the archive is. Unless it `is_new`, a Python that has
    loaded the package already forks it, where that is the same.

    Attributes:
        port: The port in its log.
        lines: The lines that it has logged so far.
    """

    def __init__(
        self,
        archive_dir: Path | None,
        *flags: str,
        environment: dict[str, str] | None = None,
        service: str = "model_registry",
        before: Sequence[str] = (),
        is_new: bool = False,
    ) -> None:
        self.archive_dir = archive_dir
        self.lines: list[str] = []
        words = ["services", service, "--port=0", "--host=127.0.0.1"]
        if service == "model_registry":
            # Retention is applied only when a test requests it, and not by a timer in the middle of a test.
            place = "catalog_dir" if any(flag.startswith("--archive_url=") for flag in flags) else "archive_dir"
            words += [*([f"--{place}={archive_dir}"] if archive_dir else []), "--retention_seconds=0"]
        words += flags
        variables = {**clean_environment(), **(environment or {})}
        self._process: subprocess.Popen[str] | ForkedProcess
        forking = None if before or is_new else preloaded(variables)
        if forking is not None:
            self._process = forking.fork(words, variables, Path.cwd())
        else:
            self._process = subprocess.Popen(
                [*before, sys.executable, "-m", "cogment_model_registry", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",  # in each locale; only other output may not be UTF-8
                errors="backslashreplace",
                env=variables,
            )
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="server log")
        self._reader.start()
        try:
            self.port = int(self.wait_for_line(r"\bport[\"=: ]+(\d+)")[1])
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait for the first line of the log that matches, and return the match."""

        def search() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: search() or self._ended, START_SECONDS)
            match = search()
        assert match, f"no line with {pattern!r}, but: {self.lines}"
        return match

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it ends, and return its exit code."""
        code = self._process.wait(START_SECONDS)
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()
        return code

    def stop(self) -> int:
        """Stop it with SIGTERM, as an operator does, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill it, as in a crash."""
        if self._process.returncode is None:
            self._process.kill()
        self.wait()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


class GuardedProcess:
    """A program that ends with this process at the latest, in whichever way this one ends.

    Args:
        command: The program, by its path, and its arguments.
        end: The signal that ends it at once.
        log: The file for its output.
        environment: Its environment.
        user: The user that runs it; empty for the present one.
        before: The prefix of the command that runs it.
    """

    def __init__(
        self,
        command: Sequence[str],
        end: signal.Signals,
        log: Path,
        environment: dict[str, str],
        *,
        user: str = "",
        before: Sequence[str] = (),
    ) -> None:
        guarded = [*before, sys.executable, "-I", "-S", GUARDIAN, str(int(end)), user, *command]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                guarded, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd="/"
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End it at once, and wait for that."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """Let it stop by SIGTERM, and wait for that."""
        self._process.terminate()
        self.wait()

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait(PATIENCE_SECONDS)
        self.end()


_preloaded: list[Preloaded] = []
_starting = threading.Lock()


def preloaded(environment: dict[str, str]) -> Preloaded | None:
    """Return what forks processes; None where only a new Python starts as users start it in an environment."""
    if sys.platform != "linux":
        return None
    with _starting:
        if not _preloaded:
            _preloaded.append(Preloaded(_ENVIRONMENT))
    return _preloaded[0] if _preloaded[0].fits(environment) else None


def end_preloaded() -> None:
    """End what forks processes; what it has forked must have ended."""
    with _starting:
        while _preloaded:
            children = psutil.Process(_preloaded[0].pid).children(recursive=True)
            assert not children, f"processes left behind: {children}"
            _preloaded.pop().close()


GUARDIAN = os.path.join(os.path.dirname(__file__), "guardian.py")
WITHOUT_RICH = os.path.join(os.path.dirname(__file__), "without_rich")


def clean_environment() -> dict[str, str]:
    """Return the environment as users have it: without a developer's settings, and without rich.

    Commands in the process of the tests set what gRPC prints. structlog imports rich if it is installed, which takes
    most of the time of a start.
    """
    own = ("COGMENT_", "GRPC_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, (WITHOUT_RICH, os.environ.get("PYTHONPATH"))))}


_ENVIRONMENT = clean_environment()
"""The environment before any test changes it."""


@contextmanager
def server_process(
    archive_dir: Path | None,
    *flags: str,
    environment: dict[str, str] | None = None,
    service: str = "model_registry",
    before: Sequence[str] = (),
    is_new: bool = False,
) -> Iterator[ServerProcess]:
    """Return a context manager for a server process that serves; if it still runs at the end, it is killed.

    `before` is the prefix of its command; `is_new` asks for a Python of its own.
    """
    process = ServerProcess(archive_dir, *flags, environment=environment, service=service, before=before, is_new=is_new)
    try:
        yield process
    finally:
        process.kill()


def run_cogment(
    *arguments: str,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    before: Sequence[str] = (),
    is_new: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a `cogment` command that terminates, as `ServerProcess` runs a server."""
    variables = {**clean_environment(), **(environment or {})}
    forking = None if before or is_new else preloaded(variables)
    if forking is not None:
        return _run_forked(forking, arguments, variables, cwd or Path.cwd())
    command = [*before, sys.executable, "-m", "cogment_model_registry", *arguments]
    return run(*command, environment=environment, cwd=cwd)


def _run_forked(
    forking: Preloaded, words: Sequence[str], environment: dict[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    with TemporaryFile() as output, TemporaryFile() as errors:
        process = forking.fork(words, environment, cwd, stdout=output, stderr=errors)
        try:
            code = process.wait(START_SECONDS)
        finally:
            process.kill()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["cogment", *words], code, *texts)


def run(
    *command: str,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    within_seconds: float = START_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a command that terminates, without the settings of a developer; return its exit code and outputs."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=within_seconds,
        check=False,
        cwd=cwd,
        env={**clean_environment(), **(environment or {})},
    )


def started(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python script, given as text."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
