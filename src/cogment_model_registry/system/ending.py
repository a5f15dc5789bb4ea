"""The end of a process."""

import contextlib
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End this process, in which everything is closed, without the shutdown of Python.

    Until Python 3.14 the shutdown ends the threads of native libraries that return to Python just then, such as those
    of obstore, which have woken the event loop and are not yet back. Their frames cannot be unwound: the process
    aborts, and its exit code is lost.

    Args:
        code: The exit code.
    """
    if "logging" in sys.modules:
        sys.modules["logging"].shutdown()  # the log is written on a thread
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is missing, full or closed
            stream.flush()
    os._exit(code)
