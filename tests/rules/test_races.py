"""Two concurrent calls on one version: the first one is paused at each of its steps while the second one runs.

The backends in memory let other tasks run at each of their steps. So the first call is paused after its first step,
then after its second one, and so on, until the second call is over, or waits for the first one. After each race, the
listing, the content of the stores, and the targets of aliases are compared.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from cogment_model_registry.errors import ModelRegistryError, NotFoundError, PreconditionError
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import ModelInfo, VersionHeader
from cogment_model_registry.registry.contracts import Archive, Catalog
from cogment_model_registry.registry.filter_text import parse_filter
from cogment_model_registry.registry.filters import BY_NUMBER
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.resuming import RepeatableUploads
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.memory_archive import MemoryArchive
from cogment_model_registry.testing.memory_catalog import MemoryCatalog, Tables

MAX_ITEMS = 3
STEPS_MAX = 500
TURNS = 200
"""For how many turns of the event loop a call is paused: more than the other one takes, unless it waits."""


class Hold:
    """Pauses a call, with all tasks that it creates, after a number of steps, until another call is over.

    Attributes:
        begun: Set when the call has reached this step.
        is_other_over: Whether the other call is over.
    """

    def __init__(self, steps: int) -> None:
        self.begun = asyncio.Event()
        self.is_other_over = False
        self._left = steps

    async def step(self) -> None:
        """Count a step, and wait if it is the chosen one."""
        self._left -= 1
        if self._left == -1:
            self.begun.set()
            for _ in range(TURNS):
                if self.is_other_over:
                    break
                await asyncio.sleep(0)


_hold: ContextVar[Hold | None] = ContextVar("hold", default=None)


class Stepping:
    """A coroutine that is paused at one of its steps; awaiting this runs it."""

    def __init__(self, work: Coroutine[Any, Any, Any], hold: Hold) -> None:
        self._work = work
        self._hold = hold

    def __await__(self) -> Generator[Any, Any, Any]:
        thrown: BaseException | None = None
        while True:
            yield from self._hold.step().__await__()
            try:
                waited_for = self._work.throw(thrown) if thrown else self._work.send(None)
            except StopIteration as end:
                return end.value
            try:
                thrown = None
                yield waited_for
            except BaseException as error:
                thrown = error


def new_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """Return a task; a task that is created by a paused call is paused with it."""

    async def step(hold: Hold) -> Any:
        return await Stepping(work, hold)

    hold = _hold.get()
    return asyncio.Task(step(hold) if hold else work, loop=loop, **options)


class World:
    """A registry of the model ``m`` with a transient, an archived and another transient version."""

    def __init__(self, hashing: Executor, catalog: Catalog, archive: Archive) -> None:
        self.catalog = catalog
        self.archive = archive
        self.transient = MemoryTransientStore(MAX_ITEMS, 1000, hashing, elsewhere=archive)
        self.registry = Registry(Limits(16, 100, 10), self.catalog, archive, self.transient)
        self.uploads = RepeatableUploads(self.registry, self.catalog, archive, self.transient)
        self.lifecycle = Lifecycle(self.registry, self.catalog, archive, self.transient)
        self.sent: dict[str, bytes] = {}
        """The bytes of each version that was sent, by their hash."""

    async def begin(self) -> None:
        await self.registry.create_or_update_model(ModelInfo("m"))
        await self.upload(archived=False)
        await self.upload(archived=True)
        await self.upload(archived=False)
        await self.lifecycle.set_aliases("m", [AliasChange("stable", 2)])

    async def upload(self, *, archived: bool) -> None:
        data = b"version " + b"x" * len(self.sent)
        self.sent[hash_of(data)] = data
        async with await self.registry.create_version(VersionHeader("m", archived, len(data))) as upload:
            await upload.write(memoryview(data))
            await upload.commit()

    async def retrieve(self, number: int) -> None:
        async with await self.registry.open_version("m", number) as reader:
            data = b"".join([b"".join(chunk) async for chunk in reader.chunks(4, 100)])
            assert self.sent[reader.info.data_hash] == data

    async def archived_numbers(self) -> set[int]:
        """Return the numbers of all versions in the archive."""
        return {number for contents in await self.archive.scan() for number in contents.version_numbers}

    async def check(self) -> None:
        """Compare everything that exists."""
        try:
            infos = await self.registry.list_versions("m", 0, 100)
        except NotFoundError:
            assert not await self.archived_numbers()
            assert self.transient.usage.items == 0
            assert self.transient.usage.bytes == 0
            return
        for info in infos:
            await self.retrieve(info.number)
        transient = [info for info in infos if not info.archived]
        assert self.transient.usage.items == len(transient), (
            "the transient store and the catalog have different versions"
        )
        assert self.transient.usage.bytes == sum(info.data_size_bytes for info in transient)
        archived = {info.number for info in infos if info.archived}
        assert await self.archived_numbers() == archived, "the archive and the catalog have different versions"
        for alias in await self.lifecycle.get_aliases("m"):
            assert alias.version_number in archived, f"{alias} points to a version that is not archived"
        line = self.transient._lines.find("m")
        assert line is None or line.newest == infos[-1].number, "a version other than the newest is evicted last"


def world_in_memory(hashing: Executor) -> World:
    return World(hashing, MemoryCatalog(Tables()), MemoryArchive({}))


Call = Callable[[World], Awaitable[object]]


async def promote(world: World) -> None:
    await world.lifecycle.promote_version("m", 1)


async def promote_with_alias(world: World) -> None:
    version = await world.lifecycle.promote_version("m", 1, ["production"])
    assert version.info.archived


async def promote_newest(world: World) -> None:
    await world.lifecycle.promote_version("m", -1)


async def set_alias(world: World) -> None:
    aliases = await world.lifecycle.set_aliases("m", [AliasChange("canary", 1)])
    assert {"canary": 1}.items() <= {alias.name: alias.version_number for alias in aliases}.items()


async def move_stable(world: World) -> None:
    await world.lifecycle.set_aliases("m", [AliasChange("stable", 3)])


async def update(world: World) -> None:
    version = await world.lifecycle.update_version("m", 1, AnnotationChange({"stage": "new"}))
    assert version.tags == {"stage": "new"}


async def delete(world: World) -> None:
    await world.lifecycle.delete_version("m", 1)


async def delete_newest(world: World) -> None:
    await world.lifecycle.delete_version("m", -1, force=True)


async def delete_stable(world: World) -> None:
    await world.lifecycle.delete_version("m", "stable", force=True)


async def evict(world: World) -> None:
    for _ in range(MAX_ITEMS):
        await world.upload(archived=False)


async def delete_model(world: World) -> None:
    await world.registry.delete_model("m")


async def create_model_again(world: World) -> None:
    await world.registry.delete_model("m")
    await world.registry.create_or_update_model(ModelInfo("m"))
    for archived in (False, True):
        await world.upload(archived=archived)


async def upload_again(world: World, data: bytes, *aliases: str) -> None:
    """Upload bytes that a version already has, so they are not sent."""
    header = VersionHeader("m", bool(aliases), len(data), hash_of(data))
    async with world.uploads.begin(UploadHeader(header, aliases=aliases)) as upload:
        if not upload.is_complete:
            await upload.write(memoryview(data))
        version = await upload.commit()
    assert version.info.data_hash == header.data_hash


async def publish_again(world: World) -> None:
    await upload_again(world, b"version ")


async def store_again(world: World) -> None:
    await upload_again(world, b"version x", "stable")


async def retrieve_first(world: World) -> None:
    await world.retrieve(1)


async def retrieve_latest(world: World) -> None:
    await world.retrieve(-1)


async def read_stable(world: World) -> None:
    async with world.lifecycle.reading("m", "stable") as (version, reader):
        data = b"".join([b"".join(chunk) async for chunk in reader.chunks(4, 100)])
        assert world.sent[version.info.data_hash] == data


async def move_stable_and_delete(world: World) -> None:
    await world.lifecycle.set_aliases("m", [AliasChange("stable", 3)])
    await world.lifecycle.delete_version("m", 2)


async def search(world: World) -> None:
    found = await world.lifecycle.search("m", parse_filter("version_number > 0"), BY_NUMBER, None, 10)
    numbers = [version.number for version in found]
    assert numbers == sorted(set(numbers))
    assert sum("stable" in version.aliases for version in found) <= 1


CALLS: list[Call] = [
    promote,
    promote_with_alias,
    promote_newest,
    set_alias,
    move_stable,
    update,
    delete,
    delete_newest,
    delete_stable,
    evict,
    delete_model,
    create_model_again,
    publish_again,
    store_again,
    retrieve_first,
    retrieve_latest,
    read_stable,
    move_stable_and_delete,
    search,
]
RENEWING = (delete_model, create_model_again)


async def finish(call: Call, world: World) -> ModelRegistryError | None:
    """Make a call; return its error, which may only be that its version is gone."""
    try:
        await call(world)
    except (NotFoundError, PreconditionError) as error:
        return error
    return None


async def race(world: World, first: Call, second: Call, steps: int) -> bool:
    """Make two calls, and check the result; return whether the first one has this number of steps."""
    hold = Hold(steps)
    _hold.set(hold)
    running = asyncio.create_task(finish(first, world))
    _hold.set(None)
    waiting = asyncio.create_task(hold.begun.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    outcome = await finish(second, world)
    hold.is_other_over = True
    await running
    if second is retrieve_latest and first not in RENEWING:
        assert outcome is None, "there is a latest version at each moment"
    if second is read_stable and first not in (*RENEWING, delete_stable):
        assert outcome is None, "the alias points to a version at each moment"
    await world.check()
    return hold.begun.is_set()


@pytest.mark.parametrize("first", CALLS, ids=lambda call: call.__name__)
async def test_no_schedule_of_two_calls_breaks_anything(hashing: ThreadPoolExecutor, first: Call) -> None:
    asyncio.get_running_loop().set_task_factory(new_task)
    for second in CALLS:
        for steps in range(STEPS_MAX):
            world = world_in_memory(hashing)
            await world.begin()
            try:
                has_more = await race(world, first, second, steps)
            except Exception as error:
                error.add_note(f"{first.__name__} was paused after {steps} steps while {second.__name__} ran")
                raise
            await world.catalog.close()
            if not has_more:
                break
        else:
            raise AssertionError(f"{first.__name__} does not end")


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_a_promotion_whose_client_disconnected_is_complete_or_not_done(
    hashing: ThreadPoolExecutor, steps: int
) -> None:
    world = world_in_memory(hashing)
    await world.begin()
    promoting = asyncio.create_task(world.lifecycle.promote_version("m", 1))
    for _ in range(steps):
        await asyncio.sleep(0)
    promoting.cancel()
    await asyncio.wait([promoting])
    await world.check()
    assert (await world.registry.list_versions("m", 0, 100))[0].number == 1
    await world.catalog.close()
