"""A proof: a promise, a repeatable attempt to break it, and figures that it counts."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass
class Figures:
    """The figures that a proof counts.

    Attributes:
        sums: Counts, summed over all batches: how often something was tried, and how often it failed (never).
        peaks: Measures, such as memory; the largest value of all batches is kept.
    """

    sums: Counter[str] = field(default_factory=Counter)
    peaks: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count; adding 0 makes it appear in the table."""
        self.sums[name] += number

    def peak(self, name: str, value: float) -> None:
        """Record a measure; the largest value is kept."""
        self.peaks[name] = max(value, self.peaks.get(name, value))

    def add(self, other: "Figures") -> None:
        """Add the figures of another batch."""
        for name, number in other.sums.items():
            self.count(name, number)
        for name, value in other.peaks.items():
            self.peak(name, value)

    def __str__(self) -> str:
        parts = [f"{number:,} {name}" for name, number in self.sums.items()]
        return ", ".join(parts + [f"{name} {value:,.0f}" for name, value in self.peaks.items()])


Attempt = Callable[[Path, int, Random, Figures], None]
"""Tries to break a promise. Its arguments: an empty directory, the number of rounds, the source of randomness, and the
figures to add to. It raises an AssertionError if the promise is broken."""


@dataclass(frozen=True)
class Proof:
    """A promise, and how to test it.

    Attributes:
        name: Its name on the command line.
        promise: The promise, as the tables show it.
        attempt: Tries to break the promise.
        unit: What a round is, in the plural.
        short: How many rounds `make test` runs.
        long: How many rounds `make torture` runs.
        batch: The number of rounds after which progress is saved.
        missing: Returns what this machine lacks for the proof; empty if nothing.
        requirements: What the proof needs, as the table of proofs shows it.
        is_needed: Whether its short form fails instead of being skipped where something is missing in CI.
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
    is_needed: bool = False

    def rounds(self, number: int) -> str:
        """Return a number of rounds with their unit."""
        plural, *rest = self.unit.split(" ", 1)
        singular = f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
        return " ".join([f"{number:,}", singular if number == 1 else plural, *rest])
