"""Choosing the registry that calls go to, where several serve the same models.

A registry is asked for its status before it is chosen, so that one that is gone costs little time, and so that it is
known whether it allows pings: with them, it is noticed if it freezes later.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from cogment_model_registry.client.backends import Backend
from cogment_model_registry.client.candidates import Candidates
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.directories import find_registries
from cogment_model_registry.client.endpoints import Direct, Discovered, Several
from cogment_model_registry.client.failures import Subject, translated
from cogment_model_registry.client.links import Link
from cogment_model_registry.client.open_channels import OpenChannels
from cogment_model_registry.errors import (
    ClosedError,
    LimitedError,
    ModelRegistryError,
    NotFoundError,
    SettingError,
    TimedOutError,
    UnavailableError,
    WrongServerError,
)
from cogment_model_registry.wire import messages, pings

_ANSWER_SECONDS = 2.0
"""How long a registry may take to answer before the next one is tried."""

_DIRECTORY_SECONDS = 10.0
"""How long a Directory may take to answer."""

_DIRECTORY_AGAIN_SECONDS = 2.0
"""How long it may take if it gave an address before."""

_STATUS_PATH = f"/{messages.SERVICE_NAMES[0]}/Status"


class Chooser:
    """Chooses a registry.

    Args:
        opened: Connects.
        location: The registries, or the Directory that knows them.
    """

    def __init__(self, opened: OpenChannels, location: Several | Discovered) -> None:
        self._opened = opened
        self._location = location
        self._candidates = Candidates()
        if isinstance(location, Several):
            self._candidates.set(location.places)

    def note_failure(self, place: Direct) -> None:
        """Record that a registry did not answer."""
        self._candidates.note_failure(place)

    async def choose(self, backend: Backend, deadline: Deadline, current: Link | None) -> Link:
        """Return a link to a registry that answers; the current one if that is the best.

        Each registry is tried once.

        Args:
            backend: How to call and wait.
            deadline: When to give up.
            current: The present link, which is not fit for calls any more; None the first time.

        Raises:
            UnavailableError: None answers.
            TimedOutError: None answered in time.
            NotFoundError: The Directory knows none.
            WrongServerError: What answers is no registry, or no Directory.
        """
        tried: dict[Direct, ModelRegistryError] = {}
        async with aclosing(self._rounds(backend, deadline, current, tried)) as rounds:
            async for places in rounds:
                for index, place in enumerate(places):
                    if place in tried or (tried and not deadline.left_seconds()):
                        continue
                    is_last = index == len(places) - 1
                    left_seconds = deadline.left_seconds() / (1 if is_last else 2)
                    try:
                        link = await self._linked(backend, place, current, min(left_seconds, _ANSWER_SECONDS))
                    except (UnavailableError, TimedOutError, WrongServerError) as error:
                        tried[place] = error
                        self._candidates.note_failure(place)
                    else:
                        self._candidates.note_answer(place)
                        return link
        raise _none_answers(list(tried.values()), is_late=not deadline.left_seconds())

    async def _rounds(
        self, backend: Backend, deadline: Deadline, current: Link | None, tried: "dict[Direct, ModelRegistryError]"
    ) -> "AsyncGenerator[Sequence[Direct], None]":
        """Yield the registries to try; the Directory is asked when those that it knew before do not answer."""
        if current is not None and not current.is_away and not current.is_silent:
            yield [current.place]
        if isinstance(self._location, Several):
            yield self._candidates.in_order()
            return
        was_known = bool(self._candidates.known)
        yield [place for place in self._candidates.in_order() if current is None or place != current.place]
        seconds = min(deadline.left_seconds(), _DIRECTORY_SECONDS)
        if was_known:  # the rest of the time is for the registry, which may still have its old address
            seconds = min(seconds / 2, _DIRECTORY_AGAIN_SECONDS)
        try:
            self._candidates.set(await find_registries(self._opened, backend, self._location, seconds))
        except (UnavailableError, TimedOutError, WrongServerError, NotFoundError):
            # While a registry restarts the Directory does not know it; and the Directory may be unavailable, too.
            if current is not None:
                yield [current.place]
            elif not tried:
                raise
        else:
            yield self._candidates.in_order()

    async def _linked(self, backend: Backend, place: Direct, current: Link | None, seconds: float) -> Link:
        """Return a link to a registry that answers."""
        opened = self._opened
        tls = await opened.tls(backend, is_secure=place.is_secure)
        if current is not None and not current.is_silent and (current.place, current.tls) == (place, tls):
            await self._is_pingable(backend, current, seconds)
            return current
        link = Link(place, opened.connect(backend, place.address, tls, is_pinged=True), tls, is_pinged=True)
        is_pingable = False
        try:
            is_pingable = await self._is_pingable(backend, link, seconds)
        finally:
            if not is_pingable and opened.is_usable():
                await opened.disconnect(backend, link.channel)
        return link if is_pingable else Link(place, opened.connect(backend, place.address, tls), tls)

    async def _is_pingable(self, backend: Backend, link: Link, seconds: float) -> bool:
        """Return whether a registry allows pings, once it answers."""
        request = messages.StatusRequest(names=[pings.STATUS]).SerializeToString()
        try:
            with translated(Subject(""), self._opened, str(link.place)):
                reply = messages.StatusReply.FromString(
                    await backend.unary(link.channel, _STATUS_PATH, request, seconds)
                )
        except (LimitedError, ClosedError, SettingError) as error:
            if isinstance(error, LimitedError):
                return False  # it answers
            raise
        except TimedOutError as error:
            message = f"{link.place} does not answer"
            raise UnavailableError(message) from error.__cause__
        except (UnavailableError, WrongServerError):
            raise
        except ModelRegistryError:
            return False
        return pings.are_allowed(reply.statuses)


def _none_answers(errors: Sequence[ModelRegistryError], *, is_late: bool) -> ModelRegistryError:
    """Return the error for registries of which none answers."""
    if not errors:
        return TimedOutError("no registry answered in time")
    kinds = {type(error) for error in errors}
    kind = TimedOutError if is_late else kinds.pop() if len(kinds) == 1 else UnavailableError
    reasons = "; ".join(error.message for error in errors)
    message = reasons if len(errors) == 1 else f"none of the {len(errors)} registries answers: {reasons}"
    error = kind(message)
    error.__cause__ = errors[0].__cause__
    return error
