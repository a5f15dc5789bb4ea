"""Whether calls that overlap have an order in which one register at one place would have answered them the same.

The method is that of Wing and Gong (Testing and verifying concurrent objects, 1993) with the memory of Lowe (Testing
for linearizability, 2017), which the checker `porcupine` uses too: try each call that may come first, continue with the
rest, and never examine the same rest in the same state twice. A call may come first if no other one ended before it
began.

A call whose outcome is unknown may take effect at any time after its beginning, or never: it is tried where it changes
the state, and need not be placed at all.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_C = TypeVar("_C")
_S = TypeVar("_S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Call(Generic[_C]):
    """One call.

    Attributes:
        began: When it began.
        ended: When it was answered; None if its outcome is unknown.
        value: What was asked and answered.
    """

    began: int
    ended: int | None
    value: _C


@dataclass(frozen=True, slots=True)
class Failure(Generic[_C, _S]):
    """Why calls have no order: the longest one that was found, and what cannot follow.

    Attributes:
        order: The calls that have an order.
        state: The state after them.
        next: The calls of which none can come next.
    """

    order: tuple[_C, ...]
    state: _S
    next: tuple[_C, ...]

    def __str__(self) -> str:
        last = "".join(f"\n  {each}" for each in self.order[-5:])
        options = "".join(f"\n  {each}" for each in self.next)
        return (
            f"after {len(self.order)} calls, the last of them{last}\nin state {self.state} none of these fits{options}"
        )


def find_failure(
    calls: Iterable[Call[_C]], initial: _S, steps: Callable[[_S, _C], Iterable[_S]]
) -> Failure[_C, _S] | None:
    """Return why calls are not linearizable; None if they are.

    Args:
        calls: The calls, in any order.
        initial: The state before all of them.
        steps: Returns the states that a call may leave in a state; none if it cannot have been answered so there.
    """
    ordered = sorted(calls, key=lambda call: call.began)
    answered = sum(1 << index for index, call in enumerate(ordered) if call.ended is not None)
    path: list[int] = []
    stack = [(0, initial, _options(ordered, 0, initial, steps))]
    seen: set[tuple[int, _S]] = {(0, initial)}
    longest: list[int] = []
    stuck = (0, initial)
    while stack:
        done, _, options = stack[-1]
        if done & answered == answered:
            return None
        found = next(options, None)
        if found is None:
            stack.pop()
            if path:
                path.pop()
            continue
        index, new_state = found
        new_done = done | 1 << index
        if (new_done, new_state) in seen:
            continue
        seen.add((new_done, new_state))
        path.append(index)
        stack.append((new_done, new_state, _options(ordered, new_done, new_state, steps)))
        if len(path) > len(longest):
            longest, stuck = [*path], (new_done, new_state)
    blocked = tuple(ordered[index].value for index in _first(ordered, stuck[0]) if ordered[index].ended is not None)
    return Failure(tuple(ordered[index].value for index in longest), stuck[1], blocked)


def _options(
    calls: Sequence[Call[_C]], done: int, state: _S, steps: Callable[[_S, _C], Iterable[_S]]
) -> Iterator[tuple[int, _S]]:
    """Yield the calls that may come next, with the state that each leaves; answered ones first."""
    unknown = []
    for index in _first(calls, done):
        call = calls[index]
        if call.ended is None:
            unknown.append(index)
        else:
            for new in steps(state, call.value):
                yield index, new
    for index in unknown:
        for new in steps(state, calls[index].value):
            if new != state:  # without an effect, it need not be placed
                yield index, new


def _first(calls: Sequence[Call[_C]], done: int) -> Iterator[int]:
    """Yield the indices of the calls that are not done and began before any other of them ended."""
    # The position of the lowest bit that is not set.
    index = (~done & (done + 1)).bit_length() - 1
    earliest_end: int | None = None
    found = []
    for position in range(index, len(calls)):
        call = calls[position]
        if earliest_end is not None and call.began > earliest_end:
            break
        if not done >> position & 1:
            found.append(position)
            if call.ended is not None:
                earliest_end = call.ended if earliest_end is None else min(earliest_end, call.ended)
    yield from found
