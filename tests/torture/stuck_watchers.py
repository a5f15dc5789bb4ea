"""A thousand watchers that read nothing use bounded memory of the server, and delay no other client.

They request the bytes of versions, and never read. Versions of many sizes are published one after the other; a watcher
that reads, and resumes, receives each with its bytes, and another client retrieves it.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import psutil

from cogment_model_registry.settings import MIB
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire.watching import WatchRequest
from tests.client import Client, connected
from tests.followers import Follower
from tests.server.under_way import under_way
from tests.torture.oracle import payload, unharmed_server
from tests.torture.proof import Figures, Proof

WATCHERS = 1000
CONNECTIONS = 20
BUDGET_BYTES = 64 * MIB
INLINE_BYTES = MIB

ALLOWANCE_BYTES = 300 * MIB
"""How much the server may grow beyond its budget: the messages that watchers share (64 MiB), and what gRPC keeps of one
message for each of them, 128 KiB at least. Without a bound it would be 1 GiB and more."""

_TAKES_LITTLE = [("grpc.http2.bdp_probe", 0)]
"""Without this, the process would use some MiB for each watcher."""

_SIZES = (1000, 128 * 1024, 300_000, INLINE_BYTES)


async def _attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    figures.count("versions missed by other clients", 0)
    flags = (f"--cache_max_bytes={BUDGET_BYTES}", "--retrieval_idle_seconds=3600", "--log_format=json")
    with unharmed_server(place / "archive", *flags) as server:
        async with AsyncExitStack() as stack:
            good = await stack.enter_async_context(connected(server.port))
            others = [
                await stack.enter_async_context(connected(server.port, further_options=_TAKES_LITTLE))
                for _ in range(CONNECTIONS)
            ]
            await good.create_model("m")
            await good.publish("m", payload("first", INLINE_BYTES))
            memory = psutil.Process(server.pid).memory_info
            before_bytes = memory().rss
            stuck = [_stuck(others[index % CONNECTIONS], index) for index in range(WATCHERS)]
            token = await _caught_up(good)
            await under_way(good, watchers=WATCHERS)
            for number in range(2, rounds + 2):
                data = payload(f"{random.random()}", random.choice(_SIZES))
                follower = Follower(good, "m", every=True, token=token, inline=INLINE_BYTES, in_one_reply=True)
                assert await follower.until_caught_up() == []
                info = await good.publish("m", data)
                assert (await follower.texts(1), follower.data) == ([f"m {number}"], data)
                assert await good.data("m", info.version_number) == data
                token = follower.token
                await follower.cancel()
                grown_bytes = memory().rss - before_bytes
                figures.peak("MiB of the server above its budget", (grown_bytes - BUDGET_BYTES) / MIB)
                assert grown_bytes < BUDGET_BYTES + ALLOWANCE_BYTES, f"the server grew by {grown_bytes // MIB} MiB"
                figures.count("versions")
            for call in stuck:
                call.cancel()
            await under_way(good, watchers=0)
    figures.count("watchers that read nothing", WATCHERS)


async def _caught_up(client: Client) -> str:
    """Return the token of a watcher that has received all existing versions."""
    follower = Follower(client, "m", every=True)
    await follower.until_caught_up()
    await follower.cancel()
    return follower.token


def _stuck(client: Client, index: int) -> Any:
    """Return a watch that is never read."""
    request = WatchRequest(
        model_ids=["m"] if index % 2 else [],
        mode="MODE_ALL" if index % 4 < 2 else "MODE_LATEST",
        inline_max_bytes=INLINE_BYTES,
        in_one_reply=index % 8 < 4,
    )
    call: Any = client.channel.unary_stream(f"/{lifecycle.SERVICE_NAME}/Watch")
    return call(request.SerializeToString())


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Publish a number of versions."""
    asyncio.run(_attempt(place, rounds, random, figures))


PROOF = Proof(
    name="stuck_watchers",
    promise="A thousand watchers that read nothing use bounded memory and delay no other client",
    attempt=attempt,
    unit="versions",
    short=3,
    long=1_000,
    batch=200,
)
