"""The process that serves HTTP. The server starts it; it reads its options and commands from standard input."""

import asyncio
import json
import logging
import os
import socket
import sys
import traceback

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import uvicorn
import uvloop

from cogment_model_registry.settings.web import RENEW, WebOptions
from cogment_model_registry.system.certificates import CertificateError
from cogment_model_registry.web.app import new_app
from cogment_model_registry.web.serving import Encryption, allow_descriptors, new_server

_log = logging.getLogger("http")


_UNFINISHED = "ASGI callable returned without completing response."
"""What uvicorn logs if the client, or the source of the bytes, ends in the middle of an answer."""


class _Lines(logging.Handler):
    """Writes each log record as a line of JSON, which the server logs."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == _UNFINISHED:
            return
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        entry = {"level": level, "event": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            entry["exception"] = "".join(traceback.format_exception(*record.exc_info))
        sys.stdout.write(json.dumps(entry, default=str) + "\n")
        sys.stdout.flush()


async def _serve(options: WebOptions) -> None:
    encryption = Encryption(options) if options.tls_certificate else None
    server = new_server(new_app(options), encryption, options.idle_seconds)
    sockets = [socket.socket(fileno=descriptor) for descriptor in options.descriptors]
    obeying = asyncio.create_task(_obey(server, encryption))
    await server.serve(sockets)
    obeying.cancel()
    await asyncio.gather(obeying, return_exceptions=True)


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
    # Everything is closed; the shutdown of Python and gRPC would take most of the time of a stop.
    sys.stdout.flush()
    os._exit(0)


def _first_line() -> str:
    """Return the first line of standard input, without reading further."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


if __name__ == "__main__":
    main()
