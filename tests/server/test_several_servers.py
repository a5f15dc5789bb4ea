"""Several servers as one: a catalog in PostgreSQL, an archive in a bucket, and the memory of each, over the wire."""

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from cogment_model_registry import RetentionRule, TransientShare, errors
from cogment_model_registry.aio import ModelRegistry
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.server import replicas
from cogment_model_registry.server.replicas import Replicas
from cogment_model_registry.storage.postgres.grants import opened_grants
from cogment_model_registry.storage.postgres.leases import Lease, Leases
from cogment_model_registry.storage.postgres.schema import SCHEMA
from cogment_model_registry.wire import lifecycle
from tests.client import connected
from tests.failing import failing_twice
from tests.object_store import BUCKET, object_server
from tests.postgres import PostgresServer, execute, new_database, postgres_server
from tests.processes import run_cogment
from tests.registry_client.conftest import port_of
from tests.registry_client.network import Switch, listening
from tests.server.test_health import SERVING, check
from tests.server.test_upload_version import DATA as UPLOADED
from tests.server.test_upload_version import Upload, header
from tests.several import endpoint, settings_of, several, several_processes, several_servers
from tests.waiting import PATIENCE_SECONDS, eventually, until

DATA = os.urandom(5_000_000)


@pytest.fixture
async def servers(database: str, tmp_path: Path) -> AsyncIterator[list[ModelRegistry]]:
    """Clients of three servers."""
    async with several(settings_of(database, tmp_path), 3) as clients:
        yield clients


def listed(registry: ModelRegistry, *numbers: int) -> Callable[[], Awaitable[bool]]:
    """Return a check of the versions of the model ``m``."""

    async def check() -> bool:
        return [version.number for version in await registry.list_versions("m")] == [*numbers]

    return check


async def test_what_one_server_takes_all_of_them_have_at_once(servers: list[ModelRegistry]) -> None:
    a, b, c = servers
    await a.create_model("m", user_data={"kind": "policy"})
    assert (await b.get_model("m")).user_data == {"kind": "policy"}
    transient = await a.publish("m", DATA)
    archived = await b.store("m", DATA[:1000], alias="best", metrics={"reward": 1.5})
    assert (transient.number, archived.number) == (1, 2)
    for registry in servers:
        assert await registry.list_versions("m") == [transient, archived]
        assert await registry.retrieve("m", 1) == DATA
        assert await registry.retrieve("m", "best") == DATA[:1000]
    [found] = await c.find_versions("m", "metrics.reward > 1")
    assert (found.number, found.aliases) == (2, ("best",))
    assert (await c.publish("m", b"next")).number == 3
    assert (await a.get_version("m")).number == 3


async def test_numbers_are_unique_and_increase_over_all_servers(servers: list[ModelRegistry]) -> None:
    await servers[0].create_model("m")
    given: list[int] = []

    async def publish(registry: ModelRegistry) -> None:
        last = 0
        for _ in range(20):
            number = (await registry.publish("m", b"data")).number
            assert number > last
            last = number
            given.append(number)

    await asyncio.gather(*(publish(registry) for registry in servers for _ in range(2)))
    assert sorted(given) == [*range(1, 121)]


async def test_a_watcher_receives_what_other_servers_publish(servers: list[ModelRegistry]) -> None:
    a, b, c = servers
    await a.create_model("m")
    async with aclosing(b.watch("m", all=True)) as events:
        for number, registry in enumerate((a, c, b, a), 1):
            published = await registry.publish("m", b"%d" % number)
            event = await anext(events)
            assert event.number == published.number == number  # type: ignore[union-attr]


async def test_a_version_is_tracked_with_its_bytes_on_another_server(servers: list[ModelRegistry]) -> None:
    a, b, _ = servers
    await a.publish("m", DATA)
    async with b.track("m") as latest:
        await latest.wait_for()
        assert latest.value == DATA
        await a.publish("m", DATA[::-1])
        await latest.wait_for(1)
        assert latest.value == DATA[::-1]


async def test_promotion_works_on_every_server(servers: list[ModelRegistry]) -> None:
    a, b, c = servers
    published = await a.publish("m", DATA, tags={"run": "7"})
    promoted = await b.promote("m", 1, alias="production")
    assert (promoted.info.archived, promoted.tags) == (True, {"run": "7"})
    assert promoted.info.data_hash == published.data_hash
    assert await c.retrieve("m", "production") == await a.retrieve("m", 1) == DATA


async def test_deletion_works_on_every_server_and_frees_the_memory(servers: list[ModelRegistry]) -> None:
    a, b, _ = servers
    await a.publish("m", DATA)
    await a.store("m", DATA)
    await b.delete_version("m", 1)
    await b.delete_version("m", 2)
    for registry in servers:
        assert await registry.list_versions("m") == []
        with pytest.raises(errors.NotFoundError):
            await registry.retrieve("m", 1)

    async def is_free() -> bool:
        return (await a.status())["transient_bytes"] == "0"

    await eventually(is_free)
    assert (await a.publish("m", b"next")).number == 3


async def test_a_model_that_is_created_again_is_another_one_everywhere(servers: list[ModelRegistry]) -> None:
    a, b, _ = servers
    await a.publish("m", b"old")
    await a.store("m", b"old archived")
    assert await b.retrieve("m", 1) == b"old"
    assert await b.retrieve("m", 2) == b"old archived"
    await b.delete_model("m")
    with pytest.raises(errors.NotFoundError):
        await a.get_model("m")
    await a.publish("m", b"new")
    await a.store("m", b"new archived")
    for registry in servers:
        assert await registry.retrieve("m", 1) == b"new"
        assert await registry.retrieve("m", 2) == b"new archived"


async def test_an_alias_moves_once_of_several_attempts_with_the_same_revision(servers: list[ModelRegistry]) -> None:
    for _ in range(2):
        await servers[0].store("m", b"data")
    before = await servers[0].set_alias("m", "production", 1)
    outcomes = await asyncio.gather(
        *(registry.set_alias("m", "production", 2, expected=before.revision) for registry in servers),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, errors.ConflictError) for outcome in outcomes) == 2
    assert {(await registry.aliases("m"))["production"].version_number for registry in servers} == {2}


@pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
async def test_a_repeated_upload_is_found_by_another_server(database: str, tmp_path: Path, archived: bool) -> None:
    async with (
        several_servers(settings_of(database, tmp_path)) as (first, second),
        connected(first.port, lifecycle.SERVICE_NAME) as a,
        connected(second.port, lifecycle.SERVICE_NAME) as b,
    ):
        async with ModelRegistry(endpoint(first)) as registry:
            await registry.create_model("m")
        upload = Upload(a)
        assert await upload.begin(header(archived=archived)) == 0
        published = await upload.finish(UPLOADED)
        again = Upload(b)
        assert await again.begin(header(archived=archived)) == len(UPLOADED)
        assert (await again.version()).info == published.info


async def test_consumers_of_all_servers_are_listed_on_each(servers: list[ModelRegistry]) -> None:
    a, b, c = servers
    await a.publish("m", b"1")
    await a.report_consumer("m", "on-a", version=1)
    await b.report_consumer("m", "on-b", state="loading")
    for registry in servers:
        assert [each.consumer_id for each in await registry.consumers("m")] == ["on-a", "on-b"]
        assert [each.consumer_id for each in await registry.consumers("m", "state = active")] == ["on-a"]
    await a.report_consumer("m", "on-b", version=1)  # it has moved
    assert [(each.consumer_id, each.state) for each in await c.consumers()] == [("on-a", "active"), ("on-b", "active")]


async def test_a_held_version_is_neither_deleted_by_another_server_nor_evicted_where_it_was_published(
    database: str, tmp_path: Path
) -> None:
    async with several(settings_of(database, tmp_path, cache_max_items=2)) as (a, b):
        await a.publish("m", b"held")
        await b.report_consumer("m", "actor", version=1, held_versions=[1])
        with pytest.raises(errors.PreconditionError, match='held by consumer "actor"'):
            await a.delete_version("m", 1)
        for number in range(2, 6):
            await a.publish("m", b"%d" % number)
        assert await a.retrieve("m", 1) == b"held"
        await a.set_retention("m", [RetentionRule(tier="any", keep_last=1)])
        report = await a.apply_retention("m")
        assert [version.number for version in await a.list_versions("m")] == [1, 5], report
        await b.report_consumer("m", "actor", version=1)
        await a.delete_version("m", 1)
        await b.report_consumer("m", "actor", version=5, held_versions=[5])
        await a.delete_version("m", 5, force=True)


async def test_the_share_of_a_model_holds_on_every_server(servers: list[ModelRegistry]) -> None:
    a, b, _ = servers
    await a.create_model("m")
    await a.set_share("m", TransientShare(max_items=1))

    async def is_shared() -> bool:
        await b.publish("m", b"data")
        return len(await b.list_versions("m")) == 1

    await eventually(is_shared)


async def test_a_token_is_one_on_every_server(database: str, tmp_path: Path) -> None:
    async with opened_grants(database) as grants:
        for name, scopes in (("trainer", ["publish", "read"]), ("peer", ["read"])):
            await grants.add(Grant(name, "token", identity_of(name), parse_scopes(scopes), 1, None))
    token_file = tmp_path / "peer-token"
    token_file.write_text("peer")
    settings = settings_of(database, tmp_path / "archive", anonymous="nothing", peer_token_file=str(token_file))
    async with several_servers(settings) as (first, second):
        async with ModelRegistry(endpoint(first), token="wrong") as stranger:
            with pytest.raises(errors.UnauthenticatedError):
                await stranger.list_models()
        async with (
            ModelRegistry(endpoint(first), token="trainer") as a,
            ModelRegistry(endpoint(second), token="trainer") as b,
        ):
            await a.publish("m", DATA)
            assert await b.retrieve("m", 1) == DATA
            await a.report_consumer("m", "actor", version=1)
            assert [each.consumer_id for each in await b.consumers("m")] == ["actor"]
            async with opened_grants(database) as grants:
                await grants.remove("trainer")

            async def is_revoked() -> bool:
                try:
                    await b.list_models()
                except errors.UnauthenticatedError:
                    return True
                return False

            await eventually(is_revoked)


# What fails.


def test_versions_of_a_server_that_is_gone_are_gone_and_what_it_archived_is_not(database: str, tmp_path: Path) -> None:
    async def run() -> None:
        with several_processes(database, tmp_path) as (a, b):
            async with ModelRegistry(endpoint(a)) as first, ModelRegistry(endpoint(b)) as other:
                await first.publish("m", b"transient")
                await first.store("m", b"archived")
                await other.publish("m", b"of the other")
                await first.publish("m", b"known to both")
                a.kill()
                b.wait_for_line("server gone")
                await eventually(listed(other, 2, 3))
                assert await other.retrieve("m", 2) == b"archived"
                assert (await other.publish("m", b"next")).number == 5

    asyncio.run(run())


def test_a_server_that_was_frozen_for_longer_than_its_lease_takes_a_new_one(database: str, tmp_path: Path) -> None:
    async def run() -> None:
        with several_processes(database, tmp_path) as (a, b):
            async with ModelRegistry(endpoint(a)) as first, ModelRegistry(endpoint(b)) as other:
                await first.publish("m", b"transient")
                a.signal(signal.SIGSTOP)
                b.wait_for_line("server gone")
                await eventually(listed(other))
                assert (await other.publish("m", b"meanwhile")).number == 2
                a.signal(signal.SIGCONT)
                a.wait_for_line("lease lost")
                assert (await first.publish("m", b"again")).number == 3
                for registry in (first, other):
                    await eventually(listed(registry, 2, 3))
                    assert await registry.retrieve("m", 2) == b"meanwhile"
                    assert await registry.retrieve("m", 3) == b"again"

    asyncio.run(run())


async def test_a_lease_survives_an_error_that_nobody_expects(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    beat = Leases.beat

    async def record(leases: Leases) -> Sequence[Lease] | None:
        beats.append(leases.server)
        return await beat(leases)

    monkeypatch.setattr(Leases, "beat", failing_twice(record))
    async with several_servers(settings_of(database, tmp_path)):
        await until(lambda: len(set(beats)) == 2)


def test_with_two_replicas_a_published_version_outlives_its_server(database: str, tmp_path: Path) -> None:
    async def run() -> None:
        with several_processes(database, tmp_path, "--transient_replicas=2") as (a, b):
            async with ModelRegistry(endpoint(a)) as first, ModelRegistry(endpoint(b)) as other:
                for number in range(1, 4):
                    await first.publish("m", b"%d" % number)
                a.kill()
                b.wait_for_line("server gone")
                for number in range(1, 4):
                    assert await other.retrieve("m", number) == b"%d" % number
            async with ModelRegistry(endpoint(b), retry_seconds=0) as other:
                with pytest.raises(errors.UnavailableError, match=r"not on 2 servers, .*: there are 1;"):
                    await other.publish("m", b"alone")

    asyncio.run(run())


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "full"])
async def test_a_server_that_takes_no_copies_is_replaced_by_another_one(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    async with several(settings_of(database, tmp_path, transient_replicas=2), 3) as (a, b, _):
        [row] = await execute(database, f"SELECT max(server) AS server FROM {SCHEMA}.servers")
        take, fetch = Replicas._take, Replicas._fetch

        def is_it(each: Replicas) -> bool:
            return bool(each._shared.catalog.leases.server == row["server"])

        async def take_nothing(each: Replicas, key: tuple[str, int], owner: int) -> None:
            if not (is_silent and is_it(each)):
                await take(each, key, owner)

        async def fetch_nothing(each: Replicas, key: tuple[str, int]) -> None:
            if is_it(each):
                raise errors.TooLargeError("no space is left")
            await fetch(each, key)

        monkeypatch.setattr(Replicas, "_take", take_nothing)
        monkeypatch.setattr(Replicas, "_fetch", fetch_nothing)
        monkeypatch.setattr(replicas, "_SECONDS", PATIENCE_SECONDS)
        monkeypatch.setattr(replicas, "_SILENT_SECONDS", 0.1)
        for number in range(1, 9):
            assert (await a.publish("m", DATA, timeout=PATIENCE_SECONDS)).number == number
            assert await b.retrieve("m", number) == DATA


async def test_a_crash_of_the_database_loses_no_version_and_no_number(tmp_path: Path) -> None:
    with postgres_server() as postgres, new_database(postgres) as database:
        async with several(settings_of(database, tmp_path)) as (a, b):
            await a.publish("m", b"1", tags={"run": "7"})
            await b.publish("m", b"2")
            await a.store("m", b"3", alias="best")
            await b.publish("m", b"4")
            await a.delete_version("m", 2)
            postgres.crash()
            assert await a.retrieve("m", 1) == b"1", "what it has in memory, and knows"
            with pytest.raises((errors.UnavailableError, errors.TimedOutError)):
                await a.publish("m", b"5", timeout=1)
            postgres.start()
            for registry in (a, b):

                async def is_back(registry: ModelRegistry = registry) -> bool:
                    try:
                        return [each.number for each in await registry.list_versions("m")] == [1, 3, 4]
                    except errors.UnavailableError:
                        return False

                await eventually(is_back)
                assert await registry.retrieve("m", 1) == b"1"
                assert await registry.retrieve("m", "best") == b"3"
                assert await registry.retrieve("m", 4) == b"4"
            assert (await b.describe_version("m", 1)).tags == {"run": "7"}
            assert (await b.publish("m", b"next")).number > 4


async def test_a_client_leaves_a_server_that_alone_has_lost_the_database(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    relays: dict[int, Switch] = {}
    async with AsyncExitStack() as stack:
        for _ in range(2):
            relay = Switch(postgres.port)
            port = await stack.enter_async_context(listening(relay.relay))
            url = database.replace(f":{postgres.port}/", f":{port}/")
            [server] = await stack.enter_async_context(several_servers(settings_of(url, tmp_path), 1))
            relays[server.port] = relay
        endpoints = [f"grpc://127.0.0.1:{port}" for port in relays]
        registry = await stack.enter_async_context(ModelRegistry(endpoints, timeout=PATIENCE_SECONDS))
        await registry.store("m", b"archived", alias="best")
        first = port_of(registry)
        relays[first].switch_off()
        assert (await registry.publish("m", b"data")).number == 2
        assert port_of(registry) != first
        assert await registry.retrieve("m", "best") == b"archived"
        relays[first].switch_on()


async def test_servers_serve_transient_versions_while_their_object_store_is_away(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_server(tmp_path / "store") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        settings = replace(settings_of(database, tmp_path), archive_url=f"s3://{BUCKET}/models")
        async with several_servers(settings) as (first, second), AsyncExitStack() as stack:
            a, b = [await stack.enter_async_context(ModelRegistry(endpoint(each))) for each in (first, second)]
            await a.store("m", DATA[:1000])
            await asyncio.to_thread(store.kill)
            with pytest.raises(errors.UnavailableError):
                await a.store("m", DATA, timeout=PATIENCE_SECONDS)
            published = await a.publish("m", DATA)
            assert await b.retrieve("m", published.number) == DATA
            async with connected(first.port) as client:
                assert await check(client) == SERVING
            await asyncio.to_thread(store.start)

            async def is_back() -> bool:
                try:
                    await a.store("m", DATA)
                except errors.UnavailableError:
                    return False
                return True

            await eventually(is_back)
            assert await b.retrieve("m", 1) == DATA[:1000]


# Stops and starts.


def test_a_server_that_stops_hands_its_transient_versions_over(database: str, tmp_path: Path) -> None:
    async def run() -> None:
        with several_processes(database, tmp_path, count=3) as (a, b, c):
            async with ModelRegistry(endpoint(a)) as first, ModelRegistry(endpoint(b)) as other:
                for number in range(1, 8):
                    await first.publish("m", b"%d" % number, tags={"number": str(number)})
                assert a.stop() == 0
                assert await listed(other, *range(1, 8))()
                c.kill()
                b.wait_for_line("server gone")
                kept = [version.number for version in await other.list_versions("m")]
                assert len(kept) in (3, 4), "the part of one of two servers"
                for number in kept:
                    assert await other.retrieve("m", number) == b"%d" % number
                    assert (await other.describe_version("m", number)).tags == {"number": str(number)}

    asyncio.run(run())


def test_servers_that_take_versions_one_after_the_other_take_all_of_them(database: str, tmp_path: Path) -> None:
    taken = "SELECT 1 FROM cogment_model_registry.transient HAVING count(*) FILTER (WHERE cardinality(holders) > 1) > 2"

    async def run() -> None:
        with several_processes(database, tmp_path, count=3) as (a, b, c):
            async with ModelRegistry(endpoint(a)) as first, ModelRegistry(endpoint(b)) as other:
                for number in range(1, 8):
                    await first.publish("m", b"%d" % number)
                c.signal(signal.SIGSTOP)  # it looks at what is to be taken after the other one has taken its part
                try:
                    stopping = asyncio.create_task(asyncio.to_thread(a.stop))
                    await eventually(lambda: execute(database, taken))
                finally:
                    c.signal(signal.SIGCONT)
                assert await stopping == 0
                assert await listed(other, *range(1, 8))()

    asyncio.run(run())


def test_no_call_fails_and_nothing_is_lost_while_one_server_after_the_other_is_replaced(
    database: str, tmp_path: Path
) -> None:
    async def run() -> None:
        with ExitStack() as stack:
            processes = stack.enter_context(several_processes(database, tmp_path, count=2))
            async with ModelRegistry([endpoint(process) for process in processes]) as registry:
                is_over = asyncio.Event()
                published: list[int] = []

                async def publish() -> None:
                    while not is_over.is_set():
                        version = await registry.publish("m", b"data")
                        published.append(version.number)
                        assert await registry.retrieve("m", version.number) == b"data"

                await registry.store("m", b"archived", alias="best")
                publishing = asyncio.create_task(publish())
                for process in processes:
                    await until(functools.partial(_has_grown, published, len(published) + 3))
                    assert await asyncio.to_thread(process.stop) == 0
                    flag = f"--port={process.port}"
                    replaced = several_processes(database, tmp_path, flag, count=1)
                    stack.enter_context(await asyncio.to_thread(_entered, replaced))
                is_over.set()
                await publishing
                assert published == sorted(published)
                assert await registry.retrieve("m", "best") == b"archived"
                assert [version.number for version in await registry.list_versions("m")][-1] == published[-1]

    asyncio.run(run())


def _has_grown(items: list[int], count: int) -> bool:
    return len(items) > count


def _entered(manager: AbstractContextManager[object]) -> AbstractContextManager[object]:
    """Enter a context manager on the thread of the caller, and return one that leaves it."""
    stack = ExitStack()
    stack.enter_context(manager)
    return stack


def test_a_server_without_its_database_says_so_and_ends(postgres: PostgresServer, tmp_path: Path) -> None:
    shared = [f"--archive_url=file://{tmp_path}", "--port=0"]
    for url in (f"postgresql://nobody@127.0.0.1:{postgres.port}/none", "postgresql://x@127.0.0.1:1/none"):
        ended = run_cogment("services", "model_registry", *shared, f"--catalog_url={url}")
        assert ended.returncode == 3
        assert ended.stderr.startswith("error: the database of the catalog at 127.0.0.1:"), ended.stderr
        assert len(ended.stderr.splitlines()) == 1


async def test_a_start_does_not_read_the_catalog(database: str, tmp_path: Path) -> None:
    async with several(settings_of(database, tmp_path), 1) as (a,):
        await a.create_model("m")
    await execute(
        database,
        "INSERT INTO cogment_model_registry.versions (life, number, created, data_hash, data_size)"
        " SELECT life, n, 0, 'hash', 1 FROM cogment_model_registry.models, generate_series(1, 10000) AS n",
    )
    async with several(settings_of(database, tmp_path), 1) as (a,):
        assert (await a.get_version("m")).number == 10_000
