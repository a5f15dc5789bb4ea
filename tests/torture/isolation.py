"""Concurrent readers, writers and a deleter: each sees complete versions of the right model, or that they are gone.

Writers promote and delete some of their versions, too.

The proof records what was sent under a tag, and the bytes of a version begin with its tag. A deleted model is created
again under its id at once, so a call may overlap two lives of a model. The times at which calls were sent and answered
determine what a call may see; if nothing was deleted in the meantime, they determine it exactly.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.wire import convert
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, upload
from tests.processes import server_process
from tests.server.test_model_lifecycle import Lifecycle
from tests.torture.oracle import NOT_FOUND, check_ascending, fork, payload, tag_of, together
from tests.torture.proof import Figures, Proof

KIB, MIB = 1024, 1024 * 1024
MODEL_IDS = ("M", "m", "m-v000001", "quiet")
USE_WEIGHTS = (10, 10, 10, 1)
"""The latest version of a rarely used model would be evicted first if it were allowed."""

DELETION_WEIGHTS = (1, 3, 3, 1)
READERS, SLOW_READERS, WRITERS = 6, 2, 2

CACHE_MAX_ITEMS = 20
"""Few enough for many evictions; too many for readers to pin all versions except the newest."""

FLAGS = (
    f"--cache_max_items={CACHE_MAX_ITEMS}",
    f"--cache_max_bytes={256 * MIB}",
    f"--sent_version_chunk_size={64 * KIB}",
)

NARROW = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 64 * KIB),
    ("grpc.use_local_subchannel_pool", 1),
]
"""Options of a connection that buffers little for its reader, so that the server has to keep the rest."""


@dataclass(eq=False)
class Life:
    """One life of a model, from its creation to its deletion; times are infinite until they are known.

    Attributes:
        sent: When its creation was sent.
        acknowledged: When its creation was acknowledged.
        deleting: When its deletion was sent.
        deleted: When its deletion was acknowledged.
        tags: The tags of its numbers, of those that are certainly its own.
        archived: The numbers of its acknowledged archived versions, of those.
        highest: The highest acknowledged number, of those.
        highest_possible: The highest acknowledged number that may belong to it.
        promoting: The numbers whose promotion was sent when this life may have existed.
        removed: The numbers whose deletion was sent when this life may have existed.
    """

    name: str
    sent: float
    acknowledged: float = math.inf
    deleting: float = math.inf
    deleted: float = math.inf
    tags: dict[int, str] = field(default_factory=dict)
    archived: set[int] = field(default_factory=set)
    highest: int = 0
    highest_possible: int = 0
    promoting: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)


@dataclass
class Sent:
    """A version that was sent: its info, and when its create began and ended."""

    info: m.ModelVersionInfo
    began: float
    ended: float = math.inf
    number: int = 0
    is_refused: bool = False


@dataclass
class Look:
    """The state of a model when a call, or several of them, began.

    Attributes:
        began: When the first call was sent.
        life: The life that the model certainly had then.
        highest: The highest number that was acknowledged in this life.
        archived: The archived versions that were acknowledged in it.
    """

    model_id: str
    began: float
    life: Life | None
    highest: int
    archived: set[int]


class World:
    """Everything that was sent and acknowledged."""

    def __init__(self, random: Random, figures: Figures) -> None:
        self.random = random
        self.figures = figures
        self.is_over = False
        self.lives: dict[str, list[Life]] = {model_id: [] for model_id in MODEL_IDS}
        self.sent: dict[str, Sent] = {}
        self.tags_by_hash: dict[str, str] = {}
        self.creating: Counter[str] = Counter()
        self._created = 0
        self._news = asyncio.Condition()
        for name in ("acknowledged versions", "versions read", "torn", "of another model", "lost"):
            figures.count(name, 0)

    async def note_created(self) -> None:
        """Record that a version was acknowledged."""
        self.figures.count("acknowledged versions")
        async with self._news:
            self._created += 1
            self._news.notify_all()

    async def until_created(self, count: int) -> None:
        """Wait until a number of further versions were created, or the run is over."""
        target = self._created + count
        async with self._news:
            await self._news.wait_for(lambda: self._created >= target or self.is_over)

    async def end_after(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        async with self._news:
            self.is_over = True
            self._news.notify_all()

    def certain_life(self, model_id: str) -> Life | None:
        """Return the current life of a model; None while it is not known."""
        life = self.lives[model_id][-1]
        return life if life.acknowledged < math.inf and life.deleting == math.inf else None

    def look(self, model_id: str) -> Look:
        """Return the known state of a model for a call that is sent now."""
        life = self.certain_life(model_id)
        highest, archived = (life.highest, set(life.archived)) if life else (0, set())
        return Look(model_id, time.perf_counter(), life, highest, archived)

    def certainly(self, look: Look) -> Life | None:
        """Return the life that a model had from the beginning of a look until now; None if it is not known."""
        return look.life if look.life and look.life is self.certain_life(look.model_id) else None

    def possible_lives(self, model_id: str, began: float, ended: float = math.inf) -> list[Life]:
        """Return the lives that a model may have had in a period."""
        lives = []
        for life in reversed(self.lives[model_id]):
            if life.deleted <= began:
                break
            if life.sent < ended:
                lives.append(life)
        return lives

    def check_version(self, info: m.ModelVersionInfo, look: Look) -> None:
        """Check that an observed version was sent, to a life of the model that the call may have met."""
        where = f"{look.model_id} version {info.version_number}"
        sent = self.sent.get(tag_of(info))
        assert sent, f"{where} was never sent: {info}"
        expected = m.ModelVersionInfo()
        expected.CopyFrom(sent.info)
        expected.version_number = sent.number or info.version_number
        expected.creation_timestamp = info.creation_timestamp
        met = self.possible_lives(look.model_id, look.began)
        if any(info.version_number in life.promoting for life in met):
            expected.archived = info.archived or expected.archived
        assert info == expected, f"{where} is {info}, and was sent as {expected}"
        assert not sent.is_refused, f"{where} was refused, and exists: {info}"
        lives = [life for life in met if life in self.possible_lives(look.model_id, sent.began, sent.ended)]
        assert lives, f"{where} is of a deleted life: {info}; met were {met}"
        if len(lives) == 1:
            self.note_number(lives[0], info)

    def note_number(self, life: Life, info: m.ModelVersionInfo) -> None:
        """Check that no other version has the number of a version that certainly belongs to a life."""
        tag = life.tags.setdefault(info.version_number, tag_of(info))
        assert tag == tag_of(info), f"number {info.version_number} was assigned to {tag} and to {info}"

    def check_absence(self, info: m.ModelVersionInfo, look: Look) -> None:
        """Check that a listed version was allowed to disappear."""
        self.figures.count("evicted or deleted")
        life = self.certainly(look)
        if life is not None and info.version_number not in life.removed:
            assert not info.archived, f"an archived version was lost, but its model was not deleted: {info}"
            is_newest = life.highest_possible <= info.version_number and not self.creating[look.model_id]
            assert not is_newest, f"the newest version of a model was evicted: {info}"

    def check_bytes(self, data: bytes, look: Look) -> Sent:
        """Check that bytes are exactly those of one version of the model, and return this version."""
        tag = self.tags_by_hash.get(hash_of(data))
        assert tag, f"torn bytes of {look.model_id}: {data[:80]!r}, {len(data)} bytes"
        sent = self.sent[tag]
        assert sent.info.model_id == look.model_id, f"bytes of another model than {look.model_id}: {sent.info}"
        self.figures.count("versions read")
        return sent


class Creator:
    """Creates versions: a writer, or the deleter, whose versions evict others."""

    def __init__(self, world: World, client: Client, name: str) -> None:
        self._world = world
        self._client = client
        self._lifecycle = Lifecycle(client)
        self._name = name
        self._created = 0
        self._random = fork(world.random)

    async def write(self) -> None:
        while not self._world.is_over:
            size_bytes = int(self._random.uniform(1, 3 * MIB) if self._random.random() < 0.3 else self._small())
            [model_id] = self._random.choices(MODEL_IDS, USE_WEIGHTS)
            await self._create(model_id, size_bytes, archived=self._random.random() < 0.1)

    async def delete(self) -> None:
        while not self._world.is_over:
            [model_id] = self._random.choices(MODEL_IDS, USE_WEIGHTS)
            for _ in range(self._random.randrange(CACHE_MAX_ITEMS)):
                await self._create(model_id, self._small(), archived=False)
            [doomed] = self._random.choices(MODEL_IDS, DELETION_WEIGHTS)
            await delete_model(self._client, self._world, doomed)
            await create_model(self._client, self._world, doomed)

    def _small(self) -> int:
        return int(2 ** self._random.uniform(0, 14))

    async def _create(self, model_id: str, size_bytes: int, archived: bool) -> None:
        world = self._world
        look = world.look(model_id)
        info, data = self._new_version(model_id, size_bytes, archived)
        sent = world.sent[tag_of(info)] = Sent(info, look.began)
        world.tags_by_hash[info.data_hash] = tag_of(info)
        world.creating[model_id] += 1
        try:
            chunks = upload(model_id, data, archived, user_data=dict(info.user_data))
            acknowledged = await self._client.create_version(chunks)
        except grpc.aio.AioRpcError as error:
            if error.code() != NOT_FOUND or world.certainly(look):
                raise AssertionError(f"{info}: {error.code()} {error.details()}") from error
            sent.is_refused = True
        else:
            sent.number = acknowledged.version_number
            self._note(acknowledged, look)
            await world.note_created()
        finally:
            sent.ended = time.perf_counter()
            world.creating[model_id] -= 1
        if sent.number:
            await self._change(acknowledged)

    async def _change(self, info: m.ModelVersionInfo) -> None:
        """Sometimes promote or delete a version, which may be evicted by now, or belong to a later life."""
        world, dice, number = self._world, self._random.random(), info.version_number
        look = world.look(info.model_id)
        met = world.possible_lives(info.model_id, look.began)
        try:
            if dice < 0.15:
                for life in met:
                    life.promoting.add(number)
                version = await self._lifecycle.promote(number, model_id=info.model_id)
                world.check_version(convert.version_message(version.info), look)
                world.figures.count("promotions")
                certain = world.certainly(look)
                if certain is not None and number not in certain.removed:
                    certain.archived.add(number)
            elif dice < 0.25:
                for life in met:
                    life.removed.add(number)
                    life.archived.discard(number)
                await self._lifecycle.delete(number, model_id=info.model_id)
                world.figures.count("deletions of versions")
        except grpc.aio.AioRpcError as error:
            if error.code() != NOT_FOUND or (info.archived and world.certainly(look)):
                raise AssertionError(f"{info}: {error.code()} {error.details()}") from error

    def _new_version(self, model_id: str, size_bytes: int, archived: bool) -> tuple[m.ModelVersionInfo, bytes]:
        self._created += 1
        tag = f"{model_id} {self._world.lives[model_id][-1].name} {self._name} {self._created}"
        data = f"{tag}\n".encode() + payload(tag, size_bytes)
        info = m.ModelVersionInfo(
            model_id=model_id,
            archived=archived,
            data_hash=hash_of(data),
            data_size=len(data),
            user_data={"tag": tag},
        )
        return info, data

    def _note(self, info: m.ModelVersionInfo, look: Look) -> None:
        world = self._world
        world.check_version(info, look)
        for possible in world.possible_lives(look.model_id, look.began):
            possible.highest_possible = max(possible.highest_possible, info.version_number)
        life = world.certainly(look)
        if life is not None:
            assert info.version_number > look.highest, f"after number {look.highest} came {info}"
            life.highest = max(life.highest, info.version_number)
            if info.archived:
                life.archived.add(info.version_number)


async def create_model(client: Client, world: World, model_id: str) -> None:
    lives = world.lives[model_id]
    life = Life(str(len(lives)), time.perf_counter())
    lives.append(life)
    await client.create_model(model_id, life=life.name)
    life.acknowledged = time.perf_counter()


async def delete_model(client: Client, world: World, model_id: str) -> None:
    life = world.lives[model_id][-1]
    life.deleting = time.perf_counter()
    await client.delete_model(model_id)
    life.deleted = time.perf_counter()
    world.figures.count("deletions")


class Reader:
    """Lists and retrieves, and checks the replies; while a slow one reads, versions are evicted or deleted."""

    def __init__(self, world: World, client: Client, *, is_slow: bool = False) -> None:
        self._world = world
        self._client = client
        self._is_slow = is_slow
        self._random = fork(world.random)

    async def read(self) -> None:
        while not self._world.is_over:
            [model_id] = self._random.choices(MODEL_IDS, USE_WEIGHTS)
            acts = [self._read_listed, self._read_latest, self._retrieve_any_number, self._read_models]
            [act] = self._random.choices(acts, [1, 0, 0, 0] if self._is_slow else [6, 4, 4, 1])
            await act(self._world.look(model_id))

    async def _read_listed(self, look: Look) -> None:
        infos = await self._list(look)
        if infos:
            large = [info for info in infos if info.data_size >= MIB and not info.archived]
            await self.read_version(self._random.choice(large if large and self._is_slow else infos), look)

    async def _list(self, look: Look) -> Sequence[m.ModelVersionInfo]:
        try:
            infos = (await self._client.infos(look.model_id)).version_infos
        except grpc.aio.AioRpcError as error:
            self._check_not_found(error, look, is_expected=False)
            return []
        check_ascending(infos)
        for info in infos:
            self._world.check_version(info, look)
        if self._world.certainly(look):
            lost = look.archived - {info.version_number for info in infos} - self._removed(look)
            assert not lost, f"archived versions of {look.model_id} are not listed: {lost}"
        self._world.figures.count("listings")
        return infos

    def _removed(self, look: Look) -> set[int]:
        """Return the numbers of the versions whose deletion was sent."""
        return look.life.removed if look.life else set()

    async def read_version(self, info: m.ModelVersionInfo, look: Look) -> None:
        """Retrieve a version that was listed."""
        try:
            data = await self._data(look.model_id, info.version_number)
        except grpc.aio.AioRpcError as error:
            self._check_not_found(error, look, is_expected=True)
            self._world.check_absence(info, look)
            return
        sent = self._world.check_bytes(data, look)
        if self._world.certainly(look):
            assert hash_of(data) == info.data_hash, f"retrieved was {sent.info}, and listed {info}"
        elif look.life and look.life.deleted < math.inf:
            self._world.figures.count("retrievals that continued after their model was deleted")

    async def _read_latest(self, look: Look) -> None:
        try:
            [info] = (await self._client.infos(look.model_id, -1)).version_infos
            data = await self._data(look.model_id, -1)
        except grpc.aio.AioRpcError as error:
            self._check_not_found(error, look, is_expected=not look.highest or bool(self._removed(look)))
            return
        self._world.check_version(info, look)
        sent = self._world.check_bytes(data, look)
        if self._world.certainly(look) and not self._removed(look) & {info.version_number, look.highest}:
            assert info.version_number >= look.highest, f"-1 is {info}, and {look.highest} was acknowledged before"
            number = (
                sent.number or math.inf
            )  # a version that is not acknowledged yet is newer than all acknowledged ones
            assert number >= info.version_number, f"-1 gave {sent.info}, and before {info}"

    async def _retrieve_any_number(self, look: Look) -> None:
        """Retrieve a number that may be that of a version of this life or an earlier one."""
        number = self._random.randint(1, look.highest + 2 * CACHE_MAX_ITEMS)
        try:
            [info] = (await self._client.infos(look.model_id, number)).version_infos
        except grpc.aio.AioRpcError as error:
            self._check_not_found(error, look, is_expected=number not in look.archived - self._removed(look))
            return
        self._world.check_version(info, look)

    async def _read_models(self, look: Look) -> None:
        before = {model_id: self._world.certain_life(model_id) for model_id in MODEL_IDS}
        infos = (await self._client.models()).model_infos
        found = {info.model_id: info.user_data["life"] for info in infos}
        assert list(found) == sorted(found), f"models are not in order: {infos}"
        assert len(found) == len(infos), f"a model is listed twice: {infos}"
        for model_id, life in before.items():
            if life and life is self._world.certain_life(model_id):
                assert found.get(model_id) == life.name, f"{model_id} has life {life.name}, and listed was {found}"

    async def _data(self, model_id: str, number: int) -> bytes:
        """Retrieve a version; a slow reader waits after the first chunk until others are created."""
        request = m.RetrieveVersionDataRequest(model_id=model_id, version_number=number)
        chunks = []
        async for message in self._client.streamed("RetrieveVersionData", request):
            chunks.append(m.RetrieveVersionDataReplyChunk.FromString(message).data_chunk)
            if self._is_slow and len(chunks) == 1:
                await self._world.until_created(self._random.randrange(2 * CACHE_MAX_ITEMS))
        return b"".join(chunks)

    def _check_not_found(self, error: grpc.aio.AioRpcError, look: Look, *, is_expected: bool) -> None:
        """Check that a call ended with NOT_FOUND, and was allowed to."""
        may_be = is_expected or not self._world.certainly(look)
        assert error.code() == NOT_FOUND, f"{look}: {error.code()} {error.details()}"
        assert may_be, f"a version was lost, but its model was not deleted: {look}: {error.details()}"


async def check_remaining_versions(client: Client, world: World) -> None:
    """Retrieve all remaining versions at the end."""
    reader = Reader(world, client)
    for model_id in MODEL_IDS:
        look = world.look(model_id)
        infos = (await client.infos(model_id)).version_infos
        check_ascending(infos)
        removed = look.life.removed if look.life else set()
        assert look.archived - removed <= {info.version_number for info in infos}, f"lost: {look}"
        for info in infos:
            world.check_version(info, look)
            await reader.read_version(info, look)


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    world = World(random, figures)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(server_process(place / "archive", *FLAGS))
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(READERS + WRITERS + 1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=NARROW) for _ in range(SLOW_READERS)]
        slow_clients = [Client(await stack.enter_async_context(channel)) for channel in channels]
        for model_id in MODEL_IDS:
            await create_model(clients[0], world, model_id)
        creators = [Creator(world, client, str(index)) for index, client in enumerate(clients[READERS:])]
        await together(
            *[Reader(world, client).read() for client in clients[:READERS]],
            *[Reader(world, client, is_slow=True).read() for client in slow_clients],
            *[creator.write() for creator in creators[:WRITERS]],
            creators[WRITERS].delete(),
            world.end_after(rounds),
        )
        await check_remaining_versions(clients[0], world)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Let all clients work on the same models for a number of seconds."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="isolation",
    promise="Readers see complete versions, of the right model, and the latest one, while others evict and delete",
    attempt=attempt,
    unit="seconds",
    short=2,
    long=60,
    batch=20,
)
