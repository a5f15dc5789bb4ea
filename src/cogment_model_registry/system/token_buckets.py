"""Token buckets: how much may be taken in any time, with a burst. Plain arithmetic; nothing waits here."""

_NOTHING_SECONDS = 1e-6
"""What the rounding of times may cost; who takes a little more than there is leaves a debt of it."""


class TokenBucket:
    """A bucket that fills at a steady rate, and from which is taken.

    Within any time, those who take no more than its level take at most its capacity and what flows in during that time.
    Whoever takes more leaves a debt, which is paid first.

    Args:
        rate: What flows in, in units per second.
        capacity: What it holds, in units. It is full at first.
        now: The time, in seconds of a clock that never goes back; so in all methods.

    Attributes:
        rate: As above.
        capacity: As above.
    """

    __slots__ = ("_level", "_now", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._now = now

    def level(self, now: float) -> float:
        """Return what is in it; negative for a debt."""
        if now > self._now:
            self._level = min(self._level + (now - self._now) * self.rate, self.capacity)
            self._now = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take an amount, whether it is there or not; a negative one is given back."""
        self._level = min(self.level(now) - amount, self.capacity)

    def take_one(self, now: float) -> bool:
        """Take 1 if it is there; return whether it was."""
        level = self.level(now)
        if level < 1.0 and self.seconds_until(1.0, now) > 0:
            return False
        self._level = level - 1.0
        return True

    def seconds_until(self, level: float, now: float) -> float:
        """Return how long it takes until it has a level, if nothing is taken in the meantime; 0 if it has."""
        seconds = (level - self.level(now)) / self.rate
        return seconds if seconds > _NOTHING_SECONDS else 0.0

    def is_full(self, now: float) -> bool:
        """Return whether it is as a new one."""
        return self.level(now) >= self.capacity
