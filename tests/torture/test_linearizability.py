"""The checker of linearizability, on histories made by hand and on generated ones."""

from collections.abc import Iterator
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.torture.several_servers.linearizability import Call, find_failure

Register = tuple[str, int, int]
"""``("write", old, new)``, a compare-and-set that succeeded, or ``("read", value, 0)``."""


def steps(state: int, call: Register) -> Iterator[int]:
    kind, value, new = call
    if value == state:
        yield new if kind == "write" else state


def is_linearizable(*calls: Call[Register]) -> bool:
    return find_failure(calls, 0, steps) is None


def write(began: int, ended: int | None, old: int, new: int) -> Call[Register]:
    return Call(began, ended, ("write", old, new))


def read(began: int, ended: int, value: int) -> Call[Register]:
    return Call(began, ended, ("read", value, 0))


def test_calls_one_after_the_other_must_follow_each_other() -> None:
    assert is_linearizable(write(0, 1, 0, 1), read(2, 3, 1), write(4, 5, 1, 2), read(6, 7, 2))
    assert not is_linearizable(write(0, 1, 0, 1), read(2, 3, 0))
    assert not is_linearizable(write(0, 1, 0, 1), write(2, 3, 0, 2))


def test_calls_that_overlap_may_come_in_any_order() -> None:
    assert is_linearizable(write(0, 10, 0, 1), read(1, 2, 0), read(3, 4, 1))
    assert not is_linearizable(write(0, 10, 0, 1), read(1, 2, 1), read(3, 4, 0))
    assert is_linearizable(write(0, 10, 1, 2), write(5, 10, 0, 1))
    assert not is_linearizable(write(0, 10, 0, 1), write(0, 10, 0, 2))


def test_a_call_of_unknown_outcome_may_take_effect_late_or_never_but_not_twice() -> None:
    assert is_linearizable(write(0, None, 0, 1), read(5, 6, 0), read(7, 8, 0))
    assert is_linearizable(write(0, None, 0, 1), read(5, 6, 0), read(7, 8, 1))
    assert not is_linearizable(write(0, None, 0, 1), read(5, 6, 1), read(7, 8, 0))
    assert not is_linearizable(write(0, None, 0, 1), write(5, 6, 1, 0), read(7, 8, 1))


def test_a_call_of_unknown_outcome_takes_no_effect_before_it_begins() -> None:
    assert not is_linearizable(read(0, 1, 1), write(2, None, 0, 1))


def test_many_calls_of_unknown_outcome_are_decided_quickly() -> None:
    unknown = [write(index, None, index % 3 + 5, 9) for index in range(200)]
    known = [write(2 * index, 2 * index + 1, index % 2, 1 - index % 2) for index in range(1000)]
    assert is_linearizable(*unknown, *known)
    assert not is_linearizable(*unknown, *known, read(5000, 5001, 3))


def test_a_failure_names_the_calls_of_which_none_can_come_next() -> None:
    failure = find_failure([write(0, 1, 0, 1), read(2, 3, 7), read(2, 4, 8), read(9, 9, 1)], 0, steps)
    assert failure is not None
    assert failure.order == (("write", 0, 1),)
    assert failure.state == 1
    assert failure.next == (("read", 7, 0), ("read", 8, 0))
    assert "('read', 8, 0)" in str(failure)


def is_linearizable_by_definition(calls: list[Call[Register]]) -> bool:
    """Try every order of every subset that has all answered calls."""
    answered = [call for call in calls if call.ended is not None]
    unknown = [call for call in calls if call.ended is None]
    for mask in range(2 ** len(unknown)):
        for order in permutations(answered + [call for index, call in enumerate(unknown) if mask >> index & 1]):
            state: int | None = 0
            for index, call in enumerate(order):
                late = any(other.ended is not None and other.ended < call.began for other in order[index + 1 :])
                state = None if late or state is None else next(steps(state, call.value), None)
            if state is not None:
                return True
    return False


_times = st.integers(0, 8)
_values = st.integers(0, 2)
_reads = st.builds(lambda began, length, value: read(began, began + length, value), _times, _times, _values)
_writes = st.builds(
    lambda began, length, old, new: write(began, None if length is None else began + length, old, new),
    _times,
    st.none() | _times,
    _values,
    _values,
)


@given(st.lists(_reads | _writes, max_size=5))
def test_the_answer_is_that_of_the_definition(calls: list[Call[Register]]) -> None:
    assert is_linearizable(*calls) == is_linearizable_by_definition(calls)


@pytest.mark.parametrize("count", [2_000])
def test_a_long_history_takes_no_more_than_a_moment(count: int) -> None:
    calls = [write(10 * index, 10 * index + 15, index, index + 1) for index in range(count)]
    assert is_linearizable(*calls)
    assert not is_linearizable(*calls, read(10 * count + 20, 10 * count + 21, count - 1))
