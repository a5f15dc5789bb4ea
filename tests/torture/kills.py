"""An acknowledged archived version survives a killed process: complete, with its number and all of its metadata.

Writers store, publish, promote, tag, update and delete, and move aliases, while others read, versions are evicted, and
the server is killed at a random moment. The proof records what was sent and what was acknowledged, and compares the
archive of the next server with it. Unacknowledged changes may exist or not, but only completely, and what was observed
once stays. Only the creator of a version changes it, and only one writer moves an alias, so the order is known.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange, Version
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.wire import convert
from cogment_model_registry.wire import lifecycle as lifecycle_messages
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, status_of, upload
from tests.processes import ServerProcess, clean_environment, server_process
from tests.server.test_model_lifecycle import PRECONDITION, Lifecycle
from tests.torture.oracle import (
    NOT_FOUND,
    UNAVAILABLE,
    check_ascending,
    fork,
    going_on,
    in_round,
    payload,
    tag_of,
    together,
    until_gone,
)
from tests.torture.proof import Figures, Proof

KIB, MIB = 1024, 1024 * 1024

OWN_IDS = ("w", "w-v000001", "w.yaml", "été")
"""Each writer has its own model, which it updates, deletes and creates again under the same id."""

TEXTS = ("", "yes", "1e3", "~", "null", "2021-10-01", "line\nbreak", " 'quoted\" ", "\0\x85", "名前: [a, b]")
SHARED_MAX_BYTES = 48 * MIB
CHUNK_BYTES = 256 * KIB
FLAGS = ("--cache_max_items=12",)
"""Few enough that versions are evicted while others are promoted."""


@dataclass
class Model:
    """One life of a model, as known outside the server.

    Attributes:
        user_datas: Its possible `user_data`: the last acknowledged one, and those sent since.
        may_be_absent: Whether its creation was not acknowledged, or its deletion was sent.
        sent: The versions that were sent but neither acknowledged nor listed, by tag.
        assigned: The numbers that were assigned, including those of transient versions and of data without metadata.
        known: The archived versions that were acknowledged or listed, by number.
        unread: The numbers of those whose bytes were not read back yet.
        highest: The highest assigned number.
        settled: The highest assigned number at the last check.
        transient: The transient versions that were acknowledged by this server, by number.
        owners: The writer that created each acknowledged version.
        promoting: The transient versions whose promotion was sent, as they are after it.
        deleting: The archived versions whose deletion was sent.
        removed: The numbers of versions that were deleted.
        tags: The possible tags of each version.
        aliases: The possible targets of each alias; None if it may not exist.
    """

    model_id: str
    user_datas: list[dict[str, str]]
    may_be_absent: bool = True
    sent: dict[str, m.ModelVersionInfo] = field(default_factory=dict)
    known: dict[int, m.ModelVersionInfo] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    assigned: set[int] = field(default_factory=set)
    highest: int = 0
    settled: int = 0
    transient: dict[int, m.ModelVersionInfo] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    promoting: dict[int, m.ModelVersionInfo] = field(default_factory=dict)
    deleting: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    tags: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    aliases: dict[str, list[int | None]] = field(default_factory=dict)

    def learn(self, info: m.ModelVersionInfo, floor: int) -> None:
        """Record a version that the server has acknowledged or listed for the first time."""
        where = f"{self.model_id!r} version {info.version_number}"
        assert info.version_number > floor, f"{where} was assigned after {floor}"
        assert info.version_number not in self.assigned, f"the number of {where} was assigned before"
        sent = self.sent.pop(tag_of(info), None)
        assert sent is not None, f"{where} was never sent, or has two numbers: {info}"
        expected = m.ModelVersionInfo()
        expected.CopyFrom(sent)
        expected.version_number = info.version_number
        expected.creation_timestamp = sent.creation_timestamp or info.creation_timestamp
        assert info == expected, f"{where} was sent as {expected} and is {info}"
        self.note_number(info.version_number)
        if info.archived:
            self.known[info.version_number] = info
            self.unread.add(info.version_number)
        else:
            self.transient[info.version_number] = info

    def begin_promotion(self, number: int) -> None:
        """Record that a transient version is about to be promoted; does nothing for an archived one."""
        if number in self.transient:
            self.promoting[number] = as_archived(self.transient[number])

    def note_promotion(self, number: int) -> None:
        """Record that a version is archived, if it was transient."""
        if number in self.promoting:
            self.known[number] = self.promoting.pop(number)
            self.unread.add(number)
        self.transient.pop(number, None)

    def note_deletion(self, number: int) -> None:
        """Record that a version is gone, with the aliases that pointed to it."""
        for versions in (self.transient, self.promoting, self.known, self.tags, self.owners):
            versions.pop(number, None)
        self.unread.discard(number)
        self.deleting.discard(number)
        self.removed.add(number)
        self.aliases = {name: [None] if number in where else where for name, where in self.aliases.items()}

    def note_number(self, number: int) -> None:
        """Record a number that must not be assigned again."""
        self.assigned.add(number)
        self.highest = max(self.highest, number)


def as_archived(info: m.ModelVersionInfo) -> m.ModelVersionInfo:
    """Return a version as it is after its promotion."""
    promoted = m.ModelVersionInfo()
    promoted.CopyFrom(info)
    promoted.archived = True
    return promoted


class World:
    """Everything that was sent to the server and acknowledged by it.

    Attributes:
        models: The models that are not known to be deleted, by id.
        shared: The id of the model that all writers store into.
    """

    def __init__(self, random: Random, figures: Figures) -> None:
        self.models: dict[str, Model] = {}
        self.shared = ""
        self.is_renewing = False
        self.random = random
        self.figures = figures
        self._tags = 0
        lost = ("lost", "torn", "found but not acknowledged")
        changes = ("acknowledged promotions", "acknowledged tags", "acknowledged aliases", "acknowledged deletions")
        for name in ("kills", "kills during a start", "acknowledged versions", *changes, *lost):
            figures.count(name, 0)

    def next_tag(self) -> str:
        self._tags += 1
        return str(self._tags)

    def new_user_data(self, random: Random) -> dict[str, str]:
        return {"tag": self.next_tag(), random.choice(TEXTS): random.choice(TEXTS)}

    async def create_model(self, client: Client, model_id: str, random: Random) -> None:
        model = Model(model_id, [self.new_user_data(random)])
        self.models[model_id] = model
        await put_model(client, model_id, model.user_datas[0])
        model.may_be_absent = False

    async def update_model(self, client: Client, model: Model, random: Random) -> None:
        model.user_datas.append(self.new_user_data(random))
        await put_model(client, model.model_id, model.user_datas[-1])
        del model.user_datas[:-1]
        self.figures.count("acknowledged updates of models")

    async def delete_model(self, client: Client, model: Model) -> None:
        model.may_be_absent = True
        await client.delete_model(model.model_id)
        del self.models[model.model_id]
        self.figures.count("acknowledged deletions of models")

    async def renew_shared(self, client: Client, random: Random) -> None:
        """Let the writers store into a new model, and delete the previous one."""
        self.is_renewing = True
        old, new = self.shared, f"shared-{self.next_tag()}"
        await self.create_model(client, new, random)
        self.shared = new
        if old:
            await self.delete_model(client, self.models[old])
        self.is_renewing = False


async def put_model(client: Client, model_id: str, user_data: dict[str, str]) -> None:
    request = m.CreateOrUpdateModelRequest(model_info=m.ModelInfo(model_id=model_id, user_data=user_data))
    await client.unary("CreateOrUpdateModel", request, m.CreateOrUpdateModelReply)


# Writing.


class Fuse:
    """Decides when to kill: at a random time, or after a random number of bytes."""

    def __init__(self, random: Random) -> None:
        by_time = random.random() < 0.5
        self._seconds = random.uniform(0, 0.8) if by_time else 1.5
        self._left_bytes = 2**60 if by_time else int(2 ** random.uniform(0, 23))
        self._burnt = asyncio.Event()

    def chunks(self, messages: list[m.CreateVersionRequestChunk]) -> Iterator[m.CreateVersionRequestChunk]:
        """Yield the chunks of an upload, and count their bytes."""
        for message in messages:
            self._left_bytes -= message.ByteSize()
            if self._left_bytes < 0:
                self._burnt.set()
            yield message

    async def kill(self, server: ServerProcess) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._burnt.wait()
        except TimeoutError:
            pass
        server.kill()


class Writer:
    """Writes until the server is gone."""

    def __init__(self, world: World, client: Client, own_id: str, fuse: Fuse) -> None:
        self._world = world
        self._client = client
        self._lifecycle = Lifecycle(client)
        self._own_id = own_id
        self._alias = f"alias of {own_id}"
        self._fuse = fuse
        self._random = fork(world.random)

    async def write(self) -> None:
        while True:
            await self._act()

    async def _act(self) -> None:
        world, random = self._world, self._random
        own = world.models.get(self._own_id)
        if own is None:
            await world.create_model(self._client, self._own_id, random)
            return
        dice = random.random()
        if dice < 0.02:
            await world.delete_model(self._client, own)
        elif dice < 0.1:
            await world.update_model(self._client, own, random)
        elif not world.is_renewing and (dice < 0.11 or self._shared_is_full()):
            await world.renew_shared(self._client, random)
        else:
            shared = world.models.get(world.shared)
            model = shared if shared and random.random() < 0.6 else own
            numbers = [number for number, owner in model.owners.items() if owner == self._own_id]
            if numbers and random.random() < 0.6:
                await self._change_version(model, random.choice([random.choice(numbers), numbers[-1]]))
            else:
                await self._create_version(model)

    async def _change_version(self, model: Model, number: int) -> None:
        """Promote, tag or delete one of its versions, or point its alias to it."""
        changes = [self._promote, self._promote, self._tag, self._tag, self._move_alias, self._move_alias, self._delete]
        was_transient = number in model.transient
        try:
            await self._random.choice(changes)(model, number)
        except grpc.aio.AioRpcError as error:
            if error.code() != NOT_FOUND or not (model.may_be_absent or was_transient):
                raise
            # The model is being deleted, or the version was evicted.
            if not model.may_be_absent:
                model.note_deletion(number)
                self._world.figures.count("evicted before they were changed")

    async def _promote(self, model: Model, number: int) -> None:
        model.begin_promotion(number)
        version = await self._lifecycle.promote(number, model_id=model.model_id)
        model.note_promotion(number)
        assert convert.version_message(version.info) == model.known[number], f"promoted was {model.known[number]}"
        self._check_tags(model, version)
        self._world.figures.count("acknowledged promotions")

    async def _tag(self, model: Model, number: int) -> None:
        tags = {"tag": self._world.next_tag()}
        model.tags.setdefault(number, [{}]).append(tags)
        version = await self._lifecycle.update(number, AnnotationChange(tags), model.model_id)
        model.tags[number] = [tags]
        self._check_tags(model, version)
        self._world.figures.count("acknowledged tags")

    def _check_tags(self, model: Model, version: Version) -> None:
        possible = model.tags.get(version.number, [{}])
        assert version.tags in possible, f"the tags of {version} are none of {possible}"

    async def _move_alias(self, model: Model, number: int) -> None:
        where = model.aliases.setdefault(self._alias, [None])
        target = None if where[0] and self._random.random() < 0.1 else number
        where.append(target)
        if target:
            model.begin_promotion(target)
        aliases = await self._lifecycle.set_aliases(AliasChange(self._alias, target), model_id=model.model_id)
        model.aliases[self._alias] = [target]
        if target:
            model.note_promotion(target)
        found = {alias.name: alias.version_number for alias in aliases}
        assert found.get(self._alias) == target, f"{self._alias} was moved to {target}; the reply has {found}"
        self._world.figures.count("acknowledged aliases")

    async def _delete(self, model: Model, number: int) -> None:
        has_alias = model.aliases.get(self._alias) == [number]
        force = has_alias and self._random.random() < 0.5
        if has_alias and not force:
            code = await status_of(self._lifecycle.delete(number, model_id=model.model_id))
            assert code in (PRECONDITION, UNAVAILABLE, NOT_FOUND), f"a deletion of a version with an alias is {code}"
            return
        if number in model.known:
            model.deleting.add(number)
        if has_alias:
            model.aliases[self._alias].append(None)
        await self._lifecycle.delete(number, force=force, model_id=model.model_id)
        model.note_deletion(number)
        self._world.figures.count("acknowledged deletions")

    def _shared_is_full(self) -> bool:
        shared = self._world.models.get(self._world.shared)
        return shared is None or sum(info.data_size for info in shared.known.values()) > SHARED_MAX_BYTES

    async def _create_version(self, model: Model) -> None:
        data, info = self._new_version(model.model_id)
        model.sent[tag_of(info)] = info
        floor = model.highest
        fields = {"user_data": dict(info.user_data), "creation_timestamp": info.creation_timestamp}
        chunks = upload(model.model_id, data, info.archived, CHUNK_BYTES, **fields)
        try:
            acknowledged = await self._client.create_version(self._fuse.chunks(chunks))
        except grpc.aio.AioRpcError as error:
            if error.code() == NOT_FOUND and model.may_be_absent:
                return
            raise
        model.learn(acknowledged, floor)
        model.owners[acknowledged.version_number] = self._own_id
        tier = "acknowledged versions" if info.archived else "acknowledged transient versions"
        self._world.figures.count(tier)

    def _new_version(self, model_id: str) -> tuple[bytes, m.ModelVersionInfo]:
        random = self._random
        user_data = self._world.new_user_data(random)
        data = payload(user_data["tag"], new_size_bytes(random))
        info = m.ModelVersionInfo(
            model_id=model_id,
            archived=random.random() < 0.6,
            data_hash=hash_of(data),
            data_size=len(data),
            user_data=user_data,
            creation_timestamp=random.randrange(1, 2**62) if random.random() < 0.3 else 0,
        )
        return data, info


async def read(client: Client, world: World) -> None:
    """Retrieve listed versions until the server is gone; versions are promoted and deleted in the meantime."""
    random = fork(world.random)
    while True:
        model = random.choice([*world.models.values(), None])
        if model is None:
            await asyncio.sleep(0.01)  # there may be no model yet
            continue
        may_be_absent = model.may_be_absent  # the reply may arrive after the one to a later creation
        try:
            infos = (await client.infos(model.model_id)).version_infos
            if infos:
                await read_one(client, model, random.choice(infos))
                world.figures.count("retrievals in the meantime")
        except grpc.aio.AioRpcError as error:
            if error.code() != NOT_FOUND or not (may_be_absent or model.may_be_absent):
                raise


async def read_one(client: Client, model: Model, info: m.ModelVersionInfo) -> None:
    """Retrieve a version, which may be gone only if it is transient or was deleted."""
    number = info.version_number
    try:
        data = await client.data(model.model_id, number)
    except grpc.aio.AioRpcError as error:
        may_be_gone = number in model.deleting | model.removed or number not in model.known
        if error.code() != NOT_FOUND or not (may_be_gone or model.may_be_absent):
            raise
        return
    assert hash_of(data) == info.data_hash or model.may_be_absent, f"{info} has other bytes"


def new_size_bytes(random: Random) -> int:
    """Return a size from 0 to 8 MiB; most sizes are small."""
    return min(int(2 ** random.triangular(0, 23.5, 9)) - 1, 8 * MIB)


async def write_until_killed(server: ServerProcess, world: World) -> None:
    fuse = Fuse(world.random)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.port)) for _ in OWN_IDS]
        writers = [Writer(world, client, own_id, fuse) for client, own_id in zip(clients, OWN_IDS, strict=True)]
        works = [writer.write() for writer in writers] + [read(client, world) for client in clients[:2]]
        async with going_on(*[until_gone(server, work) for work in works]):
            await fuse.kill(server)
    world.figures.count("kills")


@dataclass(frozen=True)
class Place:
    """Where the archive of the servers is.

    Attributes:
        folder: The archive directory; the directory of the catalog of an archive in an object store.
        check: Checks what the archive has against what is known.
        flags: More flags of the servers.
        environment: More variables of the servers.
    """

    folder: Path
    check: Callable[[World], Awaitable[None]]
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def server(self, *flags: str) -> AbstractContextManager[ServerProcess]:
        """Return a context manager with a server."""
        # Of a Python of its own, since how long its start takes says when another one is killed.
        return server_process(self.folder, *self.flags, *flags, environment=dict(self.environment), is_new=True)


def kill_a_start(place: Place, seconds: float) -> None:
    """Start a server, and kill it after a time that may be too short for it to serve."""
    command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", "--port=0"]
    flag = "catalog_dir" if place.flags else "archive_dir"
    command += ["--host=127.0.0.1", f"--{flag}={place.folder}", *place.flags]
    environment = {**clean_environment(), **place.environment}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()


# Comparing.


async def check(client: Client, world: World, place: Place, *, all_bytes: bool) -> None:
    """Compare what the server has with what was sent and acknowledged."""
    await check_models(client, world)
    for model in world.models.values():
        await check_versions(client, model, world.figures)
        await check_annotations(Lifecycle(client), model)
        await together(*[check_bytes(client, model, part) for part in parts_to_read(model, all_bytes)])
        world.figures.count("versions read back", len(model.known if all_bytes else model.unread))
        model.unread.clear()
    await place.check(world)
    for model in world.models.values():
        model.settled = model.highest
    shared = [model_id for model_id in world.models if model_id.startswith("shared-")]
    world.shared = world.random.choice(shared) if shared else ""
    world.is_renewing = False


async def check_models(client: Client, world: World) -> None:
    listed = {info.model_id: dict(info.user_data) for info in (await client.models()).model_infos}
    for model_id, user_data in listed.items():
        assert model_id in world.models, f"{model_id!r} was deleted, and still exists"
        model = world.models[model_id]
        assert user_data in model.user_datas, f"{model_id!r} has {user_data} and not one of {model.user_datas}"
        model.user_datas = [user_data]
    for model in list(world.models.values()):
        if model.model_id not in listed:
            assert model.may_be_absent, f"{model.model_id!r} was acknowledged, and is lost"
            del world.models[model.model_id]
        model.may_be_absent = False


async def check_versions(client: Client, model: Model, figures: Figures) -> None:
    listed = await listed_versions(client, model.model_id)
    check_ascending(listed)
    by_number = {info.version_number: info for info in listed}
    for number, info in [*model.known.items()]:
        if number in model.deleting and number not in by_number:
            model.note_deletion(number)
            continue
        assert number in by_number, f"{model.model_id!r} version {number} was acknowledged, and is lost: {info}"
        assert by_number[number] == info, f"acknowledged was {info}, and now it is {by_number[number]}"
    for number in sorted(by_number.keys() - model.known.keys()):
        info = by_number[number]
        assert info.archived, f"a transient version survived: {info}"
        assert number not in model.removed, f"a deleted version exists again: {info}"
        if number in model.promoting:
            assert info == model.promoting[number], f"promoted was {model.promoting[number]}, and now it is {info}"
            model.note_promotion(number)
        else:
            model.learn(info, model.settled)
        figures.count("found but not acknowledged")
    model.sent.clear()
    model.promoting.clear()
    model.deleting.clear()
    for number in [*model.transient]:
        model.transient.pop(number)
        model.owners.pop(number, None)


async def check_annotations(lifecycle: Lifecycle, model: Model) -> None:
    """Compare what the second service shows of a model: the same versions, with the expected tags and aliases."""
    found: dict[int, Version] = {}
    token = ""
    while True:
        reply = await lifecycle.find(model_id=model.model_id, page_token=token)
        found |= {each.number: each for each in map(lifecycle_messages.version_from_message, reply.versions)}
        token = reply.next_page_token
        if not token:
            break
    listed = {number: convert.version_message(version.info) for number, version in found.items()}
    assert listed == model.known, f"a search finds {listed}, and not {model.known}"
    for number, version in found.items():
        possible = model.tags.get(number, [{}])
        assert version.tags in possible, f"the tags of {version} are none of {possible}"
        model.tags[number] = [dict(version.tags)]
    [summary] = (await lifecycle.models(model.model_id)).models
    aliases = {alias.alias: alias.version_number for alias in summary.aliases}
    for name, number in aliases.items():
        assert name in found[number].aliases, f"{name} points to version {number}, which is {found.get(number)}"
    assert sum(len(version.aliases) for version in found.values()) == len(aliases), f"{found} do not have {aliases}"
    for name in aliases.keys() | model.aliases.keys():
        possible_targets = model.aliases.get(name, [None])
        assert aliases.get(name) in possible_targets, f"{name} points to {aliases.get(name)}, not to {possible_targets}"
        model.aliases[name] = [aliases.get(name)]


async def listed_versions(client: Client, model_id: str) -> list[m.ModelVersionInfo]:
    """Return all versions of a model, page by page."""
    infos: list[m.ModelVersionInfo] = []
    handle = ""
    while page := (await client.infos(model_id, handle=handle)).version_infos:
        infos += page
        handle = str(page[-1].version_number + 1)
    return infos


def parts_to_read(model: Model, all_bytes: bool) -> list[list[m.ModelVersionInfo]]:
    """Return the versions to be read back, in parts to be read concurrently."""
    infos = [info for number, info in model.known.items() if all_bytes or number in model.unread]
    return [infos[start::4] for start in range(4)]


async def check_bytes(client: Client, model: Model, infos: list[m.ModelVersionInfo]) -> None:
    for info in infos:
        where = f"{model.model_id!r} version {info.version_number}"
        try:
            data = await client.data(model.model_id, info.version_number)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"{where} cannot be retrieved: {error.code()} {error.details()}; {info}") from error
        assert hash_of(data) == info.data_hash, f"{where} is torn: {len(data)} bytes; {info}"


def check_files(archive: Path, world: World) -> None:
    """Check that the archive has the files of known versions, data that a kill left without metadata, and no others."""
    for path in archive.rglob("*"):
        if path.is_dir():
            assert path.parent == archive, f"left over: {path}"
            assert path.name in world.models, f"left over: {path}"
        elif path.parent != archive or path.name not in {".lock", *layout.CATALOG_NAMES}:
            check_file(path, world.models[path.parent.name], world.figures)


def check_file(path: Path, model: Model, figures: Figures) -> None:
    if path.name in (f"{model.model_id}.yaml", ".high_water_mark"):
        return
    number_text = path.stem.removeprefix(f"{model.model_id}-v")
    assert number_text.isdecimal(), f"left over: {path}"
    number = int(number_text)
    assert number not in model.removed, f"left over of a deleted version: {path}"
    assert path.suffix in ([".yaml", ".data"] if number in model.known else [".data"]), f"left over: {path}"
    if number not in model.assigned:
        assert number > model.settled, f"left over: {path}"
        model.note_number(number)
        figures.count("data files without metadata")


# The proof.


async def kill_servers(place: Place, rounds: int, random: Random, figures: Figures) -> None:
    """Kill a server so many times, on one archive, and compare what it has with what was acknowledged."""
    world = World(random, figures)
    start_seconds = 1.0
    for number in range(rounds):
        with in_round(number):
            if random.random() < 0.25:
                kill_a_start(place, random.uniform(0.3, 1.1) * start_seconds)
                figures.count("kills during a start")
            began = time.perf_counter()
            with place.server(*FLAGS) as server:
                start_seconds = time.perf_counter() - began
                async with connected(server.port) as client:
                    await check(client, world, place, all_bytes=False)
                await write_until_killed(server, world)
    with in_round(rounds), place.server() as server:
        async with connected(server.port) as client:
            await check(client, world, place, all_bytes=True)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Kill a server a number of times, on one archive."""
    archive = place / "archive"

    async def check_archive(world: World) -> None:
        check_files(archive, world)

    asyncio.run(kill_servers(Place(archive, check_archive), rounds, random, figures))


PROOF = Proof(
    name="kills",
    promise="An acknowledged archived version survives when the process is killed, and nothing is incomplete",
    attempt=attempt,
    unit="kills",
    short=2,
    long=200,
    batch=10,
)
