"""All or nothing under failing I/O: every file operation of every call fails once or permanently, with every error.

For each call and each n, the n-th file operation that the call makes fails; n grows until the call goes through without
a failure. (SQLite tests itself in this way: https://sqlite.org/testing.html, "I/O Error Testing".) Each time:

- OK means done: the effect is visible at once, and after a restart.
- Refused means that the running server serves exactly what it served before; after a restart too, unless a sync failed
  or the change could not be undone: then it may also have been done completely.
- The status is UNAVAILABLE, or RESOURCE_EXHAUSTED on a full disk; intact data is never reported as damaged.
- No file stays open, and nothing is left on the disk after the next write or the next start.
- The same call succeeds when the disk works again; after a failed sync, only after a restart, and until then the server
  reports it.
"""

import asyncio
import errno
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.lifecycle import AliasChange
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire.convert import status_of
from tests.client import Client, connected, upload
from tests.server.test_health import NOT_SERVING, check
from tests.server.test_model_lifecycle import Lifecycle
from tests.torture.failing_files import FailingFiles, Fault, open_below
from tests.torture.proof import Figures, Proof
from tests.waiting import eventually, until

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

SMALL = bytes(range(100))
LARGE = bytes(range(256)) * 4096 + bytes(range(200)) * 512  # more than a block of a reader, pieces of an upload
SETTINGS = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, sent_version_chunk_size=MIB // 2)

OPERATIONS_MAX = 500
"""More operations than any call makes: a sweep that gets there never ends."""

WAIT_SECONDS = 20
AT_ONCE = 4
"""Concurrent sweeps: one continues while another one waits for the health service."""


@dataclass
class Model:
    """The content of a model: its `user_data`, and of each version its bytes and whether it is archived."""

    user_data: dict[str, str]
    versions: dict[int, tuple[bytes, bool]] = field(default_factory=dict)


World = dict[str, Model]
"""All models by id."""


def archived(world: World) -> World:
    """Return the part of a world that survives a restart."""
    return {
        model_id: Model(model.user_data, {number: version for number, version in model.versions.items() if version[1]})
        for model_id, model in world.items()
    }


def last_number(world: World, model_id: str) -> int:
    """Return the highest number of a version of a model, or 0."""
    return max(world[model_id].versions, default=0)


async def observe(client: Client) -> World:
    """Return everything that a server serves; check that the info of each version describes the bytes that it sends."""
    world: World = {}
    for model in (await client.models()).model_infos:
        world[model.model_id] = seen = Model(dict(model.user_data))
        for info in (await client.infos(model.model_id)).version_infos:
            data = await client.data(model.model_id, info.version_number)
            assert len(data) == info.data_size, f"{info} has {len(data)} bytes"
            assert hash_of(data) == info.data_hash, f"{info} has other bytes"
            seen.versions[info.version_number] = (data, info.archived)
    return world


# The scenarios.

Act = Callable[[Server, Client, World], Awaitable[int]]
"""Makes a call in a world, and returns the number of the version that it created, if any, or 0."""

Effect = Callable[[World, int], None]
"""Changes the world as the call does, with this number."""


@dataclass(frozen=True)
class Scenario:
    """A call.

    Attributes:
        name: Its name.
        act: Makes the call.
        effect: Changes the world as the call does; nothing for a call that reads.
        renames_models: Whether the file system can rename the directory of a model.
        publishes: Whether a transient version, the third of `m`, exists before the call.
        arrange: Changes the archive before the server starts.
    """

    name: str
    act: Act
    effect: Effect = lambda _world, _number: None
    renames_models: bool = True
    publishes: bool = False
    arrange: Callable[[Path], None] = lambda _archive: None


def storing(name: str, data: bytes, archive: bool = True, chunk_size: int = 2**21) -> Scenario:
    """Return the scenario of creating a version of `m`."""

    async def act(_: Server, client: Client, __: World) -> int:
        return (await client.create_version(upload("m", data, archive, chunk_size))).version_number

    def effect(world: World, number: int) -> None:
        world["m"].versions[number] = (data, archive)

    return Scenario(name, act, effect)


def putting(name: str, model_id: str, text: str) -> Scenario:
    """Return the scenario of creating or updating a model."""

    async def act(_: Server, client: Client, __: World) -> int:
        await client.create_model(model_id, text=text)
        return 0

    def effect(world: World, _: int) -> None:
        world.setdefault(model_id, Model({})).user_data = {"text": text}

    return Scenario(name, act, effect)


async def delete(_: Server, client: Client, __: World) -> int:
    await client.delete_model("doomed")
    return 0


def forget_doomed(world: World, _: int) -> None:
    del world["doomed"]


async def retrieve(_: Server, client: Client, world: World) -> int:
    number = NEWEST if NEWEST in world["m"].versions else 1
    assert await client.data("m", number) == world["m"].versions[number][0], "wrong bytes were served with OK"
    return 0


async def list_infos(_: Server, client: Client, world: World) -> int:
    numbers = await client.numbers("m")
    assert numbers == sorted(world["m"].versions), f"{numbers} were listed, with OK"
    return 0


async def look_up(_: Server, client: Client, world: World) -> int:
    wanted = [-1, *world["m"].versions]
    found = [info.version_number for info in (await client.infos("m", *wanted)).version_infos]
    assert found == [last_number(world, "m"), *wanted[1:]], f"{found} were found, with OK"
    return 0


async def refresh(server: Server, _: Client, __: World) -> int:
    await server.refresh()
    return 0


async def promote(_: Server, client: Client, __: World) -> int:
    version = await Lifecycle(client).promote(TRANSIENT)
    assert version.info.archived, f"promoted was {version}, with OK"
    return 0


async def set_alias(_: Server, client: Client, __: World) -> int:
    await Lifecycle(client).set_aliases(AliasChange("production", TRANSIENT))
    return 0


def archive_it(world: World, _: int) -> None:
    world["m"].versions[TRANSIENT] = (SMALL, True)


async def delete_transient(_: Server, client: Client, __: World) -> int:
    await Lifecycle(client).delete(TRANSIENT)
    return 0


async def delete_newest(_: Server, client: Client, __: World) -> int:
    await Lifecycle(client).delete(NEWEST)
    return 0


def forget(number: int) -> Effect:
    """Return the effect of a deletion of a version of `m`."""

    def effect(world: World, _: int) -> None:
        world["m"].versions.pop(number, None)

    return effect


def without_mark(archive: Path) -> None:
    """Leave an archive as the original does: only its newest file determines the next number."""
    (archive / "m" / layout.HIGH_WATER_MARK_NAME).unlink()


NEWEST, TRANSIENT = 2, 3
DELETE_NEWEST = Scenario("deletion of a version", delete_newest, forget(NEWEST))
DELETE_ORIGINAL = replace(DELETE_NEWEST, name="deletion of a version of the original", arrange=without_mark)
STORE = storing("store", SMALL[::-1])
UPDATE = putting("update of a model", "m", "y" * 1000)
DELETE = Scenario("deletion of a model", delete, forget_doomed)
DELETE_BY_MARK = replace(DELETE, name="deletion of a model that cannot be renamed", renames_models=False)
RETRIEVE = Scenario("retrieval", retrieve)
REFRESH = Scenario("refresh", refresh)
START = Scenario("start", refresh)  # the act is repeated later
STOP = Scenario("stop", refresh)
SCENARIOS = [
    STORE,
    storing("store of several pieces", LARGE[::-1], chunk_size=100_000),
    storing("store of an empty version", b""),
    storing("publish", SMALL, archive=False),
    UPDATE,
    putting("creation of a model", "new", "new"),
    DELETE,
    DELETE_BY_MARK,
    Scenario("promotion", promote, archive_it, publishes=True),
    Scenario("alias of a transient version", set_alias, archive_it, publishes=True),
    Scenario("deletion of a transient version", delete_transient, forget(TRANSIENT), publishes=True),
    DELETE_NEWEST,
    DELETE_ORIGINAL,
    RETRIEVE,
    Scenario("listing", list_infos),
    Scenario("lookup", look_up),
    REFRESH,
    START,
    STOP,
]


@dataclass(frozen=True)
class Sweep:
    """One scenario under one kind of fault, for all n."""

    scenario: Scenario
    error: int
    permanent: bool

    def __str__(self) -> str:
        return f"{self.scenario.name}, {errno.errorcode[self.error]} {'permanently' if self.permanent else 'once'}"


def deal(rounds: int, random: Random) -> Iterator[Sweep]:
    """Yield a number of sweeps, alternating between the scenarios, until every combination was yielded once."""
    kinds = list(itertools.product(ERRORS, (False, True)))
    hands = [random.sample(kinds, len(kinds)) for _ in SCENARIOS]
    for number in range(rounds):
        hand = hands[number % len(SCENARIOS)]
        error, permanent = hand[number // len(SCENARIOS) % len(hand)]
        yield Sweep(SCENARIOS[number % len(SCENARIOS)], error, permanent)


# One trial.


class Trial:
    """One scenario whose n-th file operation fails, on an archive of its own.

    Args:
        sweep: The scenario and the kind of fault.
        number: n.
        archive: The archive before the call.
        world: Its content.
        figures: What was counted.
    """

    def __init__(self, sweep: Sweep, number: int, archive: Path, world: World, figures: Figures) -> None:
        self.scenario = sweep.scenario
        self.files = FailingFiles()
        self.files.renames_models = sweep.scenario.renames_models
        self.acknowledged = False
        self._name = str(sweep)
        self._fault = Fault(number, sweep.error, sweep.permanent)
        self._archive = archive
        self._world = deepcopy(world)  # what the running server must serve
        self._last_number = last_number(world, "m")  # the highest one that a client received
        self._may_be_done = False
        self._figures = figures
        self.scenario.arrange(archive)

    def __str__(self) -> str:
        return f"{self._name}, operation {self._fault.operation} ({', '.join(self.files.failed[:5])})"

    async def run(self, asks_health: bool) -> None:
        """Run the trial, and check its effects; `asks_health` says whether to wait for health to report it."""
        try:
            await self._run(asks_health)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"{self}: {error.code().name}: {error.details()}") from error
        except TimeoutError as error:
            raise AssertionError(f"{self}: a call did not end in time") from error

    async def _run(self, asks_health: bool) -> None:
        if self.scenario is START:
            await self._start()
        else:
            await self._serve(asks_health)
        self.files.disarm()
        await self._wait_for_open([])
        for model in self._world.values():
            model.versions = {number: version for number, version in model.versions.items() if version[1]}
        async with self._serving(FailingFiles()) as (server, client):
            await self._compare_with_disk(client)
            await self._store_again(server, client, orphans=self._fault.permanent)
        await self._wait_for_open([])
        self._figures.count("failed operations", len(self.files.failed))

    @asynccontextmanager
    async def _serving(self, files: FailingFiles) -> AsyncIterator[tuple[Server, Client]]:
        async with serving(self._archive, SETTINGS, files) as server, connected(server.port) as client:
            yield server, client

    async def _start(self) -> None:
        """Start with the fault; the start fails, or nothing is wrong."""
        self.files.arm(self._fault)
        try:
            async with self._serving(self.files) as (server, client):
                self.files.disarm()
                self.acknowledged = True
                await self._compare(client)
                if not self.files.a_sync_failed:
                    await self._store_again(server, client)
        except ModelRegistryError:
            self._figures.count("refused starts")

    async def _serve(self, asks_health: bool) -> None:
        """Serve, make the call with the fault, and check its effect."""
        try:
            async with self._serving(self.files) as (server, client):
                if self.scenario in (REFRESH, STOP) or self.scenario.publishes:
                    await self._act(storing("", SMALL, archive=False), server, client)
                self.files.arm(self._fault)
                if self.scenario is not STOP:
                    await self._try(server, client)
                    await self._check_after_repair(server, client, asks_health)
            self.acknowledged = self.acknowledged or self.scenario is STOP
        except ModelRegistryError as error:
            if self.scenario is not STOP:
                raise
            self._refuse(status_of(error), error.message)

    async def _act(self, scenario: Scenario, server: Server, client: Client) -> None:
        """Make a call that succeeds, and change the world accordingly."""
        async with asyncio.timeout(WAIT_SECONDS):
            number = await scenario.act(server, client, self._world)
        if number:
            assert number > self._last_number, f"{self}: number {number} was given twice"
            self._last_number = number
        scenario.effect(self._world, number)

    async def _try(self, server: Server, client: Client) -> None:
        """Make the call while operations fail."""
        try:
            await self._act(self.scenario, server, client)
            self.acknowledged = True
        except grpc.aio.AioRpcError as error:
            self._refuse(error.code(), error.details() or "")
        except ModelRegistryError as error:
            self._refuse(status_of(error), error.message)
        if self._fault.permanent and self.files.failed:
            await self._read_while_failing(server, client)
        self.files.disarm()

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Record a refusal, and check it."""
        self._figures.count("refused calls")
        assert self.files.failed, f"{self}: {code.name} although nothing failed: {details}"
        self._check_code(code, details)
        self._may_be_done = self._fault.permanent or (self.files.a_sync_failed and self.scenario is not UPDATE)

    def _check_code(self, code: grpc.StatusCode, details: str) -> None:
        allowed = {grpc.StatusCode.UNAVAILABLE}
        if self._fault.error in NO_ROOM:
            allowed.add(grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert code in allowed, f"{self}: {code.name}: {details}"

    async def _read_while_failing(self, server: Server, client: Client) -> None:
        """Read while every operation fails: a reply with OK must be right."""
        for scenario in (RETRIEVE, Scenario("listing", list_infos), Scenario("lookup", look_up)):
            try:
                await scenario.act(server, client, self._world)
            except grpc.aio.AioRpcError as error:
                self._check_code(error.code(), error.details() or "")

    async def _check_after_repair(self, server: Server, client: Client, asks_health: bool) -> None:
        """Check the running server after the disk works again."""
        # What could not be removed keeps its directory open until the next write.
        if not self._fault.permanent and "remove" not in self.files.failed:
            await self._wait_for_open([".", ".lock"])
        if self._may_be_done and self.scenario in (DELETE, DELETE_BY_MARK):
            await self._compare_with_disk(client)  # its files may be unreachable
        else:
            await self._compare(client)
        if self.files.a_sync_failed:
            await self._expect_no_writes(server, client, asks_health)
            return
        if not self.acknowledged:
            await self._act(self.scenario, server, client)
        await self._store_again(server, client)

    async def _compare(self, client: Client) -> None:
        """Compare what is served with what must be served."""
        observed = await observe(client)
        assert observed == self._world, f"{self}: {describe(observed)} instead of {describe(self._world)}"

    async def _compare_with_disk(self, client: Client) -> None:
        """The same after the archive was read again: a call that was refused may have taken effect."""
        observed = await observe(client)
        if self._may_be_done and observed != self._world:
            self._may_be_done = False
            self.scenario.effect(self._world, last_number(observed, "m"))
            self._figures.count("refused calls that had taken effect")
        assert observed == self._world, f"{self}: {describe(observed)} instead of {describe(self._world)}"

    async def _store_again(self, server: Server, client: Client, orphans: bool = False) -> None:
        """Store: this works, and removes whatever was left behind, except data without metadata (`orphans`)."""
        await self._act(STORE, server, client)
        assert await client.data("m", self._last_number) == SMALL[::-1], f"{self}: the next store is not served"
        await self._wait_for_open([".", ".lock"])
        extra = [name for name in left_over(self._archive, self._world) if not (orphans and name.endswith(".data"))]
        if not self.scenario.renames_models:  # a server ignores an empty directory
            extra = [
                name for name in extra if (self._archive / name).is_file() or any((self._archive / name).iterdir())
            ]
        assert not extra, f"{self}: left behind after the next write: {extra}"

    async def _expect_no_writes(self, server: Server, client: Client, asks_health: bool) -> None:
        """Expect a server whose sync failed: it writes nothing, reports this, and serves what it has."""
        for scenario in (STORE, UPDATE, DELETE):
            if scenario is DELETE and "doomed" not in self._world:
                continue
            code = await code_of(scenario.act(server, client, self._world))
            assert code == grpc.StatusCode.UNAVAILABLE, f"{self}: {scenario.name} is {code.name} after a failed sync"
        status = await client.status("archive", "overall_load")
        assert status["archive"] != "ok", f"{self}: {status}"
        assert status["overall_load"] == "255", f"{self}: {status}"
        await self._compare_with_disk(client)
        if asks_health:

            async def is_reported() -> bool:
                return await check(client) == NOT_SERVING

            await eventually(is_reported, lambda: f"{self}: health says SERVING after a failed sync", WAIT_SECONDS)
        self._figures.count("failed syncs")

    async def _wait_for_open(self, expected: list[str]) -> None:
        """Wait until no other file of the archive is open: a reply may arrive before a file is closed."""
        kept = layout.CATALOG_NAMES if expected else frozenset[str]()  # those of the catalog, while a server runs

        def names() -> list[str]:
            return [name for name in open_below(self._archive) if name not in kept]

        await until(
            lambda: names() == expected,
            lambda: f"{self}: {names()} are open instead of {expected}",
            WAIT_SECONDS,
        )


async def code_of(call: Awaitable[int]) -> grpc.StatusCode:
    """Return the status of a call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def describe(world: World) -> str:
    """Describe a world in one line."""
    return ", ".join(
        f"{model_id} ({str(model.user_data)[:40]}): {[(n, len(v[0]), v[1]) for n, v in model.versions.items()]}"
        for model_id, model in world.items()
    )


def left_over(archive: Path, world: World) -> list[str]:
    """Return the files and directories in an archive that its world does not need."""
    needed = {".lock", *layout.CATALOG_NAMES}
    for model_id, model in world.items():
        needed |= {model_id, f"{model_id}/{model_id}.yaml", f"{model_id}/.high_water_mark"}
        for number, (_, is_archived) in model.versions.items():
            if is_archived:
                needed |= {f"{model_id}/{model_id}-v{number:06d}.{ending}" for ending in ("yaml", "data")}
    found = {str(path.relative_to(archive)) for path in archive.rglob("*")}
    return sorted(found - needed)


# The proof.

ALL = len(SCENARIOS) * len(ERRORS) * 2
SHORT_STEP = 10
"""The short form lets every tenth operation fail, starting at a random one."""


async def build(archive: Path) -> World:
    """Let a server write an archive, and return its content."""
    async with serving(archive, SETTINGS, FailingFiles()) as server, connected(server.port) as client:
        for model_id in ("m", "doomed"):
            await client.create_model(model_id, text="x" * 1000)
            await client.store(model_id, SMALL)
        await client.store("m", LARGE)
        return await observe(client)


async def make_sweeps(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Run the sweeps, a few at once; with every n only if they are all of them."""
    step = 1 if rounds >= ALL else SHORT_STEP
    template = place / "template"
    world = await build(template)
    room = asyncio.Semaphore(AT_ONCE)

    async def make(sweep: Sweep, archive: Path, numbers: Iterable[int]) -> None:
        """Let one operation after the other fail, until the call makes no more."""
        asks_health = True
        for number in numbers:
            shutil.copytree(template, archive)
            trial = Trial(sweep, number, archive, world, figures)
            await trial.run(asks_health)
            shutil.rmtree(archive)
            if not trial.files.failed:
                assert trial.acknowledged, f"{trial}: refused although nothing failed"
                return
            asks_health = asks_health and not trial.files.a_sync_failed
        raise AssertionError(f"{sweep}: it does not end")

    async def make_in_turn(number: int, sweep: Sweep) -> None:
        async with room:
            await make(sweep, place / str(number), range(random.randint(1, step), OPERATIONS_MAX, step))

    async with asyncio.TaskGroup() as group:
        for number, sweep in enumerate(deal(rounds, random)):
            group.create_task(make_in_turn(number, sweep))


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Run a number of sweeps."""
    try:
        asyncio.run(make_sweeps(place, rounds, random, figures))
    except* AssertionError as broken:
        raise broken.exceptions[0] from None


PROOF = Proof(
    name="failing_io",
    promise="If a file operation fails, its call has full effect or none: every operation, with every error",
    attempt=attempt,
    unit="sweeps",
    short=len(SCENARIOS),
    long=ALL,
    batch=ALL,
)
