"""A download that is interrupted repeatedly receives at most 16 MiB again for each cut, in bounded memory.

One process after the other downloads a large version with `resume=True`, through a relay that counts bytes.
At random moments the process is killed, all its connections are cut, or the server is killed and started again. What
was received again is what the relay passed on in excess of the version, and after a kill of the process also what is
missing in the journal.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import psutil

from cogment_model_registry import ModelRegistry, VersionInfo
from cogment_model_registry.client.partial_files import JOURNAL_SUFFIX, SUFFIX, merged
from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.settings import MIB
from tests.processes import ServerProcess, clean_environment, server_process
from tests.registry_client.network import Relay, listening
from tests.torture.proof import Figures, Proof
from tests.waiting import PATIENCE_SECONDS

CHUNK_BYTES = 16 * MIB
MEMORY_MIB = 64
FRAMING = 1.003
"""An upper bound of what HTTP/2 and messages add to the bytes of a version."""

LONG_CUTS = 20
LONG_BYTES, SHORT_BYTES = 4 * 1024 * MIB, 64 * MIB

SCRIPT = """
import sys
from cogment_model_registry import ModelRegistry

def memory_kib(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name))

with ModelRegistry(sys.argv[1], retry_seconds=float(sys.argv[3])) as registry:
    registry.status()
    print(memory_kib("VmRSS"), flush=True)
    registry.download("m", sys.argv[2], resume=True, progress=False)
    print(memory_kib("VmHWM"))
"""


class CountingRelay(Relay):
    """A relay that counts the bytes that it passes on."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._awaited_bytes = 0
        self._has_passed = asyncio.Event()

    async def until(self, replied_bytes: int) -> None:
        """Wait until it has passed on a number of bytes from the server."""
        self._awaited_bytes = replied_bytes
        self._has_passed.clear()
        await self._has_passed.wait()

    def count(self, size_bytes: int, *, upwards: bool) -> None:
        super().count(size_bytes, upwards=upwards)
        if self.replied_bytes >= self._awaited_bytes:
            self._has_passed.set()


class Downloading:
    """Successive processes that download a version to a file.

    Args:
        endpoint: The endpoint of the registry.
        path: The file.
        figures: Counts.
    """

    def __init__(self, endpoint: str, path: Path, figures: Figures) -> None:
        self._arguments = ["-c", SCRIPT, endpoint, str(path), str(PATIENCE_SECONDS)]
        self._journal = path.with_name(path.name + SUFFIX + JOURNAL_SUFFIX)
        self._figures = figures
        self._rest_kib = 0

    async def start(self) -> None:
        """Start a process."""
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=pipe, env=clean_environment()
        )
        self._rest_kib = await self._kib()

    async def kill(self) -> None:
        """Kill it."""
        self._note_memory(_peak_kib(self.process.pid))
        self.process.kill()
        await self.process.wait()

    async def finish(self) -> None:
        """Wait until the download succeeds."""
        self._note_memory(await self._kib())
        assert await self.process.wait() == 0

    def present_bytes(self) -> int:
        """Return the number of bytes that the journal has."""
        try:
            lines = self._journal.read_bytes().splitlines()[1:]
        except FileNotFoundError:
            return 0
        return sum(map(len, merged(range(*json.loads(line)) for line in lines)))

    async def _kib(self) -> int:
        assert self.process.stdout is not None
        return int(await self.process.stdout.readline())

    def _note_memory(self, peak_kib: int) -> None:
        over_mib = (peak_kib - self._rest_kib) / 1024
        self._figures.peak("MiB above the idle client at most", over_mib)
        assert over_mib < MEMORY_MIB, f"the client took {over_mib:.0f} MiB more than when idle"


def _peak_kib(process_id: int) -> int:
    """Return the peak of the resident memory of a process."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


class Servers:
    """The current server of one archive.

    Args:
        archive_dir: The archive.
    """

    def __init__(self, archive_dir: Path, stack: ExitStack) -> None:
        self._archive_dir = archive_dir
        self._stack = stack
        self.now = self._started()

    def _started(self) -> ServerProcess:
        return self._stack.enter_context(server_process(self._archive_dir, "--local_socket=off"))

    def restart(self) -> None:
        """Kill the server, and start its successor."""
        self.now.kill()
        self.now = self._started()

    def store(self, path: Path, size_bytes: int) -> VersionInfo:
        """Store a version of random bytes."""
        with path.open("wb") as file:
            for _ in range(size_bytes // MIB):
                file.write(os.urandom(MIB))
        with ModelRegistry(f"grpc://127.0.0.1:{self.now.port}") as registry:
            version = registry.store("m", path)
        path.unlink()
        return version


@asynccontextmanager
async def _relayed(port: int) -> AsyncIterator[tuple[CountingRelay, str]]:
    relay = CountingRelay(port)
    async with listening(relay.relay) as relayed:
        yield relay, f"grpc://127.0.0.1:{relayed}"


async def _attempt(place: Path, cuts: int, random: Random, figures: Figures) -> None:
    size_bytes = LONG_BYTES if cuts >= LONG_CUTS else SHORT_BYTES
    path = place / "file"
    kinds = [number % 3 for number in range(cuts)]
    random.shuffle(kinds)
    with ExitStack() as stack:
        servers = await asyncio.to_thread(Servers, place / "archive", stack)
        version = await asyncio.to_thread(servers.store, path, size_bytes)
        async with _relayed(servers.now.port) as (relay, endpoint):
            downloading = Downloading(endpoint, path, figures)
            await downloading.start()
            for number, kind in enumerate(kinds):
                # Less than the whole version has passed the relay, so no download can be complete.
                await relay.until(int(size_bytes * (number + random.random()) / (cuts + 1)))
                if kind == 0:
                    await downloading.kill()
                    lost_bytes = relay.replied_bytes / FRAMING - downloading.present_bytes()
                    assert lost_bytes <= (number + 1) * CHUNK_BYTES, f"{lost_bytes / MIB:.0f} MiB were lost"
                    await downloading.start()
                    figures.count("kills of the client")
                elif kind == 1:
                    relay.cut()
                    figures.count("cuts of all connections")
                else:
                    await asyncio.to_thread(servers.restart)
                    relay.target = servers.now.port
                    figures.count("kills of the server")
            await downloading.finish()
            again_bytes = relay.replied_bytes / FRAMING - size_bytes
    figures.peak("MiB received again per cut at most", again_bytes / cuts / MIB)
    assert again_bytes <= cuts * CHUNK_BYTES, f"{again_bytes / MIB:.0f} MiB were received again after {cuts} cuts"
    with path.open("rb") as file:
        assert digest_text(hashlib.file_digest(file, "sha256").digest()) == version.data_hash
    assert sorted(os.listdir(place)) == ["archive", "file"]
    path.unlink()


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Cut one download a number of times: of 4 GiB for many cuts, of 64 MiB for a few."""
    for name in ("kills of the client", "cuts of all connections", "kills of the server"):
        figures.count(name, 0)
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="cut_downloads",
    promise="An interrupted download continues, also in another process, and receives at most 16 MiB again",
    attempt=attempt,
    unit="cuts",
    short=3,
    long=LONG_CUTS,
    batch=LONG_CUTS,
    missing=lambda: "" if psutil.LINUX else "the peak of a process's memory is read from Linux's /proc",
)
