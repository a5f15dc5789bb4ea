"""Followers with the same request and the same position: one watch and one sending loop for all of them.

A follower begins alone, with its own watch. When it has received everything, it joins the group of followers with the
same request and the same position. A group has one watch; each of its *steps* is looked up, encoded and framed once,
and the leader of the group, a task, starts to send it to each follower that is not sending. The tasks of the calls
sleep in the meantime: waking a thousand of them for each version cost more than the messages.

The leader never waits for a follower. If a follower is still sending, or its caller has used up its bytes, or if a
version does not fit one message, the follower's own task sends the newest step as soon as it can. It may skip steps
that are older versions of the same model; otherwise the follower leaves the group and continues alone from its last
token, as after a reconnect. So a slow follower keeps nothing but its message and its token.
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
from cogment_model_registry.server.transfers import ReplySender

_log = structlog.stdlib.get_logger(__name__)

_SENT_AT_ONCE = 32
"""How many followers a leader serves before other calls get their turn: it takes some milliseconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """An event that is sent to the followers of a group.

    Attributes:
        position: Its position in the steps of the group, from 1.
        token: The token that resumes after it.
        event: The event.
    """

    position: int
    token: str
    event: Event


@dataclass(frozen=True, slots=True)
class Prepared:
    """The messages of a step.

    Attributes:
        plain: The message without the bytes of a version.
        whole: The message with them; None if it is more than one message, or no longer available.
        held: Must stay alive while the message is sent.
    """

    plain: bytes
    whole: bytes | None = None
    held: object = None


Prepare: TypeAlias = Callable[[str, Event], Awaitable[Prepared]]


class Follower:
    """A call that follows models, in a group or alone.

    Args:
        sender: Sends its messages.
        known_hash: The hash of bytes that it already has.
        token: Where it begins.

    Attributes:
        sender: As above.
        token: Resumes after the last event that it was sent.
        is_caught_up: Whether it was sent `CaughtUp`.
        group: Its group; None while it is alone.
        position: The position of the last step that it was sent.
        is_sending: Whether a message is being sent, by the leader or by its own task.
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
        "sender",
        "token",
    )

    def __init__(self, sender: ReplySender, known_hash: str, token: str) -> None:
        self.sender = sender
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
        """Return the next step that the follower's own task has to send; None if it has to continue alone.

        Called by this task, which is not sending.

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
                    if self.sender.is_slowed:
                        await self.sender.paced()
                        continue  # there may be a newer one
                    self._begin_sending(group.last)
                    return group.last
            self._woken = asyncio.get_running_loop().create_future()
            await self.sender.waiting(self._woken)

    # Called by the leader of the group.

    def send(self, step: Step, prepared: Prepared) -> None:
        """Start to send a step, or let the follower's own task send it as soon as it can."""
        message = prepared.plain
        if prepared.whole is not prepared.plain and self._wants_bytes(step.event):
            if prepared.whole is None or self.sender.is_slowed:
                self.call()
                return
            message = prepared.whole
        if self.is_sending:
            self.call()
            return
        self._begin_sending(step)
        self._held = prepared.held
        self.sender.start(message, self._note_sent)

    def call(self) -> None:
        """Wake the follower's own task as soon as nothing is being sent."""
        self._is_called = True
        if not self.is_sending:
            self._wake()

    def _wants_bytes(self, event: Event) -> bool:
        return not (isinstance(event, Version) and event.data_hash == self._known_hash)

    def _begin_sending(self, step: Step) -> None:
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
    """Followers with the same position, and slower ones. Made by `FollowerGroups`.

    Attributes:
        last: The last step.
        skippable_from: From this position on, a follower may skip all steps but the last.
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
        """Equal for groups that would send the same from now on."""
        return self.kind, self._watch.state()

    def add(self, follower: Follower) -> None:
        """Add a follower with the position of the group."""
        follower.group, follower.position = self, self.last.position
        self._followers[follower] = None

    def leave(self, follower: Follower) -> None:
        """Remove a follower; the last one ends the group."""
        follower.group = None
        self._followers.pop(follower, None)
        if not self._followers:
            self._groups.forget(self)
            self._leader.cancel()

    async def _lead(self) -> None:
        """Send the followers what is new, while there are any."""
        try:
            while self._followers:
                found = await self._watch.next()
                if found is not None:
                    await self._take_step(*found)
        except ModelRegistryError:
            pass  # each follower's own watch raises it too
        except Exception:
            _log.exception("watch of a group failed unexpectedly", followers=len(self._followers))
        finally:
            self._groups.forget(self)
            self._watch.close()
            self._dissolve()

    def _dissolve(self) -> None:
        """Let all followers continue alone."""
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
            # Skips those that left or joined in the meantime, and those whose own task was faster.
            if follower.group is self and follower.position < step.position:
                follower.send(step, prepared)
            if count % _SENT_AT_ONCE == 0:
                await asyncio.sleep(0)
        other = self._groups.register(self)
        if other is not self:
            self._merge_into(other)

    def _merge_into(self, other: "FollowerGroup") -> None:
        """Move the followers to a group with the same position; slow ones continue alone."""
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
        """Add a follower to the group with its position.

        Args:
            follower: The follower, which has received everything.
            kind: The parts of its request on which its messages depend.
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
        """Register a group under its key, unless there is one already; return the registered one."""
        key = group.key
        found = self._by_key.setdefault(key, group)
        if found is group:
            self._keys[group] = key
        return found

    def forget(self, group: FollowerGroup) -> None:
        """Unregister a group."""
        if group in self._keys:
            del self._by_key[self._keys.pop(group)]


def _replaces(event: Event, before: Event) -> bool:
    """Return whether an event makes the one before it pointless: a newer version of the same model."""
    return isinstance(event, Version) and isinstance(before, Version) and event.model_id == before.model_id
