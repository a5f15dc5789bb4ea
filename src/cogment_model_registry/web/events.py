"""The events of a watch as server-sent events, which browsers read and resume by themselves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cogment_model_registry.client.passing_on import PassingOn
from cogment_model_registry.errors import InvalidError, ModelRegistryError, quoted
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.documents import consumer_as_json, model_as_json, version_as_json
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import Event, Gap, Gone
from cogment_model_registry.web.disconnects import Connected
from cogment_model_registry.web.errors import problem, problem_of
from cogment_model_registry.web.parameters import flag, parameters
from cogment_model_registry.web.state import State, address_of, caller_of, registry_of, state_of

BEAT_SECONDS = 15.0
"""How often a stream sends at least a comment, so that proxies keep it open and lost clients are noticed."""

_LOGGED_OUT = (
    b"event: error\ndata: "
    + bytes(problem(HTTPStatus.UNAUTHORIZED, "the session has ended; log in again", error="UnauthenticatedError").body)
    + b"\n\n"
)

_News = AsyncGenerator[tuple[str, Event | Consumer], None]


async def of_model(request: Request) -> Response:
    """Answer with the events of a model."""
    return await _stream(request, [request.path_params["model"]])


async def of_models(request: Request) -> Response:
    """Answer with the events of some models, or of all that the caller may read."""
    return await _stream(request, request.query_params.getlist("model"))


async def _stream(request: Request, model_ids: Sequence[str]) -> Response:
    query = parameters(request, {"model", "mode", "filter", "consumers", "resume_token"})
    mode = query.get("mode", "latest")
    if mode not in ("latest", "all"):
        raise InvalidError(f"mode is {quoted(mode)}; it must be latest or all")
    state = state_of(request)
    with ExitStack() as place:
        place.enter_context(state.streams.taken(address_of(request)))
        news = PassingOn(registry_of(request).calls).watch(
            model_ids,
            request.headers.get("last-event-id") or query.get("resume_token", ""),
            every=mode == "all",
            accepted=query.get("filter", ""),
            consumers=flag(query, "consumers"),
        )
        try:
            first = await anext(news)  # until it arrives, an error can be answered
        except BaseException:
            await news.aclose()
            raise
        return _Events(news, first, state, place.pop_all(), caller_of(request).session_id)


class _Events(Response):
    """An answer that continues until one side ends it, and then closes what it was given as its place."""

    def __init__(
        self, news: _News, first: tuple[str, Event | Consumer], state: State, place: ExitStack, session_id: str
    ) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(None, headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._news = news
        self._first = first
        self._state = state
        self._place = place
        self._session_id = session_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client is gone, or the server ends the watch."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)  # no event is taken from the server before the last one is sent
        reading = asyncio.ensure_future(self._read(queue))
        ended = asyncio.Event()
        ending = asyncio.ensure_future(ended.wait())
        try:
            with self._state.sessions.streaming(self._session_id, ended):
                await self._send(receive, send, queue, reading, ending)
        finally:
            self._place.close()
            reading.cancel()
            ending.cancel()
            await asyncio.gather(reading, ending, return_exceptions=True)
            await self._news.aclose()  # if it was never read

    async def _send(
        self,
        receive: Receive,
        send: Send,
        queue: "asyncio.Queue[bytes]",
        reading: "asyncio.Future[None]",
        ending: "asyncio.Future[Literal[True]]",
    ) -> None:
        sessions = self._state.sessions
        async with Connected(receive) as connected:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while connected:
                if ending.done() or (self._session_id and not sessions.is_live(self._session_id)):
                    await send({"type": "http.response.body", "body": _LOGGED_OUT, "more_body": True})
                    break
                text = await _next(queue, connected, reading, ending)
                if text is None:
                    break
                await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _read(self, queue: "asyncio.Queue[bytes]") -> None:
        await queue.put(encoded(*self._first))
        try:
            async for token, event in self._news:
                await queue.put(encoded(token, event))
        except ModelRegistryError as error:
            await queue.put(b"event: error\ndata: " + bytes(problem_of(error).body) + b"\n\n")


async def _next(
    queue: "asyncio.Queue[bytes]",
    connected: Connected,
    reading: "asyncio.Future[None]",
    ending: "asyncio.Future[Literal[True]]",
) -> bytes | None:
    """Return the next event; a comment if none arrives in time, or the session ended; None at the end."""
    getting = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait(
            (getting, connected.end, reading, ending), timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if getting.done():
            return getting.result()
        if not connected:
            return None
        if reading.done():
            return queue.get_nowait() if queue.qsize() else None
        return b":\n\n"
    finally:
        getting.cancel()


def encoded(token: str, event: Event | Consumer) -> bytes:
    """Return an event as lines."""
    name, document = _described(event)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    line = f"id: {token}\n" if token else ""  # an empty id would make browsers forget the last one
    return f"{line}event: {name}\ndata: {text}\n\n".encode()


def _described(event: Event | Consumer) -> tuple[str, dict[str, object]]:
    """Return the kind of an event, and the object that stands for it."""
    if isinstance(event, Version):
        return "version", version_as_json(event)
    if isinstance(event, ModelSummary):
        return "model", model_as_json(event)
    if isinstance(event, Consumer):
        return "consumer", consumer_as_json(event)
    if isinstance(event, Gap):
        numbers = {"first_number": event.first_number, "last_number": event.last_number}
        return "gap", {"model_id": event.model_id, **numbers}
    if isinstance(event, Gone):
        return "gone", {"model_id": event.model_id, "version_number": event.version_number, "reason": event.reason}
    return "caught_up", {}
