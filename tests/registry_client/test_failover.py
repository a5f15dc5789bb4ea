"""What a client has begun goes on with another server; two relays in front of one server look like two equal ones."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import errors
from cogment_model_registry.client import fetching, watching
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.server.composition import Server
from tests.registry_client.conftest import connection_of, counted, opened, port_of
from tests.registry_client.network import Switch, listening
from tests.waiting import PATIENCE_SECONDS, until

DATA = os.urandom(24 * MIB)


class Pair:
    """A client of two relays in front of one server.

    Attributes:
        registry: The client.
        relays: The relays by port.
    """

    def __init__(self, registry: Any, relays: dict[int, Switch]) -> None:
        self.registry = registry
        self.relays = relays

    @property
    def home(self) -> Switch:
        """The relay over which the calls of the client go now."""
        return self.relays[port_of(self.registry)]

    @property
    def other(self) -> Switch:
        """The other one."""
        return next(relay for port, relay in self.relays.items() if port != port_of(self.registry))

    def has_left(self, relay: Switch) -> bool:
        """Return whether calls go over the other relay."""
        return self.home is not relay

    async def switch(self) -> Switch:
        """Switch off the relay that is used, and return it."""
        home = self.home
        home.switch_off()
        return home


def _has_sent(relay: Switch, size_bytes: int) -> bool:
    return relay.sent_bytes >= size_bytes


@asynccontextmanager
async def paired(flavour: str, server: Server, **options: Any) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        relays = [Switch(server.port), Switch(server.port)]
        ports = [await stack.enter_async_context(listening(relay.relay)) for relay in relays]
        options = {"retry_seconds": PATIENCE_SECONDS, **options}
        registry = await stack.enter_async_context(opened(flavour, *ports, **options))
        await registry.status()
        yield Pair(registry, dict(zip(ports, relays, strict=True)))


@pytest.fixture
async def pair(flavour: str, server: Server) -> AsyncIterator[Pair]:
    async with paired(flavour, server) as both:
        yield both


@pytest.fixture
def only_pings_end_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but pings show that a server is silent, within the time of a test."""
    for name in ("STREAM_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(watching, name, 3600.0)


async def test_calls_go_on_over_and_over(pair: Pair) -> None:
    registry = pair.registry
    await registry.store("policy", b"1")
    for _ in range(4):
        gone = await pair.switch()
        assert await registry.retrieve("policy") == b"1"
        assert [each.model_id for each in await registry.list_models()] == ["policy"]
        assert pair.home is not gone
        gone.switch_on()


async def test_an_upload_goes_on_and_makes_one_version(pair: Pair) -> None:
    registry, home = pair.registry, pair.home
    home.after(4 * MIB, home.switch_off, upwards=True)
    version = await registry.publish("policy", DATA)
    assert pair.home is not home
    assert await registry.retrieve("policy") == DATA
    assert [each.number for each in await registry.list_versions("policy")] == [version.number] == [1]


async def test_an_upload_whose_reply_was_lost_is_not_made_twice(pair: Pair) -> None:
    """The connection breaks when all bytes are there, again and again."""
    registry = pair.registry
    for number in range(1, 4):
        home = pair.home
        before = home.sent_bytes
        uploading = asyncio.ensure_future(registry.store("policy", DATA[: 4 * MIB + number]))
        await until(partial(_has_sent, home, before + 4 * MIB))
        home.switch_off()
        assert (await uploading).number == number
        home.switch_on()
    assert [each.number for each in await registry.list_versions("policy")] == [1, 2, 3]


async def test_a_file_that_is_uploaded_is_read_again(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    registry, home = pair.registry, pair.home
    home.after(4 * MIB, home.switch_off, upwards=True)
    await registry.store("policy", str(tmp_path / "data"))
    assert pair.home is not home
    assert await registry.retrieve("policy") == DATA


async def test_a_retrieval_goes_on_where_it_broke(pair: Pair) -> None:
    registry = pair.registry
    await registry.store("policy", DATA)
    home, other = pair.home, pair.other
    home.after(4 * MIB, home.switch_off)
    assert await registry.retrieve("policy") == DATA
    assert pair.home is other
    assert other.replied_bytes < len(DATA)


async def test_a_download_in_parts_goes_on(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_LARGE_BYTES", 8 * MIB)
    monkeypatch.setattr(fetching, "_FIRST_BYTES", 1 * MIB)
    monkeypatch.setattr(fetching, "_FAST_BYTES_PER_SECOND", float("inf"))
    registry = pair.registry
    await registry.store("policy", DATA)
    home = pair.home
    home.after(4 * MIB, home.switch_off)
    await registry.download("policy", tmp_path / "copy", resume=True)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert pair.home is not home


async def test_a_watch_goes_on_and_misses_nothing(pair: Pair, server: Server, flavour: str) -> None:
    registry = pair.registry
    await registry.publish("policy", b"1")
    async with opened(flavour, server.port) as trainer, aclosing(registry.watch("policy", all=True)) as events:
        assert (await anext(events)).number == 1
        for number in range(2, 6):
            gone = await pair.switch()
            await trainer.publish("policy", str(number).encode())
            assert (await anext(events)).number == number
            assert pair.home is not gone
            gone.switch_on()


@pytest.mark.usefixtures("only_pings_end_a_wait")
async def test_a_quiet_watch_notices_a_frozen_server(pair: Pair, server: Server, flavour: str) -> None:
    registry = pair.registry
    await registry.publish("policy", b"1")
    async with opened(flavour, server.port) as trainer, aclosing(registry.watch("policy")) as events:
        assert (await anext(events)).number == 1
        frozen = pair.home
        frozen.stall()
        await trainer.publish("policy", b"2")
        assert (await anext(events)).number == 2
        assert pair.home is not frozen


@pytest.mark.usefixtures("only_pings_end_a_wait")
async def test_a_quiet_watch_on_a_server_that_answers_stays_there(pair: Pair, server: Server, flavour: str) -> None:
    """The server allows the pings: with gRPC's defaults it would break the connection at the third one."""
    registry = pair.registry
    await registry.publish("policy", b"1")
    async with opened(flavour, server.port) as trainer, aclosing(registry.watch("policy")) as events:
        assert (await anext(events)).number == 1
        following = asyncio.ensure_future(anext(events))
        await counted(trainer, watchers=1)
        home, connections = pair.home, pair.home.connections
        before = home.replies
        await until(lambda: home.replies >= before + 5)  # the answers to pings
        await trainer.publish("policy", b"2")
        assert (await following).number == 2
        assert (pair.home, home.connections, pair.other.connections) == (home, connections, 0)


@pytest.mark.parametrize("stage", ["before", "within"])
async def test_an_upload_to_a_frozen_server_goes_on(pair: Pair, stage: str) -> None:
    registry, frozen = pair.registry, pair.home
    if stage == "before":
        frozen.stall()
    else:
        frozen.after(4 * MIB, frozen.stall, upwards=True)
    await registry.publish("policy", DATA, timeout=3600)
    assert pair.home is not frozen
    assert [each.number for each in await registry.list_versions("policy")] == [1]


async def test_a_retrieval_from_a_frozen_server_goes_on(pair: Pair) -> None:
    registry, frozen = pair.registry, pair.home
    await registry.store("policy", DATA)
    frozen.after(4 * MIB, frozen.stall)
    assert await registry.retrieve("policy", timeout=3600) == DATA
    assert pair.home is not frozen


async def test_calls_with_little_time_leave_a_frozen_server_after_some_of_them(pair: Pair) -> None:
    registry, frozen = pair.registry, pair.home
    await registry.store("policy", b"1")
    frozen.stall()

    async def is_elsewhere() -> bool:
        try:
            await registry.retrieve("policy", timeout=0.5)
        except (errors.TimedOutError, errors.UnavailableError):
            return False
        return True

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await is_elsewhere():
            pass
    assert pair.home is not frozen


async def test_a_tracked_model_goes_on(pair: Pair, server: Server, flavour: str) -> None:
    registry = pair.registry
    await registry.publish("policy", b"1")
    async with opened(flavour, server.port) as trainer, registry.track("policy", decode=bytes) as latest:
        await latest.wait_for(0, timeout=PATIENCE_SECONDS)
        for number in (2, 3):
            gone = await pair.switch()
            await trainer.publish("policy", str(number).encode())
            await latest.wait_for(number - 1, timeout=PATIENCE_SECONDS)
            assert latest.value == str(number).encode()
            gone.switch_on()


async def test_a_mirror_goes_on_and_misses_nothing(pair: Pair, server: Server, flavour: str, tmp_path: Path) -> None:
    registry = pair.registry
    await registry.publish("policy", b"1")
    async with opened(flavour, server.port) as trainer, aclosing(registry.mirror(tmp_path / "copy")) as events:
        assert (await anext(events)).version.number == 1
        for number in range(2, 5):
            gone = await pair.switch()
            await trainer.publish("policy", str(number).encode())
            assert (await anext(events)).version.number == number
            gone.switch_on()
    assert sorted(path.name for path in (tmp_path / "copy" / "policy").iterdir()) == [
        f"{number:06}.bin" for number in range(1, 5)
    ]


async def test_all_threads_and_tasks_of_a_client_go_on_together(pair: Pair) -> None:
    registry = pair.registry
    await registry.store("policy", b"1")
    is_over = False

    async def call_repeatedly() -> int:
        count = 0
        while not is_over:
            assert await registry.retrieve("policy") == b"1"
            count += 1
        return count

    callers = [asyncio.ensure_future(call_repeatedly()) for _ in range(8)]
    for _ in range(3):
        gone = await pair.switch()
        await until(partial(pair.has_left, gone))
        gone.switch_on()
    is_over = True
    assert all(await asyncio.gather(*callers))


async def test_both_gone_is_an_error_and_either_one_back_is_used(pair: Pair) -> None:
    registry, home, other = pair.registry, pair.home, pair.other
    await registry.store("policy", b"1")
    for relay in (home, other):
        relay.switch_off()
    retrieving = asyncio.ensure_future(registry.retrieve("policy"))
    before = home.connections + other.connections
    await until(lambda: home.connections + other.connections >= before + 6)
    home.switch_on()
    assert await retrieving == b"1"
    assert pair.home is home


async def test_a_client_leaves_no_connection_to_the_server_that_it_left(pair: Pair) -> None:
    registry, home = pair.registry, pair.home
    await registry.store("policy", b"1")
    for _ in range(3):
        gone = await pair.switch()
        await registry.retrieve("policy")
        gone.switch_on()
    connections = connection_of(registry)
    assert len(connections._channels) == 1
    await until(lambda: home.open_connections <= 1)
