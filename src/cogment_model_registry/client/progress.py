"""The progress of a transfer: reported to a callback, or with a bar on a terminal or in a notebook."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.sizes import size_text

_BAR_DELAY_SECONDS = 1.0
"""A shorter transfer shows no bar."""

_KNOWN = "{desc}: {percentage:3.0f}%|{bar}| {done} [{elapsed}<{remaining}, {speed}]"
_UNKNOWN = "{desc}: {done} [{elapsed}, {speed}]"
"""How a bar looks, with and without a known size."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a transfer.

    Attributes:
        text: A description of the transfer.
        done_bytes: The bytes transferred so far; it falls back to 0 when a transfer starts again.
        total_bytes: The size of the transfer.
    """

    text: str
    done_bytes: int
    total_bytes: int


Wish: TypeAlias = Callable[[Progress], None] | bool | None
"""How to report progress: to a callback, with a bar (True), not at all (False), or with a bar where it is seen (None).

A callback may be called from another thread; an error that it raises ends the transfer, and is raised there.
"""


class Report:
    """Counts the bytes of a transfer. Made by `reporting`."""

    def __init__(self, text: str, total_bytes: int, report: Callable[[Progress], None]) -> None:
        self._text = text
        self._total_bytes = total_bytes
        self._report = report
        self._done_bytes = 0

    def advance(self, size_bytes: int) -> None:
        """Add so many bytes."""
        self._done_bytes += size_bytes
        self._report(Progress(self._text, self._done_bytes, self._total_bytes))

    def restart(self) -> None:
        """Reset: the transfer starts again."""
        if self._done_bytes:
            self._done_bytes = 0
            self.advance(0)


@contextlib.contextmanager
def reporting(text: str, total_bytes: int, wish: Wish) -> Iterator[Report]:
    """Return a context manager with an object that counts the bytes of one transfer.

    Args:
        text: A description of the transfer.
        total_bytes: The size of the transfer.
        wish: How to report progress.
    """
    if not (wish is None or isinstance(wish, bool) or callable(wish)):
        raise InvalidError(f"progress is {wish!r}; it must be a function, True, False or None")
    if callable(wish):
        yield Report(text, total_bytes, wish)
    elif wish is False or (wish is None and not _is_watched()):
        yield Report(text, total_bytes, lambda _progress: None)
    else:
        from tqdm.auto import tqdm  # noqa: PLC0415 # slow to import, and needed by few

        bar: Any
        delay = 0.0 if wish else _BAR_DELAY_SECONDS
        with bar_of_bytes(tqdm)(total=total_bytes, desc=text, delay=delay) as bar:
            yield Report(text, total_bytes, lambda progress: _move(bar, progress.done_bytes))


def bar_of_bytes(kind: Any) -> Any:
    """Return a subclass of a class of tqdm's, whose bars have the units of `size_text`; tqdm's own look decimal."""

    class Bar(kind):  # type: ignore[misc] # a class that is given
        @property
        def format_dict(self) -> dict[str, Any]:
            fields: dict[str, Any] = super().format_dict
            done_bytes, total_bytes, seconds = fields["n"], fields["total"], fields["elapsed"]
            is_known = bool(total_bytes) and done_bytes <= total_bytes
            rate = fields.get("rate") or (done_bytes / seconds if seconds else 0)
            fields["done"] = size_text(done_bytes) + (f"/{size_text(total_bytes)}" if is_known else "")
            fields["speed"] = f"{size_text(rate)}/s"
            fields["bar_format"] = _KNOWN if is_known else _UNKNOWN
            return fields

    return Bar


def _is_watched() -> bool:
    """Return whether a bar can be seen: on a terminal, or in a notebook."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError):  # it was replaced, or closed
        return False


def _move(bar: Any, done_bytes: int) -> None:
    if done_bytes < bar.n:
        bar.reset()
    bar.update(done_bytes - bar.n)
