"""The jobs of load processes that follow a model: with inline bytes, or with a notification and a retrieval."""

import asyncio
import time
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import grpc.aio

from benchmarks.clients import Client, Upload, connected, follow_request
from benchmarks.load import meet
from benchmarks.usage import processor_seconds
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import CaughtUp
from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.watching import Bytes, decode_reply

_NEWS_SECONDS = 20.0
"""The longest time that a follower waits for the next version."""


async def followed_moments(
    port: int, upload: Upload, connections: int, streams: int, rounds: int, *, is_floor: bool = False
) -> list[float]:
    """Follow a model with `streams` streams over some connections, with inline bytes.

    `is_floor` says that a floor sends the same messages over VersionUpdate: the followers decode and check them alike.

    Returns:
        For each of `rounds` versions, the moment at which the last stream had its verified bytes.
    """
    last = [0.0] * rounds

    async def follow(call: Any) -> None:
        for index in range(rounds):
            await _read_version(call)
            last[index] = max(last[index], time.monotonic())

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        near = [clients[index % connections] for index in range(streams)]
        if is_floor:
            calls = [client.watch(upload.model_id) for client in near]
            await asyncio.gather(*map(_read_version, calls))
        else:
            calls = [client.follow(follow_request(upload)) for client in near]
            await asyncio.gather(*map(_begin, calls))
        await meet()
        await asyncio.gather(*map(follow, calls))
        for call in calls:
            call.cancel()
    return last


async def follow_usage(port: int, upload: Upload, streams: int, seconds: float) -> float:
    """Follow a model for some seconds without news; return the processor time of this process."""
    async with connected(port) as client:
        calls = [client.follow(follow_request(upload)) for _ in range(streams)]
        await asyncio.gather(*map(_begin, calls))
        await meet()
        before = processor_seconds()
        await asyncio.sleep(seconds)
        spent = processor_seconds() - before
        for call in calls:
            call.cancel()
    return spent


async def _begin(call: Any) -> None:
    """Read the existing versions."""
    while await _read_version(call):
        pass


async def _read_version(call: Any) -> bool:
    """Read up to the end of a version, or up to `caught_up`; return whether it was a version."""
    version: Version | None = None
    parts = list[memoryview]()
    digest = sha256()  # of each part when it arrives, as the Python client does
    while True:
        async with asyncio.timeout(_NEWS_SECONDS):
            message = await call.read()
        if message is grpc.aio.EOF:
            raise RuntimeError("a watch ended")
        reply = decode_reply(message)
        if isinstance(reply, Bytes):
            parts.append(reply.data)
            digest.update(reply.data)
            if reply.is_last and version is not None:
                _verify(version, digest.digest())
                return True
        elif isinstance(reply.event, CaughtUp):
            return False
        elif isinstance(reply.event, Version):
            version = reply.event
            if reply.data is not None:
                _verify(version, sha256(reply.data).digest())
                return True


def _verify(version: Version, digest: bytes) -> None:
    if digest_text(digest) != version.data_hash:
        raise RuntimeError("a follower received wrong bytes")


async def notified_then_fetched_moments(
    port: int, upload: Upload, connections: int, streams: int, rounds: int
) -> list[float]:
    """Watch a model with `streams` streams over some connections, each of which retrieves each version.

    Returns:
        For each of `rounds` versions, the moment at which the last of them had its bytes.
    """
    last = [0.0] * rounds

    async def watch(client: Client, call: Any) -> None:
        for index in range(rounds):
            async with asyncio.timeout(_NEWS_SECONDS):
                update = m.VersionUpdateReply.FromString(await call.read())
            await client.retrieve(upload.model_id, update.version_info.version_number)
            last[index] = max(last[index], time.monotonic())

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        calls = [clients[index % connections].watch(upload.model_id) for index in range(streams)]
        await asyncio.gather(*(call.read() for call in calls))
        await meet()
        await asyncio.gather(*(watch(clients[index % connections], call) for index, call in enumerate(calls)))
        for call in calls:
            call.cancel()
    return last
