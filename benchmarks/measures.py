"""Figures, and their comparison with floors and targets.

Each figure is measured in turns with its floor (A B A B ...), so that other work of the machine affects both. A turn is
a *block* of a few values; the ratio is that of the medians of two neighbouring blocks, and its median over all pairs is
compared with the target.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

Blocks = list[list[float]]
"""Values in the order in which they were measured, by block."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of values, and their quartiles."""

    median: float
    lower: float
    upper: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, len(values))


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a figure.

    Attributes:
        limit: The number.
        is_minimum: Whether more is better.
        of_ratio: Whether it applies to the ratio to the floor, and not to the value.
        unit: The unit of `limit`; empty for a ratio.
    """

    limit: float
    is_minimum: bool
    of_ratio: bool = True
    unit: str = ""

    def __str__(self) -> str:
        sign = "≥" if self.is_minimum else "≤"
        return f"{sign} {self.limit:.2f} x" if self.of_ratio else f"{sign} {self.limit:,.0f} {self.unit}"


def at_least(ratio: float) -> Target:
    """Return a lower limit of a ratio."""
    return Target(ratio, is_minimum=True)


def at_most(ratio: float) -> Target:
    """Return an upper limit of a ratio."""
    return Target(ratio, is_minimum=False)


def no_more_than(limit: float, unit: str) -> Target:
    """Return an upper limit of a value."""
    return Target(limit, is_minimum=False, of_ratio=False, unit=unit)


@dataclass(frozen=True, slots=True)
class Result:
    """A figure, and its comparison with a floor.

    Attributes:
        name: Its name, unique in a run.
        what: A short description.
        unit: The unit of `value` and `floor`.
        value: The measured values.
        against: The description of `floor`; empty if there is none.
        floor: The floor, or an alternative.
        ratio: `value` divided by `floor`, over pairs of neighbouring blocks.
        target: The target; None if there is none.
        peak_mib: The peak memory of the server's process during the measurement; None if it was not measured.
        note: A remark on this run.
        processor_ratio: The processor time of the server, divided by that of the floor's server.
        blocks: All measured values.
        floor_blocks: All values of the floor.
    """

    name: str
    what: str
    unit: str
    value: Spread
    against: str = ""
    floor: Spread | None = None
    ratio: Spread | None = None
    target: Target | None = None
    peak_mib: float | None = None
    note: str = ""
    processor_ratio: float | None = None
    blocks: Blocks = field(default_factory=list)
    floor_blocks: Blocks = field(default_factory=list)

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None if there is none."""
        if self.target is None:
            return None
        measured = self.ratio if self.target.of_ratio else self.value
        if measured is None:
            return None
        if self.target.is_minimum:
            return measured.median >= self.target.limit
        return measured.median <= self.target.limit


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot: a spread at each x. A floor is drawn differently."""

    name: str
    points: list[tuple[float, Spread]]
    is_floor: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """The data of a plot.

    Attributes:
        name: Its name, and that of its file.
        title: Its title.
        x_label: What varies, with the unit.
        y_label: What is measured, with the unit.
        series: The lines.
        is_log_x: Whether x has a logarithmic scale.
        is_log_y: Whether y has a logarithmic scale.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    is_log_x: bool = True
    is_log_y: bool = True


def interleaved(repetitions: int, sides: Mapping[str, Callable[[], Sequence[float]]]) -> dict[str, Blocks]:
    """Measure all sides in turns.

    Args:
        repetitions: The number of blocks of each side.
        sides: Functions that return the values of a block, by name.

    Returns:
        The blocks of each side.
    """
    blocks: dict[str, Blocks] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, measure in sides.items():
            blocks[name].append(list(measure()))
    return blocks


def spread_of(blocks: Blocks) -> Spread:
    """Return the spread of all values."""
    return Spread.of([value for block in blocks for value in block])


def ratios(blocks: Blocks, floor_blocks: Blocks) -> Spread:
    """Return the spread of the ratios of neighbouring blocks."""
    pairs = zip(blocks, floor_blocks, strict=True)
    return Spread.of([statistics.median(block) / statistics.median(floor) for block, floor in pairs])


def converted(blocks: Blocks, convert: Callable[[float], float]) -> Blocks:
    """Return the blocks with each value converted."""
    return [[convert(value) for value in block] for block in blocks]


def mib_per_second(size_bytes: int) -> Callable[[float], float]:
    """Return a function that converts the seconds of a number of bytes to MiB/s."""
    return lambda seconds: size_bytes / MIB / seconds


def milliseconds(seconds: float) -> float:
    """Convert seconds."""
    return seconds * 1000


def compared(
    name: str,
    what: str,
    unit: str,
    blocks: Blocks,
    *,
    against: str,
    floor_blocks: Blocks,
    target: Target | None = None,
    peak_mib: float | None = None,
    note: str = "",
    processor_ratio: float | None = None,
) -> Result:
    """Return the figure of blocks, compared with the floor that was measured in turns with them; see `Result`."""
    return Result(
        name,
        what,
        unit,
        spread_of(blocks),
        against,
        spread_of(floor_blocks),
        ratios(blocks, floor_blocks),
        target,
        peak_mib,
        note,
        processor_ratio,
        blocks,
        floor_blocks,
    )
