"""What the shared catalog does when PostgreSQL crashes, restarts, or loses connections."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from cogment_model_registry.errors import NotFoundError, StartError, UnavailableError
from cogment_model_registry.records.lifecycle import AnnotationChange, Annotations
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres import changes, connections
from cogment_model_registry.storage.postgres.catalog import PostgresCatalog
from cogment_model_registry.storage.postgres.schema import MIGRATIONS, SCHEMA
from cogment_model_registry.testing.bytes import describe
from cogment_model_registry.testing.catalog import publish, publish_annotated
from tests.failing import failing_twice
from tests.postgres import PostgresServer, execute, new_database, postgres_server
from tests.storage.test_shared_catalog import Two, numbers, opened, write_model
from tests.waiting import PATIENCE_SECONDS, eventually, until


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """PostgreSQL that the tests of this module may stop."""
    # With standbys, for which a commit may have to wait.
    with postgres_server({"wal_level": "replica", "max_wal_senders": "2"}) as running:
        yield running


@pytest.fixture
def own_database(own_server: PostgresServer) -> Iterator[str]:
    """The address of a new database of it."""
    with new_database(own_server) as url:
        yield url


@pytest.fixture
async def pair(own_database: str) -> AsyncIterator[Two]:
    """Two catalogs of that database, with the model ``m``."""
    async with opened(own_database) as a, opened(own_database) as b:
        await write_model(a, "m")
        yield a, b


async def hears_of(catalog: PostgresCatalog, number: int) -> None:
    """Wait until a catalog has heard that a version of ``m`` is the latest one."""

    async def has_heard() -> bool:
        news = await catalog.get_news("m", 0, 0, 1)
        return [each.number for each in news.shown] == [number] == [news.last_number]

    await eventually(has_heard)


async def back(*catalogs: PostgresCatalog) -> None:
    """Wait until catalogs have found PostgreSQL again."""

    async def are_back() -> bool:
        try:
            for catalog in catalogs:
                await catalog.count()
        except UnavailableError:
            return False
        return all(catalog.is_listening for catalog in catalogs)

    await eventually(are_back)


def crash(server: PostgresServer) -> None:
    server.crash()
    server.start()


async def test_numbers_are_not_given_again_after_a_crash_of_postgresql(pair: Two, own_server: PostgresServer) -> None:
    a, b = pair
    given = [
        (await publish_annotated(catalog, archived=archived)).number for catalog in pair for archived in (False, True)
    ]
    crash(own_server)
    await back(a, b)
    assert (await publish(b, "m")).number > max(given)
    assert (await publish_annotated(a, archived=True)).number > max(given) + 1


async def test_servers_announce_what_they_hold_after_a_crash_of_postgresql(
    pair: Two, own_server: PostgresServer
) -> None:
    a, b = pair
    dropped: list[VersionInfo] = []
    a.on_dropped(dropped.extend)
    ref = await a.find("m")
    infos = [await publish_annotated(a, Annotations({"a": "1"}, {"return": 0.5})) for _ in range(4)]
    other = await publish(b, "m")
    changed = await b.change_annotations(ref, 1, AnnotationChange({"b": "2"}))
    await until(lambda: a._core.held["m", 1].annotations == changed.annotations)
    async with b.removing_version(ref, 2):
        pass
    async with b.promoting(ref, 3) as promotion:
        archived = replace(promotion.info, archived=True)
        promotion.show(archived)
    await until(lambda: len(dropped) == 2)
    a._core.held["m", 2] = replace(a._core.held["m", 1], info=infos[1])  # as if it had not heard of it
    crash(own_server)
    await back(a, b)
    assert await numbers(b) == [3]
    for catalog in pair:
        assert await catalog.leases.beat()
    assert await b.list_versions("m", 0, 10) == [infos[0], archived, infos[3], other]
    assert (await b.describe([infos[0]]))[0].annotations == changed.annotations
    assert dropped == [infos[1], infos[2], infos[1]]
    assert [holder.server for holder in await b.leases.locate(infos[3])] == [a.leases.server]
    again = await a.change_annotations(ref, 1, AnnotationChange({"c": "3"}))
    assert again.revision > changed.revision


async def test_reads_go_on_from_the_cache_while_postgresql_is_away(pair: Two, own_server: PostgresServer) -> None:
    a, b = pair
    ref, model = await a.find("m"), await a.get_model("m")
    info = await publish(a, "m")
    other = await publish_annotated(b, archived=True)
    assert await a.get_versions("m", [info.number, -1]) == [info, other]
    own_server.stop()
    assert await a.find("m") == ref
    assert await a.get_model("m") == model
    assert await a.get_versions("m", [info.number]) == [info]
    assert await a.get_versions("m", [-1, info.number]) == [other, info]
    for call in (a.list_models(0, 1), a.find("n"), a.get_versions("m", [-2]), publish(a, "m"), a.count()):
        with pytest.raises(UnavailableError):
            await call
    assert a.failure
    await a.forget(info)
    own_server.start()
    await back(a)
    assert await a.leases.beat()
    assert not a.failure
    assert await numbers(a) == [other.number]
    assert (await publish(a, "m")).number == other.number + 1


async def test_a_lost_listening_connection_misses_nothing(
    pair: Two, own_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    await write_model(a, "unseen")
    await write_model(a, "ended")
    first = await publish(a, "m")
    with b.watching(None) as watcher:
        assert sorted(await watcher.changed(wait=True)) == ["ended", "m", "unseen"]
        await hears_of(b, first.number)
        monkeypatch.setattr(b._connections, "connect", _refuse)
        await execute(own_database, _TERMINATE_LISTENING.format(pid=b._listening.pid))
        await until(lambda: not b.is_listening)
        second = await publish(a, "m")
        await publish(a, "unseen")
        await write_model(a, "new")
        async with a.removing_model("ended"):
            pass
        monkeypatch.undo()
        await until(lambda: b.is_listening)
        assert sorted(await watcher.changed(wait=True)) == ["ended", "m", "new", "unseen"]
        news = await b.get_news("m", first.number, 0, 1)
        assert [each.number for each in news.shown] == [second.number]
        assert (await b.get_news("ended", 0, 0, 1)).life == 0
        third = await publish(a, "m")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await watcher.changed(wait=True) == ["m"]
        assert (await b.get_news("m", second.number, 0, 1)).shown[0].number == third.number


async def test_listening_survives_an_error_that_nobody_expects(
    pair: Two, own_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    monkeypatch.setattr(b._listening, "_catch_up", failing_twice(b._listening._catch_up))
    await execute(own_database, _TERMINATE_LISTENING.format(pid=b._listening.pid))
    await until(lambda: not b.is_listening)
    version = await publish(a, "m")
    await until(lambda: b.is_listening)
    await hears_of(b, version.number)


_TERMINATE_LISTENING = "SELECT pg_terminate_backend({pid}, 10000)"


async def _refuse() -> None:
    raise ConnectionRefusedError


async def test_a_commit_whose_connection_dies_is_reported_as_unclear_and_not_undone(
    own_server: PostgresServer, own_database: str
) -> None:
    async with opened(own_database) as a, opened(own_database) as b:
        await write_model(a, "m")
        ref = await a.find("m")
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

        async def lose() -> None:
            async with a.publishing(ref, archived=True) as slot:
                slot.show(describe("m", slot.number, b"data", True))
                # From here on a commit waits for a standby that does not exist; it is made when the wait is broken off.
                for statement in ("ALTER SYSTEM SET synchronous_standby_names = 'none'", "SELECT pg_reload_conf()"):
                    await execute(own_server.url(), statement)
                await eventually(lambda: _has_standby(own_database))

        losing = asyncio.create_task(lose())
        try:
            [row] = await eventually(lambda: execute(own_database, waiting))
            await execute(own_database, f"SELECT pg_terminate_backend({row['pid']}, 10000)")
            with pytest.raises(UnavailableError, match="it was made or not"):
                await losing
        finally:
            for statement in ("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"):
                await execute(own_server.url(), statement)
        assert await numbers(b) == [1]
        assert await a.leases.unresolved() == []
        await hears_of(a, 1)


async def _has_standby(url: str) -> bool:
    [row] = await execute(url, "SHOW synchronous_standby_names")
    return bool(row["synchronous_standby_names"])


async def test_a_frozen_server_loses_its_lock_and_its_change(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.SETTINGS, "idle_in_transaction_session_timeout", "500ms")
    monkeypatch.setattr(changes, "_KEEPALIVE_SECONDS", 1000.0)
    async with opened(database) as a, opened(database) as b:
        await write_model(a, "m")
        publishing: list[asyncio.Task[VersionInfo]] = []

        async def freeze() -> None:
            async with a.publishing(await a.find("m")) as slot:
                publishing.append(asyncio.create_task(publish(b, "m")))
                await asyncio.wait(publishing)  # it gets the lock, or fails below
                slot.show(describe("m", slot.number, b"data", False))

        with pytest.raises(UnavailableError, match="the connection to the catalog was lost"):
            await freeze()
        assert await numbers(b) == [publishing[0].result().number]


async def test_a_change_that_waits_for_an_archive_keeps_its_lock(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_KEEPALIVE_SECONDS", 0.1)
    kept: list[str] = []
    async with opened(database) as a:
        monkeypatch.setattr(a._core.changes, "_observe", lambda name, _seconds: kept.append(name))
        await write_model(a, "m")
        async with a.publishing(await a.find("m"), archived=True) as slot:
            [before] = await eventually(lambda: execute(database, _IDLE))
            await until(lambda: kept.count("keepalive") >= 3)
            # So long as it is never idle for the time after which PostgreSQL ends the transaction, it has the lock.
            await eventually(lambda: execute(database, f"{_IDLE} AND state_change > $1", before["state_change"]))
            slot.show(describe("m", slot.number, b"data", True))
        assert await numbers(a) == [1]


_IDLE = """
SELECT state_change FROM pg_stat_activity
WHERE state = 'idle in transaction' AND datname = current_database() AND pid <> pg_backend_pid()
"""


# Starts.


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The address of a database without tables."""
    with new_database(postgres) as url:
        yield url


async def test_servers_may_start_at_once_on_an_empty_database(empty_database: str) -> None:
    catalogs = [PostgresCatalog(empty_database) for _ in range(5)]
    await asyncio.gather(*(catalog.open() for catalog in catalogs))
    for catalog in catalogs:
        assert (await catalog.count()).models == 0
        await catalog.close()
    assert len(await execute(empty_database, f"SELECT * FROM {SCHEMA}.migrations")) == len(MIGRATIONS)


async def test_a_catalog_of_a_newer_release_is_refused(empty_database: str) -> None:
    async with opened(empty_database):
        pass
    await execute(empty_database, f"INSERT INTO {SCHEMA}.migrations VALUES (1000)")
    with pytest.raises(StartError, match="newer release"):
        await PostgresCatalog(empty_database).open()


@pytest.mark.parametrize("url", ["sqlite:///catalog.db", "postgresql://127.0.0.1:1/none"])
async def test_an_address_that_is_of_no_use_is_a_start_error(url: str) -> None:
    with pytest.raises(StartError):
        await PostgresCatalog(url).open()


async def test_a_role_that_may_not_create_tables_is_a_start_error(
    postgres: PostgresServer, empty_database: str
) -> None:
    name = empty_database.rpartition("/")[2]
    await execute(empty_database, f"CREATE ROLE {name}_reader LOGIN")
    try:
        with pytest.raises(StartError, match="CREATE SCHEMA"):
            await PostgresCatalog(postgres.url(name, f"{name}_reader")).open()
    finally:
        await execute(empty_database, f"DROP ROLE {name}_reader")


async def test_a_database_without_connections_left_is_not_away(postgres: PostgresServer, empty_database: str) -> None:
    """Then nothing outdated is read, and what has its connection goes on: above all the lease."""
    name = empty_database.rpartition("/")[2]
    role = f"{name}_limited"
    await execute(empty_database, f"CREATE ROLE {role} LOGIN")
    try:
        await execute(empty_database, f"ALTER DATABASE {name} OWNER TO {role}")
        async with (
            opened(postgres.url(name, role)) as catalog,
            opened(empty_database) as other,
            AsyncExitStack() as held,
        ):
            await write_model(catalog, "m")
            info = await publish(catalog, "m")
            assert await catalog.get_versions("m", [-1]) == [info]
            assert await catalog.leases.beat()
            await execute(empty_database, f"ALTER ROLE {role} CONNECTION LIMIT 1")
            pools: Any = catalog._connections
            await held.enter_async_context(pools.reading())
            await publish(other, "m")
            with pytest.raises(UnavailableError, match="raise max_connections of PostgreSQL"):
                await catalog.get_versions("m", [-1])
            assert not catalog.failure
            assert await catalog.leases.beat()
            await held.aclose()
            [newest] = await catalog.get_versions("m", [-1])
            assert newest.number == info.number + 1
    finally:
        await execute(empty_database, f"REASSIGN OWNED BY {role} TO CURRENT_USER")
        await execute(empty_database, f"DROP ROLE {role}")


async def test_a_closed_catalog_is_not_available(empty_database: str) -> None:
    async with opened(empty_database) as catalog:
        await write_model(catalog, "m")
    with pytest.raises(UnavailableError):
        await catalog.list_models(0, 1)
    with pytest.raises(NotFoundError):
        async with opened(empty_database) as catalog:
            await catalog.find("none")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux breaks off silent connections")
async def test_a_connection_is_broken_off_when_the_other_side_is_silent(empty_database: str) -> None:
    connection: Any = await connections.Connections(empty_database).connect()
    try:
        used = connection._transport.get_extra_info("socket")
        silent_ms = used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert 0 < silent_ms < 5_000
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        # At the other end too: it holds the locks.
        assert await connection.fetchval("SHOW tcp_user_timeout") == str(silent_ms)
        for name in ("idle", "interval"):
            assert await connection.fetchval(f"SHOW tcp_keepalives_{name}") == "1"
    finally:
        await connection.close()
