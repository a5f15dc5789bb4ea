"""Versions that consumers hold, under pressure of both bounds, deletions, rules and promotions, all at once.

Each round has a registry on a real archive, whose transient store holds a few versions. Consumers hold versions and
release them; others publish, promote, delete and apply rules that keep next to nothing. Whatever a consumer was told
that it holds must be there, whole, until it lets go. Who held what is written down here, outside of the registry.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cogment_model_registry.errors import NotFoundError, PreconditionError, TooLargeError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.retention import ModelChange, RetentionRule
from cogment_model_registry.records.versions import ModelInfo, VersionHeader
from cogment_model_registry.registry.consumers import Consumers
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.retention import Retention
from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from tests.torture.oracle import fork, in_round, payload, together
from tests.torture.proof import Figures, Proof

MODEL = "m"
ITEMS_MAX, BYTES_MAX, HELD_MAX_BYTES = 6, 4000, 2500
PROMOTIONS_MAX = 1
"""How many are under way at once: consumers leave one place of the store, and each promotion may take one more."""
STEPS = 40


class UnsyncedFiles(Files):
    """Operations on real files. Nobody cuts the power here, so a sync does nothing."""

    def sync_file(self, file: int) -> None:
        """Do nothing."""

    def sync_directory(self, directory: int) -> None:
        """Do nothing."""


@dataclass
class World:
    """A registry without a network."""

    registry: Registry
    lifecycle: Lifecycle
    retention: Retention
    consumers: Consumers
    transient: MemoryTransientStore
    figures: Figures
    seconds: float = 0.0

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.registry.list_versions(MODEL, 0, 1000)]


@asynccontextmanager
async def opened(place: Path, figures: Figures) -> AsyncIterator[World]:
    """Return a context manager with an empty registry at a place."""
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        archive = DirectoryArchive(str(place), 128, UnsyncedFiles())
        await archive.open()
        catalog = LocalCatalog(archive, Database(str(place / CATALOG_NAME), MIGRATIONS))
        try:
            await catalog.open()
            transient = MemoryTransientStore(ITEMS_MAX, BYTES_MAX, hashing)
            registry = Registry(Limits(128, 1000, 100), catalog, archive, transient)
            lifecycle = Lifecycle(registry, catalog, archive, transient)
            retention = Retention(registry, catalog, archive, transient, holds=lifecycle.holds)
            world: World
            consumers = Consumers(
                registry,
                catalog,
                transient,
                holds=lifecycle.holds,
                consumers_max=100,
                held_max_bytes=HELD_MAX_BYTES,
                now=lambda: world.seconds,
            )
            world = World(registry, lifecycle, retention, consumers, transient, figures)
            await registry.create_or_update_model(ModelInfo(MODEL))
            rules = RetentionRule(keep_last=1), RetentionRule("archived", keep_every=7)
            await Models(registry, catalog, transient).update(MODEL, ModelChange(retention=rules))
            yield world
        finally:
            await catalog.close()
            await archive.close()


# Those who need room, or remove.


async def publish(world: World, random: Random) -> None:
    """Publish and store versions of any sizes."""
    for _ in range(STEPS):
        size_bytes, tag = random.choice((0, 1, 100, 700, 900)), str(random.random())
        header = VersionHeader(MODEL, random.random() < 0.2, size_bytes, user_data={"tag": tag})
        with suppress(TooLargeError):
            async with await world.registry.create_version(header) as upload:
                data = memoryview(payload(tag, size_bytes))
                await upload.write(data[: size_bytes // 2])
                await asyncio.sleep(0)
                await upload.write(data[size_bytes // 2 :])
                await upload.commit()
        check_bounds(world, ITEMS_MAX + PROMOTIONS_MAX)


def check_bounds(world: World, items_max: int) -> None:
    """Check that no more is in memory than is allowed."""
    usage = world.transient.usage
    assert usage.bytes <= BYTES_MAX, f"{usage.bytes} bytes are in memory"
    assert usage.items <= items_max, f"{usage.items} versions are in memory"


async def remove(world: World, random: Random) -> None:
    """Delete, promote and apply rules."""
    for _ in range(STEPS):
        numbers = await world.numbers()
        dice = random.random()
        with suppress(NotFoundError, PreconditionError, TooLargeError):
            if dice < 0.15:
                await apply_rules(world)
            elif numbers and dice < 0.3:
                await world.lifecycle.promote_version(MODEL, random.choice(numbers))
            elif numbers:
                await world.lifecycle.delete_version(MODEL, random.choice(numbers))
                world.figures.count("deletions")
        await asyncio.sleep(0)


async def apply_rules(world: World) -> None:
    """Delete what the rules do not keep."""
    application = await world.retention.plan(MODEL)
    async with aclosing(application.delete()) as deletions:
        async for _ in deletions:
            world.figures.count("deletions by rules")


# Those who hold.


async def consume(world: World, random: Random, name: str) -> None:
    """Hold versions and release them, and look whether they are there."""
    held: tuple[int, ...] = ()
    for _ in range(STEPS):
        numbers = await world.numbers()
        wanted = {*random.sample(held, random.randint(0, len(held)))}
        wanted |= {*random.sample(numbers, min(len(numbers), random.randint(0, 2)))}
        report = Consumer(MODEL, name, 0, "loading", ttl_seconds=10**4, held_versions=tuple(wanted))
        try:
            held = (await world.consumers.report(report)).held_versions
            world.figures.count("holds", len(held))
        except (NotFoundError, TooLargeError):
            world.figures.count("refused holds")
        assert world.consumers.held_bytes <= HELD_MAX_BYTES, "more is held than is allowed"
        for number in held:
            await check_whole(world, number)
        await asyncio.sleep(0)
    await world.consumers.report(Consumer(MODEL, name, state="gone"))


async def check_whole(world: World, number: int) -> None:
    """Check that a version that is held is there, with all of its bytes."""
    try:
        async with await world.registry.open_version(MODEL, number) as reader:
            data = b"".join([b"".join(chunk) async for chunk in reader.chunks(100, 2000)])
    except NotFoundError:
        raise AssertionError(f"version {number} is held, and is gone") from None
    info = reader.info
    assert data == payload(info.user_data["tag"], info.data_size_bytes), f"version {number} has other bytes"


async def forget(world: World, random: Random) -> None:
    """Hold versions, and do not report in time."""
    for step in range(STEPS):
        numbers = await world.numbers()
        held = tuple(random.sample(numbers, min(len(numbers), 1)))
        with suppress(NotFoundError, TooLargeError):
            await world.consumers.report(
                Consumer(MODEL, f"mortal-{step}", 0, "loading", ttl_seconds=1, held_versions=held)
            )
        await asyncio.sleep(0)
        world.seconds += 1
        world.consumers.expire()


async def live(place: Path, random: Random, figures: Figures) -> None:
    """Do all of it at once."""
    async with opened(place, figures) as world:
        await together(
            *(publish(world, fork(random)) for _ in range(2)),
            remove(world, fork(random)),
            *(consume(world, fork(random), f"consumer-{position}") for position in range(3)),
            forget(world, fork(random)),
        )
        usage = world.transient.usage
        figures.count("evictions", sum(usage.evictions.values()))
        assert world.consumers.held_bytes == 0, "a hold outlives its consumer"
        assert usage.held_bytes == 0, "memory is held that nobody holds"
        async with await world.registry.create_version(VersionHeader(MODEL, False, 0)) as upload:
            await upload.commit()
        check_bounds(world, ITEMS_MAX)


def attempt(directory: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Try that many registries."""
    figures.count("held versions lost", 0)
    for number in range(rounds):
        with in_round(number):
            place = directory / str(number)
            place.mkdir()
            asyncio.run(live(place, random, figures))
            figures.count("registries")


PROOF = Proof(
    name="holds",
    promise="A version that a consumer holds is never evicted or deleted, whatever happens at once",
    attempt=attempt,
    unit="registries",
    short=4,
    long=1000,
    batch=50,
)
