"""The process that serves HTTP: started with the server, started again when it dies, and ended with the server.

It has no rights of its own: it makes calls for its callers, with their tokens. The server owns the listening sockets,
so that the port stays the same and connections wait while the process is started again. The process reads commands as
lines from its standard input, and stops at its end, also when the server is killed. It writes its log and what it has
counted as lines to its standard output.
"""

import asyncio
import json
import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

import grpc.aio
import structlog

from cogment_model_registry.errors import StartError
from cogment_model_registry.server import forwarded_calls
from cogment_model_registry.server.http_metrics import HttpMetrics
from cogment_model_registry.serving import life_cycle
from cogment_model_registry.settings import ALL_INTERFACES, Settings, requires_client_certificate
from cogment_model_registry.settings.web import RENEW, WebOptions
from cogment_model_registry.wire import http_reports
from cogment_model_registry.wire.http_reports import Report

_log = structlog.stdlib.get_logger(__name__)

_MODULES = ("h11", "jinja2", "starlette", "uvicorn")
"""The packages of the extra `web`."""

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""The pause before a restart: it doubles each time, unless the process had run for the longest pause."""

_KILL_SECONDS = 3.0
"""How much longer than its grace period it may take to stop."""

_LINE_MAX_BYTES = 256 * 1024
_BACKLOG = 512
_LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}


class WebProcess:
    """The process that serves HTTP.

    Args:
        settings: The settings of the server.
        socket_path: The UNIX socket for its calls.
        grpc_port: The TCP port of gRPC.
        metrics: Gets what it has counted.

    Attributes:
        port: The TCP port that it serves on.

    Raises:
        StartError: The extra is not installed, or the port is not available.
    """

    def __init__(self, settings: Settings, socket_path: str, grpc_port: int, metrics: HttpMetrics) -> None:
        missing = [name for name in _MODULES if find_spec(name) is None]
        if missing:
            install = "pip install 'cogment-model-registry[server,web]'"
            raise StartError(f"http_port needs {', '.join(missing)}: {install}")
        self._sockets = _listening(settings.http_host or settings.host, settings.http_port or 0)
        self.port: int = self._sockets[0].getsockname()[1]
        self._options = WebOptions(
            socket_path=socket_path,
            descriptors=tuple(each.fileno() for each in self._sockets),
            grpc_port=grpc_port,
            hosts=settings.http_hosts,
            trusted_proxies=settings.http_trusted_proxies,
            access_log=settings.http_access_log,
            tls_certificate=settings.tls_certificate,
            tls_key=settings.tls_key,
            tls_client_ca=settings.tls_client_ca if requires_client_certificate(settings) else "",
            idle_seconds=settings.retrieval_idle_seconds,
        )
        self._metrics = metrics
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep it running, until `stop`."""
        pause_seconds = _PAUSE_SECONDS
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            try:
                code = await self._run_once()
                reason = f"exit code {code}"
            except OSError as error:
                reason = error.strerror or str(error)
            if self._stopping.is_set():
                return
            if now() - began >= _LONGEST_PAUSE_SECONDS:
                pause_seconds = _PAUSE_SECONDS
            _log.error(
                "the process that serves HTTP ended unexpectedly; restarting it", reason=reason, seconds=pause_seconds
            )
            await asyncio.sleep(pause_seconds)
            self._metrics.note_restart()
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cogment_model_registry.web"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=self._options.descriptors,
            start_new_session=True,  # Ctrl-C is for the server, which stops it
            limit=_LINE_MAX_BYTES,
        )
        self._process = process
        try:
            self._tell(self._options.encoded())
            if process.stdout is not None:
                await self._pass_on(process.stdout)
            return await process.wait()
        finally:
            self._process = None
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _pass_on(self, lines: asyncio.StreamReader) -> None:
        """Log the lines of the process until it ends, and add up its reports."""
        while True:
            try:
                line = await lines.readline()
            except ValueError:  # a longer line, of which a part was dropped
                continue
            if not line:
                return
            try:
                entry = json.loads(line)
                if http_reports.KEY in entry:
                    self._metrics.add(Report.decoded(entry[http_reports.KEY]))
                    continue
                level, event = _LEVELS[entry.pop("level")], str(entry.pop("event"))
            except (ValueError, KeyError, TypeError, AttributeError):
                level, event, entry = logging.WARNING, "http", {"output": line.decode("utf-8", "replace").rstrip()}
            _log.log(level, event, **entry)
            await asyncio.sleep(0)  # lines that have arrived already would keep others waiting

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it is gone, which `run` notices
                self._process.stdin.write(f"{line}\n".encode())

    def renew(self) -> None:
        """Let it reload its certificate."""
        self._tell(RENEW)

    async def stop(self, running: "asyncio.Task[None]", grace_seconds: float) -> None:
        """Accept no more connections, and let it finish requests in progress.

        Args:
            running: The task of `run`; it has ended on return.
            grace_seconds: How long that may take.
        """
        self._stopping.set()
        for each in self._sockets:
            each.close()
        if self._process is not None and self._process.stdin is not None:
            self._tell(json.dumps({"grace_seconds": grace_seconds}))
            self._process.stdin.close()
            await asyncio.wait([running], timeout=grace_seconds + _KILL_SECONDS)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def close(self) -> None:
        """Close its sockets, if it was never started."""
        for each in self._sockets:
            each.close()


class Web:
    """HTTP: the process that serves it, and the gRPC server that answers its calls.

    Args:
        settings: The settings of the server.
        socket_path: The UNIX socket for its calls.
        grpc_port: The TCP port of gRPC for clients.
        calls: The gRPC server, which does not listen yet.
        metrics: Gets what the process has counted.

    Attributes:
        port: The TCP port of HTTP.

    Raises:
        StartError: The extra is not installed, or the port is not available.
    """

    def __init__(
        self, settings: Settings, socket_path: str, grpc_port: int, calls: grpc.aio.Server, metrics: HttpMetrics
    ) -> None:
        self._process = WebProcess(settings, socket_path, grpc_port, metrics)
        self.port = self._process.port
        self._calls = calls
        self._running: asyncio.Task[None] | None = None
        try:
            forwarded_calls.listen(calls, socket_path)
        except BaseException:
            self._process.close()
            raise

    async def start(self) -> None:
        """Start serving."""
        await self._calls.start()
        self._running = asyncio.create_task(self._process.run())

    async def stop(self, grace_seconds: float) -> None:
        """Stop serving, with a grace period for requests in progress."""
        running, self._running = self._running, None
        if running is not None:
            await self._process.stop(running, grace_seconds)
        await self._calls.stop(0)

    def renew(self) -> None:
        """Load a renewed certificate."""
        self._process.renew()

    async def close(self) -> None:
        """Stop at once what was not stopped, such as after a start that failed. Closing twice does nothing."""
        await self.stop(0)
        self._process.close()


def _listening(host: str, port: int) -> Sequence[socket.socket]:
    """Return listening sockets, on the same port of each address of a host.

    Raises:
        StartError: The port is not available.
    """
    listening: list[socket.socket] = []
    try:
        if host == ALL_INTERFACES:
            is_dual = socket.has_dualstack_ipv6()
            family, address = (socket.AF_INET6, "::") if is_dual else (socket.AF_INET, "0.0.0.0")  # noqa: S104
            return [
                socket.create_server((address, port), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual),
            ]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, address in dict.fromkeys((each[0], str(each[4][0])) for each in found):
            listening.append(socket.create_server((address, port), family=family, backlog=_BACKLOG))
            port = listening[0].getsockname()[1]
    except OSError:
        for each in listening:
            each.close()
        raise StartError(f"http_port: {life_cycle.refusal(host, port)}") from None
    return listening
