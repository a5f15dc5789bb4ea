"""The log of calls: one line for each call that its level includes, safe whatever callers send."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry.wire import messages as m
from tests.client import Client, body, connected, header, next_version, refused, upload
from tests.processes import ServerProcess, server_process
from tests.waiting import eventually

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
FORMAT = pytest.mark.parametrize("log_format", ["text", "json"])
LINE_MAX_CHARACTERS = 2000
HOSTILE_IDS = {
    "control characters": "a\r\nb\tc\x00\x07\x7f\x9b31m",
    "a forged line": "m\n2026-11-23T00:00:00.000+00:00 [error    ] forged",
    "terminal escapes": "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J",
    "text that runs backwards": "\u202egnp.exe\u2066\u2028\u2029",
    "a megabyte": "a" * 2**20,
    "a megabyte of escapes": "\x1b[2J" * 2**18,
    "quotes and braces": '"}\\{"level": "error", \'x\'=',
    "beyond the first plane": "\U0001f600\U000e0001\ufffe",
}


@asynccontextmanager
async def logging_server(tmp_path: Path, *flags: str) -> AsyncIterator[tuple[ServerProcess, Client]]:
    """Return a context manager for a server process that has logged only its start, and a client of it."""
    with server_process(tmp_path, *flags) as server:
        assert len(server.lines) == 1
        async with connected(server.port) as client:
            yield server, client


async def stopped(server: ServerProcess) -> list[str]:
    """Stop a server, and return what it logged between its start and its stop."""
    assert await asyncio.to_thread(server.stop) == 0
    assert "Traceback" not in "\n".join(server.lines)
    assert "serving" in server.lines[0]
    assert "stopping" in server.lines[-2]
    assert "stopped" in server.lines[-1]
    return server.lines[1:-2]


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    """Return the parsed lines of a JSON log."""
    return [json.loads(line) for line in lines]


async def make_all_calls(client: Client) -> None:
    """Make each of the nine calls, with success."""
    await client.create_model("m")
    await client.publish("m", b"transient")
    await client.store("m", b"archived")
    await client.models()
    await client.infos("m")
    await client.data("m", 1)
    watch = client.watching("m")
    await next_version(watch)
    watch.cancel()

    async def nobody_watches() -> bool:
        return await client.status("watchers") == {"watchers": "0"}

    await eventually(nobody_watches)
    await client.version()
    await client.delete_model("m")


# One line a call.


async def test_finished_call_is_one_line_at_debug_with_all_its_fields(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_format=json", "--log_level=debug") as (server, client):
        await client.create_model("m")
        await client.publish("m", b"transient")
        await client.store("m", b"archived!")
        await client.data("m", -1)
        await client.version()
        await client.delete_model("m")
        lines = parsed(await stopped(server))
    assert [line["event"] for line in lines] == [
        "CreateOrUpdateModel OK",
        "CreateVersion OK",
        "CreateVersion OK",
        "RetrieveVersionData OK",
        "Version OK",
        "DeleteModel OK",
    ]
    for line in lines:
        assert line["level"] == "debug"
        assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", line["peer"])
        assert 0 < line["seconds"] < 60
        assert {"timestamp", "received_bytes", "sent_bytes"} <= line.keys()
        assert "details" not in line
    subjects = [{key: line.get(key) for key in ("model_id", "number", "size_bytes", "archived")} for line in lines]
    assert subjects == [
        {"model_id": "m", "number": None, "size_bytes": None, "archived": None},
        {"model_id": "m", "number": 1, "size_bytes": 9, "archived": False},
        {"model_id": "m", "number": 2, "size_bytes": 9, "archived": True},
        {"model_id": "m", "number": 2, "size_bytes": 9, "archived": None},
        {"model_id": None, "number": None, "size_bytes": None, "archived": None},
        {"model_id": "m", "number": None, "size_bytes": None, "archived": None},
    ]
    assert lines[1]["received_bytes"] == sum(chunk.ByteSize() for chunk in upload("m", b"transient"))
    assert lines[3]["sent_bytes"] == m.RetrieveVersionDataReplyChunk(data_chunk=b"archived!").ByteSize()


async def test_text_log_also_has_one_line_a_call(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_level=debug") as (server, client):
        await client.create_model("été")
        await client.store("été", b"12345")
        with refused(NOT_FOUND):
            await client.data("été", 7)
        lines = await stopped(server)
    assert len(lines) == 3
    for part in ("CreateVersion OK", "debug", "model_id=été", "number=1", "size_bytes=5", "seconds=", "peer=ipv4:127"):
        assert part in lines[1]
    for part in ("RetrieveVersionData NOT_FOUND", "info", "model_id=été", "number=7", "details="):
        assert part in lines[2]


async def test_successful_calls_log_nothing_at_info(tmp_path: Path) -> None:
    async with logging_server(tmp_path) as (server, client):
        await make_all_calls(client)
        assert await stopped(server) == []


async def test_cancelled_call_is_a_line_at_debug(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_format=json", "--log_level=debug") as (server, client):
        await client.create_model("m")
        call = client.uploading()
        await call.write(header("m", 10).SerializeToString())
        await call.write(body(b"123").SerializeToString())

        async def is_in_progress() -> bool:
            return await client.status("transient_bytes") == {"transient_bytes": "10"}

        await eventually(is_in_progress)
        call.cancel()
        await asyncio.to_thread(server.wait_for_line, "CreateVersion CANCELLED")
        [line] = [line for line in parsed(await stopped(server)) if line["event"] == "CreateVersion CANCELLED"]
    assert (line["level"], line["model_id"], line["size_bytes"]) == ("debug", "m", 10)


async def test_cancelled_watch_is_one_line_with_its_model_and_duration(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_format=json", "--log_level=debug") as (server, client):
        await client.create_model("m")
        await client.publish("m", b"")
        watch = client.watching("m")
        await next_version(watch)
        watch.cancel()
        await asyncio.to_thread(server.wait_for_line, "VersionUpdate")
        [line] = [line for line in parsed(await stopped(server)) if line["event"].startswith("VersionUpdate")]
    assert (line["event"], line["level"], line["model_id"]) == ("VersionUpdate CANCELLED", "debug", "m")
    assert line["sent_bytes"] > 0


# Refusals and faults.


@FORMAT
async def test_refused_call_is_one_line_at_info_with_the_reason(tmp_path: Path, log_format: str) -> None:
    async with logging_server(tmp_path, f"--log_format={log_format}") as (server, client):
        await client.create_model("m")
        with refused(NOT_FOUND):
            await client.data("missing", 1)
        with refused(NOT_FOUND):
            await client.infos("m", 5)
        with refused(INVALID):
            await client.create_version([])
        with refused(INVALID):
            await client.create_version([body(b"first")])
        with refused(INVALID):
            await client.unary("DeleteModel", b"\xff\xff", m.DeleteModelReply)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await client.create_version([header("m", 2**62)])
        lines = await stopped(server)
    expected = [
        ("RetrieveVersionData NOT_FOUND", "missing"),
        ("RetrieveVersionInfos NOT_FOUND", "version 5"),
        ("CreateVersion INVALID_ARGUMENT", "header"),
        ("CreateVersion INVALID_ARGUMENT", "header"),
        ("DeleteModel INVALID_ARGUMENT", "DeleteModelRequest"),
        ("CreateVersion RESOURCE_EXHAUSTED", "budget"),
    ]
    assert len(lines) == len(expected)
    for line, (event, reason) in zip(lines, expected, strict=True):
        assert event in line
        assert "info" in line
        assert reason in line
        assert "127.0.0.1" in line


async def test_server_fault_is_logged_as_an_error_and_shows_the_caller_no_path(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_format=json") as (server, client):
        await client.create_model("m")
        (tmp_path / "m").rename(tmp_path / "aside")
        (tmp_path / "m").touch()  # a file in place of the model's directory
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.store("m", b"data")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert str(tmp_path) not in (caught.value.details() or "")
        server.wait_for_line("CreateVersion UNAVAILABLE")
        lines = parsed(list(server.lines))
    [line] = [line for line in lines if line["event"] == "CreateVersion UNAVAILABLE"]
    assert (line["level"], line["model_id"]) == ("error", "m")
    assert line["details"] == caught.value.details()


async def test_damaged_version_is_logged_once_as_an_error_and_its_callers_as_refused(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_format=json") as (server, client):
        await client.create_model("m")
        await client.store("m", b"data")
        (tmp_path / "m/m-v000001.data").write_bytes(b"DATA")
        for _ in range(3):
            with refused(grpc.StatusCode.DATA_LOSS):
                await client.data("m", 1)
        lines = parsed(await stopped(server))
    calls = [line for line in lines if line["event"] == "RetrieveVersionData DATA_LOSS"]
    assert [line["level"] for line in calls] == ["info"] * 3
    others = [line for line in lines if line not in calls]
    assert len(others) == 1
    assert others[0]["level"] in ("warning", "error")


async def test_watchers_ended_by_a_stop_are_not_logged_as_errors(tmp_path: Path) -> None:
    with server_process(tmp_path, "--log_format=json") as server:
        async with connected(server.port) as client:
            await client.create_model("m")
            await client.publish("m", b"")
            watch = client.watching("m")
            await next_version(watch)
            assert await asyncio.to_thread(server.stop) == 0
        assert {line["level"] for line in parsed(server.lines)} == {"info"}


# Hostile callers.


@FORMAT
async def test_hostile_texts_are_short_and_harmless_in_the_log(tmp_path: Path, log_format: str) -> None:
    async with logging_server(tmp_path, f"--log_format={log_format}", "--log_level=debug") as (server, client):
        count = 0
        for text in HOSTILE_IDS.values():
            with refused(INVALID):
                await client.create_model(text)
            with refused(INVALID):
                await client.store(text, b"data")
            with refused(INVALID):
                await client.data(text, 1)
            with refused(INVALID):
                await client.models("m", text)
            with refused(INVALID):
                await client.models(handle=text)
            with refused(INVALID):
                await client.infos(text, handle=text)
            watch = client.watching(text)
            assert await watch.code() == INVALID
            with refused(INVALID):
                await client.create_version(upload("m", b"", data_hash=text))
            await client.status(text)
            count += 9
        lines = await stopped(server)
    assert len(lines) == count, "one line a call"
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < LINE_MAX_CHARACTERS
        if log_format == "json":
            assert json.loads(line)["level"] in ("debug", "info")
        else:
            assert re.match(r"\S+ \[(debug|info) +\] \w+ (OK|INVALID_ARGUMENT) ", line), line


@FORMAT
async def test_hostile_user_data_is_short_and_harmless_in_the_log(tmp_path: Path, log_format: str) -> None:
    async with logging_server(tmp_path, f"--log_format={log_format}", "--log_level=debug") as (server, client):
        await client.create_model("m")
        for text in HOSTILE_IDS.values():
            for user_data in ({text: "value"}, {"key": text}):
                with suppress(grpc.aio.AioRpcError):  # a too large one is refused
                    await client.create_model("m", **user_data)
        lines = await stopped(server)
    assert len(lines) == 1 + 2 * len(HOSTILE_IDS)
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < LINE_MAX_CHARACTERS


async def test_numbers_at_the_limits_of_their_range_are_logged_in_one_line(tmp_path: Path) -> None:
    async with logging_server(tmp_path, "--log_format=json") as (server, client):
        await client.create_model("m")
        for number in (-(2**31), 2**31 - 1, 0):
            with refused(NOT_FOUND):
                await client.data("m", number)
        lines = parsed(await stopped(server))
    assert [line["number"] for line in lines] == [-(2**31), 2**31 - 1, 0]
