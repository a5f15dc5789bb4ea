"""Counts of requests, which become metrics of the server."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogment_model_registry.system.durations import count_duration
from cogment_model_registry.wire.http_reports import Counts, Report, State

OTHER = "other"
"""The operation of requests that no route answers: refused ones, and those for paths that do not exist."""

_EXCHANGE = "model_registry.exchange"
_FAILED = 500
"""The status of a request that failed before it was answered."""


Log: TypeAlias = Callable[[Scope, int, int, float], Awaitable[None]]


class Tally:
    """Counts requests, logins and streams since the previous report.

    Attributes:
        logins: The number of logins since the previous report, by result.
        requests: Requests in progress.
        streams: Streams of events that are open.
    """

    def __init__(self) -> None:
        self.logins: dict[str, int] = {}
        self.requests = 0
        self.streams = 0
        self._operations: dict[str, Counts] = {}
        self._reported = State()

    def counts_of(self, operation: str) -> Counts:
        """Return the counts of an operation, to change."""
        counts = self._operations.get(operation)
        if counts is None:
            counts = self._operations[operation] = Counts()
        return counts

    def count_login(self, result: str) -> None:
        """Count a login: ``accepted``, ``refused``, or ``limited``."""
        self.logins[result] = self.logins.get(result, 0) + 1

    def report(self, *, connections: int, sessions: int) -> Report | None:
        """Return what was counted since the previous report; None if nothing has changed."""
        state = State(self.requests, self.streams, connections, sessions)
        if not self._operations and not self.logins and state == self._reported:
            return None
        report = Report(self._operations, self.logins, state)
        self._operations, self.logins, self._reported = {}, {}, state
        return report


class Exchange:
    """A request and its answer.

    Attributes:
        operation: What it is for; `OTHER` until a route answers it.
        sent_bytes: The bytes of the body of the answer so far.
    """

    __slots__ = ("_tally", "operation", "sent_bytes")

    def __init__(self, tally: Tally) -> None:
        self.operation = OTHER
        self.sent_bytes = 0
        self._tally = tally

    def count_received(self, size_bytes: int) -> None:
        """Count bytes of the body of the request."""
        self._tally.counts_of(self.operation).received_bytes += size_bytes

    def count_sent(self, size_bytes: int) -> None:
        """Count bytes of the body of the answer."""
        self.sent_bytes += size_bytes
        self._tally.counts_of(self.operation).sent_bytes += size_bytes

    def end(self, status: int, seconds: float) -> None:
        """Count the answer."""
        counts = self._tally.counts_of(self.operation)
        counts.by_status[str(status)] = counts.by_status.get(str(status), 0) + 1
        count_duration(counts.in_bucket, seconds)
        counts.seconds += seconds


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request."""
    exchange: Exchange = scope[_EXCHANGE]
    return exchange


class Counting:
    """Counts each request and its answer.

    Args:
        app: The application that answers.
        tally: The counts.
        log: Called at the end of each request with its scope, the status and the size of the body of the answer, and
            the seconds that it took; None for no access log.
        now: Returns the seconds of a monotonic clock.
    """

    def __init__(
        self, app: ASGIApp, tally: Tally, log: Log | None = None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app = app
        self._tally = tally
        self._log = log
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tally, exchange = self._tally, Exchange(self._tally)
        status, is_stream = _FAILED, False

        async def counted_receive() -> Message:
            message = await receive()
            if body := message.get("body"):
                exchange.count_received(len(body))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, is_stream
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
                if _is_stream(message):
                    is_stream = True
                    tally.streams += 1
            elif (body := message.get("body")) and scope["method"] != "HEAD":
                exchange.count_sent(len(body))

        scope[_EXCHANGE] = exchange
        tally.requests += 1
        began = self._now()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            tally.requests -= 1
            tally.streams -= is_stream
            seconds = self._now() - began
            exchange.end(status, seconds)
            if self._log is not None:
                await self._log(scope, status, exchange.sent_bytes, seconds)


def _is_stream(start: Message) -> bool:
    """Return whether an answer is a stream of events, which lasts until one side ends it."""
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


def naming(answer: ASGIApp, path: str) -> ASGIApp:
    """Return the application of a route, which names the operation: the method, and the path with its placeholders."""

    async def answer_named(scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).operation = f"{scope['method']} {path}"
        await answer(scope, receive, send)

    return answer_named
