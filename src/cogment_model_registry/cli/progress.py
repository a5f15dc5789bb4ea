"""A progress bar by bytes, on standard error if that is a terminal; elsewhere nothing."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cogment_model_registry.cli.running import is_terminal
from cogment_model_registry.client.progress import bar_of_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

    from cogment_model_registry.client.progress import Progress, Wish

_COLUMNS = 80
"""The assumed width of a terminal that does not report one."""

_ROWS = 24
"""The assumed height of a terminal; a bar needs one row."""

DELAY_SECONDS = 0.5
"""A shorter transfer shows no bar."""


def is_shown() -> bool:
    """Return whether a bar is shown: standard error is a terminal."""
    return is_terminal(sys.stderr)


@contextlib.contextmanager
def progress_bar(description: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Return a context manager with a function that advances the bar; the bar disappears at the end.

    Args:
        description: What is under way.
        total_bytes: How many bytes there will be, None when that is not known.
    """
    if not is_shown():
        yield lambda _bytes: None
        return
    with _bar(description, total_bytes) as bar:

        def advance(size_bytes: int) -> None:
            bar.update(size_bytes)

        yield advance
        bar.refresh()  # shows the last bytes before the bar disappears


@contextlib.contextmanager
def transfer_bar(description: str, *, is_quiet: bool) -> Iterator["Wish"]:
    """Return a context manager with a progress callback for a client; the bar appears after a moment.

    Args:
        description: What is under way.
        is_quiet: Whether to show nothing, not even on a terminal.
    """
    if is_quiet or not is_shown():
        yield False
        return
    with _bar(description, None, DELAY_SECONDS) as bar:

        def report(progress: "Progress") -> None:
            bar.total = progress.total_bytes
            bar.update(progress.done_bytes - bar.n)  # negative when a transfer starts again

        yield report


def _bar(description: str, total_bytes: int | None, delay_seconds: float = 0.0) -> "tqdm[Any]":
    from tqdm import tqdm  # noqa: PLC0415 # slow to import

    kind = bar_of_bytes(tqdm)
    kind.monitor_interval = 0  # no thread that outlives the bar
    kind.set_lock(threading.RLock())  # by default it is one between processes
    # tqdm shows nothing on a terminal that does not report its size.
    size = {"ncols": _terminal_columns(), "nrows": _ROWS}
    bar: tqdm[Any] = kind(total=total_bytes, desc=description, leave=False, delay=delay_seconds, **size)
    return bar


def _terminal_columns() -> int:
    """Return the width of the terminal; the assumed one if it does not report any."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS
