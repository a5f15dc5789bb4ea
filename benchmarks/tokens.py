"""What a small call costs with a token, compared with the same call without one, to one server.

The client is gRPC's blocking one with what our client adds to carry a token: all else that ours does would hide it.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import grpc

from benchmarks.bench import Bench, Benchmark, Outcome
from benchmarks.load import job
from benchmarks.measures import Blocks, at_most, compared
from benchmarks.processes import registry as registry_process
from cogment_model_registry import ModelRegistry
from cogment_model_registry.client.credentials import Credentials, authorized
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.storage.tools.tokens import add_grant
from cogment_model_registry.wire import messages as m

_MODEL_ID = "walker"
_TOKEN = "cmr_" + "a" * 43  # as long as those that the registry makes
_SCOPES = ["read:walker", "publish:walker"]
_METHOD = f"/{m.SERVICE_NAMES[0]}/RetrieveVersionInfos"
_REQUEST = m.RetrieveVersionInfosRequest(model_id=_MODEL_ID, version_numbers=[-1]).SerializeToString()
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Costs:
    """What calls took, by block: microseconds for each call.

    Attributes:
        elapsed: Until the answer.
        client: Of processors, for the client.
        server: Of processors, for the server.
    """

    elapsed: Blocks
    client: Blocks
    server: Blocks


def _worked_seconds(pid: int) -> float:
    """Return how long processors worked for a process so far, to the nanosecond; see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


async def call_costs(port: int, pid: int, tokens: Sequence[str], blocks: int, calls: int) -> list[Costs]:
    """Return what look-ups of the latest version cost with each token, in turns.

    Args:
        port: The port of the server.
        pid: Its process.
        tokens: The tokens; empty for none.
        blocks: How many blocks of calls with each.
        calls: How many calls a block has.
    """

    def measure() -> list[Costs]:
        costs = [Costs([], [], []) for _ in tokens]
        with ExitStack() as stack:
            channels = [stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", _OPTIONS)) for _ in tokens]
            methods = [
                authorized(channel, Credentials(token)).unary_unary(_METHOD)
                for channel, token in zip(channels, tokens, strict=True)
            ]
            sides = [*zip(methods, costs, strict=True)]
            for block in range(-2, blocks):  # the first ones warm up
                for call, found in sides[:: 1 if block % 2 else -1]:  # whoever comes first has no advantage
                    before = time.perf_counter(), time.process_time(), _worked_seconds(pid)
                    for _ in range(calls):
                        call(_REQUEST)
                    after = time.perf_counter(), time.process_time(), _worked_seconds(pid)
                    if block >= 0:
                        for kept, began, ended in zip(
                            (found.elapsed, found.client, found.server), before, after, strict=True
                        ):
                            kept.append([(ended - began) / calls * 1e6])
        return costs

    return await asyncio.to_thread(measure)


def _infos(bench: Bench) -> Sequence[Outcome]:
    with bench.place() as place:
        archive = place / "archive"
        add_grant(str(archive), Grant("actor", "token", identity_of(_TOKEN), parse_scopes(_SCOPES), 0))
        with registry_process(archive, "--anonymous=everything") as server:
            with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as client:
                client.publish(_MODEL_ID, os.urandom(1024))
            tokens = [_TOKEN, ""]
            todo = job(call_costs, server.port, server.pid, tokens, bench.choose(400, 10), bench.choose(20, 30))
            with_token, without = bench.load(0).run(todo)
    return [
        compared(
            name,
            f"look up the latest version with a token, {what}",
            "µs",
            blocks,
            against="without a token",
            floor_blocks=floor,
            target=at_most(1.03),
        )
        for name, what, blocks, floor in (
            ("infos with a token", "one call at a time", with_token.elapsed, without.elapsed),
            ("server with a token", "processor time of the server", with_token.server, without.server),
            ("client with a token", "processor time of the client", with_token.client, without.client),
        )
    ]


BENCHMARKS = [Benchmark("tokens", "a small call with a token, compared with the same without one", _infos)]
