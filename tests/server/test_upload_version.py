"""UploadVersion, over a real channel."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle as m
from cogment_model_registry.wire import messages
from tests.client import Client, connected
from tests.processes import server_process
from tests.server.under_way import leftovers, under_way
from tests.waiting import PATIENCE_SECONDS, eventually, until

MIB = 1024 * 1024
DATA = os.urandom(3 * MIB)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
TIERS = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])


def header(
    data: bytes = DATA, request_id: str = "id", *, archived: bool = False, hashed: bool = True, **fields: Any
) -> m.UploadVersionRequest:
    """Return the header of an upload of the model "m"."""
    info = messages.ModelVersionInfo(
        model_id=fields.pop("model_id", "m"),
        archived=archived,
        data_size=len(data),
        data_hash=hash_of(data) if hashed else "",
    )
    return m.UploadVersionRequest(
        header=m.UploadVersionRequest.Header(version_info=info, request_id=request_id, **fields)
    )


def chunk(data: bytes) -> m.UploadVersionRequest:
    return m.UploadVersionRequest(data_chunk=data)


class Upload:
    """A call of UploadVersion."""

    def __init__(self, client: Client) -> None:
        call: Any = client.channel.stream_stream(f"/{m.SERVICE_NAME}/UploadVersion")
        self.call = call(timeout=PATIENCE_SECONDS)

    async def send(self, *requests: Message | bytes) -> None:
        for request in requests:
            await self.call.write(request if isinstance(request, bytes) else request.SerializeToString())

    async def reply(self) -> m.UploadVersionReply:
        message = await self.call.read()
        if message is grpc.aio.EOF:
            raise AssertionError(f"the call ended with {await self.call.code()}: {await self.call.details()}")
        return m.UploadVersionReply.FromString(message)

    async def begin(self, header: m.UploadVersionRequest) -> int:
        """Send a header, and return the offset at which the server wants the bytes to start."""
        await self.send(header)
        reply = await self.reply()
        assert reply.WhichOneof("reply") == "next_offset"
        return reply.next_offset

    async def finish(self, data: bytes = b"") -> Version:
        """Send bytes, end the stream, and return the version."""
        await self.send(*[chunk(data[start : start + MIB]) for start in range(0, len(data), MIB)])
        await self.call.done_writing()
        return await self.version()

    async def version(self) -> Version:
        reply = await self.reply()
        assert reply.WhichOneof("reply") == "version"
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK
        return m.version_from_message(reply.version)

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Return the status and its details, after all replies."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()


async def interrupt(client: Client, header: m.UploadVersionRequest, data: bytes) -> None:
    """Make an upload that is cancelled after some bytes have arrived."""
    upload = Upload(client)
    await upload.begin(header)
    await upload.send(chunk(data))
    await received(client, len(data))
    upload.call.cancel()
    await under_way(client, uploads=0)


async def received(client: Client, size_bytes: int) -> None:
    """Wait until the server has a number of bytes of transient versions."""

    async def has_bytes() -> bool:
        return await client.status("transient_bytes") == {"transient_bytes": str(size_bytes)}

    await eventually(has_bytes)


async def test_a_version_becomes_visible_with_its_tags_metrics_and_aliases(client: Client) -> None:
    upload = Upload(client)
    fields: dict[str, Any] = {
        "tags": {"stage": "new"},
        "metrics": {"return": 487.5},
        "aliases": ["best"],
        "create_model": True,
    }
    assert await upload.begin(header(model_id="new", **fields)) == 0
    version = await upload.finish(DATA)
    assert (version.tags, version.metrics, version.aliases) == ({"stage": "new"}, {"return": 487.5}, ("best",))
    assert (version.number, version.info.archived) == (1, True)
    assert await client.data("new", 1) == DATA


@TIERS
async def test_a_client_need_not_wait_without_a_hash(client: Client, archived: bool) -> None:
    await client.create_model("m")
    numbers: list[int] = []
    for _ in range(2):
        upload = Upload(client)
        await upload.send(header(archived=archived, hashed=False), chunk(DATA[:MIB]), chunk(DATA[MIB:]))
        await upload.call.done_writing()
        assert (await upload.reply()).next_offset == len(numbers) * len(DATA)
        numbers.append((await upload.version()).number)
    assert numbers == [1, 1]
    assert await client.data("m") == DATA


@TIERS
async def test_a_repeated_upload_answers_at_once(client: Client, archived: bool) -> None:
    await client.create_model("m")
    first = Upload(client)
    assert await first.begin(header(archived=archived)) == 0
    version = await first.finish(DATA)
    again = Upload(client)
    assert await again.begin(header(archived=archived)) == len(DATA)
    assert await again.version() == version
    assert await client.numbers("m") == [1]


async def test_an_upload_of_an_archived_version_is_known_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.port) as client:
        await client.create_model("m")
        upload = Upload(client)
        await upload.begin(header(archived=True, aliases=["best"]))
        version = await upload.finish(DATA)
    async with serving(tmp_path) as server, connected(server.port) as client:
        upload = Upload(client)
        assert await upload.begin(header(archived=True, aliases=["best"])) == len(DATA)
        assert await upload.version() == version


async def test_an_interrupted_upload_resumes_where_it_stopped(client: Client) -> None:
    await client.create_model("m")
    await interrupt(client, header(), DATA[:MIB])
    upload = Upload(client)
    assert await upload.begin(header()) == MIB
    assert (await upload.finish(DATA[MIB:])).number == 1
    assert await client.data("m") == DATA
    await received(client, len(DATA))


async def test_an_upload_that_sends_nothing_for_too_long_can_be_resumed(tmp_path: Path) -> None:
    settings = Settings(upload_idle_seconds=0.3, grace_seconds=0)
    async with serving(tmp_path, settings) as server, connected(server.port) as client:
        await client.create_model("m")
        upload = Upload(client)
        await upload.begin(header(archived=True))
        await upload.send(chunk(DATA[:MIB]))
        assert (await upload.status())[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        again = Upload(client)
        assert await again.begin(header(archived=True)) == MIB
        await again.finish(DATA[MIB:])
        assert await client.data("m") == DATA


async def test_a_new_connection_takes_over_the_upload_of_a_lost_one(client: Client, server: Server) -> None:
    await client.create_model("m")
    first = Upload(client)
    await first.begin(header())
    await first.send(chunk(DATA[:MIB]))
    await received(client, MIB)
    async with connected(server.port) as other:
        second = Upload(other)
        assert await second.begin(header()) == MIB
        assert (await second.finish(DATA[MIB:])).number == 1
    code, details = await first.status()
    assert (code, "another call continues the upload" in details) == (grpc.StatusCode.ABORTED, True)
    assert await client.data("m") == DATA


async def test_the_id_of_a_different_upload_already_exists(client: Client) -> None:
    await client.create_model("m")
    await Upload(client).begin(header())
    other = Upload(client)
    await other.send(header(archived=True))
    code, details = await other.status()
    assert (code, 'request_id "id"' in details) == (grpc.StatusCode.ALREADY_EXISTS, True)


@pytest.mark.parametrize("source", [False, True], ids=["from transient", "from archived"])
@TIERS
async def test_bytes_that_the_model_has_are_not_sent(
    client: Client, tmp_path: Path, archived: bool, source: bool
) -> None:
    await client.create_model("m")
    await (client.store if source else client.publish)("m", DATA)
    upload = Upload(client)
    assert await upload.begin(header(archived=archived)) == len(DATA)
    version = await upload.version()
    assert (version.number, version.info.archived, version.info.data_hash) == (2, archived, hash_of(DATA))
    assert await client.data("m", 2) == DATA
    if archived and source:
        inodes = {os.stat(tmp_path / f"archive/m/m-v00000{number}.data").st_ino for number in (1, 2)}
        assert len(inodes) == 1


@pytest.mark.parametrize(
    ("requests", "details"),
    [
        ([], "the stream was empty"),
        ([chunk(b"x")], "must begin with a header; a body came first"),
        ([m.UploadVersionRequest()], "has neither"),
        ([m.UploadVersionRequest(header=m.UploadVersionRequest.Header())], "must have a version_info"),
        ([b"\xff\xff"], "is not a cogment_model_registry.v1.UploadVersionRequest"),
        ([header(b"data", hashed=False), header(b"data")], "a second one came"),
        ([header(b"data", hashed=False), chunk(b"dat")], "but 3 were received"),
        ([header(b"data"), chunk(b"data!")], "but at least 5 were received"),
        ([header(b"data"), chunk(b"DATA")], "data_hash is"),
        ([header(b"data", "x" * 65)], "request_id"),
        ([header(b"data", aliases=["7"])], "alias"),
    ],
)
@TIERS
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    client: Client, tmp_path: Path, requests: list[Any], details: str, archived: bool
) -> None:
    await client.create_model("m")
    for request in requests:
        if isinstance(request, m.UploadVersionRequest) and request.header.HasField("version_info"):
            request.header.version_info.archived = archived
    upload = Upload(client)
    await upload.send(*requests)
    await upload.call.done_writing()
    code, text = await upload.status()
    assert (code, details in text) == (INVALID, True), text
    await under_way(client, uploads=0)
    assert await client.numbers("m") == []
    # The numbers of a new model are reserved concurrently with other calls, through a temporary file.
    await until(lambda: not leftovers(tmp_path / "archive"))


async def test_a_missing_model_is_not_found(client: Client) -> None:
    upload = Upload(client)
    await upload.send(header())
    assert (await upload.status())[0] is grpc.StatusCode.NOT_FOUND
    assert not (await client.models()).model_infos


async def test_a_repeated_upload_does_not_recreate_a_deleted_version(client: Client) -> None:
    await client.create_model("m")
    upload = Upload(client)
    await upload.begin(header())
    await upload.finish(DATA)
    lifecycle = Client(client.channel, m.SERVICE_NAME)
    await lifecycle.unary("DeleteVersion", m.DeleteVersionRequest(version=m.version_ref("m", 1)), m.DeleteVersionReply)
    again = Upload(client)
    await again.send(header())
    code, details = await again.status()
    assert (code, "evicted or deleted" in details) == (grpc.StatusCode.NOT_FOUND, True)


async def test_a_server_that_stops_leaves_nothing_of_interrupted_uploads(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            upload = Upload(client)
            await upload.begin(header(archived=True))
            await upload.send(chunk(DATA[:MIB]))
            await until(lambda: any(path.stat().st_size == MIB for path in leftovers(tmp_path)))
            upload.call.cancel()
            await under_way(client, uploads=0)
            assert leftovers(tmp_path)
        assert server.stop() == 0
    assert leftovers(tmp_path) == []
    assert not [line for line in server.lines if "error" in line.lower()]


async def test_a_moved_alias_is_logged(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            first, second = Upload(client), Upload(client)
            await first.begin(header(aliases=["production"]))
            await first.finish(DATA)
            await second.begin(header(aliases=["production"]))
            await second.version()
        assert server.stop() == 0
    [line] = [line for line in server.lines if "alias set" in line]
    assert "production" in line


async def test_a_read_only_server_takes_no_uploads(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, connected(server.port) as client:
        await client.create_model("m")
    async with serving(tmp_path, Settings(read_only=True, grace_seconds=0)) as server, connected(server.port) as client:
        upload = Upload(client)
        await upload.send(header())
        assert (await upload.status())[0] is grpc.StatusCode.FAILED_PRECONDITION
