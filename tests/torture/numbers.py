"""The numbers of a model are unique, increase, and are never reused, although the server is killed repeatedly.

Clients create versions, most of them transient, which leave no trace in the archive. Watchers and a lister record
numbers too, because a number that a client has seen is assigned, whether its create was acknowledged or not.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, upload
from tests.processes import ServerProcess, server_process
from tests.torture.oracle import NOT_FOUND, check_ascending, fork, going_on, in_round, tag_of, until_gone
from tests.torture.proof import Figures, Proof

MODEL_IDS = ("a", "a-v000001", "b", "c")
CONNECTIONS = 8
CREATES_PER_KILL = 160

LIFE_SECONDS = 300
"""How long one server may take for its share of the creates; it takes a few seconds."""


class Assigned:
    """The version that each number of a model was assigned to."""

    def __init__(self, model_id: str) -> None:
        self.highest = 0
        self.model_id = model_id
        self._tags: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def note(self, info: m.ModelVersionInfo, source: str) -> None:
        """Record a version that the server has reported."""
        number, tag = info.version_number, tag_of(info)
        assert info.model_id == self.model_id, f"{source} of {self.model_id} has a version of {info.model_id}"
        other = self._tags.setdefault(number, tag)
        assert other == tag, f"{source}: number {number} of {self.model_id} was assigned to {other} and to {tag}"
        first = self._numbers.setdefault(tag, number)
        assert first == number, f"{source}: {tag} of {self.model_id} has the numbers {first} and {number}"
        self.highest = max(self.highest, number)

    def __len__(self) -> int:
        return len(self._tags)


class Run:
    """All creates, over the lives of all servers.

    Attributes:
        assigned: The numbers of each model.
        total: How many creates must be acknowledged.
        acknowledged: How many creates were acknowledged.
    """

    def __init__(self, total: int, random: Random, figures: Figures) -> None:
        self.assigned = {model_id: Assigned(model_id) for model_id in MODEL_IDS}
        self.total = total
        self.acknowledged = 0
        self.random = random
        self.figures = figures
        self._target = 0
        self._reached = asyncio.Event()
        for name in ("acknowledged creates", "kills", "duplicates", "reused numbers", "unacknowledged creates"):
            figures.count(name, 0)

    def note_acknowledged(self) -> None:
        self.acknowledged += 1
        self.figures.count("acknowledged creates")
        if self.acknowledged >= self._target:
            self._reached.set()

    async def until_acknowledged(self, target: int) -> None:
        """Wait until a number of creates are acknowledged, and at least one more than before, if any are left."""
        self._target = min(max(target, self.acknowledged + 1), self.total)
        if self.acknowledged < self._target:
            self._reached.clear()
            async with asyncio.timeout(LIFE_SECONDS):
                await self._reached.wait()


class Creator:
    """A client that creates a number of versions, one after the other."""

    def __init__(self, run: Run, name: str, creates: int) -> None:
        self._run = run
        self._name = name
        self._missing = creates
        self._sent = 0
        self._random = fork(run.random)

    async def create(self, client: Client) -> None:
        while self._missing:
            model_id = self._random.choice(MODEL_IDS)
            assigned = self._run.assigned[model_id]
            floor = assigned.highest
            try:
                info = await client.create_version(self._next_upload(model_id))
            except grpc.aio.AioRpcError:
                self._run.figures.count("unacknowledged creates")
                raise
            assert info.version_number > floor, f"{self._name}: {model_id} had {floor}, then {info} was created"
            assert tag_of(info) == f"{self._name}.{self._sent}", f"{self._name} sent {self._sent}, and got {info}"
            assigned.note(info, self._name)
            self._missing -= 1
            self._run.note_acknowledged()

    def _next_upload(self, model_id: str) -> list[m.CreateVersionRequestChunk]:
        self._sent += 1
        tag = f"{self._name}.{self._sent}"
        return upload(model_id, tag.encode(), archived=self._random.random() < 0.25, user_data={"tag": tag})


async def watch(client: Client, assigned: Assigned, figures: Figures) -> None:
    """Record the versions that a watcher receives."""
    last = 0
    async for message in client.watching(assigned.model_id):
        info = m.VersionUpdateReply.FromString(message).version_info
        assert info.version_number > last, f"a watcher received {last}, then {info}"
        last = info.version_number
        assigned.note(info, "a watcher")
        figures.count("versions sent to watchers")


async def look(client: Client, run: Run) -> None:
    """List one model after the other, and retrieve something from each."""
    random = fork(run.random)
    while True:
        for model_id, assigned in run.assigned.items():
            infos = list((await client.infos(model_id)).version_infos)
            check_ascending(infos)
            for info in infos:
                assigned.note(info, "a listing")
            if infos:
                await check_content(client, random.choice(infos))
            run.figures.count("listings")


async def check_content(client: Client, info: m.ModelVersionInfo) -> None:
    """Check that the bytes of a transient or archived version are its own, unless it was evicted."""
    try:
        data = await client.data(info.model_id, info.version_number)
    except grpc.aio.AioRpcError as error:
        if error.code() == NOT_FOUND and not info.archived:
            return
        raise
    assert data.decode() == tag_of(info), f"number {info.version_number} of {info.model_id} has the bytes {data!r}"


async def live(server: ServerProcess, run: Run, creators: list[Creator], target: int, *, crash: bool) -> None:
    """Run all clients until a number of creates are acknowledged, and end the server."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(CONNECTIONS)]
        if not run.acknowledged:
            for model_id in MODEL_IDS:
                await clients[0].create_model(model_id)
        works: list[Coroutine[Any, Any, None]] = [look(clients[0], run)]
        works += [watch(clients[1], assigned, run.figures) for assigned in run.assigned.values()]
        works += [creator.create(clients[index % CONNECTIONS]) for index, creator in enumerate(creators)]
        async with going_on(*[until_gone(server, work) for work in works]):
            await run.until_acknowledged(target)
            server.kill() if crash else server.stop()


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    clients = min(8 * rounds, 64)
    creates = CREATES_PER_KILL * rounds // clients
    run = Run(clients * creates, random, figures)
    creators = [Creator(run, f"client {index}", creates) for index in range(clients)]
    for number, target in enumerate(sorted(random.choices(range(run.total), k=rounds))):
        with in_round(number), server_process(place / "archive") as server:
            await live(server, run, creators, target, crash=True)
            figures.count("kills")
    with in_round(rounds), server_process(place / "archive") as server:
        await live(server, run, creators, run.total, crash=False)
    assert run.acknowledged == run.total
    figures.count("numbers assigned", sum(map(len, run.assigned.values())))


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Kill a server a number of times, while clients create 160 versions in each run of it."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="numbers",
    promise="Numbers are unique, increase, and are never reused, not even after a crash",
    attempt=attempt,
    unit="kills",
    short=2,
    long=20,
    batch=20,
)
