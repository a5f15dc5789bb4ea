"""A file system that shuts down under a server, as in a power cut, has all completed writes.

The archive of a server process is on its own ext4 file system, in a file. While clients work, the file system shuts
down without writing its journal; from then on it refuses reads and writes. The server is killed, the file system is
mounted again, which replays the journal, and the proof reads everything from a new server.
"""

import asyncio
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import grpc

from cogment_model_registry.testing.bytes import hash_of
from tests.client import Client, connected
from tests.processes import server_process
from tests.torture.proof import Figures, Proof

# linux/fs/ext4/ext4.h
_EXT4_IOC_SHUTDOWN = 0x8004587D
_LOG_FLUSH = 1
"""The journal is written first: everything done so far is kept, and nothing later."""
_NO_LOG_FLUSH = 2
"""Nothing more is written: what is not yet in the journal is lost."""

_IMAGE_BYTES = 256 * 1024 * 1024
_WRITERS = 4
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def mounted(image: Path, mount_point: Path) -> Iterator[Path]:
    """Return a context manager that mounts the file system in a file."""
    mount_point.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", str(image), str(mount_point))
    try:
        yield mount_point
    finally:
        try:
            _run("umount", str(mount_point))
        except subprocess.CalledProcessError:
            _run("umount", "-l", str(mount_point))
            raise


def make_file_system(image: Path, size_bytes: int) -> None:
    """Create an ext4 file system in a new file."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", str(image))


def _moved(image: Path, path: Path) -> Path:
    """Move a file system to another file, and return its path."""
    _run("cp", "--sparse=always", str(image), str(path))
    image.unlink()
    return path


def shut_down(mount_point: Path, flags: int) -> None:
    """Shut a mounted file system down."""
    directory = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(directory, _EXT4_IOC_SHUTDOWN, struct.pack("=I", flags))
    finally:
        os.close(directory)


def _run(*command: str) -> None:
    program = shutil.which(command[0], path=_PATH) or command[0]
    subprocess.run([program, *command[1:]], check=True, capture_output=True, timeout=30)


@functools.cache
def missing() -> str:
    """Return what this machine lacks for the proof, by trying it: a container may allow only some of it."""
    for program in ("mkfs.ext4", "mount", "umount"):
        if not shutil.which(program, path=_PATH):
            return f"there is no {program}"
    with tempfile.TemporaryDirectory() as place:
        image = Path(place) / "image"
        try:
            make_file_system(image, 8 * 1024 * 1024)
            with mounted(image, Path(place) / "mount") as mount_point:
                shut_down(mount_point, _NO_LOG_FLUSH)
        except subprocess.CalledProcessError as error:
            return f"{Path(error.cmd[0]).name} does not work: {error.stderr.decode(errors='replace').strip()}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a file system cannot be shut down: {error}"
    return ""


@dataclass(frozen=True, slots=True)
class Version:
    """The expected state of an archived version."""

    data_hash: str
    size_bytes: int
    user_data: dict[str, str]


@dataclass(frozen=True, slots=True)
class State:
    """The expected state of a model; without `user_data` it does not exist."""

    user_data: dict[str, str] | None = None
    versions: dict[int, Version] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """A model that one writer changes.

    Attributes:
        state: The state after the last completed call.
        unsure: The state that an unfinished call may have left; its new version has the number 0.
        last_number: The highest number in a reply.
    """

    state: State = field(default_factory=State)
    unsure: State | None = None
    last_number: int = 0

    def difference(self, seen: State) -> str:
        """Return how a model differs from its expected state; empty if it does not."""
        allowed = [self.state, *([self.unsure] if self.unsure else [])]
        if any(_matches(state, seen) for state in allowed):
            return ""
        return f"it is {seen}, and must be {' or '.join(map(str, allowed))}"


def _matches(state: State, seen: State) -> bool:
    """Return whether a model is as expected; a version that was not completed may have any number."""
    expected = dict(state.versions)
    extra = seen.versions.keys() - expected.keys()
    if 0 in expected and len(extra) == 1:
        expected[extra.pop()] = expected.pop(0)
    return seen.user_data == state.user_data and seen.versions == expected


class Workload:
    """Writers that use a server, and the replies that they received.

    Args:
        random: Chooses the calls, and when the file system shuts down.
        figures: What is counted.
    """

    def __init__(self, random: Random, figures: Figures) -> None:
        self._random = random
        self._figures = figures
        self._models = {f"{writer}-{n}": Model() for writer in range(_WRITERS) for n in range(2)}
        self._completed = 0
        self._is_cut_off = False

    async def work_until_cut_off(self, client: Client, mount_point: Path) -> None:
        """Let the writers work, and shut the file system down at some moment; each writer must notice."""
        self._completed, self._is_cut_off = 0, False
        enough = asyncio.Event()
        calls = self._random.randint(1, 60)
        flags = self._random.choice([_NO_LOG_FLUSH, _NO_LOG_FLUSH, _NO_LOG_FLUSH, _LOG_FLUSH])
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for writer in range(_WRITERS):
                group.create_task(self._write(client, writer, calls, enough))
            await enough.wait()
            await asyncio.sleep(self._random.random() / 200)  # somewhere within the calls in progress
            await asyncio.to_thread(shut_down, mount_point, flags)
            self._is_cut_off = True
        self._figures.count("shutdowns")

    async def _write(self, client: Client, writer: int, calls: int, enough: asyncio.Event) -> None:
        """Make calls until one fails; none may fail before the shutdown."""
        while True:
            model_id = self._random.choice([model_id for model_id in self._models if model_id.startswith(f"{writer}-")])
            try:
                await self._make_a_call(client, model_id)
            except grpc.aio.AioRpcError as error:
                self._note_refusal(error, enough.is_set())
                return
            self._completed += 1
            self._figures.count("completed calls")
            if self._completed >= calls:
                enough.set()

    def _note_refusal(self, error: grpc.aio.AioRpcError, may_be_cut_off: bool) -> None:
        assert may_be_cut_off, f"a call failed before the shutdown: {error}"
        assert error.code() == grpc.StatusCode.UNAVAILABLE, f"a write to a lost file system: {error}"
        self._figures.count("writes refused")

    async def _make_a_call(self, client: Client, model_id: str) -> None:
        model = self._models[model_id]
        if model.state.user_data is None:
            await self._create(client, model_id, model)
            return
        call = self._random.choice([self._store] * 5 + [self._publish] * 3 + [self._create, self._delete])
        await call(client, model_id, model)

    async def _create(self, client: Client, model_id: str, model: Model) -> None:
        user_data = {"key": self._random.randbytes(8).hex()}
        async with self._changing(model, replace(model.state, user_data=user_data)):
            await client.create_model(model_id, **user_data)

    async def _delete(self, client: Client, model_id: str, model: Model) -> None:
        async with self._changing(model, State()):
            await client.delete_model(model_id)
        model.last_number = 0

    async def _store(self, client: Client, model_id: str, model: Model) -> None:
        data = self._random.randbytes(self._random.choice([0, 10, 5_000, 300_000]))
        version = Version(hash_of(data), len(data), {"key": self._random.randbytes(8).hex()})
        before = model.state
        async with self._changing(model, replace(before, versions={**before.versions, 0: version})):
            info = await client.store(model_id, data, data_hash=version.data_hash, user_data=version.user_data)
            self._take_number(model_id, model, info.version_number)
        model.state = replace(before, versions={**before.versions, info.version_number: version})

    async def _publish(self, client: Client, model_id: str, model: Model) -> None:
        """Publish a version; its bytes are in memory, so this may succeed after the shutdown."""
        info = await client.publish(model_id, self._random.randbytes(10))
        self._take_number(model_id, model, info.version_number)

    @asynccontextmanager
    async def _changing(self, model: Model, after: State) -> AsyncIterator[None]:
        """Return a context manager for a call that changes a model."""
        model.unsure = after
        was_cut_off = self._is_cut_off
        yield
        assert not was_cut_off, f"a write was completed that began when the file system was gone: {after}"
        model.state, model.unsure = after, None

    def _take_number(self, model_id: str, model: Model, number: int) -> None:
        assert number > model.last_number, f"{model_id}: number {number} after {model.last_number}"
        model.last_number = number

    async def check(self, client: Client) -> None:
        """Compare what a server has with the replies to the writers, and continue from there."""
        seen = {info.model_id: dict(info.user_data) for info in (await client.models()).model_infos}
        assert seen.keys() <= self._models.keys(), f"there are models that nobody created: {seen.keys()}"
        for model_id, model in self._models.items():
            state = await self._look(client, model_id, seen[model_id]) if model_id in seen else State()
            difference = model.difference(state)
            assert not difference, f"model {model_id}: {difference}"
            model.state, model.unsure = state, None
            if state.user_data is None:
                model.last_number = 0
            else:
                model.last_number = max([model.last_number, *state.versions])
                await self._publish(client, model_id, model)

    async def _look(self, client: Client, model_id: str, user_data: dict[str, str]) -> State:
        """Return a model as a server shows it, with the hashes and sizes of the bytes that it sends."""
        versions = {}
        for info in (await client.infos(model_id)).version_infos:
            data = await client.data(model_id, info.version_number)
            assert hash_of(data) == info.data_hash, f"{model_id} {info.version_number}: bytes that do not match"
            versions[info.version_number] = Version(hash_of(data), len(data), dict(info.user_data))
            self._figures.count("versions retrieved")
        return State(user_data, versions)


async def _use_server(port: int, workload: Workload, mount_point: Path, cut_off: bool) -> None:
    async with connected(port) as client:
        await workload.check(client)
        if cut_off:
            await workload.work_until_cut_off(client, mount_point)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Shut a file system down under a server, repeatedly."""
    image = place / "image"
    make_file_system(image, _IMAGE_BYTES)
    workload = Workload(random, figures)
    for round_number in range(rounds + 1):  # each one reads what its predecessor left
        try:
            # Another mount namespace may keep the file system after the shutdown; a new mount would return it.
            image = _moved(image, place / f"image {round_number}")
            with mounted(image, place / "mount") as mount_point, server_process(mount_point / "archive") as server:
                asyncio.run(_use_server(server.port, workload, mount_point, cut_off=round_number < rounds))
        except Exception as error:
            error.add_note(f"in round {round_number}")
            raise
    figures.count("lost or damaged", 0)


PROOF = Proof(
    name="file_system_shutdown",
    promise="When the file system shuts down, no further write completes, and no completed write is lost",
    attempt=attempt,
    unit="shutdowns",
    short=1,
    long=100,
    batch=10,
    missing=missing,
    requirements="root, and ext4 that can be made, mounted and shut down",
)
