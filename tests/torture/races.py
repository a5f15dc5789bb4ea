"""Two calls on one version at the same time, on the backends of a real server: see `rules/test_races`.

There, the backends are in memory, and all schedules are tried. Here they are the archive in a directory and the catalog
in a database. Turns of the event loop replace their threads, so a call can be paused between any two operations, and
the schedules are chosen at random.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TypeVar, TypeVarTuple, Unpack

from cogment_model_registry.storage.catalog.database import Database
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.storage.catalog.tables import MIGRATIONS
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from tests.rules.test_races import CALLS, World, new_task, race
from tests.torture.oracle import in_round
from tests.torture.power_cut import UnsyncedFiles, in_memory
from tests.torture.proof import Figures, Proof

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

STEPS_MAX = 100
"""The last step at which a call is paused. Most calls have fewer, so early ones are chosen more often."""


async def rescan(world: World) -> None:
    """Rescan the archive, which nobody changed by hand."""
    assert isinstance(world.catalog, LocalCatalog)
    await world.catalog.refresh(world.transient.remove_model)


ALL_CALLS = [*CALLS, rescan]


class TurnLoop(asyncio.SelectorEventLoop):
    """An event loop that does the work of threads itself, in its next turn."""

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(work)
        return future


async def _race(place: Path, random: Random, hashing: Executor, figures: Figures) -> None:
    archive = DirectoryArchive(str(place / "archive"), 128, UnsyncedFiles())
    await archive.open()
    database = Database(str(place / "catalog.db"), MIGRATIONS)
    catalog = LocalCatalog(archive, database, number_block=random.choice((2, 128)))
    await catalog.open()
    world = World(hashing, catalog, archive)
    first, second, steps = random.choice(ALL_CALLS), random.choice(ALL_CALLS), int(STEPS_MAX ** random.random())
    try:
        await world.begin()
        figures.count("calls held", await race(world, first, second, steps))
    except Exception as error:
        error.add_note(f"{first.__name__} was paused after {steps} steps while {second.__name__} ran")
        raise
    finally:
        await world.registry.parking.close()
        await catalog.close()
        await archive.close()


def _clear(place: Path) -> None:
    shutil.rmtree(place / "archive")
    for path in place.glob("catalog.db*"):
        path.unlink()


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    asyncio.get_running_loop().set_task_factory(new_task)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
        for number in range(rounds):
            with in_round(number):
                await _race(place, random, hashing, figures)
                _clear(place)
    figures.count("broken", 0)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Run a number of pairs of calls concurrently."""
    with in_memory(place) as memory, asyncio.Runner(loop_factory=TurnLoop) as runner:
        runner.run(_attempt(Path(tempfile.mkdtemp(dir=memory)), rounds, random, figures))


PROOF = Proof(
    name="races",
    promise="Two concurrent calls on one version break nothing, however their steps interleave",
    attempt=attempt,
    unit="races",
    short=100,
    long=20_000,
    batch=500,
)
