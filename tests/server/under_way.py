"""Servers with active calls, and servers that begin to stop."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.storage.filesystem import layout
from tests.client import Client, body, connected, header
from tests.processes import ServerProcess, server_process
from tests.waiting import eventually


@asynccontextmanager
async def serving_process(archive: Path, *flags: str) -> AsyncIterator[tuple[ServerProcess, Client]]:
    """Return a context manager for a server process and a client of it."""
    with server_process(archive, *flags) as server:
        async with connected(server.port) as client:
            yield server, client


async def under_way(client: Client, **counts: int) -> None:
    """Wait until the server counts a number of uploads, retrievals or watchers."""

    async def has_count() -> bool:
        return await client.status(*counts) == {name: str(count) for name, count in counts.items()}

    await eventually(has_count)


async def begin_upload(client: Client, data: bytes, size: int, archived: bool = True) -> Any:
    """Return an upload to `m` that has sent its header and some of its bytes."""
    call = client.uploading()
    await call.write(header("m", size, archived).SerializeToString())
    await call.write(body(data).SerializeToString())
    await under_way(client, uploads=1)
    return call


async def begin_to_stop(server: ServerProcess, number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal, and wait until the server has received it."""
    server.signal(number)
    await asyncio.to_thread(server.wait_for_line, "stopping")


async def until_refused(client: Client) -> None:
    """Wait until a server that began to stop refuses new calls."""

    async def is_refused() -> bool:
        try:
            await client.status()
        except grpc.aio.AioRpcError as error:
            return error.code() == grpc.StatusCode.UNAVAILABLE
        return False

    await eventually(is_refused)


BEHIND = {".lock", ".high_water_mark", *layout.CATALOG_NAMES}
"""The names of files that a server writes in the background."""


def leftovers(archive: Path) -> list[Path]:
    """Return the paths in an archive with a temporary name."""
    return [path for path in archive.rglob(".*") if path.name not in BEHIND]
