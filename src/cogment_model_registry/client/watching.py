"""News of a model's versions, over any number of connections: numbers only grow, and the latest is never missed."""

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from cogment_model_registry.client.calls import Backoff, Calls, Deadline, Subject, method_path, translated
from cogment_model_registry.errors import ModelRegistryError, NotFoundError, TimedOutError, UnavailableError, quoted
from cogment_model_registry.records import VersionInfo
from cogment_model_registry.wire import convert, messages

STREAM_SECONDS = 30.0
"""How long one stream of news lasts at most. A new one tells the latest version at once, so nothing is missed; and
before it a call finds out whether the server is still there, which a silent stream does not tell."""

PATIENCE_SECONDS = 300.0
"""How long a watch goes on by default while the registry is unavailable."""

_CHECK_SECONDS = 10.0
"""How long a server may take to answer that call."""


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


Event: TypeAlias = VersionInfo | Connected | Disconnected


class Known:
    """What is known of a model's versions.

    Args:
        number: The number of the newest one; 0 for none.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._newest: VersionInfo | None = None
        self._newest_archived: VersionInfo | None = None

    def note(self, info: VersionInfo) -> None:
        """Take note of a version, unless a newer one is known."""
        if info.number > self.number:
            self.number = info.number
            self._newest = info
            if info.archived:
                self._newest_archived = info

    def is_newer(self, info: VersionInfo) -> bool:
        """Return whether the latest version is newer than what is known.

        Raises:
            NotFoundError: It is one of a model that was deleted and created anew meanwhile. That cannot be told in
                general: a registry that was killed comes back with its archived versions alone, and so with an older
                one as the latest. But archived ones stay, and no number is given twice.
        """
        newest, archived = self._newest, self._newest_archived
        if archived is not None and info.number < archived.number:
            raise _of_another_life(info, f"version {archived.number}, which was archived, is gone")
        if newest is not None and info.number == newest.number and info.data_hash != newest.data_hash:
            raise _of_another_life(info, f"version {info.number} is another one")
        return info.number > self.number


def _of_another_life(info: VersionInfo, proof: str) -> NotFoundError:
    message = f"model {quoted(info.model_id)} is not the one that was watched: {proof}"
    return NotFoundError(message, model_id=info.model_id)


async def events(calls: Calls, model_id: str, known: Known) -> AsyncGenerator[Event, None]:
    """Yield the latest version of a model if it is newer than what is known, newer ones, and how the connection is.

    Args:
        calls: Makes the calls.
        model_id: The model.
        known: What is known already; a version is noted when the next event is asked for.

    Raises:
        ModelRegistryError: The model does not exist, or no longer does, or the call makes no sense to the server.
    """
    subject = Subject(f"watching model {quoted(model_id)}", model_id)
    backoff = Backoff()
    while True:
        try:
            # A stream says nothing while there is nothing new, nor when its server is gone without a word.
            await _check(calls, model_id, subject)
            yield Connected()
            async with aclosing(_stream(calls, model_id, subject)) as versions:
                async for info in versions:
                    backoff = Backoff()
                    if known.is_newer(info):
                        yield info
                        known.note(info)
                    else:
                        yield Connected()
        except (UnavailableError, TimedOutError) as error:
            yield Disconnected(error)
            await calls.backend.sleep(backoff.next_seconds())


async def versions(
    calls: Calls, model_id: str, after: int, patience_seconds: float
) -> AsyncGenerator[VersionInfo, None]:
    """Yield the latest version of a model if it is newer than `after`, then newer ones.

    Args:
        calls: Makes the calls.
        model_id: The model.
        after: The number of the newest version that the caller knows; 0 for none.
        patience_seconds: How long the registry may be unavailable once it was reached.

    Raises:
        ModelRegistryError: The model does not exist, or no longer does, or the registry is unavailable for too long.
    """
    patience = Deadline(min(calls.retry_seconds, patience_seconds))
    is_connected = False
    async with aclosing(events(calls, model_id, Known(after))) as news:
        async for event in news:
            if not isinstance(event, Disconnected):
                is_connected = True
                if isinstance(event, VersionInfo):
                    yield event
            elif is_connected:
                is_connected = False
                patience = Deadline(patience_seconds)
            elif not patience.left_seconds():
                raise event.error


async def _stream(calls: Calls, model_id: str, subject: Subject) -> AsyncGenerator[VersionInfo, None]:
    """Yield what one stream tells, until it has lasted for its time, or the server ended it."""
    seconds = STREAM_SECONDS * random.uniform(0.8, 1.0)  # noqa: S311 # so that a thousand watchers do not come at once
    deadline = Deadline(seconds)
    request = messages.VersionUpdateRequest(model_id=model_id).SerializeToString()
    async with calls.connection.channel(calls.backend, deadline) as channel:
        replies = calls.backend.stream(channel, method_path("VersionUpdate"), request, seconds)
        try:
            with translated(subject, calls.connection):
                while (message := await replies.read()) is not None:
                    yield convert.version_from_reply(message)
        except TimedOutError:
            if deadline.left_seconds() > 1:
                raise  # the server's own doing
        finally:
            replies.cancel()


async def _check(calls: Calls, model_id: str, subject: Subject) -> None:
    """Make sure that the server is there, and has the model."""
    request = messages.RetrieveModelsRequest(model_ids=[model_id])
    await calls.without_retries().unary(
        "RetrieveModels", request, messages.RetrieveModelsReply, subject, _CHECK_SECONDS
    )
