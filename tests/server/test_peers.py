"""Relays between real servers: a version comes from the memory of one server into that of another."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest

from cogment_model_registry import aio
from cogment_model_registry.errors import DataLossError, NotFoundError, StartError, UnavailableError
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.sizes import KIB, MIB
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import Reader
from cogment_model_registry.server import peers as peers_module
from cogment_model_registry.server.peers import Peers, PeerToken, peers_of
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.tools.tokens import add_grant
from cogment_model_registry.system.certificates import PemFile
from cogment_model_registry.testing.bytes import describe, read, read_part
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import convert, lifecycle
from cogment_model_registry.wire.frames import build_read_chunk
from cogment_model_registry.wire.tls import TlsFiles
from tests.certificates import Authority, connected_over_tls
from tests.client import connected, metrics_text, refused
from tests.ports import free_port
from tests.processes import ServerProcess, server_process
from tests.registry_client.network import Relay, listening
from tests.server.relayed import other_server
from tests.server.test_metrics import Scrape
from tests.server.test_relaying_store import rest_of
from tests.waiting import PATIENCE_SECONDS, eventually, until

LARGE = Random(3).randbytes(8 * MIB)
STOP_BYTES = 3 * MIB
CHUNK_BYTES = 64 * KIB
FLAGS = (
    "--metrics_port=0",
    "--cache_max_bytes=64MiB",
    "--local_socket=off",
    f"--sent_version_chunk_size={CHUNK_BYTES}",
)


class Holder:
    """A server that holds versions."""

    def __init__(self, port: int, metrics_port: int) -> None:
        self.port = port
        self._metrics_port = metrics_port

    async def publish(self, data: bytes, model_id: str = "m", created_ns: int = 0) -> VersionInfo:
        """Publish a version."""
        async with connected(self.port) as client:
            await client.create_model(model_id)
            message = await client.publish(model_id, data, creation_timestamp=created_ns)
            return convert.version_from_message(message)

    async def scrape(self) -> Scrape:
        return Scrape(await asyncio.to_thread(metrics_text, self._metrics_port))

    async def has_ended(self, count: int, status: str = "OK") -> None:
        """Wait until so many calls ReadVersion have ended, all of them with a status."""

        async def is_so() -> bool:
            return (await self.scrape()).by("method", "calls_total").get("ReadVersion", 0) == count

        await eventually(is_so)
        assert (await self.scrape())("calls_total", method="ReadVersion", status=status) == count


class HoldingProcess(Holder):
    """The same in a process of its own."""

    def __init__(self, process: ServerProcess) -> None:
        super().__init__(process.port, int(process.wait_for_line(r"metrics_port[\"=: ]+(\d+)")[1]))
        self.process = process


@pytest.fixture
async def holder(tmp_path: Path) -> AsyncIterator[Holder]:
    settings = Settings(
        metrics_port=0,
        cache_max_bytes=64 * MIB,
        grace_seconds=0,
        local_socket="",
        sent_version_chunk_size=CHUNK_BYTES,
        retention_seconds=0,
    )
    async with serving(tmp_path / "archive", settings) as server:
        yield Holder(server.port, server.metrics_port or 0)


@pytest.fixture
def first(tmp_path: Path) -> Iterator[HoldingProcess]:
    with server_process(tmp_path / "first", *FLAGS) as process:
        yield HoldingProcess(process)


class Stopping(Relay):
    """A relay in front of a server that passes on so many of its bytes, and the others when it may."""

    def __init__(self, target: int, after_bytes: int) -> None:
        super().__init__(target)
        self.has_stopped = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self._after_bytes = after_bytes

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, upwards: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(CHUNK_BYTES):
                if not upwards and self.replied_bytes >= self._after_bytes:
                    self.has_stopped.set()
                    await self.may_go_on.wait()
                target.write(data)
                await target.drain()
                self.count(len(data), upwards=upwards)


@asynccontextmanager
async def stopping(port: int) -> AsyncIterator[tuple[int, Stopping]]:
    """Return a context manager with a relay that stops in the middle, and its port."""
    relay = Stopping(port, STOP_BYTES)
    async with listening(relay.relay) as relayed:
        yield relayed, relay


@asynccontextmanager
async def first_mib_of(reader: Reader) -> AsyncIterator[tuple[bytes, AsyncIterator[Any]]]:
    """Return a context manager with the first MiB of a version that arrives, and the chunks that follow."""
    chunks = reader.chunks(CHUNK_BYTES, 2 * CHUNK_BYTES)
    yield b"".join([b"".join(await anext(chunks)) for _ in range(MIB // CHUNK_BYTES)]), chunks


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * MIB + 5])
async def test_a_version_that_a_client_published_is_relayed_and_kept(holder: Holder, size: int) -> None:
    async with (
        aio.ModelRegistry(f"grpc://127.0.0.1:{holder.port}") as client,
        other_server(holder.port) as other,
    ):
        await client.create_model("m")
        info = await client.publish("m", LARGE[:size])
        assert await read(other.store, info) == LARGE[:size]
        assert await read(other.local, info) == LARGE[:size]
        assert b"".join(await read_part(other.store, info, size // 3, size // 2)) == LARGE[size // 3 :][: size // 2]
        await holder.has_ended(1)
        assert other.counts.received_bytes == size


async def test_sixteen_readers_get_the_first_bytes_of_one_stream_while_the_holder_still_sends(holder: Holder) -> None:
    info = await holder.publish(LARGE)
    async with stopping(holder.port) as (port, relay), other_server(port) as other:
        readers = [await other.store.open_version(info) for _ in range(16)]

        async def read_all(reader: Reader) -> bytes:
            async with reader, first_mib_of(reader) as (start, rest):
                has_begun[reader].set()
                return start + await rest_of(rest)

        has_begun = {reader: asyncio.Event() for reader in readers}
        reading = [asyncio.create_task(read_all(reader)) for reader in readers]
        for each in has_begun.values():
            await each.wait()
        assert relay.replied_bytes < len(LARGE)
        relay.may_go_on.set()
        assert await asyncio.gather(*reading) == [LARGE] * 16
        assert (other.counts.begun, other.counts.joined) == (1, 15)
        await holder.has_ended(1)


async def test_when_the_holder_is_killed_in_the_middle_another_one_sends_the_rest(
    first: HoldingProcess, holder: Holder
) -> None:
    info = await first.publish(LARGE, created_ns=1)
    assert await holder.publish(LARGE, created_ns=1) == info
    async with stopping(first.port) as (port, relay), other_server(port, holder.port) as other:
        async with await other.store.open_version(info) as reader, first_mib_of(reader) as (start, rest):
            await relay.has_stopped.wait()
            first.process.kill()
            relay.may_go_on.set()
            assert start + await rest_of(rest) == LARGE
        assert await read(other.local, info) == LARGE
        await holder.has_ended(1)
    assert (await holder.scrape())("sent_bytes_total", method="ReadVersion") < len(LARGE) - MIB + CHUNK_BYTES


async def test_without_another_holder_the_readers_learn_that_it_is_not_reachable(first: HoldingProcess) -> None:
    info = await first.publish(LARGE)
    async with stopping(first.port) as (port, relay), other_server(port) as other:
        async with await other.store.open_version(info) as reader, first_mib_of(reader) as (_, rest):
            await relay.has_stopped.wait()
            first.process.kill()
            relay.may_go_on.set()
            with pytest.raises(UnavailableError, match="cannot be reached; retry in some seconds"):
                await rest_of(rest)
        with pytest.raises(UnavailableError, match="cannot be reached; retry in some seconds"):
            await other.store.open_version(info)
        assert other.local.usage.held_bytes == 0


async def test_a_holder_that_falls_silent_is_replaced(first: HoldingProcess, holder: Holder) -> None:
    info = await first.publish(LARGE, created_ns=1)
    await holder.publish(LARGE, created_ns=1)
    impatient = Peers(PeerToken(""), TlsFiles(), silent_seconds=0.2)
    first.process.signal(signal.SIGSTOP)
    try:
        async with impatient, other_server(holder.port) as other:
            patient = other.peers
            frozen = f"grpc://127.0.0.1:{first.port}"
            other.holders.insert(0, frozen)
            other.peers_by_endpoint[frozen] = impatient
            assert await read(other.store, info) == LARGE
            assert (impatient.connections, patient.connections) == (0, 1)
    finally:
        first.process.signal(signal.SIGCONT)


async def test_the_call_is_cancelled_when_the_last_reader_leaves(holder: Holder) -> None:
    info = await holder.publish(LARGE)
    async with stopping(holder.port) as (port, relay), other_server(port) as other:
        readers = [await other.store.open_version(info) for _ in range(2)]
        await relay.has_stopped.wait()
        for reader in readers:
            await reader.aclose()
        await until(lambda: other.local.usage.held_bytes == 0)
        relay.may_go_on.set()
        await holder.has_ended(1, "CANCELLED")
        assert (await holder.scrape())("readers") == 0
        assert await read(other.store, info) == LARGE


async def test_a_version_that_is_deleted_in_the_middle_is_read_to_its_end(holder: Holder) -> None:
    info = await holder.publish(LARGE)
    async with stopping(holder.port) as (port, relay), other_server(port) as other:
        async with await other.store.open_version(info) as reader, first_mib_of(reader) as (start, rest):
            await relay.has_stopped.wait()
            async with connected(holder.port) as client:
                await client.delete_model("m")
            await other.store.remove_model("m")
            relay.may_go_on.set()
            assert start + await rest_of(rest) == LARGE
        with pytest.raises(NotFoundError):
            await other.store.open_version(info)
        await until(lambda: other.local.usage.held_bytes == 0)
        assert other.local.usage.items == 0


async def test_a_version_of_another_life_of_the_model_is_not_found(holder: Holder) -> None:
    info = await holder.publish(b"data")
    async with connected(holder.port) as client:
        await client.delete_model("m")
    again, later = await holder.publish(b"data"), await holder.publish(b"other")
    assert (again.number, again.data_hash) == (info.number, info.data_hash)
    async with other_server(holder.port) as other:
        for wrong in (info, describe("m", later.number, b"data", False), describe("m", 9, b"data", False)):
            with pytest.raises(NotFoundError):
                await other.store.open_version(wrong)
        assert await read(other.store, again) == b"data"


async def test_without_room_each_reader_receives_a_stream_of_its_own(holder: Holder) -> None:
    info = await holder.publish(LARGE)
    async with other_server(holder.port, max_bytes=MIB) as other:
        assert await asyncio.gather(*(read(other.store, info) for _ in range(3))) == [LARGE] * 3
        assert (other.local.usage.items, other.local.usage.held_bytes) == (0, 0)
        assert other.counts.unkept == 3


# Servers that do not do what they should.


@asynccontextmanager
async def scripted_server(*messages: bytes) -> AsyncIterator[int]:
    """Return a context manager for the port of a server that answers each ReadVersion with the same messages."""

    async def answer(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"ReadVersion": grpc.unary_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(lifecycle.SERVICE_NAME, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def record(info: VersionInfo) -> bytes:
    """Return the first message of a reply."""
    return lifecycle.ReadVersionReply(version=lifecycle.version_message(Version.of(info))).SerializeToString()


async def test_a_server_with_wrong_bytes_is_replaced_and_its_bytes_are_never_kept(holder: Holder) -> None:
    data = LARGE[:MIB]
    info = await holder.publish(data)
    wrong = build_read_chunk([data[:-1] + b"x"])
    async with scripted_server(record(info), wrong) as lying:
        async with other_server(lying, holder.port) as other:
            assert await read(other.store, info) == data
            assert await read(other.local, info) == data
        async with other_server(lying) as other:
            async with await other.store.open_version(info) as reader:
                with pytest.raises(DataLossError):
                    await rest_of(reader.chunks(2 * MIB, 4 * MIB))
            assert (other.local.usage.items, other.local.usage.bytes) == (0, 0)


INFO = describe("m", 1, b"data", False)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [build_read_chunk([b"data"])],
        [b"\xff"],
        [record(INFO), b"\xff"],
        [record(INFO), record(INFO)],
        [record(INFO), build_read_chunk([b"dat"])],
    ],
)
async def test_a_server_that_answers_nonsense_is_not_reachable(messages: list[bytes]) -> None:
    async with scripted_server(*messages) as port, other_server(port) as other:
        with pytest.raises(UnavailableError):
            await read(other.store, INFO)


async def test_a_server_that_knows_no_such_call_is_not_reachable() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with other_server(port) as other:
            with pytest.raises(UnavailableError):
                await read(other.store, INFO)
    finally:
        await server.stop(None)


# What a server answers to others.


async def test_other_servers_get_transient_versions_by_number_from_memory_alone(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        await client.create_model("m")
        await client.publish("m", b"transient")
        await client.store("m", b"archived")
        channel = client.channel

        async def ask(request: Any) -> list[Any]:
            call: Any = channel.unary_stream(f"/{lifecycle.SERVICE_NAME}/ReadVersion")
            replies = call(request.SerializeToString(), metadata=lifecycle.FOR_A_PEER, timeout=PATIENCE_SECONDS)
            return [lifecycle.read_reply(message) async for message in replies]

        version, data = await ask(lifecycle.read_request("m", 1, 0, None, ""))
        assert isinstance(version, Version)
        assert (version.number, version.tags, bytes(data)) == (1, {}, b"transient")
        assert bytes((await ask(lifecycle.read_request("m", 1, 2, 3, version.data_hash)))[1]) == b"ans"
        for number in (2, 3):
            with refused(grpc.StatusCode.NOT_FOUND):
                await ask(lifecycle.read_request("m", number, 0, None, ""))
        for key in (-1, "production"):
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "by its number"):
                await ask(lifecycle.read_request("m", key, 0, None, ""))
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            await ask(lifecycle.read_request("m", 1, 0, None, describe("m", 1, b"", False).data_hash))
        with refused(grpc.StatusCode.OUT_OF_RANGE):
            await ask(lifecycle.read_request("m", 1, 10, None, ""))


# Connections.


async def test_connections_are_kept_while_they_are_used_and_closed_afterwards(holder: Holder) -> None:
    infos = [await holder.publish(bytes([number]) * 10, "m") for number in range(4)]
    async with stopping(holder.port) as (port, relay):
        peers = Peers(PeerToken(""), TlsFiles(), unused_seconds=0)
        async with other_server(port, peers=peers) as other:
            async with await other.store.open_version(infos[0]) as reader:
                await rest_of(reader.chunks(MIB, MIB))
            await until(lambda: peers.connections == 0)
            assert await read(other.store, infos[1]) == b"\1" * 10
            await until(lambda: peers.connections == 0)
            assert relay.connections == 2
        async with other_server(port) as other:
            assert await asyncio.gather(*(read(other.store, info) for info in infos)) == [
                bytes([number]) * 10 for number in range(4)
            ]
            assert relay.connections == 3
            assert other.peers.connections == 1


async def test_a_server_that_was_started_again_is_found_at_once(tmp_path: Path) -> None:
    port = free_port()
    async with other_server(port) as other:
        with pytest.raises(UnavailableError):
            await other.store.open_version(INFO)
        for data in (b"before", b"after"):
            with server_process(tmp_path / "archive", *FLAGS, f"--port={port}") as process:
                info = await HoldingProcess(process).publish(data)
                assert await read(other.store, info) == data


# Access.


def grant(archive: Path, token: str, scope: str) -> None:
    add_grant(str(archive), Grant(token, "token", identity_of(token), parse_scopes([scope]), 0))


async def test_a_server_shows_the_token_of_its_file_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "AGAIN_SECONDS", 0)
    archive, token = tmp_path / "archive", tmp_path / "token"
    grant(archive, "cmr_writer", "admin")
    grant(archive, "cmr_peer", "read")
    settings = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, anonymous="nothing", local_socket="")
    async with serving(archive, settings) as server:
        async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}", token="cmr_writer") as client:
            await client.create_model("m")
            info = await client.publish("m", b"data")
        token.write_text("cmr_wrong\n")
        async with other_server(server.port, peers=peers_of(Settings(peer_token_file=str(token)))) as other:
            with pytest.raises(UnavailableError):
                await other.store.open_version(info)
            token.write_text("")
            with pytest.raises(UnavailableError):
                await other.store.open_version(info)
            token.write_text("cmr_peer\n")
            assert await read(other.store, info) == b"data"
        async with other_server(server.port) as other:
            with pytest.raises(UnavailableError):
                await other.store.open_version(info)


async def test_servers_reach_each_other_over_tls_with_their_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    settings = Settings(
        cache_max_bytes=64 * MIB,
        grace_seconds=0,
        local_socket="",
        tls_client_ca=str(authority.certificate),
        anonymous="everything",
        **theirs.options,  # type: ignore[arg-type]
    )
    async with serving(tmp_path / "archive", settings) as server:
        async with connected_over_tls(server.port, authority, ours) as client:
            await client.create_model("m")
            info = convert.version_from_message(await client.publish("m", b"data"))
        trusting = Settings(peer_tls_ca=str(authority.certificate))
        showing = Settings(peer_tls_ca=str(authority.certificate), **ours.options)  # type: ignore[arg-type]
        async with other_server(peers=peers_of(showing)) as other:
            other.holders = [f"grpcs://127.0.0.1:{server.port}"]
            assert await read(other.store, info) == b"data"
        for unfit in (trusting, Settings(**ours.options)):  # type: ignore[arg-type]
            async with other_server(peers=peers_of(unfit)) as other:
                other.holders = [f"grpcs://127.0.0.1:{server.port}"]
                with pytest.raises(UnavailableError):
                    await other.store.open_version(info)


def test_files_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for name, path in (("peer_token_file", "empty"), ("peer_token_file", "missing"), ("peer_tls_ca", "empty")):
        with pytest.raises(StartError, match=name if path == "missing" else "empty"):
            peers_of(Settings(**{name: str(tmp_path / path)}))  # type: ignore[arg-type]


async def test_a_certificate_that_became_unusable_makes_servers_unreachable(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    files = TlsFiles(PemFile("peer_tls_ca", str(authorities)))
    async with other_server(peers=Peers(PeerToken(""), files)) as other:
        other.holders = ["grpcs://127.0.0.1:1"]
        with pytest.raises(UnavailableError):
            await other.store.open_version(INFO)
