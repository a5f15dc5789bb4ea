"""Huge searches, large promotions and storms of alias moves do not delay publishes, watches or retrievals.

These calls run on their own models, as fast as they can. In the meantime, versions of another model are published one
after the other; each must reach its watcher and be retrieved in time. The figures show the time of the slowest one.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.testing.bytes import hash_of
from tests.client import Client, connected, next_version
from tests.processes import server_process
from tests.server.test_model_lifecycle import ABORTED, Lifecycle
from tests.torture.oracle import fork, going_on
from tests.torture.proof import Figures, Proof

DEADLINE_SECONDS = 10
"""As in `wake_ups`: far more than a busy machine needs, and less than a call that waits for the others would take."""

VERSIONS_A_SECOND, VERSIONS_MAX = 500, 10_000
"""The number of versions to search: for each second of the proof, and at most."""

LARGE_BYTES = 32 * 2**20
MOVERS = 16
FLAGS = (f"--cache_max_bytes={16 * LARGE_BYTES}", "--cache_max_items=1000")

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def put_versions(archive: Path, count: int) -> None:
    """Create an archive with a model of many versions of one byte each."""
    directory = archive / "many"
    directory.mkdir(parents=True)
    (directory / "many.yaml").write_bytes(layout.format_model(ModelInfo("many")))
    for number in range(1, count + 1):
        info = VersionInfo("many", number, number, True, hash_of(b"x"), 1, {"key": str(number % 97)})
        (directory / layout.data_file_name("many", number)).write_bytes(b"x")
        (directory / layout.version_file_name("many", number)).write_bytes(layout.format_version(info))


class Run:
    """The calls on other models, until the run is over."""

    def __init__(self, random: Random, figures: Figures) -> None:
        self.random = random
        self.figures = figures
        self.is_over = False

    async def search(self, lifecycle: Lifecycle) -> None:
        """Search with the most expensive filters that are allowed."""
        random = fork(self.random)
        while not self.is_over:
            terms = [f"NOT (user_data.key = {random.randint(0, 200)} AND tags.a != b)" for _ in range(32)]
            order = random.choice(["user_data.key desc", "data_hash", "creation_timestamp", "tags.stage"])
            try:
                await lifecycle.find(filter=random.choice([" AND ", " OR "]).join(terms), order_by=order)
            except grpc.aio.AioRpcError as error:
                if error.code() != EXHAUSTED:  # it took too long
                    raise
            self.figures.count("searches")

    async def promote(self, client: Client) -> None:
        """Publish, promote and delete large versions."""
        lifecycle, data = Lifecycle(client), self.random.randbytes(LARGE_BYTES)
        while not self.is_over:
            number = (await client.publish("large", data)).version_number
            await lifecycle.promote(number, model_id="large")
            await lifecycle.delete(number, model_id="large")
            self.figures.count("promotions")

    async def move_aliases(self, lifecycle: Lifecycle, number: int) -> None:
        """Move an alias, and change tags; each change is one sync."""
        while not self.is_over:
            changes = [AliasChange(f"alias-{number % 4}", 1 + number % 2, None)]
            try:
                await lifecycle.set_aliases(*changes, model_id="busy")
                await lifecycle.update(1, AnnotationChange({"by": str(number)}), model_id="busy")
            except grpc.aio.AioRpcError as error:
                if error.code() != ABORTED:
                    raise
            self.figures.count("moves of aliases")

    async def observe(self, client: Client, watch: Any, seconds: float) -> None:
        """Publish versions for some seconds, and wait until each has arrived."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            data = self.random.randbytes(1000)
            began = time.perf_counter()
            async with asyncio.timeout(DEADLINE_SECONDS):
                info = await client.publish("quiet", data)
                assert await next_version(watch) == info
                assert await client.data("quiet") == data
            self.figures.peak("ms of the slowest", 1000 * (time.perf_counter() - began))
            self.figures.count("versions published, watched and retrieved")
        self.is_over = True


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    archive = place / "archive"
    put_versions(archive, min(VERSIONS_A_SECOND * rounds, VERSIONS_MAX))
    run = Run(random, figures)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(server_process(archive, *FLAGS))
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(4)]
        for model_id in ("quiet", "busy", "large"):
            await clients[0].create_model(model_id)
        for _ in range(2):
            await clients[0].store("busy", b"x")
        watch = clients[0].watching("quiet")
        works = [run.search(Lifecycle(clients[1])) for _ in range(2)]
        works += [run.promote(clients[2])]
        works += [run.move_aliases(Lifecycle(clients[3]), number) for number in range(MOVERS)]
        async with going_on(*works):
            await run.observe(clients[0], watch, rounds)
        watch.cancel()
        assert server.stop() == 0, "the server did not stop cleanly"


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Search, promote and move aliases for a number of seconds, and measure publishes of another model."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="delays",
    promise="Searches, promotions and moves of aliases do not delay calls on other models",
    attempt=attempt,
    unit="seconds",
    short=2,
    long=60,
    batch=20,
)
