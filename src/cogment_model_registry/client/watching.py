"""News of a model's versions over successive connections: numbers only grow, and the latest is never missed."""

import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from cogment_model_registry.client import lookups
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.deadlines import Backoff, Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lifecycle_calls import missing_service
from cogment_model_registry.client.streams import STEADY_SECONDS, streaming
from cogment_model_registry.client.watch_streams import NO_VERSION, Received, Wishes, stream
from cogment_model_registry.errors import (
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    WrongServerError,
    quoted,
)
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.news import Event as NewsEvent
from cogment_model_registry.records.news import Gap
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import convert, messages

STREAM_SECONDS = 30.0
"""How long one stream of news lasts at most. A new one reports the latest version at once, so nothing is missed; and
before it a call checks that the server still answers, which a silent stream does not show."""

PATIENCE_SECONDS = 300.0
"""How long a watch continues by default while the registry is unavailable."""

CHECK_SECONDS = 10.0
"""How long a server may take to answer the call before a stream."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The registry answers."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The registry does not answer; there will be another attempt.

    Attributes:
        error: Why.
    """

    error: ModelRegistryError


@dataclass(frozen=True, slots=True)
class Absent:
    """The alias that is followed does not exist.

    Attributes:
        error: The error that says so.
    """

    error: ModelRegistryError


Event: TypeAlias = Received | Connected | Disconnected

_EveryEvent: TypeAlias = Version | Gap | Connected | Disconnected
_News = TypeVar("_News")

ARCHIVED = "archived = true"
"""The filter of archived versions."""


class Known:
    """The newest known version of a model.

    Args:
        number: The number of the newest one; 0 for none.

    Attributes:
        number: The same.
        data_hash: Its hash, if that is known.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.data_hash = ""
        self._archived: VersionInfo | None = None

    def note(self, info: VersionInfo) -> None:
        """Record a version, unless a newer one is known."""
        if info.number > self.number:
            self.number, self.data_hash = info.number, info.data_hash
            if info.archived:
                self._archived = info

    def is_newer(self, info: VersionInfo) -> bool:
        """Return whether the latest version is newer than what is known.

        Raises:
            NotFoundError: It belongs to a model that was deleted and created again. That cannot always be detected: a
                registry that was killed comes back with its archived versions only, and an archived version may be
                deleted, so the latest may be an older one. But no number is given twice, and a version that is newer
                than an archived one does not have a lower number.
        """
        proof = ""
        archived = self._archived
        if archived is not None and info.number < archived.number and info.created_ns > archived.created_ns:
            proof = f"version {info.number} is newer than version {archived.number}, which was archived"
        elif self.data_hash and info.number == self.number and info.data_hash != self.data_hash:
            proof = f"version {info.number} has other bytes"
        if proof:
            message = f"model {quoted(info.model_id)} was deleted and created again: {proof}"
            raise NotFoundError(message, model_id=info.model_id)
        return info.number > self.number


async def events(
    calls: Calls, model_id: str, known: Known, *, archived: bool, inline_max_bytes: int = 0
) -> AsyncGenerator[Event, None]:
    """Yield the versions of a model that are newer than the known one, and the changes of the connection.

    Args:
        calls: Makes the calls.
        model_id: The model.
        known: What is known already; a version is recorded when the next event is asked for.
        archived: Whether to yield archived versions only.
        inline_max_bytes: The size up to which versions should come with their bytes.

    Raises:
        ModelRegistryError: The model does not exist, or no longer does, or the server does not understand the call.
    """
    subject = Subject(f"watching model {quoted(model_id)}", model_id)
    wishes = Wishes(accepted=ARCHIVED if archived else "", inline_max_bytes=inline_max_bytes)
    backoff = Backoff()
    while True:
        try:
            # A stream is silent while nothing is new, and also when its server vanished.
            await _check(calls, model_id, subject)
            yield Connected()
            async with aclosing(_received(calls, model_id, subject, wishes, known)) as versions:
                async for received in versions:
                    info = received.version
                    if known.is_newer(info):
                        backoff = Backoff()
                        if info.archived or not archived:
                            yield received
                        elif (older := await _archived_before(calls, info, known)) is not None:
                            yield Received(older)
                            known.note(older)
                        known.note(info)
        except (UnavailableError, TimedOutError) as error:
            yield Disconnected(error)
            await calls.backend.sleep(backoff.next_seconds(error))


async def every(calls: Calls, model_id: str, after: int, *, archived: bool) -> AsyncGenerator[_EveryEvent, None]:
    """Yield all versions of a model, in the order of their numbers, the gaps, and the changes of the connection.

    Args:
        calls: Makes the calls.
        model_id: The model.
        after: The highest number that is known already.
        archived: Whether to yield archived versions only; others are no gaps.

    Raises:
        ModelRegistryError: The model does not exist, or no longer does, or the server does not have the call.
    """
    subject = Subject(f"watching model {quoted(model_id)}", model_id)
    wishes = Wishes(every=True, accepted=ARCHIVED if archived else "")
    backoff = Backoff()
    while True:
        try:
            await _check(calls, model_id, subject)
            yield Connected()
            async with aclosing(_required(calls, model_id, subject, wishes)) as news:
                async for event in news:
                    first, last = _numbers(event)
                    if last > after:
                        backoff = Backoff()
                        if isinstance(event, Version):
                            yield event
                        else:
                            yield Gap(model_id, max(first, after + 1), last)
                        after = last
        except (UnavailableError, TimedOutError) as error:
            yield Disconnected(error)
            await calls.backend.sleep(backoff.next_seconds(error))


def _numbers(event: object) -> tuple[int, int]:
    """Return the lowest and the highest number that an event is about; 0 for none."""
    if isinstance(event, Version):
        return event.number, event.number
    return (event.first_number, event.last_number) if isinstance(event, Gap) else (0, 0)


async def aliased(calls: Calls, model_id: str, alias: str) -> AsyncGenerator[Event | Absent, None]:
    """Yield the version that an alias points to, each one to which it is moved, and the changes of the connection.

    Raises:
        ModelRegistryError: The model does not exist, or no longer does, or the server does not have the call.
    """
    subject = Subject(f"following alias {quoted(alias)} of model {quoted(model_id)}", model_id)
    wishes = Wishes(accepted=NO_VERSION)
    backoff = Backoff()
    while True:
        try:
            await _check(calls, model_id, subject)
            yield Connected()
            async with aclosing(_required(calls, model_id, subject, wishes)) as news:
                async for event in news:
                    if isinstance(event, ModelSummary):
                        backoff = Backoff()
                        yield await _target(calls, event, alias)
        except (UnavailableError, TimedOutError) as error:
            yield Disconnected(error)
            await calls.backend.sleep(backoff.next_seconds(error))


async def _target(calls: Calls, model: ModelSummary, alias: str) -> Received | Absent:
    """Return the version that an alias points to."""
    for each in model.aliases:
        if each.name == alias:
            deadline = Deadline(CHECK_SECONDS)
            try:
                return Received(
                    await lookups.one(calls.without_retries(), model.model_id, each.version_number, deadline)
                )
            except NotFoundError as error:
                return Absent(error)  # it was deleted with its alias, as the next event will say
    message = f"model {quoted(model.model_id)} has no alias {quoted(alias)}"
    return Absent(NotFoundError(message, model_id=model.model_id))


async def _archived_before(calls: Calls, latest: VersionInfo, known: Known) -> VersionInfo | None:
    """Return the newest archived version between what is known and a transient one: a stream skips versions."""
    deadline = Deadline(CHECK_SECONDS)
    found = await lookups.newest_archived(calls.without_retries(), latest, 1, known.number, deadline)
    return found[-1] if found else None


async def versions(
    calls: Calls, model_id: str, known: Known, patience_seconds: float, *, archived: bool
) -> AsyncGenerator[VersionInfo, None]:
    """Yield the latest version of a model if it is newer than what is known, then newer ones.

    Args:
        calls: Makes the calls.
        model_id: The model.
        known: The newest version that the caller knows.
        patience_seconds: How long the registry may be unavailable once it was reached.
        archived: Whether to yield archived versions only.

    Raises:
        ModelRegistryError: The model does not exist, or no longer does, or the registry was unavailable for too long.
    """
    async with aclosing(patiently(calls, events(calls, model_id, known, archived=archived), patience_seconds)) as news:
        async for received in news:
            yield received.version


async def patiently(
    calls: Calls, news: "AsyncGenerator[_News | Connected | Disconnected, None]", patience_seconds: float
) -> AsyncGenerator[_News, None]:
    """Yield news without the changes of the connection.

    Args:
        calls: Makes the calls.
        news: The news.
        patience_seconds: How long the registry may be unavailable once it was reached.

    Raises:
        ModelRegistryError: The registry was unavailable for too long.
    """
    patience = Deadline(min(calls.retry_seconds, patience_seconds))
    was_reached = False
    connected_since: float | None = None
    async with aclosing(news):
        async for event in news:
            now = time.monotonic()
            if not isinstance(event, Disconnected):
                connected_since = now if connected_since is None else connected_since
                if not isinstance(event, Connected):
                    yield event
                continue
            # A server that answers, and then breaks each stream at once, counts as unavailable too.
            if connected_since is not None and (not was_reached or now - connected_since > STEADY_SECONDS):
                was_reached = True
                patience = Deadline(patience_seconds)
            connected_since = None
            if not patience.left_seconds():
                raise event.error


async def _received(
    calls: Calls, model_id: str, subject: Subject, wishes: Wishes, known: Known
) -> AsyncGenerator[Received, None]:
    """Yield the versions of one stream: with their bytes where the server can send them along."""
    if calls.connection.has_watch:
        wishes.token, wishes.known_hash = "", known.data_hash  # the newest version says all there is to say
        try:
            async with aclosing(stream(calls, [model_id], subject, wishes, stream_seconds())) as news:
                async for event in news:
                    if isinstance(event, Received):
                        yield event
        except WrongServerError:
            calls.connection.has_watch = False
        else:
            return
    async with aclosing(_stream(calls, model_id, subject)) as infos:
        async for info in infos:
            yield Received(info)


async def _required(
    calls: Calls, model_id: str, subject: Subject, wishes: Wishes
) -> AsyncGenerator[NewsEvent | Received, None]:
    """Yield the events of one stream; an error says so if the server does not have the call."""
    try:
        async with aclosing(stream(calls, [model_id], subject, wishes, stream_seconds())) as news:
            async for event in news:
                yield event
    except WrongServerError as error:
        raise missing_service(subject) from error


def stream_seconds() -> float:
    """Return how long a stream may last: not all the same, so that a thousand watchers do not reconnect at once."""
    return STREAM_SECONDS * random.uniform(0.8, 1.0)  # noqa: S311 # no secret


async def _stream(calls: Calls, model_id: str, subject: Subject) -> AsyncGenerator[VersionInfo, None]:
    """Yield the versions of one stream, until it has lasted for its time, or the server ended it."""
    request = messages.VersionUpdateRequest(model_id=model_id).SerializeToString()
    path = method_path("VersionUpdate")
    async with streaming(calls, path, request, subject, stream_seconds()) as replies:
        while (message := await replies.read()) is not None:
            yield convert.version_from_reply(message)


async def _check(calls: Calls, model_id: str, subject: Subject) -> None:
    """Check that the server answers; one that does not have the model says so."""
    request = messages.RetrieveModelsRequest(model_ids=[model_id])
    await calls.without_retries().unary(
        "RetrieveModels", request, messages.RetrieveModelsReply, subject, Deadline(CHECK_SECONDS)
    )
