"""The rules of a watch, on a catalog in memory: order, gaps, and exact resuming after any interruption."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from random import Random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import AliasChange, ModelSummary, Version
from cogment_model_registry.records.news import CaughtUp, Event, Gap, Gone
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.registry import positions, watching
from cogment_model_registry.registry.positions import Position, Token
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.watching import Question, Watches
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import describe
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables

MODELS = ("m", "n", "o")
_WAIT_SECONDS = 20


class World:
    """A catalog that can be restarted, and watches of it."""

    def __init__(self, hashing: ThreadPoolExecutor) -> None:
        self._tables = Tables()
        self._hashing = hashing

    async def start(self) -> None:
        self.catalog = MemoryCatalog(self._tables)
        await self.catalog.open()
        transient = MemoryTransientStore(10, 1000, self._hashing)
        registry = Registry(Limits(16, 100, 100), self.catalog, MemoryArchive({}, 1000), transient)
        self.watches = Watches(registry, self.catalog)

    async def restart(self) -> None:
        """Stop and start again, without the transient versions."""
        await self.catalog.close()
        for model in self._tables.models.values():
            for number in [number for number, info in model.versions.items() if not info.archived]:
                model.remove(number)
        await self.start()

    async def create(self, model_id: str) -> None:
        async with self.catalog.writing_model(ModelInfo(model_id)):
            pass

    async def publish(self, model_id: str, *, archived: bool) -> None:
        async with self.catalog.publishing(await self.catalog.find(model_id)) as slot:
            slot.show(describe(model_id, slot.number, b"data", archived))

    async def numbers(self, model_id: str) -> list[int]:
        return [info.number for info in await self.catalog.list_versions(model_id, 0, 1000)]


class History:
    """The events that a watcher received, and whether they are allowed. Numbers of a life arrive in order.

    A token without positions does not record whether a version that was published and deleted had been sent, so it may
    be reported as gone; nor whether the newest version was skipped, so it or its predecessor may be sent again.
    """

    def __init__(self, world: World, *, every: bool) -> None:
        self._world = world
        self._every = every
        self._sent: dict[str, int] = {}
        self._has_positions = len(MODELS) <= positions.POSITIONS_MAX

    def take(self, event: Event) -> None:
        if isinstance(event, ModelSummary):
            self._sent.setdefault(event.model_id, 0)
        elif isinstance(event, Gone) and event.version_number is None:
            before = self._sent.pop(event.model_id, None)
            assert not self._has_positions or before is not None
        elif isinstance(event, Gone):
            assert event.version_number is not None
            assert not self._has_positions or event.version_number <= self._sent[event.model_id]
        elif isinstance(event, Version):
            self._advance(event.model_id, event.number, event.number)
        elif isinstance(event, Gap):
            assert self._every
            self._advance(event.model_id, event.first_number, event.last_number)

    def _advance(self, model_id: str, first: int, last: int) -> None:
        before = self._sent[model_id]
        if self._has_positions or self._every:
            is_next = first == before + 1 if self._every else first > before
            assert is_next, f"{first} to {last} of {model_id} after {before}"
        self._sent[model_id] = last

    def last_sent(self, model_id: str) -> int:
        """Return the last number of a model that was sent; 0 if none was."""
        return self._sent.get(model_id, 0)

    async def check_complete(self) -> None:
        """Expect that all existing versions were sent."""
        models = [info.model_id for info in await self._world.catalog.list_models(0, 10)]
        assert sorted(self._sent) == models
        for model_id in models:
            newest = max(await self._world.numbers(model_id), default=0)
            assert self._sent[model_id] >= newest


class Watcher:
    """A watcher that loses the connection, and resumes."""

    def __init__(self, world: World, model_ids: tuple[str, ...], *, every: bool) -> None:
        self._world = world
        self._question = Question(model_ids, every)
        self._token = ""
        self.history = History(world, every=every)
        self._events: AsyncGenerator[tuple[str, Event], None] | None = None
        self._is_caught_up = False

    async def read(self, count: int) -> None:
        """Read some events, as far as there are any."""
        for _ in range(count):
            if self._is_caught_up:
                return
            await self._take()

    async def disconnect(self) -> None:
        if self._events is not None:
            await self._events.aclose()
        self._events, self._is_caught_up = None, False

    async def catch_up(self) -> None:
        await self.disconnect()
        while not self._is_caught_up:
            await self._take()

    async def _take(self) -> None:
        if self._events is None:
            question = Question(self._question.model_ids, self._question.every, token=self._token)
            self._events = self._world.watches.watch(question)
        async with asyncio.timeout(_WAIT_SECONDS):
            token, event = await anext(self._events)
        if isinstance(event, Gap):
            await self._check_gap(event)
        elif isinstance(event, Version):
            await self._check_version(event)
        self.history.take(event)
        self._token = token
        self._is_caught_up = isinstance(event, CaughtUp)

    async def _check_version(self, version: Version) -> None:
        """Expect that no version is sent after a newer one, unless the newer one is gone."""
        sent = self.history.last_sent(version.model_id)
        assert version.number >= sent or sent not in await self._world.numbers(version.model_id)

    async def _check_gap(self, gap: Gap) -> None:
        """Expect that no existing version is in the gap."""
        if gap.model_id in [info.model_id for info in await self._world.catalog.list_models(0, 10)]:
            assert not {*await self._world.numbers(gap.model_id)} & {*range(gap.first_number, gap.last_number + 1)}


async def act(world: World, random: Random, *, restarts: bool) -> None:
    """Change something."""
    model_id = random.choice(MODELS)
    known = [info.model_id for info in await world.catalog.list_models(0, 10)]
    if model_id not in known:
        await world.create(model_id)
        return
    numbers = await world.numbers(model_id)
    choice = random.random()
    if choice < 0.5 or not numbers:
        await world.publish(model_id, archived=random.random() < 0.5)
    elif choice < 0.7:
        async with world.catalog.removing_version(await world.catalog.find(model_id), random.choice(numbers)):
            pass
    elif choice < 0.8:
        [info] = await world.catalog.get_versions(model_id, [random.choice(numbers)])
        if info.archived:
            ref = await world.catalog.find(model_id)
            await world.catalog.set_aliases(ref, [AliasChange("a", info.number)], 1)
        else:
            await world.catalog.forget(info)
    elif choice < 0.85:
        async with world.catalog.removing_model(model_id):
            pass
    elif restarts:
        await world.restart()


async def follow(
    hashing: ThreadPoolExecutor, seed: int, model_ids: tuple[str, ...], *, every: bool, restarts: bool
) -> None:
    """Follow random changes with random interruptions, and expect an exact history."""
    random, world = Random(seed), World(hashing)
    await world.start()
    watcher = Watcher(world, model_ids, every=every)
    for _ in range(40):
        if random.random() < 0.6:
            before = world.catalog
            await act(world, random, restarts=restarts)
            if world.catalog is not before:
                await watcher.disconnect()
        elif random.random() < 0.3:
            await watcher.disconnect()
        else:
            await watcher.read(random.randrange(4))
    await watcher.catch_up()
    await watcher.history.check_complete()
    await watcher.disconnect()
    await world.catalog.close()


@contextmanager
def positions_max(count: int) -> Iterator[None]:
    """Return a context manager that limits the positions in a token, so that further models are sent in order."""
    with mock.patch.object(positions, "POSITIONS_MAX", count), mock.patch.object(watching, "POSITIONS_MAX", count):
        yield


@pytest.mark.parametrize("every", [False, True], ids=["latest", "all"])
@pytest.mark.parametrize("model_ids", [MODELS, ()], ids=["named", "everything"])
def test_resuming_is_exact_over_interruptions_and_restarts(
    hashing: ThreadPoolExecutor, every: bool, model_ids: tuple[str, ...]
) -> None:
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        asyncio.run(follow(hashing, seed, model_ids, every=every, restarts=True))

    check()


@pytest.mark.parametrize("every", [False, True], ids=["latest", "all"])
@pytest.mark.parametrize("model_ids", [MODELS, ()], ids=["named", "everything"])
@pytest.mark.parametrize("count", [-1, 1, 2])
def test_resuming_is_exact_if_a_token_cannot_hold_all_positions(
    hashing: ThreadPoolExecutor, every: bool, model_ids: tuple[str, ...], count: int
) -> None:
    """With 1 or 2 positions for 3 models, tokens have positions or not, as models are created and deleted."""

    @settings(max_examples=25)  # of each of twelve kinds
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        with positions_max(count):
            asyncio.run(follow(hashing, seed, model_ids, every=every, restarts=False))

    check()


async def test_many_watchers_query_a_version_once(hashing: ThreadPoolExecutor) -> None:
    world = World(hashing)
    await world.start()
    await world.create("m")
    await world.publish("m", archived=True)
    life = (await world.catalog.find("m")).life
    found = await asyncio.gather(*(world.watches.describe("m", 1, life) for _ in range(100)))
    assert len({id(version) for version in found}) == 1
    assert await world.watches.describe("m", 1, life + 1) is None
    await world.catalog.close()


async def test_a_busy_model_does_not_delay_another_one(hashing: ThreadPoolExecutor) -> None:
    world = World(hashing)
    await world.start()
    for model_id in MODELS:
        await world.create(model_id)
        await world.publish(model_id, archived=False)
    async with aclosing(world.watches.watch(Question(MODELS))) as events:
        sent: list[str] = []
        for _ in range(30):
            _, event = await anext(events)
            if isinstance(event, Version):
                sent.append(event.model_id)
            for model_id in MODELS:
                await world.publish(model_id, archived=False)
    assert abs(sent.count("m") - sent.count("n")) <= 1
    await world.catalog.close()


@given(st.text())
def test_a_malformed_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="resume_token is malformed"):
        Token.decode(text)


PLACES = st.builds(Position, *[st.integers(0, 2**53)] * 1, *[st.integers(0, 2**30)] * 2, *[st.integers(0, 2**53)] * 3)


@given(
    st.integers(0, 2**48),
    st.integers(0, 2**53),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 2**30),
    st.none() | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), PLACES, max_size=5),
)
def test_a_token_decodes_to_its_content(
    epoch: int, sequence: int, model_id: str, number: int, known: dict[str, Position] | None
) -> None:
    token = Token(epoch, sequence, model_id, number, known)
    assert Token.decode(token.encode()) == token
