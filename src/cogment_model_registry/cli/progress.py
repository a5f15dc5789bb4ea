"""A progress bar by bytes, on standard error, where that is a terminal; nothing at all elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator


def is_shown() -> bool:
    """Return whether there is someone to look at a bar."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(description: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Open a context with what is to be told of each so many bytes more; the bar goes away at its end.

    Args:
        description: What is under way.
        total_bytes: How many bytes there will be, None when that is not known.
    """
    if not is_shown():
        yield lambda _bytes: None
        return
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
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)
