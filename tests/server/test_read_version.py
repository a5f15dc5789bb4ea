"""ReadVersion: the record, then the bytes or a part of them."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle
from tests.client import Client, connected, refused, upload
from tests.processes import server_process
from tests.server.under_way import under_way

DATA = Random(1).randbytes(5 * MIB + 7)
OTHER_HASH = hash_of(b"other")
ARCHIVED = pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])


def reading(
    client: Client, key: int | str = 1, offset: int = 0, limit: int | None = None, expected_hash: str = ""
) -> Any:
    """Return a call of ReadVersion for the model ``m``."""
    request = lifecycle.read_request("m", key, offset, limit, expected_hash)
    return Client(client.channel, lifecycle.SERVICE_NAME).streamed("ReadVersion", request)


async def read(client: Client, *arguments: Any, **named: Any) -> tuple[Version, list[bytes]]:
    """Return the record of a version, and the chunks of the requested part."""
    replies = [lifecycle.read_reply(message) async for message in reading(client, *arguments, **named)]
    assert isinstance(replies[0], Version)
    return replies[0], [bytes(chunk) for chunk in replies[1:] if isinstance(chunk, memoryview)]


async def fill(client: Client, datas: Sequence[bytes], *, archived: bool) -> None:
    await client.create_model("m")
    for data in datas:
        await client.create_version(upload("m", data, archived))


@ARCHIVED
async def test_the_record_comes_first_and_then_the_bytes(client: Client, archived: bool) -> None:
    await fill(client, [DATA, b"newer"], archived=archived)
    version, chunks = await read(client, 1)
    assert (version.number, version.info.data_hash, version.info.archived) == (1, hash_of(DATA), archived)
    assert b"".join(chunks) == DATA
    assert max(map(len, chunks)) <= 2 * MIB


PARTS = [
    *((0, 1), (1, 1), (2 * MIB - 1, 2), (MIB, None), (MIB, 4 * MIB), (5 * MIB, 100), (len(DATA), None)),
    (7, 2**64 - 1),
]


@ARCHIVED
async def test_a_part_has_the_requested_bytes(client: Client, archived: bool) -> None:
    await fill(client, [DATA], archived=archived)
    for offset, limit in PARTS:
        end = len(DATA) if limit is None else offset + limit
        for expected_hash in ("", hash_of(DATA)):
            _, chunks = await read(client, 1, offset, limit, expected_hash)
            assert b"".join(chunks) == DATA[offset:end], (offset, limit)


async def test_a_version_is_named_as_in_the_other_calls(client: Client) -> None:
    await fill(client, [b"1", b"2", b"3"], archived=True)
    request = lifecycle.PromoteVersionRequest(version=lifecycle.version_ref("m", 2), aliases=["production"])
    calls = Client(client.channel, lifecycle.SERVICE_NAME)
    await calls.unary("PromoteVersion", request, lifecycle.VersionMessage)
    version, chunks = await read(client, "production")
    assert (version.number, version.aliases, chunks) == (2, ("production",), [b"2"])
    assert (await read(client, -1))[1] == [b"3"]
    for key in (4, -4, "canary"):
        with refused(grpc.StatusCode.NOT_FOUND):
            await read(client, key)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "from 1"):
        await read(client, 0)


@ARCHIVED
async def test_an_offset_past_the_end_is_out_of_range(client: Client, archived: bool) -> None:
    await fill(client, [b"data", b""], archived=archived)
    for number, offset, size in ((1, 5, "4 bytes"), (1, 2**64 - 1, "4 bytes"), (2, 1, "0 bytes")):
        with refused(grpc.StatusCode.OUT_OF_RANGE, f"offset {offset} is past the end"):
            await reading(client, number, offset).read()  # nothing is sent before
        with refused(grpc.StatusCode.OUT_OF_RANGE, size):
            await read(client, number, offset, 1)


@ARCHIVED
async def test_an_unexpected_hash_is_refused(client: Client, archived: bool) -> None:
    await fill(client, [b"data"], archived=archived)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f'"{OTHER_HASH}" was expected'):
        await read(client, 1, 0, None, OTHER_HASH)
    await client.delete_model("m")
    await fill(client, [b"DATA"], archived=archived)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, hash_of(b"DATA")):
        await read(client, 1, 2, None, hash_of(b"data"))


async def test_a_damaged_version_is_data_loss_but_its_intact_parts_can_be_read(client: Client, tmp_path: Path) -> None:
    await fill(client, [DATA], archived=True)
    with (tmp_path / "archive/m/m-v000001.data").open("r+b") as file:
        file.write(bytes([DATA[0] ^ 1]))
    assert b"".join((await read(client, 1, 1))[1]) == DATA[1:]
    with refused(grpc.StatusCode.DATA_LOSS):
        await read(client, 1)


async def test_a_version_without_some_of_its_bytes_is_data_loss(client: Client, tmp_path: Path) -> None:
    await fill(client, [DATA], archived=True)
    os.truncate(tmp_path / "archive/m/m-v000001.data", len(DATA) - 1)
    with refused(grpc.StatusCode.DATA_LOSS):
        await read(client, 1, 1, 1)


async def test_a_file_that_changes_while_a_part_is_read_is_unavailable(client: Client, tmp_path: Path) -> None:
    data = bytes(64 * MIB)
    await fill(client, [data], archived=True)
    path = tmp_path / "archive/m/m-v000001.data"
    call = reading(client, 1, 1)
    await call.read()
    os.link(path, tmp_path / "backup")
    with refused(grpc.StatusCode.UNAVAILABLE, "modified while it was read"):
        while await call.read() is not grpc.aio.EOF:
            pass
    assert sum(map(len, (await read(client, 1, 1))[1])) == len(data) - 1


@ARCHIVED
async def test_a_stalled_read_ends_and_its_memory_is_freed(tmp_path: Path, archived: bool) -> None:
    impatient = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, retrieval_idle_seconds=0.3)
    async with serving(tmp_path, impatient) as server, connected(server.port) as client:
        await fill(client, [bytes(40 * MIB)], archived=archived)
        call = reading(client, 1, 1)
        assert await call.read()
        await under_way(client, retrievals=0)
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "took nothing"):
            while await call.read():
                pass
        await client.publish("m", bytes(60 * MIB))  # which did not fit while the other one was being read


async def test_a_read_has_its_line_in_the_log(tmp_path: Path) -> None:
    with server_process(tmp_path, "--log_level=debug", "--log_format=json") as server:
        async with connected(server.port) as client:
            await fill(client, [b"data"], archived=True)
            await read(client, -1, 1, 2)
        assert await asyncio.to_thread(server.stop) == 0
    [line] = [json.loads(line) for line in server.lines if "ReadVersion OK" in line]
    subject = {name: line[name] for name in ("model_id", "version", "number", "size_bytes", "offset", "limit")}
    assert subject == {"model_id": "m", "version": -1, "number": 1, "size_bytes": 4, "offset": 1, "limit": 2}
