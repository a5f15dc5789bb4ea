"""The registries that a client may go on with, and in which order it tries them."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cogment_model_registry.client.endpoints import Direct
from cogment_model_registry.records.addresses import is_loopback

_PENALTY_FIRST_SECONDS = 1.0
_PENALTY_MAX_SECONDS = 30.0


@dataclass(slots=True)
class _Penalty:
    """Why a registry comes after others.

    Attributes:
        seconds: How long the next one lasts.
        until: When this one ends, by the clock.
    """

    seconds: float
    until: float


class Candidates:
    """The registries that serve the same models.

    Those on this host come first: versions pass through shared memory there. The others come in an order of chance, so
    that many clients spread over them, which stays the same for one client. One that did not answer comes last for a
    second, and for twice as long each further time, up to 30 seconds. If none of them answered, the one comes
    first whose time is over first.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ranks: dict[Direct, tuple[bool, float]] = {}
        self._penalties: dict[Direct, _Penalty] = {}
        self.known: tuple[Direct, ...] = ()

    def set(self, places: Sequence[Direct]) -> None:
        """Replace them; what is known of those that stay is kept."""
        self.known = tuple(dict.fromkeys(places))
        self._ranks = {
            place: self._ranks.get(place, (not _is_here(place), random.random()))  # noqa: S311 # nothing secret
            for place in self.known
        }
        self._penalties = {place: each for place, each in self._penalties.items() if place in self._ranks}

    def in_order(self) -> list[Direct]:
        """Return them in the order in which they are to be tried now."""
        now = self._clock()

        def rank(place: Direct) -> tuple[float, bool, float]:
            penalty = self._penalties.get(place)
            return (penalty.until if penalty and penalty.until > now else 0.0, *self._ranks[place])

        return sorted(self.known, key=rank)

    def note_failure(self, place: Direct) -> None:
        """Record that a registry did not answer."""
        now = self._clock()
        before = self._penalties.get(place)
        if before is None:
            before = self._penalties[place] = _Penalty(_PENALTY_FIRST_SECONDS, now)
        elif before.until > now:
            return  # several calls met the same failure
        before.until = now + before.seconds
        before.seconds = min(2 * before.seconds, _PENALTY_MAX_SECONDS)

    def note_answer(self, place: Direct) -> None:
        """Record that a registry answered."""
        self._penalties.pop(place, None)


def _is_here(place: Direct) -> bool:
    host = place.address.rpartition(":")[0].strip("[]")
    return host == "localhost" or is_loopback(host)
