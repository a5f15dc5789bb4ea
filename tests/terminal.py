"""A pseudo-terminal for programs: tests read the output, and press keys."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.processes import START_SECONDS, clean_environment

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][A-Z0-9])")


class Terminal:
    """A `cogment` command on its own terminal.

    Attributes:
        text: The output so far, with all escape sequences.
        process: The command.
    """

    def __init__(self, descriptor: int, process: "subprocess.Popen[bytes]") -> None:
        self._descriptor = descriptor
        self.process = process
        self.text = ""

    @property
    def plain(self) -> str:
        """The output so far, without escape sequences."""
        return _ESCAPES.sub("", self.text).replace("\r\n", "\n")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches, and return the match."""
        deadline = time.monotonic() + START_SECONDS
        while not (match := re.search(pattern, self.plain)):
            assert self._read(deadline), f"no {pattern!r}, but: {self.text!r}"
        return match

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait(self) -> int:
        """Read to the end, and return the exit code."""
        deadline = time.monotonic() + START_SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(START_SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"no further output in time after: {self.text!r}"
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # on Linux, if the other side is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal the controlling terminal of the command, so that Ctrl-C is a signal. Not a `preexec_fn`, which
would run in a fork of this process, without gRPC's threads, where gRPC's fork handlers may end the command."""


@contextlib.contextmanager
def on_terminal(
    *arguments: str,
    columns: int = 100,
    environment: dict[str, str] | None = None,
    kind: dict[str, str] | None = None,
    cwd: Path | None = None,
    program: Sequence[str] = ("-m", "cogment_model_registry"),
) -> Iterator[Terminal]:
    """Return a context manager for a `cogment` command on a terminal, which is killed at the end if it still runs.

    Args:
        arguments: The arguments of `cogment`.
        columns: The width of the terminal.
        environment: Environment variables.
        kind: The variables that describe the terminal.
        cwd: Its working directory.
        program: The Python program to run instead of `cogment`.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    env = {**clean_environment(), **(environment or {})}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        env.pop(name, None)
    env |= {"TERM": "xterm-256color", **(kind or {})}
    try:
        with subprocess.Popen(
            [sys.executable, "-ISc", _TAKE_TERMINAL, sys.executable, *program, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            cwd=cwd,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            theirs = -1
            try:
                yield Terminal(ours, process)
            finally:
                process.kill()
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
