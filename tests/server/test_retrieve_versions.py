"""RetrieveVersionInfos with its pages and handles, and RetrieveVersionData with its chunks and its check of bytes."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, refused, status_of, upload
from tests.server.under_way import under_way

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
DATA_LOSS = grpc.StatusCode.DATA_LOSS
MIB = 1024 * 1024
PAGE_BYTES = 4 * MIB
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
QUICKLY = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def numbers_of(reply: m.RetrieveVersionInfosReply) -> list[int]:
    return [info.version_number for info in reply.version_infos]


async def fill(client: Client, count: int, **fields: Any) -> None:
    """Create the model "m" with `count` versions, archived ones at the odd numbers, unless it has versions."""
    await client.create_model("m")
    if not await client.numbers("m"):
        for number in range(1, count + 1):
            await client.create_version(upload("m", b"%d" % number, archived=number % 2 == 1, **fields))


# RetrieveVersionInfos.


async def test_listing_is_as_documented(client: Client) -> None:
    await client.create_model("my_model")
    expected = []
    for number, timestamp in enumerate((1633119005107454620, 1633119625907957639), 1):
        await client.store("my_model", b"chunk_1chunk_2", creation_timestamp=timestamp)
        info: dict[str, object] = {"modelId": "my_model", "versionNumber": number, "creationTimestamp": str(timestamp)}
        data_hash = "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI="
        expected.append(info | {"archived": True, "dataHash": data_hash, "dataSize": "14"})
    listing = {"versionInfos": expected, "nextVersionHandle": "3"}
    assert MessageToDict(await client.infos("my_model")) == listing
    first = {"versionInfos": expected[:1], "nextVersionHandle": "2"}
    assert MessageToDict(await client.infos("my_model", 1)) == first
    assert MessageToDict(await client.infos("my_model", -2)) == first


async def test_model_without_versions_lists_none_and_returns_the_given_handle(client: Client) -> None:
    await client.create_model("m")
    assert MessageToDict(await client.infos("m")) == {"nextVersionHandle": "0"}
    assert MessageToDict(await client.infos("m", handle="7")) == {"nextVersionHandle": "7"}


async def test_versions_of_both_tiers_come_by_number(client: Client) -> None:
    await fill(client, 12)
    reply = await client.infos("m")
    assert numbers_of(reply) == [*range(1, 13)]
    assert [info.archived for info in reply.version_infos] == [True, False] * 6
    assert reply.next_version_handle == "13"
    for info in reply.version_infos:
        assert await client.data("m", info.version_number) == b"%d" % info.version_number


async def test_pages_continue_at_the_last_returned_number_plus_one(client: Client) -> None:
    await fill(client, 12)
    handle, found = "", []
    for expected_count in (5, 5, 2, 0):
        page = await client.infos("m", count=5, handle=handle)
        assert len(page.version_infos) == expected_count
        found += numbers_of(page)
        handle = page.next_version_handle
        assert handle == str(found[-1] + 1)
    assert found == [*range(1, 13)]


async def test_pages_continue_past_evicted_numbers(tmp_path: Path) -> None:
    small = Settings(cache_max_items=2, cache_max_bytes=MIB, grace_seconds=0)
    async with serving(tmp_path, small) as server, connected(server.port) as client:
        await fill(client, 9)  # of the transient ones, 6 and 8 remain
        assert await client.numbers("m") == [1, 3, 5, 6, 7, 8, 9]
        for handle, expected in (("2", [3, 5]), ("4", [5, 6]), ("9", [9]), ("10", [])):
            page = await client.infos("m", count=2, handle=handle)
            assert numbers_of(page) == expected
            assert page.next_version_handle == str(max(expected, default=9) + 1)
        with refused(NOT_FOUND):
            await client.infos("m", 4)
        with refused(NOT_FOUND):
            await client.data("m", 4)
        assert numbers_of(await client.infos("m", -4, -5, -7)) == [6, 5, 1]


async def test_requested_numbers_come_in_the_order_of_the_request(client: Client) -> None:
    await fill(client, 5)
    for asked, expected in (([3, 1, 3], [3, 1, 3]), ([-1, -5, 2, -1], [5, 1, 2, 5]), ([-2], [4]), ([5, 4], [5, 4])):
        reply = await client.infos("m", *asked)
        assert numbers_of(reply) == expected
        assert reply.next_version_handle == str(expected[-1] + 1)


@QUICKLY
@given(asked=st.lists(st.integers(-5, 5).filter(bool), min_size=1, max_size=9), count=st.integers(1, 4))
async def test_requested_numbers_in_any_order_are_complete_over_all_pages(
    client: Client, asked: list[int], count: int
) -> None:
    await fill(client, 5)
    handle, found = "", []
    for _ in range(len(asked) // count + 1):
        page = await client.infos("m", *asked, count=count, handle=handle)
        handle = page.next_version_handle
        found.append(numbers_of(page))
    whole = [number if number > 0 else 6 + number for number in asked]
    assert found == [whole[start : start + count] for start in range(0, len(whole) + 1, count)]


@pytest.mark.parametrize("number", [0, 6, -6, INT32_MAX, INT32_MIN, INT32_MIN + 1])
async def test_unknown_number_is_not_found(client: Client, number: int) -> None:
    await fill(client, 5)
    for asked in ([number], [1, number], [number, -1]):
        with refused(NOT_FOUND):
            await client.infos("m", *asked)
    with refused(NOT_FOUND):
        await client.data("m", number)


async def test_unknown_model_is_not_found(client: Client) -> None:
    for call in (client.infos("m"), client.infos("m", 1), client.infos("m", handle="3"), client.data("m", 1)):
        assert await status_of(call) == NOT_FOUND


@pytest.mark.parametrize("handle", ["x", "-1", "+1", "1.0", " 1", "1\n", "1e3", "0x1", "1_0", "٣", "\0"])
async def test_handle_that_is_not_a_plain_decimal_number_is_invalid(client: Client, handle: str) -> None:
    await fill(client, 1)
    for asked in ([], [1]):
        with refused(INVALID):
            await client.infos("m", *asked, handle=handle)


@pytest.mark.parametrize("handle", ["2", "4294967296", "18446744073709551616", "9" * 10_000])
async def test_handle_past_the_end_is_ok_and_empty(client: Client, handle: str) -> None:
    await fill(client, 1)
    page = await client.infos("m", handle=handle)
    assert (numbers_of(page), page.next_version_handle) == ([], handle)


async def test_request_lists_10_000_numbers_at_most(client: Client) -> None:
    await fill(client, 2)
    asked = [1, -1] * 5_000
    assert numbers_of(await client.infos("m", *asked)) == [1, 2] * 5_000
    for number in (1, 0, 99):
        with refused(INVALID):
            await client.infos("m", *asked, number)


@pytest.mark.parametrize("is_explicit", [False, True], ids=["all", "given"])
async def test_page_ends_below_4_mib_only_without_a_count(client: Client, is_explicit: bool) -> None:
    await fill(client, 25, user_data={"k": "x" * 200_000})
    whole = [25, 7] * 12 + [25] if is_explicit else [*range(1, 26)]
    asked = whole if is_explicit else []
    page = await client.infos("m", *asked)
    assert PAGE_BYTES - 200_200 < page.ByteSize() < PAGE_BYTES
    rest = await client.infos("m", *asked, handle=page.next_version_handle)
    assert numbers_of(page) + numbers_of(rest) == whole
    assert numbers_of(await client.infos("m", *asked, count=25)) == whole


@QUICKLY
@given(
    asked=st.lists(st.integers(INT32_MIN, INT32_MAX) | st.integers(-6, 6), max_size=4),
    count=st.integers(0, 2**32 - 1),
    handle=st.text(max_size=3) | st.integers(0, 2**70).map(str) | st.integers(0, 9).map("@{}".format),
)
async def test_any_integers_and_handles_are_answered(client: Client, asked: list[int], count: int, handle: str) -> None:
    await fill(client, 5)
    assert await status_of(client.infos("m", *asked, count=count, handle=handle)) in {
        grpc.StatusCode.OK,
        INVALID,
        NOT_FOUND,
    }
    for number in asked:
        expected = grpc.StatusCode.OK if number and abs(number) <= 5 else NOT_FOUND
        assert await status_of(client.data("m", number)) == expected


# RetrieveVersionData.


@ARCHIVED
@pytest.mark.parametrize("chunk_size", [1, 1000, MIB, 3 * MIB // 2])
async def test_chunks_never_exceed_the_configured_size(tmp_path: Path, archived: bool, chunk_size: int) -> None:
    chunked = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, sent_version_chunk_size=chunk_size)
    async with serving(tmp_path, chunked) as server, connected(server.port) as client:
        await client.create_model("m")
        for size in (1, chunk_size - 1 or 1, chunk_size, chunk_size + 1, 3 * chunk_size, 3 * chunk_size + 1):
            data = Random(size).randbytes(size)
            await client.create_version(upload("m", data, archived))
            chunks = await client.chunks("m")
            assert b"".join(chunks) == data
            assert max(map(len, chunks)) <= chunk_size
            assert len(chunks) == -(-size // chunk_size)


@ARCHIVED
async def test_stalled_retrieval_ends_and_its_memory_is_freed(tmp_path: Path, archived: bool) -> None:
    impatient = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, retrieval_idle_seconds=0.3)
    async with serving(tmp_path, impatient) as server, connected(server.port) as client:
        await client.create_model("m")
        await client.create_version(upload("m", bytes(40 * MIB), archived))
        request = m.RetrieveVersionDataRequest(model_id="m", version_number=-1)
        call = client.streamed("RetrieveVersionData", request)
        assert await call.read()
        await under_way(client, retrievals=0)
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "took nothing"):
            while await call.read():
                pass
        await client.publish("m", bytes(60 * MIB))  # which did not fit while the other one was being read


@ARCHIVED
async def test_chunks_have_2_mib_by_default_and_an_empty_version_is_one_empty_chunk(
    client: Client, archived: bool
) -> None:
    await client.create_model("m")
    await client.create_version(upload("m", bytes(5 * MIB), archived))
    await client.create_version(upload("m", b"", archived))
    assert [len(chunk) for chunk in await client.chunks("m", 1)] == [2 * MIB, 2 * MIB, MIB]
    assert await client.chunks("m", 2) == [b""]


async def test_minus_n_is_the_nth_from_the_last(client: Client) -> None:
    await fill(client, 5)
    assert [await client.data("m", -n) for n in range(1, 6)] == [b"5", b"4", b"3", b"2", b"1"]


def flip(path: Path, position: int) -> None:
    """Change one byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def flip_unnoticed(path: Path) -> None:
    """Change one byte, and restore the modification time."""
    status = path.stat()
    flip(path, -1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange(path: Path) -> None:
    """Replace the file by another one of the same size and age."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


TAMPERING: dict[str, Callable[[Path], object]] = {
    "first byte": lambda path: flip(path, 0),
    "last byte": lambda path: flip(path, -1),
    "last byte, unnoticed": flip_unnoticed,
    "another file": exchange,
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one byte more": lambda path: os.truncate(path, path.stat().st_size + 1),
    "no bytes": lambda path: os.truncate(path, 0),
}


async def received_of(client: Client, number: int) -> tuple[grpc.StatusCode, bytes]:
    """Retrieve a version, and return its status and the bytes that were received before."""
    request = m.RetrieveVersionDataRequest(model_id="m", version_number=number)
    call = client.streamed("RetrieveVersionData", request)
    received = b""
    with suppress(grpc.aio.AioRpcError):
        while (message := await call.read()) is not grpc.aio.EOF:
            received += m.RetrieveVersionDataReplyChunk.FromString(message).data_chunk
    return await call.code(), received


@pytest.mark.parametrize("size", [1, 5000, 2 * MIB, 2 * MIB + 1, 7 * MIB])
async def test_tampered_bytes_are_data_loss_and_never_complete(client: Client, tmp_path: Path, size: int) -> None:
    """Even if the original bytes were checked before."""
    await client.create_model("m")
    for number, (case, was_checked) in enumerate(product(TAMPERING, (False, True)), start=1):
        await client.store("m", Random(number).randbytes(size))
        assert not was_checked or await client.data("m", number)
        TAMPERING[case](tmp_path / "archive/m" / f"m-v{number:06}.data")
        for _ in range(2):
            code, received = await received_of(client, number)
            assert code == DATA_LOSS, (case, was_checked)
            last_chunk_bytes = size % (2 * MIB) or 2 * MIB
            assert len(received) <= size - last_chunk_bytes, (case, was_checked)


async def test_bytes_tampered_with_during_a_retrieval_are_data_loss(client: Client, tmp_path: Path) -> None:
    await client.create_model("m")
    await client.store("m", bytes(64 * MIB))
    call = client.streamed("RetrieveVersionData", m.RetrieveVersionDataRequest(model_id="m", version_number=1))
    await call.read()
    flip(tmp_path / "archive/m/m-v000001.data", -1)
    count = 1
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            count += 1
    assert await call.code() == DATA_LOSS
    assert count < 32


async def test_damaged_version_affects_no_other_version(client: Client, tmp_path: Path) -> None:
    await fill(client, 3)
    flip(tmp_path / "archive/m/m-v000003.data", 0)
    with refused(DATA_LOSS):
        await client.data("m", 3)
    assert [await client.data("m", number) for number in (1, 2)] == [b"1", b"2"]
    assert (await client.publish("m", b"4")).version_number == 4
