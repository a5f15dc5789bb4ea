"""The history of a model, by both flavours of the client."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import HistoryEntry, errors
from cogment_model_registry.records.lifecycle import Alias
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import audit
from cogment_model_registry.wire.lifecycle import build_token
from tests.client import connected, status_of


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with an audit log."""
    settings = Settings(
        audit_log=str(tmp_path / "audit"),
        cache_max_bytes=16 * MIB,
        grace_seconds=0,
        local_socket="",
        retention_seconds=0,
    )
    async with serving(tmp_path / "archive", settings) as running:
        yield running


def texts(entries: list[HistoryEntry]) -> list[tuple[str, int]]:
    return [(entry.change, entry.version_number) for entry in entries]


async def test_the_history_of_a_model_is_newest_first(registry: Any) -> None:
    began_ns = time.time_ns()
    await registry.store("policy", b"1", user_data={"step": "1"}, alias="production")
    await registry.publish("other", b"1")
    middle_ns = time.time_ns()
    await registry.publish("policy", b"2")
    moved: Alias = await registry.set_alias("policy", "production", 2)
    entries = await registry.history("policy")
    assert texts(entries) == [
        ("alias set", 2),
        ("version promoted", 2),
        ("version created", 2),
        ("alias set", 1),
        ("version created", 1),
        ("model created", 0),
    ]
    times = [entry.time_ns for entry in entries]
    assert times == sorted(times, reverse=True)
    assert began_ns <= times[-1]
    move = entries[0]
    assert move.before is not None
    assert move.before["version_number"] == 1
    assert move.after == {"version_number": 2, "revision": moved.revision}
    assert (move.alias, move.call, move.caller, move.caller_kind) == ("production", "SetAliases", "", "anonymous")
    assert move.peer.startswith("ipv4:127.0.0.1:")
    created = entries[4]
    assert created.after is not None
    assert created.after["data_hash"] == hash_of(b"1")
    assert texts(await registry.history("policy", since_ns=middle_ns)) == texts(entries)[:3]
    assert texts(await registry.history("policy", limit=2)) == texts(entries)[:2]
    assert await registry.history("policy", alias="production") == [entries[0], entries[3]]
    assert await registry.history("policy", alias="production", limit=1) == [entries[0]]
    assert await registry.history("policy", alias="never") == []
    await registry.delete_model("policy")
    assert texts(await registry.history("policy", limit=None)) == [("model deleted", 0), *texts(entries)]
    with pytest.raises(errors.NotFoundError, match='model "never" does not exist, and the audit log has no changes'):
        await registry.history("never")


async def test_a_long_history_comes_in_pages(registry: Any) -> None:
    for number in range(30):
        await registry.create_model("policy", user_data={"number": str(number), "text": "x" * 200_000})
    entries = await registry.history("policy", limit=None)
    assert [entry.after["user_data"]["number"] for entry in entries] == [str(number) for number in range(29, -1, -1)]


@pytest.mark.parametrize(
    "token",
    [
        "x",
        build_token(("policy", "0", ""), ("../../etc/passwd", 5, True)),
        build_token(("policy", "0", ""), ("audit_2026-11-22.jsonl", -5, True)),
        build_token(("policy", "0", ""), (5, "audit_2026-11-22.jsonl", True)),
        build_token(("policy", "0", ""), ("audit_2026-11-22.jsonl", 5, "yes")),
        build_token(("policy", "0", "best"), ("audit_2026-11-22.jsonl", 5, True)),
        build_token(("other", "0", ""), ("audit_2026-11-22.jsonl", 5, True)),
    ],
)
async def test_a_token_that_is_none_is_refused(server: Server, token: str) -> None:
    request = audit.ListChangesRequest(model_id="policy", page_token=token)
    assert await status_of_listing(server.port, request) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("model_id", ["", "a/b", "x" * 1000])
async def test_an_id_that_is_none_is_refused(server: Server, model_id: str) -> None:
    request = audit.ListChangesRequest(model_id=model_id)
    assert await status_of_listing(server.port, request) is grpc.StatusCode.INVALID_ARGUMENT


async def status_of_listing(port: int, request: audit.ListChangesRequest) -> grpc.StatusCode:
    """Return the status of a call."""
    async with connected(port, audit.SERVICE_NAME) as client:
        return await status_of(client.unary("ListChanges", request, audit.ListChangesReply))


async def test_arguments_are_checked(registry: Any) -> None:
    for options in ({"since_ns": -1}, {"since_ns": 2**64}, {"since_ns": "yesterday"}, {"alias": 5}):
        with pytest.raises(errors.InvalidError):
            await registry.history("policy", **options)
