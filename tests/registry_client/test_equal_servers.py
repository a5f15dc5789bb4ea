"""Clients of several server processes that are killed, frozen or stopped, and of those that a Directory knows."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.client import blocking_client, reporting, watching
from cogment_model_registry.settings import MIB
from cogment_model_registry.wire import local as wire
from tests.certificates import LOCAL, Authority
from tests.ports import free_port
from tests.processes import ServerProcess, run_cogment, server_process
from tests.registry_client.conftest import connection_of, opened, opened_at, port_of
from tests.waiting import PATIENCE_SECONDS, eventually, until, wait_until

DATA = os.urandom(3 * MIB)


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    """Two equal archives with a model of two versions."""
    first, second = tmp_path / "first", tmp_path / "second"
    with server_process(first) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        registry.store("policy", b"1")
        registry.store("policy", DATA)
        process.stop()
    shutil.copytree(first, second)
    return [first, second]


@pytest.fixture
def servers(archives: list[Path]) -> Iterator[dict[int, ServerProcess]]:
    """Two servers that serve the same versions, by port."""
    with ExitStack() as stack:
        started = [stack.enter_context(server_process(each, "--read_only")) for each in archives]
        yield {each.port: each for each in started}
        for each in started:
            if each.is_running:
                each.signal(signal.SIGCONT)


@pytest.fixture(params=["SIGKILL", "SIGSTOP", "SIGTERM"])
def end(request: pytest.FixtureRequest) -> signal.Signals:
    """The signal that ends a server, or freezes it."""
    return signal.Signals[request.param]


@pytest.fixture
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One flavour for each signal: servers are slow to start, and what moves on is the same in both."""
    monkeypatch.setattr(blocking_client, "_is_main_thread", lambda: True)
    is_frozen = "end" in request.fixturenames and request.getfixturevalue("end") is signal.SIGSTOP
    return "blocking" if is_frozen else "asyncio"


@pytest.fixture(autouse=True)
def only_pings_end_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but pings show that a server is silent, within the time of a test."""
    for name in ("STREAM_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(watching, name, 3600.0)
    monkeypatch.setattr(reporting, "_REPORT_SECONDS", 3600.0)


async def send(server: ServerProcess, end: signal.Signals) -> None:
    """Kill, stop or freeze a server; one that stops finishes what it has begun, and may answer until it has ended."""
    server.signal(end)
    if end is not signal.SIGSTOP:
        await until(lambda: not server.is_running)


@asynccontextmanager
async def client_of(flavour: str, servers: dict[int, ServerProcess], **options: Any) -> AsyncIterator[Any]:
    """Return a context manager for a client that has patience with each call, and has chosen one of the servers."""
    options = {"timeout": 3600.0, "retry_seconds": PATIENCE_SECONDS, **options}
    async with opened(flavour, *servers, **options) as registry:
        await registry.status()
        yield registry


async def test_calls_go_on(flavour: str, servers: dict[int, ServerProcess], end: signal.Signals) -> None:
    async with client_of(flavour, servers) as registry:
        home = port_of(registry)
        await send(servers[home], end)
        assert [each.number for each in await registry.list_versions("policy")] == [1, 2]
        assert port_of(registry) != home


async def test_large_versions_come_from_the_other_server(
    flavour: str, servers: dict[int, ServerProcess], end: signal.Signals
) -> None:
    """They go by the local socket where there is one, which has no pings of its own."""
    async with client_of(flavour, servers) as registry:
        assert await registry.retrieve("policy") == DATA
        version = await registry.get_version("policy", 2)
        place = connection_of(registry).local
        assert (place is not None and bool(place.path)) is wire.is_supported()
        home = port_of(registry)
        await send(servers[home], end)
        assert await registry.retrieve(version) == DATA
        assert port_of(registry) != home
        assert await registry.retrieve(version) == DATA


async def test_a_quiet_watch_and_the_report_of_a_consumer_go_on(
    flavour: str, servers: dict[int, ServerProcess], end: signal.Signals
) -> None:
    async with client_of(flavour, servers) as registry:
        options = {"consumer": "actor-1", "ttl_seconds": 3600}
        if flavour == "blocking":
            options["decode"] = bytes
        async with registry.track("policy", **options) as latest:
            await latest.wait_for(1, timeout=PATIENCE_SECONDS)
            home = port_of(registry)
            [other] = [port for port in servers if port != home]
            async with opened(flavour, other) as there:

                async def is_reported() -> bool:
                    consumers = await there.consumers("policy")
                    return [(each.consumer_id, each.version_number) for each in consumers] == [("actor-1", 2)]

                assert not await is_reported()
                await send(servers[home], end)
                await eventually(is_reported)


async def test_a_watch_of_every_version_goes_on_with_the_token_of_another_server(
    flavour: str, servers: dict[int, ServerProcess], archives: list[Path], end: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(client_of(flavour, servers))
        events = await stack.enter_async_context(aclosing(registry.watch("policy", all=True, patience_seconds=3600)))
        assert [(await anext(events)).number for _ in range(2)] == [1, 2]
        following = asyncio.ensure_future(anext(events))
        home = port_of(registry)
        [other] = [port for port in servers if port != home]
        # The other server is replaced at its port by one that takes versions, which now has a third one.
        await asyncio.to_thread(servers[other].stop)
        archive = servers[other].archive_dir
        assert archive in archives
        with server_process(archive, f"--port={other}"):
            async with opened(flavour, other) as trainer:
                await trainer.store("policy", b"3")
            await send(servers[home], end)
            assert (await following).number == 3


async def test_a_frozen_server_that_is_back_is_used_again(flavour: str, servers: dict[int, ServerProcess]) -> None:
    async with client_of(flavour, servers) as registry:
        for _ in range(2):
            home = port_of(registry)
            servers[home].signal(signal.SIGSTOP)
            await registry.get_model("policy")
            servers[home].signal(signal.SIGCONT)
            assert port_of(registry) != home


# A Directory.


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path, "--persistence_file=", service="directory") as process:
        yield process


async def test_all_registries_of_a_directory_are_equal(
    flavour: str, directory: ServerProcess, archives: list[Path], end: signal.Signals
) -> None:
    where = f"grpc://127.0.0.1:{directory.port}"
    flags = (f"--directory_endpoint={where}", "--directory_registration_host=127.0.0.1", "--read_only")
    with ExitStack() as stack:
        started = [stack.enter_context(server_process(each, *flags)) for each in archives]
        servers = {each.port: each for each in started}

        def are_ready() -> bool:
            listed = run_cogment(
                "client", "directory", "inquire", f"--directory_endpoint={where}", "--type=modelregistry"
            )
            return all(f"127.0.0.1:{port}" in listed.stdout for port in servers)

        await asyncio.to_thread(wait_until, are_ready)
        options: dict[str, Any] = {"directory_endpoint": where, "timeout": 3600, "retry_seconds": PATIENCE_SECONDS}
        async with opened_at(flavour, "cogment://discover", **options) as registry:
            await registry.get_model("policy")
            home = port_of(registry)
            directory.kill()  # the client knows both by now
            await send(servers[home], end)
            await registry.get_model("policy")
            assert port_of(registry) != home
        for each in started:
            if each.is_running:
                each.signal(signal.SIGCONT)


# TLS and the command line.


async def test_each_server_over_tls_is_checked_by_its_own_name(
    flavour: str, archives: list[Path], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    right, wrong = authority.issue("right", LOCAL), authority.issue("wrong", ("DNS:elsewhere.example",))
    with (
        server_process(archives[0], "--read_only", *wrong.flags) as first,
        server_process(archives[1], "--read_only", *right.flags) as second,
    ):
        endpoint = [f"grpcs://127.0.0.1:{each.port}" for each in (first, second)]
        for _ in range(3):
            async with opened_at(flavour, endpoint, tls_ca=str(authority.certificate)) as registry:
                assert await registry.retrieve("policy") == DATA
                assert port_of(registry) == second.port
        second.kill()
        async with opened_at(flavour, endpoint, tls_ca=str(authority.certificate), retry_seconds=0) as registry:
            with pytest.raises(errors.UnavailableError, match=r"none of the 2 registries answers: .*certificate"):
                await registry.retrieve("policy")


@pytest.mark.parametrize("by", ["flag", "variable"])
async def test_a_command_takes_several_endpoints(servers: dict[int, ServerProcess], by: str, tmp_path: Path) -> None:
    endpoint = ",".join(f"grpc://127.0.0.1:{port}" for port in (free_port(), *servers))
    words = ["client", "model_registry", "retrieve", "policy", "1", "--force", f"--output={tmp_path / 'copy'}"]
    environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": endpoint} if by == "variable" else {}
    flags = [f"--endpoint={endpoint}"] if by == "flag" else []
    for each in servers.values():
        each.signal(signal.SIGSTOP)
        result = await asyncio.to_thread(run_cogment, *words, *flags, environment=environment)
        each.signal(signal.SIGCONT)
        assert (result.returncode, result.stderr) == (0, "")
        assert (tmp_path / "copy").read_bytes() == b"1"
