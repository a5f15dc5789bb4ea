"""The log: one line an event, as text for people or JSON for programs, to standard output or to a file a day.

Everything goes through the standard library's root logger, so that what libraries log (asyncio, grpc) is written in
the same form to the same place.
"""

import contextlib
import datetime
import io
import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cogment_model_registry.errors import StartError
from cogment_model_registry.settings import ServiceSettings

TRACE = 5

_ERRORS = "backslashreplace"
"""How to write what the encoding of the log lacks: a name on disk may be any bytes."""

_LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}


def configure(settings: ServiceSettings) -> None:
    """Let the process log as the settings say.

    Raises:
        StartError: The log file cannot be written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ERRORS)
    handler: logging.Handler = DailyFileHandler(settings.log_file) if settings.log_file else _StdoutHandler(sys.stdout)
    coloured = not settings.log_file and sys.stdout.isatty()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings, coloured)],
        )
    )
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_LEVELS[settings.log_level])
    # What these log at debug level (which selector, which loop, at each call) is of no use here.
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(_LEVELS[settings.log_level], logging.INFO))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
    return event


_SHARED: list[Processor] = [structlog.stdlib.add_log_level, _add_time]


def _rendering(settings: ServiceSettings, coloured: bool) -> list[Processor]:
    if settings.log_format == "json":
        return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(default=str)]
    return [structlog.dev.ConsoleRenderer(colors=coloured, exception_formatter=structlog.dev.plain_traceback)]


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to standard output; when its reader is gone, the server continues without a log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # the name is logging's
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def _open_for_group(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


class DailyFileHandler(logging.Handler):
    """Writes to a file whose name has the local date, and to a new one each day.

    Args:
        base_name: The path of the file, to whose stem the date is added: ``x/cogment.log`` becomes
            ``x/cogment_2026-11-22.log``. Its directory is created if it does not exist.
    """

    def __init__(self, base_name: str) -> None:
        super().__init__()
        self._stem, self._suffix = os.path.splitext(base_name)
        self._date: datetime.date | None = None
        self._file: TextIO | None = None
        try:
            os.makedirs(os.path.dirname(base_name) or ".", exist_ok=True)
            self._switch(datetime.date.today())
        except OSError as error:
            raise StartError(f"log file {base_name} cannot be written: {error.strerror}") from error

    def _switch(self, date: datetime.date) -> TextIO:
        """Return the file of a day, open."""
        if self._file is None or date != self._date:
            self._close_file()
            name = f"{self._stem}_{date.isoformat()}{self._suffix}"
            self._file = open(name, "a", encoding="utf-8", errors=_ERRORS, opener=_open_for_group)  # noqa: SIM115 # kept
            self._date = date
        return self._file

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record to the file of its day."""
        try:
            line = self.format(record)
            file = self._switch(datetime.date.fromtimestamp(record.created))
            file.write(line + "\n")
            file.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        with self.lock or contextlib.nullcontext():
            self._close_file()
        super().close()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
