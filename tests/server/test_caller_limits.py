"""Limits per caller, by a clock that the test moves: who is one caller, what is refused, who waits, what is kept."""

import asyncio
import math
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.errors import LimitedError
from cogment_model_registry.records.access import Scope
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.registry.access import Caller
from cogment_model_registry.serving.caller_limits import CallerLimits, CallerRates, CallShare, host_of

ANYBODY = Caller("a caller without a token", [Scope("read")], is_named=False)
BURST_BYTES = 4 * MIB


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """Limits, and calls within them."""

    def __init__(self, callers_max: int = 100, **rates: float) -> None:
        self.clock = Clock()
        self.limits = CallerLimits(CallerRates(**rates), self.clock, callers_max)  # type: ignore[arg-type]

    def call(self, who: Caller | str, *, is_upload: bool = False) -> CallShare:
        """Begin a call of somebody with a name, or of a host."""
        caller, peer = (who, "ipv4:10.0.0.1:1") if isinstance(who, Caller) else (ANYBODY, who)
        share = self.limits.enter(caller, lambda: peer)
        try:
            share.begin(is_upload=is_upload)
        except BaseException:
            share.leave()
            raise
        return share

    def accepted(self, whos: Iterable[Caller | str]) -> int:
        """Return how many calls are accepted of those that these make one after the other."""
        count = 0
        for who in whos:
            try:
                self.call(who).leave()
                count += 1
            except LimitedError:
                pass
        return count


def never() -> str:
    """Be not asked for the host of a caller with a name."""
    raise AssertionError


def named(name: str) -> Caller:
    return Caller(name, [Scope("read")], identity=f"grant:{name}")


# Who is one caller.


@pytest.mark.parametrize(
    ("peers", "host"),
    [
        (("ipv4:10.1.2.3:1", "ipv4:10.1.2.3:65535", "ipv6:%5B::ffff:10.1.2.3%5D:7"), "10.1.2.3"),
        (("ipv6:%5B2001:db8:1:2::1%5D:1", "ipv6:[2001:db8:1:2:ffff::9]:2"), "2001:db8:1:2::/64"),
        (("ipv6:%5Bfe80::1%25eth0%5D:1", "ipv6:[fe80::2%eth1]:2"), "fe80::/64"),
        (
            ("ipv4:127.0.0.1:1", "ipv4:127.1.2.3:1", "ipv6:%5B::1%5D:1", "unix:process=1,user=0", "unix:/a/path"),
            "this host",
        ),
    ],
)
def test_all_connections_of_a_host_are_one_caller(peers: tuple[str, ...], host: str) -> None:
    assert {host_of(peer) for peer in peers} == {host}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1"),
        ("ipv6:%5B2001:db8:1:2::1%5D:1", "ipv6:%5B2001:db8:1:3::1%5D:1"),
        ("ipv4:10.0.0.1:1", "unix:process=1,user=0"),
    ],
)
def test_different_hosts_are_different_callers(one: str, other: str) -> None:
    assert host_of(one) != host_of(other)


@given(st.text())
def test_whatever_a_transport_calls_a_peer_is_some_host(peer: str) -> None:
    assert isinstance(host_of(peer), str)


def test_a_name_counts_wherever_its_calls_come_from_and_a_host_only_for_those_without() -> None:
    scene = Scene(calls_per_second=5)  # and so a burst of 10
    trainer = named("trainer")
    for _ in range(10):
        scene.limits.enter(trainer, never).begin()
    with pytest.raises(LimitedError):
        scene.limits.enter(trainer, never).begin()
    assert scene.accepted(["ipv4:10.0.0.1:1"] * 20) == 10


def test_a_subject_cannot_use_up_what_belongs_to_a_grant_with_its_name() -> None:
    scene = Scene(calls_per_second=5)
    assert scene.accepted([Caller("trainer", [], identity="subject:trainer")] * 100) == 10
    assert scene.accepted([named("trainer")] * 100) == 10


# Calls.


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 10), max_size=20))
def test_a_caller_that_tries_all_the_time_gets_a_burst_and_its_rate(rate: float, pauses: list[float]) -> None:
    scene = Scene(calls_per_second=rate)
    burst = max(2 * rate, 1)
    accepted = scene.accepted(["ipv4:10.0.0.1:1"] * math.ceil(burst + 1))
    assert math.floor(burst) <= accepted <= burst + 1e-6 * rate
    for pause in pauses:
        scene.clock.now += pause
        accepted += scene.accepted(["ipv4:10.0.0.1:1"] * math.ceil(min(pause * rate, burst) + 1))
    assert accepted <= burst + rate * (sum(pauses) + 1e-5)


def test_one_caller_over_its_limit_takes_nothing_from_another() -> None:
    scene = Scene(calls_per_second=5)
    assert scene.accepted([named("greedy")] * 1000) == 10
    assert scene.accepted([named("modest"), "ipv4:10.0.0.1:1"] * 10) == 20


def test_a_refused_call_says_when_to_come_back_and_who_comes_then_is_accepted() -> None:
    scene = Scene(calls_per_second=0.5)
    caller = named("trainer")
    scene.call(caller).leave()
    with pytest.raises(LimitedError, match=r"trainer: over the limit of 0.5 calls per second; try again in") as caught:
        scene.call(caller)
    assert caught.value.retry_after_seconds == 2.0
    scene.clock.now += caught.value.retry_after_seconds
    scene.call(caller).leave()
    assert scene.limits.refused == {"calls": 1, "bytes": 0, "uploads": 0, "logins": 0}


# Uploads.


def test_a_caller_has_so_many_uploads_under_way_and_those_that_end_make_room() -> None:
    scene = Scene(uploads_max=2)
    caller = named("trainer")
    first, second = (scene.call(caller, is_upload=True) for _ in range(2))
    with pytest.raises(LimitedError, match="2 uploads under way already") as caught:
        scene.call(caller, is_upload=True)
    assert caught.value.retry_after_seconds > 0
    scene.call(caller).leave()  # other calls are not limited
    scene.call(named("other"), is_upload=True).leave()
    first.leave()
    third = scene.call(caller, is_upload=True)
    for share in (second, third):
        share.leave()
    assert [scene.call(caller, is_upload=True) for _ in range(2)]


# Bytes.


def test_small_calls_go_on_until_the_debt_is_larger_than_a_burst() -> None:
    scene = Scene(bytes_per_second=MIB)
    caller = named("trainer")
    share = scene.call(caller)
    share.charge(2 * BURST_BYTES)
    scene.call(caller).leave()
    share.charge(MIB)
    with pytest.raises(LimitedError, match="over the limit of 1048576 bytes per second") as caught:
        scene.call(caller)
    assert caught.value.retry_after_seconds == 1.0
    scene.clock.now += 1.0
    scene.call(caller).leave()


def test_what_cannot_be_slowed_down_comes_only_if_it_fits() -> None:
    scene = Scene(bytes_per_second=MIB)
    share = scene.call(named("trainer"))
    assert share.has_room(2 * BURST_BYTES)
    assert not share.has_room(2 * BURST_BYTES + 1)
    share.charge(2 * BURST_BYTES)
    assert not share.has_room(1)
    assert Scene(calls_per_second=1).call(named("trainer")).has_room(2**60)


async def moved(share: CallShare, messages: int, size_bytes: int, note: Callable[[int], None]) -> None:
    """Move messages of a stream."""
    for _ in range(messages):
        await share.paced(size_bytes)
        share.charge(size_bytes)
        note(size_bytes)


async def settle() -> None:
    """Let tasks run until they wait."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was asked of `asyncio.sleep`, which in the limits waits for the test alone."""
    asked: list[float] = []
    actual = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            asked.append(seconds)
        await actual(0)

    monkeypatch.setattr("cogment_model_registry.serving.caller_limits.asyncio.sleep", sleep)
    return asked


async def test_the_streams_of_a_caller_share_its_bytes_and_take_turns(sleeps: list[float]) -> None:
    scene = Scene(bytes_per_second=MIB)
    trainer, other = named("trainer"), named("other")
    counts = [0] * 4

    def noting(index: int) -> Callable[[int], None]:
        def note(size_bytes: int) -> None:
            counts[index] += size_bytes

        return note

    streams = [
        asyncio.create_task(moved(scene.call(trainer), 1000, MIB // 2, noting(index))) for index in range(len(counts))
    ]
    await settle()
    before = [*counts]  # the first one had the burst
    for second in range(20):
        # The debt is one message, however many streams there are.
        assert sum(counts) == BURST_BYTES + MIB // 2 + second * MIB, second
        scene.clock.now += 1.0
        await settle()
        scene.call(trainer)
    since = [count - earlier for count, earlier in zip(counts, before, strict=True)]
    assert max(since) - min(since) <= MIB
    done: list[int] = []
    await moved(scene.call(other), 8, MIB // 2, done.append)  # waits for nobody
    assert sum(done) == BURST_BYTES
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    assert sleeps
    assert scene.limits.slowed_seconds > 0


async def test_what_a_stream_reserved_and_did_not_move_is_given_back(sleeps: list[float]) -> None:
    scene = Scene(bytes_per_second=MIB)
    caller = named("trainer")
    share = scene.call(caller)
    await share.paced(BURST_BYTES + 3 * MIB)
    assert share.is_slowed
    share.charge(BURST_BYTES + MIB)
    share.leave()
    assert scene.call(caller).is_slowed
    scene.clock.now += 1.0
    assert not scene.call(caller).is_slowed
    assert not sleeps


async def test_a_stream_that_ends_in_the_line_makes_room_for_the_next(sleeps: list[float]) -> None:
    scene = Scene(bytes_per_second=MIB)
    caller, done = named("trainer"), list[int]()
    share = scene.call(caller)
    share.charge(BURST_BYTES + MIB)
    first, second, third = (asyncio.create_task(moved(scene.call(caller), 1, 1, done.append)) for _ in range(3))
    await settle()
    first.cancel()
    second.cancel()
    await settle()
    assert done == []
    scene.clock.now += 1.0
    await third
    assert done == [1]
    assert sleeps


# What is kept.


def test_a_hundred_thousand_hosts_take_bounded_memory_and_cost_no_name_its_place() -> None:
    scene = Scene(callers_max=1000, calls_per_second=5, uploads_max=1)
    scene.accepted([named("trainer")] * 10)
    upload = scene.call("ipv4:10.9.9.9:1", is_upload=True)
    for number in range(100_000):
        scene.call(f"ipv4:10.{number >> 16}.{number >> 8 & 255}.{number & 255}:1").leave()
        assert scene.limits.callers <= 1002
    assert scene.accepted([named("trainer")]) == 0
    with pytest.raises(LimitedError):
        scene.call("ipv4:10.9.9.9:1", is_upload=True)  # its upload is under way, so it was not forgotten
    upload.leave()


def test_callers_that_are_as_new_ones_are_dropped_when_others_come() -> None:
    scene = Scene(callers_max=1000, calls_per_second=5, bytes_per_second=1)
    for number in range(900):
        share = scene.call(f"ipv4:10.0.{number >> 8}.{number & 255}:1")
        share.charge(10)
        share.leave()
    assert scene.limits.callers == 900
    scene.clock.now += 10.1
    for number in range(300):
        scene.call(f"ipv4:11.0.{number >> 8}.{number & 255}:1").leave()
    assert scene.limits.callers == 300


def test_a_caller_is_not_dropped_before_its_bucket_is_full() -> None:
    scene = Scene(callers_max=1000, calls_per_second=5)
    assert scene.accepted(["ipv4:10.0.0.1:1"] * 100) == 10
    scene.clock.now += 1.0
    scene.accepted(f"ipv4:11.0.0.{number}:1" for number in range(200))
    assert scene.accepted(["ipv4:10.0.0.1:1"] * 100) == 5


# Logins.


def test_refused_logins_use_up_the_calls_of_their_host_and_no_others() -> None:
    scene = Scene(calls_per_second=5)
    for _ in range(10):
        assert not scene.limits.has_no_logins(lambda: "ipv4:10.0.0.1:1")
        scene.limits.count_refused_login("ipv4:10.0.0.1:1", 100)
    assert scene.limits.has_no_logins(lambda: "ipv4:10.0.0.1:2")
    assert not scene.limits.has_no_logins(lambda: "ipv4:10.0.0.2:1")
    refusal = scene.limits.login_refusal("ipv4:10.0.0.1:2")
    assert "too many calls with tokens that are not valid" in refusal.message
    assert scene.accepted(["ipv4:10.0.0.1:3"]) == 0
    assert scene.accepted([named("trainer")] * 10) == 10  # at the same host
    scene.limits.count_refused_login("ipv4:10.0.0.1:1", 100)  # makes it no worse
    scene.clock.now += refusal.retry_after_seconds
    assert not scene.limits.has_no_logins(lambda: "ipv4:10.0.0.1:1")
