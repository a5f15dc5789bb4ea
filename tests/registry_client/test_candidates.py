"""In which order a client tries registries that serve the same models."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.client.candidates import Candidates
from cogment_model_registry.client.endpoints import Direct

A, B, C = (Direct(f"{name}.example:9000") for name in "abc")
HERE = Direct("127.0.0.1:9000")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def candidates(clock: Callable[[], float], *places: Direct) -> Candidates:
    made = Candidates(clock)
    made.set(places)
    return made


def test_many_clients_spread_over_all_and_each_keeps_its_order(clock: Clock) -> None:
    clients = [candidates(clock, A, B, C) for _ in range(200)]
    firsts = [client.in_order()[0] for client in clients]
    assert {A, B, C} == set(firsts)
    assert [client.in_order()[0] for client in clients] == firsts


@pytest.mark.parametrize("here", [HERE, Direct("localhost:1"), Direct("[::1]:9000", is_secure=True)], ids=str)
def test_one_on_this_host_comes_first(clock: Clock, here: Direct) -> None:
    assert all(candidates(clock, A, here, B).in_order()[0] == here for _ in range(50))


def test_one_that_did_not_answer_comes_last_for_a_second(clock: Clock) -> None:
    client = candidates(clock, HERE, A, B)
    before = client.in_order()
    client.note_failure(HERE)
    assert client.in_order()[-1] == HERE
    clock.now += 0.99
    assert client.in_order()[-1] == HERE
    clock.now += 0.02
    assert client.in_order() == before


def test_one_that_fails_repeatedly_comes_last_for_longer_up_to_half_a_minute(clock: Clock) -> None:
    client = candidates(clock, HERE, A)
    seconds = []
    for _ in range(8):
        client.note_failure(HERE)
        began = clock.now
        while client.in_order()[-1] == HERE:
            clock.now += 0.25
        seconds.append(clock.now - began)
    assert seconds == [1, 2, 4, 8, 16, 30, 30, 30]
    client.note_answer(HERE)
    client.note_failure(HERE)
    clock.now += 1.1
    assert client.in_order()[0] == HERE


def test_many_calls_that_meet_the_same_failure_count_once(clock: Clock) -> None:
    client = candidates(clock, HERE, A)
    for _ in range(100):
        client.note_failure(HERE)
    clock.now += 1.1
    assert client.in_order()[0] == HERE


def test_of_those_that_did_not_answer_the_one_whose_time_is_over_first_comes_first(clock: Clock) -> None:
    client = candidates(clock, A, B, C)
    for place in (B, C, A):
        client.note_failure(place)
        clock.now += 0.1
    assert client.in_order() == [B, C, A]


def test_what_is_known_of_those_that_stay_is_kept(clock: Clock) -> None:
    client = candidates(clock, A, B)
    client.note_failure(A)
    client.set([C, A, B, A])
    assert sorted(client.known, key=str) == [A, B, C]
    assert client.in_order()[-1] == A
    client.set([B, C])
    assert A not in client.in_order()


@given(st.lists(st.tuples(st.sampled_from([A, B, C, HERE]), st.booleans(), st.floats(0, 40)), max_size=30))
def test_all_are_always_in_the_order_once(events: list[tuple[Direct, bool, float]]) -> None:
    clock = Clock()
    client = candidates(clock, A, B, C, HERE)
    for place, has_failed, seconds in events:
        (client.note_failure if has_failed else client.note_answer)(place)
        clock.now += seconds
        assert sorted(client.in_order(), key=str) == sorted([A, B, C, HERE], key=str)
