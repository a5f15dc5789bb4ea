"""The access log: a line for each request, once it has been answered.

Lines wait in a queue of limited size and are written on a thread, so that no request waits for the server to read them.
They have no query, which may have anything, and no token: the server knows the names of its holders.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.types import Scope

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.web.registries import Caller, Registry, current

QUEUE_MAX_LINES = 10_000
"""How many lines may wait."""

NAME_SECONDS = 60.0
"""How long the name of a token's holder is kept."""

_NAMES_MAX = 1000
_PATH_MAX_CHARACTERS = 1024
_METHOD_MAX_CHARACTERS = 32


class AccessLog:
    """Writes a line for each request.

    Args:
        registry: Knows the names of callers.
        write: Writes lines to the server; may block.
        now: Returns the seconds of a monotonic clock.
    """

    def __init__(
        self, registry: Registry, write: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._write = write
        self._now = now
        self._lines: list[str] = []
        self._dropped = 0
        self._has_news = asyncio.Event()
        self._is_ending = False
        self._names: OrderedDict[str, tuple[str, float]] = OrderedDict()  # by token, with the time of its end

    async def log(self, scope: Scope, status: int, sent_bytes: int, seconds: float) -> None:
        """Queue the line of a request.

        Args:
            scope: The request.
            status: The status of the answer.
            sent_bytes: The size of the body of the answer.
            seconds: How long the answer took.
        """
        caller: Caller | None = scope.get("caller")
        client = scope.get("client")
        fields = {
            "client": client[0] if client else "",
            "caller": await self._name_of(caller) if caller is not None and caller.token else "",
            "method": scope["method"][:_METHOD_MAX_CHARACTERS],
            "path": _path_of(scope),
            "status": status,
            "bytes": sent_bytes,
            "seconds": round(seconds, 6),
        }
        if len(self._lines) >= QUEUE_MAX_LINES:
            self._dropped += 1
            return
        self._lines.append(json.dumps({"level": "info", "event": "HTTP request", **fields}))
        self._has_news.set()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Return a context manager within which lines are written, and at its end those that wait."""
        running = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._is_ending = True
            self._has_news.set()
            await running

    async def _run(self) -> None:
        while self._lines or not self._is_ending:
            await self._has_news.wait()
            self._has_news.clear()
            if self._lines:
                with suppress(OSError):  # the server is gone, and so is soon this process
                    await asyncio.to_thread(self._write, self._taken())

    def _taken(self) -> str:
        """Return the lines that wait, and one in the place of those that found no room."""
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(json.dumps({"level": "warning", "event": "lines of HTTP requests dropped", "lines": dropped}))
        return "\n".join(lines)

    async def _name_of(self, caller: Caller) -> str:
        """Return the name of a caller with a token; empty if the server does not know the token."""
        name, until = self._names.get(caller.token, ("", 0.0))
        now = self._now()
        if now < until:
            return name
        former = current.set(caller)  # the request is over, and with it the caller of this context
        try:
            name = await self._registry.caller_name()
        except ModelRegistryError:
            return ""
        finally:
            current.reset(former)
        self._names.pop(caller.token, None)
        if name:
            if len(self._names) >= _NAMES_MAX:
                self._names.popitem(last=False)
            self._names[caller.token] = (name, now + NAME_SECONDS)
        return name


def _path_of(scope: Scope) -> str:
    """Return the path as it was sent, without the query; empty if the request has something else in its place."""
    path: str = scope["raw_path"].decode("ascii", "replace")
    if not path.startswith("/"):
        return ""  # an address of a proxy's request, which may have a password
    return path if len(path) <= _PATH_MAX_CHARACTERS else f"{path[:_PATH_MAX_CHARACTERS]}..."
