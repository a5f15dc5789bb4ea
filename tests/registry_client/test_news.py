"""Watching and tracking: numbers only grow, the latest is never missed, and errors are reported."""

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import ModelRegistry, aio, errors
from cogment_model_registry.client import tracking, watching
from cogment_model_registry.records.versions import digest_text
from cogment_model_registry.server.composition import Server
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests import waiting
from tests.ports import free_port
from tests.processes import server_process
from tests.registry_client.conftest import counted, opened
from tests.registry_client.scripted import (
    DATA,
    HASH,
    Answer,
    Call,
    chunks,
    has_model,
    infos,
    scripted,
    silence,
    version_message,
)

PATIENT = 50.0
OTHER_HASH = digest_text(hashlib.sha256(b"other").digest())
_TRACKERS = 4  # each one of a blocking client needs a thread of asyncio


async def next_of(versions: Any) -> Any:
    async with asyncio.timeout(PATIENT):
        return await anext(versions)


async def test_a_watch_yields_the_latest_version_at_once_and_then_new_ones(registry: Any) -> None:
    await registry.publish("policy", b"1")
    second = await registry.publish("policy", b"2")
    async with aclosing(registry.watch("policy")) as versions:
        assert await next_of(versions) == second
        third = await registry.store("policy", b"3")
        assert await next_of(versions) == third


async def test_a_watch_skips_known_versions(registry: Any) -> None:
    first = await registry.publish("policy", b"1")
    async with aclosing(registry.watch("policy", after=first.number)) as versions:
        following = asyncio.ensure_future(next_of(versions))
        await counted(registry, watchers=1)
        await registry.publish("policy", b"2")
        assert (await following).number == 2


async def test_a_watch_of_a_missing_model_is_not_found(registry: Any) -> None:
    async with aclosing(registry.watch("policy")) as versions:
        with pytest.raises(errors.NotFoundError, match='watching model "policy": model "policy" does not exist'):
            await next_of(versions)


async def test_a_watch_ends_with_its_model(registry: Any) -> None:
    await registry.publish("policy", b"1")
    async with aclosing(registry.watch("policy")) as versions:
        await next_of(versions)
        following = asyncio.ensure_future(next_of(versions))
        await registry.delete_model("policy")
        with pytest.raises(errors.NotFoundError):
            await following


async def test_a_closed_watch_frees_its_stream_on_the_server(registry: Any) -> None:
    await registry.publish("policy", b"1")
    async with aclosing(registry.watch("policy")) as versions:
        await next_of(versions)
        assert (await registry.status())["watchers"] == "1"
    await counted(registry, watchers=0)


async def test_a_watch_survives_a_restart_and_never_goes_back(flavour: str, tmp_path: Path) -> None:
    """The server is killed and comes back without its transient versions."""
    port = f"--port={free_port()}"
    with server_process(tmp_path / "archive", port) as server:
        async with opened(flavour, server.port) as registry, aclosing(registry.watch("policy")) as versions:
            await registry.store("policy", b"1")
            assert (await next_of(versions)).number == 1
            lost = await registry.publish("policy", b"2")
            assert await next_of(versions) == lost
            following = asyncio.ensure_future(next_of(versions))
            await asyncio.to_thread(server.kill)
            with server_process(tmp_path / "archive", port):
                # The new server first reports version 1, which is older.
                newer = await registry.publish("policy", b"3")
                assert newer.number > lost.number
                assert await following == newer


async def test_a_watch_of_a_server_that_is_down_fails_soon(flavour: str) -> None:
    async with opened(flavour, free_port(), retry_seconds=0.3) as registry:
        with pytest.raises(errors.UnavailableError):
            await next_of(registry.watch("policy"))


async def test_a_watch_fails_when_its_patience_is_over(flavour: str, tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as server:
        async with opened(flavour, server.port) as registry:
            await registry.publish("policy", b"1")
            async with aclosing(registry.watch("policy", patience_seconds=0.5)) as versions:
                await next_of(versions)
                await asyncio.to_thread(server.kill)
                with pytest.raises(errors.UnavailableError):
                    await next_of(versions)


async def test_a_long_watch_continues_over_many_streams(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "STREAM_SECONDS", 0.1)

    async def version_updates(call: Call) -> None:
        if call.number % 3 == 0:
            await call.send(m.VersionUpdateReply(version_info=version_message(call.number, HASH)))
        await silence(call)

    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=version_updates) as server,
        opened(flavour, server.port) as registry,
        aclosing(registry.watch("policy")) as versions,
    ):
        for number in (3, 6, 9):
            assert (await next_of(versions)).number == number
            assert server.calls["VersionUpdate"] >= number


def streams_that_break(*version_updates: Any) -> Answer:
    """Return an answer with one version in each stream, which then breaks; with the last one in all others."""

    async def answer(call: Call) -> None:
        await call.send(m.VersionUpdateReply(version_info=version_updates[min(call.number, len(version_updates)) - 1]))
        if call.number >= len(version_updates):
            await silence(call)
        await call.fail(grpc.StatusCode.UNAVAILABLE)

    return answer


@pytest.mark.parametrize(
    ("before", "after", "proof"),
    [
        (
            version_message(9, HASH, archived=True, creation_timestamp=1),
            version_message(8, HASH, creation_timestamp=2),
            "version 8 is newer than version 9, which was archived",
        ),
        (version_message(9, HASH), version_message(9, OTHER_HASH), "version 9 has other bytes"),
    ],
    ids=["a newer one has a lower number", "another one of the same number"],
)
async def test_a_model_recreated_during_a_disconnection_is_detected(
    flavour: str, before: Any, after: Any, proof: str
) -> None:
    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=streams_that_break(before, after)) as server,
        opened(flavour, server.port) as registry,
        aclosing(registry.watch("policy")) as versions,
    ):
        assert (await next_of(versions)).number == 9
        with pytest.raises(errors.NotFoundError, match=f"was deleted and created again: {proof}"):
            await next_of(versions)


async def test_an_older_version_does_not_prove_that_the_model_was_recreated(flavour: str) -> None:
    """A registry that was killed has lost its transient versions; and clients may set the time."""
    version_updates = (
        version_message(9, HASH, creation_timestamp=1),
        version_message(8, OTHER_HASH, creation_timestamp=2),
        version_message(10, HASH, creation_timestamp=0),
    )
    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=streams_that_break(*version_updates)) as server,
        opened(flavour, server.port) as registry,
        aclosing(registry.watch("policy")) as versions,
    ):
        assert [(await next_of(versions)).number for _ in range(2)] == [9, 10]


async def test_a_deleted_archived_version_does_not_prove_that_the_model_was_recreated(flavour: str) -> None:
    version_updates = (
        version_message(9, HASH, archived=True, creation_timestamp=2),
        version_message(8, OTHER_HASH, archived=True, creation_timestamp=1),
        version_message(10, HASH, creation_timestamp=3),
    )
    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=streams_that_break(*version_updates)) as server,
        opened(flavour, server.port) as registry,
        aclosing(registry.watch("policy")) as versions,
    ):
        assert [(await next_of(versions)).number for _ in range(2)] == [9, 10]


async def test_a_watch_that_waits_for_a_first_version_survives_a_restart(flavour: str, tmp_path: Path) -> None:
    """It is connected although nothing was published yet, so the longer patience applies."""
    port = f"--port={free_port()}"
    with server_process(tmp_path / "archive", port) as server:
        async with (
            opened(flavour, server.port, retry_seconds=0) as registry,
            opened("asyncio", server.port) as other,
            aclosing(registry.watch("policy")) as versions,
        ):
            await other.create_model("policy")
            following = asyncio.ensure_future(next_of(versions))
            await counted(other, watchers=1)
            await asyncio.to_thread(server.kill)
            with server_process(tmp_path / "archive", port):
                first = await other.publish("policy", b"1")
                assert await following == first


# Tracking.


async def until(condition: Callable[[], bool], latest: Any) -> None:
    """Wait until a condition holds for a tracker."""
    await waiting.until(condition, lambda: f"{latest.version}, {latest.error!r}")


async def test_a_tracked_version_is_decoded_and_available(registry: Any) -> None:
    before = time.time()
    async with registry.track("policy", decode=int) as latest:
        assert [latest.value, latest.version, latest.age_seconds, latest.snapshot] == [None] * 4
        first = await registry.publish("policy", b"41")
        assert await latest.wait_for(timeout=PATIENT) == first
        assert latest.snapshot == (first, 41)
        assert latest.error is None
        second = await registry.publish("policy", b"42")
        assert await latest.wait_for(newer_than=first.number, timeout=PATIENT) == second
        assert latest.snapshot == (second, 42)
        assert 0 <= latest.age_seconds <= time.time() - before + 1


async def test_a_tracked_value_is_bytes_by_default(registry: Any) -> None:
    await registry.publish("policy", b"weights")
    async with registry.track("policy") as latest:
        await latest.wait_for(timeout=PATIENT)
        assert latest.value == b"weights"


async def test_waiting_for_a_version_that_never_comes_times_out(registry: Any) -> None:
    await registry.publish("policy", b"1")
    async with registry.track("policy") as latest:
        await latest.wait_for(timeout=PATIENT)
        with pytest.raises(
            errors.TimedOutError, match=r'model "policy" got no version newer than 1 within 0.05 seconds'
        ):
            await latest.wait_for(newer_than=1, timeout=0.05)


async def test_waiting_for_a_version_that_cannot_be_decoded_says_why(registry: Any) -> None:
    await registry.publish("policy", b"1")

    def fail(_data: bytes) -> object:
        raise KeyError("layer")

    async with registry.track("policy", decode=fail) as latest:
        await until(lambda: latest.error is not None, latest)
        with pytest.raises(errors.TimedOutError, match="KeyError: 'layer'"):
            await latest.wait_for(timeout=0.05)


async def test_a_model_may_be_tracked_before_it_exists_and_after_it_is_recreated(registry: Any) -> None:
    async with registry.track("policy") as latest:
        await until(lambda: isinstance(latest.error, errors.NotFoundError), latest)
        with pytest.raises(errors.TimedOutError, match="does not exist"):
            await latest.wait_for(timeout=0.05)
        await registry.publish("policy", b"1")
        await latest.wait_for(timeout=PATIENT)
        assert latest.error is None
        await registry.delete_model("policy")
        await until(lambda: isinstance(latest.error, errors.NotFoundError), latest)
        assert latest.value == b"1"
        await registry.publish("policy", b"new")
        await until(lambda: latest.value == b"new", latest)
        assert latest.error is None


async def test_a_tracker_reports_an_error_only_while_it_lasts(flavour: str, tmp_path: Path) -> None:
    port = f"--port={free_port()}"
    with server_process(tmp_path / "archive", port) as server:
        async with opened(flavour, server.port, retry_seconds=0.2) as registry:
            await registry.store("policy", b"1")
            async with registry.track("policy") as latest:
                await latest.wait_for(timeout=PATIENT)
                await asyncio.to_thread(server.kill)
                await until(lambda: isinstance(latest.error, errors.UnavailableError), latest)
                assert latest.value == b"1"
                with server_process(tmp_path / "archive", port):
                    await until(lambda: latest.error is None, latest)
                    assert latest.value == b"1"
                    await registry.store("policy", b"2")
                    assert (await latest.wait_for(newer_than=1, timeout=PATIENT)).number > 1
                    assert latest.value == b"2"


async def test_a_server_that_vanishes_silently_is_detected(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps the connection open, and sends nothing any more."""
    monkeypatch.setattr(watching, "STREAM_SECONDS", 0.5)
    monkeypatch.setattr(watching, "CHECK_SECONDS", 0.5)

    async def models(call: Call) -> None:
        await (has_model(call) if call.number == 1 else silence(call))

    async with (
        scripted(VersionUpdate=silence, RetrieveModels=models) as server,
        opened(flavour, server.port) as registry,
        registry.track("policy") as latest,
    ):
        await until(lambda: isinstance(latest.error, errors.TimedOutError), latest)
        assert server.calls["VersionUpdate"] == 1


async def test_a_tracker_reports_an_undecodable_version_until_the_next_good_one(registry: Any) -> None:
    async with registry.track("policy", decode=int) as latest:
        await registry.publish("policy", b"1")
        await latest.wait_for(timeout=PATIENT)
        await registry.publish("policy", b"one")
        await until(lambda: isinstance(latest.error, ValueError), latest)
        assert (latest.value, latest.version.number) == (1, 1)
        await registry.publish("policy", b"3")
        await latest.wait_for(newer_than=1, timeout=PATIENT)
        assert (latest.value, latest.error) == (3, None)


async def test_a_slow_decoder_skips_to_the_latest_version(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PROMPT_SECONDS", 1.0)  # even if the machine is busy
    go_on = threading.Event()
    decoded: list[bytes] = []

    def decode(data: bytes) -> bytes:
        decoded.append(data)
        go_on.wait(PATIENT)
        return data

    async with registry.track("policy", decode=decode) as latest:
        await registry.publish("policy", b"1")
        await waiting.until(lambda: decoded == [b"1"])
        for number in range(2, 40):
            await registry.publish("policy", str(number).encode())
        go_on.set()
        await until(lambda: latest.value == b"39", latest)
        assert len(decoded) <= 4  # the first, perhaps one that was received together with it, and the latest


async def test_trackers_end_at_once(registry: Any) -> None:
    """Whatever their number, and whether they wait for new versions or for a server that does not answer."""
    await registry.publish("policy", b"1")
    for _ in range(20):
        async with asyncio.timeout(20), registry.track("policy") as latest:
            await latest.wait_for(timeout=PATIENT)
    await counted(registry, watchers=0)


async def test_a_tracker_of_a_silent_server_ends_at_once(flavour: str) -> None:
    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=silence) as server,
        opened(flavour, server.port) as registry,
        asyncio.timeout(20),
        registry.track("policy"),
    ):
        await waiting.until(lambda: server.calls["VersionUpdate"] > 0)


async def test_many_trackers_share_one_client(flavour: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as server, opened(flavour, server.port) as registry:
        await registry.create_model("policy")

        async def follow() -> bytes:
            async with registry.track("policy") as latest:
                await latest.wait_for(newer_than=2, timeout=PATIENT)
                value: bytes = latest.value
                return value

        following = [asyncio.ensure_future(follow()) for _ in range(_TRACKERS)]
        for data in (b"1", b"2", b"3"):
            await registry.publish("policy", data)
        assert await asyncio.gather(*following) == [b"3"] * _TRACKERS


async def test_a_base_exception_of_a_decoder_is_reported(registry: Any) -> None:
    class PanicError(BaseException):
        """As libraries in Rust raise."""

    def decode(data: bytes) -> bytes:
        if data == b"bad":
            raise PanicError
        return data

    async with registry.track("policy", decode=decode) as latest:
        await registry.publish("policy", b"bad")
        await until(lambda: isinstance(latest.error, PanicError), latest)
        await registry.publish("policy", b"good")
        await until(lambda: latest.value == b"good", latest)
        assert latest.error is None


async def test_a_tracker_never_goes_back_after_a_temporary_failure(flavour: str) -> None:
    """The server loses version 6 before it could be fetched, and then 5, which was already fetched."""

    async def data(call: Call) -> None:
        request = m.RetrieveVersionDataRequest.FromString(await call.receive() or b"")
        if request.version_number == 6:
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        await chunks(DATA)(call)

    five, six, three, seven = (version_message(number, HASH, len(DATA)) for number in (5, 6, 3, 7))
    go_on = asyncio.Event()

    async def version_updates(call: Call) -> None:
        await call.send(m.VersionUpdateReply(version_info={1: five, 2: six}.get(call.number, three)))
        if call.number >= 3:
            await go_on.wait()
            await call.send(m.VersionUpdateReply(version_info=seven))
            await silence(call)
        await call.fail(grpc.StatusCode.UNAVAILABLE)

    numbers: set[int] = set()

    def decode(_data: bytes) -> None:
        numbers.add(len(numbers))

    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=version_updates, RetrieveVersionData=data) as server,
        opened(flavour, server.port, retry_seconds=0) as registry,
        registry.track("policy", decode=decode) as latest,
    ):
        await latest.wait_for(newer_than=4, timeout=PATIENT)
        await until(lambda: server.calls["VersionUpdate"] >= 3, latest)
        assert latest.version.number == 5
        go_on.set()
        assert (await latest.wait_for(newer_than=5, timeout=PATIENT)).number == 7
        assert latest.error is None
    assert len(numbers) == 2  # 5 and 7, and not 3 in between


async def test_a_damaged_version_is_reported_and_fetched_again_after_a_reconnection(
    flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STREAM_SECONDS", 1.0)
    checks: list[int] = []

    async def data(call: Call) -> None:
        checks.append(server.calls["RetrieveModels"])
        await chunks(DATA if call.number == 3 else bytes(len(DATA)))(call)

    async with (
        scripted(
            RetrieveModels=has_model,
            VersionUpdate=streams_that_break(version_message(1, HASH, len(DATA))),
            RetrieveVersionData=data,
        ) as server,
        opened(flavour, server.port) as registry,
        registry.track("policy") as latest,
    ):
        await until(lambda: isinstance(latest.error, errors.DataLossError), latest)
        await latest.wait_for(timeout=PATIENT)
        assert (latest.value, latest.error) == (DATA, None)
    assert checks == [1, 2, 3]  # once with each stream


async def test_a_decoder_may_raise_any_exception(registry: Any) -> None:
    def decode(data: bytes) -> bytes:
        if data.isdigit():
            raise [StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError][int(data)]
        return data

    async with registry.track("policy", decode=decode) as latest:
        for index, kind in enumerate((StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError)):
            await registry.publish("policy", str(index).encode())
            await until(lambda kind=kind: isinstance(latest.error, kind), latest)  # type: ignore[misc]
        await registry.publish("policy", b"good")
        await until(lambda: latest.value == b"good", latest)


async def test_waiting_without_tracking_is_refused(registry: Any, flavour: str) -> None:
    await registry.publish("policy", b"1")
    tracked = (registry.registry if flavour == "blocking" else registry).track("policy")

    async def wait() -> None:
        waiting = tracked.wait_for
        await (asyncio.to_thread(waiting) if flavour == "blocking" else waiting())

    assert isinstance(tracked.error, errors.ClosedError)
    with pytest.raises(errors.ClosedError, match='model "policy" is not tracked yet: enter it'):
        await wait()
    async with registry.track("policy") as latest:
        await latest.wait_for(timeout=PATIENT)
        assert latest.error is None
    assert (latest.value, latest.version.number) == (b"1", 1)
    with pytest.raises(errors.ClosedError, match="not tracked any more"):
        await latest.wait_for(newer_than=1)


async def test_closing_a_client_ends_all_waits(flavour: str, server: Server, tmp_path: Path) -> None:
    """A watch, a tracker and an upload of another task or thread; each raises the reason."""

    async def watch(registry: Any) -> None:
        async for _version in registry.watch("policy"):
            pass

    os.mkfifo(tmp_path / "pipe")
    async with opened(flavour, server.port) as registry:
        await registry.create_model("policy")
        async with registry.track("policy") as latest:
            ends = [
                asyncio.ensure_future(watch(registry)),
                asyncio.ensure_future(latest.wait_for()),
                asyncio.ensure_future(registry.publish("policy", tmp_path / "pipe")),
            ]
            await counted(registry, watchers=2)
            await registry.close()
            for end in ends:
                async with asyncio.timeout(20):
                    with pytest.raises(errors.ClosedError, match="the model registry client is closed"):
                        await end
            assert isinstance(latest.error, errors.ClosedError)
        for name, arguments in (("list_models", []), ("publish", ["policy", b"1"]), ("retrieve", ["policy"])):
            with pytest.raises(errors.ClosedError):
                await getattr(registry, name)(*arguments)
        await registry.close()


async def test_a_tracker_fetches_a_version_that_failed_at_first(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It requested the latest version too early; later streams report the same version."""
    monkeypatch.setattr(tracking, "_PROMPT_SECONDS", 1.0)

    async def version_updates(call: Call) -> None:
        for number in (1, 2, 3) if call.number == 1 else (3,):
            await call.send(m.VersionUpdateReply(version_info=version_message(number, HASH, len(DATA))))
        await silence(call)

    async def latest_info(call: Call) -> None:
        await infos(call, number=3)

    async def data(call: Call) -> None:
        request = m.RetrieveVersionDataRequest.FromString(await call.receive() or b"")
        if request.version_number == 3 and call.number <= 2:
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        await chunks(DATA)(call)

    async with (
        scripted(
            RetrieveModels=has_model,
            VersionUpdate=version_updates,
            RetrieveVersionInfos=latest_info,
            RetrieveVersionData=data,
        ) as server,
        opened(flavour, server.port, retry_seconds=0) as registry,
        registry.track("policy") as latest,
    ):
        assert (await latest.wait_for(newer_than=1, timeout=PATIENT)).number == 3
        assert latest.error is None
        assert server.calls["RetrieveVersionData"] == 3


@pytest.mark.parametrize("has_older", [False, True])
async def test_a_tracker_has_the_latest_version_after_a_newer_one_was_deleted(flavour: str, has_older: bool) -> None:
    """Version 3 is deleted after the stream reported it and before it is fetched; then version 2 is the latest."""

    async def version_updates(call: Call) -> None:
        for number in (2, 3) if has_older else (3,):
            await call.send(m.VersionUpdateReply(version_info=version_message(number, HASH, len(DATA))))
        await silence(call)

    async def latest_info(call: Call) -> None:
        await infos(call, number=2)

    async def data(call: Call) -> None:
        request = m.RetrieveVersionDataRequest.FromString(await call.receive() or b"")
        if request.version_number == 3:
            is_tried.set()
            await call.fail(grpc.StatusCode.NOT_FOUND)
        await chunks(DATA)(call)

    is_tried = asyncio.Event()
    async with (
        scripted(
            RetrieveModels=has_model,
            VersionUpdate=version_updates,
            RetrieveVersionInfos=latest_info,
            RetrieveVersionData=data,
        ) as server,
        opened(flavour, server.port, retry_seconds=0) as registry,
        registry.track("policy") as latest,
    ):
        await is_tried.wait()
        assert (await latest.wait_for(newer_than=1, timeout=PATIENT)).number == 2
        await until(lambda: latest.error is None, latest)
        assert server.calls["RetrieveVersionData"] == 2


@pytest.mark.parametrize("status", [None, grpc.StatusCode.UNAVAILABLE])
async def test_a_server_that_ends_each_stream_at_once_is_unavailable(
    flavour: str, status: grpc.StatusCode | None
) -> None:
    """Although it answers everything else."""

    async def ended(call: Call) -> None:
        if status is not None:
            await call.fail(status)

    async with (
        scripted(RetrieveModels=has_model, VersionUpdate=ended) as server,
        opened(flavour, server.port, retry_seconds=0) as registry,
    ):
        with pytest.raises(errors.UnavailableError, match=r"ended the stream at once|for the test"):
            await next_of(registry.watch("policy", patience_seconds=0.5))
        assert 1 < server.calls["VersionUpdate"] < 20


async def test_an_error_is_cleared_when_the_model_exists_even_without_versions(registry: Any) -> None:
    async with registry.track("policy") as latest:
        await until(lambda: isinstance(latest.error, errors.NotFoundError), latest)
        await registry.create_model("policy")
        await until(lambda: latest.error is None, latest)


async def test_a_tracker_can_be_entered_only_once(server: Server) -> None:
    endpoint = f"grpc://127.0.0.1:{server.port}"
    async with aio.ModelRegistry(endpoint) as registry:
        tracked = registry.track("policy")
        async with tracked:
            with pytest.raises(errors.ClosedError, match="was tracked before with this object: call `track` again"):
                await tracked.__aenter__()
            assert not isinstance(tracked.error, errors.ClosedError)
        with pytest.raises(errors.ClosedError, match="was tracked before"):
            await tracked.__aenter__()
    with ModelRegistry(endpoint) as blocking:
        latest = blocking.track("policy")
        with latest:
            with pytest.raises(errors.ClosedError, match="was tracked before with this object: call `track` again"):
                latest.__enter__()
            assert not isinstance(latest.error, errors.ClosedError)
        with pytest.raises(errors.ClosedError, match="was tracked before"):
            latest.__enter__()
