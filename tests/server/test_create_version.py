"""CreateVersion: accepted and refused uploads, and when they are refused; a refused upload leaves nothing."""

import asyncio
import shutil
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header, next_version, upload
from tests.waiting import PATIENCE_SECONDS, eventually

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MIB = 1024 * 1024
BUDGET_BYTES = 64 * MIB  # of the fixture `server`
MESSAGE_BYTES = 16 * MIB
BODY_OVERHEAD_BYTES = 10  # two tags and two lengths of four bytes each
USER_DATA_BYTES = 256 * 1024

ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
QUICKLY = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Chunks = Sequence[Message | bytes]


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


async def settled(client: Client, **expected: str) -> None:
    """Wait until the status is as expected."""

    async def is_expected() -> bool:
        return await client.status(*expected) == expected

    await eventually(is_expected)


@asynccontextmanager
async def leaving_nothing(client: Client, directory: Path, *, at_once: bool = True) -> AsyncIterator[None]:
    """Expect that uploads to the model "m" leave nothing at the end of the context, or shortly after it."""
    await client.create_model("m")
    await client.store("m", b"before")
    before = files(directory)
    watch = client.watching("m")
    assert (await next_version(watch)).version_number == 1
    yield
    nothing = {"uploads": "0", "transient_bytes": "0", "overall_load": "0", "versions": "1"}
    if not at_once:
        await settled(client, **nothing)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while files(directory) != before:
                await client.status()
    assert await client.status(*nothing) == nothing
    assert files(directory) == before
    assert await client.numbers("m") == [1]
    assert (await client.publish("m", b"after")).version_number == 2
    assert (await next_version(watch)).version_number == 2
    watch.cancel()


async def answer(client: Client, chunks: Chunks, *, is_all: bool = False) -> grpc.StatusCode:
    """Send chunks, and return the status that is received while the stream is open, or after its end if `is_all`."""
    call = client.uploading()
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call ends before all are sent
        for chunk in chunks:
            await call.write(chunk if isinstance(chunk, bytes) else chunk.SerializeToString())
        if is_all:
            await call.done_writing()
    async with asyncio.timeout(PATIENCE_SECONDS):
        code: grpc.StatusCode = await call.code()
    return code


@asynccontextmanager
async def uploading(client: Client, archived: bool = False) -> AsyncIterator[Any]:
    """Return a context manager for a call that has sent two MiB of three, which the server has received."""
    call = client.uploading()
    for chunk in upload("m", bytes(3 * MIB), archived, chunk_size=MIB)[:-1]:
        await call.write(chunk.SerializeToString())
    await settled(client, uploads="1", transient_bytes="0" if archived else str(2 * MIB))
    yield call
    call.cancel()


# Accepted uploads.


@ARCHIVED
async def test_reply_and_listing_describe_the_created_version(client: Client, archived: bool) -> None:
    user_data = {"k": "é" * (USER_DATA_BYTES // 4), "qqq": "x" * (USER_DATA_BYTES // 2 - 4)}  # the largest allowed
    await client.create_model("m")
    before_ns = time.time_ns()
    info = await client.create_version(upload("m", b"data", archived, user_data=user_data))
    assert before_ns <= info.creation_timestamp <= time.time_ns()
    expected = m.ModelVersionInfo(model_id="m", version_number=1, archived=archived, data_size=4, user_data=user_data)
    expected.data_hash = hash_of(b"data")
    expected.creation_timestamp = info.creation_timestamp
    assert info == expected
    assert [*(await client.infos("m")).version_infos] == [expected]


async def test_archived_version_is_stored_before_the_reply(client: Client, tmp_path: Path) -> None:
    await client.create_model("m")
    info = await client.store("m", b"data" * MIB, user_data={"yes": "~"}, creation_timestamp=1633119005107454620)
    copy = shutil.copytree(tmp_path / "archive", tmp_path / "copy")
    async with serving(copy) as server, connected(server.port) as other:
        assert [*(await other.infos("m")).version_infos] == [info]
        assert await other.data("m") == b"data" * MIB


@QUICKLY
@given(
    number=st.integers(0, 2**32 - 1),
    timestamp=st.integers(1, 2**64 - 1),
    size=st.just(4) | st.integers(0, 999) | st.integers(2**50, 2**64 - 1),
    archived=st.booleans(),
)
@example(number=7, timestamp=1, size=4, archived=True)
@example(number=2**32 - 1, timestamp=2**64 - 1, size=4, archived=True)
async def test_header_with_any_integers_is_answered_and_keeps_its_time_but_not_its_number(
    client: Client, number: int, timestamp: int, size: int, archived: bool
) -> None:
    await client.create_model("m")
    expected = (max(await client.numbers("m"), default=0) + 1, timestamp)
    first = header("m", size, archived, version_number=number, creation_timestamp=timestamp)
    # A grpc.aio client that continues to write to a refused call may report INTERNAL instead.
    code = await answer(client, [first, body(b"abcd")] if size < 1000 else [first], is_all=4 <= size < 1000)
    assert code in ({grpc.StatusCode.OK} if size == 4 else {INVALID, EXHAUSTED})
    if size == 4:
        [info] = (await client.infos("m", -1)).version_infos
        assert (info.version_number, info.creation_timestamp) == expected


@ARCHIVED
async def test_chunks_of_any_size_up_to_16_mib_may_be_mixed(client: Client, archived: bool) -> None:
    sizes = [
        1,
        MIB - 1,
        1,
        0,
        MESSAGE_BYTES - BODY_OVERHEAD_BYTES,
        1,
        1,
        65_536,
        MIB,
        3,
        2 * MIB + 1,
        262_144,
        *[1] * 300,
    ]
    data = Random(1).randbytes(sum(sizes))
    starts = [sum(sizes[:position]) for position in range(len(sizes))]
    bodies = [body(data[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
    assert max(chunk.ByteSize() for chunk in bodies) == MESSAGE_BYTES
    await client.create_model("m")
    info = await client.create_version([header("m", len(data), archived, data_hash=hash_of(data)), *bodies])
    assert (info.data_size, info.data_hash) == (len(data), hash_of(data))
    assert await client.data("m") == data


@QUICKLY
@given(sizes=st.lists(st.integers(0, 3) | st.integers(0, 400_000), max_size=8), archived=st.booleans())
@example(sizes=[], archived=False)
@example(sizes=[], archived=True)
@example(sizes=[0, 0], archived=True)
async def test_bytes_come_back_for_any_sizes_of_chunks(client: Client, sizes: list[int], archived: bool) -> None:
    bodies = [bytes([position + 1]) * size for position, size in enumerate(sizes)]
    data = b"".join(bodies)
    await client.create_model("m")
    info = await client.create_version([header("m", len(data), archived, data_hash=hash_of(data)), *map(body, bodies)])
    assert (info.data_size, info.data_hash) == (len(data), hash_of(data))
    assert await client.data("m") == data


async def test_budget_bounds_only_transient_versions_and_counts_exact_bytes(tmp_path: Path) -> None:
    small = Settings(cache_max_bytes=MIB, grace_seconds=0)
    async with serving(tmp_path, small) as server, connected(server.port) as client:
        await client.create_model("m")
        for _ in range(2):  # older versions are evicted
            await client.publish("m", bytes(MIB))
        await client.store("m", bytes(3 * MIB))
        assert await client.numbers("m") == [2, 3]
        assert await answer(client, [header("m", MIB + 1)]) == EXHAUSTED
        assert await client.numbers("m") == [2, 3]


# Refused uploads.

SOUND_HASH = hash_of(b"abcd")
BAD_HASHES = [
    *(SOUND_HASH[:-1], SOUND_HASH + "=", SOUND_HASH + "\n", " " + SOUND_HASH, "=" + SOUND_HASH[:-1], "=", "x"),
    *(sha256(b"abcd").hexdigest(), "é" * 44, "_" * 43 + "=", "-" * 43 + "=", "A" * 42 + "B=", "A" * 42 + "=="),
    *(b64encode(bytes(size)).decode() for size in (1, 31, 33, 64)),
]
NO_INFO = m.CreateVersionRequestChunk(header=m.CreateVersionRequestChunk.Header())
TOO_MUCH = {"k": "x" * USER_DATA_BYTES}
OpenCase = tuple[grpc.StatusCode, Callable[[bool], Chunks]]
REFUSED_WHILE_THE_STREAM_IS_OPEN: dict[str, OpenCase] = {
    "a body first": (INVALID, lambda _: [body(b"abcd")]),
    "an empty body first": (INVALID, lambda _: [body(b"")]),
    "neither first": (INVALID, lambda _: [b""]),
    "no message first": (INVALID, lambda _: [b"\xff"]),
    "no version_info": (INVALID, lambda _: [NO_INFO]),
    "a second header": (INVALID, lambda archived: [header("m", 4, archived)] * 2),
    "a late second header": (INVALID, lambda archived: [*upload("m", b"abcd", archived), header("m", 4, archived)]),
    "neither": (INVALID, lambda archived: [header("m", 4, archived), body(b"ab"), b""]),
    "an unknown field": (INVALID, lambda archived: [header("m", 4, archived), b"\x1a\x00"]),
    "no message": (INVALID, lambda archived: [header("m", 4, archived), body(b"ab"), b"\x12\x05\x0a"]),
    "too many bytes": (INVALID, lambda archived: [header("m", 4, archived), body(b"abcde")]),
    "too many bytes later": (INVALID, lambda archived: [*upload("m", b"abcd", archived), body(b"e")]),
    "too many bytes for none": (INVALID, lambda archived: [header("m", 0, archived), body(b"a")]),
    "too much user_data": (INVALID, lambda archived: [header("m", 4, archived, user_data=TOO_MUCH)]),
    "size of 2^63": (INVALID, lambda archived: [header("m", 2**63, archived)]),
    "size of 2^64 - 1": (INVALID, lambda archived: [header("m", 2**64 - 1, archived)]),
    "size of 2^63 - 1": (EXHAUSTED, lambda archived: [header("m", 2**63 - 1, archived)]),
    "beyond disk and budget": (EXHAUSTED, lambda archived: [header("m", 2**50, archived)]),
    "unknown model": (NOT_FOUND, lambda archived: [header("unknown", 4, archived)]),
    "the model's file name": (NOT_FOUND, lambda archived: [header("m-v000001", 4, archived)]),
}
REFUSED_AT_THE_END: dict[str, Callable[[bool], Chunks]] = {
    "nothing": lambda _: [],
    "header alone": lambda archived: [header("m", 4, archived)],
    "too few bytes": lambda archived: [header("m", 4, archived), body(b"ab"), body(b"c")],
    "far too few bytes": lambda archived: [header("m", 20 * MIB, archived), body(bytes(3 * MIB))],
    "another hash": lambda archived: upload("m", b"abce", archived, data_hash=SOUND_HASH),
    "another hash of many bytes": lambda archived: upload("m", bytes(3 * MIB), archived, data_hash=SOUND_HASH),
    "a hash of something for nothing": lambda archived: upload("m", b"", archived, data_hash=SOUND_HASH),
}


@ARCHIVED
@pytest.mark.parametrize("case", REFUSED_WHILE_THE_STREAM_IS_OPEN)
async def test_bad_upload_is_refused_while_its_stream_is_open(
    client: Client, tmp_path: Path, case: str, archived: bool
) -> None:
    code, chunks = REFUSED_WHILE_THE_STREAM_IS_OPEN[case]
    async with leaving_nothing(client, tmp_path):
        assert await answer(client, chunks(archived)) == code


@ARCHIVED
async def test_malformed_hash_is_refused_at_the_header(client: Client, tmp_path: Path, archived: bool) -> None:
    async with leaving_nothing(client, tmp_path):
        for text in BAD_HASHES:
            assert await answer(client, [header("m", 4, archived, data_hash=text)]) == INVALID, text


@ARCHIVED
@pytest.mark.parametrize("case", REFUSED_AT_THE_END)
async def test_incomplete_upload_is_refused_at_the_end_of_its_stream(
    client: Client, tmp_path: Path, case: str, archived: bool
) -> None:
    async with leaving_nothing(client, tmp_path):
        assert await answer(client, REFUSED_AT_THE_END[case](archived), is_all=True) == INVALID


async def test_memory_reserved_by_an_upload_is_refused_to_others_at_the_header(client: Client, tmp_path: Path) -> None:
    async with leaving_nothing(client, tmp_path, at_once=False):
        call = client.uploading()
        await call.write(header("m", BUDGET_BYTES - 5).SerializeToString())
        await settled(client, uploads="1")
        assert await answer(client, [header("m", 6)]) == EXHAUSTED
        assert await client.numbers("m") == [1]
        call.cancel()


@ARCHIVED
async def test_message_over_16_mib_is_refused(client: Client, tmp_path: Path, archived: bool) -> None:
    data = bytes(MESSAGE_BYTES - BODY_OVERHEAD_BYTES + 1)
    async with leaving_nothing(client, tmp_path, at_once=False):
        chunks = upload("m", data, archived, chunk_size=len(data))
        assert [chunk.ByteSize() for chunk in chunks][1:] == [MESSAGE_BYTES + 1]
        assert await answer(client, chunks, is_all=True) == EXHAUSTED


@ARCHIVED
@pytest.mark.parametrize("is_recreated", [False, True], ids=["deleted", "recreated"])
async def test_model_deleted_before_the_commit_is_not_found(client: Client, archived: bool, is_recreated: bool) -> None:
    await client.create_model("m")
    async with uploading(client, archived) as call:
        await client.delete_model("m")
        if is_recreated:
            await client.create_model("m")
        await call.write(body(bytes(MIB)).SerializeToString())
        await call.done_writing()
        assert await call.code() == NOT_FOUND
        if is_recreated:
            assert await client.numbers("m") == []
        expected = {"uploads": "0", "transient_bytes": "0", "versions": "0"}
        assert await client.status(*expected) == expected


# Broken uploads.


@ARCHIVED
async def test_cancelled_upload_leaves_nothing_behind(client: Client, tmp_path: Path, archived: bool) -> None:
    async with leaving_nothing(client, tmp_path, at_once=False), uploading(client, archived) as call:
        call.cancel()


@asynccontextmanager
async def relayed(port: int) -> AsyncIterator[tuple[int, list[asyncio.StreamWriter]]]:
    """Return a context manager for a port that relays to a server, and both ends of its connections."""
    writers: list[asyncio.StreamWriter] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, far_writer))
        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1], writers


@ARCHIVED
async def test_broken_connection_leaves_nothing_behind(
    server: Server, client: Client, tmp_path: Path, archived: bool
) -> None:
    async with (
        leaving_nothing(client, tmp_path, at_once=False),
        relayed(server.port) as (port, writers),
        connected(port) as far,
        uploading(far, archived) as call,
    ):
        for writer in writers:
            writer.transport.abort()
        assert await call.code() == grpc.StatusCode.UNAVAILABLE


IDLE = Settings(cache_max_bytes=BUDGET_BYTES, grace_seconds=0, upload_idle_seconds=1)
PATIENT = Settings(grace_seconds=0, upload_idle_seconds=2)


@ARCHIVED
async def test_idle_upload_ends_and_frees_its_memory(tmp_path: Path, archived: bool) -> None:
    whole = upload("m", bytes(3 * MIB), archived, chunk_size=MIB)
    async with serving(tmp_path, IDLE) as server, connected(server.port) as client, leaving_nothing(client, tmp_path):
        calls = [answer(client, whole[:count]) for count in (0, 1, 2, len(whole))]
        assert await asyncio.gather(*calls) == [grpc.StatusCode.DEADLINE_EXCEEDED] * len(calls)


async def test_slow_upload_may_last_longer_than_the_idle_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, PATIENT) as server, connected(server.port) as client:
        await client.create_model("m")
        call = client.uploading()
        for chunk in upload("m", bytes(8), chunk_size=1):
            await call.write(chunk.SerializeToString())
            await asyncio.sleep(0.25)  # the pace of the sender: in all it takes longer than one pause may
        await call.done_writing()
        assert await call.code() == grpc.StatusCode.OK
