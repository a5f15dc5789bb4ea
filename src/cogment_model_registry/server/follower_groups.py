"""Followers that ask the same and are equally far: one watch for all of them, and one loop that sends what is new.

A follower begins alone, with a watch of its own. As soon as nothing is left to be told, it joins the group of those
that ask the same and were told the same. A group has one watch; each of its *steps* is looked up, encoded and framed
once, and the leader of the group, a task, begins to send it to each follower that is not sending. The tasks of the
calls sleep in the meantime: waking a thousand of them for each version cost more than the messages.

The leader waits for no follower. Of one that is still sending, or whose caller has used up its bytes, and of a version
that does not fit one message, the follower's own task takes care: it sends the newest step as soon as it can, however
many were skipped, if they were versions of the same model. Otherwise the follower leaves the group, and goes on alone
from the last token that it was told, as after a reconnect. So a slow follower keeps nothing but its message and its
token.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import CaughtUp, Event
from cogment_model_registry.registry.watching import Watch
from cogment_model_registry.server.transfers import Teller

_log = structlog.stdlib.get_logger(__name__)

_SENT_AT_ONCE = 32
"""To how many followers a leader sends before other calls get their turn: it takes some milliseconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the followers of a group are told.

    Attributes:
        position: How many steps there were, with this one.
        token: The token that resumes after it.
        event: What it is.
    """

    position: int
    token: str
    event: Event


@dataclass(frozen=True, slots=True)
class Prepared:
    """The messages of a step.

    Attributes:
        plain: What is sent without the bytes of a version.
        whole: What is sent with them; None if that is more than one message, or no longer available.
        held: What must stay alive while it is sent.
    """

    plain: bytes
    whole: bytes | None = None
    held: object = None


Prepare: TypeAlias = Callable[[str, Event], Awaitable[Prepared]]


class Follower:
    """A call that follows models, in a group or alone.

    Args:
        teller: Sends its messages.
        known_hash: The hash of the version whose bytes it does not want.
        token: Where it begins.

    Attributes:
        teller: As above.
        token: Resumes after what it was told last.
        is_caught_up: Whether it was told that it was told what existed.
        group: Its group; None while it is alone.
        position: The position of the step of its group that it was told last.
        is_sending: Whether a message is on its way, or its own task sends something.
    """

    __slots__ = (
        "_error",
        "_held",
        "_is_called",
        "_known_hash",
        "_woken",
        "group",
        "is_caught_up",
        "is_sending",
        "position",
        "teller",
        "token",
    )

    def __init__(self, teller: Teller, known_hash: str, token: str) -> None:
        self.teller = teller
        self.token = token
        self.is_caught_up = False
        self.group: FollowerGroup | None = None
        self.position = 0
        self.is_sending = False
        self._known_hash = known_hash
        self._held: object = None
        self._error: BaseException | None = None
        self._is_called = False
        self._woken: asyncio.Future[None] | None = None

    async def next_step(self) -> Step | None:
        """Return the next step that the follower's own task has to send; None if it has to go on alone.

        To be called by this task, which sends nothing at the moment.

        Raises:
            asyncio.CancelledError: The peer is gone.
            TimedOutError: The client took nothing for too long.
        """
        self.is_sending = False
        while True:
            if not self.is_sending:
                if self._error is not None:
                    raise self._error
                group = self.group
                if group is None:
                    return None
                if self.position < group.skippable_from:
                    group.leave(self)
                    return None
                if self.position < group.last.position:
                    if self.teller.is_slowed:
                        await self.teller.paced()
                        continue  # there may be a newer one
                    self._note_told(group.last)
                    return group.last
            self._woken = asyncio.get_running_loop().create_future()
            await self.teller.waiting(self._woken)

    # Called by the leader of the group.

    def send(self, step: Step, prepared: Prepared) -> None:
        """Begin to send a step, or let the follower's own task send it as soon as it can."""
        message = prepared.plain
        if prepared.whole is not prepared.plain and self._wants_bytes(step.event):
            if prepared.whole is None or self.teller.is_slowed:
                self.call()
                return
            message = prepared.whole
        if self.is_sending:
            self.call()
            return
        self._note_told(step)
        self._held = prepared.held
        self.teller.start(message, self._note_sent)

    def call(self) -> None:
        """Let the follower's own task look what it has to do, as soon as nothing is being sent."""
        self._is_called = True
        if not self.is_sending:
            self._wake()

    def _wants_bytes(self, event: Event) -> bool:
        return not (isinstance(event, Version) and event.data_hash == self._known_hash)

    def _note_told(self, step: Step) -> None:
        self.position, self.token = step.position, step.token
        self.is_sending, self._is_called = True, False

    def _note_sent(self, error: BaseException | None) -> None:
        self.is_sending, self._held, self._error = False, None, error
        if self._is_called or error is not None:
            self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class FollowerGroup:
    """Followers that are equally far, except for slow ones. Made by `FollowerGroups`.

    Attributes:
        last: The last step.
        skippable_from: Who was told the step with this position, or a later one, may be told the last one next.
    """

    def __init__(self, groups: "FollowerGroups", kind: object, watch: Watch, prepare: Prepare) -> None:
        self.last = Step(0, "", CaughtUp())
        self.skippable_from = 0
        self.kind = kind
        self._groups = groups
        self._watch = watch
        self._prepare = prepare
        self._followers: dict[Follower, None] = {}
        self._leader = groups.start(self._lead())

    @property
    def key(self) -> object:
        """What groups with the same future have in common."""
        return self.kind, self._watch.state()

    def add(self, follower: Follower) -> None:
        """Let a follower join, which was told all that the group was."""
        follower.group, follower.position = self, self.last.position
        self._followers[follower] = None

    def leave(self, follower: Follower) -> None:
        """Let a follower go; the last one ends the group."""
        follower.group = None
        self._followers.pop(follower, None)
        if not self._followers:
            self._groups.forget(self)
            self._leader.cancel()

    async def _lead(self) -> None:
        """Tell the followers what is new, while there are any."""
        try:
            while self._followers:
                told = await self._watch.next()
                if told is not None:
                    await self._take_step(*told)
        except ModelRegistryError:
            pass  # each one meets the error by itself
        except Exception:
            _log.exception("watch of a group failed unexpectedly", followers=len(self._followers))
        finally:
            self._groups.forget(self)
            self._watch.close()
            self._dissolve()

    def _dissolve(self) -> None:
        """Let all followers go on alone."""
        for follower in self._followers:
            follower.group = None
            follower.call()
        self._followers.clear()

    async def _take_step(self, token: str, event: Event) -> None:
        self._groups.forget(self)
        if not _replaces(event, self.last.event):
            self.skippable_from = self.last.position
        step = self.last = Step(self.last.position + 1, token, event)
        self._groups.register(self)
        prepared = await self._prepare(token, event)
        for count, follower in enumerate([*self._followers], 1):
            # One that left or came in the meantime, or whose own task was faster.
            if follower.group is self and follower.position < step.position:
                follower.send(step, prepared)
            if count % _SENT_AT_ONCE == 0:
                await asyncio.sleep(0)
        other = self._groups.register(self)
        if other is not self:
            self._merge_into(other)

    def _merge_into(self, other: "FollowerGroup") -> None:
        """Let the followers join a group that is equally far; slow ones go on alone."""
        for follower in [*self._followers]:
            if follower.position == self.last.position:
                del self._followers[follower]
                other.add(follower)
        self._dissolve()


class FollowerGroups:
    """All groups of followers."""

    def __init__(self) -> None:
        self._by_key: dict[object, FollowerGroup] = {}
        self._keys: dict[FollowerGroup, object] = {}
        self._leaders: set[asyncio.Task[None]] = set()

    def join(self, follower: Follower, kind: object, watch: Watch, prepare: Prepare) -> None:
        """Let a follower join those that are equally far.

        Args:
            follower: The follower, which has been told everything.
            kind: What its call asks for, with which its messages follow from what is told.
            watch: Its watch, which is closed, or becomes that of a new group.
            prepare: Returns the messages with an event and a token for all followers of this kind.
        """
        group = self._by_key.get((kind, watch.state()))
        if group is None:
            group = FollowerGroup(self, kind, watch, prepare)
            self.register(group)
        else:
            watch.close()
        group.add(follower)

    async def drained(self) -> None:
        """Wait until no group is left."""
        while self._leaders:
            await asyncio.wait(self._leaders)

    # Called by groups.

    def start(self, leading: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Return the task of a leader, which `drained` awaits."""
        leader = asyncio.create_task(leading)
        self._leaders.add(leader)
        leader.add_done_callback(self._leaders.discard)
        return leader

    def register(self, group: FollowerGroup) -> FollowerGroup:
        """Let a group be found by those who are as far as it; return the one that is found."""
        key = group.key
        found = self._by_key.setdefault(key, group)
        if found is group:
            self._keys[group] = key
        return found

    def forget(self, group: FollowerGroup) -> None:
        """Let a group be found no more."""
        if group in self._keys:
            del self._by_key[self._keys.pop(group)]


def _replaces(event: Event, before: Event) -> bool:
    """Return whether an event makes the one before it pointless: a newer version of the same model."""
    return isinstance(event, Version) and isinstance(before, Version) and event.model_id == before.model_id
