"""Shared parts of commands: input and output files, and one line instead of a traceback for errors and signals."""

import _thread
import contextlib
import errno
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, Any, BinaryIO

import click

from cogment_model_registry.errors import NO_ROOM, ModelRegistryError, TimedOutError, TooLargeError, counted, shown
from cogment_model_registry.system.paths import expanded

_STANDARD_INPUT = 0
_STANDARD_OUTPUT = 1


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a standard stream is a terminal; a closed stream is None."""
    return stream is not None and stream.isatty()


class PathType(click.Path):
    """A path of the command line; a leading ``~`` is the home directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path that a word is."""
        return super().convert(expanded(value), param, ctx)


def silence_log() -> None:
    """Write no lines of a log: those of a server do not belong in the output of a command, which prints errors."""
    import structlog  # noqa: PLC0415 # not for --help

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


@contextlib.contextmanager
def translating_errors(what: str) -> Iterator[None]:
    """Return a context manager that translates errors of the system into a line that says that `what` failed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise TooLargeError(f"{what} failed: not enough space: {error.strerror}") from error
        raise ModelRegistryError(f"{what} failed: {error.strerror or error}") from error


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Return a context manager in which SIGTERM and SIGHUP raise an exception, as SIGINT always does."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handling_signals(end):
        yield


@contextlib.contextmanager
def handling_signals(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Return a context manager in which SIGTERM and SIGHUP call a function."""
    numbers = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))  # Windows has no SIGHUP
    before = {number: signal.getsignal(number) for number in numbers if number is not None}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ended_by_interruptions() -> Iterator[None]:
    """Return a context manager in which Ctrl-C ends the process at once, without a `KeyboardInterrupt`.

    For a question, when nothing is under way. Python only records a signal and acts between two of its own steps; one
    that comes right before `input` begins to wait would be noticed with the next line that is typed.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ending_with_reader(end: Callable[[], object]) -> Iterator[None]:
    """Return a context manager that raises `BrokenPipeError` once nobody reads standard output any more.

    A command that waits would notice that only with its next word, which may never come; as it does on Windows, which
    cannot wait for it.

    Args:
        end: Ends what is waited for, with an error of any kind; called on a thread.
    """
    is_gone = threading.Event()

    def look() -> None:
        poll = select.poll()
        poll.register(_STANDARD_OUTPUT, 0)
        if dict(poll.poll()).get(_STANDARD_OUTPUT, 0) & (select.POLLERR | select.POLLHUP):
            is_gone.set()
            end()

    if hasattr(select, "poll"):
        _thread.start_new_thread(look, ())  # which nothing waits for at the end
    with _explaining(is_gone, lambda _error: BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))):
        yield


@contextlib.contextmanager
def ending_in_time(seconds: float | None, end: Callable[[], object]) -> Iterator[None]:
    """Return a context manager that raises `TimedOutError` after a time.

    Args:
        seconds: The time; None for no limit.
        end: Ends what is waited for, with an error of any kind; called on a thread.
    """
    if seconds is None:
        yield
        return
    is_over = threading.Event()
    ends_at = time.monotonic() + seconds
    message = f"the command took longer than the {counted(seconds, 'second')} of --timeout"

    def explain(error: Exception) -> Exception:
        may_be_done = isinstance(error, ModelRegistryError) and error.may_be_done
        return TimedOutError(f"{message}; the server may have done it nevertheless" if may_be_done else message)

    def give_up() -> None:
        is_over.set()
        end()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        with _explaining(is_over, explain):
            try:
                yield
            except TimedOutError:
                if time.monotonic() >= ends_at:  # a call may notice the end of its time before the timer does
                    is_over.set()
                raise
    finally:
        timer.cancel()


@contextlib.contextmanager
def _explaining(has_ended: threading.Event, explain: Callable[[Exception], Exception]) -> Iterator[None]:
    """Return a context manager that raises the reason of an end in place of the error that the end causes."""
    try:
        yield
    except Exception as error:
        if has_ended.is_set():
            raise explain(error) from error
        raise


def is_folder(path: str) -> bool:
    """Return whether a path is that of a folder: it exists as one, or has a slash at its end."""
    return path.endswith((os.sep, os.altsep or os.sep)) or os.path.isdir(path)


def check_free(path: str, *, force: bool) -> None:
    """Refuse to replace a file without `force`, and anything that is not a regular file.

    Raises:
        click.UsageError: It exists.
    """
    try:
        status = os.stat(path)  # of what a link leads to, which would be replaced
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise click.UsageError(f"{shown(path)} exists and is not a regular file")
    if not force:
        raise click.UsageError(f"{shown(path)} exists: give --force to replace it")


def check_open(stream: IO[str] | None) -> None:
    """Refuse a standard stream that was closed: the null device is in its place.

    Raises:
        OSError: It was closed.
    """
    if stream is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def open_standard_output() -> BinaryIO:
    """Return standard output for bytes; close it.

    Not the one of `sys.stdout`, which Python would flush once more at its end after a failure.

    Raises:
        OSError: It was closed.
    """
    check_open(sys.stdout)
    return open(os.dup(_STANDARD_OUTPUT), "wb")


@contextlib.contextmanager
def open_standard_input() -> Iterator[BinaryIO]:
    """Return a context manager with standard input for bytes.

    Raises:
        click.UsageError: It would come from a terminal.
        OSError: It was closed.
    """
    if is_terminal(sys.stdin):
        raise click.UsageError("a version cannot be read from a terminal: name a file, or redirect standard input")
    check_open(sys.stdin)
    with open(_STANDARD_INPUT, "rb", buffering=0, closefd=False) as source:
        yield source
