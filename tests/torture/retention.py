"""A real run of retention deletes what a dry run reports; a kill between any two of its steps leaves nothing half done.

Each round makes a random history (versions, promotions, aliases, tags, metrics, deletions) and random rules, does a dry
run, and then applies the rules in a process that is killed before one of its steps (an operation on a file, or a change
of the database), or never. Then the archive is opened again and compared with the report of the dry run.

As a program, this module forks those processes: they have loaded everything, so they start at once.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cogment_model_registry.errors import NotFoundError
from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.records.retention import ModelChange, RetentionRule
from cogment_model_registry.records.versions import ModelInfo, VersionHeader
from cogment_model_registry.registry.filters import BY_NUMBER, EVERYTHING
from cogment_model_registry.registry.lifecycle import Lifecycle
from cogment_model_registry.registry.models import Models
from cogment_model_registry.registry.registry import Limits, Registry
from cogment_model_registry.registry.retention import Application, Retention
from cogment_model_registry.storage.catalog.database import Database, Operation
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.layout import CATALOG_NAME
from cogment_model_registry.storage.memory.transient_store import MemoryTransientStore
from tests.processes import START_SECONDS, clean_environment
from tests.torture.oracle import in_round, payload
from tests.torture.proof import Figures, Proof

MODEL = "m"
NOW_NS = 1_795_773_600_000_000_000
SECOND_NS = 10**9
STEPS_PER_DELETION = 14
"""About how many steps a deletion has: with more, processes are seldom killed; with fewer, never late."""


class Steps:
    """Counts steps, and kills the process before one of them.

    Attributes:
        last: The number of the step before which the process is killed; 0 for never.
    """

    def __init__(self) -> None:
        self.last = 0
        self._lock = threading.Lock()

    def take(self) -> None:
        """Take a step."""
        with self._lock:
            self.last -= 1
            if not self.last:
                os.kill(os.getpid(), signal.SIGKILL)


class KillableFiles(Files):
    """Operations on real files, each a step. No power cut is simulated here, so a sync does nothing."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if not name.startswith("_") and callable(attribute):
            self._steps.take()
        return attribute

    def sync_file(self, file: int) -> None:
        """Do nothing."""

    def sync_directory(self, directory: int) -> None:
        """Do nothing."""


class KillableDatabase(Database):
    """A database with a step before and a step after each commit, and without syncs."""

    def __init__(self, path: str, steps: Steps) -> None:
        super().__init__(path, MIGRATIONS)
        self._steps = steps

    def _commit(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self._steps.take()
        if self._writing is not None:
            self._writing.execute("PRAGMA synchronous = OFF")
        outcomes = super()._commit(operations)
        self._steps.take()
        return outcomes


@dataclass
class World:
    """A registry without a network, and its retention."""

    registry: Registry
    lifecycle: Lifecycle
    models: Models
    retention: Retention
    catalog: LocalCatalog
    archive: DirectoryArchive

    async def add(self, tag: str, size_bytes: int, created_ns: int, *, archived: bool) -> None:
        data = payload(tag, size_bytes)
        header = VersionHeader(MODEL, archived, len(data), created_ns=created_ns, user_data={"tag": tag})
        async with await self.registry.create_version(header) as upload:
            await upload.write(memoryview(data))
            await upload.commit()

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.registry.list_versions(MODEL, 0, 1000)]

    async def reported(self) -> dict[str, list[Any]]:
        """Return the report of a dry run: numbers and reasons."""
        return said(await self.retention.plan(MODEL))


def said(application: Application) -> dict[str, list[Any]]:
    return {
        "doomed": [[verdict.number, verdict.reason] for verdict in application.doomed],
        "kept": [[verdict.number, verdict.reason] for verdict in application.kept],
    }


@asynccontextmanager
async def opened(place: Path, steps: Steps) -> AsyncIterator[World]:
    """Return a context manager for a registry on the archive in a directory."""
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        archive = DirectoryArchive(str(place), 128, KillableFiles(steps))
        await archive.open()
        catalog = LocalCatalog(archive, KillableDatabase(str(place / CATALOG_NAME), steps))
        try:
            await catalog.open()
            transient = MemoryTransientStore(20, 1_000_000, hashing)
            registry = Registry(Limits(128, 1000, 100), catalog, archive, transient)
            lifecycle = Lifecycle(registry, catalog, archive, transient)
            models = Models(registry, catalog, transient)
            retention = Retention(registry, catalog, archive, transient, holds=lifecycle.holds, now_ns=lambda: NOW_NS)
            yield World(registry, lifecycle, models, retention, catalog, archive)
        finally:
            await catalog.close()
            await archive.close()


# A history.


async def make_history(world: World, random: Random) -> None:
    """Make random calls on a model."""
    await world.registry.create_or_update_model(ModelInfo(MODEL))
    for position in range(random.randint(1, 24)):
        age = random.choice((0, 5, 50))
        await world.add(
            f"{random.random()}-{position}",
            random.choice((0, 1, 700)),
            NOW_NS - age * SECOND_NS - position,
            archived=random.random() < 0.6,
        )
        while random.random() < 0.6:
            numbers = await world.numbers()
            if numbers:
                await change(world, random, random.choice(numbers))
    await world.models.update(MODEL, ModelChange(retention=tuple(random_rules(random))))


async def change(world: World, random: Random, number: int) -> None:
    """Change something of a version."""
    match random.randrange(6):
        case 0:
            await world.lifecycle.promote_version(MODEL, number)
        case 1:
            name = random.choice(("production", "canary"))
            await world.lifecycle.set_aliases(MODEL, [AliasChange(name, number)])
        case 2:
            tags = {"stage": random.choice(("trial", "final"))}
            await world.lifecycle.update_version(MODEL, number, AnnotationChange(tags))
        case 3 | 4:
            metrics = {"return": float(random.randrange(5))}
            await world.lifecycle.update_version(MODEL, number, AnnotationChange(set_metrics=metrics))
        case _:
            await world.lifecycle.delete_version(MODEL, number, force=True)


def random_rules(random: Random) -> Iterator[RetentionRule]:
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        filters = ("", "", "tags.stage = trial", "NOT tags:stage", "metrics.return > 2", "data_size > 0")
        is_best = random.random() < 0.4
        yield RetentionRule(
            tier=random.choice(("any", "transient", "archived")),
            filter=random.choice(filters),
            keep_last=random.choice((0, 1, 3)) if is_best else random.choice((1, 1, 2, 5)),
            keep_best=random.randint(1, 3) if is_best else 0,
            metric="return" if is_best else "",
            lower_is_better=is_best and random.random() < 0.5,
            keep_seconds=random.choice((0, 0, 10)),
            keep_every=random.choice((0, 0, 4)),
        )


# The killed process.


def live(place: Path, seed: int, last_step: float) -> None:
    """Make a history, log the report of a dry run, and apply the rules; killed before a step, or never."""
    with open(place / "reported", "w", buffering=1) as log:

        def write_line(**what: object) -> None:
            log.write(json.dumps(what) + "\n")

        asyncio.run(_live(place / "archive", Random(seed), last_step, write_line))


async def _live(place: Path, random: Random, last_step: float, write_line: Callable[..., None]) -> None:
    steps = Steps()
    async with opened(place, steps) as world:
        await make_history(world, random)
        reported = await world.reported()
        infos = {info.number: info.archived for info in await world.registry.list_versions(MODEL, 0, 1000)}
        write_line(reported=reported, archived=[number for number, archived in infos.items() if archived])
        if last_step:
            steps.last = 1 + int(last_step * STEPS_PER_DELETION * max(len(reported["doomed"]), 1))
        application = await world.retention.plan(MODEL)
        async with aclosing(application.delete()) as deletions:
            async for decision in deletions:
                write_line(deleted=[decision.version.number, decision.reason])
        write_line(left=await world.numbers(), kept=said(application)["kept"])
        steps.last = 0


def main() -> None:
    """Fork a process for each line of standard input, and print how it ended."""
    for line in sys.stdin:
        place, seed, last_step = json.loads(line)
        child = os.fork()
        if not child:
            try:
                live(Path(place), seed, last_step)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


@contextmanager
def forking() -> Iterator[Callable[[Path, int, float], int]]:
    """Return a context manager for a function that runs `live` in a process, and returns its exit code."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.torture.retention"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=clean_environment(),
    ) as process:
        assert process.stdin
        assert process.stdout

        def run(place: Path, seed: int, last_step: float) -> int:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps([str(place), seed, last_step]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        try:
            yield run
        finally:
            process.stdin.close()
            process.wait(START_SECONDS)


# The attempts.


def attempt(directory: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Apply the rules to a number of histories."""
    for name in ("differences", "orphan files", "listed versions without bytes"):
        figures.count(name, 0)
    with forking() as run:
        for number in range(rounds):
            with in_round(number):
                place = directory / str(number)
                (place / "archive").mkdir(parents=True)
                last_step = random.random() if random.random() < 0.75 else 0.0
                code = run(place, random.getrandbits(64), last_step)
                assert code in (0, -signal.SIGKILL), f"the process ended with {code}"
                figures.count("histories")
                figures.count("kills", int(code != 0))
                asyncio.run(check(place, figures, is_whole=code == 0))


async def check(place: Path, figures: Figures, *, is_whole: bool) -> None:
    """Compare the archive with the report of the dry run."""
    lines = [json.loads(line) for line in (place / "reported").read_text().splitlines()]
    reported, archived = lines[0]["reported"], {*lines[0]["archived"]}
    deleted = [line["deleted"] for line in lines if "deleted" in line]
    figures.count("versions", len(reported["doomed"]) + len(reported["kept"]))
    figures.count("deletions", len(deleted))
    assert deleted == reported["doomed"][: len(deleted)], "a real run deletes what a dry run does not report"
    if is_whole:
        assert deleted == reported["doomed"], "a dry run reports what a real run does not delete"
        assert lines[-1]["left"] == [number for number, _ in reported["kept"]]
        assert lines[-1]["kept"] == reported["kept"]
    async with opened(place / "archive", Steps()) as world:
        listed = await world.numbers()
        kept = {number for number, _ in reported["kept"]} & archived
        doomed = {number for number, _ in reported["doomed"]} & archived
        gone = {number for number, _ in deleted}
        # The version whose deletion was in progress may exist or not.
        may_be_gone = {number for number, _ in reported["doomed"][len(deleted) : len(deleted) + 1]}
        assert kept <= set(listed), "a kept version is gone"
        assert doomed - gone - may_be_gone <= set(listed) <= kept | doomed - gone, (
            "a deletion was lost, or happened early"
        )
        await check_whole(world, place / "archive" / MODEL, listed)
        reported = await world.reported()
        application = await world.retention.plan(MODEL)
        again = [[each.version.number, each.reason] async for each in application.delete()]
        assert again == reported["doomed"]
        assert await world.numbers() == [number for number, _ in reported["kept"]]
        await check_whole(world, place / "archive" / MODEL, await world.numbers())


async def check_whole(world: World, directory: Path, listed: list[int]) -> None:
    """Check that the files and the database have the listed versions, complete, and nothing else."""
    for info in await world.registry.list_versions(MODEL, 0, 1000):
        async with await world.registry.open_version(MODEL, info.number) as reader:
            data = b"".join([b"".join(chunk) async for chunk in reader.chunks(1000, 2000)])
        assert data == payload(info.user_data["tag"], info.data_size_bytes)
    names = {f"{MODEL}.yaml"} | {f"{MODEL}-v{number:06}.{end}" for number in listed for end in ("yaml", "data")}
    found = {name for name in os.listdir(directory) if name != ".high_water_mark"}
    assert found == names, f"orphan files: {sorted(found ^ names)}"
    versions = await world.lifecycle.search(MODEL, EVERYTHING, BY_NUMBER, None, 1000)
    assert [version.number for version in versions] == listed
    for alias in await world.lifecycle.get_aliases(MODEL):
        assert alias.version_number in listed
    for number in set(range(1, 30)) - set(listed):
        try:
            await world.registry.get_versions(MODEL, [number])
        except NotFoundError:
            continue
        raise AssertionError(f"version {number} is not listed, but exists")


PROOF = Proof(
    name="retention",
    promise="A real run of retention deletes what a dry run reports; a kill between two steps leaves nothing half done",
    attempt=attempt,
    unit="histories",
    short=6,
    long=1000,
    batch=100,
    missing=lambda: "" if hasattr(os, "fork") else "processes cannot be forked here",
    requirements="processes that can be forked",
)

if __name__ == "__main__":
    main()
