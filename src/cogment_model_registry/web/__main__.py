"""The process that serves HTTP. The server starts it; it reads its options and commands from standard input."""

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import traceback

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import uvicorn
import uvloop

from cogment_model_registry.settings.web import RENEW, WebOptions
from cogment_model_registry.system.certificates import CertificateError
from cogment_model_registry.system.ending import end_process
from cogment_model_registry.web.app import new_app
from cogment_model_registry.web.serving import Encryption, allow_descriptors, new_server
from cogment_model_registry.web.state import State

_log = logging.getLogger("http")

_REPORT_SECONDS = 1.0
"""How often the process reports what it has counted, if that has changed."""

_UNFINISHED = "ASGI callable returned without completing response."
"""What uvicorn logs if the client, or the source of the bytes, ends in the middle of an answer."""

_CUT = "Cancel %s running task(s), timeout graceful shutdown exceeded"
"""What uvicorn logs if a stop ends requests in progress; then it logs the cancellation of each as an error."""


class _Lines(logging.Handler):
    """Writes each log record as a line of JSON, which the server logs."""

    def emit(self, record: logging.LogRecord) -> None:
        is_cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
        if record.getMessage() == _UNFINISHED or is_cancelled:
            return
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        entry = {"level": level, "event": record.getMessage(), **getattr(record, "fields", {})}
        if record.msg == _CUT:
            entry = {"level": "info", "event": "stopping ended requests in progress"}
        if record.exc_info:
            entry["exception"] = "".join(traceback.format_exception(*record.exc_info))
        _write(json.dumps(entry, default=str))


_writing = threading.Lock()


def _write(line: str) -> None:
    """Write a line to the server, or several; on any thread."""
    with _writing:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


async def _serve(options: WebOptions) -> None:
    encryption = Encryption(options) if options.tls_certificate else None
    app = new_app(options, _write)
    server = new_server(app, encryption, options.idle_seconds)
    sockets = [socket.socket(fileno=descriptor) for descriptor in options.descriptors]
    background = [
        asyncio.create_task(_obey(server, encryption)),
        asyncio.create_task(_report(server, app.state.shared)),
    ]
    await server.serve(sockets)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)


async def _report(server: uvicorn.Server, state: State) -> None:
    """Report what was counted, until it is cancelled."""
    while True:
        await asyncio.sleep(_REPORT_SECONDS)
        connections = len(server.server_state.connections)
        report = state.tally.report(connections=connections, sessions=len(state.sessions))
        if report is not None:
            _write(report.encoded())


async def _obey(server: uvicorn.Server, encryption: Encryption | None) -> None:
    """Execute the commands on standard input; its end stops the process."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := (await reader.readline()).decode().strip():
            if line == RENEW:
                await _renew(encryption)
            else:
                server.config.timeout_graceful_shutdown = max(1, round(json.loads(line)["grace_seconds"]))
    finally:
        transport.close()
        server.should_exit = True


async def _renew(encryption: Encryption | None) -> None:
    if encryption is not None:
        try:
            await asyncio.to_thread(encryption.renew)
        except CertificateError as error:
            _log.warning("renewed certificate refused for HTTP; the previous one stays in use: %s", error)


def main() -> None:
    """Serve until standard input ends."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
    logging.getLogger("grpc").setLevel(logging.CRITICAL)  # it logs each upload that a client breaks off
    line = _first_line()
    if line:
        allow_descriptors()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(WebOptions.decoded(line)))
    end_process(0)


def _first_line() -> str:
    """Return the first line of standard input, without reading further."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


if __name__ == "__main__":
    main()
