"""A Python that has loaded the package, and forks for each command: loading takes most of the time of a short process.

What it forks is a process of its own, with the arguments, the environment, the directory and the streams that it is
given. What depends on how Python itself starts takes a new one: the locale, closed streams, signals during the start,
what is loaded, and the memory for it. `tests.processes` decides.
"""

import contextlib
import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_LOADED = (
    "cogment_model_registry.client.blocking_client",
    "cogment_model_registry.discovery.server",
    "cogment_model_registry.server.composition",
    "cogment_model_registry.serving.life_cycle",
    "cogment_model_registry.serving.logs",
    *(f"cogment_model_registry.cli.{name}" for name in ("archive", "client", "model_registry", "services", "token")),
)
_MESSAGE_BYTES = 2**17
_OWN = re.compile("COGMENT_|AWS_|PYTEST_")
"""The variables that only the package reads, after the start; those of pytest change from test to test."""


class ForkedProcess:
    """A command that was forked: what `subprocess.Popen` has of the methods that tests need."""

    def __init__(self, pid: int, status: int, stdout: IO[str] | None) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, status)  # not at the end: another thread may be waiting for it

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float) -> int:
        """Wait until it ends, and return its exit code."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def _look(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            with self._lock:
                if self.returncode is None:
                    text = os.read(self._status, 64)
                    assert text, "what forks the processes of the tests has ended"
                    self.returncode = int(text)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The Python that forks. It ends with the process that started it, but what it forked does not."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = _of_python(environment)
        self._lock = threading.Lock()
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, "-m", "tests.preloaded", str(other.fileno())]
            root = str(Path(__file__).parent.parent)
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=dict(environment), cwd=root, pass_fds=[other.fileno()]
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a new Python would start in an environment as this one did."""
        return _of_python(environment) == self._environment

    def fork(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        *,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> ForkedProcess:
        """Start `cogment` with some words.

        Args:
            words: The arguments.
            environment: All of its environment.
            cwd: Its directory.
            stdout: Where it writes; if None, into a pipe, which the process that is returned reads.
            stderr: Where it writes errors; if None, where it writes everything.
        """
        reading, writing = os.pipe() if stdout is None else (-1, stdout if isinstance(stdout, int) else stdout.fileno())
        errors = writing if stderr is None else stderr if isinstance(stderr, int) else stderr.fileno()
        status, ended = os.pipe()
        try:
            with open(os.devnull, "rb") as nothing, self._lock:
                message = json.dumps([[*words], dict(environment), str(cwd), _umask()]).encode()
                assert len(message) < _MESSAGE_BYTES
                socket.send_fds(self._control, [message], [nothing.fileno(), writing, errors, ended])
                reply = self._control.recv(64)
        finally:
            os.close(ended)
            if stdout is None:
                os.close(writing)
        assert reply, "what forks the processes of the tests has ended"
        text = None if stdout is not None else os.fdopen(reading, encoding="utf-8", errors="backslashreplace")
        return ForkedProcess(int(reply), status, text)

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait()


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not _OWN.match(name)}


def _umask() -> int:
    """Return the umask of this process, without changing it even for a moment."""
    [found] = re.findall(r"^Umask:\s+(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found, 8)


class _Children:
    """The processes that were forked, and where their exit codes are written."""

    def __init__(self) -> None:
        self._ended: dict[int, int] = {}

    def add(self, pid: int, ended: int) -> None:
        self._ended[pid] = ended

    def reap(self) -> None:
        """Pass on the exit codes of those that have ended."""
        for pid, ended in [*self._ended.items()]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._ended[pid]
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                    os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(ended)


def _serve(control: socket.socket) -> bool:
    """Fork for each request; return True in the process that is forked, and False at the end in this one."""
    news, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children = _Children()
    while True:
        ready, _, _ = select.select([control.fileno(), news], [], [])
        if news in ready:
            os.read(news, 4096)
        children.reap()
        if control.fileno() not in ready:
            continue
        message, descriptors, *_ = socket.recv_fds(control, _MESSAGE_BYTES, 4)
        if not message:
            return False
        pid = os.fork()
        if not pid:
            _begin(message, descriptors)
            return True
        *streams, ended = descriptors
        for descriptor in streams:
            os.close(descriptor)
        children.add(pid, ended)
        control.send(str(pid).encode())


def _begin(message: bytes, descriptors: list[int]) -> None:
    """Become the process that a message describes."""
    words, environment, cwd, umask = json.loads(message)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(int(name))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    os.umask(umask)
    # As Python makes them: all have the encoding of standard input, the only one that this process has in any case.
    encoding, errors = sys.stdin.encoding, sys.stdin.errors
    sys.stdin = os.fdopen(0, encoding=encoding, errors=errors, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, errors=errors, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    sys.argv = ["cogment", *words]


def main() -> None:
    """Load the package, and fork."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # as a server sets it before it loads gRPC
    for name in _LOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    if _serve(socket.socket(fileno=int(sys.argv[1]))):
        from cogment_model_registry.cli import program  # noqa: PLC0415

        program()


if __name__ == "__main__":
    main()
