"""Pages that stay current: server-sent events with the parts of a page that have changed.

All open pages about a model, and all first pages with the same search, share a feed, if their callers have the same
rights. The feed of a model has one watch of versions and aliases, and one list of consumers that is requested
repeatedly: the lag of consumers changes without a report of theirs. The feed of a first page has no watch, which would
bring the versions of all models: it requests the consumers and the rows of the models that it shows, at most 50. Which
models these are is searched for separately, so that a search among very many models delays no row.

All of this is requested at most once a second, and so seldom that a feed takes at most a fortieth of the time, and all
feeds together at most a quarter. Each page gets the rows that it does not have yet, however slow it is.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cogment_model_registry.client import failures
from cogment_model_registry.client.calls import method_path
from cogment_model_registry.client.deadlines import Backoff
from cogment_model_registry.client.streams import streaming
from cogment_model_registry.errors import (
    LimitedError,
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    UnauthenticatedError,
)
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import Gone
from cogment_model_registry.web.pages import consumers, models, queries
from cogment_model_registry.web.pages.consumers import Row
from cogment_model_registry.web.pages.formats import NS_PER_SECOND
from cogment_model_registry.web.pages.model import CONSUMER_ROWS, NEWEST_FIRST
from cogment_model_registry.web.pages.rights import Rights, rights_of
from cogment_model_registry.web.registries import Caller, Registry, current
from cogment_model_registry.web.state import State, address_of, caller_of, state_of
from cogment_model_registry.wire import watching as wire
from cogment_model_registry.wire.forwarding import Description
from cogment_model_registry.wire.lifecycle import SERVICE_NAME

_VERSION_ROWS = 20
_LIST_SECONDS = 1.0
"""The shortest time between two requests for the list of consumers."""

_VERSIONS_SECONDS = 5.0
"""How soon a page shows that an older version is gone, which the watch does not report."""

_SHARE = 1 / 40
"""The part of the time that the requests of a feed may take."""

_SHARE_OF_ALL = 1 / 4
"""The part of the time that the requests of all feeds may take."""

_RATE_NS = 15 * NS_PER_SECOND
"""How often the rates of models that get no versions are calculated again."""

_STREAM_SECONDS = 300.0
_BEAT_SECONDS = 15.0
"""The longest time without bytes to a page, so that both sides notice a lost connection."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a page is about.

    Attributes:
        model_id: The model; empty for the first page.
        text: What the first page searches for.
        token: Which page of the models it shows; empty for the first one.
    """

    model_id: str = ""
    text: str = ""
    token: str = ""


@dataclass(slots=True)
class Feed:
    """What the pages about a model show now, or a first page.

    Attributes:
        parts: The parts of the page, by name: HTML.
        tables: The rows of its tables, by the name of the table: HTML by key, in order.
        readers: The pages, by what wakes them.
        is_filled: Whether it has all of them.
        is_over: Whether it has ended.
        task: The task that keeps it current.
    """

    parts: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, str]] = field(default_factory=dict)
    readers: set[asyncio.Event] = field(default_factory=set)
    is_filled: bool = False
    is_over: bool = False
    task: "asyncio.Task[None] | None" = None

    def filled(self) -> None:
        """Record that it has all of them, and wake the pages."""
        self.is_filled = True
        self.changed()

    def changed(self) -> None:
        """Wake the pages."""
        for reader in self.readers:
            reader.set()


class Feeds:
    """The feeds of a process.

    Args:
        state: What the routes share.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._feeds: dict[tuple[Description, Subject], Feed] = {}

    async def events(self, caller: Caller, rights: Description, subject: Subject) -> AsyncGenerator[str, None]:
        """Yield the events for one page, until it is closed or its session ends.

        Args:
            caller: The caller.
            rights: The rights of the caller: pages with the same ones see the same, and share a feed.
            subject: What the page is about.
        """
        key = (rights, subject)
        feed = self._feeds.get(key)
        if feed is None or feed.is_over:
            feed = self._feeds[key] = Feed()
            feed.task = asyncio.create_task(self._run(feed, caller, rights_of(rights, has_session=False), subject))
        news = asyncio.Event()
        feed.readers.add(news)
        if feed.is_filled:
            news.set()
        sent, sessions = Sent(), self._state.sessions
        try:
            with sessions.streaming(caller.session_id, news):
                yield "retry: 2000\n\n"
                while not feed.is_over:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_BEAT_SECONDS):
                            await news.wait()
                    is_quiet = not news.is_set()
                    if caller.session_id and not sessions.is_live(caller.session_id):
                        yield _SESSION_ENDED
                        return
                    news.clear()
                    text = "" if is_quiet else sent.difference(feed)
                    if text:
                        yield f"data: {text}\n\n"
                    elif is_quiet:
                        yield ": still here\n\n"
        finally:
            feed.readers.discard(news)
            if not feed.readers and feed.task is not None:
                feed.task.cancel()
                if self._feeds.get(key) is feed:
                    del self._feeds[key]

    async def close(self) -> None:
        """End all feeds."""
        tasks = [feed.task for feed in self._feeds.values() if feed.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pause_seconds(self, seconds: float) -> float:
        """Return how long a feed rests after requests that took some time."""
        return max(_LIST_SECONDS, seconds / _SHARE, seconds * len(self._feeds) / _SHARE_OF_ALL)

    async def _run(self, feed: Feed, caller: Caller, rights: Rights, subject: Subject) -> None:
        current.set(caller)
        source = _Source(self._state, feed, rights, subject, self._pause_seconds)
        try:
            await source.run()
        except ModelRegistryError:
            pass  # the page asks again, and is told so then
        finally:
            feed.is_over = True
            feed.changed()


class Sent:
    """What one page has already."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}
        self._tables: dict[str, dict[str, str]] = {}

    def difference(self, feed: Feed) -> str:
        """Return the document with the changes that the page needs to be current; empty for none."""
        parts = {name: html for name, html in feed.parts.items() if self._parts.get(name) != html}
        tables: dict[str, object] = {}
        for name, rows in feed.tables.items():
            known = self._tables.get(name, {})
            changed = {key: html for key, html in rows.items() if known.get(key) != html}
            if changed or [*known] != [*rows]:
                tables[name] = {"order": [*rows], "rows": changed}
            self._tables[name] = rows
        self._parts = dict(feed.parts)
        if not parts and not tables:
            return ""
        return json.dumps({"parts": parts, "tables": tables}, separators=(",", ":"))


class _Source:
    """Keeps a feed current.

    Args:
        state: What the routes share.
        feed: The feed.
        rights: What its pages offer.
        subject: What its pages are about.
        pause_seconds: Returns how long to rest after requests that took some seconds.
    """

    def __init__(
        self, state: State, feed: Feed, rights: Rights, subject: Subject, pause_seconds: Callable[[float], float]
    ) -> None:
        self._registry: Registry = state.registry
        self._environment = state.templates.environment
        self._feed = feed
        self._rights = rights
        self._macros: Any = self._environment.get_template("_rows.html").module
        self._subject = subject
        self._model_id = subject.model_id
        self._pause_seconds = pause_seconds
        self._found: models.Found | None = None
        self._is_found_now = False
        self._is_stale = asyncio.Event()
        self._versions_listed = float("-inf")

    async def run(self) -> None:
        """Keep it current until it is cancelled.

        Raises:
            ModelRegistryError: The model is gone, or the server stops, or the caller may not read it any more.
        """
        parts = (
            (self._repeat(self._look_at_model), self._watch())
            if self._model_id
            else (self._repeat(self._look_at_all), self._repeat(self._search))
        )
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.gather(*tasks)  # the feed ends with either of them, and its pages ask again
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, look: Callable[[], Awaitable[object]]) -> None:
        backoff = Backoff()
        while True:
            began = time.perf_counter()
            waits = 0.0
            try:
                await look()
                backoff = Backoff()
            except (LimitedError, TimedOutError) as error:
                waits = backoff.next_seconds(error)
            await asyncio.sleep(max(waits, self._pause_seconds(time.perf_counter() - began)))

    async def _search(self) -> models.Found:
        """Find the models that a first page shows."""
        self._found = await models.search(self._registry, self._subject.text, self._subject.token)
        self._is_found_now = True
        return self._found

    async def _shown_models(self) -> tuple[models.Found, Sequence[ModelSummary]]:
        """Return what the search found, and these models as they are now."""
        if self._found is not None and not self._is_found_now:
            try:
                ids = [model.model_id for model in self._found.models]
                return self._found, await queries.named_models(self._registry, ids)
            except NotFoundError:  # one was deleted
                self._found = None
        found = self._found or await self._search()
        self._is_found_now = False
        return found, found.models

    async def _look_at_all(self) -> None:
        (found, shown), every = await asyncio.gather(
            self._shown_models(), consumers.read_consumers(self._registry, None)
        )
        overview = consumers.overview_of(every)
        notable = (row for row in overview.rows if row.is_notable)
        paces = await queries.paces(self._registry, shown, time.time_ns() // _RATE_NS * _RATE_NS)
        rows = models.rows_of(shown, paces, consumers.by_model(every))
        render = self._macros.model_row
        self._feed.tables["lagging"] = self._consumer_rows(notable, models.LAGGING_ROWS, has_model=True)
        self._feed.tables["models"] = {row.model.model_id: render(row).strip() for row in rows}
        self._feed.parts["lag-summary"] = self._render("_lag_all.html", overview=overview)
        self._feed.parts["models-pager"] = self._render(
            "_models_pager.html", found=found, is_first=not self._subject.token, text=self._subject.text
        )
        self._feed.filled()

    async def _look_at_model(self) -> None:
        every = await consumers.read_consumers(self._registry, self._model_id)
        now = time.monotonic()
        if self._is_stale.is_set() or now - self._versions_listed >= _VERSIONS_SECONDS:
            self._is_stale.clear()
            self._versions_listed = now
            await self._look_at_versions()
        overview = consumers.overview_of(every)
        self._feed.tables["consumers"] = self._consumer_rows(overview.rows, CONSUMER_ROWS, has_model=False)
        self._feed.parts["spread"] = self._render("_spread.html", overview=overview, model_id=self._model_id)
        self._feed.parts["consumers-shown"] = self._render(
            "_consumers_shown.html", overview=overview, consumer_rows=CONSUMER_ROWS
        )
        self._feed.filled()

    async def _look_at_versions(self) -> None:
        model, page = await asyncio.gather(
            self._registry.describe_model(self._model_id),
            queries.find_versions(self._registry, self._model_id, order_by=NEWEST_FIRST, size=_VERSION_ROWS),
        )
        self._feed.tables["versions"] = self._version_rows(page.versions)
        self._feed.parts["aliases"] = self._render("_aliases.html", model=model, rights=self._rights)
        self._feed.parts["facts"] = self._render("_facts.html", model=model, pace=queries.pace_of(page.versions[:10]))

    def _consumer_rows(self, rows: Iterable[Row], count: int, *, has_model: bool) -> dict[str, str]:
        render = self._macros.consumer_row
        return {row.key: render(row, has_model, True).strip() for row in islice(rows, count)}

    def _version_rows(self, versions: Sequence[Version]) -> dict[str, str]:
        return {str(each.number): self._macros.version_row(each).strip() for each in versions}

    def _render(self, name: str, **values: object) -> str:
        return self._environment.get_template(name).render(now_ns=time.time_ns(), **values).strip()

    async def _watch(self) -> None:
        """Record that versions or aliases have changed, until it is cancelled.

        Each watch ends with the first change, and the next one begins a second later: otherwise the server would send
        each of the hundreds of versions that may be published in a second, to every feed.
        """
        token, backoff = "", Backoff()
        while True:
            pause = _LIST_SECONDS
            try:
                token = await self._changed_after(token)
                backoff = Backoff()
            except ModelRegistryError as error:
                token, pause = "", max(pause, backoff.next_seconds(error))
            self._is_stale.set()
            await asyncio.sleep(pause)

    async def _changed_after(self, token: str) -> str:
        """Wait for the first change after a token, and return the token of that change."""
        subject = failures.Subject("watching", self._model_id)
        path = method_path("Watch", SERVICE_NAME)
        request = wire.watch_request([self._model_id], token, every=False)
        calls = self._registry.calls
        async with streaming(calls, path, request, subject, _STREAM_SECONDS, is_brief=True) as replies:
            while (message := await replies.read()) is not None:
                reply = wire.decode_reply(message)
                if isinstance(reply, wire.Reply):
                    token = reply.token or token
                    if isinstance(reply.event, Version | ModelSummary | Gone):
                        break
        return token


_SESSION_ENDED = "event: ended\ndata:\n\n"
"""The event after which a page says that its session has ended, and asks for no more events."""


async def _ended() -> AsyncGenerator[str, None]:
    yield _SESSION_ENDED


class _Page(StreamingResponse):
    """The answer to a page: its events.

    Args:
        events: The events.
        place: What is closed at the end.
    """

    def __init__(self, events: AsyncGenerator[str, None], place: ExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, 200, headers, "text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the page is closed."""
        with self._place:
            await super().__call__(scope, receive, send)


async def answer(request: Request) -> Response:
    """Answer with the events for a page about a model, or for a first page."""
    state, caller = state_of(request), caller_of(request)
    query = {name: request.query_params.get(name, "").strip() for name in ("q", "page", "session")}
    model_id = request.path_params.get("model_id", "")
    feeds: Feeds = request.app.state.feeds
    with ExitStack() as place:
        place.enter_context(state.live_pages.taken(address_of(request)))
        try:
            if query["session"] and not caller.session_id:
                raise UnauthenticatedError("the session has ended")
            if model_id:
                await state.registry.describe_model(model_id)
            rights = await state.registry.describe_caller()
            events = feeds.events(caller, rights, Subject(model_id, query["q"], query["page"]))
        except UnauthenticatedError:
            if not query["session"]:
                raise
            events = _ended()  # browsers do not show the status of such a request to scripts
        return _Page(events, place.pop_all())
