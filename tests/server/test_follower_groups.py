"""Groups of followers: who shares a watch, what slow ones skip, and who goes on alone; with tellers that are faked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from cogment_model_registry.errors import StoppingError
from cogment_model_registry.records.news import Event
from cogment_model_registry.registry.watching import Question
from cogment_model_registry.server.follower_groups import Follower, FollowerGroups, Prepared
from cogment_model_registry.server.transfers import ReplySender
from tests.followers import text_of
from tests.rules.test_watching import World
from tests.waiting import eventually


class FakedTeller:
    """Sends nothing until it is told to.

    Attributes:
        messages: What it was given.
        is_slowed: Whether its caller has used up its bytes.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.is_slowed = False
        self._may_go_on = asyncio.Event()
        self._when_sent: Callable[[BaseException | None], None] | None = None

    def start(self, message: bytes, when_sent: Callable[[BaseException | None], None]) -> None:
        assert self._when_sent is None, "two messages at once"
        self.messages.append(message.decode())
        self._when_sent = when_sent

    async def waiting(self, work: Awaitable[None]) -> None:
        await work

    async def paced(self) -> None:
        self._may_go_on.clear()
        await self._may_go_on.wait()

    def go_on(self) -> None:
        """Let the caller have bytes again."""
        self.is_slowed = False
        self._may_go_on.set()

    def end(self, error: BaseException | None = None) -> None:
        """Say that the message is sent, or failed."""
        when_sent, self._when_sent = self._when_sent, None
        assert when_sent is not None
        when_sent(error)


class Call:
    """A follower, and what its own task does: it takes what is sent by itself, until the follower goes on alone.

    Attributes:
        follower: The follower.
        teller: What sends for it.
        taken: The steps that its own task sent.
        own: This task.
    """

    def __init__(self, follower: Follower, teller: FakedTeller) -> None:
        self.follower = follower
        self.teller = teller
        self.taken: list[str] = []
        self.own = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while (step := await self.follower.next_step()) is not None:
                self.taken.append(text_of(step.event))
                await asyncio.sleep(0)
        finally:
            if self.follower.group is not None:
                self.follower.group.leave(self.follower)

    async def end(self) -> None:
        self.own.cancel()
        await asyncio.wait([self.own])


class Scene:
    """A catalog with followers of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.groups = FollowerGroups()
        self.prepared: list[str] = []
        self.has_whole = True
        self.has_bytes = False
        self.calls: list[Call] = []

    async def _prepare(self, _token: str, event: Event) -> Prepared:
        await asyncio.sleep(0)
        self.prepared.append(text_of(event))
        plain = text_of(event).encode()
        if self.has_bytes:
            return Prepared(plain, plain + b" and bytes")
        return Prepared(plain, plain) if self.has_whole else Prepared(plain)

    async def follow(self, *model_ids: str, token: str = "") -> Call:
        """Return a follower that was told everything, in its group; it may have been told a part before."""
        teller = FakedTeller()
        follower = Follower(cast(ReplySender, teller), "", token)
        watch = await self.world.watches.open(Question(model_ids, token=token)).__aenter__()
        while (told := await watch.next(wait=False)) is not None:
            follower.token = told[0]
        self.groups.join(follower, model_ids, watch, self._prepare)
        self.calls.append(Call(follower, teller))
        return self.calls[-1]

    async def publish(self, model_id: str) -> None:
        """Publish a version, and wait until the groups have taken it as a step."""
        count = len(self.prepared)
        await self.world.publish(model_id, archived=False)
        await _until(lambda: len(self.prepared) > count)


async def _until(holds: Callable[[], bool]) -> None:
    async def check() -> bool:
        return holds()

    await eventually(check)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    with ThreadPoolExecutor(1) as hashing:
        world = World(hashing)
        await world.start()
        for model_id in ("m", "n"):
            await world.create(model_id)
        scene = Scene(world)
        yield scene
        for call in scene.calls:
            await call.end()
        await scene.groups.drained()
        await world.catalog.close()


async def test_followers_that_are_equally_far_have_one_watch(scene: Scene) -> None:
    calls = [await scene.follow("m") for _ in range(70)]
    await scene.publish("m")
    await _until(lambda: all(call.teller.messages == ["m 1"] for call in calls))
    assert scene.prepared == ["m 1"]
    assert not any(call.taken for call in calls)


async def test_a_follower_that_is_sending_skips_to_the_newest_and_delays_nobody(scene: Scene) -> None:
    slow, quick = await scene.follow("m"), await scene.follow("m")
    for number in range(1, 4):
        await scene.publish("m")
        await _until(lambda number=number: quick.teller.messages[-1:] == [f"m {number}"])  # type: ignore[misc]
        quick.teller.end()
    assert slow.teller.messages == ["m 1"]
    slow.teller.end()
    await _until(lambda: slow.taken == ["m 3"])
    await scene.publish("m")
    await _until(lambda: slow.teller.messages == ["m 1", "m 4"])


async def test_a_follower_that_would_skip_another_model_goes_on_alone(scene: Scene) -> None:
    slow, quick = await scene.follow("m", "n"), await scene.follow("m", "n")
    await scene.publish("m")
    await _until(lambda: bool(slow.teller.messages and quick.teller.messages))
    token = slow.follower.token
    for model_id in ("n", "m"):
        quick.teller.end()
        await scene.publish(model_id)
        await _until(lambda model_id=model_id: quick.teller.messages[-1].startswith(model_id))  # type: ignore[misc]
    slow.teller.end()
    await asyncio.wait([slow.own])
    assert (slow.teller.messages, slow.taken, slow.follower.token) == (["m 1"], [], token)
    async with scene.world.watches.open(Question(("m", "n"), token=token)) as watch:
        told = [text_of(event[1]) for _ in range(3) if (event := await watch.next(wait=False))]
    assert (sorted(told[:2]), told[2]) == (["m 2", "n 1"], "caught up")


async def test_a_follower_that_has_used_up_its_bytes_skips_to_the_newest_and_delays_nobody(scene: Scene) -> None:
    scene.has_bytes = True
    slowed, quick = await scene.follow("m"), await scene.follow("m")
    slowed.teller.is_slowed = True
    for number in range(1, 4):
        await scene.publish("m")
        text = f"m {number} and bytes"
        await _until(lambda text=text: quick.teller.messages[-1:] == [text])  # type: ignore[misc]
        quick.teller.end()
    assert (slowed.teller.messages, slowed.taken) == ([], [])
    slowed.teller.go_on()
    await _until(lambda: slowed.taken == ["m 3"])
    await scene.publish("m")
    await _until(lambda: slowed.teller.messages == ["m 4 and bytes"])


async def test_news_without_bytes_reach_a_follower_that_has_used_up_its_bytes(scene: Scene) -> None:
    follower = await scene.follow("m")
    follower.teller.is_slowed = True
    await scene.publish("m")
    await _until(lambda: follower.teller.messages == ["m 1"])


async def test_what_needs_more_than_one_message_is_sent_by_the_tasks_of_the_calls(scene: Scene) -> None:
    scene.has_whole = False
    call = await scene.follow("m")
    await scene.publish("m")
    await _until(lambda: call.taken == ["m 1"])
    assert call.teller.messages == []


async def test_groups_that_become_equally_far_are_one(scene: Scene) -> None:
    first, tokens = await scene.follow("m"), list[str]()
    for number in (1, 2):
        await scene.publish("m")
        await _until(lambda number=number: first.teller.messages[-1:] == [f"m {number}"])  # type: ignore[misc]
        first.teller.end()
        tokens.append(first.follower.token)
    catalog = scene.world.catalog
    async with catalog.removing_version(await catalog.find("m"), 2):
        pass
    await _until(lambda: first.teller.messages[-1] == "m 2 deleted")
    first.teller.end()
    # One that was told of version 1 alone, and missed that version 2 came and went.
    second = await scene.follow("m", token=tokens[0])
    assert first.follower.group is not second.follower.group
    await scene.publish("m")
    await _until(lambda: first.teller.messages[-1:] == second.teller.messages[-1:] == ["m 3"])
    await _until(lambda: first.follower.group is second.follower.group)
    count = len(scene.prepared)
    for call in (first, second):
        call.teller.end()
    await scene.publish("m")
    await _until(lambda: first.teller.messages[-1] == second.teller.messages[-1] == "m 4")
    assert scene.prepared[count:] == ["m 4"]


async def test_a_peer_that_is_gone_ends_its_follower_alone(scene: Scene) -> None:
    lost, other = await scene.follow("m"), await scene.follow("m")
    await scene.publish("m")
    await _until(lambda: bool(lost.teller.messages and other.teller.messages))
    lost.teller.end(asyncio.CancelledError())
    await asyncio.wait([lost.own])
    assert lost.own.cancelled()
    other.teller.end()
    await scene.publish("m")
    await _until(lambda: other.teller.messages == ["m 1", "m 2"])


async def test_all_go_on_alone_when_the_registry_stops_and_meet_the_reason_there(scene: Scene) -> None:
    calls = [await scene.follow("m") for _ in range(3)]
    scene.world.catalog.stop_watching()
    await asyncio.wait([call.own for call in calls])
    assert [call.own.exception() for call in calls] == [None] * 3
    with pytest.raises(StoppingError):
        async with scene.world.watches.open(Question(("m",))) as watch:
            await watch.next()
