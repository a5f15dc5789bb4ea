"""Real server processes, started as a user starts them."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS

START_SECONDS = PATIENCE_SECONDS


class ServerProcess:
    """`cogment services model_registry`, or `directory`, in a process of its own; `before` is a command that runs it.

    Without `archive_dir`, the flags or the environment say where the archive is.

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
    ) -> None:
        self.archive_dir = archive_dir
        self.lines: list[str] = []
        command = [*before, sys.executable, "-m", "cogment_model_registry", "services", service]
        command += ["--port=0", "--host=127.0.0.1"]
        if service == "model_registry":
            # Rules of retention are applied when a test asks for it, and not by a timer in the middle of one.
            command += [*([f"--archive_dir={archive_dir}"] if archive_dir else []), "--retention_seconds=0"]
        command += flags
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",  # in each locale, but for what is not the log
            errors="backslashreplace",
            env={**clean_environment(), **(environment or {})},
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
        """Return the match of the first line of the log that has one, once it is there."""

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
        """Stop it as an operator does, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process.returncode is None:
            self._process.kill()
        self.wait()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


WITHOUT_RICH = os.path.join(os.path.dirname(__file__), "without_rich")


def clean_environment() -> dict[str, str]:
    """Return the environment as users have it: without a developer's settings, and without rich.

    structlog imports rich wherever it is installed, which takes most of the time of a start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COGMENT_")}
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, (WITHOUT_RICH, os.environ.get("PYTHONPATH"))))}


@contextmanager
def server_process(
    archive_dir: Path | None,
    *flags: str,
    environment: dict[str, str] | None = None,
    service: str = "model_registry",
    before: Sequence[str] = (),
) -> Iterator[ServerProcess]:
    """Return a context manager in which a server process serves; what is left of it at the end is killed.

    The words of `before` come before those of its command.
    """
    process = ServerProcess(archive_dir, *flags, environment=environment, service=service, before=before)
    try:
        yield process
    finally:
        process.kill()


def run_cogment(
    *arguments: str,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a `cogment` command that ends by itself."""
    command = [*before, sys.executable, "-m", "cogment_model_registry", *arguments]
    return run(*command, environment=environment, cwd=cwd)


def run(
    *command: str,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    within_seconds: float = START_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself, without the settings of a developer; return its exit code and outputs."""
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
