"""On a full disk, stores are refused: nothing is lost, reads continue, and freed space is used at once.

The archive is on its own small file system, which is filled to the last byte, or the last inode, by stores and by files
from outside, at every point of a store: at its header, while its bytes arrive, at its metadata, at the high-water mark.
The server is not restarted.
"""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, header, next_version, upload
from tests.server.test_health import SERVING, check
from tests.torture.failing_files import open_below
from tests.torture.proof import Figures, Proof
from tests.waiting import eventually

DISK_BYTES = 16 * MIB
PAGE_BYTES = 4096  # the unit in which a tmpfs allocates space
INODES = 64
SETTINGS = Settings(cache_max_items=1000, cache_max_bytes=64 * MIB, grace_seconds=0)

MODELS = ("kept", "doomed", "also")
PUBLISHES_MAX = 200
"""More than the reserved numbers (128), so one publish needs the disk."""

STORES_MAX = 1000
WAIT_SECONDS = 20
REFUSAL_SECONDS = 0.5
"""How long to wait for the server to reach the bytes that do not fit, before the space is freed."""


def missing() -> str:
    """Return why no file system can be mounted here; empty if one can."""
    if os.geteuid() != 0:
        return "only root may mount a file system"
    for program in ("mount", "umount", "unshare"):
        if not shutil.which(program):
            return f"there is no {program}"
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, check=False
    )
    return "" if probe.returncode == 0 else f"no file system can be mounted: {probe.stderr.strip()}"


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """Return a context manager that mounts a small file system."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)
        place.rmdir()


def free_pages(disk: Path) -> int:
    """Return how many pages are free."""
    status = os.statvfs(disk)
    return status.f_bfree * status.f_frsize // PAGE_BYTES


class Ballast:
    """Files that fill a disk from outside the server, and free it.

    Args:
        disk: The disk.
    """

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._path = disk / "ballast.bak"
        self._path.touch()

    def leave(self, pages: int) -> None:
        """Leave exactly this number of pages free, when nothing else is writing."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (excess := free_pages(self._disk) - pages) != 0:
            assert time.monotonic() < deadline, f"{pages} free pages cannot be reached"
            size_bytes = self._path.stat().st_size + excess * PAGE_BYTES
            with suppress(OSError), self._path.open("ab") as file:
                file.truncate(min(size_bytes, file.tell()))
                for start in range(file.seek(0, os.SEEK_END), size_bytes, MIB):
                    file.write(bytes(min(size_bytes - start, MIB)))

    def leave_nothing(self) -> None:
        """Use up the rest, while others may be writing too."""
        with self._path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(PAGE_BYTES))

    def leave_no_inode(self) -> None:
        """Use up the inodes, so that no file can be created."""
        for number in range(os.statvfs(self._disk).f_ffree):
            self._path.with_suffix(f".{number}").touch()

    def give_back(self) -> None:
        """Free all space, and all inodes but one."""
        os.truncate(self._path, 0)
        for path in self._path.parent.glob(f"{self._path.stem}.*[0-9]"):
            path.unlink()


def expect_no_room(error: grpc.aio.AioRpcError) -> None:
    """Expect that a call was refused for lack of space."""
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, f"{error.code().name}: {error.details()}"


class Filling:
    """A disk, the server on it, and what was acknowledged.

    Args:
        disk: The disk, empty.
        random: Chooses sizes.
        figures: What was counted.
    """

    def __init__(self, disk: Path, random: Random, figures: Figures) -> None:
        self.disk = disk
        self.archive = disk / "archive"
        self.ballast = Ballast(disk)
        self.random = random
        self.figures = figures
        self.models: dict[str, dict[int, bytes]] = {}
        self.transient: dict[int, bytes] = {}
        self.client: Client

    async def run(self, inodes: bool) -> None:
        """Fill and free the disk in every way."""
        async with self._serving():
            for model_id in MODELS:
                await self._create(model_id)
            watch = self.client.watching("kept")
            await self._fill(inodes)
            await self._expect_no_room_for_anything(inodes)
            await self._look(watch)
            await self._free()
            if not inodes:
                await self._run_out_of_space_during_stores(watch)
            await self._look(watch)
            await self._fill(inodes)
            watch.cancel()
        self.transient.clear()
        async with self._serving():  # a start needs no space either
            watch = self.client.watching("kept")
            await self._look(watch)
            await self._free()
            await self._look(watch)
            watch.cancel()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with serving(self.archive, SETTINGS) as server, connected(server.port) as self.client:
            yield

    async def _create(self, model_id: str) -> None:
        """Create a model, and wait until its first numbers are persisted, as the server does in the background."""
        await self.client.create_model(model_id, text="x" * 100)
        self.models[model_id] = {}

        async def has_numbers() -> bool:
            return (self.archive / model_id / ".high_water_mark").exists()

        await eventually(has_numbers)

    async def _store(self, model_id: str, data: bytes) -> bool:
        """Store a version, and return whether it was acknowledged; if not, the disk must be full, and clean."""
        try:
            info = await self.client.store(model_id, data)
        except grpc.aio.AioRpcError as error:
            expect_no_room(error)
            self.figures.count("refused for lack of room")
            self._look_at_files()
            return False
        self.models[model_id][info.version_number] = data
        self.figures.count("acknowledged versions")
        return True

    async def _leave(self, pages: int) -> None:
        """Leave exactly this number of pages free, after the catalog has written its queue: a search waits for that."""
        request = lifecycle.ListVersionsRequest(page_size=1)
        await Client(self.client.channel, lifecycle.SERVICE_NAME).unary(
            "ListVersions", request, lifecycle.ListVersionsReply
        )
        self.ballast.leave(pages)

    async def _fill(self, inodes: bool) -> None:
        """Store until nothing fits any more, and use up the rest."""
        most_bytes = 1 if inodes else 2 * MIB
        for _ in range(STORES_MAX):
            data = self.random.randbytes(self.random.randint(most_bytes // 2, most_bytes))
            if not await self._store(self.random.choice(MODELS), data):
                if most_bytes == 1:
                    break
                most_bytes = max(most_bytes // 8, 1)
        else:
            raise AssertionError("the disk does not fill up")
        if inodes:
            self.ballast.leave_no_inode()
        else:
            await self._leave(0)

    async def _expect_no_room_for_anything(self, inodes: bool) -> None:
        """Make each call that needs space."""
        if not inodes:
            await self._expect_refusal_of_header(PAGE_BYTES)
        for model_id in ("kept", "new"):
            try:
                await self.client.create_model(model_id, text="y" * 100)
            except grpc.aio.AioRpcError as error:
                expect_no_room(error)
            else:
                raise AssertionError(f"metadata of {model_id!r} was acknowledged on a full disk")
            self.figures.count("refused for lack of room")
            self._look_at_files()

    async def _expect_refusal_of_header(self, size_bytes: int) -> None:
        """Expect that an upload is refused after its header alone."""
        call = self.client.uploading()
        await call.write(header("kept", size_bytes, True).SerializeToString())
        async with asyncio.timeout(WAIT_SECONDS):
            code = await call.code()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, f"{code} for a header of {size_bytes} bytes"
        self.figures.count("refused for lack of room")

    async def _free(self) -> None:
        """Delete a model, and store as many bytes as it had, without a restart."""
        sizes = [len(data) for data in self.models.pop("doomed").values()]
        await self.client.delete_model("doomed")
        assert await self._store("kept", b"after the deletion"), "a deletion did not free its space"
        await self.client.create_model("doomed", text="x" * 100)
        self.models["doomed"] = {}
        for size_bytes in sizes[3:]:
            stored = await self._store("doomed", self.random.randbytes(size_bytes))
            assert stored, f"a version of {size_bytes} bytes does not fit where one was deleted"
        self.ballast.give_back()
        self.figures.count("models deleted on a full disk")

    async def _run_out_of_space_during_stores(self, watch: Any) -> None:
        """Use up the space from outside at each point of a store."""
        for model_id in ("doomed", "also"):
            await self.client.delete_model(model_id)
            await self._create(model_id)
        for space_returns in (False, True):
            await self._run_out_within_upload(space_returns)
        for pages in (1, 2, 3):
            await self._leave(pages)
            # The bytes of the first upload take all pages, so there is none for the metadata.
            for data_pages in (pages, pages + 1):
                stored = await self._store("doomed", self.random.randbytes(data_pages * PAGE_BYTES))
                assert not stored, f"{data_pages} pages and metadata fit {pages} pages"
            assert free_pages(self.disk) == pages, "a refused store keeps space"
        await self._leave(0)
        await self._run_out_of_numbers()
        await self._look(watch)
        self.ballast.give_back()
        assert await self._publish(), "numbers are not available again with the space"
        assert await self._store("kept", self.random.randbytes(PAGE_BYTES)), "freed space is not used"

    async def _run_out_within_upload(self, space_returns: bool) -> None:
        """Use up the space while the bytes of an upload arrive, and perhaps free it before the end."""
        self.ballast.give_back()
        half_bytes = free_pages(self.disk) * PAGE_BYTES // 2
        data = self.random.randbytes(min(self.random.randrange(half_bytes // 2, half_bytes), 2 * MIB))
        await self._leave(len(data) // PAGE_BYTES + 8)
        chunks = upload("kept", data, True, chunk_size=self.random.choice((5_000, 70_000)))
        call = self.client.uploading()
        cut = self.random.randrange(2, len(chunks) // 2)
        await self._send(call, chunks[:cut])

        async def is_under_way() -> bool:
            return await self.client.status("uploads") == {"uploads": "1"}

        await eventually(is_under_way)
        self.ballast.leave_nothing()
        await self._send(call, chunks[cut:-1])
        if space_returns:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFUSAL_SECONDS):
                    await call.code()
            self.ballast.give_back()
        await self._send(call, chunks[-1:])
        with suppress(asyncio.InvalidStateError):
            await call.done_writing()
        async with asyncio.timeout(WAIT_SECONDS):
            code = await call.code()
        if code == grpc.StatusCode.OK and space_returns:
            number = m.CreateVersionReply.FromString(await call).version_info.version_number
            self.models["kept"][number] = data  # none of its writes happened while the disk was full
        else:
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, f"{code}: {await call.details()}"
            self.figures.count("uploads that ran out of space")
        self._look_at_files()

    async def _send(self, call: Any, chunks: Iterable[m.CreateVersionRequestChunk]) -> None:
        """Send chunks of an upload, unless it was already refused."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for chunk in chunks:
                await call.write(chunk.SerializeToString())

    async def _publish(self) -> bool:
        """Publish a transient version of `kept`, and return whether it was acknowledged."""
        data = self.random.randbytes(100)
        try:
            info = await self.client.publish("kept", data)
        except grpc.aio.AioRpcError as error:
            expect_no_room(error)
            return False
        assert info.version_number > max([*self.models["kept"], *self.transient], default=0), (
            "a number was assigned twice"
        )
        self.transient[info.version_number] = data
        self.figures.count("publishes on a full disk")
        return True

    async def _run_out_of_numbers(self) -> None:
        """Publish until a number would have to be persisted: before that, the disk is not needed."""
        for published in range(PUBLISHES_MAX):
            if not await self._publish():
                assert published >= 32, f"only {published} publishes without the disk"
                return
        raise AssertionError("numbers were assigned that were not persisted")

    async def _look(self, watch: Any) -> None:
        """Expect that everything but writes works."""
        await self._publish_and_watch(watch)
        expected = {**self.models, "kept": {**self.models["kept"], **self.transient}}
        for model_id, versions in expected.items():
            assert await self.client.numbers(model_id) == sorted(versions), f"the versions of {model_id} are wrong"
            for number in [*self.models[model_id], *list(self.transient)[-5:]]:
                if number in versions:
                    data = await self.client.data(model_id, number)
                    assert data == versions[number], f"version {number} of {model_id} has wrong bytes"
        models = {info.model_id: dict(info.user_data) for info in (await self.client.models()).model_infos}
        assert models == {model_id: {"text": "x" * 100} for model_id in self.models}
        assert await self.client.status("archive") == {"archive": "ok"}
        assert await check(self.client) == SERVING
        self.figures.count("versions found intact", sum(len(versions) for versions in self.models.values()))
        self._look_at_files()

    async def _publish_and_watch(self, watch: Any) -> None:
        """Publish while there are numbers; the watcher must be notified."""
        if await self._publish():
            last = max(self.transient)
            while (await next_version(watch)).version_number != last:
                pass

    def _look_at_files(self) -> None:
        """Expect the files of what was acknowledged, and no others."""
        expected = {".lock", *layout.CATALOG_NAMES, *self.models}
        for model_id, versions in self.models.items():
            expected |= {f"{model_id}/{model_id}.yaml", f"{model_id}/.high_water_mark"}
            expected |= {
                f"{model_id}/{model_id}-v{number:06d}.{kind}" for number in versions for kind in ("yaml", "data")
            }
        found = {str(path.relative_to(self.archive)) for path in self.archive.rglob("*")}
        assert found <= expected, f"left behind: {sorted(found - expected)}"
        assert found >= {name for name in expected - layout.CATALOG_NAMES if not name.endswith(".high_water_mark")}, (
            "a file is missing"
        )


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Fill a disk a number of times, alternating between its space and its inodes."""
    for number in range(rounds):
        inodes = number % 2 == 1
        options = f"size={DISK_BYTES}" + (f",nr_inodes={INODES}" if inodes else "")
        with mounted(place / "disk", options) as disk:
            try:
                asyncio.run(Filling(disk, random, figures).run(inodes))
            except grpc.aio.AioRpcError as error:
                raise AssertionError(f"a call was refused: {error.code().name}: {error.details()}") from error
            except TimeoutError as error:
                raise AssertionError("a call did not end in time") from error
            assert open_below(disk) == [], f"left open: {open_below(disk)}"


PROOF = Proof(
    name="full_disk",
    promise="A server with a full disk refuses what needs room, loses nothing, and stores again when there is room",
    attempt=attempt,
    unit="disks",
    short=2,
    long=50,
    batch=10,
    missing=missing,
    requirements="root, and file systems that can be mounted",
)
