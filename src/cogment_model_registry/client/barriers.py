"""Waiting until consumers run a version, or one that is new enough.

Whether they do, the registry says when it is asked. When to ask, Watch says, which sends what consumers
report; where the server does not have it, or it broke, the registry is asked from time to time.
"""

import time
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing, suppress
from typing import NoReturn

from cogment_model_registry.client.backends import Backend
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Backoff, Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lifecycle_calls import LifecycleCalls
from cogment_model_registry.client.watch_streams import consumers_of
from cogment_model_registry.errors import (
    ClosedError,
    ModelRegistryError,
    TimedOutError,
    WrongServerError,
    counted,
    quoted,
)
from cogment_model_registry.records.consumers import Consumer

_PAUSE_MIN_SECONDS = 0.003
_PAUSE_MAX_SECONDS = 0.25
_PAUSE_OF_LOOK_SECONDS = 0.02
"""The pauses between two looks at consumers that are waited for: a hundredth of the time that was waited, and twice
what a look takes if that is not long, so that waiting costs the registry little."""

_WATCHING_SECONDS = 1.0
"""The pause while Watch sends their reports: a lag also shrinks when versions are deleted, which no report says."""

_STREAM_SECONDS = 30.0
"""How long one stream lasts at most: a silent one does not show that its server vanished."""

_NAMED_MAX = 3
"""How many of the consumers that it waited for an error names."""

_NAMING_SECONDS = 2.0
"""How long it may take to find them."""

_LAST_LOOK_SECONDS = 1.0
"""How long the last look may take, which begins when the time is over."""


class Goal:
    """What consumers are waited for to do.

    Args:
        model_id: Their model.
        number: The version that they are to run, or a later one; None for any.
        most_behind: How many versions they may be behind; None for any number.
        accepted: Which consumers count, as a filter.
        wanted: How many; None for all of them.

    Attributes:
        model_id: Their model.
        those_there: The filter of those that do it.
        those_behind: The filter of those that do not.
    """

    def __init__(
        self, model_id: str, number: int | None, most_behind: int | None, accepted: str, wanted: int | None
    ) -> None:
        self.model_id = model_id
        self._number = number or 1
        self._wanted = wanted
        self._is_filtered = bool(accepted.strip())
        conditions, words = ["version_number > 0"], []
        if number is not None:
            conditions.append(f"version_number >= {number}")
            words.append(f"run version {number} or a later one")
        if most_behind is not None:
            conditions.append(f"versions_behind <= {most_behind}")
            words.append(f"be at most {counted(most_behind, 'version')} behind")
        self._text = " and ".join(words)
        live = "NOT state = gone" + (f" AND ({accepted})" if self._is_filtered else "")
        met = " AND ".join(conditions)
        self.those_there = f"{live} AND {met}"
        self.those_behind = f"{live} AND NOT ({met})"

    def __str__(self) -> str:
        asked = "all consumers" if self._wanted is None else counted(self._wanted, "consumer")
        return f"{asked} of model {quoted(self.model_id)} to {self._text}"

    async def look(self, calls: LifecycleCalls) -> list[Consumer]:
        """Return the consumers that do it, if those are so many; or all of them, if there are any."""
        if self._wanted is None:
            if await calls.find_consumers(self.model_id, self.those_behind, 1):
                return []
            return await calls.find_consumers(self.model_id, self.those_there, None)
        found = await calls.find_consumers(self.model_id, self.those_there, self._wanted)
        return found if len(found) == self._wanted else []

    def may_be_reached(self, numbers: "dict[str, int]") -> bool:
        """Return whether a look could succeed, by the versions that the live consumers run."""
        there = sum(number >= self._number for number in numbers.values())
        if self._wanted is not None:
            return there >= self._wanted
        return there == len(numbers) or self._is_filtered


class Barrier:
    """Waits for consumers.

    Args:
        calls: Makes calls.
        goal: What they are to do.
        deadline: When to give up.
    """

    def __init__(self, calls: Calls, goal: Goal, deadline: Deadline) -> None:
        self._calls = calls
        self._goal = goal
        self._deadline = deadline
        self._began = time.monotonic()
        self._numbers: dict[str, int] = {}
        self._is_watching = False
        self._news: Future[None] = Future()

    async def passed(self) -> list[Consumer]:
        """Return the consumers once they do it.

        Raises:
            TimedOutError: They do not in time; the message says who is behind.
        """
        found = await self._look(self._calls)
        if found:
            return found
        try:
            await self._calls.backend.together([self._listen, self._look_again])
        except _PassedError as passed:
            return passed.consumers
        raise RuntimeError("a barrier ended without having been passed")

    async def _look(self, calls: Calls) -> list[Consumer]:
        """Return the consumers if they do it.

        Raises:
            TimedOutError: They do not, and the time is over.
        """
        left_seconds = self._deadline.left_seconds()
        found = await self._goal.look(LifecycleCalls(calls, Deadline(max(left_seconds, _LAST_LOOK_SECONDS))))
        if not found and not left_seconds:
            raise await self._timed_out(calls)
        return found

    async def _look_again(self, backend: Backend) -> NoReturn:
        """Look whenever it may be passed.

        Raises:
            _PassedError: It is.
            TimedOutError: It is not, and the time is over.
        """
        calls = self._calls.on(backend)
        while True:
            self._news = Future()  # reports that arrive during the look may be too late for it
            look_began = time.monotonic()
            found = await self._look(calls)
            if found:
                raise _PassedError(found)
            now = time.monotonic()
            pause = min(max((now - self._began) / 100, _PAUSE_MIN_SECONDS), _PAUSE_MAX_SECONDS)
            pause = max(pause, min(2 * (now - look_began), _PAUSE_OF_LOOK_SECONDS))
            if self._is_watching:
                pause = _WATCHING_SECONDS
            with suppress(TimeoutError):
                await backend.wait(self._news, min(pause, self._deadline.left_seconds()))

    async def _listen(self, backend: Backend) -> None:
        """Record what consumers report, as long as the server has Watch."""
        calls, backoff = self._calls.on(backend), Backoff()
        subject = Subject(f"waiting for {self._goal}", self._goal.model_id)
        while self._calls.connection.has_watch:
            failure: ModelRegistryError | None = None
            try:
                self._numbers.clear()
                async with aclosing(consumers_of(calls, self._goal.model_id, subject, _STREAM_SECONDS)) as consumers:
                    async for consumer in consumers:
                        self._note(consumer)
                backoff = Backoff()
            except ClosedError:
                raise
            except WrongServerError:
                self._calls.connection.has_watch = False
            except ModelRegistryError as error:
                failure = error  # `_look_again` meets the same error
            self._is_watching = False
            await backend.sleep(backoff.next_seconds(failure))

    def _note(self, consumer: Consumer | None) -> None:
        """Note a report; None for the end of those that were made before."""
        if consumer is None:
            self._is_watching = True
        elif consumer.is_live:
            self._numbers[consumer.consumer_id] = consumer.version_number
        else:
            self._numbers.pop(consumer.consumer_id, None)
        if self._is_watching and self._goal.may_be_reached(self._numbers):
            with suppress(InvalidStateError):  # whoever looks has just given up waiting for it
                if not self._news.done():
                    self._news.set_result(None)

    async def _timed_out(self, calls: Calls) -> TimedOutError:
        """Return the error that says who is behind."""
        waited = counted(round(time.monotonic() - self._began, 3), "second")
        naming = LifecycleCalls(calls, Deadline(_NAMING_SECONDS))
        there = await naming.find_consumers(self._goal.model_id, self._goal.those_there, None)
        behind = await naming.find_consumers(self._goal.model_id, self._goal.those_behind, _NAMED_MAX + 1)
        names = [f"{quoted(each.consumer_id)} {_running(each)}" for each in behind[:_NAMED_MAX]]
        if len(behind) > _NAMED_MAX:
            names.append("others")
        message = f"waiting for {self._goal}: {len(there)} of them after {waited}"
        if names:
            message += f"; not yet: {', '.join(names)}"
        return TimedOutError(message, model_id=self._goal.model_id)


class _PassedError(Exception):
    """Ends what waits, since the barrier is passed."""

    def __init__(self, consumers: list[Consumer]) -> None:
        super().__init__()
        self.consumers = consumers


def _running(consumer: Consumer) -> str:
    running = f"runs version {consumer.version_number}" if consumer.version_number else "runs none"
    return f"({consumer.state}, {running})"
