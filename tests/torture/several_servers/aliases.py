"""An alias as a register with a compare-and-set: what each of its states allows as an answer."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.torture.several_servers.history import History, Kind, Operation, Outcome
from tests.torture.several_servers.linearizability import Call, find_failure


class State(NamedTuple):
    """An alias at one moment.

    Attributes:
        number: The version that it points to; 0 if it does not exist.
        revision: Its revision, or the last one before it if it is not known.
        is_known: Whether the revision is known; it is not after a move that was not answered.
    """

    number: int
    revision: int
    is_known: bool


ABSENT = State(0, 0, is_known=True)


def steps(state: State, operation: Operation) -> Iterator[State]:
    """Yield the states that an operation may leave."""
    if operation.kind is Kind.READ_ALIAS:
        if state.number == operation.number and _may_be(state, operation.revision):
            yield State(operation.number, operation.revision, is_known=True)
        return
    may_fit = _may_be(state, operation.expected)
    if operation.outcome is Outcome.CONFLICT:
        if not (state.is_known and state.revision == operation.expected):
            yield state
    elif operation.outcome is Outcome.OK:
        before = operation.expected if may_fit else state.revision
        if may_fit and operation.revision > before:
            yield State(operation.number, operation.revision, is_known=True)
    elif may_fit:
        yield State(operation.number, operation.expected, is_known=False)


def _may_be(state: State, revision: int) -> bool:
    return revision == state.revision if state.is_known else revision > state.revision


def check_aliases(history: History) -> int:
    """Check that the alias of each model is linearizable; return the number of operations that were compared."""
    checked = 0
    for model_id, each in history.by_model().items():
        calls = [
            Call(operation.began_ns, None if operation.outcome is Outcome.UNKNOWN else operation.ended_ns, operation)
            for operation in each.having(Kind.MOVE, Kind.READ_ALIAS)
            if operation.outcome in (Outcome.OK, Outcome.CONFLICT)
            or (operation.kind is Kind.MOVE and operation.outcome is Outcome.UNKNOWN)
        ]
        failure = find_failure(calls, ABSENT, steps)
        assert failure is None, f"the alias of {model_id} is not linearizable: {failure}"
        checked += len(calls)
    return checked
