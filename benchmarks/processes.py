"""The server processes of a run: the registry as a user starts it, its floors, and alternatives."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120.0
_STOP_SECONDS = 15.0


class StartFailedError(Exception):
    """A server process did not report that it serves; the message has the end of its output."""


class ServerProcess:
    """A server in a separate process.

    Args:
        command: The command.
        serving: A pattern of the line that reports that it serves; its first group is the port.
        environment: Additional environment variables.

    Attributes:
        command: The command.
        port: Its TCP port.
        start_seconds: The time from its start until it reported that it serves.

    Raises:
        StartFailedError: It ended, or did not report that it serves.
    """

    def __init__(self, command: Sequence[str], serving: str, environment: dict[str, str] | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("COGMENT_")}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**clean, "PYTHONPATH": str(ROOT), **(environment or {})},
            start_new_session=True,  # so Ctrl-C ends it after its clients
        )
        self._about = psutil.Process(self._process.pid)
        self._started = threading.Event()
        self._lines: list[str] = []
        self._port = 0
        self._marked_seconds = 0.0
        self._reader = threading.Thread(target=self._read, args=(re.compile(serving),), daemon=True)
        self._reader.start()
        self.command = command
        self._started.wait(_START_SECONDS)
        self.start_seconds = time.perf_counter() - started
        self.port = self._port
        if not self.port:
            self.stop()
            raise StartFailedError(f"{command[0]} does not serve: {' | '.join(self._lines[-5:])}")

    def _read(self, serving: re.Pattern[str]) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            self._lines = [*self._lines[-50:], line.strip()]
            if not self._port and (match := serving.search(line)):
                self._port = int(match[1])
                self._started.set()
        self._started.set()

    def logged_number(self, name: str) -> int:
        """Return a field of the lines that it has logged lately.

        Raises:
            LookupError: There is none.
        """
        for line in self._lines:
            if match := re.search(rf"\b{name}=([0-9]+)", line):
                return int(match[1])
        raise LookupError(name)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def mark_processor(self) -> None:
        """Reset the count of processor time."""
        self._marked_seconds = self._processor_seconds()

    def marked_processor_seconds(self) -> float:
        """Return its processor time since `mark_processor`."""
        return self._processor_seconds() - self._marked_seconds

    def _processor_seconds(self) -> float:
        times = self._about.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)

    def resident_mib(self) -> float:
        """Return its resident memory."""
        return float(self._about.memory_info().rss) / 2**20

    def peak_mib(self) -> float:
        """Return the peak of its resident memory since `forget_peak`; the current value if there is no peak."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.pid}/status").read_text()
            match = re.search(r"VmHWM:\s+(\d+) kB", status)
            if match:
                return int(match[1]) / 1024
        return self.resident_mib()

    def forget_peak(self) -> None:
        """Reset the peak, if the system can (proc(5), `clear_refs`)."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)  # it leads a process group, since it leads a session

    def stop(self) -> None:
        """End it and the processes that it started, and wait for them."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join(_STOP_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def running(command: Sequence[str], serving: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """Return a context manager for a server process that serves."""
    process = ServerProcess(command, serving, environment)
    try:
        yield process
    finally:
        process.stop()


def registry(archive_dir: Path, *flags: str) -> contextlib.AbstractContextManager[ServerProcess]:
    """Return a context manager for a registry that serves an archive directory."""
    command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
    command += ["--host=127.0.0.1", f"--archive_dir={archive_dir}", "--grace_seconds=0", *flags]
    return running(command, r"serving .*\bport=(\d+)")


def floor(*pair: str) -> contextlib.AbstractContextManager[ServerProcess]:
    """Return a context manager for a floor that serves, over TLS with the files of a certificate and its key."""
    return running([sys.executable, "-m", "benchmarks.floors", *pair], r"serving port=(\d+)")


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
