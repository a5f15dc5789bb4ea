"""The log: one line an event, as text for people or JSON for programs, to standard output or to a file a day.

Everything goes through the standard library's root logger, so that what libraries log (asyncio, grpc) is written in
the same form to the same place.
"""

import datetime
import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cogment_model_registry.errors import StartError
from cogment_model_registry.serving.log_writer import DailyFile, Output, StandardOutput, ThreadHandler
from cogment_model_registry.settings import ServiceSettings

TRACE = 5

_FIELDS = ("lines", "reason")
"""The fields of what `log_writer` says of the log itself."""

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
    is_terminal = not settings.log_file and sys.stdout is not None and sys.stdout.isatty()
    # What is not for a terminal is UTF-8, whatever the locale says.
    handler = ThreadHandler(_output(settings.log_file), sys.stdout.encoding if is_terminal else "utf-8")
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(_FIELDS)],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings, is_terminal)],
        )
    )
    logging.addLevelName(TRACE, "TRACE")
    root = logging.getLogger()
    for former in root.handlers:
        if isinstance(former, ThreadHandler):
            former.close()
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


def reopen() -> None:
    """Let the log go on in the file that has its name now, after somebody moved the one that is open."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ThreadHandler):
            handler.reopen()


def _output(log_file: str) -> Output:
    try:
        return DailyFile(log_file) if log_file else StandardOutput()
    except OSError as error:
        raise StartError(f"log file {log_file} cannot be written: {error.strerror}") from error


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
    return event


_SHARED: list[Processor] = [structlog.stdlib.add_log_level, _add_time]


def _rendering(settings: ServiceSettings, coloured: bool) -> list[Processor]:
    if settings.log_format == "json":
        return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(default=str)]
    return [structlog.dev.ConsoleRenderer(colors=coloured, exception_formatter=structlog.dev.plain_traceback)]
