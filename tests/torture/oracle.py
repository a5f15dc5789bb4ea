"""Code that the proofs share, such as bytes that contain the tag of their version."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.wire import messages as m
from tests.processes import ServerProcess, server_process

UNAVAILABLE, NOT_FOUND = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND


def payload(tag: str, size_bytes: int) -> bytes:
    """Return bytes that are derived from a tag, so that two tags have no part in common."""
    return Random(tag).randbytes(size_bytes)


def tag_of(info: m.ModelVersionInfo) -> str:
    """Return the tag that a version was sent with."""
    return info.user_data["tag"]


def fork(random: Random) -> Random:
    """Return a source of randomness for one of several tasks, whose choices do not depend on their order."""
    return Random(random.getrandbits(64))


def check_ascending(infos: Sequence[m.ModelVersionInfo]) -> None:
    """Check that a listing is ordered by number, without duplicates."""
    numbers = [info.version_number for info in infos]
    assert numbers == sorted(set(numbers)), f"a listing of {infos[0].model_id} is not in order: {numbers}"


@contextlib.contextmanager
def in_round(number: int) -> Iterator[None]:
    """Add the number of the round to an exception."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in round {number} of this batch")
        raise


@asynccontextmanager
async def going_on(*works: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Return a context manager that runs work in the background, then waits for it, and raises its first error."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
            yield
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors


async def until_gone(server: ServerProcess, work: Awaitable[None]) -> None:
    """Wait for work that ends because the server is gone, or earlier."""
    try:
        await work
    except grpc.aio.AioRpcError as error:
        # The client's own error if the connection breaks while it writes a message.
        is_broken = error.code() == UNAVAILABLE or error.details() == "Internal error from Core"
        if server.is_running or not is_broken:
            raise AssertionError(f"a call ended with {error.code()}: {error.details()}") from error


async def together(*works: Coroutine[Any, Any, Any]) -> None:
    """Wait for all work, and raise the first error."""
    async with going_on(*works):
        pass


@contextlib.contextmanager
def unharmed_server(archive_dir: Path, *flags: str) -> Iterator[ServerProcess]:
    """Return a context manager for a server with a JSON log, which must be running without logged errors at the end."""
    with server_process(archive_dir, *flags) as server:
        try:
            yield server
            assert server.is_running, "the server ended"
            assert server.stop() == 0, "the server did not stop cleanly"
            assert not _complaints(server.lines), "the server logged errors"
        except Exception as error:
            error.add_note("\n".join(["The server logged:", *_complaints(server.lines), *server.lines[-5:]]))
            raise


def _complaints(lines: Sequence[str]) -> list[str]:
    """Return the lines of a log with errors, and those that are not log lines."""
    return [line for line in lines if not re.search(r'^\{.*"level": "(debug|info|warning)"', line)][:100]
