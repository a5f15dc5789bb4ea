"""Histograms of durations: which bucket a duration is in."""

from bisect import bisect_left

BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
"""The upper bounds of the buckets, in seconds; one more has no bound."""


def no_durations() -> list[int]:
    """Return the counts of an empty histogram, for each bucket alone."""
    return [0] * (len(BUCKETS) + 1)


def count_duration(in_bucket: list[int], seconds: float) -> None:
    """Count a duration."""
    in_bucket[bisect_left(BUCKETS, seconds)] += 1
