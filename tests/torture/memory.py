"""Memory is bounded: many uploads, readers that never read and uploads that stall, with a small budget."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import psutil

from cogment_model_registry.settings import MIB
from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header
from tests.processes import ServerProcess, server_process
from tests.torture.proof import Figures, Proof
from tests.waiting import eventually

PEERS = 100
BUDGET_BYTES = 256 * MIB
ALLOWANCE_BYTES = 150 * MIB
UPLOAD_BYTES = 64 * MIB
IDLE_SECONDS = 2
_CHANNELS = 20
_CHUNK_SIZES = (MIB, 2 * MIB)
_BEING_SERVED_SECONDS = 30.0


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Run one kind of peer in each round, all kinds in turn."""
    kinds = list(_KINDS)
    for number in range(rounds):
        asyncio.run(_attempt(place / str(number), kinds[number % len(kinds)], random, figures))


async def _attempt(place: Path, kind: str, random: Random, figures: Figures) -> None:
    flags = [f"--cache_max_bytes={BUDGET_BYTES}", f"--upload_idle_seconds={IDLE_SECONDS}"]
    flags += [f"--retrieval_idle_seconds={IDLE_SECONDS}"]
    with server_process(place, *flags, is_new=True) as server:
        async with _channels(server.port) as clients, connected(server.port) as good:
            await good.create_model("m")
            peak = await _peak_while(server, _KINDS[kind](clients, good, random, figures))
            figures.peak("MiB above the budget at most", (peak - BUDGET_BYTES) / MIB)
            assert peak < BUDGET_BYTES + ALLOWANCE_BYTES, f"{kind}: {peak / MIB:.0f} MiB resident"
            await _everything_is_freed(good)
    figures.count("kinds of peers, 100 of each")


@asynccontextmanager
async def _channels(port: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(port)) for _ in range(_CHANNELS)]


async def _peak_while(server: ServerProcess, work: Awaitable[None]) -> int:
    """Await the work, and return the peak of the resident memory during it, as the system reports it."""
    (Path("/proc") / str(server.pid) / "clear_refs").write_text("5")  # reset the peak
    await work
    status = (Path("/proc") / str(server.pid) / "status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def _everything_is_freed(client: Client) -> None:
    """Wait until nothing is held for any peer; then the whole budget can be used."""
    await _until(client, "uploads", 0)
    await _until(client, "retrievals", 0)
    data = os.urandom(UPLOAD_BYTES)
    for _ in range(BUDGET_BYTES // UPLOAD_BYTES):
        await client.publish("m", data, chunk_size=MIB)


@contextmanager
def _allowing_refusal(figures: Figures) -> Iterator[None]:
    """Allow a publish to be refused while the others use the budget."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        figures.count("publishes refused for the budget")


async def _served(good: Client, figures: Figures) -> None:
    """Publish, store and retrieve, as a client that the others must not affect."""
    async with asyncio.timeout(_BEING_SERVED_SECONDS):
        await good.create_model("good")
        info = await good.store("good", b"archived")
        assert await good.data("good", info.version_number) == b"archived"
        with _allowing_refusal(figures):
            info = await good.publish("good", b"transient")
            assert await good.data("good", info.version_number) == b"transient"
    figures.count("calls of other clients served", 5)


async def _uploading(clients: list[Client], good: Client, random: Random, figures: Figures, archived: bool) -> None:
    """Upload all at once; some fit, the others are refused."""
    chunk = os.urandom(random.choice(_CHUNK_SIZES))
    size_bytes = UPLOAD_BYTES if not archived else UPLOAD_BYTES // 4

    async def upload(client: Client) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield header("m", size_bytes, archived).SerializeToString()
            for _ in range(size_bytes // len(chunk)):
                yield body(chunk).SerializeToString()

        try:
            call: Any = client.channel.stream_unary(f"/{m.SERVICE_NAMES[0]}/CreateVersion")
            await call(chunks(), timeout=120)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    uploads = [asyncio.ensure_future(upload(clients[number % _CHANNELS])) for number in range(PEERS)]
    await asyncio.wait(uploads, return_when=asyncio.FIRST_COMPLETED)
    await _served(good, figures)
    ended = Counter(await asyncio.gather(*uploads))
    # A grpc.aio client that is writing when the status comes may report INTERNAL instead of it
    # (https://github.com/grpc/grpc/issues/36066).
    refused = ended["RESOURCE_EXHAUSTED"] + ended["INTERNAL"]
    assert ended["OK"] + refused == PEERS, ended
    assert ended["OK"] >= (PEERS if archived else 1), ended
    figures.count("uploads done", ended["OK"])
    figures.count("uploads refused", refused)


async def _transient_uploads(clients: list[Client], good: Client, random: Random, figures: Figures) -> None:
    await _uploading(clients, good, random, figures, archived=False)


async def _archived_uploads(clients: list[Client], good: Client, random: Random, figures: Figures) -> None:
    await _uploading(clients, good, random, figures, archived=True)


async def _not_reading(clients: list[Client], good: Client, figures: Figures, archived: bool) -> None:
    """Retrieve a version, and never read its bytes."""
    create = good.store if archived else good.publish
    number = (await create("m", os.urandom(UPLOAD_BYTES), chunk_size=MIB)).version_number
    request = m.RetrieveVersionDataRequest(model_id="m", version_number=number)
    calls = [clients[index % _CHANNELS].streamed("RetrieveVersionData", request) for index in range(PEERS)]
    await asyncio.gather(*(call.initial_metadata() for call in calls))  # all transfers have begun
    await _served(good, figures)
    await _until(good, "retrievals", 0)
    for call in calls:
        call.cancel()
    figures.count("readers that never read", PEERS)


async def _transient_readers(clients: list[Client], good: Client, random: Random, figures: Figures) -> None:
    await _not_reading(clients, good, figures, archived=False)


async def _archived_readers(clients: list[Client], good: Client, random: Random, figures: Figures) -> None:
    await _not_reading(clients, good, figures, archived=True)


async def _stalled_uploads(clients: list[Client], good: Client, random: Random, figures: Figures) -> None:
    """Begin uploads, and continue none."""
    chunk = body(os.urandom(MIB)).SerializeToString()

    async def begin(number: int) -> Any:
        call = clients[number % _CHANNELS].uploading()
        await call.write(header("m", 2 * MIB, archived=number % 2 == 1).SerializeToString())
        await call.write(chunk)
        return call

    calls = await asyncio.gather(*map(begin, range(PEERS)))
    await _served(good, figures)
    codes = Counter([(await call.code()).name for call in calls])
    assert codes == {"DEADLINE_EXCEEDED": PEERS}, codes
    figures.count("uploads that stalled", PEERS)


async def _until(client: Client, name: str, count: int) -> None:
    async def holds() -> bool:
        return await client.status(name) == {name: str(count)}

    await eventually(holds, within_seconds=IDLE_SECONDS + 20)


_KINDS: dict[str, Callable[[list[Client], Client, Random, Figures], Awaitable[None]]] = {
    "transient uploads": _transient_uploads,
    "readers of an archived version": _archived_readers,
    "stalled uploads": _stalled_uploads,
    "readers of a transient version": _transient_readers,
    "archived uploads": _archived_uploads,
}


PROOF = Proof(
    name="memory",
    promise="Memory is bounded",
    attempt=attempt,
    unit="kinds of peers",
    short=1,
    long=10 * len(_KINDS),
    batch=len(_KINDS),
    missing=lambda: "" if psutil.LINUX else "the peak of a process's memory is read from Linux's /proc",
    requirements="Linux",
)
