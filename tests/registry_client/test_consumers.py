"""Consumers in the client, in both flavours, with a real server."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import Consumer, errors
from cogment_model_registry.client import barriers
from cogment_model_registry.client.connection import Connection
from tests.ports import free_port
from tests.processes import server_process
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import scripted
from tests.waiting import eventually, until


def shown_as(registry: Any, expected: dict[str, tuple[str, int]]) -> Callable[[], Awaitable[bool]]:
    """Return a check of the states and the versions of all consumers."""

    async def check() -> bool:
        listed = await registry.consumers("policy")
        return {each.consumer_id: (each.state, each.version_number) for each in listed} == expected

    return check


async def test_reported_consumers_are_listed(registry: Any) -> None:
    for data in (b"1", b"2", b"3"):
        await registry.publish("policy", data)
    labels = {"host": "node-1"}
    reported = await registry.report_consumer("policy", "actor-7", version=1, labels=labels, held_versions=[1])
    assert isinstance(reported, Consumer)
    assert (reported.state, reported.versions_behind, reported.ttl_seconds) == ("active", 2, 30)
    [listed] = await registry.consumers("policy", "labels.host = node-1 AND versions_behind = 2")
    assert (listed.labels, listed.held_versions, listed.reported_ns) == (labels, (1,), reported.reported_ns)
    with pytest.raises(errors.PreconditionError, match='held by consumer "actor-7"'):
        await registry.delete_version("policy", 1)
    for name in ("b", "c"):
        await registry.report_consumer("policy", name, state="loading")
    assert [each.consumer_id for each in await registry.consumers(limit=2)] == ["actor-7", "b"]
    with pytest.raises(errors.InvalidError, match="malformed at character 1"):
        await registry.consumers("policy", "metrics.a > 1")
    with pytest.raises(errors.NotFoundError):
        await registry.consumers("none")


@pytest.mark.parametrize(
    "options",
    [
        {"version": "1"},
        {"version": -1},
        {"version": 2**70},
        {"state": "running"},
        {"labels": {"a": 1}},
        {"labels": {"a": None}},
        {"ttl_seconds": 0.5},
        {"ttl_seconds": -1},
        {"held_versions": 3},
        {"held_versions": ["3"]},
        {"error": None},
    ],
)
async def test_wrong_reports_are_refused(registry: Any, options: dict[str, Any]) -> None:
    await registry.create_model("policy")
    with pytest.raises(errors.InvalidError):
        await registry.report_consumer("policy", "actor", **{"version": 1, **options})


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"a": 1}, "labels\\['a'\\]"), ({1: "a"}, "the key 1 of labels"), ("a", "labels is 'a'; it must be a mapping")],
)
async def test_an_error_about_labels_names_the_labels(registry: Any, labels: Any, message: str) -> None:
    with pytest.raises(errors.InvalidError, match=message):
        await registry.report_consumer("policy", "actor", version=1, labels=labels)


async def test_a_tracked_model_reports_what_it_runs_only_once_it_is_decoded(registry: Any) -> None:
    may_decode, decoded = threading.Event(), []

    def decode(data: bytes) -> str:
        decoded.append(data)
        assert may_decode.wait(60)
        if data == b"broken":
            raise ValueError("not a policy")
        return data.decode()

    await registry.publish("policy", b"1")
    async with registry.track("policy", decode=decode, consumer="actor-7", labels={"host": "a"}) as latest:
        await eventually(shown_as(registry, {"actor-7": ("loading", 0)}))
        await until(lambda: decoded == [b"1"])
        assert await shown_as(registry, {"actor-7": ("loading", 0)})()
        may_decode.set()
        await eventually(shown_as(registry, {"actor-7": ("active", 1)}))
        assert latest.value == "1"
        await registry.publish("policy", b"broken")
        await eventually(shown_as(registry, {"actor-7": ("failed", 1)}))
        [consumer] = await registry.consumers("policy")
        assert consumer.error == "ValueError: not a policy"
        assert consumer.labels == {"host": "a"}
        assert consumer.versions_behind == 1
        await registry.publish("policy", b"3")
        await eventually(shown_as(registry, {"actor-7": ("active", 3)}))
        await until(lambda: latest.consumer and latest.consumer.version_number == 3)
        assert latest.consumer.versions_behind == 0
        assert decoded == [b"1", b"broken", b"3"]
    assert await shown_as(registry, {"actor-7": ("gone", 3)})()


async def test_a_tracked_model_repeats_its_report(registry: Any) -> None:
    await registry.publish("policy", b"1")
    async with registry.track("policy", consumer="actor-7", ttl_seconds=1):
        await eventually(shown_as(registry, {"actor-7": ("active", 1)}))
        [first] = await registry.consumers("policy")

        async def was_repeated() -> bool:
            [consumer] = await registry.consumers("policy")
            return bool(consumer.reported_ns > first.reported_ns + 2 * 10**9)

        await eventually(was_repeated)
        assert await shown_as(registry, {"actor-7": ("active", 1)})()


async def test_a_model_that_is_created_later_and_again_is_reported(registry: Any) -> None:
    async with registry.track("policy", consumer="actor-7"):
        await registry.publish("policy", b"1")
        await registry.publish("policy", b"2")
        await eventually(shown_as(registry, {"actor-7": ("active", 2)}))
        await registry.delete_model("policy")
        await registry.publish("policy", b"again")
        await eventually(shown_as(registry, {"actor-7": ("active", 1)}))


async def test_consumers_report_again_after_a_restart(flavour: str, tmp_path: Path) -> None:
    port = free_port()
    async with opened(flavour, port) as registry, AsyncExitStack() as stack:
        with server_process(tmp_path / "archive", f"--port={port}"):
            await registry.store("policy", b"1")
            await stack.enter_async_context(registry.track("policy", consumer="actor-7", ttl_seconds=3))
            await eventually(shown_as(registry, {"actor-7": ("active", 1)}))
        with server_process(tmp_path / "archive", f"--port={port}"):
            await eventually(shown_as(registry, {"actor-7": ("active", 1)}))


async def test_the_original_gets_no_reports_and_a_debug_line_says_so(
    flavour: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cogment_model_registry")
    async with scripted() as service, opened(flavour, service.port, retry_seconds=0) as registry:
        async with registry.track("policy", consumer="actor-7") as latest:
            await until(lambda: "consumer not reported: reporting consumer" in caplog.text)
            assert "the original one" in caplog.text
            assert latest.consumer is None
        with pytest.raises(errors.ModelRegistryError, match=r"consumers of model \"policy\": .*the original one"):
            await registry.consumers("policy")
        with pytest.raises(errors.ModelRegistryError, match="the original one"):
            await registry.report_consumer("policy", "a", version=1)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# Waiting.


async def test_a_barrier_waits_until_enough_consumers_run_the_version(registry: Any) -> None:
    version = await registry.publish("policy", b"1")
    await registry.report_consumer("policy", "d", version=1)
    await registry.report_consumer("policy", "d", version=1, state="gone")
    waiting = asyncio.create_task(registry.wait_for_consumers("policy", version, count=3))
    for name in ("a", "b"):
        await registry.report_consumer("policy", name, version=1)
    await registry.report_consumer("policy", "c", state="loading")
    assert not waiting.done()
    await registry.report_consumer("policy", "c", version=1)
    assert [each.consumer_id for each in await waiting] == ["a", "b", "c"]
    newer = await registry.publish("policy", b"2")
    await registry.report_consumer("policy", "a", version=2, state="loading")
    assert len(await registry.wait_for_consumers("policy", 1, count=3)) == 3, "a later version will do"
    assert [each.consumer_id for each in await registry.wait_for_consumers("policy", -1, count=1)] == ["a"]
    message = (
        r'waiting for 2 consumers of model "policy" to run version 2 or a later one: 1 of them after 0\.\d+ seconds; '
        r'not yet: "b" \(active, runs version 1\), "c" \(active, runs version 1\)'
    )
    with pytest.raises(errors.TimedOutError, match=message):
        await registry.wait_for_consumers("policy", newer, count=2, timeout=0.05)


@pytest.fixture
def no_pause_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never poll for consumers, so that only events of the server end a wait."""
    for name in ("_PAUSE_MIN_SECONDS", "_PAUSE_OF_LOOK_SECONDS", "_WATCHING_SECONDS"):
        monkeypatch.setattr(barriers, name, 3600.0)
    monkeypatch.setattr(barriers, "_PAUSE_MAX_SECONDS", 3600.0)


@pytest.mark.usefixtures("no_pause_ends")
@pytest.mark.parametrize(
    "options", [{"count": 3}, {}, {"filter": "state = loading OR state = active"}], ids=["count", "all", "filter"]
)
async def test_a_barrier_is_passed_when_the_last_report_is_received(registry: Any, options: dict[str, Any]) -> None:
    version = await registry.publish("policy", b"1")
    names = ("a", "b", "c")
    for name in names:
        await registry.report_consumer("policy", name, state="loading")
    waiting = asyncio.create_task(registry.wait_for_consumers("policy", version, **options))
    for name in names:
        await registry.report_consumer("policy", name, version=1)
    assert [each.consumer_id for each in await waiting] == ["a", "b", "c"]


async def test_a_barrier_is_passed_if_the_server_sends_no_consumer_events(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "has_watch", property(lambda _: False, lambda _self, _value: None), raising=False)
    version = await registry.publish("policy", b"1")
    waiting = asyncio.create_task(registry.wait_for_consumers("policy", version, count=1))
    await asyncio.sleep(0)
    await registry.report_consumer("policy", "a", version=1)
    assert [each.consumer_id for each in await waiting] == ["a"]


async def test_a_limit_of_the_lag_applies_to_all_consumers(registry: Any) -> None:
    for number in range(1, 5):
        await registry.publish("policy", b"%d" % number)
    with pytest.raises(errors.TimedOutError, match="to be at most 2 versions behind: 0 of them"):
        await registry.wait_for_consumers("policy", max_versions_behind=2, timeout=0.02)
    await registry.report_consumer("policy", "a", version=2, labels={"role": "actor"})
    await registry.report_consumer("policy", "b", version=1, labels={"role": "evaluator"})
    found = await registry.wait_for_consumers("policy", max_versions_behind=2, filter="labels.role = actor")
    assert [each.consumer_id for each in found] == ["a"]
    waiting = asyncio.create_task(registry.wait_for_consumers("policy", max_versions_behind=2))
    await registry.report_consumer("policy", "b", version=4, labels={"role": "evaluator"})
    assert [each.consumer_id for each in await waiting] == ["a", "b"]
    with pytest.raises(errors.TimedOutError, match='not yet: "a"'):
        await registry.wait_for_consumers("policy", 3, max_versions_behind=2, timeout=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"version": "latest one", "count": 1}, {"version": 1, "count": 0}, {"version": 1, "filter": "state >"}],
)
async def test_wrong_waits_are_refused(registry: Any, options: dict[str, Any]) -> None:
    await registry.publish("policy", b"1")
    with pytest.raises(errors.ModelRegistryError):
        await registry.wait_for_consumers("policy", timeout=5, **options)
