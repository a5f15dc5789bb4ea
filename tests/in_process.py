"""`cogment` commands in the process of the tests: milliseconds, instead of a second for a separate process.

Use it to test the output and the exit code of a command. Tests of process behaviour (signals, terminals, descriptors,
bytes of standard streams, loaded modules) use `tests.processes.run_cogment`.
"""

import contextlib
import io
import os
import subprocess
from pathlib import Path
from unittest import mock

from cogment_model_registry.cli import main


def run_in_process(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a `cogment` command that terminates, through the entry point of the program."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.dict(os.environ, environment or {}),
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        contextlib.chdir(cwd or Path.cwd()),
    ):
        try:
            code: object = main(arguments)
        except SystemExit as end:  # how a completion ends
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, _text(output), _text(errors))


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
