"""What one server on a directory takes for transfers, connections, watchers and notifications.

Costs are processor time and memory of the server's process, so they hold on machines with more cores, and clients on
the same cores disturb them little.
"""

from contextlib import AsyncExitStack
from typing import Any

import psutil

from benchmarks.bench import Bench
from benchmarks.clients import (
    SecurePort,
    Upload,
    connected,
    notified_moments,
    prepare,
    publish_moments,
    retrieve_seconds,
    upload_seconds,
)
from benchmarks.encryption import create_certificate
from benchmarks.load import Job, job, meet, together
from benchmarks.measures import GIB, KIB, MIB
from benchmarks.processes import ServerProcess

MODEL_ID = "walker"
_CONNECTIONS = 400
_WATCHERS = 200
_CONNECTIONS_OF_WATCHERS = 20
_GAP_SECONDS = 0.25


def core_seconds_per_gib(bench: Bench, server: ServerProcess, todo: Job[Any], size_bytes: float) -> float:
    """Return the processor time of a server for a job that moves some bytes, for each GiB."""
    server.mark_processor()
    bench.load(0).run(todo)
    return server.marked_processor_seconds() / (size_bytes / GIB)


async def hold(port: int, connections: int, watchers: int) -> None:
    """Open connections, each with some watchers of the model, and keep them until the rendezvous."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(connections)]
        calls = [client.watch(MODEL_ID) for client in clients for _ in range(watchers)]
        for call in calls:
            await call.read()
        for client in clients:
            await client.infos(MODEL_ID, -1)
        await meet()
        for call in calls:
            call.cancel()


def one_server(bench: Bench) -> dict[str, float]:
    """Return the figures of one server."""
    size = bench.choose(256, 16) * MIB
    count = bench.choose(8, 2)
    upload = Upload(MODEL_ID, size)
    small = Upload(MODEL_ID, KIB)
    with bench.registry(budget_mib=4 * size // MIB) as server:
        bench.load(0).run(job(prepare, server.port, [MODEL_ID]))
        idle = server.resident_mib()
        bench.load(0).run(job(upload_seconds, server.port, small, 1))
        held = {watchers: _held_kib(bench, server, watchers) for watchers in (0, 1)}
        notify = _notify_core_ms(bench, server, small)
        publish = job(upload_seconds, server.port, upload, count, warm_up=False)
        send = job(retrieve_seconds, server.port, upload, count, warm_up=False)
        return {
            "idle": idle,
            "connection": held[0],
            "watcher": held[1] - held[0],
            "notify": notify,
            "publish": core_seconds_per_gib(bench, server, publish, size * count),
            "send": core_seconds_per_gib(bench, server, send, size * count),
            "send_cores": _send_cores(bench, server, send),
            "send_tls": _send_tls(bench, upload, count),
        }


def _send_tls(bench: Bench, upload: Upload, count: int) -> float:
    """Return the processor time of a server that sends over TLS."""
    with bench.place() as place:
        certificate, key = create_certificate(place)
        flags = (f"--tls_certificate={certificate}", f"--tls_key={key}")
        with bench.registry(*flags, budget_mib=4 * upload.size_bytes // MIB) as server:
            port = SecurePort(server.port, certificate)
            bench.load(0).run(job(prepare, port, [MODEL_ID]))
            bench.load(0).run(job(upload_seconds, port, upload, 1, warm_up=False))
            send = job(retrieve_seconds, port, upload, count, warm_up=False)
            return core_seconds_per_gib(bench, server, send, upload.size_bytes * count)


def _held_kib(bench: Bench, server: ServerProcess, watchers: int) -> float:
    """Return the memory of a connection with some watchers."""
    before = server.resident_mib()
    connections = bench.choose(_CONNECTIONS, 50)
    load = bench.load(0)
    holding = load.start(job(hold, server.port, connections, watchers))
    load.wait_ready(holding)
    after = server.resident_mib()
    load.go()
    holding.result()
    return (after - before) * KIB / connections


def _notify_core_ms(bench: Bench, server: ServerProcess, small: Upload) -> float:
    """Return the processor time for one more watcher that is notified."""
    rounds = bench.choose(40, 5)
    publishing = job(publish_moments, server.port, small, rounds, _GAP_SECONDS)
    watching = job(notified_moments, server.port, small, _CONNECTIONS_OF_WATCHERS, _WATCHERS, rounds)
    server.mark_processor()
    bench.load(0).run(publishing)
    alone = server.marked_processor_seconds()
    server.mark_processor()
    together([(bench.load(0), publishing), (bench.load(1), watching)])
    return (server.marked_processor_seconds() - alone) / (rounds * _WATCHERS) * 1000


def _send_cores(bench: Bench, server: ServerProcess, todo: Job[Any]) -> float:
    """Return how many cores a server can keep busy with a job, until its busiest thread takes a whole core."""
    process = psutil.Process(server.pid)
    before = {each.id: each.user_time + each.system_time for each in process.threads()}
    bench.load(0).run(todo)
    each_took = [each.user_time + each.system_time - before.get(each.id, 0.0) for each in process.threads()]
    return sum(each_took) / max(each_took)
