"""The audit log over real channels: each call that changes something has its lines, before it is answered."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import aio, errors
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.records.retention import RetentionRule
from cogment_model_registry.server.composition import Server
from cogment_model_registry.server.needs import CHANGES, NEEDS
from cogment_model_registry.settings import AUTO, MIB, Settings
from cogment_model_registry.storage.tools.tokens import add_grant, remove_grant
from cogment_model_registry.system import sealed_memory
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import local
from tests.client import connected
from tests.waiting import until

MODEL = "policy"
TOKEN = "cmr_admin"
ADMIN = Grant("admin", "token", identity_of(TOKEN), parse_scopes(["admin"]), 0)
READS = {
    "RetrieveModels",
    "RetrieveVersionInfos",
    "RetrieveVersionData",
    "VersionUpdate",
    "Version",
    "Status",
    "ReadVersion",
    "LocalReadVersion",
    "LocalReadMetrics",
    "LocalDescribeCaller",
    "ListVersions",
    "ListModels",
    "Watch",
    "ReportConsumer",  # what consumers report is in memory, and gone after a restart
    "ListConsumers",
    "ListChanges",
}

Lines = list[dict[str, Any]]


def settings_of(place: Path, **fields: Any) -> Settings:
    """Return the settings of a server that keeps an audit log below a place."""
    given = {"local_socket": "", "retention_seconds": 0, "cache_max_bytes": 16 * MIB, "grace_seconds": 0, **fields}
    return Settings(audit_log=str(place / "audit"), **given)


@dataclass
class Audited:
    """A server with an audit log, and a client of it that has every right."""

    place: Path
    server: Server
    registry: aio.ModelRegistry

    def lines(self) -> Lines:
        """Return the lines of all files."""
        files = sorted((self.place / "audit").glob("audit_*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    async def lines_of(self, change: Awaitable[object]) -> Lines:
        """Return the lines that a change adds before it is answered."""
        before = len(self.lines())
        await change
        return self.lines()[before:]


@asynccontextmanager
async def audited(place: Path, settings: Settings | None = None) -> AsyncIterator[Audited]:
    """Run a server with an audit log; a context manager."""
    if not (place / "archive").exists():
        add_grant(str(place / "archive"), ADMIN)
    async with (
        serving(place / "archive", settings or settings_of(place)) as server,
        aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}", token=TOKEN) as registry,
    ):
        yield Audited(place, server, registry)


def kinds(lines: Lines) -> list[tuple[str, int, str]]:
    """Return what happened, to which version and alias."""
    return [(line["change"], line.get("version_number", 0), line.get("alias", "")) for line in lines]


async def create_by_first_service(of: Audited) -> None:
    async with connected(of.server.port) as client:
        await client.publish(MODEL, b"4", user_data={"step": "4"})


async def publish_locally(of: Audited) -> None:
    if not (local.is_supported() and sealed_memory.is_supported()):
        pytest.skip("this system hands over no sealed memory")
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{of.server.port}", token=TOKEN) as registry:
        await registry.publish(MODEL, b"x" * 4 * MIB)


# By the name of each call: how to make it, and what its lines say. Before it, the model has the versions 1 (archived,
# with the alias "old") and 2 and 3 (transient).
CALLS: Mapping[str, tuple[Callable[[Audited], Awaitable[object]], list[tuple[str, int, str]]]] = {
    "CreateOrUpdateModel": (
        lambda of: of.registry.create_model(MODEL, user_data={"a": "b"}),
        [("model replaced", 0, "")],
    ),
    "DeleteModel": (lambda of: of.registry.delete_model(MODEL), [("model deleted", 0, "")]),
    "CreateVersion": (create_by_first_service, [("version created", 4, "")]),
    "UploadVersion": (
        lambda of: of.registry.store(MODEL, b"4", alias="production", tags={"a": "b"}),
        [("version created", 4, ""), ("alias set", 4, "production")],
    ),
    "UpdateVersion": (lambda of: of.registry.update_version(MODEL, 1, tags={"a": "b"}), [("version changed", 1, "")]),
    "PromoteVersion": (
        lambda of: of.registry.promote(MODEL, 2, alias="production"),
        [("version promoted", 2, ""), ("alias set", 2, "production")],
    ),
    "DeleteVersion": (
        lambda of: of.registry.delete_version(MODEL, 1, force=True),
        [("version deleted", 1, ""), ("alias removed", 1, "old")],
    ),
    "SetAliases": (
        lambda of: of.registry.set_alias(MODEL, "old", 3),
        [("version promoted", 3, ""), ("alias set", 3, "old")],
    ),
    "UpdateModel": (
        lambda of: of.registry.set_retention(MODEL, [RetentionRule(keep_last=1)]),
        [("model changed", 0, "")],
    ),
    "ApplyRetention": (
        lambda of: of.registry.apply_retention(MODEL),
        [("version deleted", 2, "")],
    ),
    "LocalUploadVersion": (publish_locally, [("version created", 4, "")]),
}


async def prepare(of: Audited, call: str) -> None:
    """Make what the call needs."""
    await of.registry.store(MODEL, b"1", user_data={"step": "1"}, alias="old")
    for data in (b"2", b"3"):
        await of.registry.publish(MODEL, data)
    if call == "ApplyRetention":
        await of.registry.set_retention(MODEL, [RetentionRule(tier="transient", keep_last=1)])


def test_each_call_either_changes_nothing_or_has_a_test_of_its_lines() -> None:
    assert NEEDS.keys() == CALLS.keys() | READS
    assert CALLS.keys() == CHANGES
    assert not CHANGES & READS


@pytest.mark.parametrize("call", [*CALLS])
async def test_each_change_has_its_lines_when_it_is_answered(tmp_path: Path, call: str) -> None:
    settings = settings_of(tmp_path, local_socket=AUTO if call.startswith("Local") else "")
    async with audited(tmp_path, settings) as of:
        await prepare(of, call)
        make, expected = CALLS[call]
        lines = await of.lines_of(make(of))
        assert kinds(lines) == expected
        for line in lines:
            assert line["model_id"] == MODEL
            assert line["call"] == call
            is_anonymous = call == "CreateVersion"
            assert line["caller"] == ("" if is_anonymous else "admin")
            assert line["caller_kind"] == ("anonymous" if is_anonymous else "token")
            assert line["peer"].startswith("unix:" if call.startswith("Local") else "ipv4:127.0.0.1:")
            assert line["time"].endswith("Z")
            assert (line["before"], line["after"]) != (None, None)


async def test_lines_say_what_was_before_and_what_is_after(tmp_path: Path) -> None:
    async with audited(tmp_path) as of:
        [model, version, alias] = await of.lines_of(
            of.registry.store(MODEL, b"1", user_data={"step": "1"}, alias="a", metrics={"return": 2})
        )
        assert (model["before"], model["after"]) == (None, {"user_data": {}})
        assert version["before"] is None
        assert (
            version["after"].items()
            >= {
                "archived": True,
                "data_hash": hash_of(b"1"),
                "data_size_bytes": 1,
                "user_data": {"step": "1"},
                "metrics": {"return": 2.0},
            }.items()
        )
        revision = (await of.registry.aliases(MODEL))["a"].revision
        assert (alias["before"], alias["after"]) == (None, {"version_number": 1, "revision": revision})
        await of.registry.store(MODEL, b"2")
        [moved] = await of.lines_of(of.registry.set_alias(MODEL, "a", 2))
        assert moved["before"] == alias["after"]
        [changed] = await of.lines_of(of.registry.update_version(MODEL, 1, metrics={"return": 3, "loss": None}))
        assert changed["before"]["metrics"] == {"return": 2.0}
        assert changed["after"]["metrics"] == {"return": 3.0}
        [removed] = await of.lines_of(of.registry.remove_alias(MODEL, "a"))
        assert (removed["before"], removed["after"]) == (moved["after"], None)
        [deleted] = await of.lines_of(of.registry.delete_version(MODEL, 1))
        assert deleted["before"].items() >= {"data_hash": hash_of(b"1"), "metrics": {"return": 3.0}}.items()
        [gone] = await of.lines_of(of.registry.delete_model(MODEL))
        assert gone["before"].items() >= {"versions": 1, "latest_version_number": 2, "aliases": {}}.items()


async def test_calls_that_change_nothing_and_changes_that_fail_leave_no_line(tmp_path: Path) -> None:
    async with audited(tmp_path) as of:
        await prepare(of, "")

        async def change_nothing() -> None:
            for change in (
                of.registry.set_alias(MODEL, "old", 2, expected=99),
                of.registry.delete_version(MODEL, 1),
                of.registry.delete_version(MODEL, 9),
                of.registry.update_version(MODEL, 1, tags={"a": "b"}, expected=99),
            ):
                with pytest.raises((errors.ConflictError, errors.PreconditionError, errors.NotFoundError)):
                    await change
            await of.registry.apply_retention(MODEL, dry_run=True)
            await of.registry.promote(MODEL, 1)
            await of.registry.list_versions(MODEL)
            await of.registry.retrieve(MODEL, 1)

        assert await of.lines_of(change_nothing()) == []


async def test_refused_changes_of_named_callers_have_a_line_and_not_too_many(tmp_path: Path) -> None:
    async with audited(tmp_path, settings_of(tmp_path, anonymous="read")) as of:
        token = "cmr_reader"
        add_grant(str(tmp_path / "archive"), Grant("ci", "token", identity_of(token), parse_scopes(["read"]), 0))
        endpoint = f"grpc://127.0.0.1:{of.server.port}"
        async with aio.ModelRegistry(endpoint, token=token) as registry, aio.ModelRegistry(endpoint) as stranger:

            async def try_all() -> None:
                for each, count in ((stranger, 2), (registry, 100)):
                    for _ in range(count):
                        with pytest.raises(errors.PermissionDeniedError):
                            await each.delete_model(MODEL)
                with pytest.raises(errors.PermissionDeniedError):
                    await registry.history(MODEL)  # it changes nothing

            await of.registry.create_model(MODEL)
            lines = [line for line in await of.lines_of(try_all()) if line["change"] == "refused"]
        assert 1 <= len(lines) <= 60
        assert {(line["caller"], line["call"], line["model_id"]) for line in lines} == {("ci", "DeleteModel", MODEL)}
        assert lines[0]["reason"] == f"token ci lacks the scope delete:{MODEL}"


async def test_tokens_that_are_made_and_revoked_have_lines_without_secrets(tmp_path: Path) -> None:
    async with audited(tmp_path) as of:
        grant = Grant("ci", "token", identity_of("cmr_secret"), parse_scopes(["read", "store:policy-*"]), 1, None)
        add_grant(str(tmp_path / "archive"), grant)
        await until(lambda: kinds(of.lines()) == [("token created", 0, "")], of.lines)
        remove_grant(str(tmp_path / "archive"), "ci")
        await until(lambda: len(of.lines()) == 2, of.lines)
    created, revoked = of.lines()
    assert created["after"].items() >= {"name": "ci", "kind": "token", "scopes": ["read", "store:policy-*"]}.items()
    assert (revoked["change"], revoked["before"]) == ("token revoked", created["after"])
    text = "".join(file.read_text() for file in (tmp_path / "audit").glob("*.jsonl"))
    assert "cmr_" not in text
    assert identity_of("cmr_secret") not in text


async def test_retention_in_the_background_has_lines(tmp_path: Path) -> None:
    async with audited(tmp_path, settings_of(tmp_path, retention_seconds=0.05)) as of:
        await prepare(of, "ApplyRetention")
        await until(lambda: "version deleted" in [line["change"] for line in of.lines()], of.lines)
        [line] = [line for line in of.lines() if line["change"] == "version deleted"]
        assert (line["caller"], line["caller_kind"], line["version_number"]) == ("retention", "server", 2)


async def test_files_are_of_the_owner_alone_and_of_one_server(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        async with audited(tmp_path) as of:
            await of.registry.create_model(MODEL)
            [file] = (tmp_path / "audit").glob("audit_*.jsonl")
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
            with pytest.raises(errors.StartError, match=r"audit_log .* is in use by another server"):
                async with serving(tmp_path / "other", settings_of(tmp_path)):
                    pass
    finally:
        os.umask(mask)


async def test_a_directory_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(errors.StartError, match=r"audit_log .*/audit cannot be written: it is not a directory"):
        async with serving(tmp_path / "archive", settings_of(tmp_path)):
            pass


async def test_a_server_without_an_audit_log_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            with pytest.raises(errors.PreconditionError, match="this server keeps no audit log"):
                await registry.history(MODEL)
        assert (await client.status("audit_log"))["audit_log"] == "off"


async def test_moves_of_an_alias_by_many_make_an_unbroken_chain(tmp_path: Path) -> None:
    async with audited(tmp_path) as of:
        for number in range(4):
            await of.registry.store(MODEL, str(number).encode())

        async def move(turn: int) -> None:
            while True:
                now = (await of.registry.aliases(MODEL)).get("production")
                try:
                    await of.registry.set_alias(MODEL, "production", turn % 4 + 1, expected=now.revision if now else 0)
                except errors.ConflictError:
                    continue
                return

        async with asyncio.TaskGroup() as group:
            for turn in range(12):
                group.create_task(move(turn))
        moves = [line for line in of.lines() if line.get("alias") == "production"]
        assert len(moves) == 12
        ends = [None, *(line["after"] for line in moves)]
        assert [line["before"] for line in moves] == ends[:-1]
        now = (await of.registry.aliases(MODEL))["production"]
        assert ends[-1] == {"version_number": now.version_number, "revision": now.revision}


async def test_what_callers_send_cannot_break_a_line(tmp_path: Path) -> None:
    nasty = 'line\nbreak "quoted" \x1b[31m \u2028 名'
    async with audited(tmp_path) as of:
        await of.registry.create_model("modèle", user_data={nasty: nasty})
        lines = await of.lines_of(of.registry.update_model("modèle", tags={nasty: nasty}))
        assert lines[0]["after"]["tags"] == {nasty: nasty}
        text = next((tmp_path / "audit").glob("*.jsonl")).read_bytes()
        assert text.isascii()
        assert b"\x1b" not in text
        assert text.count(b"\n") == 2
