"""What a proof is: a promise, an attempt to break it that can be made any number of times, and what it counted."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass
class Figures:
    """What a proof counted.

    Attributes:
        sums: Counts, added up over batches: how often something was tried, and how often it went wrong (never).
        peaks: Measures of which the largest one over all batches counts, such as memory.
    """

    sums: Counter[str] = field(default_factory=Counter)
    peaks: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count; adding 0 makes it appear in the table."""
        self.sums[name] += number

    def peak(self, name: str, value: float) -> None:
        """Take note of a measure."""
        self.peaks[name] = max(value, self.peaks.get(name, value))

    def add(self, other: "Figures") -> None:
        """Add what another batch counted."""
        for name, number in other.sums.items():
            self.count(name, number)
        for name, value in other.peaks.items():
            self.peak(name, value)

    def __str__(self) -> str:
        parts = [f"{number:,} {name}" for name, number in self.sums.items()]
        return ", ".join(parts + [f"{name} {value:,.0f}" for name, value in self.peaks.items()])


Attempt = Callable[[Path, int, Random, Figures], None]
"""Tries to break a promise: in an empty directory, for so many rounds, with this source of randomness, counting what it
does. A promise that is broken is an AssertionError."""


@dataclass(frozen=True)
class Proof:
    """How a promise is shown.

    Attributes:
        name: What it is called on the command line.
        promise: What is shown, as the table of figures says it.
        attempt: Tries to break it.
        unit: What a round is.
        short: How many rounds `make test` makes.
        long: How many rounds `make torture` makes.
        batch: After how many of them progress is saved.
        missing: Tells what this machine lacks for it; empty when nothing.
        requirements: What a machine must have for it, as the table of proofs says it.
    """

    name: str
    promise: str
    attempt: Attempt
    unit: str
    short: int
    long: int
    batch: int
    missing: Callable[[], str] = lambda: ""
    requirements: str = ""

    def rounds(self, number: int) -> str:
        """Return a number of rounds with their unit."""
        plural, *rest = self.unit.split(" ", 1)
        singular = f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
        return " ".join([f"{number:,}", singular if number == 1 else plural, *rest])
