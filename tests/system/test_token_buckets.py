"""Token buckets: whatever is taken when, no more than the rate allows."""

from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.system.token_buckets import TokenBucket

RATES = st.floats(0.001, 1e9)
STEPS = st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e6)), max_size=50)
"""How much later something is asked for, and how much."""


@given(RATES, st.floats(1, 1e9), STEPS)
def test_within_any_time_at_most_a_burst_and_the_rate_is_taken(
    rate: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now = TokenBucket(rate, capacity, 0.0), 0.0
    taken: list[tuple[float, float]] = []
    for pause, amount in steps:
        now += pause
        if bucket.level(now) >= amount:
            bucket.take(amount, now)
            taken.append((now, amount))
    for first, (began, _) in enumerate(taken):
        total = 0.0
        for ended, amount in taken[first:]:
            total += amount
            allowed = capacity + rate * (ended - began)
            assert total <= allowed * (1 + 1e-9)


@given(RATES, st.floats(1, 1e9), STEPS)
def test_a_caller_that_waits_as_long_as_asked_gets_what_it_wants(
    rate: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now = TokenBucket(rate, capacity, 0.0), 0.0
    for pause, amount in steps:
        now += pause
        wanted = min(amount, capacity)
        waited = bucket.seconds_until(wanted, now)
        assert waited >= 0
        now += waited
        assert bucket.seconds_until(wanted, now) == 0
        bucket.take(wanted, now)


@given(RATES, st.floats(1, 1e9), STEPS)
def test_a_debt_is_paid_first_and_a_bucket_never_overflows(
    rate: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, level = TokenBucket(rate, capacity, 0.0), 0.0, capacity
    for pause, amount in steps:
        now += pause
        level = min(level + pause * rate, capacity) - amount
        bucket.take(amount, now)
        assert abs(bucket.level(now) - level) <= 1e-6 * (abs(level) + capacity)
        assert bucket.is_full(now) == (bucket.level(now) >= capacity)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(10, 5, 100.0)
    bucket.take(5, 100.0)
    assert bucket.level(100.0) == bucket.level(50.0) == 0
    assert bucket.level(100.5) == 5.0
    bucket.take(-100, 100.5)
    assert bucket.level(100.5) == 5
