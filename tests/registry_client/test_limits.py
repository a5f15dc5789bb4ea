"""What a client does that is over a limit of its server: it waits as long as it was told, or says how long that is."""

import asyncio
import itertools
import pickle
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import errors
from cogment_model_registry.cli import EXIT_UNAVAILABLE
from cogment_model_registry.client import deadlines
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.pushback import PUSHBACK_KEY, pushback, retry_after_seconds
from tests.client import connected
from tests.clock import Clock, stopped_clock
from tests.processes import run_cogment
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import Call, scripted
from tests.waiting import until

FLAVOURS = pytest.mark.parametrize("flavour", ["blocking", "asyncio"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stopped_clock(monkeypatch)


@asynccontextmanager
async def limited(tmp_path: Path, **settings: Any) -> AsyncIterator[Server]:
    usual = {"cache_max_bytes": 64 * MIB, "grace_seconds": 0, "retention_seconds": 0, "local_socket": ""}
    async with serving(tmp_path / "archive", Settings(**{**usual, **settings})) as server:
        yield server


async def refuse(call: Call, seconds: float, status: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED) -> None:
    """Refuse a call as a server does whose caller is over a limit."""
    error = errors.LimitedError("for the test", retry_after_seconds=seconds)
    await call.context.abort(status, error.message, pushback(error))


# Waiting.


@FLAVOURS
async def test_calls_of_every_kind_wait_as_long_as_asked_and_are_done_once(tmp_path: Path, flavour: str) -> None:
    async with limited(tmp_path, caller_calls_per_second=10) as server, opened(flavour, server.port) as registry:
        for number in range(1, 9):
            assert (await registry.publish("m", f"version {number}".encode())).number == number
            assert await registry.retrieve("m") == f"version {number}".encode()
        assert [info.number for info in await registry.list_versions("m")] == [*range(1, 9)]
        await registry.delete_model("m")
        assert await registry.list_models() == []


@FLAVOURS
async def test_a_call_is_not_repeated_before_the_time_that_the_server_named(flavour: str) -> None:
    times: list[float] = []

    async def retrieve_models(call: Call) -> None:
        times.append(time.monotonic())
        if call.number < 4:
            await refuse(call, 0.3)
        await call.send(m.RetrieveModelsReply())

    async with scripted(RetrieveModels=retrieve_models) as script, opened(flavour, script.port) as registry:
        assert await registry.list_models() == []
    assert len(times) == 4
    assert all(later - earlier >= 0.3 for earlier, later in itertools.pairwise(times))


@FLAVOURS
async def test_a_deletion_that_was_refused_is_made_again(flavour: str) -> None:
    """Others are not repeated, unless it is known that the server has not done them."""

    async def delete_model(call: Call) -> None:
        if call.number == 1:
            await refuse(call, 0.01)
        await call.send(m.DeleteModelReply())

    async with scripted(DeleteModel=delete_model) as script, opened(flavour, script.port) as registry:
        await registry.delete_model("m")
    assert script.calls == {"DeleteModel": 2}


@FLAVOURS
async def test_an_upload_to_a_server_of_the_original_is_sent_again_when_it_was_refused(flavour: str) -> None:
    async def create_version(call: Call) -> None:
        messages = await call.receive_all()
        if call.number == 1:
            await refuse(call, 0.01)
        assert len(messages) == 2
        info = m.CreateVersionRequestChunk.FromString(messages[0]).header.version_info
        info.version_number = 1
        await call.send(m.CreateVersionReply(version_info=info))

    async with scripted(CreateVersion=create_version) as script, opened(flavour, script.port) as registry:
        assert (await registry.publish("m", b"data")).number == 1
    assert script.calls == {"CreateVersion": 2}


@FLAVOURS
async def test_a_watch_goes_on_when_the_server_lets_it(tmp_path: Path, clock: Clock, flavour: str) -> None:
    async with limited(tmp_path, caller_calls_per_second=2) as server, opened(flavour, server.port) as registry:
        await registry.create_model("m")
        await registry.publish("m", b"1")
        async with connected(server.port) as client:
            while True:  # use up what is left
                try:
                    await client.version()
                except grpc.aio.AioRpcError:
                    break
        watch = registry.watch("m")
        first = asyncio.ensure_future(anext(watch))
        done, _ = await asyncio.wait([first], timeout=0.2)
        assert not done
        clock.now += 10.0
        assert (await first).number == 1
        await watch.aclose()


@FLAVOURS
async def test_a_tracker_gets_its_value_when_the_server_lets_it(tmp_path: Path, clock: Clock, flavour: str) -> None:
    async with limited(tmp_path, caller_calls_per_second=2) as server, opened(flavour, server.port) as registry:
        await registry.publish("m", b"1")
        async with registry.track("m") as latest:

            def tick() -> bool:
                clock.now += 1.0
                return bool(latest.value == b"1")

            await until(tick)


# Giving up.


@FLAVOURS
async def test_a_caller_without_time_to_wait_learns_how_long_it_would_be(
    tmp_path: Path, clock: Clock, flavour: str
) -> None:
    async with limited(tmp_path, caller_calls_per_second=0.01) as server, opened(flavour, server.port) as registry:
        await registry.list_models()
        with pytest.raises(
            errors.LimitedError, match=r"over the limit of 0\.01 calls per second; try again in"
        ) as caught:
            await registry.list_models()
        assert caught.value.retry_after_seconds == 100.0
        assert not caught.value.may_be_done
        clock.now += 40.0
        with pytest.raises(errors.LimitedError) as caught:
            await registry.publish("m", b"1", timeout=5.0)
        assert caught.value.retry_after_seconds == 60.0
        assert caught.value.model_id == "m"
        clock.now += 60.0
        assert await registry.list_models() == []


@FLAVOURS
async def test_without_retries_nothing_is_waited_for(flavour: str) -> None:
    async def retrieve_models(call: Call) -> None:
        await refuse(call, 0.01)

    async with (
        scripted(RetrieveModels=retrieve_models) as script,
        opened(flavour, script.port, retry_seconds=0) as registry,
    ):
        with pytest.raises(errors.LimitedError) as caught:
            await registry.list_models()
    assert script.calls == {"RetrieveModels": 1}
    assert caught.value.retry_after_seconds == 0.01


@FLAVOURS
async def test_a_lack_of_room_is_no_limit_of_the_caller(flavour: str) -> None:
    async def retrieve_models(call: Call) -> None:
        await call.fail(grpc.StatusCode.RESOURCE_EXHAUSTED)

    async with scripted(RetrieveModels=retrieve_models) as script, opened(flavour, script.port) as registry:
        with pytest.raises(errors.TooLargeError):
            await registry.list_models()
    assert script.calls == {"RetrieveModels": 1}


async def test_the_command_line_waits_too_and_exits_with_the_status_of_a_registry_that_cannot_now() -> None:
    waits_seconds = [0.05]

    async def retrieve_models(call: Call) -> None:
        if waits_seconds:
            await refuse(call, waits_seconds.pop())
        await call.send(m.RetrieveModelsReply())

    async with scripted(RetrieveModels=retrieve_models) as script:
        flags = ("client", "model_registry", "list_models", f"--endpoint=grpc://127.0.0.1:{script.port}")
        result = await asyncio.to_thread(run_cogment, *flags)
        assert (result.returncode, script.calls) == (0, {"RetrieveModels": 2})
        waits_seconds.append(3600.0)
        result = await asyncio.to_thread(run_cogment, *flags)
        assert result.returncode == EXIT_UNAVAILABLE
        assert "for the test" in result.stderr


# What is on the wire.


def test_an_error_keeps_when_to_try_again() -> None:
    error = errors.LimitedError("m", model_id="a", retry_after_seconds=2.5)
    for same in (pickle.loads(pickle.dumps(error)), error.reworded("m")):
        assert type(same) is errors.LimitedError
        assert (same.message, same.model_id, same.retry_after_seconds) == ("m", "a", 2.5)
    assert str(error.reworded("other")) == error.reworded("other").message == "other"


class Failed:
    """A call that failed, with metadata at its end."""

    def __init__(self, *values: Any) -> None:
        self._metadata = [("other", "1"), *((PUSHBACK_KEY, value) for value in values)]

    def trailing_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "１", b"1"])
def test_what_is_no_number_of_milliseconds_says_nothing(value: Any) -> None:
    assert retry_after_seconds(Failed(value)) is None


def test_times_survive_the_wire() -> None:
    assert retry_after_seconds(Failed()) is None
    assert retry_after_seconds(Failed("1500")) == 1.5
    assert retry_after_seconds(Failed("9" * 5000)) == (2**31 - 1) / 1000
    for seconds in (0.0, 0.0001, 1.0, 1e12):
        [(_, value)] = pushback(errors.LimitedError("m", retry_after_seconds=seconds))
        told = retry_after_seconds(Failed(value))
        assert told is not None
        assert told >= min(seconds, (2**31 - 1) / 1000)
    assert pushback(errors.TooLargeError("m")) == ()


def test_callers_with_the_same_pushback_come_back_at_different_times() -> None:
    error = errors.LimitedError("m", retry_after_seconds=8.0)
    found = {deadlines.Backoff().next_seconds(error) for _ in range(100)}
    assert len(found) > 1
    assert all(8.0 <= seconds <= 10.0 for seconds in found)
