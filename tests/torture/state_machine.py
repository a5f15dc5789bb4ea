"""The nine calls in any order, compared with a plain model of the registry; `lifecycle_machine` adds the others.

Hypothesis generates sequences of valid and invalid calls, with clean restarts and crashes of the server between them. A
model of the registry in a few dictionaries predicts the status and the reply of each call, to the last byte, as the
documentation of the API and `docs/guarantees.md` describe them; it implements the rule of eviction independently. Only
the numbers that a crash skips are not predicted.

The server is a real process with a cache so small that it evicts constantly. It serves many sequences one after the
other; each begins by deleting what the previous one left.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header, next_version
from tests.processes import ServerProcess
from tests.torture.proof import Figures
from tests.waiting import eventually

OK, INVALID, MISSING = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE

STEPS = 40
_ITEMS_MAX = 4
_BYTES_MAX = 6000
_CHUNK_BYTES = 700
USER_DATA_MAX_BYTES = 60
_LISTED_MAX = 8
_FLAGS = (
    f"--cache_max_items={_ITEMS_MAX}",
    f"--cache_max_bytes={_BYTES_MAX}",
    f"--sent_version_chunk_size={_CHUNK_BYTES}",
    f"--user_data_max_bytes={USER_DATA_MAX_BYTES}",
    f"--request_max_items={_LISTED_MAX}",
)
_SKIPPED_MAX = 128
"""The largest number of numbers that a crash may skip."""

GOOD_IDS = ("m", "m-v000001", "été.yaml")
BAD_IDS = ("", "..", "m/../m", "m\0", ".lock", "m%2f", "m ", "e\u0301")
_SIZES_BYTES = (0, 1, 10, _CHUNK_BYTES - 1, _CHUNK_BYTES, _CHUNK_BYTES + 1, 1500, 3000, _BYTES_MAX - 1, _BYTES_MAX)

Chunk = m.CreateVersionRequestChunk | bytes
Reply = Any


def user_data_bytes(user_data: dict[str, str]) -> int:
    """Return the size of the keys and values in bytes of UTF-8."""
    return len("".join([*user_data.keys(), *user_data.values()]).encode())


# The model.


@dataclass
class Version:
    """A version that can be retrieved."""

    info: m.ModelVersionInfo
    data: bytes
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    aliases: set[str] = field(default_factory=set)
    revision: int = 1


@dataclass
class Model:
    """A model, with its versions in the order of their numbers; aliases have the number and the revision of each."""

    user_data: dict[str, str]
    versions: dict[int, Version] = field(default_factory=dict)
    last_number: int = 0
    may_skip: int = 0
    aliases: dict[str, tuple[int, int]] = field(default_factory=dict)
    alias_revision: int = 0

    def resolve(self, number: int) -> Version | None:
        """Return a version by number, or the n-th from the last by -n."""
        if number < 0:
            ordered = list(self.versions.values())
            return ordered[number] if -number <= len(ordered) else None
        return self.versions.get(number)


@dataclass
class Refused(Exception):
    """The predicted status of a call that must not succeed."""

    code: grpc.StatusCode


class Expected:
    """The expected state of the registry: models, and the order in which transient versions were used."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.used: list[tuple[str, int]] = []  # transient versions, least recently used first

    @property
    def transient_bytes(self) -> int:
        return sum(len(self.models[model_id].versions[number].data) for model_id, number in self.used)

    @property
    def versions_count(self) -> int:
        return sum(len(model.versions) for model in self.models.values())

    def find(self, model_id: str) -> Model:
        """Return the model of a call."""
        if model_id in BAD_IDS:
            raise Refused(INVALID)
        if model_id not in self.models:
            raise Refused(MISSING)
        return self.models[model_id]

    def put(self, model_id: str, user_data: dict[str, str]) -> None:
        """Create a model, or replace its `user_data`."""
        if model_id in BAD_IDS or user_data_bytes(user_data) > USER_DATA_MAX_BYTES:
            raise Refused(INVALID)
        self.models.setdefault(model_id, Model({})).user_data = user_data

    def delete(self, model_id: str) -> None:
        """Delete a model with its versions."""
        self.find(model_id)
        del self.models[model_id]
        self.used = [key for key in self.used if key[0] != model_id]

    def use(self, model_id: str, number: int) -> None:
        """Record that a version was retrieved."""
        key = (model_id, number)
        if key in self.used:
            self.used.remove(key)
            self.used.append(key)

    def evict_one(self, amounts: dict[str, int]) -> None:
        """Evict the least recently used version of the model that has most; the newest of each model last."""
        old = [key for key in self.used if key[1] != max(self.models[key[0]].versions)]
        most = max((amounts[model_id] for model_id, _ in old), default=0)
        model_id, number = next((key for key in old if amounts[key[0]] == most), self.used[0])
        del self.models[model_id].versions[number]
        self.used.remove((model_id, number))

    def make_room(self, model_id: str, size_bytes: int) -> None:
        """Evict until the bytes of an upload fit; they count for its model."""
        while self.transient_bytes + size_bytes > _BYTES_MAX:
            amounts = Counter({model_id: size_bytes})
            for key in self.used:
                amounts[key[0]] += len(self.models[key[0]].versions[key[1]].data)
            self.evict_one(amounts)

    def add(self, version: Version) -> None:
        """Record a created version."""
        info = version.info
        model = self.models[info.model_id]
        model.versions[info.version_number] = version
        model.last_number, model.may_skip = info.version_number, 0
        if not info.archived:
            # The new one is already the newest of its model, and must not be evicted itself.
            while len(self.used) >= _ITEMS_MAX:
                self.evict_one(Counter([info.model_id, *(model_id for model_id, _ in self.used)]))
            self.used.append((info.model_id, info.version_number))

    def archive(self, model_id: str, version: Version) -> None:
        """Record that a transient version was promoted."""
        promoted = m.ModelVersionInfo()
        promoted.CopyFrom(version.info)
        promoted.archived = True
        version.info = promoted
        self.used.remove((model_id, promoted.version_number))

    def remove(self, model_id: str, version: Version) -> None:
        """Record that a version was deleted."""
        key = (model_id, version.info.version_number)
        del self.models[model_id].versions[version.info.version_number]
        self.used = [each for each in self.used if each != key]

    def forget_transient(self) -> None:
        """Record that the process ended."""
        for model_id, number in self.used:
            del self.models[model_id].versions[number]
        self.used.clear()

    def receive(self, chunks: Sequence[Chunk]) -> tuple[m.ModelVersionInfo, bytes]:
        """Return the header and the bytes of an upload if it must succeed, after evicting what it needs."""
        declared = self.check_header(chunks[0] if chunks else b"\xff")
        data, wanted_bytes = b"", declared.data_size
        for chunk in chunks[1:]:
            if isinstance(chunk, bytes) or chunk.WhichOneof("msg") != "body":
                raise Refused(INVALID)
            data += chunk.body.data_chunk
            if len(data) > declared.data_size:
                raise Refused(INVALID)
            if not declared.archived and data and wanted_bytes:
                self.make_room(declared.model_id, wanted_bytes)  # less than a slab is allocated at once
                wanted_bytes = 0
        if len(data) < declared.data_size or declared.data_hash not in ("", hash_of(data)):
            raise Refused(INVALID)
        return declared, data

    def check_header(self, chunk: Chunk) -> m.ModelVersionInfo:
        """Return the declared version of an upload, if its header must be accepted."""
        if isinstance(chunk, bytes) or not chunk.header.HasField("version_info"):
            raise Refused(INVALID)
        declared = chunk.header.version_info
        is_hash = declared.data_hash == "" or len(declared.data_hash) == len(hash_of(b""))
        if user_data_bytes(dict(declared.user_data)) > USER_DATA_MAX_BYTES or declared.data_size >= 2**63:
            raise Refused(INVALID)
        if not is_hash:
            raise Refused(INVALID)
        self.find(declared.model_id)
        if declared.data_size > (2**60 if declared.archived else _BYTES_MAX):
            raise Refused(EXHAUSTED)
        return declared


# Generated values.

ids = st.sampled_from([*GOOD_IDS * 8, *BAD_IDS])
texts = st.sampled_from(["", "yes", "1e3", "~", "é\u2028", "a: b\n", "\0", '"', "x" * 50]) | st.text(max_size=5)
user_datas = st.dictionaries(texts, texts, max_size=2)
counts = st.sampled_from([0, 0, 1, 2, 3, 2**32 - 1])
handles = st.sampled_from(["", "", "0", "1", "2", "003", "9" * 30, "-1", "+1", " 1", "1.", "٣", "x", "@x"])
numbers = st.sampled_from([-1, -1, -2, 0, 2**31 - 1, -(2**31)]) | st.integers(-5, 15)


@st.composite
def uploads(draw: st.DrawFn, bad: bool) -> list[Chunk]:
    """Return the chunks of an upload."""
    size_bytes = draw(st.sampled_from(_SIZES_BYTES))
    data = draw(st.binary(min_size=1, max_size=4)) * size_bytes
    data = data[:size_bytes]
    fields: dict[str, Any] = {
        "data_hash": draw(st.sampled_from(["", hash_of(data)])),
        "creation_timestamp": draw(st.sampled_from([0, 0, 1, 907957639, 2**64 - 1])),
        "user_data": draw(st.dictionaries(texts, st.just("x"), max_size=2))
        if bad
        else {"key": draw(st.text(max_size=3))},
        "version_number": draw(st.integers(0, 20)),
    }
    cuts = sorted(draw(st.lists(st.integers(0, size_bytes), max_size=3)))
    pieces = [body(data[start:end]) for start, end in zip([0, *cuts], [*cuts, size_bytes], strict=True)]
    first = header(draw(ids if bad else st.sampled_from(GOOD_IDS)), size_bytes, draw(st.booleans()), **fields)
    return draw(corrupted(first, pieces)) if bad else [first, *pieces]


@st.composite
def corrupted(draw: st.DrawFn, first: m.CreateVersionRequestChunk, pieces: Sequence[Chunk]) -> list[Chunk]:
    """Return the chunks of an upload with one error."""
    chunks: list[Chunk] = [first, *pieces]
    info = first.header.version_info
    wrong = draw(st.sampled_from(["field", "chunk", "missing", "nothing"]))
    if wrong == "field":
        size = draw(st.sampled_from([0, 1, info.data_size + 1, _BYTES_MAX + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]))
        info.data_size = draw(st.sampled_from([size, info.data_size]))
        info.data_hash = draw(st.sampled_from([hash_of(b"other"), "x", hash_of(b"")[:-2], "é", info.data_hash]))
    elif wrong == "chunk":
        odd: list[Chunk] = [
            first,
            m.CreateVersionRequestChunk(),
            body(b"more"),
            body(bytes(_BYTES_MAX)),
            b"\xff",
            b"\x0a\x00",
        ]
        chunks.insert(draw(st.integers(0, len(chunks))), draw(st.sampled_from(odd)))
    elif wrong == "missing":
        del chunks[draw(st.integers(0, len(chunks) - 1)) :]
    return chunks


# The server.


class World:
    """A server process and a client of it, for many sequences of calls."""

    def __init__(self, place: Path, runner: asyncio.Runner, figures: Figures) -> None:
        self._archive_dir = place / "archive"
        self.runner = runner
        self.figures = figures
        self._stack = AsyncExitStack()
        self.start()

    def start(self) -> None:
        """Start the server."""
        self.process = ServerProcess(self._archive_dir, *_FLAGS)
        self.client: Client = self.runner.run(self._stack.enter_async_context(connected(self.process.port)))

    def end(self, *, kill: bool) -> None:
        """End the server, cleanly or by a crash, and check that it logged no errors."""
        if kill:
            self.process.kill()
        else:
            code = self.process.stop()
            assert code == 0, f"the server ended with {code}: {self.process.lines[-20:]}"
        errors = [line for line in self.process.lines if "[error" in line or "Traceback" in line]
        assert not errors, f"the server logged errors: {errors}"

    def close(self) -> None:
        """Stop the server, and close the client."""
        self.process.kill()
        self.runner.run(self._stack.aclose())

    def do(self, work: Coroutine[Any, Any, Reply]) -> Reply:
        """Return the reply of a call, or the status that refuses it."""
        self.figures.count("calls")
        try:
            return self.runner.run(work)
        except grpc.RpcError as error:
            return error.code()

    async def statuses(self, **wanted: int) -> None:
        """Wait until the status has certain values."""
        texts = {name: str(value) for name, value in wanted.items()}

        async def has_values() -> bool:
            return await self.client.status(*texts) == texts

        await eventually(has_values, lambda: f"the status must be {texts}")


async def _end_of(watch: Any) -> grpc.StatusCode:
    """Return the status of a watch that sends nothing more."""
    try:
        async with asyncio.timeout(20):
            message = await watch.read()
    except grpc.aio.AioRpcError:
        message = grpc.aio.EOF
    assert message is grpc.aio.EOF, f"the watch sent {message!r} instead of ending"
    code: grpc.StatusCode = await watch.code()
    return code


class RegistryMachine(RuleBasedStateMachine):
    """One sequence of calls."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._expected = Expected()
        self._watches: list[tuple[str, Any]] = []
        self._restarts_left = 0

    def _check(self, reply: Reply, expected: Reply) -> None:
        assert reply == expected, f"the reply was {reply!r}, and must be {expected!r}"

    def _model(self, model_id: str) -> Model | grpc.StatusCode:
        try:
            return self._expected.find(model_id)
        except Refused as refusal:
            return refusal.code

    # Models.

    @initialize(restarts=st.sampled_from([0, 0, 0, 1]), model_ids=st.sampled_from([GOOD_IDS, GOOD_IDS, GOOD_IDS[:1]]))
    def begin(self, restarts: int, model_ids: Sequence[str]) -> None:
        """Delete all models, and create some."""
        self._restarts_left = restarts
        self._world.figures.count("sequences")
        for info in self._world.do(self._world.client.models()).model_infos:
            self._check(self._world.do(self._world.client.delete_model(info.model_id)), None)
        self._world.runner.run(self._world.statuses(models=0, versions=0, transient_bytes=0, uploads=0, watchers=0))
        for model_id in model_ids:
            self.create_or_update_model(model_id, {})

    @rule(model_id=ids, user_data=user_datas)
    def create_or_update_model(self, model_id: str, user_data: dict[str, str]) -> None:
        expected = None
        try:
            self._expected.put(model_id, user_data)
        except Refused as refusal:
            expected = refusal.code
        self._check(self._world.do(self._world.client.create_model(model_id, **user_data)), expected)

    @rule(model_id=ids)
    def delete_model(self, model_id: str) -> None:
        expected = None
        try:
            self._expected.delete(model_id)
        except Refused as refusal:
            expected = refusal.code
        self._check(self._world.do(self._world.client.delete_model(model_id)), expected)
        self._end_watches(MISSING, [watch for watch in self._watches if watch[0] == model_id and expected is None])

    @rule(count=counts, handle=handles)
    def list_models(self, count: int, handle: str) -> None:
        reply = self._world.do(self._world.client.models(count=count, handle=handle))
        self._check(reply, self._models_page(sorted(self._expected.models), count, handle))

    @rule(model_ids=st.lists(ids, min_size=1, max_size=_LISTED_MAX + 1), count=counts, handle=handles)
    def get_models(self, model_ids: list[str], count: int, handle: str) -> None:
        expected = self._models_page(model_ids, count, handle)
        if any(model_id in BAD_IDS for model_id in model_ids) or len(model_ids) > _LISTED_MAX:
            expected = INVALID
        elif expected != INVALID and not self._expected.models.keys() >= set(model_ids):
            expected = MISSING
        self._check(self._world.do(self._world.client.models(*model_ids, count=count, handle=handle)), expected)

    def _models_page(self, model_ids: Sequence[str], count: int, handle: str) -> Reply:
        if handle and not (handle.isascii() and handle.isdigit()):
            return INVALID
        page = model_ids[int(handle or 0) :][: count or None]
        next_handle = str(int(handle or 0) + len(page)) if page else handle or "0"
        models = [(model_id, self._expected.models.get(model_id, Model({}))) for model_id in page]
        infos = [m.ModelInfo(model_id=model_id, user_data=model.user_data) for model_id, model in models]
        return m.RetrieveModelsReply(model_infos=infos, next_model_handle=next_handle)

    # Versions.

    @precondition(lambda self: self._expected.models)
    @rule(chunks=uploads(bad=False), which=st.integers(0, 2))
    def create_version(self, chunks: list[Chunk], which: int) -> None:
        model_ids = sorted(self._expected.models)
        first = chunks[0]
        assert isinstance(first, m.CreateVersionRequestChunk)
        first.header.version_info.model_id = model_ids[which % len(model_ids)]
        self._upload(chunks)

    # The most common calls have more than one rule, since all rules are equally likely.

    @precondition(lambda self: self._expected.models)
    @rule(chunks=uploads(bad=False), which=st.integers(0, 2))
    def create_version_again(self, chunks: list[Chunk], which: int) -> None:
        self.create_version(chunks, which)

    @precondition(lambda self: self._expected.models)
    @rule(
        steps=st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from((1, 10, 1500)), st.integers(0, _ITEMS_MAX - 1), st.booleans()),
            min_size=3,
            max_size=8,
        )
    )
    def publish_and_retrieve(self, steps: list[tuple[int, int, int, bool]]) -> None:
        """Fill the cache, and use some versions in it, so that others are evicted first."""
        model_ids = sorted(self._expected.models)
        for which, size, used, retrieves in steps:
            model_id = model_ids[which % len(model_ids)]
            if retrieves and self._expected.used:
                self._retrieve(*self._expected.used[used % len(self._expected.used)])
            self._upload([header(model_id, size), body(bytes(size))])

    @rule(chunks=uploads(bad=True))
    def create_bad_version(self, chunks: list[Chunk]) -> None:
        self._upload(chunks)

    def _upload(self, chunks: list[Chunk]) -> None:
        began_ns = time.time_ns()
        reply = self._world.do(self._world.client.create_version_to_the_end(chunks))
        try:
            declared, data = self._expected.receive(chunks)
        except Refused as refusal:
            self._world.figures.count("uploads refused")
            self._check(reply, refusal.code)
            return
        assert isinstance(reply, m.ModelVersionInfo), f"a valid upload was refused: {reply}"
        model = self._expected.models[declared.model_id]
        number = reply.version_number
        skipped = number - model.last_number - 1
        assert 0 <= skipped <= model.may_skip, f"number {number} after {model.last_number}"
        created_ns = reply.creation_timestamp
        assert declared.creation_timestamp or began_ns <= created_ns <= time.time_ns(), f"created at {created_ns}"
        declared.version_number = number
        declared.data_hash = hash_of(data)
        declared.creation_timestamp = declared.creation_timestamp or created_ns
        self._check(reply, declared)
        self._expected.add(Version(reply, data))
        self._world.figures.count("versions")
        for model_id, watch in self._watches:
            if model_id == reply.model_id:
                self._check(self._world.do(next_version(watch)), reply)

    @rule(model_id=st.sampled_from(GOOD_IDS), archived=st.booleans(), size=st.sampled_from(_SIZES_BYTES[2:]))
    def cancel_upload(self, model_id: str, archived: bool, size: int) -> None:
        """Cancel an upload after some of its bytes have arrived; with all of them, it may be completed already."""
        if model_id not in self._expected.models:
            return
        if not archived:
            self._expected.make_room(model_id, size)
        self._world.figures.count("uploads cancelled")
        self._world.do(self._cancel_upload(header(model_id, size, archived), body(b"x")))

    async def _cancel_upload(self, *chunks: m.CreateVersionRequestChunk) -> None:
        info = chunks[0].header.version_info
        call = self._world.client.uploading()
        for chunk in chunks:
            await call.write(chunk.SerializeToString())
        kept_bytes, items = self._expected.transient_bytes, len(self._expected.used)
        arrived_bytes = kept_bytes + (0 if info.archived else info.data_size)
        await self._world.statuses(uploads=1, transient_bytes=arrived_bytes, transient_versions=items)
        call.cancel()
        await self._world.statuses(uploads=0, transient_bytes=kept_bytes, transient_versions=items)

    @rule(model_id=ids, count=counts, handle=handles)
    def list_versions(self, model_id: str, count: int, handle: str) -> None:
        reply = self._world.do(self._world.client.infos(model_id, count=count, handle=handle))
        model = self._model(model_id)
        if handle and not (handle.isascii() and handle.isdigit()):
            self._check(reply, INVALID)
        elif isinstance(model, Model):
            infos = [version.info for number, version in model.versions.items() if number >= int(handle or 0)]
            page = infos[: count or None]
            next_handle = str(page[-1].version_number + 1) if page else handle or "0"
            self._check(reply, m.RetrieveVersionInfosReply(version_infos=page, next_version_handle=next_handle))
        else:
            self._check(reply, model)

    @rule(model_id=ids, wanted=st.lists(numbers, min_size=1, max_size=_LISTED_MAX + 1), count=counts)
    def get_versions(self, model_id: str, wanted: list[int], count: int) -> None:
        model = self._model(model_id)
        if isinstance(model, Model) and len(wanted) <= _LISTED_MAX:
            wanted_versions = [model.resolve(number) for number in wanted]
            found = [version.info for version in wanted_versions if version]
            if len(found) == len(wanted):
                self._check_pages(model_id, wanted, found, count)
                return
            model = MISSING
        expected = INVALID if isinstance(model, Model) or len(wanted) > _LISTED_MAX else model
        self._check(self._world.do(self._world.client.infos(model_id, *wanted, count=count)), expected)

    def _check_pages(self, model_id: str, wanted: list[int], found: list[m.ModelVersionInfo], count: int) -> None:
        handle = ""
        step = min(count or len(found), len(found))
        for start in range(0, len(found), step):
            reply = self._world.do(self._world.client.infos(model_id, *wanted, count=count, handle=handle))
            self._check(list(reply.version_infos), found[start : start + step])
            handle = reply.next_version_handle
        self._check(handle, str(found[-1].version_number + 1))

    @rule(model_id=ids, number=numbers)
    def retrieve(self, model_id: str, number: int) -> None:
        self._retrieve(model_id, number)

    def _retrieve(self, model_id: str, number: int) -> None:
        reply = self._world.do(self._world.client.chunks(model_id, number))
        model = self._model(model_id)
        if isinstance(model, Model):
            version = model.resolve(number)
            if version is None:
                self._check(reply, MISSING)
                return
            self._check(reply, _chunks(version.data))
            self._expected.use(model_id, version.info.version_number)
            self._world.figures.count("versions retrieved")
        else:
            self._check(reply, model)

    # Watches.

    @precondition(lambda self: len(self._watches) < 5)
    @rule(model_id=ids)
    def watch(self, model_id: str) -> None:
        watch = self._world.client.watching(model_id)
        model = self._model(model_id)
        if not isinstance(model, Model):
            self._check(self._world.runner.run(_end_of(watch)), model)
            return
        self._watches.append((model_id, watch))
        self._world.figures.count("watches")
        if model.versions:
            self._check(self._world.do(next_version(watch)), model.versions[max(model.versions)].info)
        self._world.runner.run(self._world.statuses(watchers=len(self._watches)))

    @precondition(lambda self: self._watches)
    @rule()
    def cancel_watch(self) -> None:
        _, watch = self._watches.pop(0)
        watch.cancel()
        self._world.runner.run(self._world.statuses(watchers=len(self._watches)))

    def _end_watches(self, code: grpc.StatusCode, ending: list[tuple[str, Any]]) -> None:
        for each in ending:
            self._watches.remove(each)
            self._check(self._world.runner.run(_end_of(each[1])), code)

    # The server.

    @rule()
    def ask_status(self) -> None:
        expected = {
            "models": len(self._expected.models),
            "versions": self._expected.versions_count,
            "transient_versions": len(self._expected.used),
            "transient_bytes": self._expected.transient_bytes,
            "transient_versions_max": _ITEMS_MAX,
            "transient_bytes_max": _BYTES_MAX,
            "uploads": 0,
            "retrievals": 0,
            "overall_load": 0,
        }
        texts = {name: str(value) for name, value in expected.items()}
        self._check(self._world.do(self._world.client.status(*texts, "no such name")), texts)
        everything = self._world.do(self._world.client.status("*"))
        self._check({**everything, **texts}, everything)
        self._check(self._world.do(self._world.client.status()), {})

    @rule()
    def ask_version(self) -> None:
        assert self._world.do(self._world.client.version()).keys() >= {"cogment-model-registry", "python", "grpcio"}

    @precondition(lambda self: self._restarts_left)
    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        self._restarts_left -= 1
        self._world.figures.count("crashes" if kill else "clean restarts")
        self._world.end(kill=kill)
        self._end_watches(UNAVAILABLE, [*self._watches])
        self._world.start()
        self._expected.forget_transient()
        for model in self._expected.models.values():
            model.may_skip = _SKIPPED_MAX if kill else model.may_skip
        self.compare_everything()

    @rule()
    def compare_everything(self) -> None:
        """Compare all models and versions. This uses no version, so it changes nothing."""
        self.list_models(0, "")
        for model_id in GOOD_IDS:
            self.list_versions(model_id, 0, "")
            self.get_versions(model_id, [-1], 0)
        self.ask_status()

    def teardown(self) -> None:
        while self._watches:
            self._watches.pop()[1].cancel()
        if sys.exception():
            return  # a broken promise stopped the model early
        self.compare_everything()
        for model_id, model in self._expected.models.items():
            for number in model.versions:
                self._retrieve(model_id, number)


def _chunks(data: bytes) -> list[bytes]:
    """Return the chunks in which the server must send bytes."""
    return [data[start : start + _CHUNK_BYTES] for start in range(0, max(len(data), 1), _CHUNK_BYTES)]
