"""A progress bar by bytes, on standard error if that is a terminal; elsewhere nothing."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cogment_model_registry.cli.running import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from cogment_model_registry.client.progress import Progress, Wish

DELAY_SECONDS = 0.5
"""A transfer that is over by then shows no bar."""


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
    with _bar(description, total_bytes) as (bar, task):
        yield lambda size_bytes: bar.advance(task, size_bytes)


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
    shown_from = time.monotonic() + DELAY_SECONDS
    lock = threading.Lock()
    with contextlib.ExitStack() as stack:
        bars: list[tuple[Bar, TaskID]] = []
        is_over = False

        def tell(progress: "Progress") -> None:
            # A thread of gRPC may still report progress when the transfer is over.
            with lock:
                if is_over or time.monotonic() < shown_from:
                    return
                if not bars:
                    bars.append(stack.enter_context(_bar(description, progress.total_bytes)))
                bar, task = bars[0]
                bar.update(task, completed=progress.done_bytes)

        try:
            yield tell
        finally:
            with lock:
                is_over = True


@contextlib.contextmanager
def _bar(description: str, total_bytes: int | None) -> Iterator[tuple["Bar", "TaskID"]]:
    from rich.console import Console  # noqa: PLC0415 # slow to import
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar, bar.add_task(description, total=total_bytes)
