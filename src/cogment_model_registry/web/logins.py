"""How often hosts may try to log in with tokens that are not valid."""

import time
from collections import OrderedDict
from collections.abc import Callable

from cogment_model_registry.records.addresses import network_of
from cogment_model_registry.system.token_buckets import TokenBucket

TRIES = 10
"""How many attempts a host has."""

RETRY_SECONDS = 10.0
"""How soon it gets back one of them."""

_HOSTS_MAX = 10_000
"""How many hosts are remembered; the least recent one is forgotten first."""


class Logins:
    """The attempts that each host has left. An IPv6 network of /64 counts as one host.

    Args:
        now: Returns the seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._hosts: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    def take(self, address: str) -> bool:
        """Take an attempt of a host; return whether it had one.

        Args:
            address: Its IP address.
        """
        host, now = network_of(address), self._now()
        tries = self._hosts.get(host)
        if tries is None:
            while len(self._hosts) >= _HOSTS_MAX:
                self._hosts.popitem(last=False)
            tries = self._hosts[host] = TokenBucket(1 / RETRY_SECONDS, TRIES, now)
        else:
            self._hosts.move_to_end(host)
        return tries.take_one(now)

    def give_back(self, address: str) -> None:
        """Give an attempt back, because its token was valid."""
        host, now = network_of(address), self._now()
        tries = self._hosts.get(host)
        if tries is not None:
            tries.take(-1.0, now)
            if tries.is_full(now):
                del self._hosts[host]

    def wait_seconds(self, address: str) -> float:
        """Return when a host has an attempt again, in seconds from now."""
        tries = self._hosts.get(network_of(address))
        return 0.0 if tries is None else tries.seconds_until(1.0, self._now())
