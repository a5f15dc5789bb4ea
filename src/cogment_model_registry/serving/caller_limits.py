"""Limits per caller: calls and bytes per second, and uploads under way.

A caller is whoever a token, a certificate or a JSON Web Token names, on however many connections; without a name it is
the host that calls: an IPv4 address, or the /64 network of an IPv6 address, within which a host chooses its address.
All of this machine is one host.

A call over a limit is refused at once. What is refused takes nothing, so that a caller that tries all the time still
gets its rate. Streams are not refused for their bytes but slowed down: each waits in its caller's line before it moves
the next message, and holds nothing then but what it has anyway. A line moves one stream at a time, so the debt of a
caller is one message, whatever the number of its streams. Calls with one request and one reply do not wait, since they
would hold their request; they are refused when the debt is larger than a burst.

What is known of a caller takes less than 1 KiB. It is dropped when it is as that of a new caller; and of callers
with no call under way, at most so many are kept: the least recent ones are forgotten first.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import structlog

from cogment_model_registry.errors import LimitedError, counted
from cogment_model_registry.records.addresses import network_of
from cogment_model_registry.records.sizes import KIB, MIB
from cogment_model_registry.registry.access import Caller
from cogment_model_registry.system.token_buckets import TokenBucket

_log = structlog.stdlib.get_logger(__name__)

_BURST_SECONDS = 2.0
"""For how long what a caller did not use is kept for it."""

_BURST_MIN_BYTES = 4 * MIB
"""The smallest burst of bytes: two messages of the usual size, so that a slow upload does not refuse small calls."""

_UPLOAD_RETRY_SECONDS = 1.0
"""When to try again while too many uploads are under way: nobody knows when the next one ends."""

_PAUSE_MIN_SECONDS = 0.001

_OWED_MAX_BYTES = 64 * KIB
"""What a call may have moved without having paid for it."""

_CALLERS_MAX = 16_384
"""How many callers of each kind are kept: with less than 1 KiB each, 16 MiB at most."""

_SWEPT_AT_ONCE = 4
"""How many callers a new one looks at, whether they can be dropped: more than one, so that the table shrinks."""

_LOG_SECONDS = 60.0
"""How often the log says that a caller is over its limits, however many of its calls are refused."""


@dataclass(frozen=True, slots=True)
class CallerRates:
    """What each caller may do; 0 for no limit.

    Attributes:
        calls_per_second: Calls that begin.
        bytes_per_second: Bytes of messages, in both directions together.
        uploads_max: Uploads under way.
    """

    calls_per_second: float = 0.0
    bytes_per_second: int = 0
    uploads_max: int = 0

    @property
    def is_any_set(self) -> bool:
        """Whether anything is limited."""
        return bool(self.calls_per_second or self.bytes_per_second or self.uploads_max)


class _Allowance:
    """What one caller may do now.

    Attributes:
        label: Who it is, for the log and for messages.
        calls: The calls it may make; None for no limit.
        bytes: The bytes it may move; None for no limit.
        uploads: Its uploads under way.
        users: Its calls under way.
        line: Its streams that wait for bytes.
        logged: When the log said last that it is over a limit.
    """

    __slots__ = ("bytes", "calls", "label", "line", "logged", "uploads", "users")

    def __init__(self, label: str, rates: CallerRates, now: float) -> None:
        self.label = label
        self.calls: TokenBucket | None = None
        self.bytes: TokenBucket | None = None
        if rate := rates.calls_per_second:
            self.calls = TokenBucket(rate, max(_BURST_SECONDS * rate, 1.0), now)
        if rate := rates.bytes_per_second:
            self.bytes = TokenBucket(rate, max(_BURST_SECONDS * rate, _BURST_MIN_BYTES), now)
        self.uploads = 0
        self.users = 0
        self.line = asyncio.Lock()
        self.logged = float("-inf")

    def is_as_new(self, now: float) -> bool:
        """Return whether nothing is lost with it."""
        return (self.calls is None or self.calls.is_full(now)) and (self.bytes is None or self.bytes.is_full(now))


class _Table:
    """What is known of callers of one kind, by their keys, the least recent first."""

    def __init__(self, rates: CallerRates, callers_max: int) -> None:
        self._rates = rates
        self._callers_max = callers_max
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def __len__(self) -> int:
        return len(self._allowances)

    def get(self, key: str) -> _Allowance | None:
        """Return what is known of a caller; None for nothing."""
        return self._allowances.get(key)

    def of(self, key: str, label: Callable[[], str], clock: Callable[[], float]) -> _Allowance:
        """Return what a caller may do; it is the most recent one now."""
        allowance = self._allowances.get(key)
        if allowance is None:
            now = clock()
            self._sweep(now)
            allowance = self._allowances[key] = _Allowance(label(), self._rates, now)
        else:
            self._allowances.move_to_end(key)
        return allowance

    def _sweep(self, now: float) -> None:
        """Drop callers that are as new ones, and the least recent one if there are too many."""
        for _ in range(min(_SWEPT_AT_ONCE, len(self._allowances))):
            key, allowance = next(iter(self._allowances.items()))
            if allowance.users:
                self._allowances.move_to_end(key)
            elif allowance.is_as_new(now) or len(self._allowances) >= self._callers_max:
                del self._allowances[key]
            else:
                return


class CallerLimits:
    """Keeps each caller within its limits.

    For one event loop.

    Args:
        rates: The limits.
        clock: Seconds of a clock that never goes back; None for that of the machine.
        callers_max: How many callers of each kind are kept.

    Attributes:
        refused: How many calls were refused, by the limit: ``calls``, ``bytes``, ``uploads``; and ``logins`` for calls
            with unknown tokens from hosts of which too many were refused.
        slowed_seconds: How long streams have waited for bytes, together.
    """

    def __init__(
        self, rates: CallerRates, clock: Callable[[], float] | None = None, callers_max: int = _CALLERS_MAX
    ) -> None:
        self.refused = dict.fromkeys(("calls", "bytes", "uploads", "logins"), 0)
        self.slowed_seconds = 0.0
        self.rates = rates
        self.clock = clock or monotonic
        self._guarded_until = float("-inf")
        self._named = _Table(rates, callers_max)
        self._hosts = _Table(rates, callers_max)

    @property
    def callers(self) -> int:
        """How many callers are kept."""
        return len(self._named) + len(self._hosts)

    def enter(self, caller: Caller, peer: Callable[[], str]) -> "CallShare":
        """Return the share of a call in what its caller may do; it must `leave`.

        Args:
            caller: Who makes the call.
            peer: Returns its address, in gRPC's words, such as ``ipv4:127.0.0.1:4711``.
        """
        if caller.is_named:
            return CallShare(self, self._named.of(caller.identity, lambda: caller.name, self.clock))
        return CallShare(self, self._of_host(peer()))

    def _of_host(self, peer: str) -> _Allowance:
        host = host_of(peer)
        return self._hosts.of(host, lambda: f"callers without a name at {host}", self.clock)

    # Logins.

    def has_no_logins(self, peer: Callable[[], str]) -> bool:
        """Return whether so many tokens from a host were refused that unknown ones are not even checked.

        Args:
            peer: Returns the address of one that calls.
        """
        now = self.clock()
        if now >= self._guarded_until:
            return False
        allowance = self._hosts.get(host_of(peer()))
        return allowance is not None and allowance.calls is not None and allowance.calls.level(now) < 1.0

    def login_refusal(self, peer: str) -> LimitedError:
        """Return the error for a call with an unknown token from such a host."""
        allowance = self._of_host(peer)
        seconds = allowance.calls.seconds_until(1.0, self.clock()) if allowance.calls is not None else 0.0
        return self.refusal(allowance, "logins", seconds, "too many calls with tokens that are not valid")

    def count_refused_login(self, peer: str, size_bytes: int) -> None:
        """Count a call with a token that is not valid for the host that made it.

        Args:
            peer: Its address.
            size_bytes: The bytes of its messages.
        """
        now, allowance = self.clock(), self._of_host(peer)
        if allowance.calls is not None:
            allowance.calls.take_one(now)
            # By then the host has a call again, if it made no other ones.
            self._guarded_until = now + 1.0 / allowance.calls.rate
        if allowance.bytes is not None:
            allowance.bytes.take(size_bytes, now)

    # For shares.

    def refusal(self, allowance: _Allowance, limit: str, seconds: float, what: str) -> LimitedError:
        """Return the error of a call that is refused, and count it.

        Args:
            allowance: What its caller may do.
            limit: The limit, as in `refused`.
            seconds: When to try again.
            what: What the caller does too often.
        """
        self.refused[limit] += 1
        now = self.clock()
        if now - allowance.logged >= _LOG_SECONDS:
            allowance.logged = now
            _log.info("caller over its limit", caller=allowance.label, limit=limit)
        text = f"{allowance.label}: {what}; try again in {counted(_shown(seconds), 'second')}"
        return LimitedError(text, retry_after_seconds=seconds)


class CallShare:
    """What one call has of what its caller may do. Made by `CallerLimits.enter`.

    Args:
        limits: The limits.
        allowance: What the caller may do.
    """

    __slots__ = ("_allowance", "_is_upload", "_limits", "_owed_bytes")

    def __init__(self, limits: CallerLimits, allowance: _Allowance) -> None:
        self._limits = limits
        self._allowance = allowance
        self._is_upload = False
        self._owed_bytes = 0  # what was moved and is not paid yet; negative for what was reserved and not moved
        allowance.users += 1

    def leave(self) -> None:
        """End it."""
        self._settle()
        self._allowance.users -= 1
        if self._is_upload:
            self._allowance.uploads -= 1

    def begin(self, *, is_upload: bool = False) -> None:
        """Count the call.

        Args:
            is_upload: Whether it is an upload.

        Raises:
            LimitedError: The caller is over a limit.
        """
        limits, allowance = self._limits, self._allowance
        now, moved, calls = limits.clock(), allowance.bytes, allowance.calls
        if moved is not None and moved.level(now) < -moved.capacity:
            raise self._over_bytes(moved, moved.seconds_until(-moved.capacity, now))
        if is_upload and 0 < limits.rates.uploads_max <= allowance.uploads:
            text = f"{counted(allowance.uploads, 'upload')} under way already, which is the limit"
            raise limits.refusal(allowance, "uploads", _UPLOAD_RETRY_SECONDS, text)
        if calls is not None and not calls.take_one(now):
            text = f"over the limit of {counted(limits.rates.calls_per_second, 'call')} per second"
            raise limits.refusal(allowance, "calls", calls.seconds_until(1.0, now), text)
        if is_upload:
            self._is_upload = True
            allowance.uploads += 1

    def _over_bytes(self, moved: TokenBucket, seconds: float) -> LimitedError:
        text = f"over the limit of {moved.rate:.0f} bytes per second"
        return self._limits.refusal(self._allowance, "bytes", seconds, text)

    def charge(self, size_bytes: int) -> None:
        """Count the bytes of a message, for which `paced` may have reserved some; small ones are paid together."""
        self._owed_bytes += size_bytes
        if self._owed_bytes >= _OWED_MAX_BYTES:
            self._settle()

    def _settle(self) -> None:
        """Pay what was moved, or get back what was reserved and not moved."""
        owed_bytes, self._owed_bytes = self._owed_bytes, 0
        if owed_bytes and self._allowance.bytes is not None:
            self._allowance.bytes.take(owed_bytes, self._limits.clock())

    def has_room(self, size_bytes: int) -> bool:
        """Return whether bytes that cannot be slowed down may come at once, in addition to what is counted."""
        moved = self._allowance.bytes
        return moved is None or moved.level(self._limits.clock()) - size_bytes >= -moved.capacity

    @property
    def is_slowed(self) -> bool:
        """Whether `paced` would wait."""
        moved = self._allowance.bytes
        return moved is not None and (self._allowance.line.locked() or moved.level(self._limits.clock()) < 0)

    async def paced(self, size_bytes: int) -> None:
        """Wait until the next message of a stream may move, and reserve its bytes.

        Args:
            size_bytes: Its size, as far as that is known.
        """
        moved = self._allowance.bytes
        if moved is None:
            return
        self._settle()
        if not self.is_slowed:
            self._reserve(moved, size_bytes)
            return
        clock = self._limits.clock
        began = clock()
        try:
            async with self._allowance.line:
                while (seconds := moved.seconds_until(0.0, clock())) > 0:  # noqa: ASYNC110 # time is the event
                    await asyncio.sleep(max(seconds, _PAUSE_MIN_SECONDS))
                self._reserve(moved, size_bytes)
        finally:
            self._limits.slowed_seconds += clock() - began

    def _reserve(self, moved: TokenBucket, size_bytes: int) -> None:
        moved.take(size_bytes, self._limits.clock())
        self._owed_bytes -= size_bytes


def _shown(seconds: float) -> float:
    """Return seconds with a few digits, rounded up, so that nobody comes too early."""
    return float(f"{seconds + 0.0005:.3f}")


@functools.lru_cache(4096)
def host_of(peer: str) -> str:
    """Return the host of a peer, in gRPC's words: an address, or the /64 network of an IPv6 address.

    Args:
        peer: Such as ``ipv4:127.0.0.1:4711``, ``ipv6:%5B::1%5D:4711``, or ``unix:...``.
    """
    family, _, address = peer.partition(":")
    if family == "unix":
        return "this host"
    text = address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        return network_of(text)
    except ValueError:
        return text
